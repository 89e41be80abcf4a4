"""Say in words what a plan will do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dask_serverless.plan.graph import Graph
from dask_serverless.plan.partition import Group
from lambda_worker.core.schedule import SEGMENT_TASKS


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is worth knowing of a plan before it is run; `str` of it is for people.

    Parameters
    ----------
    tasks, edges, starts, visible, externals, segments
        How many.
    fan_ins, fan_outs
        How many tasks have more than one parent, more than one child.
    fan_in_max, fan_out_max
        The most parents, the most children, that one task has.
    depth
        Tasks on the longest path: no number of executors makes it shorter.
    groups
        How many tasks only each group leads to.
    shared
        Tasks that several groups lead to: whoever arrives last runs them.
    """

    tasks: int
    edges: int
    starts: int
    visible: int
    externals: int
    segments: int
    fan_ins: int
    fan_outs: int
    fan_in_max: int
    fan_out_max: int
    depth: int
    groups: Sequence[int]
    shared: int

    def __str__(self) -> str:
        lines = [
            f"{count_of(self.tasks, 'task')} and {count_of(self.edges, 'edge')} "
            f"in {count_of(self.segments, 'segment')}",
            f"{count_of(self.starts, 'start')} ({self.externals} given from elsewhere), "
            f"{count_of(self.visible, 'visible key')}",
            f"{count_of(self.fan_ins, 'fan-in')} (widest {self.fan_in_max}), "
            f"{count_of(self.fan_outs, 'fan-out')} (widest {self.fan_out_max})",
            f"critical path: {count_of(self.depth, 'task')}, so at most {self.tasks / max(self.depth, 1):.1f} times "
            "faster than one after the other (if all tasks take as long)",
        ]
        if self.groups:
            sizes = sorted(self.groups)
            lines.append(
                f"{count_of(len(sizes), 'group')} to begin with, of {sizes[0]} to {sizes[-1]} tasks "
                f"(median {sizes[len(sizes) // 2]}); {count_of(self.shared, 'task')} beyond them"
            )
        return "\n".join(lines)


def explain(graph: Graph, groups: Sequence[Group] = ()) -> Explanation:
    """Describe a graph and how it is cut.

    Examples
    --------
    >>> from dask_serverless.plan import Sharing, assign_starts, number
    >>> graph, _ = number({"a": (), "b": (), "c": ("a", "b")}, ["c"])
    >>> print(explain(graph, assign_starts(graph, Sharing(2))))
    3 tasks and 2 edges in 1 segment
    2 starts (0 given from elsewhere), 1 visible key
    1 fan-in (widest 2), 0 fan-outs (widest 1)
    critical path: 2 tasks, so at most 1.5 times faster than one after the other (if all tasks take as long)
    2 groups to begin with, of 1 to 1 tasks (median 1); 1 task beyond them
    """
    fan_in = [len(row) for row in graph.parents]
    fan_out = [len(row) for row in graph.children]
    sizes = [group.tasks for group in groups]
    return Explanation(
        tasks=len(graph),
        edges=sum(fan_in),
        starts=len(graph.starts),
        visible=len(graph.visible),
        externals=len(graph.externals),
        segments=-(-len(graph) // SEGMENT_TASKS),
        fan_ins=sum(degree > 1 for degree in fan_in),
        fan_outs=sum(degree > 1 for degree in fan_out),
        fan_in_max=max(fan_in, default=0),
        fan_out_max=max(fan_out, default=0),
        depth=_depth(graph),
        groups=sizes,
        shared=len(graph) - sum(sizes),
    )


def _depth(graph: Graph) -> int:
    depths: list[int] = []
    for row in graph.parents:
        depths.append(1 + max([depths[parent] for parent in row], default=0))
    return max(depths, default=0)


def count_of(amount: int, noun: str) -> str:
    """Say how many of something there are."""
    return f"{amount} {noun}" if amount == 1 else f"{amount} {noun}s"
