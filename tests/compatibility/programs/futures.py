"""Futures, after docs.dask.org/en/stable/futures.html and distributed.dask.org/en/stable/api.html."""

from __future__ import annotations

import concurrent.futures
import os
import time

import dask
import numpy as np
import pandas as pd
from dask.distributed import Future, wait
from distributed import futures_of, rejoin, secede

from tests.compatibility.programs import (
    program,
)


def inc(n):
    return n + 1


def add(a, b, c=0):
    return a + b + c


def div(a, b):
    return a / b


def slowly(n, seconds=0.2):
    time.sleep(seconds)
    return n


class Thing:
    def __init__(self, n):
        self.n = n

    def twice(self):
        return self.n * 2

    def __call__(self, m):
        return self.n + m


@program
def submit(client):
    a = client.submit(inc, 1)
    b = client.submit(add, a, 2, c=3)
    return a.result(), b.result(), client.gather([a, b])


@program
def submit_a_lambda_a_method_and_an_object(client):
    thing = Thing(3)
    return client.gather([client.submit(lambda n: n * 2, 4), client.submit(thing.twice), client.submit(thing, 5)])


@program
def submit_builtins(client):
    return client.gather(
        [client.submit(len, "abc"), client.submit(sorted, [3, 1, 2], reverse=True), client.submit(max, 1, 2)]
    )


@program(raises=TypeError)
def submit_what_is_not_callable(client):
    return client.submit(1, 2)


@program(
    covers=("Future.result",),
    raises=TypeError,
)
def submit_with_wrong_arguments(client):
    return client.submit(inc, 1, 2).result()


@program
def submit_nothing_to_return(client):
    future = client.submit(lambda: None)
    return future.result(), future.type, future.status


@program
def keys(client):
    return (
        client.submit(inc, 1).key == client.submit(inc, 1).key,
        client.submit(inc, 1, pure=False).key == client.submit(inc, 1, pure=False).key,
        client.submit(inc, 1, key="my-key").key,
        client.submit(inc, 1).key.rpartition("-")[0],
        client.submit(inc, 1, key=("x", 3)).key,
        [each.key for each in client.map(inc, range(2), key="m")],
        [each.key for each in client.map(inc, range(2), key=["p", "q"])],
    )


@program
def a_key_that_is_no_key(client):
    return client.submit(inc, 1, key=1.5).result()


@program(raises=TypeError)
def bytes_keys(client):
    return client.submit(inc, 1, key=b"bytes").result()


@program
def tuple_keys_do_not_meet_string_keys(client):
    a, b = client.submit(inc, 1, key=("x", 0)), client.submit(inc, 5, key="('x', 0)")
    return client.gather([a, b])


@program
def unicode_keys(client):
    return client.submit(inc, 1, key="schlüssel-ключ").result()


@program
def map_in_batches(client):
    return client.gather(client.map(inc, range(20), batch_size=6))


@program
def map_over_futures(client):
    return client.gather(client.map(inc, client.map(inc, range(5))))


@program
def map_with_a_future_as_keyword(client):
    return client.gather(client.map(add, range(3), range(3), c=client.submit(inc, 9)))


@program(
    covers=("Client.map",),
    raises=Exception,
    differs="works here; LocalCluster fails with AssertionError, because the keyword's task gets no priority",
)
def map_with_a_large_keyword(client):
    array = np.arange(200_000)
    return client.gather(client.map(lambda n, array: int(array[n]), range(3), array=array))


@program
def map_impurely(client):
    futures = client.map(lambda n: os.urandom(4), [1, 1, 1], pure=False)
    return len({each.key for each in futures}), len(set(client.gather(futures)))


@program(raises=TypeError)
def map_over_a_queue(client):
    from queue import Queue

    return client.map(inc, Queue())


@program(raises=TypeError)
def map_over_an_iterator_of_no_length(client):
    return client.gather(client.map(inc, iter(range(3))))


@program
def nested_futures_in_arguments(client):
    a, b, c = client.map(inc, range(3))
    return client.submit(lambda x: x, [a, {"b": b, "c": (c, [a])}]).result()


@program
def futures_as_keywords(client):
    a, b = client.map(inc, range(2))
    return client.submit(dict, a=a, b=[b, a]).result()


@program
def a_future_in_a_set(client):
    a = client.submit(inc, 1)
    return client.submit(lambda x: sorted(x), {a, 5}).result()


@program
def gather_of_containers(client):
    a, b = client.map(inc, range(2))
    return client.gather({"a": a, "l": [b, (a, 7)], "x": "text"}), list(client.gather(iter([a, b]))), client.gather(a)


@program
def gather_skips_errors(client):
    futures = client.map(div, [1, 2, 3], [1, 0, 2])
    return client.gather(futures, errors="skip")


@program(raises=ZeroDivisionError)
def gather_raises_errors(client):
    return client.gather(client.map(div, [1, 2, 3], [1, 0, 2]))


@program
def gather_directly(client):
    return client.gather(client.map(inc, range(4)), direct=True)


@program
def gather_asynchronously(client):
    futures = client.map(inc, range(4))

    async def work():
        return await client.gather(futures, asynchronous=True)

    return client.sync(work)


@program
def gather_what_is_no_future(client):
    return client.gather([1, "two", None])


@program
def a_type(client):
    futures = [client.submit(int, 1), client.submit(list), client.submit(pd.DataFrame), client.submit(np.zeros, 2)]
    wait(futures)
    return [each.type for each in futures]


@program
def a_status(client):
    future = client.submit(slowly, 1, pure=False)
    before = future.status, future.done()
    wait(future)
    return before, future.status, future.done(), repr(future).replace(future.key, "key")


@program
def compute_and_persist(client):
    x = dask.delayed(inc)(1)
    future = client.compute(x)
    several = client.compute([x, dask.delayed(inc)(2)])
    kept = client.persist(x)
    return (
        type(future).__name__, future.result(), client.gather(several), client.compute(x, sync=True),
        kept.compute(), len(futures_of(kept)), client.compute({"plain": 1}).result(),
    )  # fmt: skip


@program
def compute_optimisation_and_traverse(client):
    x = dask.delayed(inc)(1)
    return (
        client.compute(x, optimize_graph=False).result(),
        client.gather(client.compute((x, x))),
    )


@program
def get(client):
    graph = {"a": 1, "b": (inc, "a"), "c": (add, "a", "b"), "d": [(inc, "c"), "a"]}
    return client.get(graph, "c"), client.get(graph, ["a", "b", "d"]), client.get(graph, [["c"], "a"])


@program(raises=TypeError)
def get_with_a_missing_key(client):
    return client.get({"a": (inc, "b")}, "a")


@program(
    covers=("Client.get",),
    raises=RuntimeError,
    differs="GraphError, a RuntimeError with the cycle's keys, where Dask says 'Cycle detected'",
)
def get_a_cycle(client):
    return client.get({"a": (inc, "b"), "b": (inc, "a")}, "a")


@program
def dask_compute_on_futures(client):
    future = client.submit(inc, 1)
    return type(dask.compute(future, [future])[0]).__name__, dask.delayed(add)(future, future).compute()


@program
def an_executor(client):
    with client.get_executor() as executor:
        future = executor.submit(inc, 1)
        assert isinstance(future, concurrent.futures.Future)
        mapped = list(executor.map(inc, range(4)))
        failed = executor.submit(div, 1, 0)
        return (
            future.result(),
            mapped,
            repr(failed.exception()),
            [f.result() for f in concurrent.futures.as_completed([future])],
        )


@program
def an_executor_with_options(client):
    with client.get_executor(pure=False, retries=1) as executor:
        return list(executor.map(add, [1, 2], [3, 4], timeout=5))


@program(raises=TypeError)
def an_executor_with_unknown_options(client):
    return client.get_executor(colour="red").submit(inc, 1)


@program
def a_coroutine_as_a_task(client):
    async def work(n):
        import asyncio

        await asyncio.sleep(0.01)
        return n + 1

    return client.submit(work, 1).result(), client.gather(client.map(work, range(3)))


@program
def a_future_by_its_key(client):
    first = client.submit(inc, 1, key="by-key")
    return Future("by-key", client).result(), first.result()


@program
def a_thousand_futures(client):
    return sum(client.gather(client.map(inc, range(1000))))


@program
def a_chain(client):
    future = client.submit(inc, 0)
    for _ in range(50):
        future = client.submit(inc, future)
    return future.result()


@program
def secede_and_rejoin(client):
    def work():
        secede()
        time.sleep(0.01)
        rejoin()
        return 1

    return client.submit(work).result()


@program
def a_future_awaited(client):
    async def work():
        return await client.submit(inc, 1)._result()

    return client.sync(work)


@program
def results_from_other_threads(client):
    future = client.submit(slowly, 5, pure=False)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda _: future.result(), range(4)))


@program
def futures_compare_and_hash(client):
    a, b = client.submit(inc, 1), client.submit(inc, 1)
    return a == b, a is b, len({a, b}), a.key in client.futures


@program
def the_futures_of_collections(client):
    kept = client.persist(dask.array.arange(10, chunks=5))
    return len(client.futures_of(kept)), len(client.futures_of([kept, client.submit(inc, 1)]))


@program
def futures_without_a_client_at_hand(client):
    return client.submit(inc, 1).client is client


@program
def compute_with_a_name_for_each(client):
    results = dask.compute(dask.delayed(inc)(1, dask_key_name="named-one"), dask.delayed(inc)(2, dask_key_name="two"))
    return results, client.get({"x": (inc, 1)}, "x"), client.compute({"a": dask.delayed(inc)(3)}, sync=True)


@program
def gather_from_workers_directly(client):
    futures = client.map(inc, range(3))
    return client.gather(futures, direct=True), client.gather({"a": futures[0]}, direct=True)


@program
def gather_nothing(client):
    return client.gather([]), client.gather({}), client.gather(())


@program
def map_over_nothing(client):
    return client.map(inc, []), client.gather(client.map(inc, ()))


@program
def map_over_unequal_lengths(client):
    return client.gather(client.map(add, [1, 2, 3], [10, 20]))


@program(raises=TypeError)
def map_what_is_not_callable(client):
    return client.map(5, range(3))


@program
def context_variables_and_globals(client):
    def work():
        return __name__.rpartition(".")[2], __file__.endswith("futures.py")

    return client.submit(work).result()


def remember(n, acc):
    acc.append(n)
    return list(acc)


def grow(n, table):
    table += n
    return int(table.sum())


@program
def tasks_do_not_see_what_others_do_to_an_argument(client):
    lists = client.gather(client.map(remember, range(6), acc=[]))
    tables = client.gather(client.map(grow, range(6), table=np.zeros(3)))
    shared: list = [7]
    lazily = dask.compute(*[dask.delayed(remember)(n, shared) for n in range(4)])
    return lists, tables, lazily, shared
