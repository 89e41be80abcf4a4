"""Futures, after docs.dask.org/en/stable/futures.html and distributed.dask.org/en/stable/api.html."""

from __future__ import annotations

import concurrent.futures
import operator
import os
import threading
import time
import traceback
import warnings

import dask
import numpy as np
import pandas as pd
from dask.distributed import Client, Future, Reschedule, as_completed, fire_and_forget, get_task_metadata, wait
from distributed import CancelledError, default_client, futures_of, rejoin, secede
from distributed.client import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    ClosedClientError,
    FutureCancelledError,
    FuturesCancelledError,
)

from tests.compatibility.programs import (
    INNER_FRAMES,
    RUN_IS_ELSEWHERE,
    UNPICKLABLE,
    program,
)

STAND_IN = "ProtocolError: the scheduler holds a stand-in of the task, which runs nowhere else"


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


@program(covers=("Future.result",), raises=TypeError, differs=INNER_FRAMES)
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


@program(raises=ZeroDivisionError)
def an_exception(client):
    return client.submit(div, 1, 0).result()


@program
def an_exception_looked_at(client):
    future = client.submit(div, 1, 0)
    error = future.exception()
    return (
        error,
        future.status,
        future.done(),
        future.cancelled(),
        [f.name for f in traceback.extract_tb(future.traceback())],
    )


@program
def no_exception(client):
    future = client.submit(inc, 1)
    return future.exception(), future.traceback(), future.status


@program(raises=ZeroDivisionError)
def exceptions_travel_down(client):
    a = client.submit(div, 1, 0)
    b = client.submit(inc, a)
    return client.submit(inc, b).result()


@program
def an_exception_with_a_cause(client):
    def fail():
        try:
            {}["missing"]
        except KeyError as error:
            raise RuntimeError("higher") from error

    future = client.submit(fail)
    error = future.exception()
    return error, repr(error.__cause__), repr(error.__context__)


@program
def an_exception_with_notes(client):
    def fail():
        error = ValueError("x")
        error.add_note("a note")
        raise error

    return getattr(client.submit(fail).exception(), "__notes__", None)


class Peculiar(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")
        self.a, self.b = a, b


@program(raises=Peculiar)
def an_exception_that_does_not_unpickle(client):
    def fail():
        raise Peculiar(1, 2)

    return client.submit(fail).result()


@program
def an_exception_that_does_not_pickle(client):
    def fail():
        raise ValueError("lock", threading.Lock())

    error = client.submit(fail).exception()
    return type(error).__name__


@program
def an_exception_group(client):
    def fail():
        raise ExceptionGroup("several", [ValueError(1), KeyError(2)])

    error = client.submit(fail).exception()
    return type(error).__name__, str(error), [repr(each) for each in error.exceptions]


@program
def a_long_exception_message(client):
    def fail():
        raise ValueError("x" * 100_000)

    return len(str(client.submit(fail).exception()))


@program
def base_exceptions(client):
    class Own(BaseException):
        pass

    def fail():
        raise Own("own")

    error = client.submit(fail).exception()
    return type(error).__name__, str(error)


@program
def stop_iteration(client):
    return repr(client.submit(next, iter([])).exception())


@program(covers=("Future.result",), raises=TypeError, differs=UNPICKLABLE)
def a_generator_function(client):
    def generate():
        yield 1

    return client.submit(generate).result()


@program(covers=("Future.result",), raises=TypeError, differs=UNPICKLABLE)
def a_result_that_does_not_pickle(client):
    return client.submit(threading.Lock).result()


@program(raises=TypeError)
def an_argument_that_does_not_pickle(client):
    return client.submit(type, threading.Lock()).result()


@program(raises=ValueError)
def a_result_that_does_not_unpickle(client):
    class Broken:
        def __reduce__(self):
            return (int, ("no number",))

    return client.submit(Broken).result()


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
def a_callback(client):
    called = threading.Event()
    seen = []

    def callback(future):
        seen.append((future.status, future.done()))
        called.set()

    client.submit(inc, 1, pure=False).add_done_callback(callback)
    future = client.submit(div, 1, 0, pure=False)
    assert called.wait(5)
    called.clear()
    future.add_done_callback(callback)
    assert called.wait(5)
    return seen


@program
def a_result_in_time(client):
    future = client.submit(slowly, 1, seconds=0.5, pure=False)
    try:
        return future.result(timeout=0.05)
    except TimeoutError as error:  # two timers race in the client, and have different texts
        return type(error).__name__


@program
def an_exception_in_time(client):
    try:
        return client.submit(slowly, 2, seconds=0.5, pure=False).exception(timeout="50 ms")
    except TimeoutError as error:
        return type(error).__name__


@program
def wait_for_all(client):
    futures = client.map(inc, range(5))
    done, not_done = wait(futures, return_when=ALL_COMPLETED)
    return len(done), len(not_done), type(done).__name__


@program
def wait_for_the_first(client):
    fast, slow = client.submit(inc, 1, pure=False), client.submit(slowly, 1, seconds=0.8, pure=False)
    done, not_done = wait([fast, slow], return_when=FIRST_COMPLETED)
    return done == {fast}, not_done == {slow}


@program(raises=TimeoutError)
def wait_too_long(client):
    wait(client.submit(slowly, 1, seconds=0.6, pure=False), timeout=0.05)


@program
def wait_for_an_error(client):
    futures = client.map(div, [1, 1], [1, 0])
    done, _ = wait(futures)
    return sorted(each.status for each in done)


@program
def wait_for_what_is_no_future(client):
    return wait([1, 2])


@program
def in_order_of_completion(client):
    slow, fast = client.submit(slowly, 1, seconds=0.5, pure=False), client.submit(inc, 2, pure=False)
    return [each.result() for each in as_completed([slow, fast])]


@program
def as_completed_with_results(client):
    return sorted(result for _, result in as_completed(client.map(inc, range(5)), with_results=True))


@program
def as_completed_with_errors(client):
    futures = client.map(div, [1, 1], [1, 0])
    results = dict(as_completed(futures, with_results=True, raise_errors=False))
    return results[futures[0]], [type(each).__name__ for each in results[futures[1]][:2]], str(results[futures[1]][1])


@program(raises=ZeroDivisionError)
def as_completed_raises(client):
    futures = client.map(div, [1, 1], [0, 0])
    return [result for _, result in as_completed(futures, with_results=True)]


@program
def as_completed_grows(client):
    going = as_completed(client.map(inc, [1, 2]))
    results = []
    for future in going:
        results.append(future.result())
        if len(results) < 5:
            going.add(client.submit(inc, future))
    return len(results), going.count(), going.is_empty(), max(results) >= 4


@program
def as_completed_in_batches(client):
    futures = client.map(inc, range(10))
    return sorted(future.result() for batch in as_completed(futures).batches() for future in batch)


@program(raises=TimeoutError)
def as_completed_in_time(client):
    return list(as_completed([client.submit(slowly, 1, seconds=0.5, pure=False)], timeout=0.05))


@program
def as_completed_next_batch_and_clear(client):
    futures = client.map(inc, range(3))
    wait(futures)
    going = as_completed(futures)
    first = len(going.next_batch())
    going.clear()
    return first >= 1, going.is_empty(), going.has_ready()


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


@program(raises=TypeError)
def scatter_what_does_not_pickle(client):
    return client.scatter(threading.Lock())


@program
def scattered_into_collections(client):
    future = client.scatter(np.arange(10))
    return dask.delayed(np.sum)(future).compute(), dask.array.from_delayed(
        dask.delayed(future), (10,), int
    ).sum().compute()


@program
def cancel(client):
    future = client.submit(slowly, 1, seconds=0.3, pure=False)
    client.cancel(future)
    return future.status, future.cancelled(), future.done()


@program(raises=FutureCancelledError)
def the_result_of_the_cancelled(client):
    future = client.submit(slowly, 1, seconds=0.3, key="to-be-cancelled")
    future.cancel()
    return future.result()


@program(raises=FutureCancelledError)
def cancel_what_others_need(client):
    a = client.submit(slowly, 1, seconds=0.3, key="cancel-a")
    b = client.submit(inc, a, key="cancel-b")
    client.cancel(a, force=True, reason="because", msg="I said so")
    return b.result()


@program
def cancel_what_is_done(client):
    future = client.submit(inc, 5, key="done-cancelled")
    wait(future)
    future.cancel()
    return future.status, future.done(), future.cancelled()


def until_forgotten(client, key):
    """Wait until a cancelled or released key is gone, which a client that hurries may still be told of."""
    deadline = time.monotonic() + 5
    while key in client.futures or client.run_on_scheduler(lambda dask_scheduler: key in dask_scheduler.tasks):
        assert time.monotonic() < deadline
    client.submit(inc, 0, pure=False).result()  # it arrives behind what the client was told of the key


@program
def submit_again_after_cancelling(client):
    future = client.submit(slowly, 1, seconds=0.1, key="again")
    future.cancel()
    del future
    until_forgotten(client, "again")
    return client.submit(slowly, 2, seconds=0.1, key="again").result()


@program
def release(client):
    future = client.submit(inc, 1, key="to-be-released")
    wait(future)
    future.release()
    client.submit(inc, 2).result()  # the loop has come round
    return future.key in client.futures, future.status


@program
def retry(client, path):
    def at_first(path):
        if not os.path.exists(path):
            open(path, "w").close()
            raise RuntimeError("at first")
        return "then"

    future = client.submit(at_first, str(path / "marker"))
    first = str(future.exception())
    future.retry()
    return first, future.result(), future.status


@program(raises=ValueError)
def retries(client, path):
    def twice(path):
        with open(path, "a") as file:
            file.write("x")
        with open(path) as file:
            count = len(file.read())
        if count < 3:
            raise ValueError(count)
        return count

    return client.submit(twice, str(path / "a"), retries=2).result(), client.submit(
        twice, str(path / "b"), retries=1
    ).result()


@program
def retries_of_a_map_and_a_compute(client, path):
    def once(name):
        if not os.path.exists(name):
            open(name, "w").close()
            raise ValueError("not yet")
        return 1

    names = [str(path / str(n)) for n in range(3)]
    mapped = client.gather(client.map(once, names[:2], retries=1))
    return mapped, client.compute(dask.delayed(once)(names[2]), retries=1).result()


@program
def fire_then_forget(client, path):
    fire_and_forget(client.submit(lambda name: open(name, "w").write("done"), str(path / "done")))
    deadline = time.monotonic() + 5
    while not (path / "done").exists() or not (path / "done").read_text():
        assert time.monotonic() < deadline
    return (path / "done").read_text()


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
def priorities(client):
    futures = [client.submit(inc, n, priority=n) for n in range(3)]
    return client.gather(futures), client.gather(client.map(inc, range(2), priority=-5))


@program
def annotations(client):
    with dask.annotate(priority=5, retries=1, custom="mine"):
        x = dask.delayed(inc)(1)
    with dask.annotate(allow_other_workers=True, priority=lambda key: 1):
        future = client.submit(inc, 7)
    return x.compute(), future.result()


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
def who_has_what(client, cluster):
    futures = client.map(inc, range(3))
    wait(futures)
    who = client.who_has(futures)
    return (
        sorted(who) == sorted(each.key for each in futures),
        {len(addresses) for addresses in who.values()},
        {type(each).__name__ for each in client.has_what().values()},
        sum(len(keys) for keys in client.has_what().values()),
        sorted(set(client.nbytes(summary=False).values())) == [28],
        list(client.nbytes()),
    )


@program
def how_many_threads(client):
    return sum(client.nthreads().values()), sum(client.ncores().values())


@program(
    covers=("Client.scheduler_info", "Client.nthreads"),
    differs="LocalCluster has a Dask worker for each process; here one fleet worker stands for all executors",
)
def how_many_workers(client):
    return len(client.scheduler_info()["workers"]), sorted(client.nthreads().values())


@program
def what_is_being_processed(client):
    wait(client.submit(inc, 1))
    return client.processing() and {len(keys) for keys in client.processing().values()}, type(
        client.call_stack()
    ).__name__


@program
def what_is_being_processed_now(client):
    future = client.submit(slowly, 1, seconds=0.6, key="in-process")
    deadline = time.monotonic() + 0.5
    while not any(client.processing().values()) and time.monotonic() < deadline:
        pass
    return [keys for keys in client.processing().values() if keys], future.result()


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
def run_on_workers(client):
    return sorted(set(client.run(operator.add, 1, 2).values())), set(
        client.run(lambda dask_worker: type(dask_worker.address).__name__).values()
    )


@program(raises=ZeroDivisionError)
def run_fails(client):
    return client.run(lambda: 1 / 0)


@program
def run_returns_errors(client):
    return {str(each) for each in client.run(lambda: 1 / 0, on_error="return").values()}, client.run(
        lambda: 1 / 0, on_error="ignore"
    )


@program
def run_a_coroutine(client):
    async def work(n):
        return n + 1

    return set(client.run(work, 1).values())


@program
def a_coroutine_as_a_task(client):
    async def work(n):
        import asyncio

        await asyncio.sleep(0.01)
        return n + 1

    return client.submit(work, 1).result(), client.gather(client.map(work, range(3)))


@program
def metadata(client):
    client.set_metadata(["a", "b"], 5)
    client.set_metadata("c", {"d": 6})
    return client.get_metadata(["a"]), client.get_metadata(["c", "d"]), client.get_metadata("nothing", default=7)


@program(raises=KeyError)
def metadata_that_is_not_there(client):
    return client.get_metadata(["no", "such"])


@program
def task_metadata(client):
    with get_task_metadata() as tasks:
        client.submit(inc, 1, key="with-metadata").result()
    return list(tasks.metadata), tasks.state


@program
def events(client):
    client.log_event("topic", {"a": 1})
    client.log_event(["topic", "other"], "text")
    seen = client.get_events("topic")
    return [event for _, event in seen][-2:], client.get_events("nothing")


@program(
    covers=("get_worker", "Client.log_event"),
    differs="the event does not say which worker it comes from: the task's stand-in adds no `worker` to it",
)
def events_from_tasks(client):
    def work():
        from distributed import get_worker

        get_worker().log_event("from-task", {"b": 2})
        return 1

    client.submit(work).result()
    deadline = time.monotonic() + 3
    while not (seen := client.get_events("from-task")) and time.monotonic() < deadline:
        pass
    return [event for _, event in seen][-1:]


@program
def subscribed_topics(client):
    seen, arrived = [], threading.Event()

    def handle(event):
        seen.append(event[1])
        arrived.set()

    client.subscribe_topic("mine", handle)
    client.submit(inc, 1).result()  # travels behind the subscription
    client.log_event("mine", "hello")
    arrived.wait(5)
    client.unsubscribe_topic("mine")
    return seen


@program
def printing_in_tasks(client, cluster):
    def work():
        from distributed import print

        print("hello from a task", 1, sep="-")
        return 1

    client.submit(work).result()
    deadline = time.monotonic() + 3
    while not (seen := client.get_events("print")) and time.monotonic() < deadline:
        pass
    return [event["args"] for _, event in seen][-1:]


@program
def warning_in_tasks(client):
    def work():
        from distributed import warn

        warn("careful", UserWarning)
        return 1

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        client.submit(work).result()
        deadline = time.monotonic() + 3
        while not caught and time.monotonic() < deadline:
            client.submit(inc, 1).result()
    return [str(each.message) for each in caught][:1]


@program
def task_stream(client):
    from distributed import get_task_stream

    with get_task_stream(client) as stream:
        client.gather(client.map(inc, range(3), key="streamed"))
    return sorted(each["key"] for each in stream.data), sorted({each["status"] for each in stream.data})


@program
def a_report(client, path):
    from distributed import performance_report

    with performance_report(filename=str(path / "report.html")):
        client.gather(client.map(inc, range(3)))
    return (path / "report.html").exists(), "<html" in (path / "report.html").read_text()[:500].lower()


@program
def versions(client):
    found = client.get_versions(check=True)
    return sorted(found), found["client"]["host"]["python"], set(found["scheduler"]) == set(found["client"])


@program
def uploaded_modules(client, path):
    (path / "uploaded_module.py").write_text("def answer():\n    return 42\n")
    client.upload_file(str(path / "uploaded_module.py"))

    def use():
        import uploaded_module

        return uploaded_module.answer()

    return client.submit(use, pure=False).result()


@program(
    covers=("WorkerPlugin", "Client.register_plugin"),
    differs="KeyError: worker plugins reach the fleet worker only, not the executors",
)
def worker_plugins(client):
    from distributed import WorkerPlugin

    class Plugin(WorkerPlugin):
        name = "mine"

        def setup(self, worker):
            self.value = worker.my_value = 7

    def use():
        from distributed import get_worker

        return get_worker().plugins["mine"].value, get_worker().my_value

    client.register_plugin(Plugin())
    result = client.submit(use, pure=False).result()
    client.unregister_worker_plugin("mine")
    return result


@program
def scheduler_plugins(client):
    from distributed import SchedulerPlugin

    class Plugin(SchedulerPlugin):
        name = "counts"
        finished = 0

        def transition(self, key, start, finish, *args, **kwargs):
            self.finished += finish == "memory" and str(key).startswith("counted")

    client.register_plugin(Plugin())
    wait(client.map(inc, range(3), key="counted"))
    return client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.plugins["counts"].finished)


@program
def futures_go_away(client):
    future = client.submit(inc, 1, key="goes-away")
    wait(future)
    del future
    deadline = time.monotonic() + 5
    while client.run_on_scheduler(lambda dask_scheduler: "goes-away" in dask_scheduler.tasks):
        assert time.monotonic() < deadline
    return "goes-away" in client.futures


@program
def a_future_by_its_key(client):
    first = client.submit(inc, 1, key="by-key")
    return Future("by-key", client).result(), first.result()


@program
def replicate_and_rebalance(client):
    (future,) = client.scatter([1])
    client.replicate([future])
    client.rebalance()
    return future.result()


@program(covers=("Reschedule",), differs="fails with Reschedule: executors take it for an error of the task")
def rescheduled(client, path):
    def work(name):
        if not os.path.exists(name):
            open(name, "w").close()
            raise Reschedule
        return "second time"

    return client.submit(work, str(path / "marker")).result()


@program(raises=TimeoutError)
def resources_that_nobody_has(client):
    return client.submit(inc, 1, resources={"GPU": 1}, pure=False).result(timeout=0.5)


@program(raises=TimeoutError)
def workers_that_are_not_there(client):
    return client.submit(inc, 1, workers=["tcp://127.0.0.1:1"], pure=False).result(timeout=0.5)


@program
def workers_that_are_not_there_but_may_be_others(client):
    return client.submit(inc, 1, workers=["tcp://127.0.0.1:1"], allow_other_workers=True, pure=False).result(timeout=5)


@program
def a_worker_by_address(client):
    address = list(client.scheduler_info()["workers"])[0]
    future = client.submit(inc, 1, workers=[address], pure=False)
    return future.result(), list(client.who_has(future).values())[0] == (address,)


@program
def large_values_up_and_down(client):
    x = np.arange(1_000_000)
    return client.submit(lambda a: a[::-1], client.scatter(x)).result().sum()


@program
def a_large_graph_warns(client):
    return client.submit(len, bytes(11_000_000)).result()


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
def recursion_in_a_task(client):
    def deep(n):
        return 0 if n == 0 else 1 + deep(n - 1)

    return client.submit(deep, 500).result()


@program
def client_as_default(client):
    return default_client() is client, Client.current() is client


@program
def the_state_of_the_cluster(client, path):
    client.dump_cluster_state(str(path / "dump"))
    return [each.suffixes for each in path.iterdir()]


@program
def the_story_of_a_key(client):
    client.submit(inc, 1, key="with-story").result()
    story = client.story("with-story") if hasattr(client, "story") else []
    return any("with-story" in str(each) for each in story)


@program(raises=ClosedClientError)
def work_outside_a_client(client):
    client.close()
    return client.submit(inc, 1)


@program(raises=FutureCancelledError)
def the_result_after_closing(cluster):
    with Client(cluster, set_as_default=False) as client:
        future = client.submit(inc, 1)
        wait(future)
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
def progress(client):
    import contextlib
    import io

    from distributed import progress

    futures = client.map(inc, range(3))
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        progress(futures, notebook=False)
    return "100% Completed" in text.getvalue()


@program
def several_clients(cluster):
    with Client(cluster, set_as_default=False) as one, Client(cluster, set_as_default=False) as two:
        return one.submit(inc, 1).result(), two.submit(inc, 1).result(), one.id != two.id


@program
def a_client_by_address(cluster):
    with Client(cluster.scheduler_address, set_as_default=False) as client:
        return client.submit(inc, 1).result(), client.cluster is None


@program
def an_asynchronous_client(cluster):
    import asyncio

    async def work():
        async with Client(cluster.scheduler_address, asynchronous=True, set_as_default=False) as client:
            future = client.submit(inc, 1)
            result = [await future, await client.gather(client.map(inc, range(3)))]
            async for each in as_completed(client.map(inc, [5])):
                result.append(await each)
            x = client.compute(dask.delayed(inc)(1))
            try:
                await client.submit(div, 1, 0)
            except ZeroDivisionError as error:
                result.append(str(error))
            return result, await x

    return asyncio.run(work())


@program
def cancelled_is_an_error_of_its_own(client):
    future = client.submit(slowly, 1, seconds=0.3, key="own-error")
    future.cancel()
    try:
        client.gather(future)
    except CancelledError as error:
        return type(error).__mro__[1].__name__, str(error)


@program
def heartbeats_and_repr(client):
    text = repr(client)
    return text.split("'")[0], client.status, client.asynchronous, "Client" in client._repr_html_()


@program(raises=FuturesCancelledError)
def wait_for_the_cancelled(client):
    future = client.submit(slowly, 1, seconds=0.3, key="wait-cancelled")
    future.cancel()
    return wait(future)


@program
def as_completed_of_the_cancelled(client):
    future = client.submit(slowly, 1, seconds=0.3, key="as-completed-cancelled")
    going = as_completed([future])
    future.cancel()
    return [each.status for each in going]


@program(covers=("Client.run",), differs=RUN_IS_ELSEWHERE)
def environment_variables_reach_tasks(client):
    def export():
        os.environ["FROM_RUN"] = "1"

    client.run(export)
    return client.submit(lambda: os.environ.get("FROM_RUN"), pure=False).result()


@program(covers=("Client.run",), differs=RUN_IS_ELSEWHERE)
def what_run_changes_tasks_see(client):
    def change():
        import json

        json.changed_by_run = 5

    def look():
        import json

        return getattr(json, "changed_by_run", None)

    client.run(change)
    return client.gather(client.map(lambda n: look(), range(4), pure=False))


@program(covers=("Client.run",), differs=RUN_IS_ELSEWHERE)
def tasks_run_where_run_runs(client):
    workers = set(client.run(os.getpid).values())
    tasks = set(client.gather(client.map(lambda n: os.getpid(), range(6), pure=False)))
    return tasks <= workers, os.getpid() in workers


@program(
    covers=("UploadDirectory",), differs="ModuleNotFoundError: plugins reach the fleet worker only, not the executors"
)
def uploaded_directories(client, path):
    from distributed.diagnostics.plugin import UploadDirectory

    (path / "uploaded_package").mkdir()
    (path / "uploaded_package" / "__init__.py").write_text("ANSWER = 43\n")
    client.register_plugin(UploadDirectory(str(path / "uploaded_package"), update_path=True))

    def use():
        import uploaded_package

        return uploaded_package.ANSWER

    return client.submit(use, pure=False).result()


@program(
    covers=("Client.upload_file",),
    differs="executors go on with the first version of the module, which they have imported",
)
def an_uploaded_module_that_changes(client, path):
    def use():
        import changing_module

        return changing_module.ANSWER

    results = []
    for answer in (1, 2):
        (path / "changing_module.py").write_text(f"ANSWER = {answer}  # {'x' * answer}\n")
        client.upload_file(str(path / "changing_module.py"))
        results.append(client.submit(use, pure=False).result())
    return results


@program(
    covers=("Client.forward_logging",),
    differs="the logs of tasks stay in the executors (`cluster.get_logs`): no worker forwards them",
)
def logs_forwarded_from_tasks(client):
    import logging

    class Keep(logging.Handler):
        def __init__(self):
            super().__init__()
            self.seen, self.arrived = [], threading.Event()

        def emit(self, record):
            self.seen.append((record.name, record.getMessage()))
            self.arrived.set()

    handler = Keep()
    logging.getLogger("forwarded").addHandler(handler)
    client.forward_logging("forwarded", level=logging.INFO)
    try:
        client.submit(lambda: logging.getLogger("forwarded").warning("from a task"), pure=False).result()
        handler.arrived.wait(1)
        return handler.seen
    finally:
        client.unforward_logging("forwarded")
        logging.getLogger("forwarded").removeHandler(handler)


@program
def submit_to_workers_by_name(client):
    name = next(iter(client.scheduler_info()["workers"].values()))["name"]
    return client.submit(inc, 1, workers=name, pure=False).result(timeout=5)


@program
def compute_and_persist_on_workers(client):
    addresses = list(client.scheduler_info()["workers"])
    x = dask.delayed(inc)(1)
    return client.compute(x, workers=addresses).result(timeout=5), client.persist(
        x, workers=addresses, allow_other_workers=True
    ).compute()


@program
def annotated_with_workers(client):
    with dask.annotate(workers=list(client.scheduler_info()["workers"])):
        x = dask.delayed(inc)(1)
    return x.compute(optimize_graph=False)


@program
def a_profile(client):
    client.submit(slowly, 1, seconds=0.1, pure=False).result()
    return sorted(client.profile())


@program
def memory_samples(client):
    from distributed.diagnostics import MemorySampler

    sampler = MemorySampler()
    with sampler.sample("mine", client=client, interval=0.1):
        client.submit(slowly, 1, seconds=0.3, pure=False).result()
    return list(sampler.to_pandas().columns)


@program
def clients_for_a_while(cluster):
    with Client(cluster, set_as_default=False) as client, client.as_current():
        return default_client() is client, dask.delayed(inc)(1).compute()


@program
def active_memory_manager(client):
    client.amm.start()
    running = client.amm.running()
    return client.amm.run_once(), running, client.submit(inc, 1, pure=False).result()


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
def an_exception_as_a_result(client):
    return client.submit(ValueError, "a value").result()


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


@program(raises=TimeoutError)
def a_timeout_raised_by_a_task(client):
    def fail():
        raise TimeoutError("mine")

    return client.submit(fail).result()


@program(raises=concurrent.futures.CancelledError)
def a_cancelled_error_raised_by_a_task(client):
    def fail():
        raise concurrent.futures.CancelledError("mine")

    return client.submit(fail).result()


@program(raises=ZeroDivisionError)
def an_error_is_kept(client):
    first = client.submit(div, 1, 0, key="kept-error")
    wait(first)
    return client.submit(div, 1, 1, key="kept-error").result()


@program
def an_error_let_go(client):
    first = client.submit(div, 1, 0, key="let-go")
    wait(first)
    first.release()
    del first
    client.run_on_scheduler(lambda: None)
    client.submit(inc, 1).result()
    return client.submit(div, 1, 1, key="let-go").result()


@program(covers=("Client.retry",))
def retry_by_the_client(client, path):
    def at_first(name):
        if not os.path.exists(name):
            open(name, "w").close()
            raise RuntimeError("at first")
        return "then"

    futures = [client.submit(at_first, str(path / str(n))) for n in range(2)]
    wait(futures)
    client.retry(futures)
    return client.gather(futures)


@program
def retry_what_failed_above(client, path):
    def at_first(name):
        if not os.path.exists(name):
            open(name, "w").close()
            raise RuntimeError("at first")
        return 1

    above = client.submit(at_first, str(path / "marker"))
    last = client.submit(inc, above)
    first = str(last.exception())
    last.retry()
    return first, last.result()


@program
def as_completed_one_by_one(client):
    going = as_completed(client.map(inc, range(2)))
    going.update(client.map(inc, [5]))
    values = sorted([going.next().result(), next(going).result(), next(going).result()])
    try:
        next(going)
    except StopIteration:
        return values, going.count()


@program(raises=ZeroDivisionError, differs=STAND_IN, covers=("Client.recreate_error_locally",))
def an_error_recreated_here(client):
    return client.recreate_error_locally(client.submit(div, 1, 0))


@program(differs=STAND_IN, covers=("Client.recreate_task_locally",))
def a_task_recreated_here(client):
    future = client.submit(add, 1, 2, c=3)
    wait(future)
    return client.recreate_task_locally(future)


@program
def the_futures_of_collections(client):
    kept = client.persist(dask.array.arange(10, chunks=5))
    return len(client.futures_of(kept)), len(client.futures_of([kept, client.submit(inc, 1)]))


@program(raises=FutureCancelledError)
def futures_of_what_was_cancelled(client):
    future = client.submit(slowly, 1, key="cancelled-before")
    future.cancel()
    return client.submit(inc, future).result()


@program
def futures_with_annotations_of_every_kind(client):
    with dask.annotate(
        retries=2, priority=3, allow_other_workers=True, workers=list(client.scheduler_info()["workers"])
    ):
        first = client.submit(inc, 1, pure=False)
        second = dask.delayed(inc)(2)
    return first.result(), client.compute(second, optimize_graph=False).result()


@program(raises=TypeError)
def annotations_of_a_wrong_kind():
    with dask.annotate(retries="many"):
        pass


@program(
    differs="a stand-in: `workers` names the fleet, and `retries` are counted by executors",
    covers=("Client.run_on_scheduler",),
)
def annotations_reach_the_scheduler(client):
    with dask.annotate(priority=7, retries=2, note="mine"):
        future = client.submit(inc, 1, key="annotated")
    wait(future)
    return client.run_on_scheduler(
        lambda dask_scheduler: {
            name: value
            for name, value in (dask_scheduler.tasks["annotated"].annotations or {}).items()
            if name != "span"
        }
    )


@program
def priorities_decide_the_order(client, path):
    def note(n, name):
        with open(name, "a") as file:
            file.write(f"{n} ")
        time.sleep(0.01)

    client.gather([client.submit(note, n, str(path / "order"), priority=n) for n in range(4)])
    return sorted((path / "order").read_text().split())


@program
def an_annotated_executor_of_workers(client):
    with dask.annotate(executor="default"):
        return client.submit(inc, 1, pure=False).result(timeout=5)


@program
def futures_without_a_client_at_hand(client):
    return client.submit(inc, 1).client is client


@program(covers=("TimeoutError", "CancelledError"))
def errors_of_dask_and_of_python():
    import distributed

    return distributed.TimeoutError is TimeoutError, issubclass(FutureCancelledError, distributed.CancelledError)


@program
def compute_with_a_name_for_each(client):
    results = dask.compute(dask.delayed(inc)(1, dask_key_name="named-one"), dask.delayed(inc)(2, dask_key_name="two"))
    return results, client.get({"x": (inc, 1)}, "x"), client.compute({"a": dask.delayed(inc)(3)}, sync=True)


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


@program(raises=TypeError)
def wait_for_a_wrong_event(client):
    return wait(client.submit(inc, 1), return_when="SOMETIME", timeout=1, colour="red")


@program
def many_small_results(client):
    return client.submit(lambda: {n: str(n) for n in range(2000)}).result()[1999], len(
        client.submit(bytes, 10**6).result()
    )


@program(raises=MemoryError)
def a_memory_error_raised_by_a_task(client):
    def fail():
        raise MemoryError("too much")

    return client.submit(fail).result()


@program(raises=UnicodeDecodeError)
def errors_with_many_arguments(client):
    return client.submit(bytes.decode, b"\xff", "utf-8").result()


@program
def file_errors(client, path):
    error = client.submit(open, str(path / "nothing")).exception()
    return type(error).__name__, error.errno, error.filename == str(path / "nothing")


@program
def warnings_as_errors_in_tasks(client):
    def work():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                warnings.warn("serious", stacklevel=1)
            except UserWarning as error:
                return str(error)

    return client.submit(work).result()


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


@program
def context_variables_and_globals(client):
    def work():
        return __name__.rpartition(".")[2], __file__.endswith("futures.py")

    return client.submit(work).result()
