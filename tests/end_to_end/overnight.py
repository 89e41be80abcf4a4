"""The program that is killed in the middle, for `test_reattach`: tasks that say that they run and wait for a gate."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import dask
from distributed import Client

from dask_serverless import ServerlessCluster

SECONDS_MAX = 40.0
#: How long a task waits for its gate: longer than any test, which may never open it.
GATE_SECONDS_MAX = 600.0


def options(directory, timeout="60 s", **more):
    """Return the configuration that finds a persistent cluster in a test's own directory."""
    return {
        "serverless.persistent.directory": str(directory),
        "serverless.persistent.timeout": timeout,
        "serverless.executor.lease": "3 s",
        **more,
    }


def step(directory, name, gate, *inputs):
    """Note that this runs, wait for the gate to be opened, and return the name with the number of inputs."""
    with open(Path(directory, "runs"), "a") as file:
        file.write(f"{name}\n")
    deadline = time.monotonic() + GATE_SECONDS_MAX
    while gate and not Path(directory, gate).exists():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    return f"{name}({len(inputs)})"


def runs(directory):
    """Name the tasks that have begun, in order."""
    path = Path(directory, "runs")
    return path.read_text().split() if path.exists() else []


def graph(directory, many=4):
    """Two quick tasks, and `many` slow ones behind quick ones of their own, which are all needed at the end."""
    directory = str(directory)
    tasks = {f"quick-{n}": (step, directory, f"Q{n}", "") for n in range(many + 2)}
    tasks |= {f"slow-{n}": (step, directory, f"S{n}", "gate", f"quick-{n}") for n in range(many)}
    return tasks | {"all": (step, directory, "A", "", *[f"slow-{n}" for n in range(many)])}


def count(table, text, waited):
    """Use what all tasks share, and what only this one has."""
    return len(table) + len(text)


def large_graph(directory, many=600):
    """A task that waits, then many that share a large constant, have a text of their own each, and are added up."""
    table = bytes(range(256)) * 2_000
    tasks = {"first": (step, str(directory), "F", "gate")}
    tasks |= {f"count-{n}": (count, table, f"{n:04}" * 1_000, "first") for n in range(many)}
    return tasks | {"total": (sum, [f"count-{n}" for n in range(many)])}


def main(directory, name, story):
    """Start a persistent cluster, do what the story says, say who this is, and wait to be killed."""
    with dask.config.set(options(directory, **json.loads(os.environ.get("OPTIONS", "{}")))):
        cluster = ServerlessCluster(name=name, persistent=True, n_workers=2, dashboard_address=None)
    client = Client(cluster)
    kept = STORIES[story](client, directory)
    tier, service = cluster._local.tier, cluster._local.service
    processes = [tier.keeper, service.pid, *tier.pids.values(), *(each["pid"] for each in service.sandboxes())]
    print(json.dumps({"pid": os.getpid(), "processes": processes, "address": cluster.scheduler_address}), flush=True)
    sys.stdin.read()
    del kept


def _wait_for(condition, directory):
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, runs(directory)
        threading.Event().wait(0.01)


def _wait_for_slow(directory):
    _wait_for(lambda: any(name.startswith("S") for name in runs(directory)), directory)


def in_the_middle(client, directory):
    """Two keys are there, and one is being computed, of whose graph some has not begun."""
    futures = client.get(graph(directory), ["quick-4", "quick-5"], sync=False)
    assert [future.result(SECONDS_MAX) for future in futures] == ["Q4(0)", "Q5(0)"]
    everything = client.get(graph(directory), "all", sync=False)
    _wait_for_slow(directory)
    return futures, everything


def forgotten(client, directory):
    """As before; then the metadata server dies, and what was under way has begun again."""
    kept = in_the_middle(client, directory)
    before = sum(name.startswith("S") for name in runs(directory))
    os.kill(client.cluster._local.tier.pids["metadata"], signal.SIGKILL)
    _wait_for(lambda: sum(name.startswith("S") for name in runs(directory)) > before, directory)
    noted = client.cluster._proxy.dispatcher.backend.store.noted
    _wait_for(lambda: sum(name.startswith("job:") for name in noted()) >= 2, directory)
    return kept


def with_datasets(client, directory):
    """One dataset is there, one is large, and one waits for room."""
    small = client.submit(step, str(directory), "D", "", key="small")
    large = client.submit(bytes, 300_000, key="large")
    assert (small.result(SECONDS_MAX), large.result(SECONDS_MAX)) == ("D(0)", bytes(300_000))
    blocked = client.get(graph(directory), "all", sync=False)
    _wait_for_slow(directory)
    waiting = client.submit(step, str(directory), "W", "", key="waiting")
    client.publish_dataset(small=small, large=large, waiting=waiting)
    return small, large, blocked, waiting


def with_scattered_data(client, directory):
    """A task is at work on data that the client has brought; another one has not begun."""
    data = client.scatter(bytes(1000), hash=True)
    running = [client.submit(step, str(directory), f"R{n}", "gate", data, key=f"running-{n}") for n in range(2)]
    _wait_for(lambda: len(runs(directory)) == 2, directory)
    later = client.submit(step, str(directory), "L", "", data, running[0], key="later")
    return data, running, later


def with_untouched_data(client, directory):
    """Data that the client has brought and no executor was given, small and large; some of it it has let go again."""
    small = client.scatter({"small": list(range(10))})["small"]
    large = client.scatter(bytes(range(250)) * 4_000, hash=True)
    array = client.scatter({"array": bytearray(300_000)})["array"]
    direct = client.scatter({"direct": "D" * 200_000}, direct=True)["direct"]
    gone = client.scatter({"gone": bytes(500_000)})["gone"]
    gone.release()
    blocked = client.get(graph(directory), "all", sync=False)
    _wait_for_slow(directory)
    waiting = client.submit(step, str(directory), "W", "", large, small, key="waiting")
    client.publish_dataset(data=[small, direct])
    _wait_for(lambda: "gone" not in client.cluster.scheduler.tasks, directory)
    return small, large, array, direct, blocked, waiting


def with_a_large_graph(client, directory):
    """Hundreds of tasks share a constant; one is at work, and what is asked for has pieces that are stored."""
    future = client.get(large_graph(directory), "total", sync=False)
    _wait_for(lambda: runs(directory), directory)
    return future


def noted_only(client, directory):
    """What shall be started is noted, and of that nothing has been done yet."""
    dispatcher = client.cluster._proxy.dispatcher
    dispatcher.launcher.begin = lambda *about: threading.Event().wait
    future = client.submit(step, str(directory), "N", "", key="noted")
    _wait_for(lambda: any(name.startswith("given:") for name in dispatcher.backend.store.noted()), directory)
    return future


def idle(client, directory):
    """Nothing to do, but for one executor more than at the start."""
    client.cluster.scale(3)


_STORIES = (
    in_the_middle,
    forgotten,
    with_datasets,
    with_scattered_data,
    with_untouched_data,
    with_a_large_graph,
    noted_only,
    idle,
)
STORIES = {each.__name__: each for each in _STORIES}
