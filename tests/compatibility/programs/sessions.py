"""What a client keeps, hears and shows; after distributed.dask.org/en/stable/api.html."""

from __future__ import annotations

import threading
import time
import warnings

import dask
from dask.distributed import Client, as_completed, get_task_metadata, wait
from distributed import CancelledError, default_client
from distributed.client import (
    ClosedClientError,
    FutureCancelledError,
)

from tests.compatibility.programs import program
from tests.compatibility.programs.futures import div, inc, slowly


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


@program(covers=("get_worker", "Client.log_event"))
def events_from_tasks(client):
    def work():
        from distributed import get_worker

        get_worker().log_event("from-task", {"b": 2})
        return 1

    client.submit(work).result()
    deadline = time.monotonic() + 3
    while not (seen := client.get_events("from-task")) and time.monotonic() < deadline:
        pass
    return [{**event, "worker": type(event["worker"]).__name__} for _, event in seen][-1:]


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
def client_as_default(client):
    return default_client() is client, Client.current() is client


@program(covers=("Client.dump_cluster_state",))
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


@program
def a_profile(client):
    client.submit(slowly, 1, seconds=0.1, pure=False).result()
    return sorted(client.profile())


@program
def clients_for_a_while(cluster):
    with Client(cluster, set_as_default=False) as client, client.as_current():
        return default_client() is client, dask.delayed(inc)(1).compute()
