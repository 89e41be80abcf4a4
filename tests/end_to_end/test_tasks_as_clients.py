"""Tasks that are clients themselves: with a single executor, which is where they would deadlock."""

from __future__ import annotations

import asyncio

import dask
import pytest
from distributed import Client, Event, Lock, Queue, Variable, get_client, get_worker, rejoin, secede, worker_client

from dask_serverless import ServerlessCluster
from tests.waiting import until


@pytest.fixture(scope="module")
def cluster():
    with ServerlessCluster(n_workers=1, dashboard_address=None) as cluster:
        yield cluster


def inc(n):
    return n + 1


def fibonacci(n):
    if n < 2:
        return n
    with worker_client() as client:
        return sum(client.gather([client.submit(fibonacci, n - 1), client.submit(fibonacci, n - 2)]))


def test_tasks_submit_tasks_to_any_depth(cluster, client):
    assert client.submit(fibonacci, 7).result(timeout=60) == 13
    dispatcher = cluster.scheduler.plugins["dask-serverless"].dispatcher
    until(lambda: dispatcher.places.count == 1, "everybody has a place again")


def test_secede_and_rejoin_by_hand(client):
    def parent(n):
        inner = get_client()
        secede()
        values = inner.gather(inner.map(inc, range(n)))
        rejoin()
        return sum(values)

    assert client.submit(parent, 10).result(timeout=30) == 55


def test_compute_in_a_task_uses_the_cluster(client):
    def parent(n):
        return dask.delayed(sum)([dask.delayed(inc)(i) for i in range(n)]).compute()

    assert client.submit(parent, 10).result(timeout=30) == 55


def test_a_waiting_task_lets_those_behind_it_go_first(client):
    def waits():
        with worker_client():
            return Event("go").wait(timeout=20)

    def sets():
        Event("go").set()

    # In one graph, so in one executor: the first would wait for the second for ever.
    assert client.gather(client.map(lambda call: call(), [waits, sets], pure=False)) == [True, None]


def test_coordination_reaches_the_scheduler(client):
    def work(n):
        with Lock("one at a time"):
            Queue("done").put(n)
        return Variable("offset").get() + n

    Variable("offset").set(100)
    assert client.gather(client.map(work, range(5))) == [100, 101, 102, 103, 104]
    queue = Queue("done")
    assert sorted(queue.get(timeout=10) for _ in range(5)) == [0, 1, 2, 3, 4]


def test_futures_as_arguments_of_nested_tasks_and_scatter(client):
    def parent():
        with worker_client() as inner:
            (data,) = inner.scatter([list(range(10))])
            return inner.submit(sum, data).result()

    assert client.submit(parent).result(timeout=30) == 45


def test_a_task_knows_its_worker(client):
    def about():
        worker = get_worker()
        return worker.address, worker.get_current_task()

    address, key = client.submit(about, key="about").result(timeout=30)
    assert address.startswith("serverless://")
    assert key == "about"


def test_an_error_in_a_nested_task_is_the_parents_own(client):
    def parent():
        with worker_client() as inner:
            return inner.submit(lambda: 1 / 0).result()

    with pytest.raises(ZeroDivisionError):
        client.submit(parent).result(timeout=30)


def test_a_parent_that_dies_gives_its_place_back(cluster):
    import os

    def parent():
        with worker_client():
            os._exit(1)

    with Client(cluster, set_as_default=False) as client:
        future = client.submit(parent)
        assert "exit status 1" in str(future.exception(timeout=30))
        dispatcher = cluster.scheduler.plugins["dask-serverless"].dispatcher
        until(lambda: dispatcher.places.count == dispatcher.places.ceiling)
        assert client.submit(inc, 1).result(timeout=30) == 2


def through_a_client(number):
    with worker_client() as client:
        return client.submit(sum, (number, 1)).result()


def say(text):
    import distributed

    distributed.print(text)


def test_what_is_printed_through_dask_is_shown_as_often_if_executors_are_clients(client, capsys):
    """Once as a task's output and once by the user's client, as under LocalCluster, but not by every other client."""
    assert client.gather(client.map(through_a_client, range(10))) == list(range(1, 11))
    client.submit(say, "the first line").result()
    client.submit(say, "the second line").result()
    shown = ""

    def has_come():
        nonlocal shown
        shown += capsys.readouterr().out
        return shown.count("the second line") == 2

    until(has_come, "it is shown")
    assert shown.count("the first line") == 2


def test_what_tasks_print_reaches_the_user(client, capsys):
    import distributed

    def speak():
        print("said by a task")
        distributed.print("said through Dask")

    client.submit(speak).result(timeout=30)
    seen = []

    def shown():
        seen.append(capsys.readouterr().out)
        return "".join(seen)

    until(lambda: "said by a task" in shown() and shown().count("said through Dask") == 2)


def test_joblib_inside_and_outside(client):
    joblib = pytest.importorskip("joblib")
    with joblib.parallel_backend("dask"):
        assert joblib.Parallel()(joblib.delayed(pow)(n, 2) for n in range(10)) == [n * n for n in range(10)]


def test_an_asynchronous_task_is_an_asynchronous_client():
    async def work(n):
        client = get_client()
        futures = [client.submit(abs, -n), client.submit(abs, -n - 1)]
        return sum(await client.gather(futures)), await futures[0]

    # Two, because asynchronous tasks cannot secede: so in Dask.
    with ServerlessCluster(n_workers=2, dashboard_address=None) as cluster, Client(cluster) as client:
        assert client.submit(work, 3).result(timeout=60) == (7, 3)
        assert client.submit(work, 4).result(timeout=60) == (9, 4)


def test_what_asynchronous_tasks_raise(client):
    async def work():
        await asyncio.sleep(0)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        client.submit(work).result(timeout=60)
