"""Large objects among what tasks hold: literal arguments, and what functions have captured.

A fitted model that is an argument of a thousand tasks, or a table in a closure, would be written into every segment
of the graph. They are taken out of the bodies here and stored once by content.

Rules kept here:

* An argument becomes a node that Dask evaluates when the task runs (`StoredLiteral`): only tasks that run read it,
  and each has an object of its own, as under `LocalCluster`.
* What a function has captured (closures, globals that travel with it, arguments of a partial, a method's object)
  is read when the segment's bodies are unpickled, and shared by its tasks, as the function itself is.
* The user's tasks are never changed: those that hold something large are copied.
"""

from __future__ import annotations

import contextlib
import functools
import pickle
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import cloudpickle
import numpy as np
from dask._task_spec import DataNode, GraphNode, Task, TaskRef, _execute_subgraph
from dask.sizeof import sizeof

from lambda_worker.core.errors import ServerlessError, StoreFull, ValueTooLarge
from lambda_worker.core.wire import Ref
from lambda_worker.shuffle import ShuffleTask
from lambda_worker.stored_literals import OwnLiteral, StoredLiteral

#: Data up to this size (pickled) travels with the tasks that use it: reading it from the store would take longer.
EMBEDDED_BYTES_MAX = 64 * 1024
#: ... unless it would then be written into so many segments that this is exceeded.
EMBEDDED_COPIES_BYTES_MAX = 1024 * 1024
#: Below this size nothing is stored by itself, however often it is there.
STORED_BYTES_MIN = 4 * 1024

_ATOMS = frozenset({bool, int, float, complex, type(None), slice, type, types.BuiltinFunctionType, types.ModuleType})
_UNSET = object()
#: What tasks may change in place.
_MUTABLE = frozenset({list, dict, set, bytearray, np.ndarray})
#: Longer ones are looked at where large objects are taken out.
_OWN_ITEMS_MAX = 8 * 1024
_MakeNode: TypeAlias = Callable[[Any], GraphNode]


def travels(nbytes: int, segments: int) -> bool:
    """Decide whether data of this pickled size travels with the tasks that use it, in so many segments.

    Examples
    --------
    >>> travels(50_000, 4), travels(50_000, 100), travels(100_000, 1)
    (True, False, False)
    """
    return nbytes <= EMBEDDED_BYTES_MAX and nbytes * segments <= EMBEDDED_COPIES_BYTES_MAX


@dataclass(slots=True)
class _Found:
    value: Any
    key: Any  # of the first task that holds it
    tasks: int = 0  # of this segment, that hold it


class Literals:
    """Takes large objects out of the bodies of one plan, segment by segment.

    Parameters
    ----------
    segments
        How many segments the plan has.
    keep
        Stores an object and returns where; called once for each object.
    """

    def __init__(self, segments: int, keep: Callable[[Any], Ref]) -> None:
        self._segments = segments
        self._keep = keep
        self._sizes: dict[int, int] = {}
        self._seen: set[int] = set()  # in earlier segments
        # By identity, with the objects, so that no other object can have the same meanwhile.
        self._kept: dict[int, tuple[Any, Ref | None]] = {}

    @property
    def found_any(self) -> bool:
        """Whether a segment had something to take out: the others most likely have, too."""
        return bool(self._kept)

    def take_out(self, bodies: Sequence[Any]) -> tuple[list[Any], dict[int, Ref]]:
        """Return the bodies of a segment without large objects, and what functions have captured, by identity.

        Raises
        ------
        ValueTooLarge, StoreFull, StoreUnavailable
        """
        arguments: dict[int, _Found] = {}
        captured: dict[int, _Found] = {}
        functions: set[int] = set()
        for body in bodies:
            if body is None:
                continue
            node = body[0].task if isinstance(body[0], ShuffleTask) else body[0]
            for mine, found in ((arguments, _arguments(node)), (captured, _captured(node, functions))):
                for identity, each in {id(each): each for each in found}.items():
                    mine.setdefault(identity, _Found(each, node.key)).tasks += 1
        stored = self._store(arguments, by_functions=False)
        refs = self._store(captured, by_functions=True)
        if stored:
            nodes = {identity: functools.partial(StoredLiteral, ref=ref) for identity, ref in stored.items()}
            bodies = [body and (_without(body[0], nodes), *body[1:]) for body in bodies]
        return list(bodies), refs

    def _store(self, found: Mapping[int, _Found], by_functions: bool) -> dict[int, Ref]:
        refs: dict[int, Ref] = {}
        for identity, each in found.items():
            if identity not in self._kept:
                if identity not in self._sizes:
                    self._sizes[identity] = pickled_nbytes(each.value)
                nbytes = self._sizes[identity]
                shared = by_functions or each.tasks > 1 or identity in self._seen
                self._seen.add(identity)
                if nbytes < STORED_BYTES_MIN or travels(nbytes, self._segments if shared else 1):
                    continue
                self._kept[identity] = (each.value, self._try_to_keep(each))
            ref = self._kept[identity][1]
            if ref is not None:
                refs[identity] = ref
        return refs

    def _try_to_keep(self, found: _Found) -> Ref | None:
        try:
            return self._keep(found.value)
        except (ValueTooLarge, StoreFull) as error:
            raise type(error)(f"a {type(found.value).__name__} that task {found.key!r} holds: {error}") from None
        except ServerlessError:
            raise
        except Exception:  # it cannot be pickled by itself: perhaps with the body, and if not, its task is named
            return None


def unshared(bodies: Sequence[Any]) -> Sequence[Any]:
    """Return bodies in which every task has mutable arguments of its own, as if it were pickled alone.

    Without that, tasks that are pickled together would see what others do to an argument that they share.

    Examples
    --------
    >>> several = []
    >>> tasks = [Task(number, list.append, several, number) for number in range(2)]
    >>> [body[0].args[0] for body in unshared([(task, (), None) for task in tasks])]
    [<OwnLiteral of 5 bytes>, <OwnLiteral of 5 bytes>]
    """
    seen: dict[int, Any] = {}
    shared: dict[int, Any] = {}
    for body in bodies:
        if not body or type(body[0]) is not Task or body[0].func is _execute_subgraph:
            continue
        task = body[0]
        for argument in (*task.args, *task.kwargs.values()) if task.kwargs else task.args:
            if (
                type(argument) in _MUTABLE
                and _length(argument) <= _OWN_ITEMS_MAX
                and seen.setdefault(id(argument), task) is not task
            ):
                shared[id(argument)] = argument
    nodes: dict[int, _MakeNode] = {}
    for identity, argument in shared.items():
        with contextlib.suppress(Exception):  # it may be picklable only with the rest; then its task is named
            nodes[identity] = functools.partial(OwnLiteral, pickled=cloudpickle.dumps(argument))
    if not nodes:
        return bodies
    return [body and (_without(body[0], nodes), *body[1:]) for body in bodies]


def _length(argument: Any) -> int:
    return int(argument.size) if isinstance(argument, np.ndarray) else len(argument)


def _arguments(node: GraphNode) -> Iterator[Any]:
    """Yield the literal arguments of a task, also those inside fused tasks and containers."""
    stack: list[Any] = [node]
    while stack:
        each = stack.pop()
        if type(each) is DataNode:
            if type(each.value) not in _ATOMS:
                yield each.value
        elif isinstance(each, Task):
            # Of a fused task: its own tasks, and what it takes from outside; between them are only keys.
            inside = [*each.args[0].values(), *each.args[3:]] if each.func is _execute_subgraph else each.args
            for argument in (*inside, *each.kwargs.values()):
                if isinstance(argument, GraphNode):
                    stack.append(argument)
                elif type(argument) not in _ATOMS and not isinstance(argument, TaskRef):
                    yield argument


def _captured(node: GraphNode, known: set[int]) -> Iterator[Any]:
    """Yield what the functions of a task have captured, except of functions that are known already."""
    stack: list[Any] = [node]
    while stack:
        each = stack.pop()
        if isinstance(each, Task):
            stack += [argument for argument in (*each.args, *each.kwargs.values()) if isinstance(argument, Task)]
            if each.func is _execute_subgraph:
                stack += each.args[0].values()
            else:
                stack.append(each.func)
            continue
        if id(each) in known or isinstance(each, GraphNode):
            continue
        known.add(id(each))
        if isinstance(each, functools.partial):
            inside = [each.func, *each.args, *each.keywords.values()]
        elif isinstance(each, types.MethodType):
            inside = [each.__func__, each.__self__]
        elif isinstance(each, types.BuiltinFunctionType):
            inside = [each.__self__]  # a module, most often
        elif isinstance(each, types.FunctionType):
            inside = list(_travels_along(each))
        else:
            inside = [each]
        for thing in inside:
            if isinstance(thing, (types.FunctionType, types.MethodType, functools.partial)):
                stack.append(thing)
            elif type(thing) not in _ATOMS and not isinstance(thing, type):
                yield thing


def _travels_along(function: types.FunctionType) -> Iterator[Any]:
    """Yield what is pickled with a function that travels by value: one that cannot be imported."""
    by_name = "<" not in function.__qualname__ and function.__module__ != "__main__"
    if by_name and function.__module__ not in cloudpickle.list_registry_pickle_by_value():
        return
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        yield from (function.__globals__[name] for name in code.co_names if name in function.__globals__)
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


def _without(node: Any, stored: Mapping[int, _MakeNode]) -> Any:
    """Return a node with what others stand for replaced; the node itself if it has nothing of it."""
    if isinstance(node, ShuffleTask):
        task = _without(node.task, stored)
        return node if task is node.task else ShuffleTask(task, node.specs)
    if type(node) is DataNode:
        return stored[id(node.value)](node.key) if id(node.value) in stored else node
    if not isinstance(node, Task):
        return node
    args = tuple([_replaced(each, stored) for each in node.args])
    kwargs = {name: _replaced(each, stored) for name, each in node.kwargs.items()}
    if node.func is _execute_subgraph:
        inside = {key: _without(each, stored) for key, each in node.args[0].items()}
        if any(inside[key] is not each for key, each in node.args[0].items()):
            args = (inside, *args[1:])
    if all(map(_same, args, node.args)) and all(map(_same, kwargs.values(), node.kwargs.values())):
        return node
    copy = object.__new__(type(node))
    for slot in type(node).get_all_slots():
        if (value := getattr(node, slot, _UNSET)) is not _UNSET:
            setattr(copy, slot, value)
    copy.args, copy.kwargs = args, kwargs
    return copy


def _replaced(argument: Any, stored: Mapping[int, _MakeNode]) -> Any:
    if isinstance(argument, GraphNode):
        return _without(argument, stored)
    make_node = stored.get(id(argument))
    return argument if make_node is None else make_node(None)


def _same(one: Any, other: Any) -> bool:
    return one is other


def pickled_nbytes(value: Any) -> int:
    """Measure a value as pickled, without copying its buffers; 0 if it cannot be pickled."""
    if type(value) in _ATOMS:
        return 0
    if type(value) in (str, bytes):
        return len(value)
    try:
        guess = int(sizeof(value))
    except Exception:
        guess = 0
    if guess > 4 * EMBEDDED_BYTES_MAX:
        return guess  # not to be pickled only to find that it is large
    for dumps in (pickle.dumps, cloudpickle.dumps):
        buffers: list[pickle.PickleBuffer] = []
        try:
            return len(dumps(value, protocol=5, buffer_callback=buffers.append)) + sum(
                buffer.raw().nbytes for buffer in buffers
            )
        except Exception:
            continue
    return 0  # `segment_bodies` will say so, and name the task
