"""Errands: what the cluster itself has executors do, beside the graphs of users.

An errand is a job of one task. It goes above the ceiling, as a Dask worker answers while its threads
are busy, and its key is known to the ledger alone: neither the scheduler nor a client has heard of it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Hashable
from typing import Any, Protocol

from dask_serverless.dask_graph import plan_call
from dask_serverless.job_events import Released, Result
from lambda_worker.core.wire import Location


class Erred(Exception):
    """An errand raised, or could not be run.

    Parameters
    ----------
    error
        The exception, encoded by `lambda_worker.task_runner.describe_error`.
    """

    def __init__(self, error: bytes) -> None:
        super().__init__("an errand has erred")
        self.error = error


class Runs(Protocol):
    """Who runs jobs: the dispatcher."""

    def new_job(self) -> str:
        """Return a name for a job."""

    def submit(self, job: str, plan: Any, urgent: bool = False) -> None:
        """Take on a planned graph."""

    def feed(self, event: Any) -> None:
        """Feed the ledger."""


class Errands:
    """The errands under way.

    Parameters
    ----------
    runs
        Who runs jobs.
    """

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._numbers = itertools.count(1)
        self._waiting: dict[Hashable, asyncio.Future[Location]] = {}
        self._plans: dict[Hashable, Any] = {}

    async def run(self, label: str, function: Callable[..., Any], *args: Any, read: Callable[..., Any]) -> Any:
        """Run a function of an importable module in one executor.

        Parameters
        ----------
        label
            Says what it is, should its executor die.
        function, *args
            What to call.
        read
            Reads the value at a location, while it is there; a coroutine function.

        Raises
        ------
        Erred
            With whatever the function raised, or what became of its executor.
        """
        key = f"{label}-{next(self._numbers)}"
        waiting = self._waiting[key] = asyncio.get_running_loop().create_future()
        self._plans[key] = plan_call(key, function, *args)
        try:
            self.begin(key)
            return await read(await waiting)
        finally:
            self._waiting.pop(key, None)
            self._plans.pop(key, None)
            self._runs.feed(Released(key))

    def begin(self, key: Hashable) -> bool:
        """Have an errand run (again), if the key is one's that somebody waits for."""
        if key in self._plans:
            self._runs.submit(self._runs.new_job(), self._plans[key], urgent=True)
        return key in self._plans

    def finish(self, key: Hashable, result: Result) -> bool:
        """Take the value of a key, if it is an errand's."""
        waiting = self._waiting.get(key)
        if waiting is not None and not waiting.done():
            waiting.set_result(result.location)
        return waiting is not None

    def fail(self, key: Hashable, error: bytes) -> bool:
        """Take the error of a key, if it is an errand's."""
        waiting = self._waiting.get(key)
        if waiting is not None and not waiting.done():
            waiting.set_exception(Erred(error))
        return waiting is not None

    def close(self) -> None:
        """Nobody waits any more."""
        for waiting in self._waiting.values():
            waiting.cancel()
