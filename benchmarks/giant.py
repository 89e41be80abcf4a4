"""Giant graphs, large values and many small results: time, and the memory of everybody who takes part.

    python benchmarks/giant.py                                 # sizes for a coffee break
    python benchmarks/giant.py --tasks 1000000                 # one compute of a million tasks
    python benchmarks/giant.py --only value --gib 2            # a 2 GiB result
    python benchmarks/giant.py --only futures --tasks 100000   # as many futures, gathered

Each program runs on a fresh cluster of each contender, so that a peak is its own: on `ServerlessCluster`, and (unless
`--alone`) on LocalCluster or, for graphs, the synchronous scheduler. Memory is resident memory, sampled: of this
process (client, scheduler and proxy), of the largest executor or worker, and of the largest storage server. Building a
graph is Dask's work; it is done before the clock starts. Nothing here asserts anything but the value.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import numpy as np
from distributed import Client, LocalCluster

from dask_serverless import ServerlessCluster

WORKERS = 2
FAN_IN = 16
SAMPLE_SECONDS = 0.1
MIB = 2**20
SERVERS = ("valkey-server", "redis-server")
#: How long the scheduler's event loop did not answer; heartbeats stop for as long.
TICK_SECONDS = 0.05


def increment(number: int) -> int:
    return number + 1


def tree(tasks: int) -> tuple[dict[str, Any], str]:
    """Return a low-level graph of about `tasks` tasks, with sums of 16 above small leaves."""
    leaves = tasks * (FAN_IN - 1) // FAN_IN
    level = [f"leaf-{number}" for number in range(leaves)]
    graph: dict[str, Any] = {name: (increment, number) for number, name in enumerate(level)}
    depth = 0
    while len(level) > 1:
        depth += 1
        above = []
        for first in range(0, len(level), FAN_IN):
            name = f"sum-{depth}-{first}"
            graph[name] = (sum, level[first : first + FAN_IN])
            above.append(name)
        level = above
    return graph, level[0]


class Memory:
    """The peaks of this process, and of the largest of its descendants of each kind."""

    def __init__(self) -> None:
        self.peaks = {"this process": 0, "executor or worker": 0, "storage server": 0}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            for kind, nbytes in self._now():
                self.peaks[kind] = max(self.peaks[kind], nbytes)

    def _now(self) -> Iterator[tuple[str, int]]:
        children: dict[int, list[tuple[int, str]]] = {}
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                status = dict(line.split(":\t", 1) for line in (directory / "status").read_text().splitlines())
            except (OSError, ValueError):
                continue  # it has ended
            children.setdefault(int(status["PPid"]), []).append((int(directory.name), status["Name"].strip()))
        yield "this process", resident(os.getpid())
        parents = [os.getpid()]
        while parents:
            for pid, name in children.get(parents.pop(), ()):
                parents.append(pid)
                yield ("storage server" if name in SERVERS else "executor or worker"), resident(pid)


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@contextmanager
def longest_pause(cluster: Any) -> Iterator[list[float]]:
    """Measure how long the scheduler's event loop was busy with one thing, at most."""
    longest = [0.0]

    async def tick() -> None:
        while True:
            begun = time.perf_counter()
            await asyncio.sleep(TICK_SECONDS)
            longest[0] = max(longest[0], time.perf_counter() - begun - TICK_SECONDS)

    ticking = asyncio.run_coroutine_threadsafe(tick(), cluster.loop.asyncio_loop)
    try:
        yield longest
    finally:
        ticking.cancel()


#: Makes the graph (for the synchronous scheduler: without a client); returns what is timed, and how many tasks it has.
Program = Callable[[Any, int], tuple[Callable[[], Any], int]]


def graph_tree(client: Client | None, tasks: int) -> tuple[Callable[[], Any], int]:
    graph, key = tree(tasks)
    get = dask.get if client is None else client.get
    return lambda: get(graph, key), len(graph)


def collection(make: Callable[[int], Any]) -> Program:
    def program(client: Client | None, tasks: int) -> tuple[Callable[[], Any], int]:
        made = make(tasks)
        if client is None:
            return lambda: made.compute(scheduler="sync"), tasks
        return lambda: client.compute(made, sync=True), tasks

    return program


def layered(tasks: int) -> Any:
    return ((da.ones((tasks // 4,), chunks=1) + 1) * 2).map_blocks(increment).sum()


def futures(client: Client, tasks: int) -> tuple[Callable[[], Any], int]:
    return lambda: sum(client.gather(client.map(increment, range(tasks), pure=False))), tasks


def value(client: Client, nbytes: int) -> tuple[Callable[[], Any], int]:
    def run() -> Any:
        future = client.submit(np.ones, nbytes // 8, pure=False)
        total = client.submit(np.sum, future, pure=False)
        return float(total.result()) + future.result().nbytes

    return run, 2


PROGRAMS: dict[str, tuple[str, Program]] = {
    "tree": ("client.get of a tree", graph_tree),
    "ones": ("da.ones(n, chunks=1).sum()", collection(lambda n: da.ones((n,), chunks=1).sum())),
    "layers": ("elementwise layers, fused", collection(layered)),
    "bag": (
        "bag of n partitions",
        collection(lambda n: db.from_sequence(range(n), npartitions=n).map(increment).sum()),
    ),
    "futures": ("client.map, and gather", futures),
    "value": ("a large value: made, read by a task, gathered", value),
}


def run(title: str, program: Program, contender: str, size: int, memory_limit: str) -> tuple[Any, list[str], float]:
    """Run one program once; return its value, a row of the table, and the seconds."""
    local = {"n_workers": WORKERS, "threads_per_worker": 1, "dashboard_address": None}
    makers: dict[str, Callable[[], Any]] = {
        "serverless": lambda: ServerlessCluster(n_workers=WORKERS, memory_limit=memory_limit, dashboard_address=None),
        "local": lambda: LocalCluster(**local),
        "sync": nullcontext,
    }
    with makers[contender]() as cluster:
        client = None if cluster is None else Client(cluster)
        with client or nullcontext():
            if client is not None:
                client.submit(increment, 0).result()
            call, tasks = program(client, size)
            with Memory() as memory, longest_pause(cluster) if client is not None else nullcontext([0.0]) as pause:
                begun = time.perf_counter()
                found = call()
                seconds = time.perf_counter() - begun
    peaks = [f"{nbytes / MIB:,.0f}" if nbytes else "" for nbytes in memory.peaks.values()]
    row = [title, contender, f"{tasks:,}", f"{seconds:.1f}", f"{tasks / seconds:,.0f}", *peaks, f"{pause[0]:.1f}"]
    print(" | ".join(row), file=sys.stderr, flush=True)
    return found, row, seconds


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=100_000, help="size of the graphs (default: 100000)")
    parser.add_argument("--gib", type=float, default=0.5, help="size of the large value in GiB (default: 0.5)")
    parser.add_argument("--memory-limit", default="9 GiB", help="of an executor, for the large value (default: 9 GiB)")
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--alone", action="store_true", help="without the others to compare with")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all?")
    options = parser.parse_args(arguments)
    if options.tasks < 1 or options.gib <= 0:
        parser.error("--tasks and --gib must be positive")
    tasks, nbytes = options.tasks, int(options.gib * 2**30)
    if options.quick:
        tasks, nbytes = min(tasks, 2_000), min(nbytes, 80 * MIB)
    header = [
        "",
        "on",
        "tasks",
        "s",
        "tasks/s",
        "this process MiB",
        "executor MiB",
        "store MiB",
        "loop's pause s",
        "ratio",
    ]
    print("| " + " | ".join(header) + " |\n| --- | --- |" + " ---: |" * (len(header) - 2))
    for name in options.only:
        title, program = PROGRAMS[name]
        other = "local" if name in ("futures", "value") else "sync"
        size = nbytes if name == "value" else tasks
        values, times = [], []
        for contender in ("serverless",) if options.alone else (other, "serverless"):
            found, row, seconds = run(
                title, program, contender, size, options.memory_limit if name == "value" else "2 GiB"
            )
            values.append(found)
            times.append(seconds)
            print("| " + " | ".join([*row, f"{seconds / times[0]:.2f}"]) + " |", flush=True)
        if len({float(each) for each in values}) != 1:
            raise SystemExit(f"error: {title}: the contenders disagree: {values}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
