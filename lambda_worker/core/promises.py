"""What an executor alone will complete, and the fan-ins at which it meets others. Pure.

A task is **promised** when all its parents are done or promised here: nobody else can complete it. A fan-in
whose parents are all promised here therefore needs no store at all. One that also has parents elsewhere is
shared: once every parent promised here is done, they **arrive** at the store.

Promises only save round trips. Who does not know (yet) that a parent is promised arrives early; that is never
wrong, since the store holds a set of edges, not a count.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass, field

from lambda_worker.core.schedule import segment_of
from lambda_worker.core.segments import Segments


@dataclass(slots=True)
class _FanIn:
    """What this executor knows of a task with several parents."""

    parents: int  # the in-degree
    expected: int = 0  # parents done or promised here
    arrived: int = 0  # how many of `done` have been told to the store
    done: list[int] = field(default_factory=list)


class Promises:
    """Promised tasks and open fan-ins.

    Parameters
    ----------
    segments
        What is known of the graph.
    function_class
        Tasks of a larger class are never promised.
    without
        Tasks that are not run here.
    settled
        Tasks that wait for nothing here.

    Attributes
    ----------
    unexplored
        Tasks to be promised once their segment is here, by segment.
    arrivals
        What is to be told to the store: (child, parent, in-degree of the child).

    Examples
    --------
    Tasks 2 and 3 each have two parents. Task 0 alone is promised here, so it arrives at 2; both parents of 3 are:

    >>> from lambda_worker.core.schedule import Edges
    >>> segments = Segments()
    >>> edges = Edges(0, [[], [], [0, 9], [0, 1]], [[2, 3], [3], [], []], fan_ins={2: 2, 3: 2})
    >>> segments.add(0, edges)
    >>> promises = Promises(segments)
    >>> promises.promise([0, 1])
    >>> promises.meet(2, 0, 2), promises.meet(3, 0, 2), promises.arrivals
    (False, False, [(2, 0, 2)])
    >>> promises.meet(3, 1, 2), promises.arrivals
    (True, [(2, 0, 2)])
    """

    def __init__(
        self,
        segments: Segments,
        function_class: int = 0,
        without: Set[int] = frozenset(),
        settled: Set[int] = frozenset(),
    ) -> None:
        self.unexplored: dict[int, dict[int, None]] = {}
        self.arrivals: list[tuple[int, int, int]] = []
        self._segments = segments
        self._function_class = function_class
        self._without = without
        self._settled = settled
        self._promised: set[int] = set()
        self._fan_ins: dict[int, _FanIn] = {}
        self._claimed: set[int] = set()

    def promise(self, tasks: Iterable[int]) -> None:
        """Note that tasks will be done here, and whatever follows from it (iteratively)."""
        stack = list(tasks)
        promised = self._promised
        here = self._segments.here
        while stack:
            task = stack.pop()
            if task in promised or task in self._without:
                continue
            edges = here.get(segment_of(task))
            if edges is None:
                self.unexplored.setdefault(segment_of(task), {})[task] = None
                continue
            promised.add(task)
            fan_ins = edges.fan_ins
            classes = edges.classes
            for child in edges.children[task - edges.first]:
                if child in self._settled:
                    continue
                if child in fan_ins:
                    fan_in = self._fan_ins.get(child) or self._open(child, fan_ins[child])
                    fan_in.expected += 1
                    # Who has arrived must wait for the answer: another executor may have run the child, after a
                    # death, from parents that were run here once more.
                    if fan_in.expected < fan_in.parents or fan_in.arrived:
                        continue
                if not classes or classes.get(child, 0) <= self._function_class:
                    stack.append(child)

    def explore(self, segment: int) -> None:
        """Make the promises that waited for a segment, which is here now."""
        self.promise(self.unexplored.pop(segment, ()))

    def unpromise(self, tasks: Iterable[int]) -> None:
        """Undo `promise` for tasks given away; fan-ins that no longer wait for them arrive."""
        stack = list(tasks)
        while stack:
            task = stack.pop()
            edges = self._segments.here.get(segment_of(task))
            if edges is None:
                # Its segment may come yet, but the promise must not be made then.
                self.unexplored.get(segment_of(task), {}).pop(task, None)
            if edges is None or task not in self._promised:
                continue
            self._promised.discard(task)
            for child in edges.children[task - edges.first]:
                stack.append(child)
                fan_in = self._fan_ins.get(child)
                if fan_in is not None:
                    fan_in.expected -= 1
                    if fan_in.done and len(fan_in.done) >= fan_in.expected:
                        self._arrive(child, fan_in)

    def meet(self, child: int, parent: int, parents: int) -> bool:
        """Note that a parent of a fan-in is done here; tell whether the child is this executor's own by that."""
        fan_in = self._fan_ins.get(child) or self._open(child, parents)
        done = fan_in.done
        done.append(parent)
        if len(done) == fan_in.parents and not fan_in.arrived:
            del self._fan_ins[child]
            self._claimed.add(child)
            return True
        if len(done) >= fan_in.expected:
            self._arrive(child, fan_in)
        return False

    def win(self, child: int) -> bool:
        """Note that the store says a child is this executor's own; tell whether that is news."""
        if child in self._claimed:
            return False
        self._claimed.add(child)
        self._fan_ins.pop(child, None)
        return True

    def take_arrivals(self) -> list[tuple[int, int, int]]:
        """Hand out what is to be told to the store."""
        arrivals, self.arrivals = self.arrivals, []
        return arrivals

    def _open(self, child: int, parents: int) -> _FanIn:
        fan_in = self._fan_ins[child] = _FanIn(parents)
        return fan_in

    def _arrive(self, child: int, fan_in: _FanIn) -> None:
        for parent in fan_in.done[fan_in.arrived :]:
            self.arrivals.append((child, parent, fan_in.parents))
        fan_in.arrived = len(fan_in.done)
