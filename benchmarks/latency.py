"""How long one small thing takes, against LocalCluster, in one run.

Each program is one round through a client, from handing over to holding the value. The two clusters
take turns, call by call, so that whatever else the machine does meets both; between two calls there
is a pause, because a client sends at most every 10 ms, and who is slower would make the other wait less.
`loop` is for calls without a pause: each of its turns is ten in a row. The table gives the
median and the tails of each, and the ratio of the medians. Nothing here asserts a time.

    python benchmarks/latency.py [--calls 200] [--quick] [--only submit chained pair loop map compute]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from operator import add
from typing import Any

import dask
from distributed import Client, LocalCluster

from dask_serverless import ServerlessCluster

WORKERS = 2
MAPPED = 10
LOOPED = 10
PAUSE_SECONDS = 0.025
#: No two calls may ask for the same key: the second would find its answer there.
numbers = itertools.count()


def increment(number: int) -> int:
    return number + 1


def submit(client: Client) -> Callable[[], Any]:
    number = next(numbers)
    return lambda: client.submit(increment, number, pure=False).result()


def chained(client: Client) -> Callable[[], Any]:
    first = client.submit(increment, next(numbers), pure=False)
    first.result()
    return lambda: client.submit(increment, first, pure=False).result()


def pair(client: Client) -> Callable[[], Any]:
    number = next(numbers)
    return lambda: client.submit(increment, client.submit(increment, number, pure=False), pure=False).result()


def loop(client: Client) -> Callable[[], Any]:
    return lambda: [client.submit(increment, next(numbers), pure=False).result() for _ in range(LOOPED)]


def mapped(client: Client) -> Callable[[], Any]:
    first = next(numbers)
    return lambda: client.gather(client.map(increment, range(first, first + MAPPED), pure=False))


def compute(client: Client) -> Callable[[], Any]:
    task = dask.delayed(increment, pure=False)
    total = dask.delayed(add, pure=False)(task(next(numbers)), task(next(numbers)))
    return lambda: client.compute(total, sync=True)


PROGRAMS: Mapping[str, tuple[str, Callable[[Client], Callable[[], Any]]]] = {
    "submit": ("submit(...).result()", submit),
    "chained": ("the same with a future as input", chained),
    "pair": ("two submits, one waiting for the other", pair),
    "loop": (f"{LOOPED} times submit(...).result() in a row", loop),
    "map": (f"client.map of {MAPPED}, and gather", mapped),
    "compute": ("compute of 3 delayed tasks", compute),
}


def measure(
    program: Callable[[Client], Callable[[], Any]], clients: Mapping[str, Client], calls: int
) -> dict[str, list[float]]:
    """Let the clients take turns, and return the milliseconds of each call."""
    taken: dict[str, list[float]] = {name: [] for name in clients}
    for turn in range(calls + calls // 10):
        for name, client in clients.items():
            run = program(client)
            time.sleep(PAUSE_SECONDS)
            begun = time.perf_counter()
            run()
            seconds = time.perf_counter() - begun
            if turn >= calls // 10:  # the first ones warm up
                taken[name].append(seconds * 1000)
    return taken


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=200, help="timed calls of each program and cluster (default: 200)")
    parser.add_argument("--quick", action="store_true", help="a few calls: does it run at all?")
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    options = parser.parse_args(arguments)
    calls = 10 if options.quick else options.calls
    if calls < 2:
        parser.error("--calls must be 2 or more")
    rows = []
    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0") as local_cluster,
        Client(local_cluster, set_as_default=False) as local,
        ServerlessCluster(n_workers=WORKERS) as serverless_cluster,
        Client(serverless_cluster, set_as_default=False) as serverless,
    ):
        for name in options.only:
            title, program = PROGRAMS[name]
            taken = measure(program, {"local": local, "serverless": serverless}, calls)
            cells = [title]
            for milliseconds in taken.values():
                cuts = statistics.quantiles(milliseconds, n=100, method="inclusive")
                cells += [f"{cuts[49]:.1f}", f"{cuts[89]:.1f}", f"{cuts[98]:.1f}"]
            ratio = statistics.median(taken["serverless"]) / statistics.median(taken["local"])
            rows.append([*cells, f"{ratio:.2f}"])
            print(f"{title}: {ratio:.2f}", file=sys.stderr, flush=True)
    print(f"`local` is LocalCluster(n_workers={WORKERS}, threads_per_worker=1), `serverless` is")
    print(f"ServerlessCluster(n_workers={WORKERS}); {calls} calls each, in turns; milliseconds.\n")
    header = ["", *(f"{who} {what}" for who in ("local", "serverless") for what in ("median", "p90", "p99"))]
    header.append("serverless / local")
    print("| " + " | ".join(header) + " |\n| --- |" + " ---: |" * (len(header) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
