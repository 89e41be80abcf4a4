"""How a job's start tasks are shared out among its first executors: to how many, and how evenly. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

#: How exactly it is found out when the last round ends, in rounds.
_EXACTLY = 2**-12


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
        How many seconds earlier the executor of each group begins than the next.
    threads
        How many tasks of a group run at the same time.
    fair
        Into how many groups these would be cut along with all others of the job; 0: into as many as there may be.
    """

    groups: int
    estimate: Estimate | None = None
    slack: float = 0.0
    lead: float = 0.0
    threads: int = 1
    fair: float = 0.0

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ValueError(f"groups must be at least 1, not {self.groups}")

    def part(self, count: int, whole: int) -> Sharing:
        """Return the sharing of so many of the tasks.

        Examples
        --------
        >>> Sharing(8, lead=1.0).part(10, 20)
        Sharing(groups=4, estimate=None, slack=0.0, lead=1.0, threads=1, fair=0.0)
        """
        return replace(self, groups=max(1, self.groups * count // whole), fair=self.fair * count / whole)

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

    def ends(self, total: float, groups: int, each: float = 0.0) -> list[float]:
        """Return after how much of the work each group but the last ends, so that all are done as soon as can be.

        Parameters
        ----------
        total
            The work, in seconds of one thread.
        groups
            How many there are.
        each
            How long every task takes, if all take as long. Then a group does its work in rounds, in each of which every
            thread runs one task; a task more than fits is a round more, whatever its executor's lead. Those who would
            begin when all is under way are left out: there are fewer groups then.

        Examples
        --------
        >>> Sharing(4).ends(40, 4), Sharing(4, lead=2.0).ends(40, 4)
        ([10.0, 20.0, 30.0], [13.0, 24.0, 33.0])

        Of eight tasks of 5 s everybody gets two, unless the first begins so early that a third is over first:

        >>> Sharing(4, lead=1.0).ends(40, 4, each=5.0), Sharing(4, lead=2.0).ends(40, 4, each=5.0)
        ([10.0, 20.0, 30.0], [15.0, 25.0, 35.0])
        """
        if each > 0:
            rounds = [some for some in _rounds(total / self.threads / each, groups, self.lead / each) if some]
            whole = sum(rounds)
            return [total * done / whole for done in accumulate(rounds[:-1])]
        lead = self.lead * self.threads
        if groups > 1:
            lead = min(lead, 2 * total / groups / (groups - 1))  # the last group has something left
        return [total * end / groups + lead * end * (groups - end) / 2 for end in range(1, groups)]


def _rounds(total: float, groups: int, lead: float) -> list[int]:
    """Return how many rounds each group has, so that the last of all `total` ends as early as it can.

    Each group begins `lead` rounds after the one before. As many as are done when the last has to be, or a few more.

    Examples
    --------
    >>> _rounds(40, 4, 0.0), _rounds(40, 4, 0.5), _rounds(41, 4, 0.0)
    ([10, 10, 10, 10], [11, 10, 10, 9], [11, 11, 11, 11])
    """
    late = [lead * group for group in range(groups)]
    low, high = (
        total / groups,
        1 + min(total, (total + sum(late)) / groups),
    )  # alone, or with all if rounds could be parted
    while high - low > _EXACTLY:
        middle = (low + high) / 2
        done = sum(int(middle - each) for each in late if middle > each)
        low, high = (low, middle) if done >= total else (middle, high)
    return [max(0, int(high - each)) for each in late]


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
