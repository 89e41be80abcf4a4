"""What an executor knows of its graph: segments that are here, on their way, and done with. Pure.

An executor reads the graph segment by segment, when it needs one. Until the segment of a task is here, all
that can be known of the task is what its parent's segment says: its class, and that this is its only parent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lambda_worker.core.instructions import LoadSegments
from lambda_worker.core.schedule import SEGMENT_TASKS, Edges, segment_of

#: Segments read at once when one that is needed is missing.
READ_AHEAD_SEGMENTS = 16


class Segments:
    """The part of a graph that is known.

    Attributes
    ----------
    here
        The edges of the segments that are here. They stay: they also tell what class a child needs, which
        is asked when the child is won.
    loading
        Segments on their way.
    forget
        Segments whose bodies nobody here needs any more.
    forgotten
        Those of which that has been said: to run a task of one again, it must be read again.

    Examples
    --------
    >>> segments = Segments()
    >>> segments.load([0]), segments.loading
    (LoadSegments(segments=[0]), {0})
    >>> segments.add(0, Edges(first=0, parents=[[], [0]], children=[[1], [256]]))
    >>> segments.note_sole_parent(256, 1)
    >>> segments.parents_of(1), segments.known_parents(256), segments.known_parents(257)
    ([0], (1,), None)
    """

    def __init__(self) -> None:
        self.here: dict[int, Edges] = {}
        self.loading: set[int] = set()
        self.forget: list[int] = []
        self.forgotten: set[int] = set()
        self._sole_parent: dict[int, int] = {}  # of tasks whose segment was not here
        self._ended: dict[int, int] = {}  # tasks of each segment that have ended here

    def load(self, segments: Sequence[int]) -> LoadSegments:
        """Ask for segments."""
        self.loading.update(segments)
        return LoadSegments(segments)

    def add(self, segment: int, edges: Edges) -> None:
        """Take in a segment."""
        self.here[segment] = edges
        self.loading.discard(segment)
        self.forgotten.discard(segment)

    def ahead(self, tasks: Sequence[int]) -> list[int]:
        """Name the missing segments that the last of these tasks need, nearest first."""
        ahead: dict[int, None] = {}
        for task in reversed(tasks[-READ_AHEAD_SEGMENTS * SEGMENT_TASKS :]):
            segment = segment_of(task)
            if segment not in self.here and segment not in self.loading:
                ahead[segment] = None
                if len(ahead) == READ_AHEAD_SEGMENTS:
                    break
        return list(ahead)

    def unknown(self, tasks: Iterable[int]) -> list[int]:
        """Name the segments that must be here before the parents of all these tasks are known."""
        return list({segment_of(task): None for task in tasks if self.known_parents(task) is None})

    def note_sole_parent(self, task: int, parent: int) -> None:
        """Remember the parent of a task that is no fan-in and whose segment is not here."""
        self._sole_parent[task] = parent

    def parents_of(self, task: int) -> Sequence[int]:
        """Return the parents of a task whose segment is here."""
        edges = self.here[segment_of(task)]
        return edges.parents[task - edges.first]

    def known_parents(self, task: int) -> Sequence[int] | None:
        """Return a task's parents, or None while its segment (and so its parents) is not here."""
        edges = self.here.get(segment_of(task))
        if edges is not None:
            return edges.parents[task - edges.first]
        parent = self._sole_parent.get(task)
        return None if parent is None else (parent,)

    def class_of(self, task: int) -> int:
        """Return the function class of a task whose parents are known."""
        edges = self.here.get(segment_of(task)) or self.here[segment_of(self._sole_parent[task])]
        return edges.classes.get(task, 0)

    def end(self, task: int) -> None:
        """Let go of a segment's bodies when all its tasks have ended here.

        What was given away or lost to another executor keeps its segment here, which costs memory only.
        """
        segment = segment_of(task)
        ended = self._ended.get(segment, 0) + 1
        if ended < SEGMENT_TASKS:
            self._ended[segment] = ended
        else:
            del self._ended[segment]
            self.forget.append(segment)
            self.forgotten.add(segment)
