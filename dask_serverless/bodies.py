"""Task bodies as bytes: a segment's worth in one pickle.

Most tasks are calls of a function with plain arguments and values of other tasks. Their bodies are pickled as that
(`_as_call`) and not as task objects, which take Python code to pickle, to unpickle and to run.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any, NoReturn

import cloudpickle
from dask._task_spec import Alias, GraphNode, Task, TaskRef, _execute_subgraph
from dask.utils import funcname
from distributed.protocol.pickle import _DaskPickler

from dask_serverless.dask_graph import Body, JobPlan, Key
from dask_serverless.literals import STORED_BYTES_MIN, Literals, unshared
from lambda_worker.core.errors import ServerlessError, UnpicklableTask
from lambda_worker.core.wire import Ref
from lambda_worker.stored_literals import StoredLiteral
from lambda_worker.task_runner import run_fused
from lambda_worker.values import names_by_value

#: In the pickle of a segment that is no larger than this, nothing is looked for that could be stored by itself.
PLAIN_BYTES_MAX = 64 * 1024

_NO_PLACES: tuple[()] = ()


def segment_bodies(
    plan: JobPlan,
    first: int,
    last: int,
    constant_refs: Mapping[Key, Sequence[Any]] = {},  # noqa: B006
    literals: Literals | None = None,
) -> bytes:
    """Pickle the bodies of the tasks ``first .. last - 1`` at once.

    Pickled together, what the tasks share (functions, keys, embedded data) is written once.

    Parameters
    ----------
    constant_refs
        For each of the plan's `constants`: the `Ref` under which it was stored.
    literals
        Takes large objects out; None: they stay in.

    Raises
    ------
    UnpicklableTask
        Naming the first task that cannot be pickled, and why.
    ValueTooLarge, StoreFull, StoreUnavailable
        When what was taken out cannot be stored.

    Examples
    --------
    >>> import pickle
    >>> from dask._task_spec import Task
    >>> from dask_serverless.dask_graph import plan_job
    >>> plan = plan_job({"x": Task("x", sum, (1, 2))}, {"x"})
    >>> pickle.loads(segment_bodies(plan, 0, 1))
    [('x', <built-in function sum>, ((1, 2),), (), None)]
    """
    bodies = plan.bodies[first:last]
    if plan.constants:
        bodies = [
            (body[0], body[1], {name: list(constant_refs[constant]) for name, constant in body[2].items()})
            if body and body[2]
            else body
            for body in bodies
        ]
    try:
        if literals is None:
            return _dumps(list(map(_as_call, unshared(bodies))))
        if not literals.found_any:
            large: list[int] = []
            blob = _dumps(list(map(_as_call, unshared(bodies))), buffer_callback=_probe(large))
            if not large and len(blob) <= PLAIN_BYTES_MAX:
                return blob
        lean, captured = literals.take_out(bodies)
        return _dumps(list(map(_as_call, unshared(lean))), captured)
    except ServerlessError:
        raise
    except Exception as error:
        _blame(plan, first, bodies, error)


def _as_call(body: Any) -> Any:
    """Return a body as a call, ``(key, function, arguments, places, keywords)``, if it is one; else as it is.

    `places` are the indices of arguments that are values of parents, with the parents' indices; None when
    the arguments are the values of all parents, in order.
    """
    if body is None or type(body[0]) is not Task or body[2]:
        return body
    task, names, _ = body
    keywords: dict[str, Any] | None = task.kwargs or None
    if keywords:
        for argument in keywords.values():
            if isinstance(argument, (GraphNode, TaskRef)):
                return body
    function = run_fused if task.func is _execute_subgraph else task.func
    places: list[tuple[int, int]] = []
    number = 0
    for argument in task.args:
        kind = type(argument)
        if kind is TaskRef or kind is Alias:
            places.append((number, names.index(argument.key if kind is TaskRef else argument.target)))
        elif isinstance(argument, (GraphNode, TaskRef)):
            return body
        number += 1
    if not places:
        return task.key, function, task.args, _NO_PLACES, keywords
    if len(places) == number == len(names) and all(index == parent for index, parent in places):
        return task.key, function, (), None, keywords
    arguments = list(task.args)
    for index, _ in places:
        arguments[index] = None
    return task.key, function, tuple(arguments), places, keywords


def _probe(large: list[int]) -> Callable[[pickle.PickleBuffer], bool]:
    """Return what notes large buffers of a pickle and keeps them out of it; small ones stay in."""

    def note(buffer: pickle.PickleBuffer) -> bool:
        try:
            nbytes = buffer.raw().nbytes
        except BufferError:  # not in one piece: it has to be in the pickle, and counts there
            return True
        if nbytes >= STORED_BYTES_MIN:
            large.append(nbytes)
        return nbytes < STORED_BYTES_MIN

    return note


class _Stored:
    """Leaves out of a pickle what is stored by itself."""

    captured: Mapping[int, Ref]

    def persistent_id(self, thing: Any) -> Any:
        if type(thing) is StoredLiteral:
            return ("node", thing.key, *thing.location)
        ref = self.captured.get(id(thing))
        return None if ref is None else ("value", None, *ref)


class _PlainPickler(_Stored, pickle.Pickler):
    pass


class _DistributedPickler(_Stored, _DaskPickler):
    pass


class _CloudPickler(_Stored, cloudpickle.Pickler):  # type: ignore[misc]
    pass


def _with(pickler: Any, bodies: Any, captured: Mapping[int, Ref] | None, **options: Any) -> bytes:
    file = BytesIO()
    mine = pickler(file, protocol=5, **options)
    if captured is not None:
        mine.captured = captured
    mine.dump(bodies)
    return file.getvalue()


def _dumps(bodies: Any, captured: Mapping[int, Ref] | None = None, **options: Any) -> bytes:
    """Pickle by the rules of `distributed.protocol.pickle.dumps`, but never log what fails.

    Plain pickle first; types that distributed can serialise but pickle cannot, its way; cloudpickle
    if that fails too or anything comes from ``__main__``. Modules registered with
    `cloudpickle.register_pickle_by_value` go by value too: distributed honours them for the object
    pickled only, which here is a list, so we look for their names in the bytes instead.
    """
    # Asking for persistent ids costs a call for each object, so nobody is asked where nothing can be stored.
    plain, ours, by_value = (
        (pickle.Pickler, _DaskPickler, cloudpickle.Pickler)
        if captured is None
        else (_PlainPickler, _DistributedPickler, _CloudPickler)
    )
    try:
        try:
            blob = _with(plain, bodies, captured, **options)
        except Exception:
            blob = _with(ours, bodies, captured, **options)
    except Exception:
        return _with(by_value, bodies, captured, **options)
    if any(name in blob for name in names_by_value()):
        return _with(by_value, bodies, captured, **options)
    return blob


def _blame(plan: JobPlan, first: int, bodies: Sequence[Body | None], error: Exception) -> NoReturn:
    """Find the task that cannot be pickled, and raise."""
    for task, body in enumerate(bodies, first):
        try:
            _dumps(body)
        except Exception as cause:
            assert body is not None
            node = body[0]
            what = f"a call of {funcname(node.func)}" if isinstance(node, Task) else f"a {type(node).__name__}"
            raise UnpicklableTask(
                f"task {plan.keys[task]!r} ({what}) cannot be pickled, so no executor could receive it: "
                f"{type(cause).__name__}: {cause}. Make what it holds inside the task, or run it on a Dask worker: "
                "dask.annotate(serverless=False)"
            ) from cause
    raise error
