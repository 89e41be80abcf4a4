"""Which values an executor holds back for a while, and when it lets go of them. Pure.

`held` knows what is held and when to ask for it; here that meets the graph, the values and the outbox.

What is held is let go when (whatever comes first)

* waiting has cost what giving up would cost, by size, bandwidth, the number of executors and what is known of the tasks
  that are waited for (`Policy.hold_seconds`, at most `hold_seconds_max`);
* the time of this executor is up, or it has work for a larger one for which there is no place but its own;
* there is no room for more (`kept_bytes_max`).

Nobody waits for somebody who waits for them. Only one executor holds values for a fan-in, the one at home (see
`dask_serverless.plan.homes`), and all others send theirs. So of all tasks that are not done, the first one in the
graph's numbers has all its inputs in the store or here, and the next ask wins it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from lambda_worker.core.held import Edge, Held
from lambda_worker.core.journal import Journal
from lambda_worker.core.kept import Kept
from lambda_worker.core.observed import LOOKED_AT, Observed
from lambda_worker.core.outbox import Outbox
from lambda_worker.core.policy import Policy
from lambda_worker.core.schedule import Assignment, segment_of
from lambda_worker.core.segments import Segments


class Holding:
    """Parts what is to arrive: some of it waits to be published, some is held back.

    Parameters
    ----------
    assignment
        Of the executor: which fan-ins are at home here.
    policy
        The numbers decisions are made from.
    segments, kept, outbox, journal, observed
        Of the executor.

    Attributes
    ----------
    held
        What is held back.

    Examples
    --------
    Task 2 is at home here. Its parent 0 is large and held back, 1 is small and not:

    >>> from lambda_worker.core.schedule import Edges
    >>> segments, kept, outbox = Segments(), Kept({}), Outbox()
    >>> segments.add(0, Edges(0, [[], [], [0, 8], [1, 9]], [[2], [3], [], []], fan_ins={2: 2, 3: 2}))
    >>> kept.made(0, nbytes=10_000_000)
    >>> holding = Holding(Assignment("job", "e", 1, [0, 1], home=(0, 4)), Policy(), segments, kept, outbox, Journal())
    >>> holding.sort([(2, 0, 2), (3, 1, 2)], now=0.0, leaving=False)
    >>> outbox.arrivals, 2 in holding.held
    ([(3, 1, 2)], True)
    """

    def __init__(
        self,
        assignment: Assignment,
        policy: Policy,
        segments: Segments,
        kept: Kept,
        outbox: Outbox,
        journal: Journal,
        observed: Observed | None = None,
    ) -> None:
        self._executors = max(1, assignment.ceiling - assignment.room)  # when this one was assigned
        self.held = Held(policy, self._executors)
        self._assignment = assignment
        self._policy = policy
        self._segments = segments
        self._kept = kept
        self._outbox = outbox
        self._journal = journal
        self._observed = Observed({}, {}) if observed is None else observed
        self._expected: dict[int, float] = {}  # how long what a held fan-in lacks takes, if that is known

    def sort(self, arrivals: Sequence[Edge], now: float, leaving: bool) -> None:
        """Sort what is to arrive; who is leaving holds nothing."""
        home, policy, outbox = self._assignment.home, self._policy, self._outbox
        if not home or leaving or not (policy.hold and policy.locality):
            outbox.arrivals += arrivals
            if leaving:
                self.let_go()
            return
        if not arrivals:
            return
        arriving = {child for child, _, _ in outbox.arrivals}  # a child is arrived at or asked for, not both
        by_child: dict[int, list[Edge]] = {}
        for edge in arrivals:
            by_child.setdefault(edge[0], []).append(edge)
        for child, edges in by_child.items():
            at_home = bisect_right(home, child) % 2 and child not in arriving
            if child in self.held or (at_home and self._is_worth_it(child, edges)):
                nbytes = self._kept.nbytes_near(parent for _, parent, _ in edges)
                if child not in self.held:
                    self._expect(child, edges)
                self._journal.note(
                    "hold", task=child, values=len(edges), nbytes=nbytes, expected_seconds=self._expected.get(child)
                )
                self.held.hold(edges, now)
            else:
                outbox.arrivals += edges

    def let_go_of_overdue(self, now: float, bandwidth: float) -> None:
        """Publish everything if nothing has happened for so long that waiting has cost as much as that."""
        held = self.held
        waited = held.waited(now)
        if waited < self._policy.hold_seconds_min:
            return
        nbytes = self._kept.nbytes_near(held.parents())
        expected = max((self._expected[child] for child in held.children() if child in self._expected), default=None)
        if waited >= self._policy.hold_seconds(nbytes, bandwidth, self._executors, expected):
            self.let_go()

    def let_go(self) -> None:
        """Publish everything that is held."""
        self._let_go(self.held.release())

    def make_room(self) -> None:
        """Publish as much as it takes to respect the memory bound, unless something is about to be published anyway."""
        outbox, kept = self._outbox, self._kept
        if not outbox and outbox.on_its_way is None and self.held:
            excess = kept.nbytes - self._policy.kept_bytes_max
            self._let_go(self.held.release_some(excess, lambda parent: kept.nbytes_of((parent,))))

    def _is_worth_it(self, child: int, edges: Iterable[Edge]) -> bool:
        parents = [parent for _, parent, _ in edges]
        if self._kept.nbytes_near(parents) < self._policy.hold_bytes_min:
            return False
        known = [self._segments.here[segment_of(parent)] for parent in parents]
        if any(parent in each.visible for parent, each in zip(parents, known, strict=True)):
            return False  # it is written in any case
        return known[0].classes.get(child, 0) <= self._assignment.function_class

    def _expect(self, child: int, edges: Iterable[Edge]) -> None:
        """Note how long it takes what a fan-in lacks, if that is known of all of it (or of some, if it is much)."""
        here = {parent for _, parent, _ in edges}
        lacking = [parent for parent in self._segments.known_parents(child) or () if parent not in here]
        looked_at = lacking[:: -(-len(lacking) // LOOKED_AT)] if lacking else []
        self._expected.pop(child, None)
        if looked_at and self._observed.knows(looked_at):
            self._expected[child] = max(self._observed.seconds((parent,)) for parent in looked_at)

    def _let_go(self, edges: list[Edge]) -> None:
        if edges:
            nbytes = self._kept.nbytes_of(parent for _, parent, _ in edges)
            self._journal.note("flush", values=len(edges), nbytes=nbytes, kept=self._kept.nbytes)
            self._outbox.arrivals += edges
