"""How long after one executor the next one begins, learned from the executors that jobs began with. Pure.

Invocations go out one after the other, sandboxes are started at some pace, and on a small machine those that have begun
take the processor from those that begin. All of that is in when executors really began, and nothing else is.

Jobs that were begun in new sandboxes teach nothing: the next one finds these sandboxes warm.
"""

from __future__ import annotations

from collections.abc import Iterable

#: With fewer executors, chance decides when they begin.
EXECUTORS_MIN = 8
#: Which share of a job's executors may have been in new sandboxes, at most.
NEW_MAX = 0.1
#: Jobs whose executors are still heard, at most.
JOBS_MAX = 100
#: What the newest job counts among those before.
NEWEST = 0.5


class Beginnings:
    """When executors begin.

    Attributes
    ----------
    seconds
        How long after one executor the next one begins.

    Examples
    --------
    >>> beginnings = Beginnings()
    >>> names = [f"1-{number}" for number in range(8)]
    >>> beginnings.expect("job", names)
    >>> for number, name in enumerate(names):
    ...     beginnings.began("job", name, at=5.0 + 0.01 * number)
    >>> round(beginnings.seconds, 6)
    0.01
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._learned = False
        self._awaited: dict[str, set[str]] = {}  # by job
        self._began: dict[str, list[float]] = {}
        self._new: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<Beginnings: {self.seconds:.3g} s apart>"

    def expect(self, job: str, executors: Iterable[str]) -> None:
        """A job begins with these executors, which are started at once."""
        awaited = set(executors)
        if len(awaited) < EXECUTORS_MIN:
            return
        self._awaited[job], self._began[job], self._new[job] = awaited, [], 0
        if len(self._awaited) > JOBS_MAX:
            self._forget(next(iter(self._awaited)))

    def began(self, job: str, executor: str, at: float | None) -> None:
        """Take in when an executor began (None: in a new sandbox).

        Who dies is never heard of, and nothing is learned from its job.
        """
        awaited = self._awaited.get(job)
        if awaited is None or executor not in awaited:
            return
        awaited.remove(executor)
        began = self._began[job]
        if at is None:
            self._new[job] += 1
        else:
            began.append(at)
        if awaited:
            return
        new = self._new[job]
        self._forget(job)
        if new > NEW_MAX * (new + len(began)):
            return
        # If they began at an even pace, the mean is half of the way from the first to the last.
        newest = 2 * (sum(began) / len(began) - min(began)) / (len(began) - 1)
        self.seconds += (NEWEST if self._learned else 1.0) * (newest - self.seconds)
        self._learned = True

    def _forget(self, job: str) -> None:
        del self._awaited[job], self._began[job], self._new[job]
