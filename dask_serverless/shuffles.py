"""Peer-to-peer shuffles and rechunks in a graph: which tasks they are made of, and where these run.

A shuffle is a barrier, what the barrier waits for (transfers), and what waits for it (unpacks). Fusion may have merged
a transfer with what comes before it, even with the unpack of another shuffle, and left an alias in its place. A barrier
itself is never fused.

Rules kept here:

* A shuffle runs in executors as a whole or on Dask workers as a whole: they cannot shuffle with one another.
* What barriers and transfers return means something to the same job only. No other job builds on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from dask._task_spec import Alias, GraphNode
from distributed.shuffle._core import P2PBarrierTask, ShuffleSpec

Key: TypeAlias = Any  # as in `dask_graph`


def _barriers(tasks: Mapping[Key, GraphNode]) -> dict[Key, P2PBarrierTask]:
    return {key: task for key, task in tasks.items() if isinstance(task, P2PBarrierTask)}


def pin_whole_shuffles(tasks: Mapping[Key, GraphNode], pinned: dict[Key, str]) -> None:
    """Pin every task of a peer-to-peer shuffle of which one is pinned.

    Executors and Dask workers cannot shuffle with one another, so a shuffle is the one's or the others' as a whole;
    and so are shuffles that share a task, as the two of a merge do.
    """
    members = shuffle_members(tasks)
    by_barrier: dict[Key, list[Key]] = {}
    for key, barriers in members.items():
        for barrier in barriers:
            by_barrier.setdefault(barrier, []).append(key)
    stack = [barrier for key in pinned for barrier in members.get(key, ())]
    while stack:
        for key in by_barrier.pop(stack.pop(), ()):
            pinned.setdefault(key, "peer-to-peer shuffle with a pinned task")
            stack += members[key]


def shuffle_members(tasks: Mapping[Key, GraphNode]) -> dict[Key, list[Key]]:
    """Return the tasks of shuffles, each with the barriers of those that it takes part in."""
    barriers = _barriers(tasks)
    members: dict[Key, list[Key]] = {key: [key] for key in barriers}
    if not members:
        return members
    for barrier in barriers:
        for key in tasks[barrier].dependencies:
            while key in tasks and barrier not in members.setdefault(key, []):
                members[key].append(barrier)
                task = tasks[key]
                if isinstance(task, Alias):
                    key = task.target
    for key, task in tasks.items():
        if key not in barriers and not task.dependencies.isdisjoint(barriers):
            found = members.setdefault(key, [])
            found += sorted((task.dependencies & barriers.keys()).difference(found), key=str)
    return members


def shuffle_internals(tasks: Mapping[Key, GraphNode]) -> set[Key]:
    """Return the barriers and transfers of shuffles."""
    barriers = _barriers(tasks)
    return set(barriers).union(*(task.dependencies for task in barriers.values()))


def shuffle_specs(tasks: Mapping[Key, GraphNode]) -> dict[Key, list[ShuffleSpec]]:
    """Return, for each transfer and unpack, the specs of its shuffles, which Dask keeps in the barriers."""
    barriers = _barriers(tasks)
    return {
        key: [barriers[barrier].spec for barrier in found]
        for key, found in shuffle_members(tasks).items()
        if key not in barriers
    }
