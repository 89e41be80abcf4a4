"""Looking at a cluster: streams, reports, samples, logs, stories; after distributed.dask.org/en/stable/api.html."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import time

import dask
from dask.distributed import Client, get_worker, performance_report, progress, wait
from distributed import get_task_stream, span
from distributed.diagnostics import MemorySampler

from tests.compatibility.programs import log_of, program


def inc(n):
    return n + 1


def div(a, b):
    return a / b


def slowly(n, seconds=0.3):
    time.sleep(seconds)
    return n


def until(condition, seconds=4):
    """Wait for what comes by itself, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


class Keeper(logging.Handler):
    """Keeps records, and says when one arrives."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def emit(self, record):
        self.seen.append((record.name, record.levelname, record.getMessage()))


@contextlib.contextmanager
def kept(name):
    """Keep what is logged to a logger of this process."""
    handler, logger = Keeper(), logging.getLogger(name)
    logger.addHandler(handler)
    try:
        yield handler.seen
    finally:
        logger.removeHandler(handler)


@program(covers=("Client.forward_logging",))
def logs_forwarded_by_level(client):
    with kept("by-level") as seen:
        client.forward_logging("by-level", level=logging.ERROR)

        def work():
            logging.getLogger("by-level").warning("too low")
            logging.getLogger("by-level.child").error("high enough")

        client.submit(work, pure=False).result()
        until(lambda: seen, 1)
        client.unforward_logging("by-level")
    return seen


@program(covers=("Client.unforward_logging",))
def logs_forwarded_no_longer(client):
    def work(text):
        logging.getLogger("no-longer").warning(text)

    with kept("no-longer") as seen:
        client.forward_logging("no-longer")
        client.submit(work, "one", pure=False).result()
        until(lambda: seen, 1)
        client.unforward_logging("no-longer")
        client.submit(work, "two", pure=False).result()
        client.submit(inc, 1, pure=False).result()
    return seen


@program
def a_task_stream(client):
    client.get_task_stream()
    futures = client.map(inc, range(3), key="in-stream")
    wait(futures)
    records = [each for each in client.get_task_stream() if str(each["key"]).startswith("in-stream")]
    return (
        len(records), {each["status"] for each in records}, {len(each["startstops"]) > 0 for each in records},
        {each["startstops"][0]["action"] for each in records},
    )  # fmt: skip


@program
def a_task_stream_counted(client):
    client.get_task_stream()
    wait(client.map(inc, range(5), pure=False))
    return len(client.get_task_stream(count=2))


@program(
    covers=("Client.get_task_stream",),
)
def a_task_stream_of_errors(client):
    with get_task_stream(client) as stream:
        wait(client.submit(div, 1, 0, key="stream-error"))
    return [(each["key"], each["status"]) for each in stream.data]


@program
def a_task_stream_drawn(client, path):
    with get_task_stream(client, plot="save", filename=str(path / "stream.html")) as stream:
        client.gather(client.map(inc, range(3), pure=False))
    return type(stream.figure).__name__, (path / "stream.html").exists()


@program(
    covers=("get_task_stream",),
    differs="keys that the client asked for: tasks between them run in executors, which keep their times",
)
def a_task_stream_shows_tasks_between(client):
    with get_task_stream(client) as stream:
        first = dask.delayed(inc)(1, dask_key_name="stream-first")
        dask.delayed(inc)(first, dask_key_name="stream-last").compute()
    return sorted(each["key"] for each in stream.data)


@program
def a_performance_report(client, path):
    name = str(path / "report.html")
    with performance_report(filename=name, stacklevel=1, mode="inline"):
        dask.delayed(inc)(1).compute()
    text = (path / "report.html").read_text()
    return "Task Stream" in text, "Duration" in text, len(text) > 10_000


@program(raises=ZeroDivisionError)
def a_performance_report_of_an_error(client, path):
    with performance_report(filename=str(path / "report.html")):
        dask.delayed(div)(1, 0).compute()


@program
def progress_in_a_terminal(client):
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        progress(client.map(inc, range(4), pure=False), notebook=False)
    return text.getvalue().count("100% Completed")


@program
def progress_of_an_error(client):
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        progress(client.map(div, [1, 1], [1, 0], pure=False), notebook=False)
    return "Completed" in text.getvalue()


@program
def progress_of_collections(client):
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        progress(dask.persist(dask.array.ones(10, chunks=5)), notebook=False)
    return "100% Completed" in text.getvalue()


@program
def progress_of_nothing(client):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        progress([], notebook=False)
    return text.getvalue()


@program
def memory_samples_by_name(client):
    sampler = MemorySampler()
    with sampler.sample("a", client=client, interval=0.05):
        slowly(1, 0.2)
    with sampler.sample("b", measure="managed", client=client, interval=0.05):
        slowly(1, 0.2)
    frame = sampler.to_pandas()
    return list(frame.columns), len(frame) > 1, sampler.to_pandas(align=True).index.dtype.kind


@program
def memory_samples_awaited(cluster):
    import asyncio

    async def work():
        sampler = MemorySampler()
        async with Client(cluster.scheduler_address, asynchronous=True, set_as_default=False) as client:
            async with sampler.sample("mine", client=client, interval=0.05):
                await asyncio.sleep(0.2)
        return list(sampler.to_pandas().columns)

    return asyncio.run(work())


@program(raises=ImportError)
def memory_samples_drawn_without_matplotlib(client):
    import sys

    sampler = MemorySampler()
    with sampler.sample("mine", client=client, interval=0.05):
        slowly(1, 0.15)
    hidden = dict.fromkeys(("matplotlib", "matplotlib.pyplot"))
    saved = {name: sys.modules.get(name) for name in hidden}
    sys.modules.update(hidden)
    try:
        return sampler.plot()
    finally:
        for name, module in saved.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


@program
def spans_of_submissions(client):
    with span("span-outer") as outer, span("span-inner") as inner:
        client.submit(inc, 1, pure=False).result()
        with dask.annotate(priority=1):
            dask.delayed(inc)(5).compute()

    def look(dask_scheduler, outer, inner):
        spans = dask_scheduler.extensions["spans"].spans
        return (
            spans[outer].name, spans[inner].name, spans[inner].parent.id == outer,
            [child.id for child in spans[outer].children] == [inner], len(spans[inner].groups) > 0, spans[inner].done,
        )  # fmt: skip

    return client.run_on_scheduler(look, outer=outer, inner=inner)


@program
def spans_in_tasks(client):
    def work():
        with span("span-in-task"):
            return get_worker().get_current_task()

    return client.submit(work, key="with-a-span").result()


@program
def a_profile_of_a_task(client, path):
    client.submit(slowly, 1, pure=False).result()
    client.profile(filename=str(path / "profile.html"))
    return (path / "profile.html").exists(), sorted(client.profile(key="slowly"))


@program
def a_profile_of_the_scheduler(client):
    return sorted(client.profile(scheduler=True)), sorted(client.profile(server=True))


@program
def stories(client):
    client.submit(inc, 1, key="storied").result()
    return any("storied" in str(each) for each in client.story("storied")), client.story("never-heard-of")


@program(
    covers=("Client.call_stack",),
)
def the_call_stack(client, path):
    def waits(name):
        import os

        while not os.path.exists(name):
            time.sleep(0.01)
        return 1

    future = client.submit(waits, str(path / "go"), key="waits")
    try:
        until(lambda: any("waits" in keys for keys in client.processing().values()))
        stacks = until(lambda: client.call_stack(future))
        frames = [frame for stack in stacks.values() for text in stack.values() for frame in text]
        return [list(stack) for stack in stacks.values()], any("waits" in frame for frame in frames)
    finally:
        (path / "go").touch()
        future.result(timeout=5)


@program(raises=KeyError)
def the_call_stack_of_nothing(client):
    return client.call_stack(keys=["not-there"])


@program(covers=("Client.processing",))
def what_is_processed_and_what_is_not(client, path):
    def waits(name):
        import os

        while not os.path.exists(name):
            time.sleep(0.01)
        return 1

    future = client.submit(waits, str(path / "go"), key="in-the-works")
    try:
        seen = until(lambda: [key for keys in client.processing().values() for key in keys])
    finally:
        (path / "go").touch()
        future.result(timeout=5)
    return seen


@program
def events_of_topics(client):
    client.log_event("events-a", {"n": 1})
    client.log_event(["events-a", "events-b"], 2)
    return (
        [event for _, event in client.get_events("events-a")],
        [event for _, event in client.get_events("events-b")],
    )


@program(raises=TypeError)
def an_event_that_does_not_pickle(client):
    client.log_event("does-not-pickle", threading.Lock())
    return client.submit(inc, 1).result()


@program
def topics_with_asynchronous_handlers(client):
    seen = []

    async def handle(event):
        seen.append(event[1])

    client.subscribe_topic("async-topic", handle)
    client.submit(inc, 1, pure=False).result()
    client.log_event("async-topic", "hello")
    until(lambda: seen)
    client.unsubscribe_topic("async-topic")
    return seen


@program(raises=ValueError)
def a_topic_nobody_subscribed_to(client):
    return client.unsubscribe_topic("nobody-subscribed")


@program
def prints_to_the_client(client):
    from distributed import print

    def work():
        print("a task says", 5, sep=": ", end="!\n")

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        client.submit(work, pure=False).result()
        until(lambda: "says" in printed.getvalue())
        print("outside")
    # How often is not compared: workers write on the terminal themselves, and here that may come this way, too.
    return list(dict.fromkeys(printed.getvalue().splitlines()))


@program
def warnings_to_the_client(client):
    import warnings

    from distributed import warn

    def work():
        warn("a task warns", category=RuntimeWarning)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        client.submit(work, pure=False).result()
        until(lambda: caught)
    return [(each.category.__name__, str(each.message)) for each in caught]


@program
def logs_of_the_scheduler(client):
    return all(isinstance(level, str) for level, _ in log_of(lambda: client.get_scheduler_logs(n=5)))


@program
def logs_of_one_worker(client):
    address = list(client.scheduler_info()["workers"])[0]
    return list(log_of(lambda: client.get_worker_logs(n=2, workers=[address]))) == [address]


@program(covers=("Client.dump_cluster_state",))
def a_dump_of_the_state(client, path):
    import gzip

    import msgpack

    future = client.submit(inc, 2, key="dumped-and-kept")
    wait(future)
    client.dump_cluster_state(str(path / "dump"), write_from_scheduler=False)
    dump = gzip.decompress((path / "dump.msgpack.gz").read_bytes())
    state = msgpack.unpackb(dump, strict_map_key=False)
    return sorted(state), state["scheduler"]["tasks"]["dumped-and-kept"]["state"]


@program(covers=("Client.dump_cluster_state",))
def a_dump_without_parts(client, path):
    client.dump_cluster_state(str(path / "dump"), exclude=["run_spec", "events"], write_from_scheduler=True)
    return [each.name for each in path.iterdir()]


@program
def versions_agree(client):
    found = client.get_versions(check=True, packages=["numpy"])
    here = found["client"]["packages"]
    return (
        {each["packages"]["distributed"] for each in found["workers"].values()} == {here["distributed"]},
        {each["packages"]["numpy"] for each in found["workers"].values()} == {here["numpy"]},
        found["scheduler"]["packages"]["dask"] == here["dask"],
    )


@program
def what_the_scheduler_knows(client):
    info = client.scheduler_info()
    worker = next(iter(info["workers"].values()))
    return (
        sorted(set(info) - {"started"}), info["type"], info["total_threads"], info["total_memory"] > 0,
        {"type", "id", "host", "nthreads", "memory_limit", "status", "name", "services", "metrics"} - set(worker),
        client.scheduler_info(n_workers=1)["type"],
    )  # fmt: skip


@program
def links(client):
    return client.dashboard_link.startswith("http"), client.dashboard_link.endswith("/status")


@program
def metadata_of_tasks(client):
    from distributed import get_task_metadata

    with get_task_metadata() as tasks:
        wait(client.map(inc, range(2), key="metadata-of"))
    return len(tasks.metadata), set(tasks.state.values())


@program
def metadata_changes(client):
    client.set_metadata("m", {"a": {"b": 1}})
    client.set_metadata(["m", "a", "c"], 2)
    return client.get_metadata("m"), client.get_metadata(["m", "a", "c"]), client.get_metadata(["m", "z"], default=0)


@program
def sizes_by_key_and_type(client):
    futures = client.map(lambda n: bytes(n), [1000, 1000], key="sized")
    future = client.submit(lambda: b"x" * 500, key="another-size")
    wait([*futures, future])
    sizes = client.nbytes(summary=False)
    return sizes["another-size"], client.nbytes(keys=["another-size"], summary=False)


@program
def who_has_and_has_what(client):
    future = client.submit(inc, 41, key="kept-somewhere")
    wait(future)
    (address,) = client.who_has([future])["kept-somewhere"]
    return (
        "kept-somewhere" in client.has_what()[address], "kept-somewhere" in client.has_what([address])[address],
        client.who_has(["not-there"]), address in client.scheduler_info()["workers"],
    )  # fmt: skip


@program(covers=("Client.benchmark_hardware",))
def measuring_hardware(client):
    """Twenty seconds of measuring, of which only the beginning is of interest here."""
    return client.run_on_scheduler(lambda dask_scheduler: "benchmark_hardware" in dask_scheduler.handlers)
