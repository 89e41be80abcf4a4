"""Which start tasks wait a moment for the sandbox that has their inputs, though there is a place elsewhere. Pure.

A job is often asked for while the one that makes its inputs is still at work: `x.persist()`, and what is computed from
x in the next line. What the executors of the first job have in their memory comes free when they end, a moment later;
to begin the second job wherever there is a place just before that would read all of it from the storage tier.

So a start with a large input waits as long as its input is where somebody is at work, but no longer than it takes to
read it: who waits in vain has lost no more than that. Small inputs go along with the large ones next to them, and what
also others need than those that wait does not wait.

Source: delay scheduling (Zaharia et al., EuroSys 2010).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from dask_serverless.whereabouts import Whereabouts
from lambda_worker.core.policy import Policy
from lambda_worker.core.wire import Location, Ref

#: A task number, and the value of one that is made elsewhere.
Start: TypeAlias = tuple[int, Location | None]
#: For what is read sooner than this nobody waits.
WORTH_SECONDS = 0.01
#: Of the inputs of a job, those are large that have at least this share of the size of the largest.
LARGE_SHARE = 1 / 8
#: Jobs that wait, at most: each is looked at whenever an executor ends.
WAITING_MAX = 8
#: Starts of a job that are looked at, at most: a look takes a few microseconds for each.
STARTS_MAX = 2_000


@dataclass(frozen=True, slots=True)
class Choice:
    """Which starts are given to executors now.

    Parameters
    ----------
    now, later
        The starts, in order.
    near
        In which sandbox the inputs of those are that begin now, if anybody can be found there.
    seconds
        How long it takes until some of the others have waited for long enough; 0 as long as nobody's patience runs out.
    begins
        Whether nobody of this job has waited before.
    """

    now: Sequence[Start]
    near: Mapping[int, str] = field(default_factory=dict)
    later: Sequence[Start] = ()
    seconds: float = 0.0
    begins: bool = False

    @property
    def nbytes(self) -> int:
        """How large the inputs of those are that wait."""
        return sum(value.nbytes for _, value in self.later if isinstance(value, Ref))


@dataclass(slots=True)
class _Inputs:
    """What is known of the stored inputs of a job's starts."""

    values: dict[int, Ref] = field(default_factory=dict)  # by start
    starts: list[int] = field(default_factory=list)  # with a large one, ascending
    largest: int = 0
    since: dict[str, float] = field(default_factory=dict)  # for whom they wait (or waited in vain), from when on
    waiting: set[int] = field(default_factory=set)

    def take(self, starts: Sequence[Start]) -> None:
        """Note which of these are large, among all that were noted."""
        new = {start: value for start, value in starts if isinstance(value, Ref) and start not in self.values}
        self.values |= new
        largest = max((value.nbytes for value in new.values()), default=0)
        among = self.values if largest > self.largest else new  # what was large among smaller ones may be so no more
        self.largest = max(largest, self.largest)
        large = [start for start, value in among.items() if value.nbytes >= LARGE_SHARE * self.largest]
        self.starts = sorted(large if among is self.values else self.starts + large)

    def beside(self, start: int) -> int:
        """Return the start with a large input that is next to this one: itself, the one before, or the first."""
        return self.starts[max(0, bisect_right(self.starts, start) - 1)]


class Patience:
    """Remembers which starts of which jobs wait for whom, and since when.

    Parameters
    ----------
    policy
        The numbers decisions are made from.
    whereabouts
        Knows where values are.
    is_live
        Tells whether an executor, of a job, may still be at work.

    Examples
    --------
    Executor a has ended in a sandbox that lingers, b is still at work:

    >>> whereabouts = Whereabouts()
    >>> whereabouts.retired("job-1", "a", "S", "job-1/a/1")
    >>> patience = Patience(Policy(), whereabouts, lambda job, executor: executor == "b")
    >>> starts = [(0, Ref("job-1/7/a/1", 0, 10**9)), (1, Ref("job-1/8/b/1", 0, 10**9))]
    >>> choice = patience.choose("job-2", [[2], [3], [], []], starts, now=5.0)
    >>> [start for start, _ in choice.now], choice.near, [start for start, _ in choice.later]
    ([0], {0: 'S'}, [1])

    It would take almost a second to read what b has made. After that nobody waits any longer:

    >>> [start for start, _ in patience.choose("job-2", [[2], [3], [], []], choice.later, now=6.0).now]
    [1]
    """

    def __init__(self, policy: Policy, whereabouts: Whereabouts, is_live: Callable[[str, str], bool]) -> None:
        self._policy = policy
        self._whereabouts = whereabouts
        self._is_live = is_live
        self._inputs: dict[str, _Inputs] = {}  # by job
        self._taken: Counter[str] = Counter()  # where starts are just being sent

    def __repr__(self) -> str:
        return f"<Patience of {self._waiting} of {len(self._inputs)} jobs>"

    def choose(
        self,
        job: str,
        children: Sequence[Sequence[int]],
        starts: Sequence[Start],
        now: float,
        has_room: Callable[[], bool] = lambda: True,
    ) -> Choice:
        """Decide which starts begin now.

        Parameters
        ----------
        job, children
            Whose starts these are: its name, and its graph's edges.
        starts
            All that could begin.
        now
            The time, in seconds.
        has_room
            Tells whether there is a place for some of them. Before there is, nobody's patience runs out.
        """
        inputs = self._inputs.get(job)
        if inputs is None:
            nbytes = sum(value.nbytes for _, value in starts if isinstance(value, Ref))
            if not self._policy.group or self._policy.travel_seconds(nbytes) < WORTH_SECONDS:
                return Choice(starts)
            inputs = self._inputs[job] = _Inputs()
        if len(starts) > STARTS_MAX:
            inputs.waiting.clear()
            return Choice(starts)
        inputs.take(starts)
        spots, busy = self._spots(inputs, starts)
        left = self._patience_left(inputs, busy, now, has_room())
        for spot in set(spots.values()) - busy.keys():
            inputs.since.pop(spot, None)
        waits = {spot for spot, seconds in left.items() if seconds > 0}
        later = _settle(children, starts, {start for start, spot in spots.items() if spot in waits})
        near = _attach([start for start, _ in starts if start not in later], spots, busy)
        begins = bool(later) and not inputs.waiting
        inputs.waiting -= {start for start, _ in starts}
        inputs.waiting |= later
        self._taken.update(set(near.values()))
        return Choice(
            now=[each for each in starts if each[0] not in later],
            near=near,
            later=[each for each in starts if each[0] in later],
            seconds=min((left[spot] for spot in waits if spot in inputs.since), default=0.0),
            begins=begins,
        )

    def sent(self, choice: Choice) -> None:
        """The starts that were chosen are where they were to be sent, or elsewhere: whoever looks now may go there."""
        self._taken -= Counter(set(choice.near.values()))

    def forget(self, job: str) -> None:
        """A job is over."""
        self._inputs.pop(job, None)

    @property
    def _waiting(self) -> int:
        """How many jobs wait for somebody."""
        return sum(bool(each.waiting) for each in self._inputs.values())

    def _patience_left(self, inputs: _Inputs, busy: Mapping[str, int], now: float, room: bool) -> dict[str, float]:
        """Return how long it is still worth to wait for each of those who are at work."""
        if not inputs.waiting and self._waiting >= WAITING_MAX:
            return {}
        left: dict[str, float] = {}
        for spot, nbytes in busy.items():
            seconds = self._policy.travel_seconds(nbytes)
            if seconds >= WORTH_SECONDS:
                if room:
                    inputs.since.setdefault(spot, now)
                left[spot] = seconds - (now - inputs.since.get(spot, now))
        return left

    def _spots(self, inputs: _Inputs, starts: Sequence[Start]) -> tuple[dict[int, str], dict[str, int]]:
        """Find out where the inputs of starts are, and of those where somebody is at work, how large they are."""
        spots: dict[int, str] = {}
        busy: dict[str, int] = {}
        seen: dict[int, str] = {}
        for start, _ in starts:
            large = inputs.beside(start)
            if large not in seen:
                value = inputs.values[large]
                seen[large], is_busy = self._whereabouts.spot(value, self._is_live)
                if is_busy or self._taken[seen[large]] > 0:
                    busy[seen[large]] = busy.get(seen[large], 0) + value.nbytes
            if seen[large]:
                spots[start] = seen[large]
        return spots, busy


def _settle(children: Sequence[Sequence[int]], starts: Sequence[Start], waiting: set[int]) -> set[int]:
    """Return who waits: all with an input that does; of the others, who is needed by these only."""
    with_input = {start for start, value in starts if value is not None}
    waited_for = {child for start in waiting & with_input for child in children[start]}
    return {
        start
        for start in waiting
        if start in with_input or (children[start] and waited_for.issuperset(children[start]))
    }


def _attach(starts: Sequence[int], spots: Mapping[int, str], busy: Mapping[str, int]) -> dict[int, str]:
    """Return where starts begin; one that has its inputs nowhere, where the one before it does, or the first."""
    near: dict[int, str] = {}
    free = {start: spots[start] for start in sorted(starts) if start in spots and spots[start] not in busy}
    spot = next(iter(free.values()), "")
    for start in sorted(starts) if spot else ():
        near[start] = spot = free.get(start, spot)
    return near
