"""Actors, wherever they live and from wherever they are called."""

import pytest
from distributed import Client, get_client, worker_client

from dask_serverless import ServerlessCluster
from tests.waiting import until


class Counter:
    kind = "a counter"
    n = 0  # an attribute that only objects have cannot be read: so in Dask

    def __init__(self, start=0):
        self.n = start

    def add(self, amount=1):
        self.n += amount
        return self.n

    async def add_later(self, amount=1):
        return self.add(amount)

    def fail(self):
        raise ZeroDivisionError("on purpose")

    def die(self):
        import os

        os._exit(3)


@pytest.fixture(scope="module", params=[0, 1], ids=["on the fleet worker", "on a Dask worker"])
def cluster(request):
    with ServerlessCluster(n_workers=2, dashboard_address=None, dask_workers=request.param) as cluster:
        yield cluster


@pytest.fixture
def counter(client):
    return client.submit(Counter, actor=True).result(timeout=30)


def test_where_actors_live(cluster, client):
    future = client.submit(Counter, actor=True)
    future.result(timeout=30)
    (address,) = client.who_has(future)[future.key]
    name = client.scheduler_info(n_workers=-1)["workers"][address]["name"]
    assert name == ("dask-0" if "dask-0" in cluster.workers else "serverless")


def test_methods_and_attributes(counter):
    assert counter.add(2).result(timeout=30) == 2
    assert counter.add_later(3).result(timeout=30) == 5
    assert counter.n == 5
    assert counter.kind == "a counter"


def test_an_actors_errors_are_its_own(counter):
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        counter.fail().result(timeout=30)
    assert counter.add().result(timeout=30) == 1


async def test_from_an_asynchronous_client(cluster):
    async with Client(cluster.scheduler_address, asynchronous=True) as client:
        counter = await client.submit(Counter, 1, actor=True)
        assert await counter.add() == 2
        assert await counter.add_later() == 3


def test_given_to_tasks_in_executors_as_an_argument(client, counter):
    def use(counter, amount):
        return counter.add(amount).result(), counter.kind, counter.n >= amount

    amounts = list(range(1, 9))
    results = client.gather(client.map(use, [counter] * 8, amounts), asynchronous=False)
    assert max(total for total, _, _ in results) == sum(amounts)
    assert {kind for _, kind, _ in results} == {"a counter"} and all(enough for _, _, enough in results)


def test_a_future_of_an_actor_given_to_tasks(client):
    future = client.submit(Counter, 10, actor=True)
    assert client.submit(lambda counter: counter.add(5).result(), future).result(timeout=30) == 15
    assert client.submit(lambda counter: counter.n, future, pure=False).result(timeout=30) == 15


def test_errors_of_an_actor_in_a_task(client, counter):
    future = client.submit(lambda counter: counter.fail().result(), counter)
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        future.result(timeout=30)


def test_asynchronous_tasks_await_actors(client, counter):
    async def use(counter):
        return await counter.add(7)

    assert client.submit(use, counter).result(timeout=30) == 7


def test_a_task_makes_an_actor(client):
    def work():
        counter = get_client().submit(Counter, 3, actor=True).result()
        return counter.add().result()

    assert client.submit(work).result(timeout=30) == 4


def test_a_task_makes_an_actor_through_worker_client(client):
    def work():
        with worker_client() as client:
            return client.submit(Counter, 4, actor=True).result().add().result()

    assert client.submit(work).result(timeout=30) == 5


def test_an_actor_that_is_a_client_itself(client):
    class Boss:
        def delegate(self, n):
            return sum(get_client().gather(get_client().map(lambda x: x + 1, range(n), pure=False)))

    boss = client.submit(Boss, actor=True).result(timeout=30)
    assert boss.delegate(4).result(timeout=30) == 10


def test_large_values_to_and_from_actors(client):
    import numpy as np

    class Keeper:
        def keep(self, array):
            self.array = array

        def total(self):
            return float(self.array.sum())

    keeper = client.submit(Keeper, actor=True).result(timeout=30)
    client.submit(lambda keeper: keeper.keep(np.ones(500_000)).result(), keeper).result(timeout=30)
    assert keeper.total().result(timeout=30) == 500_000


def test_the_death_of_an_actors_worker(cluster, client):
    if not any(name != "serverless" for name in cluster.workers):
        return  # the fleet worker lives as long as the user's process
    future = client.submit(Counter, actor=True)
    counter = future.result(timeout=30)
    with pytest.raises(Exception):  # noqa: B017 - as in Dask: it depends on when the connection breaks
        counter.die().result(timeout=30)
    until(lambda: future.status in ("error", "lost"))
    with pytest.raises((RuntimeError, ValueError)):
        counter.add().result(timeout=30)
    client.wait_for_workers(3, timeout=30)
    again = client.submit(Counter, 20, actor=True, pure=False).result(timeout=30)
    assert again.add().result(timeout=30) == 21
