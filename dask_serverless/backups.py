"""Gives backups to executors that straggle: the ears and hands of `stragglers`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from dask_serverless.job_events import Delegating
from dask_serverless.stragglers import BACKUP, Stragglers, backup_of
from lambda_worker.core.errors import PlatformError

if TYPE_CHECKING:
    from dask_serverless.dispatch import Dispatcher

logger = logging.getLogger("dask_serverless.backups")


class Backups:
    """What a dispatcher does about stragglers, if it shall do anything.

    Parameters
    ----------
    dispatcher
        Keeps the ledger, and starts executors.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.enabled = dispatcher.backend.settings.policy_speculation
        self.counts = {"executors_backed_up": 0}
        self._stragglers = Stragglers()

    def note(self, job: str, executor: str, task: int, now: float) -> None:
        """Take in a heartbeat of an executor that runs a task."""
        if self.enabled and job in self.dispatcher.ledger.jobs:
            self._stragglers.says(job, executor, task, now)

    def forget(self, job: str, executor: str | None = None) -> None:
        """An executor is gone, or all of a job's are."""
        self._stragglers.forget(job, executor)

    def look(self) -> None:
        """Give backups to those who need one."""
        if not self.enabled:
            return
        dispatcher = self.dispatcher
        for job, executor, task in self._stragglers.overdue(dispatcher.experience.expected, dispatcher.places.count):
            logger.info("executor %s/%s has been running %r for long", job, executor, dispatcher.key_of(job, task))
            dispatcher.spawn(self._back_up(job, executor))

    async def _back_up(self, job: str, executor: str) -> None:
        dispatcher = self.dispatcher
        granted = False
        try:
            had = await dispatcher.call(dispatcher.backend.store.recall, job, executor, True)
            if had is None:  # it has just retired
                return
            backup = backup_of(had)
            granted = await dispatcher.admit_more(backup)
            if granted:  # else there is no room for it: the straggler goes on alone
                self.counts["executors_backed_up"] += 1
                dispatcher.feed(Delegating(job, [backup.executor]))
                await dispatcher.launcher.invoke([dispatcher.with_segments(backup)])
        except PlatformError as error:
            logger.warning("executor %s/%s gets no backup: %s", job, executor, error)
        finally:
            if not granted:
                self._stragglers.forget(job, executor + BACKUP)
