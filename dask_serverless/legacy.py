"""What a dispatcher leaves to its successor, and what it takes over from its predecessor: the hands of `notes`.

Only of a persistent cluster; of any other, nothing here does anything.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from dask_serverless.dask_graph import JobPlan
from dask_serverless.job_events import Event, Kept, Released, Submitted
from dask_serverless.notes import Found, Given, JobNote, Notes
from dask_serverless.prefixes import prefixes_of
from dask_serverless.preparation import Preparation
from dask_serverless.resumption import resume
from lambda_worker.core.errors import PlatformError
from lambda_worker.core.schedule import Assignment
from lambda_worker.core.wire import Location

if TYPE_CHECKING:
    from dask_serverless.dispatch import Dispatcher

logger = logging.getLogger("dask_serverless.dispatch")

#: How long what is noted for nobody any more waits, for more to be removed along with it.
FLUSH_SECONDS = 0.05


class Legacy:
    """The notes of a dispatcher.

    Parameters
    ----------
    dispatcher
        Keeps the ledger.

    Attributes
    ----------
    notes
        None: the cluster is not persistent.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        backend = dispatcher.backend
        self.notes = Notes(backend.store, backend.secret, backend.numbers_from) if backend.persistent else None
        self._dispatcher = dispatcher
        self._flushing = False
        self._waiting: dict[str, asyncio.Task[None]] = {}  # jobs of which it is being noted that they wait

    def __repr__(self) -> str:
        return f"<Legacy: {self.notes!r}>"

    # -- for the successor ----------------------------------------------------------------------

    def note_heard(self, heard: Sequence[tuple[str, str, int, bytes]]) -> None:
        """Note what executors have said; blocks."""
        if self.notes is not None:
            self.notes.note_heard(heard)

    def note_submitted(self, job: str, plan: JobPlan) -> None:
        """Note a job that has to wait before anything of it is started."""
        known = self._dispatcher.ledger.jobs.get(job)
        if known is not None and not known.launching:  # else its launch does
            self.note_waiting(job, plan)

    def note_waiting(self, job: str, plan: JobPlan) -> None:
        """Note a job of which nothing has been started yet, unless that is known."""
        known = self._dispatcher.ledger.jobs.get(job)
        again = self._dispatcher.losses.replan(job)
        if self.notes is None or again is None or known is None or known.urgent:
            return
        if job in self._waiting or self.notes.has_begun(job):
            return
        note = JobNote(plan, again, waits=True)
        self._waiting[job] = self._dispatcher.spawn(self._call(self.notes.note_waiting, job, note))

    async def note_launch(
        self,
        preparation: Preparation,
        launch: int,
        starts: Mapping[int, Location | None],
        assignments: Sequence[Assignment],
    ) -> None:
        """Note what executors are about to be given, and before the first of them the job itself."""
        job, note = preparation.job, None
        again = self._dispatcher.losses.replan(job)
        if self.notes is None or again is None:  # nobody asks for an errand again
            return
        if waiting := self._waiting.pop(job, None):
            await asyncio.wait([waiting])
        if not self.notes.has_begun(job):
            constants = self._dispatcher.constants.used_by(job)
            note = JobNote(preparation.plan, again, preparation.segments, constants)
        await self._call(self.notes.note_launch, job, note, launch, _given(starts, assignments))

    async def note_given(
        self,
        job: str,
        launch: int,
        starts: Mapping[int, Location | None],
        assignments: Sequence[Assignment],
        recipients: Sequence[str],
    ) -> None:
        """Note what those executors were given that found room, and who was sent the mail of each."""
        if self.notes is not None and self.notes.has_begun(job):
            sent = {each.executor: name for each, name in zip(assignments, recipients, strict=True)}
            await self._call(self.notes.note_given, job, launch, _given(starts, assignments), sent)

    def note_error(self, job: str, task: int, error: bytes) -> None:
        """Note an error that the proxy found."""
        if self.notes is not None:
            self._dispatcher.spawn(self._call(self.notes.note_error, job, task, error))

    def note_event(self, event: Event) -> None:
        """A key may have been let go."""
        if self.notes is not None and isinstance(event, Released) and self.notes.let_go(event.key):
            self._flush_soon()

    def note_end(self, job: str) -> None:
        """A job is over."""
        self._waiting.pop(job, None)
        if self.notes is not None and self.notes.end(job):
            self._flush_soon()

    async def note_again(self) -> None:
        """Note once more what the store has forgotten."""
        if self.notes is not None:
            try:
                await self._dispatcher.call(self.notes.note_again)
            except PlatformError as error:
                logger.warning("another process could not go on with what is held here: %s", error)

    async def keep_alive(self) -> None:
        """Renew the time to live of all that is noted."""
        if self.notes is not None:
            await self._dispatcher.call(self.notes.keep_alive)

    async def _call(self, note: Callable[..., None], *about: object) -> None:
        call: Awaitable[None] = self._dispatcher.call(note, *about)
        try:
            await call
        except PlatformError as error:  # work goes on; only who comes after us knows less
            logger.warning("job %s may have to begin anew should this process die: %s", about[0], error)

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self.notes is not None and not self._dispatcher.closing and self._dispatcher.failed is None:
            self._dispatcher.spawn(self._dispatcher.call(self.notes.flush))

    # -- from the predecessor -------------------------------------------------------------------

    async def take_over(self) -> Found | None:
        """Go on where another process has ended; before anybody listens. None: there is nothing to go on with."""
        dispatcher, notes = self._dispatcher, self.notes
        if notes is None or not dispatcher.backend.epoch:
            return None
        found: Found = await dispatcher.call(notes.read)
        for past in found.pasts:
            job, note = past.job, found.jobs[past.job]
            preparation = Preparation(job, note.plan, dict(note.segments), prefixes_of(note.plan))
            # A job is noted before it is opened, and only in one that is open is anything given.
            dispatcher.adopt(preparation, note.again, note.constants, opened=bool(past.given or past.executors))
        for data in found.data:
            dispatcher.feed(Kept(data.key, data.location))
        for event in resume(found.pasts, {data.key for data in found.data}):
            if isinstance(event, Submitted):
                notes.keep_only(event.job, event.visible)
            dispatcher.feed(event)
        for past in found.pasts:  # Lambda knows by whose invocation they came, and will say so should it fail
            for executor in past.executors:
                dispatcher.launcher.note_posted(past.recipients.get(executor, ""), past.job, executor)
        dispatcher.take(list(found.unheard))
        for job in dispatcher.ledger.stalled():  # nobody works on it, and nobody has more to say of it
            for key in [key for names in dispatcher.ledger.jobs[job].keys.values() for key in names]:
                dispatcher.feed(Released(key))
        return found


def _given(starts: Mapping[int, Location | None], assignments: Sequence[Assignment]) -> Given:
    return {each.executor: [(task, starts[task]) for task in each.starts] for each in assignments}
