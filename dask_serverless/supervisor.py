"""The supervisor: decides what becomes of a job whose executor died. Pure: reports in, verdicts out.

An executor that dies leaves a record of what it had been given and had not given away. The supervisor
has it tried again, under the same name and with the next *attempt*, which fences the one before (it may
not be quite dead). Whatever runs twice does no harm: edges are a set, and the first result stays.

What is tried again, and how often, depends on what was running:

* A task that takes executors with it again and again is **blamed**: it fails by name, and the executor
  is tried again without it. `allowed_failures` more tries are granted, as Dask grants them. A task that
  ran out of memory is tried once more, with more memory; one that ran out of time, once more.
* An executor that dies before any task runs is nobody's fault but the platform's. After `start_tries`
  deaths without a task, the whole job is **given up**: every other executor would die in the same way.
* One that is only silent may be on its way still: a cold start, or a place in Lambda's queue, may take longer than
  a lease. Each attempt is waited for twice as long as the one before (`silence_allowed`); there are `silent_tries`.
* Where nobody knows what was running, a task that kills may go from each executor to its successor, for ever. So the
  deaths without a task in one line of descent are counted, too: after `line_tries`, the job is given up.
* What Lambda refuses for good (permission, size) is given up at once.

Reports come twice, late, and in any order: of one attempt only the first counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeAlias

from lambda_worker.core.schedule import Assignment

BACKOFF_SECONDS_MIN = 0.05
BACKOFF_SECONDS_MAX = 1.0
#: How long who is tried again stays before it leaves the rest to a successor; half as long after each death.
PATIENCE_SECONDS = 2.0
PATIENCE_SECONDS_MIN = 0.05
START_TRIES = 3
LINE_TRIES = 30


class Cause(Enum):
    """What ended an executor."""

    CRASH = "crash"  # killed, or its process ended in the middle
    MEMORY = "memory"
    TIMEOUT = "timeout"
    SILENCE = "silence"  # its lease ran out
    REFUSED = "refused"  # Lambda does not accept the invocation, and never will


@dataclass(frozen=True, slots=True)
class Death:
    """One attempt of an executor ended badly. `task` was running (-1: none, or nobody knows)."""

    job: str
    executor: str
    attempt: int
    task: int
    cause: Cause


@dataclass(frozen=True, slots=True)
class Blame:
    """Fail a task: it ended `deaths` executors."""

    task: int
    deaths: int


@dataclass(frozen=True, slots=True)
class TryAgain:
    """Start the executor anew, after `seconds`, as `attempt`, without the tasks of its job that were blamed."""

    attempt: int
    seconds: float
    without: frozenset[int]
    more_memory: bool = False


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Fail the whole job."""

    deaths: int


Verdict: TypeAlias = Blame | TryAgain | GiveUp


@dataclass(slots=True)
class _Watched:
    """What is remembered of a job in which something died."""

    attempts: dict[str, int] = field(default_factory=dict)  # the newest, by executor, of those that died
    deaths: dict[int, int] = field(default_factory=dict)  # by task
    idle_deaths: dict[str, int] = field(default_factory=dict)  # by executor, with no task to blame
    line_deaths: dict[str, int] = field(default_factory=dict)  # the same, with those of its forebears
    blamed: set[int] = field(default_factory=set)


class Supervisor:
    """Judge deaths.

    Parameters
    ----------
    allowed_failures
        How many executors a task may take with it and still be tried once more.
    start_tries
        How often an executor that dies without a task is started, at most.
    silent_tries
        How often if the last of these deaths was no more than silence.
    line_tries
        How many deaths without a task there may be in one line of descent.
    jitter
        Returns numbers in [0, 1): spreads out attempts that would otherwise come together.

    Examples
    --------
    >>> supervisor = Supervisor(allowed_failures=1, jitter=lambda: 0.5)
    >>> supervisor.judge(Death("job", "e", 1, task=7, cause=Cause.CRASH))
    [TryAgain(attempt=2, seconds=0.05, without=frozenset(), more_memory=False)]
    >>> supervisor.judge(Death("job", "e", 1, task=7, cause=Cause.SILENCE))  # the same death, reported twice
    []
    >>> supervisor.judge(Death("job", "e", 2, task=7, cause=Cause.CRASH))
    [Blame(task=7, deaths=2), TryAgain(attempt=3, seconds=0.05, without=frozenset({7}), more_memory=False)]
    """

    def __init__(
        self,
        allowed_failures: int = 3,
        start_tries: int = START_TRIES,
        silent_tries: int = 5,
        line_tries: int = LINE_TRIES,
        jitter: Callable[[], float] = lambda: 0.5,
    ) -> None:
        self.allowed_failures = allowed_failures
        self.start_tries = start_tries
        self.silent_tries = silent_tries
        self.line_tries = line_tries
        self._jitter = jitter
        self._jobs: dict[str, _Watched] = {}

    def __repr__(self) -> str:
        return f"<Supervisor: deaths in {len(self._jobs)} jobs>"

    def judge(self, death: Death) -> list[Verdict]:
        """Decide what follows from a death, in the order in which it is to be done."""
        job = self._jobs.setdefault(death.job, _Watched())
        if death.attempt <= job.attempts.get(death.executor, 0):
            return []
        job.attempts[death.executor] = death.attempt
        if death.cause is Cause.REFUSED:
            return [GiveUp(1)]
        if death.task < 0 or death.task in job.blamed:
            deaths = job.idle_deaths[death.executor] = job.idle_deaths.get(death.executor, 0) + 1
            line = job.line_deaths[death.executor] = _line_deaths(job, death.executor) + 1
            if line >= self.line_tries or deaths >= (
                self.silent_tries if death.cause is Cause.SILENCE else self.start_tries
            ):
                return [GiveUp(deaths)]
            return [self._again(job, death, deaths)]
        job.idle_deaths.pop(death.executor, None)
        job.line_deaths[death.executor] = 0
        deaths = job.deaths[death.task] = job.deaths.get(death.task, 0) + 1
        if deaths <= self._allowed(death.cause):
            return [self._again(job, death, deaths)]
        job.blamed.add(death.task)
        return [Blame(death.task, deaths), self._again(job, death, 1)]

    def forget(self, job: str) -> None:
        """A job is over."""
        self._jobs.pop(job, None)

    def _allowed(self, cause: Cause) -> int:
        costly = cause in (Cause.TIMEOUT, Cause.MEMORY)
        return min(1, self.allowed_failures) if costly else self.allowed_failures

    def _again(self, job: _Watched, death: Death, deaths: int) -> TryAgain:
        seconds = min(BACKOFF_SECONDS_MIN * 2 ** (deaths - 1), BACKOFF_SECONDS_MAX) * (0.5 + self._jitter())
        more_memory = death.cause is Cause.MEMORY and death.task not in job.blamed
        return TryAgain(death.attempt + 1, seconds, frozenset(job.blamed), more_memory)


def _line_deaths(job: _Watched, executor: str) -> int:
    """Count deaths without a task of an executor and its forebears. A child's name is its parent's and two numbers."""
    while executor not in job.line_deaths:
        parent, _, _ = executor.rpartition(".")
        executor, _, _ = parent.rpartition(".")
        if not executor:
            return 0
    return job.line_deaths[executor]


def silence_allowed(attempt: int, begun: bool, lease_seconds: float, timeout_seconds: float) -> float:
    """Decide how long after the end of its lease an executor may still be silent.

    Who has begun and falls silent is most often in a long call that holds the interpreter lock, so that not even a
    heartbeat gets through. If it had died, Lambda would have said so. Only who outlives what Lambda allows is surely
    gone. Who has not begun may wait in Lambda's queue: to invoke it again too soon only makes that queue longer.

    Examples
    --------
    >>> [silence_allowed(attempt, False, lease_seconds=15, timeout_seconds=900) for attempt in (1, 2, 3)]
    [0, 15, 45]
    >>> silence_allowed(1, True, lease_seconds=15, timeout_seconds=900)
    900
    """
    return timeout_seconds if begun else lease_seconds * (2 ** (attempt - 1) - 1)


def next_attempt(had: Assignment, verdict: TryAgain, function_class: int) -> Assignment:
    """Return what the next attempt of an executor is given: what the store says it had, without what was blamed.

    Examples
    --------
    >>> had = Assignment("job", "e", 1, [3, 4], claims={7: {3: b"value"}}, room=5)
    >>> again = next_attempt(had, TryAgain(2, 0.05, frozenset({4, 7})), function_class=0)
    >>> again.attempt, again.starts, again.claims, again.without, again.room, again.patience
    (2, [3], {}, (4, 7), 0, 2.0)
    """
    return replace(
        had,
        attempt=verdict.attempt,
        starts=[task for task in had.starts if task not in verdict.without],
        claims={child: values for child, values in had.claims.items() if child not in verdict.without},
        without=tuple(sorted({*had.without, *verdict.without})),
        room=0,
        patience=max(PATIENCE_SECONDS_MIN, had.patience / 2 or PATIENCE_SECONDS),
        function_class=function_class,
    )
