"""Cut a numbered graph: into segments that are stored, and start tasks into groups that are run.

Segments are blunt (every 256 numbers), because a segment is only a parcel: who reads it may skip
what it does not need. Groups matter more: each is the work of one executor's first invocation, and
wherever a group ends, values must travel. So the cuts are put where the load is even, and within
that, where a piece of the graph has just been finished.

Groups only begin a computation. An executor keeps, gives away or is given tasks as it goes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from dask_serverless.plan.graph import Graph
from dask_serverless.plan.homes import SHARED, find_homes
from dask_serverless.plan.paths import heights, longest_first
from dask_serverless.plan.sharing import Sharing
from lambda_worker.core.schedule import HINT_SEGMENTS_MAX, SEGMENT_TASKS, Edges, segment_of

#: Starts of which the longest takes no more than this times the shortest all take as long.
EVEN_MAX = 1.1
#: How much more than what is fair a group may have, to keep together what belongs together.
UNEVEN_MAX = 0.25


@dataclass(frozen=True, slots=True)
class Group:
    """Start tasks for one executor.

    Parameters
    ----------
    starts
        The tasks to begin with: those of much longer paths first, else ascending.
    segments
        Segments worth reading at once, ascending, at most `HINT_SEGMENTS_MAX`.
    tasks
        How many tasks only these starts lead to, themselves included.
    home
        Ranges of tasks that had better run where this group runs, see `dask_serverless.plan.homes`.
    """

    starts: Sequence[int]
    segments: Sequence[int]
    tasks: int
    home: Sequence[int] = ()


def edges(graph: Graph) -> Iterator[Edges]:
    """Yield the edges of each segment, in order.

    Examples
    --------
    >>> from dask_serverless.plan import number
    >>> graph, _ = number({"a": (), "b": (), "c": ("a", "b")}, ["c"], retries={"b": 2})
    >>> list(edges(graph))
    [Edges(first=0, parents=[(), (), [0, 1]], children=[[2], [2], []], fan_ins={2: 2}, visible=frozenset({2}), \
retries={1: 2}, classes={}, prefixes=())]
    """
    parents, children = graph.parents, graph.children
    fan_ins = {task: len(row) for task, row in enumerate(parents) if len(row) > 1}
    visible = sorted(graph.visible)
    retries = sorted(graph.retries.items())
    for first in range(0, len(graph), SEGMENT_TASKS):
        end = first + SEGMENT_TASKS
        rows = children[first:end]
        yield Edges(
            first=first,
            parents=parents[first:end],
            children=rows,
            fan_ins={child: fan_ins[child] for row in rows for child in row if child in fan_ins} if fan_ins else {},
            visible=frozenset(visible[bisect_left(visible, first) : bisect_left(visible, end)]),
            retries=dict(retries[bisect_left(retries, (first,)) : bisect_left(retries, (end,))]),
            classes=_classes(graph, first, end) if graph.classes else {},
        )


def _classes(graph: Graph, first: int, end: int) -> dict[int, int]:
    """Return the function classes of the tasks of a segment, and of their children."""
    rows = graph.children[first:end]
    tasks = {*range(first, first + len(rows)), *(child for row in rows for child in row)}
    return {task: graph.classes[task] for task in sorted(tasks & graph.classes.keys())}


def owners(graph: Graph, groups: Sequence[Iterable[int]]) -> list[int]:
    """Return for each task the only group that leads to it, or `SHARED`.

    Parameters
    ----------
    groups
        The tasks that each group begins with. They may be tasks with parents (in a recomputation).

    Examples
    --------
    >>> from dask_serverless.plan import number
    >>> graph, keys = number({"a": (), "b": ("a",), "c": (), "d": ("b", "c")}, ["d"])
    >>> dict(zip(keys, owners(graph, [[0], [2]])))
    {'a': 0, 'b': 0, 'c': 1, 'd': -1}
    """
    owner = [SHARED] * len(graph)
    for group, starts in enumerate(groups):
        for task in starts:
            owner[task] = group
    for task, row in enumerate(graph.parents):
        if not row or owner[task] != SHARED:
            continue
        common = owner[row[0]]
        if common != SHARED and len(row) > 1:
            for parent in row:
                if owner[parent] != common:
                    common = SHARED
                    break
        owner[task] = common
    return owner


def assign_starts(
    graph: Graph,
    sharing: Sharing,
    starts: Iterable[int] | None = None,
    near: Mapping[int, Hashable] = {},  # noqa: B006
) -> list[Group]:
    """Cut the start tasks into groups.

    Those whose inputs are in one place are a group, if they are about as many as is fair, or fewer; such groups come
    first. All others are cut in number order, into contiguous groups.

    Parameters
    ----------
    sharing
        Into how many at most, and how evenly.
    starts
        The tasks to begin with now; all start tasks if None.
    near
        Where the inputs of start tasks are; nothing of those of which it is not known.

    Examples
    --------
    >>> from dask_serverless.plan import Sharing, number
    >>> graph, _ = number({"a": (), "b": (), "ab": ("a", "b"), "c": (), "d": ("ab", "c")}, ["d"])
    >>> assign_starts(graph, Sharing(2))
    [Group(starts=[0, 1], segments=[0], tasks=3, home=[4, 5]), Group(starts=[3], segments=[0], tasks=1, home=[])]
    """
    chosen = list(graph.starts) if starts is None else sorted(set(starts))
    if not chosen:
        return []
    cut_starts = _near_groups(chosen, sharing, near) if near else []
    placed = {start for group in cut_starts for start in group}
    if rest := [start for start in chosen if start not in placed]:
        left = sharing.part(len(rest), len(chosen))
        left = replace(left, groups=min(left.groups, max(1, sharing.groups - len(cut_starts))))
        cuts = _cuts(graph, rest, left)
        cut_starts += [rest[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(rest)], strict=True)]

    tasks = [0] * len(cut_starts)
    segments: list[list[int]] = [[] for _ in cut_starts]
    owner = owners(graph, cut_starts)
    for task, group in enumerate(owner):
        if group == SHARED:
            continue
        tasks[group] += 1
        seen = segments[group]
        segment = segment_of(task)
        if (not seen or seen[-1] != segment) and len(seen) < HINT_SEGMENTS_MAX:
            seen.append(segment)
    # Groups of a part of the starts only: the others may have found homes for the same tasks.
    whole = len(chosen) == len(graph.starts) and len(cut_starts) > 1
    nbytes, seconds = _expected(sharing)
    places = find_homes(graph, owner, len(cut_starts), nbytes) if whole else [[] for _ in cut_starts]
    if len(cut_starts) > 1:  # one that runs everything may do so in any order
        height = heights(graph, seconds)
        cut_starts = [longest_first(each, height) for each in cut_starts]
    return [Group(*fields) for fields in zip(cut_starts, segments, tasks, places, strict=True)]


def assign_by_class(
    graph: Graph,
    sharing: Sharing,
    starts: Iterable[int] | None = None,
    near: Mapping[int, Hashable] = {},  # noqa: B006
) -> list[tuple[int, Group]]:
    """Cut start tasks into groups that are of one function class each; return the class of each group, too.

    The largest class comes first: what needs more most likely takes longer.

    Examples
    --------
    >>> from dask_serverless.plan import Sharing, number
    >>> graph, _ = number({"a": (), "b": (), "c": ()}, ["a", "b", "c"], classes={"b": 1})
    >>> [(function_class, group.starts) for function_class, group in assign_by_class(graph, Sharing(3))]
    [(1, [1]), (0, [0]), (0, [2])]
    """
    by_class: dict[int, list[int]] = {}
    chosen = sorted(graph.starts if starts is None else starts)
    for start in chosen:
        by_class.setdefault(graph.classes.get(start, 0), []).append(start)
    return [
        (function_class, group)
        for function_class, tasks in sorted(by_class.items(), reverse=True)
        for group in assign_starts(graph, sharing.part(len(tasks), len(chosen)), tasks, near)
    ]


def _near_groups(starts: Sequence[int], sharing: Sharing, near: Mapping[int, Hashable]) -> list[list[int]]:
    """Group start tasks by where their inputs are, as far as that leaves nobody with much more than others."""
    groups: dict[Hashable, list[int]] = {}
    for start in starts:
        if start in near:
            groups.setdefault(near[start], []).append(start)
    if len(groups) > sharing.groups:
        return []
    most = (1 + UNEVEN_MAX) * len(starts) / (sharing.fair or sharing.groups)
    return [group for group in groups.values() if len(group) <= most]


def _cuts(graph: Graph, starts: Sequence[int], sharing: Sharing) -> list[int]:
    """Return at how many starts each group but the last ends.

    A start weighs what only it leads to: the seconds of these tasks, or their number. A cut may move a little from the
    fair place, to where the most shared tasks lie between two starts: there a subtree has just been finished, and the
    parents of few fan-ins are parted.
    """
    groups = min(sharing.groups, len(starts))
    owner = owners(graph, [(task,) for task in starts])
    weights = [0.0] * len(starts)
    _, seconds = _expected(sharing)
    gaps = [0] * len(starts)  # how many shared tasks lie between each start and the one before
    begins = iter(enumerate(starts))
    index, start = next(begins)
    for task, group in enumerate(owner):
        if group != SHARED:
            weights[group] += 1.0 if seconds is None else seconds[task]
        elif task < start:
            gaps[index] += 1
        if task == start:
            index, start = next(begins, (0, SHARED))

    before = [0.0, *accumulate(weights)]  # the weight of all starts before each
    total = before[-1]
    even = seconds is not None and max(weights) <= EVEN_MAX * min(weights)
    each = total / len(starts) if even else 0.0
    slack = total / groups * UNEVEN_MAX
    cuts: list[int] = []
    ends = sharing.ends(total, groups, each)
    groups = len(ends) + 1
    for group, ideal in enumerate(ends, start=1):
        lowest = cuts[-1] + 1 if cuts else 1
        highest = len(starts) - (groups - group)  # no group may be left empty
        low = min(max(bisect_left(before, ideal - slack), lowest), highest)
        high = min(max(bisect_right(before, ideal + slack), low + 1), highest + 1)
        if high == low + 1 and low > lowest and abs(before[low - 1] - ideal) < abs(before[low] - ideal):
            low, high = low - 1, low  # no start ends near the fair place: take the nearer side
        cuts.append(max(range(low, high), key=lambda cut: sharing.worth(gaps[cut], abs(before[cut] - ideal))))
    return cuts


def _expected(sharing: Sharing) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """Return bytes and seconds of each task, if they are known."""
    estimate = sharing.estimate
    return (None, None) if estimate is None else (estimate.nbytes, estimate.seconds)
