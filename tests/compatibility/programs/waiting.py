"""Waiting for futures, cancelling and retrying them; after distributed.dask.org/en/stable/api.html."""

from __future__ import annotations

import os
import threading
import time

import dask
from dask.distributed import as_completed, fire_and_forget, wait
from distributed.client import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FutureCancelledError,
    FuturesCancelledError,
)

from tests.compatibility.programs import (
    program,
)
from tests.compatibility.programs.futures import div, inc, slowly


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
def futures_go_away(client):
    future = client.submit(inc, 1, key="goes-away")
    wait(future)
    del future
    deadline = time.monotonic() + 5
    while client.run_on_scheduler(lambda dask_scheduler: "goes-away" in dask_scheduler.tasks):
        assert time.monotonic() < deadline
    return "goes-away" in client.futures


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


@program(raises=FutureCancelledError)
def futures_of_what_was_cancelled(client):
    future = client.submit(slowly, 1, key="cancelled-before")
    future.cancel()
    return client.submit(inc, future).result()


@program(raises=TypeError)
def wait_for_a_wrong_event(client):
    return wait(client.submit(inc, 1), return_when="SOMETIME", timeout=1, colour="red")
