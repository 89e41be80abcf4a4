"""Programs as Dask's users write them. Each runs under `LocalCluster` and under `ServerlessCluster`.

A program is a function that returns (or raises) something. It asks for what it needs by the names of its
parameters: ``client``, ``cluster``, ``path`` (an empty directory of its own). Rules: public API only, well under a
second, no sleeping but as the work of a task, the same answer each time under LocalCluster.

A program that is to raise says so, ``@program(raises=KeyError)``: one that raises by mistake on both sides agrees
with itself and proves nothing. One that does not agree yet says how and why, ``@program(differs="...")``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MODULES = (
    "arrays",
    "array_functions",
    "dataframes",
    "frames",
    "bags",
    "delayed",
    "futures",
    "waiting",
    "errors",
    "values",
    "workers",
    "sessions",
    "executors",
    "actors",
    "plugins",
    "diagnostics",
    "asynchronous",
    "machine_learning",
    "model_selection",
    "coordination",
    "cluster",
)


@dataclass(frozen=True)
class Program:
    """A function, and how to judge it.

    Parameters
    ----------
    name
        Module and function, as ``arrays.slicing``.
    function
        What to run.
    raises
        What it raises under LocalCluster, by intention. None: nothing.
    differs
        None: it must agree. Else one sentence: how it differs, and why.
    unsupported
        None, or one sentence: which error says that it cannot be done here, and why it cannot.
    covers
        Names of distributed's public face (``"Queue.put"``) that it proves something about, beyond those which its
        source shows (`surface`). What differs, or is not supported, counts only for the names given here.
    own_cluster
        Whether it hurts the clusters it runs on, and so has them for itself.
    rtol
        How far floats may be apart, relatively.
    """

    name: str
    function: Callable[..., Any]
    raises: type[BaseException] | None = None
    differs: str | None = None
    unsupported: str | None = None
    covers: tuple[str, ...] = ()
    own_cluster: bool = False
    rtol: float = 1e-9


RUN_IS_ELSEWHERE = "`Client.run` answers for one executor; the others make the same call before their next task"
UNPICKLABLE = "UnpicklableResult, which names the task, where Dask's gather fails with TypeError"

PROGRAMS: dict[str, Program] = {}


def program(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Register a program: ``@program``, or ``@program(raises=ValueError, own_cluster=True, rtol=1e-6)``."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        assert name not in PROGRAMS, f"there are two programs named {name}"
        PROGRAMS[name] = Program(name, function, **options)
        return function

    return register if function is None else register(function)


def load() -> list[Program]:
    """Import every module of programs, and return what they registered."""
    for module in MODULES:
        importlib.import_module(f"{__name__}.{module}")
    return list(PROGRAMS.values())


def log_of(ask: Callable[[], Any]) -> Any:
    """Return what Dask says when it is asked for a log; again, if another thread wrote to the log meanwhile.

    Dask walks over its log without a lock, under both clusters.
    """
    for _ in range(100):
        try:
            return ask()
        except RuntimeError as error:
            if "mutated during iteration" not in str(error):
                raise
    raise AssertionError("a hundred times, somebody wrote to the log while it was read")
