"""`Client.get_executor`: concurrent.futures on a cluster, after distributed.dask.org/en/stable/api.html."""

from __future__ import annotations

import concurrent.futures
import os
import time

from dask.distributed import wait

from tests.compatibility.programs import program


def inc(n):
    return n + 1


def div(a, b):
    return a / b


def slowly(n, seconds=0.5):
    time.sleep(seconds)
    return n


@program(covers=("ClientExecutor", "ClientExecutor.submit", "ClientExecutor.map"))
def submit_and_map(client):
    executor = client.get_executor()
    future = executor.submit(div, 6, b=2)
    return (
        isinstance(executor, concurrent.futures.Executor), isinstance(future, concurrent.futures.Future),
        future.result(timeout=5), list(executor.map(inc, range(5))), list(executor.map(div, [4, 9], [2, 3, 1])),
    )  # fmt: skip


@program
def map_with_a_chunk_size(client):
    return list(client.get_executor().map(inc, range(4), chunksize=2, timeout=5))


@program(raises=TypeError)
def map_with_unknown_arguments(client):
    return client.get_executor().map(inc, range(4), colour="red")


@program
def map_in_time(client):
    executor = client.get_executor(pure=False)
    results = executor.map(slowly, [1, 2], timeout=0.1)
    try:
        return list(results)
    except concurrent.futures.TimeoutError as error:
        return type(error).__name__


@program(raises=ZeroDivisionError)
def map_that_fails(client):
    return list(client.get_executor().map(div, [1, 1], [1, 0]))


@program
def futures_of_an_executor(client):
    with client.get_executor() as executor:
        good, bad = executor.submit(inc, 1), executor.submit(div, 1, 0)
        done, not_done = concurrent.futures.wait([good, bad], timeout=5)
        called = []
        good.add_done_callback(lambda future: called.append(future.result()))
        return len(done), len(not_done), called, repr(bad.exception(timeout=5)), good.done(), good.running()


@program
def the_first_exception(client):
    with client.get_executor(pure=False) as executor:
        futures = [executor.submit(div, 1, 0), executor.submit(inc, 1)]
        done, _ = concurrent.futures.wait(futures, timeout=5, return_when=concurrent.futures.FIRST_EXCEPTION)
        return futures[0] in done


@program
def in_order_of_completion(client):
    with client.get_executor() as executor:
        futures = [executor.submit(inc, n) for n in range(4)]
        return sorted(future.result() for future in concurrent.futures.as_completed(futures, timeout=5))


@program
def a_result_in_time(client):
    future = client.get_executor(pure=False).submit(slowly, 1)
    try:
        return future.result(timeout=0.05)
    except concurrent.futures.TimeoutError as error:
        return type(error).__name__


@program
def cancelling(client):
    executor = client.get_executor(pure=False)
    future = executor.submit(slowly, 1)
    cancelled = future.cancel()
    try:
        return future.result(timeout=5)
    except concurrent.futures.CancelledError as error:
        return cancelled, future.cancelled(), type(error).__name__


@program(raises=RuntimeError)
def submitting_after_the_shutdown(client):
    executor = client.get_executor()
    executor.shutdown()
    executor.shutdown()
    return executor.submit(inc, 1)


@program
def a_shutdown_that_waits(client):
    executor = client.get_executor(pure=False)
    future = executor.submit(slowly, 1, seconds=0.1)
    executor.shutdown(wait=True)
    return future.result(timeout=1)


@program
def a_shutdown_that_does_not_wait(client):
    executor = client.get_executor(pure=False)
    future = executor.submit(slowly, 1)
    executor.shutdown(wait=False)
    try:
        return future.result(timeout=5)
    except concurrent.futures.CancelledError as error:
        return type(error).__name__


@program
def the_rest_of_a_map_is_cancelled(client, path):
    def work(n, directory):
        time.sleep(0.1)
        open(os.path.join(directory, str(n)), "w").close()
        return n

    results = client.get_executor(pure=False).map(work, range(40), [str(path)] * 40)
    first = next(results)
    results.close()
    return first, len(os.listdir(path)) < 40


@program
def options_of_an_executor(client, path):
    def once(name):
        if not os.path.exists(name):
            open(name, "w").close()
            raise ValueError("not yet")
        return "then"

    address = list(client.scheduler_info()["workers"])
    with client.get_executor(retries=2, workers=address, allow_other_workers=True) as executor:
        return executor.submit(once, str(path / "marker")).result(timeout=5)


@program
def pure_calls_share_a_key(client, path):
    def count(name):
        with open(name, "a") as file:
            file.write("x")
        return 1

    with client.get_executor(pure=True) as executor:
        futures = [executor.submit(count, str(path / "calls")) for _ in range(3)]
        return [each.result() for each in futures], (path / "calls").read_text()


@program
def a_loop_and_an_executor(client):
    import asyncio

    async def work():
        loop = asyncio.get_running_loop()
        executor = client.get_executor()
        return await asyncio.gather(*(loop.run_in_executor(executor, inc, n) for n in range(3)))

    return asyncio.run(work())


@program
def several_executors(client):
    with client.get_executor() as one, client.get_executor(pure=False) as two:
        return one.submit(inc, 1).result(), two.submit(inc, 1).result()


@program
def an_executor_and_futures_of_the_client(client):
    future = client.submit(inc, 1)
    wait(future)
    return client.get_executor().submit(inc, future).result()
