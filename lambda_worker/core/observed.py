"""What an executor observes of its tasks, by key prefix: how long they take, and how large their values are. Pure.

What was learned in earlier jobs comes with the assignment. It stands until the executor has seen a task of the prefix
itself: what happens here counts more than what happened elsewhere.

Observing must cost next to nothing for tasks that do nothing. So every task that takes at least `SHORT_SECONDS` is
observed, but only one in `SHORT_EVERY` of the shorter ones, which counts for all of them. The last one counts if
no other of its prefix did: it is the end of many a reduction.

The first task that an executor runs tends to take longer than others of its prefix, since it loads what the others
find loaded. It is set apart, and counts only if there was no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from lambda_worker.core.schedule import Edges, segment_of

#: Observing takes about a microsecond: not more than a hundredth of these.
SHORT_SECONDS = 1e-4
#: Of shorter tasks, one in so many is observed. A prime, since graphs are full of powers of two.
SHORT_EVERY = 17
#: Who runs for longer reports so often what was observed: then not all of it is lost with the executor.
REPORT_SECONDS = 5.0
#: How much the last task of a prefix moves the expected time of the next.
LAST_SHARE = 0.2
#: Ready tasks that are looked at to estimate how long all of them take.
LOOKED_AT = 8

#: By prefix number: tasks, seconds and their squares, bytes and their squares, and whether it is a first task only.
Sums: TypeAlias = list[float]


class Observed:
    """The tasks of one job, as one executor sees them.

    Parameters
    ----------
    here
        The edges of the segments that are here, which tell the prefix of each task.
    learned
        Seconds and bytes to be expected of a task, by prefix number.

    Attributes
    ----------
    due
        Whether what was observed should be reported although the executor goes on.

    Examples
    --------
    >>> edges = Edges(0, [[]] * 4, [[]] * 4, prefixes=[0, 2, 1, 2])
    >>> observed = Observed({0: edges}, learned={1: (3.0, 100)})
    >>> observed.note(0, seconds=0.5, nbytes=0, now=0.0)
    True
    >>> observed.seconds([1, 2, 3]), observed.nbytes(2)
    (6.5, 100.0)
    >>> observed.note(1, seconds=0.3, nbytes=0, now=1.0)
    True
    >>> observed.take()
    {0: [1, 0.3, 0.09, 0, 0, 0]}
    """

    def __init__(self, here: Mapping[int, Edges], learned: Mapping[int, Sequence[float]]) -> None:
        self.due = False
        self._here = here
        self._expected = {prefix: float(each[0]) for prefix, each in learned.items()}
        self._expected_nbytes = {prefix: float(each[1]) for prefix, each in learned.items()}
        self._seen: set[int] = set()  # prefixes of which a task has run here
        self._prefixes: dict[int, bytes] = {}  # of each task of a segment
        self._sums: dict[int, Sums] = {}
        self._first: tuple[int, float, int] | None = None
        self._any_seen = False
        self._passed = 0  # short tasks since one was observed
        self._passed_max = 0  # the second task is observed, too
        self._last: tuple[int, float, int] | None = None
        self._mean = 0.0  # of all prefixes together
        self._longest = max(self._expected.values(), default=0.0)
        self._report_at = 0.0

    def __repr__(self) -> str:
        return f"<Observed {self._expected}>"

    def note(self, task: int, seconds: float, nbytes: int, now: float) -> bool:
        """Note a task that has run; tell whether it was observed, or passed over since it was short."""
        weight = 1
        if seconds < SHORT_SECONDS and self._any_seen:
            if self._passed < self._passed_max:
                self._passed += 1
                self._last = task, seconds, nbytes
                return False
            weight = self._passed + 1
            self._passed, self._passed_max, self._last = 0, SHORT_EVERY - 1, None
        prefix = self.prefix(task)
        self._expect(prefix, seconds, nbytes)
        if not self._any_seen:
            self._any_seen = True
            self._report_at = now + REPORT_SECONDS
            self._first = (prefix, seconds, nbytes)
            return True
        self._add(prefix, weight, seconds, nbytes)
        if now >= self._report_at:
            self._report_at = now + REPORT_SECONDS
            self.due = True
        return True

    def _add(self, prefix: int, weight: int, seconds: float, nbytes: int) -> None:
        sums = self._sums.get(prefix)
        if sums is None:
            sums = self._sums[prefix] = [0, 0, 0, 0, 0, 0]
        sums[0] += weight
        sums[1] += weight * seconds
        sums[2] += weight * seconds * seconds
        if nbytes:
            sums[3] += weight * nbytes
            sums[4] += weight * nbytes * nbytes

    def _expect(self, prefix: int, seconds: float, nbytes: int) -> None:
        before = self._expected.get(prefix)
        if before is None:
            self._expected[prefix] = seconds
            self._expected_nbytes[prefix] = nbytes
        elif prefix not in self._seen:
            # The first here may be slow because it is the first; if it was fast, so are the others.
            self._expected[prefix] = min(before, seconds)
        else:
            self._expected[prefix] = before + LAST_SHARE * (seconds - before)
            size = self._expected_nbytes[prefix]
            self._expected_nbytes[prefix] = size + LAST_SHARE * (nbytes - size)
        self._seen.add(prefix)
        self._mean = seconds if self._mean == 0.0 else self._mean + LAST_SHARE * (seconds - self._mean)
        self._longest = max(self._expected.values())

    def prefix(self, task: int) -> int:
        """Return the number of a task's prefix; -1 while its segment is not here."""
        segment = segment_of(task)
        edges = self._here.get(segment)
        if edges is None:
            return -1
        if not edges.prefixes:
            return 0
        prefixes = self._prefixes.get(segment)
        if prefixes is None:
            runs = edges.prefixes
            prefixes = self._prefixes[segment] = b"".join(
                bytes((runs[at],)) * runs[at + 1] for at in range(0, len(runs), 2)
            )
        return prefixes[task - edges.first]

    def seconds(self, tasks: Sequence[int]) -> float:
        """Estimate how long these tasks take together, from some of them if they are many.

        A task of an unknown prefix takes as long as others did here.
        """
        if not tasks:
            return 0.0
        looked_at = tasks[:: -(-len(tasks) // LOOKED_AT)]
        expected, mean = self._expected, self._mean
        return sum(expected.get(self.prefix(task), mean) for task in looked_at) * len(tasks) / len(looked_at)

    def knows(self, tasks: Iterable[int]) -> bool:
        """Tell whether it is known what tasks like these take."""
        return all(self.prefix(task) in self._expected for task in tasks)

    def nbytes(self, task: int) -> float:
        """Estimate the size of a task's value; 0 if it is small, or nothing is known of it."""
        return self._expected_nbytes.get(self.prefix(task), 0.0)

    def known(self) -> dict[int, tuple[float, float]]:
        """Return what is to be expected of tasks, for other executors."""
        return {prefix: (each, self._expected_nbytes[prefix]) for prefix, each in self._expected.items()}

    @property
    def longest(self) -> float:
        """The longest time that is to be expected of any task."""
        return max(self._longest, self._mean)

    def take(self) -> dict[int, Sums]:
        """Hand out what was observed since this was last asked, by prefix number."""
        self.due = False
        if self._last is not None:
            task, seconds, nbytes = self._last
            self._last = None
            if self.prefix(task) not in self._sums:
                self._add(self.prefix(task), 1, seconds, nbytes)
        sums, self._sums = self._sums, {}
        if self._first is not None:
            prefix, seconds, nbytes = self._first
            self._first = None
            if prefix not in sums:
                sums[prefix] = [1, seconds, seconds * seconds, nbytes, nbytes * nbytes, 1]
        return sums
