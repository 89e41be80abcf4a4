"""What executors do for the cluster itself: fit a piece of the outfit, run a function for `client.run`.

An errand is a task like others, but of a job that no client has submitted. Its function is one of
this module's, which executors have; only its arguments travel.
"""

from __future__ import annotations

import inspect
from typing import Any

from distributed import get_worker
from distributed.protocol import pickle
from distributed.utils import has_arg


def fit(kind: str, name: str) -> None:
    """Raise what became of a piece in this sandbox, which wears it by now, if it has failed."""
    worker: Any = get_worker()
    failure = worker.wardrobe.failures.get((kind, name))
    if failure is not None:
        raise failure


def run(function: bytes, args: bytes, kwargs: bytes, name: str = "", serial: int = 0) -> Any:
    """Call what `client.run` was given, and note that this sandbox need not do it again."""
    worker: Any = get_worker()
    result = call(worker, function, args, kwargs)
    if name:
        worker.wardrobe.worn["run", name] = serial
    return result


def call(worker: Any, function_pickle: bytes, args_pickle: bytes, kwargs_pickle: bytes) -> Any:
    """Call a function as a Dask worker's `run` does, with the worker where it asks for it."""
    function = pickle.loads(function_pickle)
    args = pickle.loads(args_pickle) if args_pickle else ()
    kwargs = pickle.loads(kwargs_pickle) if kwargs_pickle else {}
    for asked in ("dask_worker", "dask_scheduler"):
        if has_arg(function, asked):
            kwargs[asked] = worker
    result = function(*args, **kwargs)
    return worker.wait_for(result) if inspect.isawaitable(result) else result
