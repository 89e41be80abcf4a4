"""Who takes much longer for a task than others did, and gets a backup. Pure: heartbeats in, names out.

A *backup* is one more executor with the same work, under a name of its own. Nothing in the protocol is new for it:
edges at fan-ins are sets with one owner, the first value of an edge and of a key stays, so of two who do the same work
the first wins at each place, and the other hears that it is taken. The straggler goes on, and may still be first; what
it alone has claimed it alone completes. So a backup can make nothing worse but the bill, and that is bounded: each
executor gets one, none gets one for being a backup, and there are only so many at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from dask_serverless.statistics import WIDE, Learned
from lambda_worker.core.schedule import Assignment

#: A task may take so many times as long as the longest that is likely, by what is known of its prefix.
SLOW_FACTOR = 3.0
#: Below this, a backup would begin hardly sooner than the straggler ends.
STRAGGLER_SECONDS_MIN = 2.0
#: Of fewer tasks too little is known.
KNOWN_TASKS_MIN = 3
#: For so many executors at once (the ceiling) there may be one backup at work; there is always room for one.
EXECUTORS_PER_BACKUP = 10
#: Ends the name of a backup. As with all children, two parts come behind the parent's name.
BACKUP = ".backup.0"


@dataclass(slots=True)
class _Running:
    """What an executor says at its heartbeats."""

    task: int
    since: float
    said: float


class Stragglers:
    """Judge how long tasks have been running.

    Examples
    --------
    Tasks like this one have taken a second each; the executor says every five seconds that it still runs it:

    >>> stragglers = Stragglers()
    >>> for now in (0.0, 5.0, 10.0):
    ...     stragglers.says("j1", "1-0", 7, now)
    >>> known = Learned(tasks=64, seconds=1.0, seconds_spread=0.1, nbytes=0.0, nbytes_spread=0.0)
    >>> stragglers.overdue(lambda job, task: known, ceiling=8)
    [('j1', '1-0', 7)]
    >>> stragglers.overdue(lambda job, task: known, ceiling=8)  # it has its backup
    []
    """

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], _Running] = {}
        self._backed_up: dict[str, set[str]] = {}  # by job: executors that have, or had, a backup
        self._backups: set[tuple[str, str]] = set()  # at work

    def __repr__(self) -> str:
        return f"<Stragglers: {len(self._running)} run long tasks, {len(self._backups)} backups>"

    def says(self, job: str, executor: str, task: int, now: float) -> None:
        """Take in a heartbeat of an executor that runs a task."""
        known = self._running.get((job, executor))
        if known is None or known.task != task:
            self._running[job, executor] = _Running(task, now, now)
        else:
            known.said = now

    def overdue(self, expect: Callable[[str, int], Learned | None], ceiling: int) -> list[tuple[str, str, int]]:
        """Name those who shall get a backup (job, executor, task), the slowest first.

        Parameters
        ----------
        expect
            Returns what is known of a task of a job.
        ceiling
            How many executors there may be at once.
        """
        free = max(1, ceiling // EXECUTORS_PER_BACKUP) - len(self._backups)
        if free <= 0:
            return []
        found = []
        for (job, executor), running in self._running.items():
            seconds = running.said - running.since  # it was there all the time between
            if seconds < STRAGGLER_SECONDS_MIN or executor.endswith(BACKUP) or executor in self._backed_up.get(job, ()):
                continue
            learned = expect(job, running.task)
            if learned is None or learned.tasks < KNOWN_TASKS_MIN:
                continue
            if seconds > SLOW_FACTOR * (learned.seconds + WIDE * learned.seconds_spread):
                found.append((seconds / max(learned.seconds, 1e-9), job, executor, running.task))
        slowest = [(job, executor, task) for _, job, executor, task in sorted(found, reverse=True)[:free]]
        for job, executor, _ in slowest:
            self._backed_up.setdefault(job, set()).add(executor)
            self._backups.add((job, executor + BACKUP))
        return slowest

    def forget(self, job: str, executor: str | None = None) -> None:
        """An executor is gone (or was not started), or all of a job's are."""
        if executor is not None:
            self._running.pop((job, executor), None)
            self._backups.discard((job, executor))
        else:
            self._running = {who: running for who, running in self._running.items() if who[0] != job}
            self._backups = {who for who in self._backups if who[0] != job}
            self._backed_up.pop(job, None)


def backup_of(had: Assignment) -> Assignment:
    """Return what a backup is given: what the store says the executor has, which goes on having it.

    Examples
    --------
    >>> backup = backup_of(Assignment("job", "1-0", 3, [3], room=5, patience=2.0))
    >>> backup.executor, backup.attempt, backup.starts, backup.room, backup.patience
    ('1-0.backup.0', 1, [3], 0, 0.0)
    """
    return replace(had, executor=had.executor + BACKUP, attempt=1, room=0, patience=0.0)
