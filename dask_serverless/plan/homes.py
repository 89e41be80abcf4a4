"""Find out where the tasks at which executors meet had better run. Pure.

Each such fan-in gets a *home* among the groups that a computation begins with: the group whose values
are worth most where they are. Its executor holds its own large values back for the fan-in, and the
others send theirs (see `lambda_worker.core.held`).

How many tasks read a value is known: one with many readers travels in any case, one with a single reader need not. So
every input votes for the place where it is made, with a weight of one by its readers, times its size if values like
it have been seen before. (In a product of a matrix and a thin one, the
tiles of the first have fewer readers than those of the thin one; in a QR decomposition, the tall factors have
fewer than the small one.)
"""

from __future__ import annotations

from collections.abc import Sequence

from dask_serverless.plan.graph import Graph

#: The owner of a task that more than one group leads to (or none of them).
SHARED = -1

#: Ranges that one group is told, at most.
RANGES_MAX = 512


def find_homes(
    graph: Graph, owner: Sequence[int], groups: int, nbytes: Sequence[float] | None = None
) -> list[list[int]]:
    """Return for each group the shared fan-ins that are at home there.

    Parameters
    ----------
    graph
        All tasks, numbered.
    owner
        For each task the only group that leads to it, or `SHARED`.
    groups
        How many groups there are.
    nbytes
        The size of each task's value (0: it is small). None: that is not known.

    Returns
    -------
    list of list of int
        For each group ascending numbers ``[first, end, first, end, ...]``: of tasks ``first <= task < end``, those
        that groups share are at home there.

    Examples
    --------
    Two groups make tiles a and b, and c and d; the first one also makes something small for all four products, which
    run where the tiles are:

    >>> from dask_serverless.plan import number, owners
    >>> tiles = {tile: () for tile in "abcd"}
    >>> products = {f"{tile}*": (tile, "small") for tile in tiles}
    >>> graph, keys = number({**tiles, "small": (), **products}, list(products))
    >>> keys
    ['a', 'small', 'a*', 'b', 'b*', 'c', 'c*', 'd', 'd*']
    >>> find_homes(graph, owners(graph, [[0, 1, 3], [5, 7]]), 2)
    [[], [6, 9]]
    """
    shared = [task for task, group in enumerate(owner) if group == SHARED and graph.parents[task]]
    if not shared:
        return [[] for _ in range(groups)]
    home = list(owner)
    fan_ins: list[int] = []
    for position, task in enumerate(shared):
        parents = graph.parents[task]
        if len(parents) == 1:
            home[task] = home[parents[0]]
            continue
        fan_ins.append(task)
        home[task] = _elect(graph, owner, home, parents, position * groups // len(shared), nbytes)
    ranges: list[list[int]] = [[] for _ in range(groups)]
    previous = SHARED
    for task in fan_ins:
        group = home[task]
        if group != previous and group != SHARED:
            ranges[group] += [task, task + 1]
        elif group != SHARED:
            ranges[group][-1] = task + 1
        previous = group
    return [each if len(each) <= 2 * RANGES_MAX else _longest(each) for each in ranges]


def _elect(
    graph: Graph,
    owner: Sequence[int],
    home: Sequence[int],
    parents: Sequence[int],
    even: int,
    nbytes: Sequence[float] | None,
) -> int:
    """Choose the group with the most votes; of several, `even`, which deals out tasks evenly and in order."""
    votes: dict[int, float] = {}
    for parent in parents:
        group = home[parent]
        if group != SHARED:
            # What grew out of a group's own starts is more likely to be large than what is shared by all.
            weight = 1.0 if owner[parent] != SHARED else 0.75
            if nbytes is not None:
                weight *= max(1.0, nbytes[parent])
            votes[group] = votes.get(group, 0.0) + weight / len(graph.children[parent])
    if not votes:
        return even
    most = max(votes.values())
    best = [group for group, each in votes.items() if each > 0.999 * most]
    return best[0] if len(best) == 1 else even


def _longest(ranges: Sequence[int]) -> list[int]:
    """Leave out the shortest ranges."""
    pairs = sorted(zip(ranges[::2], ranges[1::2], strict=True), key=lambda pair: pair[0] - pair[1])[:RANGES_MAX]
    return [number for pair in sorted(pairs) for number in pair]
