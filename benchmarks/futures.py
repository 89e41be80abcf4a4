"""Workloads that need futures, hence a client: every task is visible, or waits for the one before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask

from benchmarks import tasks
from benchmarks.contenders import Contender
from benchmarks.workloads import Workload

NO_FUTURES = {"ray": "its Dask scheduler computes graphs; it has no futures of Dask's"}


def mapped(contender: Contender, turn: int, *, count: int) -> Callable[[], int]:
    """Map a small function over numbers and gather what it returns. (Without a client: delayed tasks.)"""
    client = contender.client
    if client is not None:
        return lambda: sum(client.gather(client.map(tasks.increment, range(count), pure=False)))
    task = dask.delayed(tasks.increment, pure=False)
    made = [task(number) for number in range(count)]
    return lambda: sum(contender.compute(*made))


def submitted(contender: Contender, turn: int, *, calls: int) -> Callable[[], int]:
    """Submit one task after another, each when the result of the one before is there."""
    client = contender.client
    if client is None:
        return lambda: [contender.compute(dask.delayed(tasks.increment, pure=False)(i)) for i in range(calls)][-1]
    return lambda: [client.submit(tasks.increment, i, pure=False).result() for i in range(calls)][-1]


def submitted_by_lithops(contender: Any, turn: int, *, calls: int) -> Callable[[], int]:
    return lambda: [contender.call(tasks.increment, i) for i in range(calls)][-1]


WORKLOADS = [
    Workload(
        name="map",
        title="client.map of {count:,} tasks, and gather",
        full={"count": 10_000},
        quick={"count": 200},
        build=mapped,
        tasks=lambda size: size["count"],
        holds=lambda size, found: found == sum(range(size["count"])) + size["count"],
        known="the sum of what is returned",
        without={**NO_FUTURES, "lithops": "a process for each of 10,000 calls takes minutes; see fan, naps and submit"},
    ),
    Workload(
        name="submit",
        title="{calls} times submit(...).result()",
        full={"calls": 200},
        quick={"calls": 20},
        build=submitted,
        tasks=lambda size: size["calls"],
        holds=lambda size, found: found == size["calls"],
        known="what the last call returns",
        others={"lithops": submitted_by_lithops},
        without=NO_FUTURES,
    ),
]
