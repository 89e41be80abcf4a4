"""What was learned of tasks, by key prefix, in all jobs of a cluster: how long they take, how large their values are.

Pure. Executors report sums (`lambda_worker.core.observed`); here they add up, and the past fades: what a prefix
means may change from one job to the next. The number of prefixes is bounded, and those used last stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dask_serverless.plan.prefixes import OTHERS, Prefixes
from lambda_worker.core.policy import TASK_SECONDS

#: Prefixes that are remembered, at most: some 300 bytes each.
LEARNED_PREFIXES_MAX = 10_000
#: What was known before counts for so many tasks, at most.
MEMORY_TASKS = 1_000
#: How many standard deviations above the mean a task may well be.
WIDE = 3.0


@dataclass(frozen=True, slots=True)
class Learned:
    """What is known of the tasks of a prefix.

    Parameters
    ----------
    tasks
        How many tasks the numbers stand for; older ones count less.
    seconds, seconds_spread
        Mean and standard deviation of the time that one takes.
    nbytes, nbytes_spread
        The same of the size of its value. Values below 64 KiB count as 0.
    first_only
        Whether each was the first task that an executor ran, which takes longer.
    """

    tasks: float
    seconds: float
    seconds_spread: float
    nbytes: float
    nbytes_spread: float
    first_only: bool = False


@dataclass(frozen=True, slots=True)
class Expectation:
    """What is to be expected of a job.

    Parameters
    ----------
    seconds, nbytes
        Of all tasks whose prefixes are known, together.
    seconds_max
        What the longest of these may well take.
    known
        What is known, by prefix number.
    unknown
        How many tasks have prefixes that nothing is known of, by prefix.
    tasks
        How many tasks have prefixes that are known.
    """

    seconds: float = 0.0
    nbytes: float = 0.0
    seconds_max: float = 0.0
    known: Mapping[int, Learned] = field(default_factory=dict)
    unknown: Mapping[str, int] = field(default_factory=dict)
    tasks: int = 0

    @property
    def work(self) -> float:
        """What executors need for all known tasks together, in seconds."""
        return self.seconds + self.tasks * TASK_SECONDS

    @property
    def unknown_tasks(self) -> int:
        """How many tasks nothing is known of."""
        return sum(self.unknown.values())


class Statistics:
    """What is known of key prefixes.

    Examples
    --------
    Four tasks took two seconds each in one executor; in another one, a task of three seconds was the first:

    >>> statistics = Statistics()
    >>> statistics.take("inc", [4, 8.0, 16.0, 400.0, 40000.0, 0])
    >>> statistics.take("inc", [1, 3.0, 9.0, 0, 0, 1])
    >>> statistics.of("inc")
    Learned(tasks=4, seconds=2.0, seconds_spread=0.0, nbytes=100.0, nbytes_spread=0.0, first_only=False)
    >>> from dask_serverless.plan.prefixes import Prefixes
    >>> expected = statistics.expect(Prefixes(["inc", "sum"], [10, 1], [[0, 10, 1, 1]]))
    >>> expected.seconds, expected.unknown
    (20.0, {'sum': 1})
    """

    def __init__(self, prefixes_max: int = LEARNED_PREFIXES_MAX) -> None:
        self.prefixes_max = prefixes_max
        self._sums: dict[str, Sequence[float]] = {}  # the one used last is last

    def __len__(self) -> int:
        return len(self._sums)

    def __repr__(self) -> str:
        return f"<Statistics of {len(self)} prefixes>"

    def take(self, prefix: str, sums: Sequence[float]) -> None:
        """Take in what an executor observed of the tasks of a prefix.

        What is known from first tasks only gives way to the first that is known from others; among first
        tasks the last counts as much as all before it.
        """
        if prefix == OTHERS or not sums[0] > 0:
            return
        before = self._sums.pop(prefix, None)
        if before is not None:
            if sums[5] and not before[5]:
                sums = before
            elif bool(sums[5]) == bool(before[5]):
                memory = 1 if sums[5] else MEMORY_TASKS
                fading = min(1.0, memory / before[0])
                sums = [*(old * fading + new for old, new in zip(before[:5], sums[:5], strict=True)), sums[5]]
        self._sums[prefix] = sums
        if len(self._sums) > self.prefixes_max:
            del self._sums[next(iter(self._sums))]

    def of(self, prefix: str) -> Learned | None:
        """Return what is known of a prefix."""
        sums = self._sums.pop(prefix, None)
        if sums is None:
            return None
        self._sums[prefix] = sums
        tasks, seconds, seconds2, nbytes, nbytes2, first_only = sums
        return Learned(
            tasks,
            seconds / tasks,
            _spread(tasks, seconds, seconds2),
            nbytes / tasks,
            _spread(tasks, nbytes, nbytes2),
            bool(first_only),
        )

    def expect(self, prefixes: Prefixes) -> Expectation:
        """Return what is to be expected of a job with these prefixes."""
        known: dict[int, Learned] = {}
        unknown: dict[str, int] = {}
        seconds = nbytes = seconds_max = 0.0
        for number, (prefix, tasks) in enumerate(zip(prefixes.names, prefixes.counts, strict=True)):
            if not tasks:
                continue
            learned = self.of(prefix)
            if learned is None:
                unknown[prefix] = tasks
                continue
            known[number] = learned
            seconds += tasks * learned.seconds
            nbytes += tasks * learned.nbytes
            seconds_max = max(seconds_max, learned.seconds + WIDE * learned.seconds_spread)
        tasks = sum(prefixes.counts[number] for number in known)
        return Expectation(seconds, nbytes, seconds_max, known, unknown, tasks)


def _spread(count: float, total: float, squares: float) -> float:
    mean = total / count
    return math.sqrt(max(0.0, squares / count - mean * mean))
