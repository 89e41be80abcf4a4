"""The executor: walks a static schedule and decides, alone, what happens next.

Events go in, instructions come out (`Executor.handle`); nothing here touches a socket, a clock or
a value. The driver performs instructions in Lambda; a simulator can perform them under virtual time.

The life of a task here::

    promised -> ready -> (fetching) -> running -> done | erred
                  |`--> delegated (given to a new executor)  |
                  `-------------- parked (rescheduled) <-----'

* A task is **promised** when all its parents are done or promised here: nobody else can complete
  it. A fan-in whose parents are all promised here therefore needs no store at all.
* A fan-in that also has parents elsewhere is **shared**. Once every parent promised here is done,
  the executor *arrives*: it publishes those parents and tells the fan-in. Exactly one of the
  executors that arrive is told that the child is its own to run (*become*); the others forget it.
* A task may need a larger function class (more memory, more time) than this executor has: it does not
  *fit*. It is never promised here. Once it is ready it is delegated to an executor of its class. When the
  ceiling leaves no room for one and nothing else is left to do here, the executor retires and a
  *successor* of the larger class takes its place, in one step at the store: so even one place is enough.
* An attempt that follows a death starts with everything that was given to it or that it had claimed,
  **without** the tasks that it had given away (others run them) and those that are blamed for deaths.
* An executor that must **leave** (its time is nearly up, or those before it died in the middle of too much)
  runs nothing more: it publishes what it has, and a successor takes its place with what is ready.
* Promises only save round trips. An executor that does not know (yet) that a parent is promised to
  it arrives early; that is never wrong, since the store holds a set of edges, not a count.

Who wins when two things could happen: an error or a halt ends things at once; a claim beats a
retirement (the store refuses to retire an executor that has just won a child).

Source: become/invoke and fan-in by dependency counters, Wukong (SoCC'20) sections 3.3-3.4, with an
edge set and an owner in place of the counter (numpywren's ``conditional_increment`` has the set).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from lambda_worker.core.errors import ProtocolError
from lambda_worker.core.events import (
    Answered,
    Began,
    Delegated,
    Event,
    Halted,
    InputsFetched,
    Rescheduled,
    Seceded,
    SegmentsLoaded,
    TaskDone,
    TaskErred,
    Woken,
)
from lambda_worker.core.instructions import (
    Arrive,
    Delegate,
    Fetch,
    Finish,
    Forget,
    GivePlace,
    Instruction,
    LoadSegments,
    Run,
    Successor,
    TakePlace,
    WakeAfter,
)
from lambda_worker.core.parked import Parked
from lambda_worker.core.policy import Policy
from lambda_worker.core.schedule import HINT_SEGMENTS_MAX, SEGMENT_TASKS, Assignment, Edges, segment_of
from lambda_worker.core.verdicts import Claim, Standing, Verdict
from lambda_worker.core.wire import Location

#: Segments read at once when one that is needed is missing.
READ_AHEAD_SEGMENTS = 16


@dataclass(slots=True)
class _FanIn:
    """What this executor knows of a task with several parents."""

    parents: int  # the in-degree
    expected: int = 0  # parents done or promised here
    arrived: int = 0  # how many of `done` have been told to the store
    done: list[int] = field(default_factory=list)


class Executor:
    """Walk one assignment.

    Parameters
    ----------
    assignment
        What to run.
    policy
        The numbers decisions are made from.

    Examples
    --------
    A chain of two tasks, of which the second is visible, runs without asking anybody:

    >>> from lambda_worker.core.events import Began, TaskDone
    >>> edges = Edges(first=0, parents=[[], [0]], children=[[1], []], visible=frozenset({1}))
    >>> executor = Executor(Assignment("job", "e", 1, starts=[0]), Policy())
    >>> executor.handle(Began(now=0.0, edges={0: edges}))
    [Run(task=0, parents=[])]
    >>> executor.handle(TaskDone(0, seconds=0.1, now=0.1))
    [Run(task=1, parents=[0])]
    >>> executor.handle(TaskDone(1, seconds=0.1, now=0.2))
    [Forget(tasks=[0]), Arrive(arrivals=[], results=[1], errors=[], retire=True, successor=None)]
    """

    def __init__(self, assignment: Assignment, policy: Policy) -> None:
        self.assignment = assignment
        self.policy = policy
        self.finished = False
        self.tasks_run = 0
        self.tasks_rerun = 0
        self.running: int | None = None
        # Ready tasks, the next one last: depth-first keeps few values alive.
        self._ready: list[int] = []
        # Ready tasks that do not fit, each with the class that it needs.
        self._unfitting: dict[int, int] = {}
        self._no_room = False  # for them, when this was last asked
        self._asked = False  # for room, since a task ended
        self._edges: dict[int, Edges] = {}
        self._loading: set[int] = set()
        # An attempt after a death: tasks that are not run here, and those that wait for nothing that is.
        self._without = frozenset(assignment.without)
        self._settled = self._without.union(assignment.claims, assignment.starts if assignment.redo else ())
        self._done_before = {} if assignment.redo else assignment.given
        self._leave_at = math.inf
        self._leaving = False
        # Tasks promised to this executor, and those among them whose segment is not here yet.
        self._promised: set[int] = set()
        self._unexplored: dict[int, dict[int, None]] = {}
        self._begun = False
        self._late_starts: dict[int, list[int]] = {}  # by segment that is not here yet
        self._fan_ins: dict[int, _FanIn] = {}
        self._claimed: set[int] = set()
        # Values: where those from elsewhere are, which are here, and how many reasons keep each.
        self._located: dict[int, Location] = dict(assignment.given)
        self._here: set[int] = set()
        self._uses: dict[int, int] = {}
        self._nbytes: dict[int, int] = {}  # of the large values among those made here
        self._kept_bytes = 0
        self._sole_parent: dict[int, int] = {}
        self._fetching: set[int] = set()
        self._fetched: list[int] = []
        # What waits to be published, and what is on its way.
        self._arrivals: list[tuple[int, int, int]] = []
        self._results: list[int] = []
        self._errors: list[int] = []
        self._publishing: Arrive | None = None
        self._wake_asked = False
        self._tries: dict[int, int] = {}
        self._parked = Parked()
        self._place_given = False
        # Splitting.
        self._offered: list[list[int]] = []
        self._seceded = False
        self._children_named = 0
        self._seconds_per_task = 0.0
        self._ask_again = 0.0
        self._refused_seconds = policy.refused_seconds
        self._forget: list[int] = []
        # Tasks of each segment that have ended here; the bodies of a segment of which all have are let go.
        self._ended: dict[int, int] = {}
        self._forget_segments: list[int] = []

    def __repr__(self) -> str:
        return (
            f"<Executor {self.assignment.job}/{self.assignment.executor}#{self.assignment.attempt}"
            f" ready={len(self._ready)} running={self.running} run={self.tasks_run}>"
        )

    def handle(self, event: Event) -> list[Instruction]:
        """Take in one event and return what to do now, in order."""
        if self.finished:
            return []
        out: list[Instruction] = []
        match event:
            case TaskDone():
                self._on_done(event, out)
            case Woken(now):
                self._wake_asked = False
                self._unpark(now, out)
                self._publish(out, now_or_never=True)
                self._ask_for_room_again(event.now, out)
                self._offer_all(out)
                return out
            case Answered():
                self._on_answered(event, out)
            case InputsFetched(task):
                self._on_fetched(task)
            case SegmentsLoaded(edges):
                self._on_loaded(edges.items())
            case TaskErred():
                self._on_erred(event)
            case Rescheduled(task, now):
                self._on_rescheduled(task, now, out)
            case Delegated():
                self._on_delegated(event, out)
            case Began(now, edges, until):
                self._leave_at = min(until, now + (self.assignment.patience or math.inf))
                self._on_began(now, edges, out)
            case Seceded():
                self._seceded = True
                self._offer_all(out)
            case Halted(standing):
                self._finish(standing.value, out)
        if not self.finished:
            if self._leaving:
                self._leave_to_successor()
            self._advance(out)
            if self._unfitting:
                self._offer_unfitting(out)
            self._publish(out)
            self._give_place(out)
        if self._forget or self._forget_segments:
            # One that a claim asks for again, in the very answer that released it, is not forgotten.
            forget = [task for task in self._forget if task not in self._uses]
            out.insert(0, Forget(forget, self._forget_segments))
            self._forget, self._forget_segments = [], []
        return out

    # -- events ---------------------------------------------------------------------------------

    def _on_began(self, now: float, edges: Mapping[int, Edges], out: list[Instruction]) -> None:
        self._edges.update(edges)
        if not self.assignment.room:
            self._ask_again = now + self.policy.full_seconds
        starts = self.assignment.starts
        needed = dict.fromkeys(self.assignment.hint)
        for task in starts:
            if task in self._done_before:
                needed[segment_of(task)] = None  # completing it needs its children now
        for child in self.assignment.claims:
            needed[segment_of(child)] = None  # it may need another class
        missing = [segment for segment in needed if segment not in self._edges]
        if missing:
            self._load(missing, out)
        else:
            self._begin_starts()

    def _begin_starts(self) -> None:
        self._begun = True
        given = self._done_before
        waiting = self.assignment.starts
        if self._without:
            waiting = [task for task in waiting if task not in self._without]
        self._promise(waiting)
        for task in reversed(waiting):
            if task not in given:
                self._ready.append(task)
                edges = self._edges.get(segment_of(task))
                if edges is not None:
                    self._keep_inputs(edges.parents[task - edges.first])
                else:
                    self._late_starts.setdefault(segment_of(task), []).append(task)
        for task in reversed(waiting):
            if task in given:
                self._complete(task, given_from_elsewhere=True)
        for child, values in self.assignment.claims.items():
            self._on_claim(Claim(child, Verdict.YOURS, values), frozenset())

    def _on_loaded(self, loaded: Iterable[tuple[int, Edges]]) -> None:
        for segment, edges in loaded:
            self._edges[segment] = edges
            self._loading.discard(segment)
            if self._begun:
                for task in self._late_starts.pop(segment, ()):
                    self._keep_inputs(edges.parents[task - edges.first])
                self._promise(self._unexplored.pop(segment, ()))
        if not self._begun and not self._loading:
            self._begin_starts()

    def _on_done(self, event: TaskDone, out: list[Instruction]) -> None:
        task = event.task
        self._leave(task)
        self.tasks_run += 1
        mean = self._seconds_per_task
        self._seconds_per_task = event.seconds if mean == 0.0 else mean + 0.2 * (event.seconds - mean)
        self._here.add(task)
        self._no_room = self._no_room and event.now < self._ask_again
        self._leaving = self._leaving or event.now >= self._leave_at
        if event.nbytes:
            self._nbytes[task] = event.nbytes
            self._kept_bytes += event.nbytes
        self._complete(task)
        self._release_inputs(task)
        self._end(task)
        if len(self._ready) > 1 and event.now >= self._ask_again:
            self._split(event.now, out)

    def _on_erred(self, event: TaskErred) -> None:
        task = event.task
        edges = self._edges[segment_of(task)]
        tries = self._tries.get(task, 0)
        self._leave(task)
        self.tasks_run += 1
        self._leaving = self._leaving or event.now >= self._leave_at
        if not event.final and tries < edges.retries.get(task, 0):
            self._tries[task] = tries + 1
            self.tasks_rerun += 1
            self._ready.append(task)
            return
        # Its descendants can never run; the proxy, which holds the whole graph, tells their
        # waiters. Values kept for them are dropped with the executor.
        self._errors.append(task)
        self._release_inputs(task)
        self._end(task)

    def _on_rescheduled(self, task: int, now: float, out: list[Instruction]) -> None:
        self._leave(task)
        self.tasks_run += 1
        self.tasks_rerun += 1
        out.append(WakeAfter(self._parked.park(task, now)))

    def _unpark(self, now: float, out: list[Instruction]) -> None:
        """Make parked tasks ready whose moment has come: behind all others, who have waited longer."""
        if not self._parked:
            return
        due = self._parked.due(now)
        self._ready[:0] = due
        if due and not self._offered and any(map(self._parked.is_patient, due)):
            self._offer(len(due), len(due), out)  # refused, they run here
        if self._parked:
            out.append(WakeAfter(self._parked.seconds_left(now)))
        self._advance(out)

    def _give_place(self, out: list[Instruction]) -> None:
        """Do not keep others waiting while there is nothing here but parked tasks."""
        if self._parked.for_long and not self._place_given and self._quiet:
            self._place_given = True
            out.append(GivePlace())

    def _on_fetched(self, task: int) -> None:
        self._fetching.discard(task)
        self._here.update(self._parents_of(task))
        self._fetched.append(task)

    def _on_answered(self, event: Answered, out: list[Instruction]) -> None:
        sent = self._publishing
        if sent is None:
            raise ProtocolError("an answer without a publication")
        self._publishing = None
        if event.standing is not Standing.OK or event.retired:
            self._finish("" if event.retired else event.standing.value, out)
            return
        for task in sent.results:
            self._release(task)
        parents_sent: dict[int, set[int]] = {}
        for child, parent, _ in sent.arrivals:
            parents_sent.setdefault(child, set()).add(parent)
        for claim in event.claims:
            self._on_claim(claim, parents_sent.get(claim.child, frozenset()))

    def _on_claim(self, claim: Claim, sent: Set[int]) -> None:
        child = claim.child
        if claim.verdict is not Verdict.YOURS or child in self._claimed:
            for parent in sent:
                self._release(parent)
            return
        self._claimed.add(child)
        self._fan_ins.pop(child, None)
        for parent, location in claim.values.items():
            if parent not in sent:
                self._keep(parent)
            if parent not in self._here:
                self._located[parent] = location
        self._make_ready(child, self._edges[segment_of(next(iter(sent), child))])
        if child not in self._unfitting:
            self._promise((child,))

    def _on_delegated(self, event: Delegated, out: list[Instruction]) -> None:
        granted, refused = self._offered[: event.granted], self._offered[event.granted :]
        self._offered = []
        self._asked = True
        if refused:
            self._ask_again = event.now + self._refused_seconds
            self._refused_seconds = min(2 * self._refused_seconds, self.policy.refused_seconds_max)
            self._ready[:0] = [task for share in refused for task in share if task not in self._unfitting]
            self._no_room = True
            if (self._seceded or (self._unfitting and not self._idle)) and not self._wake_asked:
                self._wake_asked = True
                out.append(WakeAfter(self.policy.refused_seconds))
        else:
            self._no_room = False
            self._refused_seconds = self.policy.refused_seconds
        for share in granted:
            for task in share:
                self._release_inputs(task)
                self._unfitting.pop(task, None)
            self._unpromise(share)
        if not refused:
            self._offer_all(out)  # what did not fit may have gone first

    def _end(self, task: int) -> None:
        """Let go of a segment's bodies when all its tasks have ended here.

        Its edges stay: they also tell what class a child needs, which is asked when the child is won.
        What was given away or lost to another executor keeps its segment here, which costs memory only.
        """
        segment = segment_of(task)
        ended = self._ended.get(segment, 0) + 1
        if ended < SEGMENT_TASKS:
            self._ended[segment] = ended
        else:
            del self._ended[segment]
            self._forget_segments.append(segment)

    # -- completion and promises ----------------------------------------------------------------

    def _complete(self, task: int, given_from_elsewhere: bool = False) -> None:
        """Tell the children of a task that it is done here."""
        edges = self._edges[segment_of(task)]
        children = edges.children[task - edges.first]
        if self._settled:
            children = [child for child in children if child not in self._settled]
        uses = len(children)
        if task in edges.visible and not given_from_elsewhere:
            self._results.append(task)
            uses += 1
        if not uses and task not in self._uses:
            self._drop(task)
            return
        self._uses[task] = self._uses.get(task, 0) + uses
        fan_ins = edges.fan_ins
        for child in reversed(children):  # the lowest number ends on top: it runs next
            if child not in fan_ins:
                self._make_ready(child, edges)
                if segment_of(child) not in self._edges:
                    self._sole_parent[child] = task
                continue
            fan_in = self._fan_in(child, fan_ins[child])
            fan_in.done.append(task)
            if len(fan_in.done) == fan_in.parents and not fan_in.arrived:
                del self._fan_ins[child]
                self._claimed.add(child)
                self._make_ready(child, edges)
            elif len(fan_in.done) >= fan_in.expected:
                self._queue_arrivals(child, fan_in)

    def _make_ready(self, task: int, edges: Edges) -> None:
        """Put a task where it will be taken from; `edges` are those of its segment or of a parent's."""
        needs = edges.classes.get(task, 0) if edges.classes else 0
        if needs > self.assignment.function_class:
            self._unfitting[task] = needs
        else:
            self._ready.append(task)

    def _fan_in(self, child: int, parents: int) -> _FanIn:
        fan_in = self._fan_ins.get(child)
        if fan_in is None:
            fan_in = self._fan_ins[child] = _FanIn(parents)
        return fan_in

    def _queue_arrivals(self, child: int, fan_in: _FanIn) -> None:
        for parent in fan_in.done[fan_in.arrived :]:
            self._arrivals.append((child, parent, fan_in.parents))
        fan_in.arrived = len(fan_in.done)

    def _promise(self, tasks: Iterable[int]) -> None:
        """Note that tasks will be done here, and whatever follows from it (iteratively)."""
        stack = list(tasks)
        promised = self._promised
        while stack:
            task = stack.pop()
            if task in promised or task in self._without:
                continue
            edges = self._edges.get(segment_of(task))
            if edges is None:
                self._unexplored.setdefault(segment_of(task), {})[task] = None
                continue
            promised.add(task)
            fan_ins = edges.fan_ins
            classes = edges.classes
            for child in edges.children[task - edges.first]:
                if child in self._settled:
                    continue
                if child in fan_ins:
                    fan_in = self._fan_in(child, fan_ins[child])
                    fan_in.expected += 1
                    if fan_in.expected < fan_in.parents:
                        continue
                if not classes or classes.get(child, 0) <= self.assignment.function_class:
                    stack.append(child)

    def _unpromise(self, tasks: Iterable[int]) -> None:
        """Undo `_promise` for tasks given away; fan-ins that no longer wait for them arrive."""
        stack = list(tasks)
        while stack:
            task = stack.pop()
            edges = self._edges.get(segment_of(task))
            if edges is None:
                # Its segment may come yet, but the promise must not be made then.
                self._unexplored.get(segment_of(task), {}).pop(task, None)
            if edges is None or task not in self._promised:
                continue
            self._promised.discard(task)
            for child in edges.children[task - edges.first]:
                stack.append(child)
                fan_in = self._fan_ins.get(child)
                if fan_in is not None:
                    fan_in.expected -= 1
                    if fan_in.done and len(fan_in.done) >= fan_in.expected:
                        self._queue_arrivals(child, fan_in)

    # -- values ---------------------------------------------------------------------------------

    def _parents_of(self, task: int) -> Sequence[int]:
        edges = self._edges[segment_of(task)]
        return edges.parents[task - edges.first]

    def _keep(self, task: int) -> None:
        self._uses[task] = self._uses.get(task, 0) + 1

    def _keep_inputs(self, parents: Sequence[int]) -> None:
        for parent in parents:
            self._keep(parent)

    def _release(self, task: int) -> None:
        left = self._uses.get(task, 0) - 1
        if left > 0:
            self._uses[task] = left
        else:
            self._drop(task)

    def _release_inputs(self, task: int) -> None:
        for parent in self._known_parents(task) or ():
            self._release(parent)

    def _known_parents(self, task: int) -> Sequence[int] | None:
        """Return a task's parents, or None while its segment (and so its parents) is not here."""
        edges = self._edges.get(segment_of(task))
        if edges is not None:
            return edges.parents[task - edges.first]
        parent = self._sole_parent.get(task)
        return None if parent is None else (parent,)

    def _drop(self, task: int) -> None:
        self._uses.pop(task, None)
        self._kept_bytes -= self._nbytes.pop(task, 0)
        if self._located.pop(task, None) is not None or task in self._here:
            self._here.discard(task)
            self._forget.append(task)

    # -- what next ------------------------------------------------------------------------------

    def _leave(self, task: int) -> None:
        if task != self.running:
            raise ProtocolError(f"task {task} ended while {self.running} was running")
        self.running = None
        self._seceded = False
        self._asked = False

    def _advance(self, out: list[Instruction]) -> None:
        """Start the next task, and have the inputs of those after it on their way."""
        if self._kept_bytes > self.policy.kept_bytes_max and (
            self._publishing is not None or self._arrivals or self._results
        ):
            return  # what is published need not be kept: first that
        while self._fetched or self._ready:
            if self._fetched and self.running is None:
                self._run(self._fetched.pop(), out)
                continue
            if not self._ready or self._fetched:
                return
            task = self._ready[-1]
            edges = self._edges.get(segment_of(task))
            if edges is None:
                if segment_of(task) not in self._loading:
                    self._load(self._segments_ahead(), out)
                return
            parents = edges.parents[task - edges.first]
            missing = {p: self._located[p] for p in parents if p not in self._here}
            if self.running is not None and not missing:
                return
            if missing and len(self._fetching) >= self.policy.fetch_ahead:
                return
            self._ready.pop()
            if not missing:
                self._run(task, out)
            else:
                self._fetching.add(task)
                out.append(Fetch(task, missing))

    def _run(self, task: int, out: list[Instruction]) -> None:
        self.running = task
        if self._place_given:
            self._place_given = False
            out.append(TakePlace())
        out.append(Run(task, self._parents_of(task)))
        if self._unexplored and not self._loading:
            self._load(sorted(self._unexplored)[:READ_AHEAD_SEGMENTS], out)

    def _segments_ahead(self) -> list[int]:
        """Name the segments that the next ready tasks need, nearest first."""
        ahead: dict[int, None] = {}
        for task in reversed(self._ready[-READ_AHEAD_SEGMENTS * SEGMENT_TASKS :]):
            segment = segment_of(task)
            if segment not in self._edges and segment not in self._loading:
                ahead[segment] = None
                if len(ahead) == READ_AHEAD_SEGMENTS:
                    break
        return list(ahead)

    def _load(self, segments: Sequence[int], out: list[Instruction]) -> None:
        if segments:
            self._loading.update(segments)
            out.append(LoadSegments(segments))

    def _publish(self, out: list[Instruction], now_or_never: bool = False) -> None:
        """Publish what waits: at once when no task is running, otherwise after a short while."""
        if self._publishing is not None:
            return
        waiting = bool(self._arrivals or self._results or self._errors)
        if self.running is not None and not now_or_never:
            if waiting and not self._wake_asked:
                self._wake_asked = True
                out.append(WakeAfter(self.policy.publish_seconds))
            return
        idle = self._idle
        if not waiting and not idle:
            return
        successor = self._successor() if idle and self._unfitting else None
        self._publishing = Arrive(self._arrivals, self._results, self._errors, retire=idle, successor=successor)
        self._arrivals, self._results, self._errors = [], [], []
        out.append(self._publishing)

    @property
    def _idle(self) -> bool:
        return self._quiet and not self._parked

    @property
    def _quiet(self) -> bool:
        return self.running is None and not (
            self._ready or self._fetched or self._fetching or self._loading or self._offered
        )

    def _split(self, now: float, out: list[Instruction]) -> None:
        """Offer shares of the ready tasks to new executors when that pays (lazy splitting)."""
        if self._offered or len(self._ready) < 2:
            return
        shares = self.policy.shares(len(self._ready), self._seconds_per_task)
        if shares < 2:
            return
        size = -(-len(self._ready) // shares)
        self._offer(size, len(self._ready) - size, out)

    def _offer_all(self, out: list[Instruction]) -> None:
        """While the running task waits (perhaps for one of them), nothing else shall wait for it."""
        if self._seceded and self._ready and not self._offered:
            self._offer(len(self._ready), len(self._ready), out)

    def _offer(self, size: int, upto: int, out: list[Instruction]) -> None:
        """Offer the ready tasks below `upto`, in shares of `size`.

        The bottom of the stack is what this executor would reach last.
        """
        for first in range(0, upto, size):
            share = self._ready[first : first + size]
            if any(self._known_parents(task) is None for task in share):
                break
            self._offered.append(share)
        if not self._offered:
            return
        del self._ready[: sum(map(len, self._offered))]
        self._delegate(out)

    def _delegate(self, out: list[Instruction]) -> None:
        inputs = [sorted({p for task in share for p in self._known_parents(task) or ()}) for share in self._offered]
        out.append(Delegate([self._assignment(share) for share in self._offered], inputs))

    def _assignment(self, share: Sequence[int]) -> Assignment:
        """Make the assignment of a new executor for these ready tasks, of which the last comes first."""
        mine = self.assignment
        self._children_named += 1
        hint = sorted({segment_of(task) for task in share})[:HINT_SEGMENTS_MAX]
        # A rescheduled task, or a last one, is given away even if it is all of its job: its segment is stored nowhere.
        alone = self._leaving or any(map(self._parked.is_patient, share))
        return Assignment(
            mine.job,
            f"{mine.executor}.{mine.attempt}.{self._children_named}",
            1,
            share[::-1],
            hint=hint,
            segments={n: mine.segments[n] for n in hint if n in mine.segments} if alone else {},
            ceiling=mine.ceiling,
            scheduler=mine.scheduler,
            outfit=mine.outfit,
            function_class=max(map(self._class_of, share)) if mine.function_class or self._unfitting else 0,
            without=mine.without,
            redo=mine.redo or mine.patience > 0,
            patience=2 * mine.patience,  # every successor of one that did not die may stay longer
        )

    def _class_of(self, task: int) -> int:
        if task in self._unfitting:
            return self._unfitting[task]
        edges = self._edges.get(segment_of(task)) or self._edges[segment_of(self._sole_parent[task])]
        return edges.classes.get(task, 0)

    # -- tasks that do not fit ------------------------------------------------------------------

    def _offer_unfitting(self, out: list[Instruction]) -> None:
        """Offer the ready tasks that do not fit to new executors of their classes.

        Who has nothing else to do asks once, and only for those that its successor is not to run.
        """
        idle = self._idle
        if self._offered or not self._unfitting or (self._no_room and not idle):
            return
        unknown = {segment_of(task): None for task in self._unfitting if self._known_parents(task) is None}
        if unknown:  # what they need is not known yet
            if not self._loading:
                self._load(list(unknown)[:READ_AHEAD_SEGMENTS], out)
            return
        if self._leaving or (idle and self._asked):
            return
        by_class: dict[int, list[int]] = {}
        for task in sorted(self._unfitting):
            by_class.setdefault(self._unfitting[task], []).append(task)
        shares: list[list[int]] = []
        for _, tasks in sorted(by_class.items()):
            # Nothing is known of how long they take, so all places are asked for, as when a job begins.
            count = max(1, min(len(tasks), self.policy.ceiling * len(tasks) // len(self._unfitting)))
            size = -(-len(tasks) // count)
            shares += [tasks[first : first + size][::-1] for first in range(0, len(tasks), size)]
        self._offered = shares[:-1] if idle else shares
        if self._offered:
            self._delegate(out)

    def _ask_for_room_again(self, now: float, out: list[Instruction]) -> None:
        """A running task may take long: do not wait for its end to look for room for what does not fit."""
        if not self._unfitting or self._offered:
            return
        self._no_room = self._no_room and now < self._ask_again
        if not self._no_room:
            self._offer_unfitting(out)
        elif not self._wake_asked:
            self._wake_asked = True
            out.append(WakeAfter(self.policy.refused_seconds))  # the same alarm serves what is to be published

    def _leave_to_successor(self) -> None:
        """Run nothing more: what is ready is left to the successor, and waits for nothing here."""
        tasks = [*self._ready, *self._fetched, *self._parked.due(math.inf)]
        self._ready, self._fetched = [], []
        for task in tasks:
            self._unfitting[task] = self.assignment.function_class
        self._unpromise(tasks)

    def _successor(self) -> Successor:
        tasks = sorted(self._unfitting, reverse=True)
        return Successor(self._assignment(tasks), {task: self._known_parents(task) or () for task in tasks})

    def _finish(self, reason: str, out: list[Instruction]) -> None:
        self.finished = True
        out.append(Finish(reason))
