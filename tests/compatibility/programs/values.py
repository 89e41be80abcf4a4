"""Data given to tasks and got from them; after distributed.dask.org/en/stable/api.html."""

from __future__ import annotations

import operator

import dask
import numpy as np
import pandas as pd
from dask.distributed import Client

from tests.compatibility.programs import (
    program,
)
from tests.compatibility.programs.futures import add, inc


@program
def scatter_a_value(client):
    future = client.scatter([1, 2, 3])
    whole = client.scatter({"a": 1, "b": 2})
    return client.gather(future), client.gather(whole), client.submit(sum, future).result(), type(future).__name__


@program
def scatter_one_object(client):
    future = client.scatter(np.arange(1000))
    return client.submit(np.sum, future).result(), future.result(), future.status, future.type, future.done()


@program
def scatter_hash(client):
    same = client.scatter(5, hash=True).key == client.scatter(5, hash=True).key
    return same, client.scatter(5, hash=False).key == client.scatter(5, hash=False).key


@program(
    covers=("Client.scatter",),
    differs="one place where LocalCluster has two: values live in the storage tier, which all executors read",
)
def scatter_broadcast(client):
    (future,) = client.scatter([np.ones(100)], broadcast=True)
    return len(client.who_has(future)[future.key]), client.submit(np.sum, future).result()


@program
def scatter_directly(client):
    futures = client.scatter([1, 2, 3], direct=True)
    return client.gather(client.map(inc, futures))


@program
def scatter_a_frame(client):
    frame = pd.DataFrame({"x": [1.0, 2.0]})
    future = client.scatter(frame)
    return client.submit(lambda f: f.x.sum(), future).result(), client.gather(future)


@program(raises=TypeError)
def scatter_a_generator(client):
    return client.scatter(n for n in range(3))


@program
def scattered_into_collections(client):
    future = client.scatter(np.arange(10))
    return dask.delayed(np.sum)(future).compute(), dask.array.from_delayed(
        dask.delayed(future), (10,), int
    ).sum().compute()


@program
def published_data_sets(client, cluster):
    client.publish_dataset(numbers=client.submit(inc, 1))
    client.publish_dataset(5, name="plain")
    client.datasets["collection"] = dask.array.arange(10, chunks=5).persist()
    with Client(cluster, set_as_default=False) as other:
        result = (
            other.list_datasets(),
            other.get_dataset("numbers").result(),
            other.datasets["plain"],
            other.get_dataset("nothing", default="default"),
            "numbers" in other.datasets,
        )
    total = client.get_dataset("collection").sum().compute()
    for name in ("numbers", "plain", "collection"):
        client.unpublish_dataset(name)
    return result, total, client.list_datasets()


@program(raises=KeyError)
def a_data_set_that_is_not_there(client):
    return client.get_dataset("nothing")


@program(raises=KeyError)
def a_data_set_published_twice(client):
    client.publish_dataset(1, name="twice")
    try:
        client.publish_dataset(2, name="twice")
    finally:
        client.publish_dataset(3, name="twice", override=True)
        kept = client.get_dataset("twice")
        client.unpublish_dataset("twice")
    return kept


@program
def replicate_and_rebalance(client):
    (future,) = client.scatter([1])
    client.replicate([future])
    client.rebalance()
    return future.result()


@program
def large_values_up_and_down(client):
    x = np.arange(1_000_000)
    return client.submit(lambda a: a[::-1], client.scatter(x)).result().sum()


@program
def a_large_graph_warns(client):
    return client.submit(len, bytes(11_000_000)).result()


@program
def futures_in_frames_of_objects(client):
    class Holder:
        def __init__(self, future):
            self.future = future

    return client.submit(lambda holder: type(holder.future).__name__, Holder(client.submit(inc, 1))).result()


@program
def values_of_many_kinds(client):
    import datetime
    import decimal
    import fractions
    import pathlib
    import uuid

    values = [
        datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), decimal.Decimal("1.1"), fractions.Fraction(1, 3),
        uuid.UUID(int=5), pathlib.PurePosixPath("/a"), bytearray(b"x"), memoryview(b"y").tobytes(), range(5),
        slice(1, 2), ..., NotImplemented, {1: {2: {3: 4}}}, 10**40, -0.0, "\udcff", np.float32(1.5),
        np.datetime64("2026-01-01"), pd.Timestamp("2026-01-01"),
    ]  # fmt: skip
    return client.gather(client.map(lambda n: values[n], range(len(values)))), client.submit(
        lambda v: v, values
    ).result()


@program
def deeply_nested_results(client):
    def nest(n):
        value = []
        for _ in range(n):
            value = [value]
        return value

    depth, value = 0, client.submit(nest, 150).result()
    while value:
        depth, value = depth + 1, value[0]
    return depth


@program(covers=("Future.result",), differs="one object stays one, where Dask serialises each item of a list by itself")
def the_same_object_twice(client):
    one, two = client.submit(lambda x: [x, x], [1]).result()
    return one is two


@program
def a_class_defined_in_the_program(client):
    class Local:
        def __init__(self, n):
            self.n = n

    return (
        client.submit(lambda: Local(5)).result().n,
        client.submit(Local, 6).result().n,
        client.submit(lambda x: x.n, Local(7)).result(),
    )


@program
def a_function_that_changes_between_submissions(client):
    results = []
    for n in range(2):
        results.append(client.submit(lambda m, n=n: m + n, 10).result())
    return results


@program
def default_arguments_and_partials(client):
    import functools

    return client.gather(
        [
            client.submit(functools.partial(add, 1), 2),
            client.submit(operator.itemgetter(1), "abc"),
            client.submit(str.upper, "abc"),
            client.submit(np.vectorize(inc), [1, 2]),
        ]
    )


@program
def scatter_to_a_worker(client):
    address = list(client.scheduler_info()["workers"])[0]
    futures = client.scatter([1, 2], workers=[address])
    return {tuple(each) for each in client.who_has(futures).values()} == {(address,)}, client.gather(futures)


@program
def scatter_in_time(client):
    return client.gather(client.scatter({"k": np.arange(3)}, timeout=3)), client.scatter("text").result()


@program
def scatter_the_same_twice(client):
    first, second = client.scatter([5], hash=True), client.scatter([5], hash=True)
    return first[0].key == second[0].key, first[0] is second[0], client.gather([*first, *second])


@program
def many_small_results(client):
    return client.submit(lambda: {n: str(n) for n in range(2000)}).result()[1999], len(
        client.submit(bytes, 10**6).result()
    )


@program
def state_is_not_shared_between_arguments(client):
    def change(items):
        items.append(1)
        return items

    data = [0]
    return client.submit(change, data).result(), data


@program
def random_numbers_in_tasks(client):
    def draw(seed):
        return np.random.default_rng(seed).random(3)

    return client.gather(client.map(draw, range(3)))
