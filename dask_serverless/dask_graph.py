"""What Dask sends us, translated: an expression becomes tasks, and tasks become a plan in numbers.

This module, `bodies`, `literals`, `own_annotations`, `plain_layers`, `shuffles` and `stubs` are the only ones that
know Dask's expression and task classes.

A submitted graph passes through here in this order:

1. `materialise`: expression -> tasks by key, as the stock scheduler does it;
2. `split`: which of them must run on an ordinary Dask worker ("pinned");
3. `plan_job`: the others -> a `JobPlan`, in numbers, with one *body* per task;
4. `bodies.segment_bodies`: the bodies of one segment -> bytes;
5. `stubs.stub_graph` and `stubs.as_expr_ser`: what the stock scheduler gets to see instead.

Rules kept here:

* An alias is a pointer, never a task: whoever refers to it refers to its target.
* Data inside a graph is no task either, unless somebody asked for it: small values travel in the
  bodies of their children, large ones are stored once (*constants*).
* Tasks are never changed in place; one that must be rewritten is copied.
* What users' code raises passes through unchanged.
* The plan of a graph does not depend on hash seeds: parents are in the order of a task's arguments.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from dask._expr import Expr
from dask._task_spec import Alias, DataNode, GraphNode, Task, TaskRef, _execute_subgraph, convert_legacy_graph

from dask_serverless.collector import collector_paused
from dask_serverless.literals import pickled_nbytes, travels
from dask_serverless.own_annotations import REQUESTS, before_fusion, function_classes
from dask_serverless.plain_layers import read_plain_layers
from dask_serverless.plan import FunctionClass, Graph, number
from dask_serverless.shuffles import pin_whole_shuffles, shuffle_specs
from lambda_worker.core.errors import GraphError
from lambda_worker.core.schedule import BODIES_TASKS
from lambda_worker.shuffle import ShuffleTask

Key: TypeAlias = Any  # str, bytes, int, float, or a nested tuple of these

#: ``(task, names, constants)``, as documented on `lambda_worker.core.schedule.Segment`; here the
#: constants are still named by the key of their data. None for an external: nothing to run.
Body: TypeAlias = tuple[GraphNode | ShuffleTask, Sequence[Key], Mapping[Key, Key] | None]

#: Annotations by which a user places a task on certain Dask workers.
PLACEMENTS = ("workers", "restrictions", "resources", "allow_other_workers", "loose_restrictions")

_NO_NAMES: tuple[()] = ()


# -- materialise ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Materialised:
    """A graph of task objects, and the annotations of its layers by type and key."""

    tasks: dict[Key, GraphNode]
    annotations_by_type: dict[str, dict[Key, Any]]


def materialise(expr: Expr, keys: Iterable[Key]) -> Materialised:
    """Turn an expression into the tasks that `keys` need, as the stock scheduler would.

    This runs users' code (optimisers, lazy layers); what it raises passes through unchanged.
    The stock scheduler culls only low-level graphs here but later looks only at what the keys
    need, so culling always comes to the same. The order of the graph is kept (theirs depends on
    the hash seed), because the order of numbers follows from it.

    Examples
    --------
    >>> from dask._expr import LLGExpr
    >>> list(materialise(LLGExpr({"x": 1, "y": (abs, "x"), "z": 2}), {"y"}).tasks)
    ['x', 'y']
    """
    with collector_paused():
        plain = read_plain_layers(expr)
        if plain is not None:
            graph, annotations_by_type = plain
        else:
            graph = expr.__dask_graph__()
            annotations_by_type = {name: dict(values) for name, values in expr.__dask_annotations__().items()}
        tasks = _cull(convert_legacy_graph(graph), keys)
        for name, asked in before_fusion(expr, tasks).items():
            annotations_by_type[name] = asked | annotations_by_type.get(name, {})
        return Materialised(tasks, annotations_by_type)


def _cull(tasks: dict[Key, GraphNode], keys: Iterable[Key]) -> dict[Key, GraphNode]:
    seen = {key for key in keys if key in tasks}
    stack = list(seen)
    while stack:
        for parent in tasks[stack.pop()].dependencies:
            if parent not in seen and parent in tasks:
                seen.add(parent)
                stack.append(parent)
    return tasks if len(seen) == len(tasks) else {key: task for key, task in tasks.items() if key in seen}


# -- split ------------------------------------------------------------------------------------


def annotation(
    name: str,
    keys: Collection[Key],
    annotations_by_type: Mapping[str, Mapping[Key, Any]],
    global_annotations: Mapping[str, Any] | None,
) -> dict[Key, Any]:
    """Return the value of one annotation for each key that has it.

    As in the scheduler: one for the key itself wins over the global one, None means that there is
    none, and a global value may be a function of the key.

    Examples
    --------
    >>> annotation("retries", ["a", "b"], {"retries": {"a": 5}}, {"retries": lambda key: 1})
    {'a': 5, 'b': 1}
    """
    found: dict[Key, Any] = {}
    value = (global_annotations or {}).get(name)
    if callable(value):
        found = {key: result for key in keys if (result := value(key)) is not None}
    elif value is not None:
        found = dict.fromkeys(keys, value)
    for key, own in annotations_by_type.get(name, {}).items():
        if own is not None and key in keys:
            found[key] = own
    return found


def split(
    tasks: Mapping[Key, GraphNode],
    wanted: Iterable[Key],
    annotations_by_type: Mapping[str, Mapping[Key, Any]] | None = None,
    global_annotations: Mapping[str, Any] | None = None,
    actors: bool | Iterable[Key] | None = None,
) -> dict[Key, str]:
    """Return the tasks that must run on an ordinary Dask worker, each with the reason.

    Examples
    --------
    >>> from dask._task_spec import Task, TaskRef
    >>> tasks = {"a": Task("a", int), "b": Task("b", abs, TaskRef("a"))}
    >>> split(tasks, {"b"}, {"resources": {"a": {"GPU": 1}}}, {"serverless": lambda key: key != "b"})
    {'a': "annotation resources={'GPU': 1}", 'b': 'annotation serverless=False'}
    """
    pinned: dict[Key, str] = {}
    by_type = annotations_by_type or {}
    for name in PLACEMENTS:
        for key, value in annotation(name, tasks.keys(), by_type, global_annotations).items():
            if value:
                pinned.setdefault(key, f"annotation {name}={value!r}")
    for key, value in annotation("serverless", tasks.keys(), by_type, global_annotations).items():
        if value is False:
            pinned.setdefault(key, "annotation serverless=False")
    if actors:
        for key in wanted if actors is True else actors:  # type: ignore[union-attr]
            if key in tasks:
                pinned.setdefault(key, "actor")
    if pinned:
        pin_whole_shuffles(tasks, pinned)
    return pinned


# -- plan -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class JobPlan:
    """One job in numbers, and what each number stands for.

    Parameters
    ----------
    graph
        The numbered graph.
    keys
        The key of each task.
    visible
        The number of each key that was asked for. Aliases of one task share its number.
    externals
        The number of each key that is made elsewhere.
    pointers
        Keys that were asked for but have nothing to run here: each with the external key (perhaps
        itself) whose value is its own.
    bodies
        What each task runs; None for externals.
    constants
        Large values by name, to be stored before any segment is pickled (`segment_bodies`).
    """

    graph: Graph
    keys: Sequence[Key]
    visible: Mapping[Key, int]
    externals: Mapping[Key, int]
    pointers: Mapping[Key, Key]
    bodies: Sequence[Body | None]
    constants: Mapping[Key, Any]

    def __repr__(self) -> str:
        return f"<JobPlan: {self.graph!r}, {len(self.constants)} constants, {len(self.pointers)} pointers>"

    def sources(self) -> dict[Key, set[Key]]:
        """Return what each visible key needs of the outside: the dependencies of its stub.

        These are the nearest external or visible keys above it; a pointer needs its target.
        """
        # For a number that several keys were asked for, any one of them will do as a dependency.
        names = {task: key for key, task in self.visible.items()}
        names.update({task: key for key, task in self.externals.items()})
        by_number = self.graph.sources()
        found = {key: {names[source] for source in by_number[task]} for key, task in self.visible.items()}
        found.update({key: {target} for key, target in self.pointers.items() if key != target})
        return found


def plan_job(
    tasks: Mapping[Key, GraphNode],
    wanted: Collection[Key],
    known: Callable[[Key], bool] | Container[Key] = (),
    annotations_by_type: Mapping[str, Mapping[Key, Any]] | None = None,
    global_annotations: Mapping[str, Any] | None = None,
    classes: Sequence[FunctionClass] = (),
) -> JobPlan:
    """Number the tasks that the wanted keys need, and make their bodies.

    Parameters
    ----------
    tasks
        From `materialise`.
    wanted
        The keys whose values were asked for.
    known
        Tells (or contains) the keys that are made outside this plan: by other jobs, or pinned. What
        only they need is left out. A key that is referred to but is not in `tasks` is
        external too; whether it exists anywhere is for the caller to say. Data that lies in the
        graph is taken from there in any case.
    annotations_by_type, global_annotations
        Where `retries`, `memory` and `timeout` are found.
    classes
        The function classes that tasks may ask for; none: what they ask for is not looked at.

    Raises
    ------
    GraphError
        When the graph has a cycle.
    BadAnnotation
        When a task asks for more memory or time than any class has, or for nothing sensible.

    Examples
    --------
    >>> from dask._task_spec import Alias, DataNode, Task, TaskRef
    >>> tasks = {
    ...     "one": DataNode("one", 1),
    ...     "x": Task("x", max, TaskRef("one"), TaskRef("far")),
    ...     "y": Alias("y", "x"),
    ... }
    >>> plan = plan_job(tasks, {"y"})
    >>> plan.keys, plan.visible, plan.externals
    (['far', 'x'], {'y': 1}, {'far': 0})
    >>> task, names, constants = plan.bodies[1]
    >>> task({"far": 41})
    41
    """
    with collector_paused():
        return _Planner(tasks, wanted, known if callable(known) else known.__contains__).plan(
            annotations_by_type or {}, global_annotations, classes
        )


def plan_call(key: Key, function: Callable[..., Any], *args: Any) -> JobPlan:
    """Plan one call, by itself.

    Examples
    --------
    >>> plan_call("three", max, 1, 3).keys
    ['three']
    """
    return plan_job({key: Task(key, function, *args)}, {key})


class _Planner:
    """The steps of `plan_job`, and what they share."""

    def __init__(self, tasks: Mapping[Key, GraphNode], wanted: Collection[Key], known: Callable[[Key], bool]) -> None:
        self.tasks = tasks
        self.externals: set[Key] = set(filter(known, tasks))
        # A set has no order of its own, so the graph's is taken.
        wanted = wanted if isinstance(wanted, (set, frozenset)) else set(wanted)
        self.targets: dict[Key, Key] = {}  # what an alias stands for in the end
        for key, task in tasks.items():
            if type(task) is Alias and key not in self.externals:
                self._resolve(key)
        self.visible: dict[Key, Key] = {}  # what was asked for, and the task that makes it
        self.pointers: dict[Key, Key] = {}
        for key in itertools.chain((key for key in tasks if key in wanted), sorted(wanted - tasks.keys(), key=str)):
            target = self.targets.get(key, key)
            (self.visible if target in tasks and target not in self.externals else self.pointers)[key] = target
        asked = set(self.visible.values())
        self.data = {key: task for key, task in tasks.items() if type(task) is DataNode and key not in asked}
        self.externals.difference_update(self.data)

    def plan(
        self,
        annotations_by_type: Mapping[str, Mapping[Key, Any]],
        global_annotations: Mapping[str, Any] | None,
        classes: Sequence[FunctionClass],
    ) -> JobPlan:
        retries = annotation(
            "retries", self.tasks.keys(), annotations_by_type, _retries_as_function(global_annotations)
        )
        for key in self.externals.intersection(retries):
            del retries[key]
        for key, times in retries.items():
            if not isinstance(times, int):
                # The scheduler's own type for it, which says nothing.
                raise AssertionError(f"retries={times!r} of task {key!r} must be a whole number")
        names_by_key, parents_by_key = self._parents()
        needed = self._function_classes(annotations_by_type, global_annotations, classes)
        graph, keys = number(parents_by_key, dict.fromkeys(self.visible.values()), self.externals, retries, needed)

        # Tasks are rewritten now that what is not needed has been left out.
        unusual = [key for key in keys if key in names_by_key]
        copies = Counter(
            target
            for key in unusual
            for target in {self.targets.get(name, name) for name in names_by_key[key]}
            if target in self.data
        )
        embedded = {key: _embed(self.data[key].value, count, len(keys)) for key, count in copies.items()}
        rewritten = {key: self._rewrite(self.tasks[key], names_by_key[key], embedded) for key in unusual}
        for key, specs in shuffle_specs(self.tasks).items():
            if key in parents_by_key and key not in self.externals:
                task, names, constants = rewritten.get(key) or (self.tasks[key], parents_by_key[key], None)
                rewritten[key] = ShuffleTask(task, specs), names, constants
        number_of = {keys[task]: task for task in graph.visible}
        return JobPlan(
            graph=graph,
            keys=keys,
            visible={key: number_of[target] for key, target in self.visible.items()},
            externals={keys[task]: task for task in sorted(graph.externals)},
            pointers=self.pointers,
            bodies=[
                None
                if key in self.externals
                else rewritten[key]
                if key in rewritten
                else (self.tasks[key], parents_by_key[key], None)
                for key in keys
            ],
            constants={key: self.data[key].value for key, embed in embedded.items() if not embed},
        )

    def _function_classes(
        self,
        annotations_by_type: Mapping[str, Mapping[Key, Any]],
        global_annotations: Mapping[str, Any] | None,
        classes: Sequence[FunctionClass],
    ) -> dict[Key, int]:
        named = {name for name in REQUESTS if annotations_by_type.get(name) or name in (global_annotations or {})}
        if not classes or not named:
            return {}
        # What is made elsewhere asks for nothing here: it may be on a Dask worker because it asks for too much.
        tasks = {key: task for key, task in self.tasks.items() if key not in self.externals}
        memory, timeout = (
            {**annotations_by_type.get(name, {}), **annotation(name, tasks, annotations_by_type, global_annotations)}
            for name in REQUESTS
        )
        return function_classes(tasks, memory, timeout, classes)

    def _resolve(self, key: Key) -> None:
        """Find what an alias stands for, and all aliases on the way."""
        path: dict[Key, None] = {}
        target = key
        while target not in self.externals and type(task := self.tasks.get(target)) is Alias:
            if target in self.targets:
                target = self.targets[target]
                break
            if target in path:
                cycle = list(path)[list(path).index(target) :]
                raise GraphError(f"the graph has a cycle of aliases: {' -> '.join(map(repr, [*cycle, target]))}")
            path[target] = None
            if task.target == target:  # an alias of itself refers to another graph
                self.externals.add(target)
                break
            target = task.target
        if target not in self.tasks:
            self.externals.add(target)
        for alias in path:
            if alias != target:
                self.targets[alias] = target

    def _parents(self) -> tuple[dict[Key, Sequence[Key]], dict[Key, Sequence[Key]]]:
        """Return the names that the unusual tasks refer to, and the parents of all tasks.

        Unusual are the tasks that refer to aliases, data or keys of other graphs: everything else
        is taken as it is, and fast.
        """
        special = self.targets.keys() | self.data.keys() | self.externals
        present = self.tasks.keys()
        names_by_key: dict[Key, Sequence[Key]] = {}
        parents_by_key: dict[Key, Sequence[Key]] = {}
        for key, task in self.tasks.items():
            dependencies = task.dependencies
            if not dependencies:
                parents_by_key[key] = _NO_NAMES
                continue
            if key in special:
                continue
            parents = _ordered_dependencies(task)
            if not dependencies <= present:
                self.externals.update(itertools.filterfalse(present.__contains__, parents))
                names_by_key[key] = parents
            if special and not special.isdisjoint(dependencies):
                names_by_key[key] = parents
                targets = dict.fromkeys(self.targets.get(name, name) for name in parents)
                parents = [target for target in targets if target not in self.data]
            parents_by_key[key] = parents
        return names_by_key, parents_by_key

    def _rewrite(self, task: GraphNode, names: Sequence[Key], embedded: Mapping[Key, bool]) -> Body:
        """Point a task's parents at the targets of aliases, give it its data, and take futures out.

        An alias needs no rewriting by itself: the body expects the target's value under the
        alias's name. Only a task that refers to one value by two names is substituted.
        """
        expected: dict[Key, Key] = {}  # parent -> the name under which the body expects it
        constants: dict[Key, Key] = {}
        substitutions: dict[Key, Any] = {}
        for name in names:
            target = self.targets.get(name, name)
            if target in self.data:
                if embedded[target]:
                    substitutions[name] = self.data[target]
                else:
                    constants[name] = target
            elif target in expected:
                substitutions[name] = expected[target]
            else:
                expected[target] = name
        if not self.externals.isdisjoint(expected):
            task = _without_futures(task)
        if substitutions:
            task = task.substitute(substitutions)
        return task, tuple(expected.values()), constants or None


def _embed(value: Any, copies: int, tasks: int) -> bool:
    """Decide whether data travels in the bodies of tasks; otherwise it becomes a constant."""
    return travels(pickled_nbytes(value), min(copies, -(-tasks // BODIES_TASKS)))  # written once in each pickle


def _without_futures(task: GraphNode) -> GraphNode:
    """Replace the futures in a task by plain references.

    A future is a reference, too, but unpickling it imports all of distributed and binds it to any
    client that the process has.
    """
    futures: dict[Key, Any] = {
        node.key: TaskRef(node.key)
        for node in _references(task)
        if isinstance(node, TaskRef) and type(node) is not TaskRef
    }
    if not futures:
        return task
    if isinstance(task, Task) and task.func is _execute_subgraph:
        inside = {key: _without_futures(inner) for key, inner in task.args[0].items()}
        # What the whole refers to, it refers to by plain references already.
        return Task(task.key, task.func, inside, *task.args[1:], _data_producer=task.data_producer)
    return task.substitute(futures)


def _retries_as_function(global_annotations: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Let ``retries={key: times}`` be a function of the key, like any other global annotation."""
    retries = (global_annotations or {}).get("retries")
    return {"retries": retries.get} if isinstance(retries, Mapping) else global_annotations


def _ordered_dependencies(task: GraphNode) -> Sequence[Key]:
    """Return the keys a task needs in the order of its arguments (`dependencies` is a set)."""
    dependencies = task.dependencies
    if len(dependencies) < 2:
        return tuple(dependencies)
    if type(task) is Task:  # whose arguments are mostly plain references; then this is all of them
        plain = dict.fromkeys(each.key for each in (*task.args, *task.kwargs.values()) if type(each) is TaskRef)
        if len(plain) == len(dependencies) and task.func is not _execute_subgraph:
            return list(plain)
    found = dict.fromkeys(node.target if isinstance(node, Alias) else node.key for node in _references(task))
    ordered = [key for key in found if key in dependencies]
    if len(ordered) < len(dependencies):  # a kind of task that `_references` does not know
        ordered += sorted(dependencies.difference(ordered), key=str)
    return ordered


def _references(task: GraphNode) -> Iterator[Alias | TaskRef]:
    """Yield the references in a task's arguments, in order, also those inside a fused task."""
    stack: list[Any] = [task]
    while stack:
        node = stack.pop()
        if isinstance(node, (Alias, TaskRef)):
            yield node
        elif isinstance(node, Task) and node.dependencies:
            inside = [*node.args, *node.kwargs.values()]
            if node.func is _execute_subgraph:  # its own references are sorted by hash: they come last
                inside = [*inside[0].values(), *inside]
            inside.reverse()
            stack += inside
