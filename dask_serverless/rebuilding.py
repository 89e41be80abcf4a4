"""What a dispatcher does when the metadata server has died and is there again, empty: the hands of `oblivion`.

The listener finds out: the mark that it has put there is gone. Then, in this order:

1. All jobs are closed, and so forgotten here as well. Whoever is at work in one is fenced: nobody knows them there.
2. Executors are ended, where Lambda can be told to (locally). What they do is for nobody, and they take the places of
   those who are to do it again. Elsewhere they hear at their next step or heartbeat that they are fenced. What is
   submitted meanwhile is launched after that.
3. What the proxy had written is written again: the ceiling, and a persistent cluster's notes.
4. Pending keys are asked for again. They are planned anew, as jobs of another name; what is finished is given to these.
5. What executors of the closed jobs have stored since then is removed: at once, and again when a lease is over.

Values, constants and the outfit lie on data shards, and stay.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import TYPE_CHECKING

from dask_serverless.job_events import JobFailed, Released
from dask_serverless.oblivion import BeginAgain, Oblivion
from lambda_worker.core.errors import PlatformError, StoreForgot
from lambda_worker.task_runner import describe_error

if TYPE_CHECKING:
    from dask_serverless.dispatch import Dispatcher
    from dask_serverless.losses import Holder

logger = logging.getLogger("dask_serverless.rebuilding")

#: Who has been ended may have sent a value that is not written yet.
LAST_WRITES_SECONDS = 0.2


class Rebuilding:
    """Brings a cluster back to work whose metadata are lost.

    Parameters
    ----------
    dispatcher
        Keeps the ledger.
    holder
        Answers for keys.
    """

    def __init__(self, dispatcher: Dispatcher, holder: Holder) -> None:
        self.counts = {"metadata_lost": 0, "jobs_begun_again": 0}
        self._dispatcher = dispatcher
        self._holder = holder
        self._oblivion = Oblivion(dispatcher.backend.settings.storage_allowed_failures)

    def forgotten(self) -> None:
        """The metadata server has lost what it knew; it is there again, and marked."""
        dispatcher = self._dispatcher
        if dispatcher.closing or dispatcher.failed is not None:
            return
        self.counts["metadata_lost"] += 1
        jobs = dispatcher.ledger.jobs
        closed = list(jobs)
        again: list[Hashable] = []
        pending = {name: [key for names in job.keys.values() for key in names] for name, job in jobs.items()}
        for verdict in self._oblivion.judge(pending):
            if isinstance(verdict, BeginAgain):
                self.counts["jobs_begun_again"] += 1
                again += verdict.keys
                for key in verdict.keys:
                    dispatcher.feed(Released(key))
            else:
                dispatcher.feed(JobFailed(verdict.job, describe_error(_given_up(verdict.times))))
        dispatcher.ending.begin()
        dispatcher.spawn(self._rebuild(closed, again))

    async def _rebuild(self, closed: Sequence[str], again: Sequence[Hashable]) -> None:
        dispatcher = self._dispatcher
        try:
            await self._try(dispatcher.end_executors)
        finally:
            dispatcher.ending.end()
        for step in (dispatcher.set_places, dispatcher.legacy.note_again, dispatcher.losses.look_after_all):
            await self._try(step)
        self._holder.ask_again(again)
        for pause in (LAST_WRITES_SECONDS, dispatcher.backend.settings.executor_lease):
            await asyncio.sleep(pause)
            await self._purge(closed)

    async def _try(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except Exception as error:  # Lambda or the store has failed again, and says so elsewhere: who waits is told
            logger.warning("not all could be restored that the metadata server has forgotten: %s", error)

    async def _purge(self, jobs: Sequence[str]) -> None:
        """Remove what was stored for jobs after they were closed, except what somebody holds."""
        dispatcher = self._dispatcher
        for job in jobs:
            kept = dispatcher.ledger.held_of(job)
            try:
                await dispatcher.call(dispatcher.backend.store.close_job, job, kept)
            except PlatformError as error:  # it goes with its time to live
                logger.warning("what executors have stored for job %s after its end stays: %s", job, error)


def _given_up(times: int) -> StoreForgot:
    return StoreForgot(
        f"the metadata server of the storage tier was lost {times} times while this was computed "
        "(serverless.storage.allowed-failures). Is this machine out of memory? Compute it again, perhaps in parts"
    )
