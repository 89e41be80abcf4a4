"""How a job's start tasks are shared out among its first executors: to how many, and how evenly. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is to be expected of each task.

    Parameters
    ----------
    seconds
        How long it takes, by task number.
    nbytes
        The size of its value; 0 if that is small.
    """

    seconds: Sequence[float]
    nbytes: Sequence[float]


@dataclass(frozen=True, slots=True)
class Sharing:
    """Into which groups start tasks are cut.

    Parameters
    ----------
    groups
        How many, at most.
    estimate
        What is to be expected of each task. None: nothing is known, so all count the same, and to keep together what
        belongs together is worth a quarter of a group.
    slack
        How many seconds an executor would rather work than bring one value to another: so far a cut may move from
        where it would be fair, to where it parts fewer values from their readers, but never more than a quarter
        of a group.
    lead
        How many seconds more each group has than the next: its executor begins so much earlier.
    """

    groups: int
    estimate: Estimate | None = None
    slack: float = 0.0
    lead: float = 0.0

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ValueError(f"groups must be at least 1, not {self.groups}")

    def part(self, count: int, whole: int) -> Sharing:
        """Return the sharing of so many of the tasks.

        Examples
        --------
        >>> Sharing(8, lead=1.0).part(10, 20)
        Sharing(groups=4, estimate=None, slack=0.0, lead=1.0)
        """
        return Sharing(max(1, self.groups * count // whole), self.estimate, self.slack, self.lead)

    def worth(self, finished: int, off: float) -> tuple[float, float]:
        """Return how good a cut is (the larger, the better).

        Parameters
        ----------
        finished
            How many tasks are finished by those before the cut that are not finished by fewer of them: the more,
            the fewer values must travel.
        off
            How far it is from where it would be fair.

        Examples
        --------
        >>> unknown, known = Sharing(2), Sharing(2, Estimate([], []), slack=3.0)
        >>> unknown.worth(2, off=9.0) > unknown.worth(1, off=0.0), known.worth(2, off=9.0) > known.worth(1, off=0.0)
        (True, False)
        """
        return (finished, -off) if self.estimate is None else (self.slack * finished - off, 0.0)

    def ends(self, total: float, groups: int) -> list[float]:
        """Return after how much of the work each group but the last ends.

        Examples
        --------
        >>> Sharing(4).ends(40, 4), Sharing(4, lead=2.0).ends(40, 4)
        ([10.0, 20.0, 30.0], [13.0, 24.0, 33.0])
        """
        lead = self.lead
        if groups > 1:
            lead = min(lead, 2 * total / groups / (groups - 1))  # the last group has something left
        return [total * end / groups + lead * end * (groups - end) / 2 for end in range(1, groups)]


def worth_starting(executors: int, seconds: float, start_seconds: float) -> int:
    """Return how many executors still find something to do, if they begin one after the other.

    Parameters
    ----------
    executors
        How many there may be.
    seconds
        What all tasks take together.
    start_seconds
        How long after one executor the next one begins.

    Examples
    --------
    A hundred executors that all begin at once share 20 s of work. If they begin 0.1 s apart, the first twenty have
    done all of it when the next one begins:

    >>> worth_starting(100, seconds=20.0, start_seconds=0.0), worth_starting(100, seconds=20.0, start_seconds=0.1)
    (100, 20)
    """
    if start_seconds <= 0:
        return executors
    # The last of n is left with seconds / n - start_seconds * (n - 1) / 2.
    return max(1, min(executors, int((1 + math.sqrt(1 + 8 * seconds / start_seconds)) / 2)))
