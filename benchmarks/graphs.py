"""Workloads that are graphs and nothing else: trees, a chain, fans. What a task costs shows here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import dask

from benchmarks import tasks
from benchmarks.contenders import Contender
from benchmarks.workloads import Workload


def pairwise(numbers: Iterable[Any], join: Callable[[Any, Any], Any]) -> Any:
    """Join neighbours until one is left; who has no neighbour waits for the next level."""
    level = list(numbers)
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [join(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return level[0]


def tree(contender: Contender, turn: int, *, leaves: int, **_: Any) -> Callable[[], int]:
    """Add numbers pairwise, each of them a task: 2 * leaves - 1 tasks, one answer."""
    task = dask.delayed(tasks.leaf, pure=False)
    found = pairwise([task(number) for number in range(leaves)], dask.delayed(tasks.add, pure=False))
    return lambda: contender.compute(found)


def slow_tree(contender: Contender, turn: int, *, numbers: int, seconds: float, **_: Any) -> Callable[[], int]:
    """Add plain numbers pairwise, each addition with a sleep: numbers - 1 tasks. (The papers' tree reduction.)"""
    task = dask.delayed(tasks.slow_add, pure=False)
    found = pairwise(range(numbers), lambda left, right: task(left, right, seconds))
    return lambda: contender.compute(found)


def chain(contender: Contender, turn: int, *, length: int) -> Callable[[], int]:
    """Return tasks in a row, which leave nothing to distribute."""
    names = [f"link-{turn}-{number}" for number in range(length)]
    graph: dict[str, Any] = {names[0]: (tasks.leaf, 0)}
    graph.update((name, (tasks.increment, above)) for above, name in zip(names, names[1:], strict=False))
    return lambda: contender.get(graph, names[-1])


def fan(contender: Contender, turn: int, *, width: int) -> Callable[[], int]:
    """Fan one task out to many, and all of those into one."""
    root = dask.delayed(tasks.leaf, pure=False)(turn)
    task = dask.delayed(tasks.add, pure=False)
    middle = [task(root, number) for number in range(width)]
    found = dask.delayed(tasks.total, pure=False)(*middle)
    return lambda: contender.compute(found) - turn * width


def fan_by_lithops(contender: Any, turn: int, *, width: int) -> Callable[[], int]:
    return lambda: contender.map_reduce(tasks.leaf, range(width), sum)


def naps(contender: Contender, turn: int, *, width: int, seconds: float) -> Callable[[], int]:
    """Let many tasks sleep that know nothing of one another, and add up what they return."""
    task = dask.delayed(tasks.nap, pure=False)
    found = dask.delayed(tasks.total, pure=False)(*(task(number, seconds) for number in range(width)))
    return lambda: contender.compute(found)


def naps_by_lithops(contender: Any, turn: int, *, width: int, seconds: float) -> Callable[[], int]:
    return lambda: contender.map_reduce(tasks.nap, [(number, seconds) for number in range(width)], sum)


MINUTES = "minutes for each turn; what a task costs it is in `tree`"


def sums_to(name: str) -> Callable[[Mapping[str, Any], Any], bool]:
    return lambda size, found: found == sum(range(size[name]))


def sleeping_tree(milliseconds: int, numbers: int) -> Workload:
    seconds = milliseconds / 1000
    return Workload(
        name=f"tree-{milliseconds}ms",
        title=f"tree reduction of {{numbers:,}} numbers, {milliseconds} ms each",
        full={"numbers": numbers, "seconds": seconds},
        quick={"numbers": max(4, int(2 / seconds)), "seconds": seconds},
        build=slow_tree,
        tasks=lambda size: size["numbers"] - 1,
        holds=sums_to("numbers"),
        known="the sum of the numbers",
        without={"sync": "it would sleep one task after the other"},
    )


def no_op_tree(name: str, leaves: int, quick: int, without: Mapping[str, str] | None = None) -> Workload:
    return Workload(
        name=name,
        title="tree reduction of {leaves:,} leaves, no-ops",
        full={"leaves": leaves},
        quick={"leaves": quick},
        build=tree,
        tasks=lambda size: 2 * size["leaves"] - 1,
        holds=sums_to("leaves"),
        known="the sum of the numbers",
        without=without or {},
    )


WORKLOADS = [
    no_op_tree("tree", 4_096, 256),
    sleeping_tree(100, 512),
    sleeping_tree(250, 256),
    sleeping_tree(500, 128),
    no_op_tree("tree-100k", 50_000, 1_000, dict.fromkeys(("local", "threads", "ray"), MINUTES)),
    Workload(
        name="chain",
        title="chain of {length:,} tasks",
        full={"length": 10_000},
        quick={"length": 500},
        build=chain,
        tasks=lambda size: size["length"],
        holds=lambda size, found: found == size["length"] - 1,
        known="how often one was added",
    ),
    Workload(
        name="fan",
        title="fan-out to {width:,} tasks, fan-in of all",
        full={"width": 2_000},
        quick={"width": 100},
        build=fan,
        tasks=lambda size: size["width"] + 2,
        holds=sums_to("width"),
        known="the sum of the numbers",
        others={"lithops": fan_by_lithops},
    ),
    Workload(
        name="naps",
        title="{width:,} independent tasks of 100 ms sleep",
        full={"width": 400, "seconds": 0.1},
        quick={"width": 20, "seconds": 0.1},
        build=naps,
        tasks=lambda size: size["width"] + 1,
        holds=sums_to("width"),
        known="the sum of the numbers",
        others={"lithops": naps_by_lithops},
        without={"sync": "it would sleep one task after the other"},
    ),
]
