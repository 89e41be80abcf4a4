"""How a job's start tasks are shared out among its first executors: to how many, and how evenly. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sharing:
    """Into which groups start tasks are cut.

    Parameters
    ----------
    groups
        How many, at most.
    slack
        How many tasks an executor would rather run than bring one value to another: so far a cut may move from
        where it would be fair, to where it parts fewer values from their readers, but never more than a quarter
        of a group. None: that is not known, and each such value is worth a quarter of a group.
    lead
        How many tasks more each group has than the next: its executor begins so much earlier.
    """

    groups: int
    slack: float | None = None
    lead: float = 0.0

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ValueError(f"groups must be at least 1, not {self.groups}")

    def part(self, count: int, whole: int) -> Sharing:
        """Return the sharing of so many of the tasks.

        Examples
        --------
        >>> Sharing(8, lead=1.0).part(10, 20)
        Sharing(groups=4, slack=None, lead=1.0)
        """
        return Sharing(max(1, self.groups * count // whole), self.slack, self.lead)

    def worth(self, finished: int, off: float) -> tuple[float, float]:
        """Return how good a cut is (the larger, the better).

        Parameters
        ----------
        finished
            How many tasks are finished by those before the cut that are not finished by fewer of them: the more,
            the fewer values must travel.
        off
            How many tasks it is from where it would be fair.

        Examples
        --------
        >>> Sharing(2).worth(2, off=9.0) > Sharing(2).worth(1, off=0.0)
        True
        >>> Sharing(2, slack=3.0).worth(2, off=9.0) > Sharing(2, slack=3.0).worth(1, off=0.0)
        False
        """
        return (finished, -off) if self.slack is None else (self.slack * finished - off, 0.0)

    def ends(self, total: float, groups: int) -> list[float]:
        """Return after how many of the tasks each group but the last ends.

        Examples
        --------
        >>> Sharing(4).ends(40, 4), Sharing(4, lead=2.0).ends(40, 4)
        ([10.0, 20.0, 30.0], [13.0, 24.0, 33.0])
        """
        lead = self.lead
        if groups > 1:
            lead = min(lead, 2 * total / groups / (groups - 1))  # the last group has something left
        return [total * end / groups + lead * end * (groups - end) / 2 for end in range(1, groups)]


def share_out(
    executors: int, tasks: int, seconds: float, start_seconds: float = 0.0, travel_seconds: float = 0.0
) -> Sharing:
    """Share out tasks of which it is known how long they take.

    Executors do not begin at the same time. Who begins first is given more, so that all end together; and nobody is
    started for whom nothing would be left.

    Parameters
    ----------
    executors
        How many there may be.
    tasks, seconds
        How many tasks there are, and what they take together.
    start_seconds
        How long after one executor the next one begins.
    travel_seconds
        What it takes to bring the value of a task from one executor to another: so much longer may one work than
        another, to keep what belongs together.

    Examples
    --------
    A hundred executors that all begin at once have ten tasks each. If they begin one after the other, 0.1 s apart,
    the first twenty do all the work, and the first of them nearly two seconds of it:

    >>> share_out(100, tasks=1_000, seconds=20.0)
    Sharing(groups=100, slack=0.0, lead=0.0)
    >>> share_out(100, tasks=1_000, seconds=20.0, start_seconds=0.1)
    Sharing(groups=20, slack=0.0, lead=5.0)
    """
    seconds_each = seconds / tasks if tasks and seconds > 0 else math.inf
    lead, slack = start_seconds / seconds_each, travel_seconds / seconds_each
    if lead > 0:
        # The last of n is left with tasks / n - lead * (n - 1) / 2.
        executors = max(1, min(executors, int((1 + math.sqrt(1 + 8 * tasks / lead)) / 2)))
    return Sharing(executors, slack, lead)
