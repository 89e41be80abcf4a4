"""Task bodies as bytes: a segment's worth in one pickle."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, NoReturn

import cloudpickle
from dask._task_spec import Task
from dask.utils import funcname
from distributed.protocol.pickle import _DaskPickler

from dask_serverless.dask_graph import Body, JobPlan, Key
from lambda_worker.core.errors import UnpicklableTask


def segment_bodies(plan: JobPlan, first: int, last: int, constant_refs: Mapping[Key, Sequence[Any]] = {}) -> bytes:  # noqa: B006
    """Pickle the bodies of the tasks ``first .. last - 1`` at once.

    Pickled together, what the tasks share (functions, keys, embedded data) is written once.

    Parameters
    ----------
    constant_refs
        For each of the plan's `constants`: the `Ref` under which it was stored.

    Raises
    ------
    UnpicklableTask
        Naming the first task that cannot be pickled, and why.

    Examples
    --------
    >>> import pickle
    >>> from dask._task_spec import Task
    >>> from dask_serverless.dask_graph import plan_job
    >>> plan = plan_job({"x": Task("x", sum, (1, 2))}, {"x"})
    >>> [(task, names, constants)] = pickle.loads(segment_bodies(plan, 0, 1))
    >>> task({})
    3
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
        return _dumps(bodies)
    except Exception as error:
        _blame(plan, first, bodies, error)


def _dumps(bodies: Any) -> bytes:
    """Pickle by the rules of `distributed.protocol.pickle.dumps`, but never log what fails.

    Plain pickle first; types that distributed can serialise but pickle cannot, its way; cloudpickle
    if that fails too or anything comes from ``__main__``. Modules registered with
    `cloudpickle.register_pickle_by_value` go by value too: distributed honours them for the object
    pickled only, which here is a list, so we look for their names in the bytes instead.
    """
    try:
        try:
            blob = pickle.dumps(bodies, protocol=5)
        except Exception:
            file = BytesIO()
            _DaskPickler(file, protocol=5).dump(bodies)
            blob = file.getvalue()
    except Exception:
        return bytes(cloudpickle.dumps(bodies, protocol=5))
    by_value = [b"__main__", *(name.encode() for name in cloudpickle.list_registry_pickle_by_value())]
    if any(name in blob for name in by_value):
        return bytes(cloudpickle.dumps(bodies, protocol=5))
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
