"""Actors, after distributed.dask.org/en/stable/actors.html."""

from __future__ import annotations

import asyncio
import os

import dask
from dask.distributed import Client, get_client, wait, worker_client
from distributed import Actor, ActorFuture, BaseActorFuture

from tests.compatibility.programs import program


class Counter:
    """The counter of Dask's documentation."""

    n = 0

    def __init__(self, n=0):
        self.n = n

    def increment(self):
        self.n += 1
        return self.n

    def add(self, by, *, twice=False):
        self.n += 2 * by if twice else by
        return self.n

    async def later(self, by):
        await asyncio.sleep(0)
        self.n += by
        return self.n

    def fail(self):
        raise ValueError("an actor")

    @property
    def twice(self):
        return 2 * self.n

    def where(self):
        return os.getpid()


def actor_of(client, *args):
    return client.submit(Counter, *args, actor=True, pure=False).result()


@program(covers=("Actor", "ActorFuture", "ActorFuture.result", "ActorFuture.done"))
def an_actor(client):
    counter = actor_of(client)
    futures = [counter.increment() for _ in range(3)]
    results = [future.result() for future in futures]
    found = sorted(results)  # three calls at once may be answered in any order
    return isinstance(counter, Actor), isinstance(futures[0], ActorFuture), found, futures[0].done(), counter.n


@program(covers=("ActorFuture.result", "BaseActorFuture"))
def an_answer_in_time(client):
    future = actor_of(client, 5).increment()
    return isinstance(future, BaseActorFuture), future.result(timeout=5), future.result(timeout=5), repr(future)


@program(covers=("Actor",))
def arguments_attributes_and_properties(client):
    counter = actor_of(client, 5)
    return counter.add(2, twice=True).result(), counter.n, counter.twice, "increment" in dir(counter)


@program(covers=("Actor",))
def coroutines_of_an_actor(client):
    counter = actor_of(client)
    return counter.later(4).result(), counter.later(1).result(), counter.n


@program(covers=("Actor",))
def the_text_of_an_actor(client):
    future = client.submit(Counter, actor=True, key="an-actor")
    return repr(future.result()), future.status, future.type.__name__


@program(covers=("Actor",), raises=ValueError)
def an_actor_that_fails(client):
    return actor_of(client).fail().result()


@program(covers=("Actor",))
def an_actor_goes_on_after_an_error(client):
    counter = actor_of(client)
    failed = counter.fail()
    try:
        failed.result()
    except ValueError as error:
        return str(error), counter.increment().result()


@program(covers=("Actor",), raises=AttributeError)
def a_method_that_is_not_there(client):
    return actor_of(client).nothing()


@program(covers=("Actor",), raises=ZeroDivisionError)
def an_actor_that_cannot_be_made(client):
    class Broken:
        def __init__(self):
            1 / 0  # noqa: B018

    return client.submit(Broken, actor=True).result()


@program(covers=("Actor",))
def several_actors(client):
    counters = client.gather(client.map(Counter, [10, 20], actor=True, pure=False))
    return [counter.increment().result() for counter in counters], [counter.n for counter in counters]


@program(covers=("Actor",))
def an_actor_of_futures(client):
    return actor_of(client, client.submit(int, "7")).increment().result()


@program(covers=("Actor",))
def actors_of_a_graph(client):
    made = dask.delayed(Counter)(3)
    actor = client.compute(made, actors=True).result()
    kept = client.persist(dask.delayed(Counter)(4), actors=True)
    (future,) = client.futures_of(kept)
    return actor.increment().result(), future.result().increment().result()


@program(covers=("Actor",))
def an_actor_keeps_its_place(client):
    counter = actor_of(client)
    places = {counter.where().result() for _ in range(4)}
    return len(places)


@program(covers=("Actor", "ActorFuture"))
def an_actor_awaited(cluster):
    async def work():
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            future = client.submit(Counter, actor=True)
            counter = await future
            return await counter.increment(), await counter.add(5), await counter.later(1), await counter.n

    return asyncio.run(work())


@program(covers=("Actor",), raises=ValueError)
def an_actor_awaited_that_fails(cluster):
    async def work():
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            future = client.submit(Counter, actor=True)
            counter = await future
            return await counter.fail()

    return asyncio.run(work())


@program(
    covers=("Actor",),
)
def actors_given_to_tasks(client):
    counter = client.submit(Counter, actor=True)

    def work(n, counter):
        return counter.increment().result(timeout=3)

    return sorted(client.gather(client.map(work, range(4), counter=counter)))


@program(
    covers=("Actor",),
)
def an_actor_found_in_an_argument(client):
    counter = actor_of(client, 5)
    return client.submit(lambda counter: counter.n, counter).result(timeout=4)


@program(
    covers=("Actor",),
)
def an_actor_made_in_a_task(client):
    def work():
        with worker_client() as inner:
            counter = inner.submit(Counter, actor=True).result()
            return [counter.increment().result(timeout=2) for _ in range(2)]

    return client.submit(work).result(timeout=4)


@program(
    covers=("Actor",),
)
def an_actor_by_a_variable(client):
    from dask.distributed import Variable

    Variable("counter").set(client.submit(Counter, 7, actor=True))

    def work():
        future = Variable("counter", client=get_client()).get(timeout=2)
        return future.result(timeout=2).increment().result(timeout=2)

    return client.submit(work).result(timeout=4)


@program(covers=("Actor",))
def what_is_left_of_an_actor(client):
    future = client.submit(Counter, actor=True, key="left")
    wait(future)
    counter = future.result()
    counter.increment().result()
    return list(client.who_has(future)) == ["left"], counter.n
