"""Number the tasks of a graph, so that everything after this works with small integers.

Tasks are numbered in the order in which a depth-first walk from the wanted keys *leaves* them
(post-order): a task comes right after the last of its parents that was still missing. Hence every
parent has a smaller number than its children, the numbers of a subtree that nobody shares are
contiguous, and the start tasks in number order are neighbours in the graph as well. This is what
`dask.order` is for elsewhere; an executor decides from what it has in memory and does not need it.

The walk keeps its own stack: a chain of a million tasks is as good a graph as any.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from lambda_worker.core.errors import GraphError

Key = TypeVar("Key", bound=Hashable)

#: How many keys of a cycle an error names; the rest of a long cycle helps nobody.
CYCLE_KEYS_MAX = 20


@dataclass(frozen=True, slots=True, repr=False)
class Graph:
    """A graph of numbered tasks. Nothing in it may be changed.

    Lists of lists, not compressed rows: they are faster to build in Python, a slice of them is
    what an `Edges` record encodes, and msgpack takes them as they are.

    Parameters
    ----------
    parents, children
        For each task, the numbers of its distinct parents (in the order of its dependencies) and
        of its distinct children (ascending).
    starts
        Tasks without parents, ascending. Externals are among them.
    visible
        Tasks whose value somebody outside the job asked for.
    externals
        Tasks whose value is made elsewhere and will be given.
    retries
        How often a task may be run again after its own exception, where that is not zero.
    classes
        The number of the function class that a task needs, where that is not the default one. An external
        has the smallest class of its children: whoever begins with it can go on.
    """

    parents: Sequence[Sequence[int]]
    children: Sequence[Sequence[int]]
    starts: Sequence[int]
    visible: frozenset[int]
    externals: frozenset[int] = frozenset()
    retries: Mapping[int, int] = field(default_factory=dict)
    classes: Mapping[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.parents)

    def __repr__(self) -> str:
        return (
            f"<Graph: {len(self)} tasks, {len(self.starts)} starts, "
            f"{len(self.visible)} visible, {len(self.externals)} externals>"
        )

    def descendants(self, task: int) -> Iterator[int]:
        """Yield every task that needs `task`, directly or not, once; for errors that pass down.

        Examples
        --------
        >>> graph, _ = number({"a": (), "b": ("a",), "c": ("b",), "d": ("a", "c")}, ["d"])
        >>> sorted(graph.descendants(1))
        [2, 3]
        """
        return self._reach(self.children, (task,), ())

    def ancestors(self, tasks: Iterable[int], have: Container[int] = ()) -> Iterator[int]:
        """Yield every task that `tasks` need, directly or not, once; for recomputation.

        What is in `have` still has its value: it is not yielded, and what only it needs is not
        visited.

        Examples
        --------
        >>> graph, _ = number({"a": (), "b": ("a",), "c": ("b",), "d": ("c",)}, ["d"])
        >>> sorted(graph.ancestors([3]))
        [0, 1, 2]
        >>> sorted(graph.ancestors([3], have={1}))
        [2]
        """
        return self._reach(self.parents, tasks, have)

    @staticmethod
    def _reach(edges: Sequence[Sequence[int]], tasks: Iterable[int], have: Container[int]) -> Iterator[int]:
        stack = list(tasks)
        seen: set[int] = set()
        while stack:
            for task in edges[stack.pop()]:
                if task not in seen and task not in have:
                    seen.add(task)
                    stack.append(task)
                    yield task

    def sources(self) -> dict[int, frozenset[int]]:
        """Return, for each visible task, the nearest visible or external tasks that it needs.

        This is the graph as the outside sees it, with everything in between left out. It stops at
        visible tasks because they have sources of their own: in a running sum whose every step
        was asked for, naming all externals at every step would be quadratic.

        Examples
        --------
        >>> parents = {"a": (), "b": ("a", "x"), "c": ("b",), "d": ("c",)}
        >>> graph, keys = number(parents, ["b", "d"], externals={"x"})
        >>> {keys[task]: {keys[source] for source in sources} for task, sources in graph.sources().items()}
        {'b': {'x'}, 'd': {'b'}}
        """
        nothing: frozenset[int] = frozenset()
        found: dict[int, frozenset[int]] = {}
        # A `set` belongs to its task's only child, which may grow it in place; what several children
        # may see is frozen. Otherwise an unseen running sum over n externals would copy n sets.
        above: list[set[int] | frozenset[int]] = []
        for task, row in enumerate(self.parents):
            sources: set[int] | frozenset[int] = nothing
            if len(row) == 1:
                sources = above[row[0]]
            elif row:
                distinct = {id(above[parent]): above[parent] for parent in row}  # mostly one: nothing
                sources = max(distinct.values(), key=len)
                if len(distinct) > 1:
                    largest, sources = sources, sources if isinstance(sources, set) else set(sources)
                    sources.update(*[other for other in distinct.values() if other is not largest])
            if task in self.visible:
                found[task] = frozenset(sources)
                sources = frozenset((task,))
            elif task in self.externals:
                sources = frozenset((task,))
            elif len(self.children[task]) > 1:
                sources = frozenset(sources)
            above.append(sources)
        return found


def number(
    parents_by_key: Mapping[Key, Iterable[Key]],
    wanted: Iterable[Key],
    externals: Container[Key] = (),
    retries: Mapping[Key, int] | None = None,
    classes: Mapping[Key, int] | None = None,
) -> tuple[Graph, list[Key]]:
    """Number what the wanted keys need; return the graph, and the key of each number.

    Parameters
    ----------
    parents_by_key
        The keys that each key needs. What no wanted key needs is left out.
    wanted
        The keys whose values were asked for. Their order decides the order of the numbers.
    externals
        Keys made elsewhere: they are numbered, but what they need is not looked at.
    retries
        How often a key may be run again after its own exception.
    classes
        The number of the function class that a key needs, where that is not the default one.

    Raises
    ------
    GraphError
        When keys need each other in a circle, or a key is neither in the graph nor external.

    Examples
    --------
    >>> graph, keys = number({"sum": ["a", "b"], "a": ["x"], "b": [], "unused": []}, ["sum"], externals={"x"})
    >>> keys
    ['x', 'a', 'b', 'sum']
    >>> graph
    <Graph: 4 tasks, 2 starts, 1 visible, 1 externals>
    >>> graph.parents
    [(), [0], (), [1, 2]]
    >>> number({"a": ["b"], "b": ["a"]}, ["a"])
    Traceback (most recent call last):
        ...
    lambda_worker.core.errors.GraphError: the graph has a cycle: 'a' -> 'b' -> 'a' (each needs the next)
    """
    numbers: dict[Key, int] = {}
    keys: list[Key] = []
    parents: list[Sequence[int]] = []
    children: list[list[int]] = []
    starts: list[int] = []
    found_externals: list[int] = []
    # Keys whose parents are being numbered, with those parents. They are exactly the path from a
    # wanted key down to here, in order, so a parent found among them closes a cycle.
    opened: dict[Key, Iterable[Key]] = {}
    wanted = list(wanted)

    for final in wanted:
        stack = [final]
        while stack:
            key = stack[-1]
            if key in numbers:  # put on the stack by several children before it was reached
                stack.pop()
                continue
            if key in opened:  # the second visit: every parent has its number
                row = [numbers[parent] for parent in opened.pop(key)]
            elif key in externals:
                row = []
                found_externals.append(len(keys))
            else:
                try:
                    needs = parents_by_key[key]
                except KeyError:
                    raise GraphError(_missing(key, opened)) from None
                needs = needs if isinstance(needs, (tuple, list)) else list(needs)
                missing = [parent for parent in needs if parent not in numbers]
                if missing:
                    opened[key] = needs
                    if not opened.keys().isdisjoint(missing):
                        raise GraphError(_cycle(missing, opened))
                    missing.reverse()  # so that the first parent is numbered first
                    stack += missing
                    continue
                row = [numbers[parent] for parent in needs]
            stack.pop()
            task = len(keys)
            numbers[key] = task
            keys.append(key)
            children.append([])
            if row:
                if len(row) > 1 and len(set(row)) < len(row):
                    row = list(dict.fromkeys(row))
                parents.append(row)
                for parent in row:
                    children[parent].append(task)
            else:
                parents.append(())
                starts.append(task)

    needed = {numbers[key]: needs for key, needs in (classes or {}).items() if needs and key in numbers}
    if needed:
        for task in found_externals:
            needed[task] = min((needed.get(child, 0) for child in children[task]), default=0)
    graph = Graph(
        parents=parents,
        children=children,
        starts=starts,
        visible=frozenset(numbers[key] for key in wanted),
        externals=frozenset(found_externals),
        retries={numbers[key]: times for key, times in (retries or {}).items() if times and key in numbers},
        classes={task: needs for task, needs in needed.items() if needs},
    )
    return graph, keys


def _cycle(missing: Iterable[Hashable], opened: Mapping[Key, object]) -> str:
    path = list(opened)
    first = next(key for key in missing if key in opened)
    cycle = [repr(key) for key in path[path.index(first) :]]  # type: ignore[arg-type]
    if len(cycle) > CYCLE_KEYS_MAX:
        half = CYCLE_KEYS_MAX // 2
        cycle = [*cycle[:half], f"... {len(cycle) - 2 * half} more ...", *cycle[-half:]]
    return f"the graph has a cycle: {' -> '.join([*cycle, repr(first)])} (each needs the next)"


def _missing(key: Hashable, opened: Mapping[Key, object]) -> str:
    if not opened:
        return f"{key!r} was asked for, but is neither in the graph nor known elsewhere"
    return f"{next(reversed(list(opened)))!r} needs {key!r}, which is neither in the graph nor known elsewhere"
