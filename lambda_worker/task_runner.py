"""Runs task bodies: the only module of the worker that knows what a Dask task looks like.

A body is a call or ``(task, names, constants)``, see `lambda_worker.core.schedule.Segment`. Dask itself is
imported when the first body needs it, not when this module is.
"""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from types import CoroutineType, TracebackType
from typing import Any, Protocol

from lambda_worker.compression import expand_blob
from lambda_worker.core.errors import MissingModule
from lambda_worker.core.schedule import BODIES_TASKS, SEGMENT_TASKS, segment_of
from lambda_worker.core.wire import Ref, pack
from lambda_worker.values import pickled

#: Values below this size do not count when an executor weighs what it keeps.
LARGE_BYTES_MIN = 64 * 1024

_SMALL_TYPES = frozenset({bool, int, float, complex, type(None)})

#: Where the frames are that run a task: they say nothing to a user about an error in it.
_OUR_PLACES = (os.path.dirname(__file__) + os.sep, os.path.dirname(asyncio.__file__) + os.sep)
_DASKS_PLACE = os.path.join("dask", "_task_spec")
#: Frames of a traceback or a call stack that are shown, at most.
TRACEBACK_FRAMES_MAX = 100

#: How many fields a body has that is a call: key, function, arguments, places of parents' values in them, keywords.
CALL_FIELDS = 5

#: How many pickles of bodies are open at once: task objects take some kilobytes each, their pickles a tenth.
OPEN_PICKLES_MAX = 1024
#: How many segments that are done with are kept a little longer.
FORGOTTEN_SEGMENTS_MAX = 64


class Constants(Protocol):
    """Where stored constants come from: `lambda_worker.constants.Constants`."""

    @property
    def nbytes_max(self) -> int:
        """How many bytes may be kept."""

    def value(self, ref: Ref) -> Any:
        """Make one: a new object each time."""


class Bodies:
    """The task bodies of one job on this executor, unpickled `BODIES_TASKS` at a time.

    Numbers are given depth-first, so tasks that run one after the other are mostly in the pickles
    that were used last; the others are let go, and unpickled again if need be.

    Parameters
    ----------
    constants
        Makes stored constants.
    """

    def __init__(self, constants: Constants) -> None:
        self._constants = constants
        self._sharing = threading.Lock()  # several tasks may run at once, and all but one wait for what one reads
        self._shared: dict[str, tuple[Any, int]] = {}  # those with a key of their own; the one used last is last
        self._pickles: dict[int, Sequence[bytes]] = {}  # by segment
        self._bodies: dict[int, list[Any]] = {}  # by their first task over `BODIES_TASKS`; the one used last is last
        self._forgotten: deque[int] = deque()
        self._lock = threading.Lock()  # I/O threads look up keys here

    def add(self, segment: int, pickles: Sequence[bytes]) -> None:
        """Take in the pickles of a segment; one is unpickled when a task of it is to run."""
        self._pickles[segment] = pickles

    def forget(self, segment: int) -> None:
        """Let go of a segment, soon: a result that cannot be stored is still to be named by its key."""
        with self._lock:
            self._forgotten.append(segment)
            if len(self._forgotten) > FORGOTTEN_SEGMENTS_MAX:
                oldest = self._forgotten.popleft()
                first = oldest * SEGMENT_TASKS // BODIES_TASKS
                for number in range(first, first + len(self._pickles.pop(oldest, ()))):
                    self._bodies.pop(number, None)

    def get(self, task: int) -> Any:
        """Return the body of a task.

        Raises
        ------
        MissingModule
            When one of the tasks that are pickled with it needs a module this environment does not have.
        """
        number, place = divmod(task, BODIES_TASKS)
        with self._lock:
            bodies = self._bodies.pop(number, None)
            if bodies is None:
                blob = self._pickles[segment_of(task)][task % SEGMENT_TASKS // BODIES_TASKS]
                try:
                    bodies = _loads(blob, self._constants.value)
                except ModuleNotFoundError as error:
                    raise MissingModule(str(error), name=error.name) from None
                while len(self._bodies) >= OPEN_PICKLES_MAX:
                    del self._bodies[next(iter(self._bodies))]
            self._bodies[number] = bodies
        return bodies[place]

    def constant(self, ref: Ref) -> Any:
        """Return data that has a key in the graph: like any task's value, one object for all tasks that run here.

        What was used last stays in any case; of the others as much as there is room for.
        """
        with self._sharing:
            found = self._shared.pop(ref.name, None)
            if found is None:
                value = self._constants.value(ref)
                found = value, max(ref.nbytes, large_nbytes(value))  # it may be compressed
            room = self._constants.nbytes_max - found[1]
            while self._shared and sum(nbytes for _, nbytes in self._shared.values()) > room:
                del self._shared[next(iter(self._shared))]
            self._shared[ref.name] = found
            return found[0]


class _Unpickler(pickle.Unpickler):
    """Unpickles bodies, of which large objects are stored elsewhere."""

    def __init__(self, blob: bytes, read: Callable[[Ref], Any]) -> None:
        super().__init__(BytesIO(blob))
        self._read = read

    def persistent_load(self, pid: Any) -> Any:
        kind, key, *fields = pid
        ref = Ref(*fields)
        if kind == "value":
            return self._read(ref)
        from lambda_worker.stored_literals import StoredLiteral  # Dask, which the pickle needs as well

        return StoredLiteral(key, ref, self._read)


def _loads(blob: bytes, read: Callable[[Ref], Any]) -> Any:
    """Unpickle without the garbage collector, which would walk the growing graph again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        return _Unpickler(expand_blob(blob), read).load()
    finally:
        if enabled:
            gc.enable()


def run_body(
    body: Any,
    values: Sequence[Any],
    constant: Callable[[Ref], Any],
    run_coroutine: Callable[[Any], Any] | None = None,
) -> Any:
    """Run a body on its parents' values.

    Parameters
    ----------
    body, values
        What to run, and on what.
    constant
        Reads a stored constant.
    run_coroutine
        Runs what an asynchronous task returned; None: on an event loop of its own.
    """
    if len(body) == CALL_FIELDS:
        _, function, arguments, places, keywords = body
        if places is None:
            arguments = values
        elif places:
            arguments = list(arguments)
            for index, parent in places:
                arguments[index] = values[parent]
        result = function(*arguments) if keywords is None else function(*arguments, **keywords)
        if type(result) is CoroutineType and _is_coroutine_function(function):
            result = asyncio.run(_awaited(result)) if run_coroutine is None else run_coroutine(result)
        return result
    task, names, constants = body
    inputs: dict[Any, Any] = dict(zip(names, values, strict=True))
    if constants:
        for name, ref in constants.items():
            inputs[name] = constant(Ref(*ref))
    result = _run_node(task, inputs)
    # The type first: `is_coro` inspects the function anew for every task, which costs more than many tasks.
    if type(result) is CoroutineType and task.is_coro:
        result = asyncio.run(_awaited(result)) if run_coroutine is None else run_coroutine(result)
    return result


def _is_coroutine_function(function: Any) -> bool:
    from distributed.utils import iscoroutinefunction

    return bool(iscoroutinefunction(function))


def _run_node(node: Any, values: Mapping[Any, Any]) -> Any:
    function = getattr(node, "func", None)
    if getattr(function, "__name__", "") != "_execute_subgraph" or function.__module__ != "dask._task_spec":
        return node(values)
    inside, wanted, names, *given = node.args
    # References mostly; nodes where something was put in their place.
    return run_fused(inside, wanted, names, *[each(values) if callable(each) else values[each.key] for each in given])


def run_fused(inside: Mapping[Any, Any], wanted: Any, names: Sequence[Any], *given: Any) -> Any:
    """Run the tasks inside a fused one, parents first, and let go of their values as Dask does.

    Dask's own function for it, in whose place bodies have this one, sorts them with `dask.order` each time, which
    costs more than many tasks.

    Parameters
    ----------
    inside
        The tasks.
    wanted
        The key of the one whose value is wanted.
    names, given
        Keys that are not inside, and their values.
    """
    values: dict[Any, Any] = dict(zip(names, given, strict=True))
    order: dict[Any, None] = {}
    uses: dict[Any, int] = {}
    opened: set[Any] = set()
    stack = [wanted]
    while stack:
        key = stack[-1]
        if key in order or key in values:
            stack.pop()
        elif key in opened:
            order[stack.pop()] = None
        else:
            opened.add(key)
            for parent in inside[key].dependencies:
                uses[parent] = uses.get(parent, 0) + 1
                stack.append(parent)
    for key in order:
        node = inside[key]
        values[key] = _run_node(node, values)
        for parent in node.dependencies:
            uses[parent] -= 1
            if not uses[parent]:
                del values[parent]
    return values[wanted]


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def is_reschedule(error: BaseException) -> bool:
    """Tell whether a task asks to be run again: not an error of its own."""
    from distributed.exceptions import Reschedule

    return isinstance(error, Reschedule)


def key_of(body: Any) -> Any:
    """Return the Dask key of a body's task."""
    return body[0] if len(body) == CALL_FIELDS else body[0].key


def large_nbytes(value: Any) -> int:
    """Return the size of a value if it is worth counting: arrays, frames and containers of them."""
    kind = type(value)
    if kind in _SMALL_TYPES:
        return 0
    if kind is bytes or kind is str:  # Dask's notion of size takes longer than a small task
        return len(value) if len(value) >= LARGE_BYTES_MIN else 0
    nbytes = getattr(value, "nbytes", None)  # arrays and series: no need to load and ask Dask
    if not isinstance(nbytes, int):
        from dask.sizeof import sizeof

        try:
            nbytes = int(sizeof(value))
        except Exception:  # a user's own notion of size; not worth an error
            return 0
    return nbytes if nbytes >= LARGE_BYTES_MIN else 0


def refers_to_scheduler(value: Any) -> bool:
    """Tell whether a value is a future or an actor: while somebody has one, the scheduler keeps what it stands for."""
    dasks = sys.modules.get("dask._task_spec")  # without it there is no such value
    return dasks is not None and isinstance(value, dasks.TaskRef)


def describe_value(value: Any, cache: dict[type, tuple[bytes, str]]) -> tuple[int, bytes, str]:
    """Return what Dask's scheduler wants to know of a value: size in bytes, pickled type, its name."""
    from dask.sizeof import sizeof

    kind = type(value)
    described = cache.get(kind)
    if described is None:
        try:
            blob = pickled(kind)
        except Exception:  # a local class: the scheduler can do without its type
            blob = pickled(object)
        described = cache[kind] = (blob, f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."))
    return int(sizeof(value)), *described


def describe_error(error: BaseException, key: Any = None, times: tuple[float, float] | None = None) -> bytes:
    """Encode an exception with the traceback that `LocalCluster` shows.

    With it go the key of the task that raised it, and when that task began and ended, if it was one.
    """
    from distributed.core import error_message
    from distributed.protocol import pickle as distributed_pickle

    for each in _chain(error):
        each.__traceback__ = _bounded(_users_traceback(each.__traceback__))
    shown = error.__traceback__
    try:
        raise error
    except BaseException:  # noqa: B036 - `error_message` reads the exception being handled
        error.__traceback__ = shown
        message = error_message(error)
    text = "".join(traceback.format_tb(shown))
    try:
        traceback_blob = distributed_pickle.dumps(shown)
        distributed_pickle.loads(traceback_blob)
    except Exception:  # tracebacks that cannot be pickled travel as text
        traceback_blob = distributed_pickle.dumps(text)
    exception: Any = message["exception"]
    return pack(
        [
            bytes(exception.data),
            None if message["traceback"] is None else traceback_blob,
            message["exception_text"],
            text,
            b"" if key is None else pickled(key),
            times,
        ]
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those that led to it or are inside it."""
    stack, seen = [error], set[int]()
    while stack:
        each = stack.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        stack += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            stack += each.exceptions


def _users_traceback(found: TracebackType | None) -> TracebackType | None:
    """Leave out the frames before the user's own; None if there are none of these, as in Dask."""
    while found is not None and _is_ours(found.tb_frame.f_code.co_filename):
        found = found.tb_next
    return found


def call_stack(thread: int) -> list[str]:
    """Describe where a thread is in the user's code, outermost frame first, as a Dask worker does."""
    from distributed.profile import repr_frame

    frame = sys._current_frames().get(thread)
    lines: list[str] = []
    while frame is not None and not _is_ours(frame.f_code.co_filename) and len(lines) < TRACEBACK_FRAMES_MAX:
        lines.append(repr_frame(frame))
        frame = frame.f_back
    return lines[::-1]


def _is_ours(file: str) -> bool:
    return file.startswith(_OUR_PLACES) or _DASKS_PLACE in file


def _bounded(found: TracebackType | None) -> TracebackType | None:
    """Leave out the middle of a very long traceback.

    They are pickled and unpickled by recursion, by us and, deeper in its own calls, by the client, which
    would hear nothing of a task that recurses without end.
    """
    frames = []
    while found is not None:
        frames.append(found)
        found = found.tb_next
    if len(frames) > TRACEBACK_FRAMES_MAX:
        half = TRACEBACK_FRAMES_MAX // 2
        frames[half - 1].tb_next = frames[-half]
    return frames[0] if frames else None
