"""What becomes of what the storage tier has lost, as far as executors cannot make it again themselves.

A shard dies and comes back empty, or is given up, and then others have what is stored again. Inputs that are lost are
made again by the executors that need them (`lambda_worker.core.lineage`). The rest is the proxy's:

* Segments, constants and the outfit are stored again: from what was kept, or planned once more from the user's graph.
* Results that somebody holds are given up: the scheduler hears that the fleet worker has them no more, and asks for
  them again, as it does when a Dask worker dies. They are computed again from the kept graphs.
* A job that misses a value made outside of it begins again, once that value is there.

Scattered data and results of Dask workers stay where they were: of these, the tier has copies only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from dask_serverless.dask_graph import JobPlan
from dask_serverless.job_events import JobFailed, Released
from dask_serverless.preparation import Preparation, prepare_and_open
from dask_serverless.submissions import Replan
from lambda_worker.core.errors import PlatformError, ServerlessError, ValueLost
from lambda_worker.core.wire import Location, Ref
from lambda_worker.task_runner import describe_error

if TYPE_CHECKING:
    from dask_serverless.dispatch import Dispatcher

logger = logging.getLogger("dask_serverless.losses")


class Holder(Protocol):
    """Who answers for keys towards the scheduler: the proxy."""

    def give_up(self, key: Hashable) -> None:
        """The value of a key is lost: if it is a stub's, the scheduler shall ask for it again."""

    def ask_again(self, keys: Sequence[Hashable]) -> None:
        """Have keys computed again that the scheduler waits for."""


class Losses:
    """What a dispatcher does about lost values.

    Parameters
    ----------
    dispatcher
        Keeps the ledger.
    holder
        Answers for keys.
    """

    def __init__(self, dispatcher: Dispatcher, holder: Holder) -> None:
        self.counts = {"shards_lost": 0, "results_lost": 0}
        self._dispatcher = dispatcher
        self._holder = holder
        self._plans: dict[str, Callable[[], JobPlan]] = {}
        self._restoring: dict[str, asyncio.Task[Any]] = {}

    # -- what is known of jobs ------------------------------------------------------------------

    def note(self, job: str, plan: JobPlan, again: Callable[[], JobPlan] | None) -> None:
        """Remember how a job can be planned once more: by `again`, or else it is a small one, which is kept."""
        self._plans[job] = again or (lambda: plan)

    def replan(self, job: str) -> Replan | None:
        """Return how a job is planned once more from the message that brought it, if one did."""
        again = self._plans.get(job)
        return again if isinstance(again, Replan) else None

    def forget(self, job: str) -> None:
        """A job is over."""
        self._plans.pop(job, None)

    # -- what is heard --------------------------------------------------------------------------

    def shard_lost(self, shard: int) -> None:
        """A shard has died, and is there again, empty; or others take its place."""
        self.counts["shards_lost"] += 1
        self._dispatcher.spawn(self._look_after(shard))

    def lacking(self, job: str, constant: str = "") -> None:
        """An executor misses what the proxy has stored, or finds it spoiled: a constant, or else anything."""
        if constant:
            self._dispatcher.constants.doubt(constant)
        if job in self._dispatcher.ledger.jobs and job not in self._restoring:
            task = self._restoring[job] = self._dispatcher.spawn(self._restore(job))
            task.add_done_callback(lambda _: self._restoring.pop(job, None))

    def input_lost(self, job: str, lost: Sequence[tuple[int, Location | None]]) -> None:
        """An executor misses values that were made outside its job: they are lost, or (None) it was never told where
        they are."""
        preparation = self._dispatcher.preparation(job)
        if job not in self._dispatcher.ledger.jobs or preparation is None:
            return
        if all(where is None for _, where in lost):
            keys = {task: key for key, task in preparation.plan.externals.items()}
            entries = {task: self._dispatcher.ledger.keys.get(keys[task]) for task, _ in lost if task in keys}
            places = {task: entry.result.location for task, entry in entries.items() if entry and entry.result}
            if len(places) == len(lost):
                self._dispatcher.spawn(self._place(job, places))
                return
        self._give_up({where for _, where in lost if isinstance(where, Ref)})
        self._begin_again(job)

    # -- what is done ---------------------------------------------------------------------------

    async def look_after_all(self) -> None:
        """Give up what is no longer there, wherever it was."""
        await self._look(self._dispatcher.ledger.held())

    async def _look_after(self, shard: int) -> None:
        dispatcher = self._dispatcher
        await self._look([ref for ref in dispatcher.ledger.held() if ref.shard == shard or ref.stripes > 1])
        for job in list(dispatcher.ledger.jobs):
            self.lacking(job)

    async def _look(self, refs: Sequence[Ref]) -> None:
        dispatcher = self._dispatcher
        try:
            self._give_up(set(await dispatcher.call(dispatcher.backend.store.missing, refs)))
            await dispatcher.call(dispatcher.constants.look)
        except PlatformError as error:  # it has died again: then this is called again
            logger.warning("it is not known what was lost: %s", error)

    async def _place(self, job: str, places: dict[int, Location]) -> None:
        try:
            await self._dispatcher.call(self._dispatcher.backend.store.place, job, places)
        except PlatformError as error:
            logger.warning("executors of job %s have not heard where their inputs are: %s", job, error)

    def _give_up(self, refs: set[Ref]) -> None:
        """Give up every key whose value was in one of these places."""
        if not refs:
            return
        keys = self._dispatcher.ledger.keys.items()
        lost = [key for key, entry in keys if entry.result is not None and entry.result.location in refs]
        self.counts["results_lost"] += len(lost)
        for key in lost:
            self._holder.give_up(key)
            self._dispatcher.feed(Released(key))

    def _begin_again(self, job: str) -> None:
        """Plan a job's pending keys once more; whoever is at work in it is fenced."""
        keys = [key for names in self._dispatcher.ledger.jobs[job].keys.values() for key in names]
        for key in keys:
            self._dispatcher.feed(Released(key))
        self._holder.ask_again(keys)

    async def _restore(self, job: str) -> None:
        """Store again what executors read of a job, and what they wear."""
        dispatcher = self._dispatcher
        try:
            await dispatcher.restore_outfit()
            await dispatcher.wait_until_opened(job)
            preparation = dispatcher.preparation(job)
            again = self._plans.get(job)
            if preparation is None or again is None:
                return
            await dispatcher.call(dispatcher.constants.look)
            if preparation.segments and not dispatcher.constants.lacks(job):
                await dispatcher.call(dispatcher.backend.store.open_job, job, preparation.segments)
            else:
                await dispatcher.call(self._plan_and_store, preparation, again)
            if job not in dispatcher.ledger.jobs:  # closed meanwhile: it is not to be there
                kept = dispatcher.ledger.held_of(job)
                await dispatcher.call(dispatcher.backend.store.close_job, job, kept)
                await dispatcher.call(dispatcher.constants.release, job)
        except PlatformError as error:  # those who miss something will ask again
            logger.warning("job %s was not stored again: %s", job, error)
        except ServerlessError as error:
            dispatcher.feed(JobFailed(job, describe_error(error)))
        except Exception as error:  # users' code runs when a graph is read
            logger.exception("job %s could not be planned again", job)
            lost = ValueLost(
                f"a part of the graph was lost with a storage server, and could not be made again: {error}"
            )
            dispatcher.feed(JobFailed(job, describe_error(lost)))

    def _plan_and_store(self, preparation: Preparation, again: Callable[[], JobPlan]) -> None:
        backend = self._dispatcher.backend
        plan = again()
        before, now = preparation.plan, plan
        if before.keys != now.keys or before.graph.parents != now.graph.parents:
            raise ValueLost(
                "a part of the graph was lost with a storage server, and the graph is another one when it is read "
                "again. Compute it once more"
            )
        constants, compressor = self._dispatcher.constants, self._dispatcher.compressor
        prepare_and_open(preparation.job, plan, backend.secret, backend.store, constants, compressor)
