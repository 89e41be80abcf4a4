"""What an executor gives to others: shares of its ready tasks, and tasks that do not fit it. Pure.

A share is offered, and the store grants it a place or not. Who was refused does not ask again at once. What
offers something returns the instruction for it, or none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from lambda_worker.core.instructions import Delegate, Successor
from lambda_worker.core.journal import Journal
from lambda_worker.core.observed import Observed
from lambda_worker.core.parked import Parked
from lambda_worker.core.policy import Policy
from lambda_worker.core.schedule import HINT_SEGMENTS_MAX, Assignment, segment_of
from lambda_worker.core.segments import Segments


class Delegation:
    """Tasks for other executors.

    Parameters
    ----------
    assignment
        Of the executor that gives them away.
    policy
        The numbers decisions are made from.
    segments
        What is known of the graph.
    parked
        Tasks that were rescheduled here.
    observed
        What tasks are expected to take.
    journal
        Of the executor.

    Attributes
    ----------
    offered
        Shares that the store has not answered for.
    unfitting
        Ready tasks that do not fit here, each with the class that it needs.
    leaving
        Whether everything is left to a successor.
    no_room
        Whether there was none for what does not fit, when this was last asked.
    asked
        Whether places were asked for since a task ended.
    ask_again
        Nothing is split before this time.

    Examples
    --------
    >>> from lambda_worker.core.schedule import Edges
    >>> segments = Segments()
    >>> segments.add(0, Edges(first=0, parents=[[], [], []], children=[[], [], []]))
    >>> delegation = Delegation(Assignment("job", "e", 1, starts=[0, 1, 2]), Policy(), segments, Parked())
    >>> ready = [2, 1, 0]
    >>> [delegate] = delegation.offer(ready, size=1, upto=2)
    >>> [(mine.executor, mine.starts) for mine in delegate.assignments], ready
    ([('e.1.1', [2]), ('e.1.2', [1])], [0])
    >>> delegation.answered(granted=1, now=5.0), delegation.ask_again
    (([[2]], [[1]]), 5.1)
    """

    def __init__(
        self,
        assignment: Assignment,
        policy: Policy,
        segments: Segments,
        parked: Parked,
        observed: Observed | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.offered: list[list[int]] = []
        self.unfitting: dict[int, int] = {}
        self.leaving = False
        self.no_room = False
        self.asked = False
        self.ask_again = 0.0
        self._assignment = assignment
        self._policy = policy
        self._segments = segments
        self._parked = parked
        self._observed = Observed({}, {}) if observed is None else observed
        self._journal = Journal() if journal is None else journal
        self._refusals = 0  # in a row
        self._look_again = 0.0
        self._children_named = 0

    def may_split(self, count: int, seconds_left: float) -> bool:
        """Tell whether splitting so many ready tasks would pay if all were as long as the longest."""
        if self.offered or count < 2:
            return False
        longest = self._observed.longest
        if self._policy.shares(count, longest, seconds_left) > 1:
            return True
        self._journal.note("keep", ready=count, seconds_per_task=longest)
        return False

    def split(self, ready: list[int], seconds_left: float = math.inf) -> list[Delegate]:
        """Offer shares of the ready tasks when that pays (lazy splitting)."""
        count = len(ready)
        if not self.may_split(count, seconds_left):
            return []
        seconds = self._observed.seconds(ready) / count
        shares = self._policy.shares(count, seconds, seconds_left)
        if shares < 2:
            self._journal.note("keep", ready=count, seconds_per_task=seconds)
            return []
        self._journal.note("split", ready=count, seconds_per_task=seconds, shares=shares)
        branches, room = self._policy.branches(shares)
        size = -(-len(ready) // branches)
        return self.offer(ready, size, len(ready) - size, room)

    def offer(self, ready: list[int], size: int, upto: int, room: int = 0) -> list[Delegate]:
        """Take the tasks below `upto` from the ready ones and offer them, in shares of `size`.

        The bottom of the stack is what this executor would reach last. Who is given one may start `room` more.
        """
        for first in range(0, upto, size):
            share = ready[first : first + size]
            if any(self._segments.known_parents(task) is None for task in share):
                break
            self.offered.append(share)
        if not self.offered:
            return []
        del ready[: sum(map(len, self.offered))]
        return [self._delegate(room)]

    def offer_unfitting(self, keep_last: bool) -> list[Delegate]:
        """Offer the tasks that do not fit to executors of their classes; the last share may stay for a successor."""
        by_class: dict[int, list[int]] = {}
        for task in sorted(self.unfitting):
            by_class.setdefault(self.unfitting[task], []).append(task)
        shares: list[list[int]] = []
        for _, tasks in sorted(by_class.items()):
            # Nothing is known of how long they take, so all places are asked for, as when a job begins.
            count = max(1, min(len(tasks), self._policy.ceiling * len(tasks) // len(self.unfitting)))
            size = -(-len(tasks) // count)
            shares += [tasks[first : first + size][::-1] for first in range(0, len(tasks), size)]
        self.offered = shares[:-1] if keep_last else shares
        self._journal.note("larger", tasks=len(self.unfitting), shares=len(self.offered))
        return [self._delegate()] if self.offered else []

    def answered(self, granted: int, now: float) -> tuple[list[list[int]], list[list[int]]]:
        """Take in how many of the offered shares the store granted; return these, and those that it refused."""
        given, refused = self.offered[:granted], self.offered[granted:]
        self.offered = []
        self.asked = True
        self.no_room = bool(refused)
        if given:
            self._journal.note("delegated", executors=granted, tasks=sum(map(len, given)))
        if refused:
            self._journal.note("refused", executors=len(refused), tasks=sum(map(len, refused)))
            self._refusals += 1
            pause = self._policy.refused_pause(self._refusals)
            self._look_again = now + pause
            if not self._assignment.room:  # who is to start others knows that there is room, or will be
                wanted = self._observed.seconds([task for share in refused for task in share])
                pause = self._policy.refused_split_pause(self._refusals, wanted, self._assignment.settle)
            self.ask_again = now + pause
        elif self._refusals:  # there is room again
            self._refusals = 0
            self.ask_again = now
        return given, refused

    def look_again(self, now: float) -> None:
        """Once some time has passed, there may be room."""
        if self.no_room and now >= self._look_again:
            self.no_room = False

    def successor(self, progress: Iterable[int] = ()) -> Successor:
        """Leave all that does not fit to one executor that takes the place of this one."""
        self._journal.note("hand-over", tasks=len(self.unfitting))
        tasks = sorted(self.unfitting, reverse=True)
        inputs = {task: self._segments.known_parents(task) or () for task in tasks}
        if tasks and progress:  # what was made again of what these lack, given along
            inputs[tasks[0]] = list(dict.fromkeys((*inputs[tasks[0]], *progress)))
        return Successor(self._assign(tasks), inputs)

    def _delegate(self, room: int = 0) -> Delegate:
        known_parents = self._segments.known_parents
        inputs = [sorted({p for task in share for p in known_parents(task) or ()}) for share in self.offered]
        return Delegate([self._assign(share, room) for share in self.offered], inputs)

    def _assign(self, share: Sequence[int], room: int = 0) -> Assignment:
        """Make the assignment of a new executor for these ready tasks, of which the last comes first."""
        mine = self._assignment
        self._children_named += 1
        hint = sorted({segment_of(task) for task in share})[:HINT_SEGMENTS_MAX]
        # A rescheduled task, or a last one, is given away even if it is all of its job: its segment is stored nowhere.
        alone = self.leaving or any(map(self._parked.is_patient, share))
        return Assignment(
            mine.job,
            f"{mine.executor}.{mine.attempt}.{self._children_named}",
            1,
            share[::-1],
            hint=hint,
            segments={n: mine.segments[n] for n in hint if n in mine.segments} if alone else {},
            ceiling=mine.ceiling,
            room=room,
            scheduler=mine.scheduler,
            outfit=mine.outfit,
            function_class=max(map(self._class_of, share)) if mine.function_class or self.unfitting else 0,
            # What an earlier attempt has claimed is run here, or was: who is given its parents must not run it again.
            without=tuple(sorted({*mine.without, *mine.claims}.difference(share))) if mine.claims else mine.without,
            redo=mine.redo or mine.patience > 0,
            learned=self._observed.known(),
            patience=2 * mine.patience,  # every successor of one that did not die may stay longer
        )

    def _class_of(self, task: int) -> int:
        if task in self.unfitting:
            return self.unfitting[task]
        return self._segments.class_of(task)
