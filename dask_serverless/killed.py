"""The end of a task that took its executors with it, as programs written for other clusters know it."""

from __future__ import annotations

from typing import Any

from distributed.scheduler import KilledWorker

from lambda_worker.core.errors import ExecutorLost


class ExecutorKilled(ExecutorLost, KilledWorker):
    """A task ended every executor that ran it: it crashes, or needs more memory or time than there is.

    It is a `distributed.scheduler.KilledWorker`, so that who handles those handles it.

    Parameters
    ----------
    message
        Says which task, why, and what to do.
    task
        The key of the task.
    deaths
        How many executors it ended.

    Examples
    --------
    >>> error = ExecutorKilled("the Lambda that ran task 'x' died 4 times", "x", 4)
    >>> isinstance(error, KilledWorker), error.task, error.allowed_failures
    (True, 'x', 3)
    """

    def __init__(self, message: str, task: Any = None, deaths: int = 1) -> None:
        Exception.__init__(self, message)
        self._task = task
        self.deaths = deaths

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self._task, self.deaths)

    @property
    def task(self) -> Any:
        """The key of the task that was running, None if the executor could not say."""
        return self._task

    @property
    def last_worker(self) -> Any:
        """No Dask worker has died."""
        return None

    @property
    def allowed_failures(self) -> int:
        """How often the task was given to another executor."""
        return self.deaths - 1
