"""Runs task bodies: the only module of the worker that knows what a Dask task looks like.

A body is ``(task, names, constants)``, see `lambda_worker.core.schedule.Segment`. Dask itself is
imported when the first body is unpickled, not when this module is.
"""

from __future__ import annotations

import asyncio
import gc
import pickle
import traceback
from collections.abc import Callable, Sequence
from types import CoroutineType, TracebackType
from typing import Any

from lambda_worker.core.errors import MissingModule
from lambda_worker.core.schedule import SEGMENT_TASKS, segment_of
from lambda_worker.core.wire import Ref, pack
from lambda_worker.values import pickled

#: Values below this size do not count when an executor weighs what it keeps.
LARGE_BYTES_MIN = 64 * 1024

_SMALL_TYPES = frozenset({bool, int, float, complex, type(None)})

#: Frames of these files say nothing to a user about an error in their task.
_OUR_FILES = ("lambda_worker", "dask/_task_spec", "dask\\_task_spec")


class Bodies:
    """The task bodies of one job on this executor, unpickled a segment at a time."""

    def __init__(self) -> None:
        self._pickles: dict[int, bytes] = {}
        self._bodies: dict[int, list[Any]] = {}

    def add(self, segment: int, blob: bytes) -> None:
        """Take in the pickle of a segment; it is unpickled when a task of it is to run."""
        self._pickles[segment] = blob

    def get(self, task: int) -> Any:
        """Return the body of a task.

        Raises
        ------
        MissingModule
            When a task of the segment needs a module this environment does not have.
        """
        segment = segment_of(task)
        bodies = self._bodies.get(segment)
        if bodies is None:
            try:
                bodies = _loads(self._pickles[segment])
            except ModuleNotFoundError as error:
                raise MissingModule(str(error), name=error.name) from None
            self._bodies[segment] = bodies
            self._pickles.pop(segment, None)  # an I/O thread may have been here, too
        return bodies[task % SEGMENT_TASKS]


def _loads(blob: bytes) -> Any:
    """Unpickle without the garbage collector, which would walk the growing graph again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        return pickle.loads(blob)
    finally:
        if enabled:
            gc.enable()


def run_body(body: Any, values: Sequence[Any], constant: Callable[[Ref], Any]) -> Any:
    """Run a body on its parents' values; `constant` reads a stored constant."""
    task, names, constants = body
    inputs: dict[Any, Any] = dict(zip(names, values, strict=True))
    if constants:
        for name, ref in constants.items():
            inputs[name] = constant(Ref(*ref))
    result = task(inputs)
    # The type first: `is_coro` inspects the function anew for every task, which costs more than many tasks.
    if type(result) is CoroutineType and task.is_coro:
        result = asyncio.run(_awaited(result))
    return result


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def key_of(body: Any) -> Any:
    """Return the Dask key of a body's task."""
    return body[0].key


def large_nbytes(value: Any) -> int:
    """Return the size of a value if it is worth counting: arrays, frames and containers of them."""
    kind = type(value)
    if kind in _SMALL_TYPES:
        return 0
    nbytes = getattr(value, "nbytes", None)  # arrays and series: no need to load and ask Dask
    if not isinstance(nbytes, int):
        from dask.sizeof import sizeof

        try:
            nbytes = int(sizeof(value))
        except Exception:  # a user's own notion of size; not worth an error
            return 0
    return nbytes if nbytes >= LARGE_BYTES_MIN else 0


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


def describe_error(error: BaseException) -> bytes:
    """Encode an exception with the traceback the user should see (their own frames first)."""
    from distributed.core import error_message
    from distributed.protocol import pickle as distributed_pickle

    try:
        raise error
    except BaseException:  # noqa: B036 - `error_message` reads the exception being handled
        message = error_message(error)
    shown = _users_traceback(error.__traceback__)
    try:
        traceback_blob = distributed_pickle.dumps(shown)
        distributed_pickle.loads(traceback_blob)
    except Exception:  # tracebacks that cannot be pickled travel as text
        traceback_blob = distributed_pickle.dumps("".join(traceback.format_tb(shown)))
    exception: Any = message["exception"]
    return pack(
        [
            bytes(exception.data),
            None if message["traceback"] is None else traceback_blob,
            message["exception_text"],
            "".join(traceback.format_tb(shown)),
        ]
    )


def _users_traceback(found: TracebackType | None) -> TracebackType | None:
    shown = found
    while shown is not None and any(part in shown.tb_frame.f_code.co_filename for part in _OUR_FILES):
        shown = shown.tb_next
    return shown if shown is not None else found
