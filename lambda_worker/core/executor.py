"""The executor: walks a static schedule and decides, alone, what happens next.

Events go in, instructions come out (`Executor.handle`); nothing here touches a socket, a clock or a value.
The driver performs instructions in Lambda; a simulator can perform them under virtual time.

The life of a task here::

    promised -> ready -> (fetching) -> running -> done | erred
                  |`--> delegated (given to a new executor)  |
                  `-------------- parked (rescheduled) <-----'

* A task is **promised** when all its parents are done or promised here: nobody else can complete it.
* A fan-in that also has parents elsewhere is **shared**. Once every parent promised here is done, the executor
  *arrives*: it publishes those parents and tells the fan-in. Exactly one of the executors that arrive is told
  that the child is its own to run (*become*); the others forget it.
* A task may need a larger function class (more memory, more time) than this executor has: it does not *fit*. It is
  never promised here. Once it is ready it is delegated to an executor of its class. When the ceiling leaves no room
  for one and nothing else is left to do here, the executor retires and a *successor* of the larger class takes its
  place, in one step at the store: so even one place is enough.
* An attempt that follows a death starts with everything that was given to it or that it had claimed, **without** the
  tasks that it had given away (others run them) and those that are blamed for deaths.
* A large value for a fan-in that is at home here is **held** back from the store for a while: the others may arrive.
* An input that is **lost** (its shard died) is made again here, by running its task and what is missing of its
  inputs, for those who wait for it here (`remaking`). Nobody else hears of it: the store knows that they are done.
* An executor that must **leave** (its time is nearly up, or those before it died in the middle of too much) runs
  nothing more: it publishes what it has, and a successor takes its place with what is ready.

Here is what happens when. It is composed of what is known of the graph (`segments`), the values at hand (`kept`),
what nobody else will complete (`promises`), what waits to be published (`outbox`) or is held back (`holding`), what
others are to do (`delegation`), what runs again (`parked`) and what is made again (`remaking`).

Who wins when two things could happen: an error or a halt ends things at once; a claim beats a
retirement (the store refuses to retire an executor that has just won a child).

Source: become/invoke and fan-in by dependency counters, Wukong (SoCC'20) sections 3.3-3.4, with an
edge set and an owner in place of the counter (numpywren's ``conditional_increment`` has the set).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Set
from operator import attrgetter

from lambda_worker.core.delegation import Delegation
from lambda_worker.core.errors import ProtocolError
from lambda_worker.core.events import (
    Answered,
    Began,
    Delegated,
    Event,
    Halted,
    InputsFetched,
    InputsLost,
    Irreplaceable,
    Located,
    Rescheduled,
    Seceded,
    SegmentsLoaded,
    TaskDone,
    TaskErred,
    Woken,
    WritingsMissed,
)
from lambda_worker.core.holding import Holding
from lambda_worker.core.instructions import (
    Delegate,
    Fetch,
    Finish,
    Forget,
    GivePlace,
    Instruction,
    Locate,
    Run,
    TakePlace,
    WakeAfter,
)
from lambda_worker.core.journal import Journal, Report
from lambda_worker.core.kept import Kept
from lambda_worker.core.lineage import REWRITES_MAX
from lambda_worker.core.observed import Observed, Sums
from lambda_worker.core.outbox import Outbox
from lambda_worker.core.parked import Parked
from lambda_worker.core.policy import Policy
from lambda_worker.core.promises import Promises
from lambda_worker.core.remaking import Remaking
from lambda_worker.core.schedule import Assignment, Edges, segment_of
from lambda_worker.core.segments import READ_AHEAD_SEGMENTS, Segments
from lambda_worker.core.speed import Speed
from lambda_worker.core.verdicts import Claim, Standing, Verdict
from lambda_worker.core.wire import Location


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
    [Forget(tasks=[0]), Arrive(arrivals=[], results=[1], errors=[], retire=True, successor=None, asks=())]
    """

    def __init__(self, assignment: Assignment, policy: Policy) -> None:
        self.assignment = assignment
        self.policy = policy
        self.finished = False
        self.tasks_run = 0
        self.tasks_rerun = 0
        self._running: dict[int, None] = {}  # in the order in which they began
        # After a death one task at a time: then it is known which one was running if this one dies, too.
        self._threads = policy.threads if assignment.attempt == 1 else 1
        # Ready tasks, the next one last: depth-first keeps few values alive.
        self._ready: list[int] = []
        # An attempt after a death: tasks that are not run here, and those that wait for nothing that is.
        self._without = frozenset(assignment.without)
        self._settled = self._without.union(assignment.claims, assignment.starts if assignment.redo else ())
        self._done_before = {} if assignment.redo else assignment.given
        self._segments = Segments()
        self._kept = Kept(assignment.given)
        self._promises = Promises(self._segments, assignment.function_class, self._without, self._settled)
        self._parked = Parked()
        self._progress: dict[int, None] = {}  # values made again, for the successor
        self.journal = Journal()
        self._observed = Observed(self._segments.here, assignment.learned)
        self._delegation = Delegation(assignment, policy, self._segments, self._parked, self._observed, self.journal)
        needs = self._delegation.unfitting
        self._remaking = Remaking(self._segments, self._kept, self._promises, needs, assignment.function_class)
        self._lineage = self._remaking.lineage
        self._leave_at = math.inf
        self._begun = False
        self._late_starts: dict[int, list[int]] = {}  # by segment that is not here yet
        self._fetching: set[int] = set()
        self._fetched: list[int] = []
        self._outbox = Outbox()
        parts = self._segments, self._kept, self._outbox, self.journal
        self._holding = Holding(assignment, policy, *parts, self._observed)
        self._held = self._holding.held
        self._speed = Speed(2 * policy.bytes_per_second)  # that is there and back
        self._now = 0.0
        self._alarms: list[float] = []  # when those that are set will come, in order
        self._tries: dict[int, int] = {}
        self._won: list[int] = []  # at fan-ins, and not yet looked at whether to share them
        self._place_given = False
        self._seceded = False

    def __repr__(self) -> str:
        return (
            f"<Executor {self.assignment.job}/{self.assignment.executor}#{self.assignment.attempt}"
            f" ready={len(self._ready)} running={[*self._running]} run={self.tasks_run}>"
        )

    @property
    def running(self) -> int | None:
        """The task that has been running for the longest time; None: none is."""
        return next(iter(self._running), None)

    @property
    def tasks_running(self) -> int:
        """How many tasks are running."""
        return len(self._running)

    @property
    def kept_nbytes(self) -> int:
        """How much it has of large values."""
        return self._kept.nbytes

    @property
    def tasks_remade(self) -> int:
        """How many tasks have run again for their values."""
        return self._remaking.tasks

    def handle(self, event: Event) -> list[Instruction]:
        """Take in one event and return what to do now, in order."""
        if self.finished:
            return []
        out: list[Instruction] = []
        match event:
            case TaskDone():
                self._on_done(event, out)
            case Woken(now):
                self._now = now
                del self._alarms[:1]
                self._unpark(now, out)
                self._publish(out, now_or_never=True)
                self._ask_for_room_again(event.now, out)
                self._offer_all(out)
                return out
            case Answered():
                self._on_answered(event, out)
            case InputsFetched():
                self._on_fetched(event)
            case InputsLost():
                self._on_inputs_lost(event)
            case WritingsMissed():
                self._on_writings_missed(event)
            case Located(task, values):
                self._on_located(task, values)
            case Irreplaceable(task):
                self._leave(task)
                self._remaking.give_up(task)
            case SegmentsLoaded(edges):
                self._on_loaded(edges.items())
            case TaskErred():
                self._on_erred(event)
            case Rescheduled(task, now):
                self._on_rescheduled(task, now, out)
            case Delegated():
                self._on_delegated(event, out)
            case Began(now, edges, until, cached):
                self._kept.cached(cached)
                self._now = now
                self._leave_at = min(until, now + (self.assignment.patience or math.inf))
                self._on_began(now, edges, out)
            case Seceded():
                self._seceded = True
                self._offer_all(out)
            case Halted(standing):
                self._finish(standing.value, out)
        if not self.finished:
            if self._delegation.leaving:
                self._leave_to_successor()
            if self._won:
                self._share_won(out)
            self._advance(out)
            if self._delegation.unfitting:
                self._offer_unfitting(out)
            self._publish(out)
            self._give_place(out)
        if self._kept.released or self._segments.forget:
            out.insert(0, Forget(self._kept.take_released(), self._segments.forget))
            self._segments.forget = []
        return out

    # -- events ---------------------------------------------------------------------------------

    def _on_began(self, now: float, edges: Mapping[int, Edges], out: list[Instruction]) -> None:
        self._segments.here.update(edges)
        if not self.assignment.room:
            self._delegation.ask_again = now + self.policy.settle_seconds(self.assignment.settle)
        starts = self.assignment.starts
        needed = dict.fromkeys(self.assignment.hint)
        for task in starts:
            if task in self._done_before:
                needed[segment_of(task)] = None  # completing it needs its children now
        for child in self.assignment.claims:
            needed[segment_of(child)] = None  # it may need another class
        missing = [segment for segment in needed if segment not in self._segments.here]
        if missing:
            out.append(self._segments.load(missing))
        else:
            self._begin_starts()

    def _begin_starts(self) -> None:
        self._begun = True
        self.journal.count("began")
        given = self._done_before
        waiting = self.assignment.starts
        if self._without:
            waiting = [task for task in waiting if task not in self._without]
        self._promises.promise(waiting)
        for task in reversed(waiting):
            if task not in given:
                self._ready.append(task)
                edges = self._segments.here.get(segment_of(task))
                if edges is not None:
                    self._kept.keep_all(edges.parents[task - edges.first])
                else:
                    self._late_starts.setdefault(segment_of(task), []).append(task)
        # What is at hand is used first: what has to be read comes meanwhile, and takes the room of what was used.
        for task in sorted(reversed(waiting), key=self._kept.is_cached):
            if task in given:
                self._complete(task, given_from_elsewhere=True)
        for child, values in self.assignment.claims.items():
            self._on_claim(Claim(child, Verdict.YOURS, values), frozenset())

    def _on_loaded(self, loaded: Iterable[tuple[int, Edges]]) -> None:
        for segment, edges in loaded:
            self._segments.add(segment, edges)
            if self._begun:
                for task in self._late_starts.pop(segment, ()):
                    self._kept.keep_all(edges.parents[task - edges.first])
                self._promises.explore(segment)
        if not self._begun and not self._segments.loading:
            self._begin_starts()

    def _on_done(self, event: TaskDone, out: list[Instruction]) -> None:
        task = event.task
        self._now = event.now
        self._held.stir(event.now)
        self._leave(task)
        self.tasks_run += 1
        observed = self._observed.note(task, event.seconds, event.nbytes, event.now)
        self._kept.made(task, event.nbytes)
        if event.now >= self._leave_at:
            self._delegation.leaving = True
        self._delegation.look_again(event.now)
        if self._lineage and not self._on_remade(task):
            return
        self._complete(task)
        self._release_inputs(task)
        self._segments.end(task)
        if observed and len(self._ready) > 1 and event.now >= self._delegation.ask_again:
            out += self._split()

    def _on_erred(self, event: TaskErred) -> None:
        task = event.task
        edges = self._segments.here[segment_of(task)]
        tries = self._tries.get(task, 0)
        self._leave(task)
        self.tasks_run += 1
        if event.now >= self._leave_at:
            self._delegation.leaving = True
        if not event.final and tries < edges.retries.get(task, 0):
            self._tries[task] = tries + 1
            self.tasks_rerun += 1
            (self._lineage.ready if task in self._lineage else self._ready).append(task)
            return
        # Its descendants can never run; the proxy, which holds the whole graph, tells their
        # waiters. Values kept for them are dropped with the executor.
        self._outbox.errors.append(task)
        if self._lineage and not self._remaking.give_up(task):
            return
        self._release_inputs(task)
        self._segments.end(task)

    def _on_rescheduled(self, task: int, now: float, out: list[Instruction]) -> None:
        self._leave(task)
        self.tasks_run += 1
        self.tasks_rerun += 1
        if task in self._lineage:
            self._lineage.park(task)
        self._now = now
        self._wake_after(self._parked.park(task, now), out)

    def _unpark(self, now: float, out: list[Instruction]) -> None:
        """Make parked tasks ready whose moment has come: behind all others, who have waited longer."""
        if not self._parked:
            return
        due = self._parked.due(now)
        if self._lineage:
            due = self._lineage.fold(due)
        self._ready[:0] = due
        if due and not self._delegation.offered and any(map(self._parked.is_patient, due)):
            out += self._delegation.offer(self._ready, len(due), len(due))  # refused, they run here
        if self._parked:
            self._wake_after(self._parked.seconds_left(now), out)
        self._advance(out)

    def _give_place(self, out: list[Instruction]) -> None:
        """Do not keep others waiting while there is nothing here but parked tasks."""
        if self._parked.for_long and not self._place_given and self._quiet:
            self._place_given = True
            out.append(GivePlace())

    def _on_fetched(self, event: InputsFetched) -> None:
        self._speed.moved(event.nbytes, event.seconds)
        self._fetching.discard(event.task)
        self._kept.fetched(self._segments.parents_of(event.task), event.sizes)
        self._fetched.append(event.task)

    # -- what is lost ---------------------------------------------------------------------------

    def _on_inputs_lost(self, event: InputsLost) -> None:
        self._speed.moved(event.nbytes, event.seconds)
        self._fetching.discard(event.task)
        self._kept.fetched([p for p in self._segments.parents_of(event.task) if p not in event.lost])
        self._kept.lose(event.lost)
        self._remake(event.task, self._kept.gone(event.lost))

    def _on_writings_missed(self, event: WritingsMissed) -> None:
        """Have the inputs of a task made again, and theirs: what these write is what it misses."""
        task = event.task
        parents = [parent for parent in self._segments.parents_of(task) if parent not in self._lineage]
        if self._lineage.hopeless(parents, REWRITES_MAX):
            self._on_erred(TaskErred(task, event.now, final=True))
            return
        self._leave(task)
        self._kept.renew(parents)
        self._lineage.make_anew(parents)
        self._remake(task, self._segments.parents_of(task))

    def _remake(self, task: int, gone: Collection[int]) -> None:
        """Have values made again that a task needs."""
        # One that is due here as a task of its own, and may no longer be given away, is on its way. Others run at once.
        coming = {*self._fetched, *self._fetching, *self._running}
        if self._remaking.demand(task, gone, coming):
            self._ready = self._lineage.fold(self._ready)
        else:
            self._fetched.append(task)  # the driver, which knows why they cannot be read, errs it

    def _on_located(self, task: int, values: Mapping[int, Location]) -> None:
        if self._lineage.located(task):
            for parent, location in values.items():
                self._kept.locate(parent, location)

    def _on_remade(self, task: int) -> bool:
        """Let those go on who waited for a value; tell whether its task was due here as well."""
        due, going_on = self._remaking.made(task)
        self._ready += going_on
        return due

    # -- the store answers ----------------------------------------------------------------------

    def _on_answered(self, event: Answered, out: list[Instruction]) -> None:
        sent = self._outbox.answered()
        self._now = event.now
        self._speed.moved(event.nbytes, event.seconds)
        if event.standing is not Standing.OK or event.retired:
            self._finish("" if event.retired else event.standing.value, out)
            return
        self._kept.release_all(sent.results)
        parents_sent: dict[int, set[int]] = {}
        for child, parent, _ in sent.arrivals:
            parents_sent.setdefault(child, set()).add(parent)
        for claim in sorted(event.claims, key=attrgetter("child"), reverse=True):  # the first one ends on top
            if claim.verdict is Verdict.WAIT:
                self._kept.release_all(parents_sent.get(claim.child, ()))
            elif claim.child in self._held:
                self._on_claim(claim, self._held.settle(claim.child, event.now))
            else:
                self._on_claim(claim, parents_sent.get(claim.child) or self._outbox.withdraw(claim.child))

    def _on_claim(self, claim: Claim, sent: Set[int]) -> None:
        """Take in what the store says of a child, for which parents (`sent`) are kept here."""
        child = claim.child
        if claim.verdict is not Verdict.YOURS or not self._promises.win(child):
            self._kept.release_all(sent)
            return
        elsewhere = len(claim.values.keys() - sent)
        self.journal.note("become", task=child, parents_here=len(sent), parents_elsewhere=elsewhere)
        edges = self._segments.here[segment_of(next(iter(sent), child))]
        if not self.policy.locality:
            self._kept.release_all(sent)
            sent = frozenset()
        for parent, location in claim.values.items():
            if parent not in sent:
                self._kept.keep(parent)
            self._kept.locate(parent, location)
        self._make_ready(child, edges)
        if child not in self._delegation.unfitting:
            self._promises.promise((child,))
            self._won.append(child)

    def _on_delegated(self, event: Delegated, out: list[Instruction]) -> None:
        unfitting = self._delegation.unfitting
        granted, refused = self._delegation.answered(event.granted, event.now)
        if refused:
            self._ready[:0] = self._lineage.fold(task for share in refused for task in share if task not in unfitting)
            if self._seceded or (unfitting and not self._idle):
                self._wake_after(self.policy.refused_seconds, out)
        for share in granted:
            for task in share:
                self._release_inputs(task)
                unfitting.pop(task, None)
            self._promises.unpromise(share)
        if not refused:
            self._offer_all(out)  # what did not fit may have gone first

    # -- completion -----------------------------------------------------------------------------

    def _complete(self, task: int, given_from_elsewhere: bool = False) -> None:
        """Tell the children of a task that it is done here."""
        here = self._segments.here
        edges = here[segment_of(task)]
        children = edges.children[task - edges.first]
        if self._settled:
            children = [child for child in children if child not in self._settled]
        reasons = len(children)
        if task in edges.visible and not given_from_elsewhere:
            self._outbox.results.append(task)
            reasons += 1
        self._kept.keep(task, reasons)
        fan_ins = edges.fan_ins
        if not self.policy.locality:
            self._promises.arrivals += [(child, task, fan_ins.get(child, 1)) for child in children]
            return
        for child in reversed(children):  # the lowest number ends on top: it runs next
            if child not in fan_ins:
                self._make_ready(child, edges)
                if segment_of(child) not in here:
                    self._segments.note_sole_parent(child, task)
            elif self._promises.meet(child, task, fan_ins[child]):
                self._make_ready(child, edges)

    def _make_ready(self, task: int, edges: Edges) -> None:
        """Put a task where it will be taken from; `edges` are those of its segment or of a parent's."""
        needs = edges.classes.get(task, 0) if edges.classes else 0
        if needs > self.assignment.function_class:
            self._delegation.unfitting[task] = needs
        else:
            self._ready += self._lineage.fold((task,)) if self._lineage else (task,)

    def _release_inputs(self, task: int) -> None:
        self._kept.release_all(self._segments.known_parents(task) or ())

    # -- what next ------------------------------------------------------------------------------

    def _leave(self, task: int) -> None:
        if task not in self._running:
            raise ProtocolError(f"task {task} ended while {[*self._running]} were running")
        del self._running[task]
        self._seceded = False
        self._delegation.asked = False

    def _advance(self, out: list[Instruction]) -> None:
        """Start the next task, and have the inputs of those after it on their way."""
        if self._kept.nbytes > self.policy.kept_bytes_max and self._makes_room():
            return
        while self._fetched or self._ready or self._lineage.ready:
            free = len(self._running) < self._threads
            if self._fetched and free:
                self._run(self._fetched.pop(), out)
                continue
            ready = self._lineage.ready or self._ready
            if not ready or self._fetched:
                return
            task = ready[-1]
            edges = self._segments.here.get(segment_of(task))
            if edges is None or segment_of(task) in self._segments.forgotten:
                if segment_of(task) not in self._segments.loading:
                    out.append(self._segments.load(self._segments.ahead(ready) or [segment_of(task)]))
                return
            if ready is self._lineage.ready and (obstacle := self._remaking.obstacle(task, edges)) is not None:
                if isinstance(obstacle, Locate):
                    out.append(obstacle)
                elif obstacle:
                    self._remake(task, obstacle)
                continue
            parents = edges.parents[task - edges.first]
            try:
                missing = self._kept.missing(parents)
            except KeyError:  # another task here has found it lost
                ready.pop()
                self._remake(task, self._kept.gone(parents))
                continue
            if not free and not missing:
                return
            if missing and len(self._fetching) >= self.policy.fetch_ahead:
                return
            # What is read ahead stays here, so not before it is known what others are given.
            if (self._won or not self.policy.prefetch) and (self._fetching or not free):
                return
            ready.pop()
            if not missing:
                self._run(task, out)
            else:
                self._fetching.add(task)
                self.journal.note("fetch" if self.running is None else "prefetch", task=task, values=len(missing))
                out.append(Fetch(task, missing))

    def _run(self, task: int, out: list[Instruction]) -> None:
        self._running[task] = None
        if self._place_given:
            self._place_given = False
            out.append(TakePlace())
        out.append(Run(task, self._segments.parents_of(task)))
        if self._promises.unexplored and not self._segments.loading:
            out.append(self._segments.load(sorted(self._promises.unexplored)[:READ_AHEAD_SEGMENTS]))

    def _publish(self, out: list[Instruction], now_or_never: bool = False) -> None:
        """Publish what waits: at once when no task is running, otherwise after a short while."""
        outbox, held = self._outbox, self._held
        self._hold_back()
        if outbox.on_its_way is not None:
            return
        if held and (self._now >= self._leave_at or self._place_wanted):
            self._holding.let_go()
        elif held:
            self._holding.let_go_of_overdue(self._now, self._speed.bandwidth)
        if self._running and not now_or_never:
            if outbox or held:
                pause = self.policy.publish_seconds
                self._wake_after(pause if outbox else max(pause, held.seconds_left(self._now)), out)
            return
        idle = self._idle
        asks = held.ask(self._now) if held.due(self._now) else ()
        if outbox or asks or idle:
            successor = self._delegation.successor(self._progress) if idle and self._delegation.unfitting else None
            out.append(outbox.send(idle, successor, asks, *self._report(idle)))
        elif held:
            self._wake_after(held.seconds_left(self._now), out)

    def _report(self, retires: bool) -> tuple[Mapping[int, Sums], Report]:
        """Count what is to be published; hand out what was observed and decided, at the end or when it is due."""
        outbox = self._outbox
        if outbox.arrivals:
            self.journal.count("arrive", len({child for child, _, _ in outbox.arrivals}))
        arrivals, results = len(outbox.arrivals), len(outbox.results)
        if outbox or retires:
            self.journal.note("publish", arrivals=arrivals, results=results, ready=len(self._ready))
        else:
            self.journal.count("ask")
        return (self._observed.take(), self.journal.take()) if retires or self._observed.due else ({}, ({}, []))

    def _hold_back(self) -> None:
        """Sort what is to arrive: some of it is held for a while."""
        self._holding.sort(self._promises.take_arrivals(), self._now, self._delegation.leaving)

    def _makes_room(self) -> bool:
        """Have values published that need not be kept then; tell whether anything is."""
        self._hold_back()
        self._holding.make_room()
        return bool(self._outbox) or self._outbox.on_its_way is not None

    def _wake_after(self, seconds: float, out: list[Instruction]) -> None:
        """Ask for an alarm, unless one is set that comes before.

        Each serves whatever is due when it comes, and asks for what is due later. If each asked for one more while
        others are set, they would multiply.
        """
        moment = self._now + seconds
        if not self._alarms or moment < self._alarms[0]:
            self._alarms.insert(0, moment)
            out.append(WakeAfter(seconds))

    @property
    def _idle(self) -> bool:
        return self._quiet and not self._parked and not self._held

    @property
    def _place_wanted(self) -> bool:
        """Whether only tasks for a larger executor are left here, and the one place for it may be this one's."""
        return self._delegation.no_room and bool(self._delegation.unfitting) and self._quiet

    @property
    def _quiet(self) -> bool:
        return not self._running and not (
            self._ready
            or self._fetched
            or self._fetching
            or self._lineage
            or self._segments.loading
            or self._delegation.offered
        )

    # -- what others are to do ------------------------------------------------------------------

    def _split(self) -> list[Delegate]:
        """Offer shares of the ready tasks if that pays, of those that may be parted from their inputs."""
        seconds_left = self._leave_at - self._now
        if not self._kept.has_large:
            return self._delegation.split(self._ready, seconds_left)
        if not self._delegation.may_split(len(self._ready), seconds_left):
            return []
        movable = [task for task in self._ready if self._moves(task)]
        if len(movable) < len(self._ready):
            self.journal.note("group", ready=len(self._ready), stay=len(self._ready) - len(movable))
        offers = self._delegation.split(movable, seconds_left)
        if offers:
            offered = {task for share in self._delegation.offered for task in share}
            self._ready = [task for task in self._ready if task not in offered]
        return offers

    def _share_won(self, out: list[Instruction]) -> None:
        """Share what was won together before any of it runs, if it is known well enough that this pays.

        Who arrives last at one fan-in is often the last at others: a block that comes late is all that a whole row of
        products has been waiting for. What these need must be known, so their segments are read first.
        """
        delegation = self._delegation
        if delegation.offered:
            return
        ready, seconds_left = len(self._ready), self._leave_at - self._now
        if ready < 2 or self._now < delegation.ask_again or not delegation.may_split(ready, seconds_left):
            self._won = []
        elif unknown := self._segments.unknown(self._won):
            if not self._segments.loading:
                out.append(self._segments.load(unknown[:READ_AHEAD_SEGMENTS]))
        else:
            won, self._won = self._won, []
            if not self.policy.tries_first(self._observed.knows(won)):
                out += self._split()

    def _moves(self, task: int) -> bool:
        nbytes = self._kept.nbytes_near(self._segments.known_parents(task) or ())
        return not nbytes or self.policy.moves(nbytes, self._observed.seconds((task,)), self._speed.bandwidth)

    def _offer_all(self, out: list[Instruction]) -> None:
        """While the running task waits (perhaps for one of them), nothing else shall wait for it."""
        if self._seceded and self._ready and not self._delegation.offered:
            out += self._delegation.offer(self._ready, len(self._ready), len(self._ready))

    def _offer_unfitting(self, out: list[Instruction]) -> None:
        """Offer the ready tasks that do not fit to new executors of their classes.

        Who has nothing else to do asks once, and only for those that its successor is not to run.
        """
        idle = self._idle
        delegation = self._delegation
        if delegation.offered or not delegation.unfitting or (delegation.no_room and not idle):
            return
        if unknown := self._segments.unknown(delegation.unfitting):  # what they need is not known yet
            if not self._segments.loading:
                out.append(self._segments.load(unknown[:READ_AHEAD_SEGMENTS]))
            return
        if delegation.leaving or (idle and delegation.asked):
            return
        out += delegation.offer_unfitting(keep_last=idle)

    def _ask_for_room_again(self, now: float, out: list[Instruction]) -> None:
        """A running task may take long: do not wait for its end to look for room for what does not fit."""
        if not self._delegation.unfitting or self._delegation.offered:
            return
        self._delegation.look_again(now)
        if not self._delegation.no_room:
            self._offer_unfitting(out)
        else:
            self._wake_after(self.policy.refused_seconds, out)

    def _leave_to_successor(self) -> None:
        """Run nothing more: what is ready is left to the successor, and waits for nothing here."""
        tasks = [*self._ready, *self._fetched, *self._parked.due(math.inf)]
        self._ready, self._fetched = [], []
        if self._lineage:  # what is lost will be missed again
            tasks, progress = self._remaking.abandon(tasks, busy={*self._running, *self._fetching})
            self._progress.update(dict.fromkeys(progress))
        for task in tasks:
            self._delegation.unfitting[task] = self.assignment.function_class
        self._promises.unpromise(tasks)

    def _finish(self, reason: str, out: list[Instruction]) -> None:
        self.finished = True
        out.append(Finish(reason))
