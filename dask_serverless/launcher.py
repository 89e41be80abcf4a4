"""Starts executors whose assignments are made: by mail to who lingers, or else by an invocation.

Data before signal: an executor's record is in the store before anybody is asked to run it. What was sent
by mail is seen to until somebody has taken it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TypeAlias

from dask_serverless.backend import Backend
from dask_serverless.hands import Hands
from dask_serverless.postings import Postings
from dask_serverless.whereabouts import Whereabouts
from lambda_worker.core.errors import PlatformError
from lambda_worker.core.schedule import Assignment
from lambda_worker.lingering import mail_of, open_mail
from lambda_worker.parcels import fit

logger = logging.getLogger("dask_serverless.launcher")

#: Mail that was not taken for so long is taken back: whoever lingers takes it within a millisecond.
TAKE_BACK_SECONDS = 0.1
#: News of mail may come a moment after the news that its recipient has died: so many deaths are remembered.
DEAD_MAX = 1_000
#: Invocations under way: what became of each of them.
Invocations: TypeAlias = Future[list[BaseException | None]]
#: For each executor that was admitted, who was sent its mail ("": nobody); and the invocations of those others.
Started: TypeAlias = tuple[list[str], tuple[list[Assignment], Invocations] | None]


class Launcher:
    """Starts executors, and hears what became of their invocations.

    Parameters
    ----------
    backend
        The storage tier, Lambda and the numbers of this cluster.
    hands
        Do what has to be waited for.
    counts
        Where invocations and mails are counted.
    is_live
        Tells whether an executor, of a job, may still be at work.
    lose
        Takes an executor that Lambda did not accept, and why.

    Attributes
    ----------
    whereabouts
        Where values are at hand.
    """

    def __init__(
        self,
        backend: Backend,
        hands: Hands,
        counts: dict[str, int],
        is_live: Callable[[str, str], bool],
        lose: Callable[[Assignment, str | BaseException], None],
    ) -> None:
        self._backend = backend
        self._hands = hands
        self._counts = counts
        self._is_live = is_live
        self._lose = lose
        self._postings = Postings()
        self.whereabouts = Whereabouts()
        self._dead: dict[str, str | BaseException] = {}  # whose invocations have failed, lately, and why
        self._sending: set[tuple[str, str]] = set()  # whom Lambda has not accepted yet: jobs and executors

    # -- with records to be made ----------------------------------------------------------------

    def begin(
        self,
        job: str,
        segments: Mapping[int, bytes] | None,
        assignments: list[Assignment],
        places: int | None,
        splits: bool,
    ) -> Callable[[], Started]:
        """Begin to start executors, as far as that can be done without waiting; what is returned does the rest.

        The rest is one visit to a thread. A small job is opened along with it.
        """
        backend = self._backend
        posting = bool(backend.settings.executor_linger)
        mails = [mail_of(backend.secret, each) if posting else b"" for each in assignments]
        preferred = list(map(self.whereabouts.best, assignments))
        # One assignment that carries a graph of one segment whose work cannot be given away: nobody else reads it.
        alone = bool(segments) and len(assignments) == 1 and not splits and assignments[0].segments == segments
        if alone:
            return functools.partial(
                self._start, assignments, backend.store.begin_admit(assignments, mails, places, True, preferred)
            )

        def admit() -> list[str]:
            if segments is not None:
                backend.store.open_job(job, segments)
            return backend.store.admit_and_post(assignments, mails, places, False, preferred)

        return functools.partial(self._start, assignments, admit)

    def _start(self, assignments: list[Assignment], admit: Callable[[], list[str]]) -> Started:
        backend = self._backend
        recipients = admit()
        unposted = [each for name, each in zip(recipients, assignments, strict=False) if not name]
        if not unposted:
            return recipients, None
        fitting = fit(unposted, backend.store, backend.secret, backend.settings.executor_payload_bytes_max)
        return recipients, (unposted, backend.invoker.begin(fitting))

    async def start_again(self, assignment: Assignment, places: int) -> None:
        """Give the record of an executor that died its next attempt, and invoke that."""
        # Not by mail: who has died deserves a fresh start.
        admit = functools.partial(self._backend.store.admit_and_post, [assignment], (), places)
        _, under_way = await self._hands.call(self._start, [assignment], admit)
        if under_way is not None:
            await self.hear_refusals(*under_way)

    # -- by invocation --------------------------------------------------------------------------

    async def invoke(self, assignments: list[Assignment]) -> None:
        """Invoke on behalf of an executor."""
        await self.hear_refusals(assignments, self._backend.invoker.begin(assignments))

    async def hear_refusals(self, assignments: Sequence[Assignment], under_way: Invocations) -> None:
        """Wait for what becomes of invocations."""
        self._counts["invocations"] += len(assignments)
        names = {(each.job, each.executor) for each in assignments}
        self._sending |= names
        try:
            errors = await self._backend.invoker.answers(assignments, under_way)
        finally:
            self._sending -= names
        for assignment, error in zip(assignments, errors, strict=True):
            if error is not None:
                self._lose(assignment, error)

    def is_sending(self, job: str, executor: str) -> bool:
        """Whether Lambda has not accepted an executor yet (it may be throttling): its silence means nothing."""
        return (job, executor) in self._sending

    # -- by mail --------------------------------------------------------------------------------

    def note_posted(self, recipient: str, job: str, executor: str) -> None:
        """An executor came by mail, if it has a recipient; see to it later that the mail was taken."""
        if not recipient:
            return
        self._counts["mails"] += 1
        if not self._is_live(job, executor):  # it has ended before we heard that it began
            return
        self.whereabouts.posted(recipient, job, executor)
        self._postings.sent(recipient, job, executor)
        if recipient in self._dead:  # Lambda said so before we heard that mail was sent there
            self._hands.spawn(self.recipient_died(recipient, self._dead[recipient]))
        else:
            asyncio.get_running_loop().call_later(TAKE_BACK_SECONDS, self._see_to, recipient, job, executor)

    def note_retired(self, job: str, executor: str, sandbox: str, mailbox: str) -> None:
        """An executor has ended in a sandbox, which lingers under the name of that mailbox ("": it does not)."""
        self.whereabouts.retired(job, executor, sandbox, mailbox)

    def _see_to(self, recipient: str, job: str, executor: str) -> None:
        if (job, executor) in self._postings and not self._hands.closing.is_set():
            self._hands.spawn(self._take_back(recipient))

    async def _take_back(self, recipient: str) -> None:
        """Have an executor invoked whose mail nobody takes."""
        try:
            mail = await self._hands.call(self._backend.store.take_back, recipient)
        except PlatformError as error:  # its lease will tell
            logger.warning("mail to %s could not be taken back: %s", recipient, error)
            return
        if mail:
            self.whereabouts.died(recipient)
            assignment = open_mail(self._backend.secret, mail)
            self._postings.ended(assignment.job, assignment.executor)
            await self.invoke([assignment])

    async def recipient_died(self, recipient: str, why: str | BaseException) -> None:
        """Lose who came by mail to an invocation that has failed; invoke who never got there."""
        self._dead[recipient] = why
        self.whereabouts.died(recipient)
        if len(self._dead) > DEAD_MAX:
            del self._dead[next(iter(self._dead))]
        if self._postings.to(recipient):
            await self._take_back(recipient)
        for job, executor in self._postings.to(recipient):
            self._lose(Assignment(job, executor, 1, ()), why)  # later attempts do not come by mail

    def forget(self, job: str, executor: str | None = None) -> None:
        """An executor is gone, or all of a job's are."""
        self.whereabouts.ended(job, executor)
        if executor is not None:
            self._postings.ended(job, executor)
        else:
            self._postings.forget(job)
