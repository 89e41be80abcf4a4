"""Longest paths: what is begun first. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dask_serverless.plan.graph import Graph


def heights(graph: Graph, seconds: Sequence[float] | None = None) -> list[float]:
    """Return for each task how long the longest path from it on is, itself included.

    Parameters
    ----------
    graph
        All tasks, numbered.
    seconds
        How long each task takes. None: that is not known, and they are counted.

    Examples
    --------
    >>> from dask_serverless.plan import number
    >>> graph, _ = number({"a": (), "b": ("a",), "c": (), "d": ("b", "c")}, ["d"])
    >>> heights(graph)
    [3.0, 2.0, 2.0, 1.0]
    """
    found = [1.0] * len(graph) if seconds is None else list(seconds[: len(graph)])
    children = graph.children
    for task in range(len(graph) - 1, -1, -1):
        row = children[task]
        if row:
            found[task] += found[row[0]] if len(row) == 1 else max([found[child] for child in row])
    return found


def longest_first(starts: Sequence[int], height: Sequence[float]) -> list[int]:
    """Put the starts of much longer paths in front; those of about the same length stay in order.

    Who begins a long path last ends alone, with nothing left to share. But number order is depth-first and keeps
    memory low; so only a path of twice the length counts as longer.

    Examples
    --------
    >>> longest_first([0, 1, 2, 3], [1.0, 9.0, 1.0, 8.0])
    [1, 3, 0, 2]
    """
    return sorted(starts, key=lambda start: -math.frexp(height[start])[1])
