"""The death of a task's process, as programs written for other clusters know it."""

from __future__ import annotations

from typing import Any

from distributed.scheduler import KilledWorker

from lambda_worker.core.errors import ExecutorLost


class ExecutorKilled(ExecutorLost, KilledWorker):
    """An executor died while it ran a task.

    It is a `distributed.scheduler.KilledWorker`, so that who handles those handles it.

    Parameters
    ----------
    message
        Says which task, why, and what to do.
    task
        The key of the task.

    Examples
    --------
    >>> error = ExecutorKilled("the Lambda that ran task 'x' died", "x")
    >>> isinstance(error, KilledWorker), error.task
    (True, 'x')
    """

    def __init__(self, message: str, task: Any = None) -> None:
        Exception.__init__(self, message)
        self._task = task

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self._task)

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
        return 0
