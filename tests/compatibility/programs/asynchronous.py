"""Asynchronous clients and primitives, after distributed.dask.org/en/stable/asynchronous.html."""

from __future__ import annotations

import asyncio
import contextlib

import dask
from dask.distributed import Client, Event, Lock, Queue, Semaphore, Variable, as_completed, wait
from distributed import default_client, get_task_stream, performance_report

from tests.compatibility.programs import program

#: What is not over by then hangs. A report alone takes seconds where others use the machine.
WAIT_SECONDS_MAX = 60.0


def inc(n):
    return n + 1


def div(a, b):
    return a / b


def awaited(cluster, work):
    """Run a coroutine with an asynchronous client of a cluster, in a loop of its own."""

    async def main():
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            return await asyncio.wait_for(work(client), WAIT_SECONDS_MAX)

    return asyncio.run(main())


@program(covers=("Client.submit", "Client.gather", "Client.map", "Future.result", "Client.asynchronous"))
def submitting(cluster):
    async def work(client):
        future = client.submit(inc, 1)
        results = await client.gather(client.map(inc, range(3)))
        return await future, await future.result(), results, client.asynchronous, default_client() is client

    return awaited(cluster, work)


@program(covers=("Client.compute", "Client.persist"))
def computing_collections(cluster):
    async def work(client):
        x = dask.array.arange(10, chunks=5)
        kept = await client.persist(x)
        return await client.compute(x.sum()), await client.compute(kept.max()), await client.compute([x.min()])[0]

    return awaited(cluster, work)


@program(raises=RuntimeError)
def computing_as_if_it_were_not(cluster):
    async def work(client):
        return dask.delayed(inc)(1).compute()

    return awaited(cluster, work)


@program(covers=("Client.scatter",))
def scattering(cluster):
    async def work(client):
        future = await client.scatter(5)
        several = await client.scatter([1, 2], broadcast=True)
        return await client.submit(inc, future), await client.gather(several)

    return awaited(cluster, work)


@program(covers=("as_completed",))
def in_order_of_completion(cluster):
    async def work(client):
        results = []
        async for future in as_completed(client.map(inc, range(3))):
            results.append(await future)
        async for _, result in as_completed(client.map(inc, range(2)), with_results=True):
            results.append(result)
        return sorted(results)

    return awaited(cluster, work)


@program(covers=("wait",))
def waiting(cluster):
    async def work(client):
        done, not_done = await wait(client.map(inc, range(3)))
        return len(done), len(not_done)

    return awaited(cluster, work)


@program(raises=ZeroDivisionError)
def errors(cluster):
    async def work(client):
        return await client.submit(div, 1, 0)

    return awaited(cluster, work)


@program(covers=("Future.exception", "Client.gather"))
def errors_looked_at(cluster):
    async def work(client):
        future = client.submit(div, 1, 0)
        return str(await future.exception()), await client.gather([future, client.submit(inc, 1)], errors="skip")

    return awaited(cluster, work)


@program(covers=("Variable", "Queue", "Lock", "Event", "Semaphore"))
def primitives(cluster):
    async def work(client):
        variable, queue, event = Variable("async-v"), await Queue("async-q"), Event("async-e")
        await variable.set(5)
        await queue.put(6)
        await event.set()
        lock = Lock("async-l")
        async with lock:
            locked = await lock.locked()
        semaphore = Semaphore(1, "async-s")
        async with semaphore:
            value = await semaphore.get_value()
        return await variable.get(), await queue.get(), await queue.qsize(), await event.wait(1), locked, value

    return awaited(cluster, work)


@program(covers=("Client.cancel", "Client.retry", "Future.cancel"))
def cancelling_and_retrying(cluster, path):
    def once(name):
        import os

        if not os.path.exists(name):
            open(name, "w").close()
            raise ValueError("not yet")
        return "then"

    async def work(client):
        future = client.submit(once, str(path / "marker"))
        await wait(future)
        await client.retry([future])
        result = await future
        other = client.submit(inc, 1, pure=False)
        await client.cancel(other)
        return result, other.cancelled()

    return awaited(cluster, work)


@program(covers=("Client.who_has", "Client.has_what", "Client.nthreads", "Client.run", "Client.run_on_scheduler"))
def looking(cluster):
    async def work(client):
        future = client.submit(inc, 1, key="looked-at")
        await wait(future)
        who = await client.who_has(future)
        return (
            list(who), len(await client.has_what()) > 0, sum((await client.nthreads()).values()),
            set((await client.run(inc, 1)).values()), await client.run_on_scheduler(inc, 2),
            (await client.scheduler_info())["type"] if asyncio.iscoroutine(client.scheduler_info()) else "plain",
        )  # fmt: skip

    return awaited(cluster, work)


@program(covers=("Client.publish_dataset", "Client.get_dataset", "Client.list_datasets", "Client.unpublish_dataset"))
def published_data_sets(cluster):
    async def work(client):
        await client.publish_dataset(5, name="async-data")
        found = await client.get_dataset("async-data"), "async-data" in await client.list_datasets()
        await client.unpublish_dataset("async-data")
        return found

    return awaited(cluster, work)


@program(covers=("Client.set_metadata", "Client.get_metadata", "Client.get_versions", "Client.wait_for_workers"))
def other_calls(cluster):
    async def work(client):
        await client.wait_for_workers(1)
        await client.set_metadata("async-m", 5)
        return await client.get_metadata("async-m"), sorted(await client.get_versions())

    return awaited(cluster, work)


@program(covers=("get_task_stream", "performance_report"))
def reports(cluster, path):
    async def work(client):
        async with performance_report(filename=str(path / "report.html")), get_task_stream() as stream:
            await client.submit(inc, 1, key="async-stream", pure=False)
        return [each["key"] for each in stream.data], (path / "report.html").exists()

    return awaited(cluster, work)


@program(covers=("Future.add_done_callback",))
def callbacks(cluster):
    async def work(client):
        called = asyncio.Event()
        loop = asyncio.get_running_loop()
        seen = []

        def callback(future):
            seen.append(future.status)
            loop.call_soon_threadsafe(called.set)

        client.submit(inc, 1, pure=False).add_done_callback(callback)
        await asyncio.wait_for(called.wait(), WAIT_SECONDS_MAX)
        return seen

    return awaited(cluster, work)


@program(raises=TimeoutError)
def a_wait_that_is_too_long(cluster):
    async def work(client):
        import time

        await asyncio.wait_for(client.submit(time.sleep, 0.6, pure=False).result(), 0.05)

    return awaited(cluster, work)


@program
def a_client_awaited_and_closed(cluster):
    async def work():
        client = await Client(cluster.scheduler_address, asynchronous=True, set_as_default=False)
        before = client.status
        result = await client.submit(inc, 1)
        await client.close()
        return before, result, client.status

    return asyncio.run(work())


@program(covers=("Client.sync", "sync"))
def a_coroutine_through_the_client(client):
    from distributed import sync

    async def work(n, by=1):
        await asyncio.sleep(0)
        return n + by

    return client.sync(work, 1, by=2), sync(client.loop, work, 5)


@program(covers=("Future",))
def tasks_of_the_loop_beside_futures(cluster):
    async def work(client):
        futures = client.map(inc, range(4))
        values = await asyncio.gather(*futures)
        first = asyncio.ensure_future(client.gather(futures))
        with contextlib.suppress(asyncio.CancelledError):
            other = asyncio.ensure_future(client.submit(inc, 9)._result())
            await other
        return values, await first

    return awaited(cluster, work)
