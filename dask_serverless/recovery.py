"""Hears of executors that died, and brings them back: the ears and hands of `supervisor`.

Lambda says it (a failure record, a refused invocation), or silence does (a lapsed lease); so reports of
one death may come from several sides. What was running is learnt from the executor's last words, or
else from its last heartbeat.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dask_serverless.job_events import Delegating, JobFailed, Lost, Retired, Room
from dask_serverless.killed import ExecutorKilled
from dask_serverless.plan.classes import FunctionClass
from dask_serverless.supervisor import (
    LINE_TRIES,
    START_TRIES,
    Blame,
    Cause,
    Death,
    GiveUp,
    Supervisor,
    TryAgain,
    next_attempt,
    silence_allowed,
)
from lambda_worker.core.errors import (
    EnvironmentMismatch,
    ExecutorLost,
    InvocationRefused,
    PlatformError,
    ProtocolError,
    ServerlessError,
    StoreForgot,
)
from lambda_worker.core.schedule import Assignment
from lambda_worker.last_words import last_words
from lambda_worker.lingering import name_of
from lambda_worker.payload import ProtocolMismatch, assignments_of
from lambda_worker.ports import Lapsed
from lambda_worker.task_runner import describe_error

if TYPE_CHECKING:
    from dask_serverless.dispatch import Dispatcher

logger = logging.getLogger("dask_serverless.recovery")

SWEEP_SECONDS = 1.0
#: Errors by which a function says that no executor of its kind will ever do; they need no further words.
_REFUSALS: dict[str, type[ServerlessError]] = {each.__name__: each for each in (EnvironmentMismatch, ProtocolMismatch)}


class Recovery:
    """What a dispatcher does about deaths.

    Parameters
    ----------
    dispatcher
        Keeps the ledger, and starts executors.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.backend = dispatcher.backend
        allowed = self.backend.settings.allowed_failures
        # Who says that much dies innocently here says it of executors without a task, too.
        tries, line_tries = max(START_TRIES, allowed), max(LINE_TRIES, allowed * LINE_TRIES // START_TRIES)
        self.supervisor = Supervisor(allowed, tries, line_tries=line_tries, jitter=random.random)
        self.counts = {"executors_lost": 0, "executors_restarted": 0}
        self._lapsed: dict[tuple[str, str], float] = {}
        self._stalled: set[str] = set()  # jobs that seemed to have nobody at work when this last looked

    # -- ears -----------------------------------------------------------------------------------

    async def watch_failures(self) -> None:
        """Hear what Lambda gave up on, for ever."""
        async for event, error_type, message in self.backend.failures:
            try:
                refusal = _REFUSALS.get(error_type)
                why = refusal(message) if refusal else f"{error_type}: {message}"
                for assignment in assignments_of(self.backend.secret, event):
                    self.lose(assignment, why)
                    await self.dispatcher.launcher.recipient_died(name_of(assignment), why)
            except PlatformError as error:
                logger.warning("a failure record was refused: %s", error)
            except Exception:  # our bug; the watch goes on
                logger.exception("a failure record could not be handled")

    async def sweep(self) -> None:
        """Look for who has fallen silent, for ever."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            if not self.dispatcher.ledger.jobs or self.dispatcher.failed is not None:
                continue
            try:
                await self._sweep_once()
                self.dispatcher.backups.look()
            except StoreForgot:  # the listener finds out as well, and then all begins again
                continue
            except PlatformError as error:
                self.dispatcher.backend_failed(error)
            except Exception:  # our bug; the sweep goes on
                logger.exception("a sweep failed")

    async def _sweep_once(self) -> None:
        dispatcher = self.dispatcher
        now = asyncio.get_running_loop().time()
        lapsed_before, self._lapsed = self._lapsed, {}
        for lapsed in await dispatcher.call(self.backend.store.lapsed):
            who = (lapsed.job, lapsed.executor)
            if dispatcher.launcher.is_sending(*who):
                continue
            since = lapsed_before.get(who, now)
            allowed = silence_allowed(
                lapsed.attempt,
                self._has_begun(lapsed),
                self.backend.settings.executor_lease,
                self._timeout_seconds(lapsed.job),
            )
            if now - since < allowed:
                self._lapsed[who] = since
                continue
            silent = f"no sign of life for {self.backend.settings.executor_lease + now - since:.0f} s"
            self._report(lapsed.job, lapsed.executor, lapsed.attempt, silent, Cause.SILENCE, lapsed.running)
        stalled_before, self._stalled = self._stalled, set()
        for job in dispatcher.ledger.stalled():
            await self._look_into(job, job in stalled_before)
        dispatcher.feed(Room())  # whatever was missed, nothing waits for longer than a sweep

    async def _look_into(self, job: str, again: bool) -> None:
        """Find out why a job has nobody at work that the ledger knows of.

        1. An executor gives work away; 2. it dies before it says so. The store knows who has it, and their leases tell
        when they are to be tried again. If there is nobody, what they said last may still be on its way, but not long.
        """
        dispatcher = self.dispatcher
        unheard_of = await dispatcher.call(self.backend.store.executors, job)
        if unheard_of:
            dispatcher.feed(Delegating(job, unheard_of))
        elif not again:
            self._stalled.add(job)
        elif job in dispatcher.ledger.stalled():
            stalled = ProtocolError(f"job {job} cannot end: keys are pending that no executor works on")
            logger.error("%s; please report it", stalled)
            dispatcher.feed(JobFailed(job, describe_error(stalled)))

    def _timeout_seconds(self, job: str) -> float:
        """Return how long any executor of a job may take: as long as the largest class that it needs."""
        known = self.dispatcher.ledger.jobs.get(job)
        largest = max(known.graph.classes.values(), default=0) if known is not None else 0
        return self.backend.settings.function_classes[largest].timeout_seconds

    def _has_begun(self, lapsed: Lapsed) -> bool:
        directory = self.backend.last_words_directory
        spoke = directory and Path(directory, executor_file(lapsed.job, lapsed.executor)).exists()
        return lapsed.running >= 0 or bool(spoke)

    def lose(self, assignment: Assignment, why: str | BaseException) -> None:
        """An invocation ended badly, or never began."""
        who = (assignment.job, assignment.executor, assignment.attempt)
        self._report(*who, why, cause_of(why), -1, assignment.function_class)

    # -- hands ----------------------------------------------------------------------------------

    def _report(
        self,
        job: str,
        executor: str,
        attempt: int,
        why: str | BaseException,
        cause: Cause,
        running: int,
        function_class: int = 0,
    ) -> None:
        dispatcher = self.dispatcher
        directory = self.backend.last_words_directory
        said = last_words(str(directory), executor_file(job, executor)) if directory else None
        if job not in dispatcher.ledger.jobs:
            return  # over: whoever was still at work in it, nobody waits for
        task = said if said is not None and said >= 0 else running
        verdicts = self.supervisor.judge(Death(job, executor, attempt, task, cause))
        if verdicts:
            self.counts["executors_lost"] += 1
            dispatcher.forget_executor(job, executor)
            dispatcher.spending.died(job)
        for verdict in verdicts:
            match verdict:
                case Blame(task, deaths):
                    error = self._error(job, task, deaths, why, function_class)
                    logger.warning("%s", error)
                    dispatcher.err(job, task, error)
                case TryAgain():
                    logger.info("executor %s/%s died (%s): attempt %d", job, executor, why, verdict.attempt)
                    dispatcher.spawn(self._try_again(job, executor, verdict, why))
                case GiveUp(deaths):
                    error = self._error(job, task, deaths, why, function_class)
                    dispatcher.spawn(self._give_up(job, executor, error))

    async def _try_again(self, job: str, executor: str, verdict: TryAgain, why: object) -> None:
        dispatcher = self.dispatcher
        await asyncio.sleep(verdict.seconds)
        try:
            had = await dispatcher.call(self.backend.store.recall, job, executor)
            if had is None:  # it had just retired when it died, or its job is over
                dispatcher.feed(Retired(job, executor))
                return
            again = next_attempt(had, verdict, self._class_for(had.function_class, verdict))
            self.counts["executors_restarted"] += 1
            await dispatcher.start_again(again)
        except PlatformError as error:
            lost = ExecutorLost(f"an executor died ({why}) and could not be started again: {error}")
            await self._give_up(job, executor, lost)

    def _class_for(self, function_class: int, verdict: TryAgain) -> int:
        """Choose where to try again: who ran out of memory gets more, if there is a class with more."""
        classes = self.backend.settings.function_classes
        if verdict.more_memory:
            for number, each in enumerate(classes):
                if each.memory_bytes > classes[function_class].memory_bytes:
                    return number
        return function_class

    async def _give_up(self, job: str, executor: str, error: ServerlessError) -> None:
        self.dispatcher.feed(Lost(job, executor, describe_error(error)))
        try:
            await self.dispatcher.call(self.backend.store.drop, job, executor)
        except PlatformError as failure:
            logger.warning("the record of %s/%s was not removed: %s", job, executor, failure)
        self.dispatcher.feed(Room())

    def _error(
        self, job: str, task: int, deaths: int, why: str | BaseException, function_class: int
    ) -> ServerlessError:
        if isinstance(why, ServerlessError):
            return why
        times = "" if deaths == 1 else f" {deaths} times"
        key = self.dispatcher.key_of(job, task)
        if key is None:
            return ExecutorLost(
                f"a Lambda died{times} before it could run a task: {why}. If this goes on, see its log."
            )
        advice = _advice(str(why), self.backend.settings.function_classes, function_class)
        return ExecutorKilled(f"the Lambda that ran task {key!r} died{times}: {why}{advice}", key, deaths)


def executor_file(job: str, executor: str) -> str:
    """Name the file of an executor's last words."""
    return f"{job}.{executor}"


def cause_of(why: str | BaseException) -> Cause:
    """Classify what Lambda said of the end of an invocation.

    Examples
    --------
    >>> cause_of("Sandbox.Timedout: RequestId: 1 Error: Task timed out after 3.00 seconds")
    <Cause.TIMEOUT: 'timeout'>
    >>> cause_of("Runtime.OutOfMemory: signal: killed"), cause_of("Runtime.ExitError: exit status 1")
    (<Cause.MEMORY: 'memory'>, <Cause.CRASH: 'crash'>)
    """
    if isinstance(why, InvocationRefused | EnvironmentMismatch | ProtocolMismatch):
        return Cause.REFUSED
    said = str(why).lower()
    if "timed out" in said or "timedout" in said:
        return Cause.TIMEOUT
    return Cause.MEMORY if "memory" in said else Cause.CRASH


def _advice(why: str, classes: Sequence[FunctionClass], function_class: int) -> str:
    """Say what to do about the death of an executor of one of these classes."""
    mine, larger = classes[function_class], classes[function_class + 1 :]
    annotation, limit = "", ""
    if "timed out" in why.lower():
        limit = "timeout= (Lambda allows 15 minutes)"
        if larger and larger[0].timeout_seconds > mine.timeout_seconds:
            annotation = f"timeout='{larger[0].timeout_seconds:g} s'"
    elif "memory" in why.lower():
        limit = f"memory_limit= (there were {mine.memory_bytes / 2**30:g} GiB)"
        more = [each.memory_bytes for each in larger if each.memory_bytes > mine.memory_bytes]
        if more:
            annotation = f"memory='{more[0] / 2**30:g} GiB'"
    if not limit:
        return ". Other tasks go on; look into what this one calls (a crash in a library? an exit?)."
    annotate = f"give this task more with dask.annotate({annotation}), " if annotation else ""
    return f". Use smaller chunks, {annotate}or raise the cluster's {limit}."
