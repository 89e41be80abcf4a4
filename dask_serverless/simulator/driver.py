"""The driver in a simulated sandbox: performs a real `Executor`'s instructions in virtual time. Pure.

This is `lambda_worker.driver` and `publisher` with everything left out but the order in which things happen
at the store. That order is the same, and so is who gives up when: data before signal, results and retirement in one
step, a step that fails for good ends the invocation.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dask_serverless.simulator.timeline import Body, Signal
from dask_serverless.simulator.workload import combine, from_frames, to_frames
from dask_serverless.supervisor import Cause
from lambda_worker.core.errors import ServerlessError, StoreFull, StoreUnavailable, ValueLost
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
    SegmentsLoaded,
    TaskDone,
    TaskErred,
    Woken,
)
from lambda_worker.core.executor import Executor
from lambda_worker.core.instructions import (
    Arrive,
    Delegate,
    Fetch,
    Finish,
    Forget,
    GivePlace,
    Instruction,
    LoadSegments,
    Locate,
    Run,
    Successor,
    TakePlace,
    WakeAfter,
)
from lambda_worker.core.schedule import Assignment
from lambda_worker.core.verdicts import Standing
from lambda_worker.core.wire import (
    Location,
    Ref,
    location_to_wire,
    object_name,
    pack,
    pack_inline,
    unpack_inline,
)
from lambda_worker.lingering import Waiter
from lambda_worker.ports import Arrival, Reply, Succession

if TYPE_CHECKING:
    from dask_serverless.simulator.sandbox import Sandbox
    from dask_serverless.simulator.workload import SimTask

#: A machine's timers are no finer than this; its clock counts from long ago, and would stand still for less.
TICK_SECONDS = 1e-6


class Driver:
    """Runs one assignment in a sandbox."""

    def __init__(self, sandbox: Sandbox, assignment: Assignment, waiter: Waiter) -> None:
        self.sandbox = sandbox
        self.simulation = sandbox.simulation
        self.assignment = assignment
        self.waiter = waiter
        self.executor = Executor(assignment, self.simulation.options.policy)
        self.name = f"{assignment.job}/{assignment.executor}#{assignment.attempt}"
        self.last_begun = -1
        self.values: dict[int, tuple[int, int]] = {}
        self.locations: dict[int, Location] = assignment.located
        self.errors: dict[int, bytes] = {}
        self.unreadable: set[int] = set()
        self.won: set[int] = set()  # children that the store has said are this attempt's
        self.given_up: set[int] = set()  # lost, and nobody here can make it again
        self._finished = Signal()
        self._tries: dict[int, int] = {}
        self._numbers = itertools.count()
        self._who = (assignment.job, assignment.executor, assignment.attempt)

    def __repr__(self) -> str:
        return f"<Driver {self.name} in {self.sandbox.name}>"

    def work(self, until: float) -> Body:
        """Run the assignment to its end."""
        sim, mine = self.simulation, self.assignment
        self.simulation.watch.starts(self)
        sim.tell(self.name, f"begins in {self.sandbox.name} with {list(mine.starts)} {sorted(mine.claims)}")
        if sim.options.last_words:
            sim.last_words[self._who[:2]] = -1
        edges = {number: sim.edges_of(blob) for number, blob in mine.segments.items()}
        now = self.sandbox.clock()
        leave_at = sim.options.policy.leave_at(now, until - sim.timeline.now)
        self.sandbox.spawn(self._beat())
        given = {task: where.nbytes for task, where in mine.given.items() if isinstance(where, Ref)}
        cached = {task: nbytes for task, nbytes in given.items() if sim.is_cached(self.name, task)}
        self.feed(Began(now, edges, leave_at, cached))
        yield self._finished.wait
        sim.last_words.pop(self._who[:2], None)

    def feed(self, event: Event) -> None:
        """Tell the executor something, and begin what it wants."""
        for instruction in self.executor.handle(event):
            self.perform(instruction)

    def perform(self, instruction: Instruction) -> None:
        """Begin an instruction. Tasks run in line with one another, everything else beside them."""
        match instruction:
            case Forget(tasks):
                for task in tasks:
                    self.values.pop(task, None)
                    self.locations.pop(task, None)
                    self.unreadable.discard(task)
            case Finish(reason):
                self.simulation.tell(self.name, f"finishes {reason}")
                self._finished.set()
            case Run():
                self.sandbox.spawn(self._run(instruction))
            case WakeAfter(seconds):
                self.sandbox.spawn(self._wake(seconds))
            case _:
                self.sandbox.spawn(self._beside(instruction))

    def _beside(self, instruction: Instruction) -> Body:
        try:
            match instruction:
                case Arrive():
                    yield from self.arrive(instruction)
                case Fetch(task, values):
                    yield from self._fetch(task, values)
                case Locate(task):
                    ask = partial(self.sandbox.store.locate, self.assignment.job, task)
                    places = yield from self.sandbox.ask(self.simulation.metadata, ask)
                    for parent, where in places.items():
                        self.locations.setdefault(parent, where)
                    self.feed(Located(task, places))
                case LoadSegments(segments):
                    blobs = yield from self._load(segments)
                    self.feed(SegmentsLoaded({n: self.simulation.edges_of(blob) for n, blob in blobs.items()}))
                case Delegate():
                    yield from self.delegate(instruction)
                case GivePlace():
                    yield from self._say([["seceded", None]])
                case TakePlace():
                    yield from self._say([["rejoined", None]])
        except ServerlessError as error:
            self._finished.set(error=error)

    # -- tasks ----------------------------------------------------------------------------------

    def _run(self, run: Run) -> Body:
        sim, mine, task = self.simulation, self.assignment, run.task
        external = task in sim.externals[mine.job]  # has no body: it is lost, and nobody here can make it again
        if external and task in self.given_up:
            self.feed(Irreplaceable(task))  # it was said that it is lost
            return
        if external or any(parent in self.unreadable for parent in run.parents):
            if external:
                self.given_up.add(task)
            self.errors[task] = pack(["ValueLost", mine.job, task])
            self.feed(TaskErred(task, self.sandbox.clock(), final=True))
            return
        does: SimTask = sim.tasks[mine.job][task]
        sim.watch.runs(self, task)
        self.last_begun = task
        if sim.options.last_words:
            sim.last_words[mine.job, mine.executor] = task
        values = [self.values[parent][0] for parent in run.parents]
        began = sim.timeline.now
        if does.input_nbytes:
            yield from self.sandbox.read_input(does.input_nbytes)
        seconds = does.seconds * self.sandbox.slow
        ends = does.poison or does.memory > self.sandbox.function_class
        yield sim.timeline.sleep(seconds / 2 if ends else seconds)
        if does.poison:
            self.sandbox.die(f"task {task} is poison")
            return
        if ends:
            self.sandbox.die(f"task {task} has no more memory", Cause.MEMORY)
            return
        now = self.sandbox.clock()
        count = self._tries[task] = self._tries.get(task, 0) + 1
        if sim.asks_for_later(mine.job, task):
            self._tries[task] -= 1
            self.feed(Rescheduled(task, now))
        elif does.failures < 0 or count <= does.failures:
            self.errors[task] = pack(["user", mine.job, task])
            self.feed(TaskErred(task, now))
        else:
            self.values[task] = (combine(sim.origins[mine.job], task, values), does.nbytes)
            if task in self.unreadable:  # it takes the place of what was lost
                self.unreadable.discard(task)
                self.locations.pop(task, None)
            large = does.nbytes if does.nbytes > 1024 else 0
            self.feed(TaskDone(task, sim.timeline.now - began, now, large))

    def _wake(self, seconds: float) -> Body:
        yield self.simulation.timeline.sleep(max(seconds, TICK_SECONDS))
        self.feed(Woken(self.sandbox.clock()))

    def _beat(self) -> Body:
        sim, mine = self.simulation, self.assignment
        while True:
            yield sim.timeline.sleep(sim.options.lease_seconds / 3)
            if self.executor.finished or self._finished.happened:
                return
            running = -1 if self.executor.running is None else self.executor.running
            runs = [(mine.job, mine.executor, mine.attempt, running)]
            try:
                standing = yield from self.sandbox.ask(sim.metadata, partial(self._beat_once, runs))
                if running >= 0 and standing is Standing.OK and sim.options.speculation:
                    yield from self._say([["stack", [running, []]]])
            except StoreUnavailable:
                continue  # the next one may get through; the lease decides
            if standing is not Standing.OK:
                self.feed(Halted(standing))
                return

    def _beat_once(self, runs: list[tuple[str, str, int, int]]) -> Standing:
        (standing,) = self.sandbox.store.beat(runs)
        self.simulation.watch.heard(*self._who, standing, self.sandbox.name)
        return standing

    # -- values in ------------------------------------------------------------------------------

    def _load(self, segments: Sequence[int]) -> Body:
        sim, job = self.simulation, self.assignment.job
        found: dict[int, bytes] = {}
        for server, numbers in _by_server(segments, lambda number: number % len(sim.shards)).items():
            blobs = yield from self.sandbox.ask(
                sim.shards[server],
                partial(self.sandbox.store.load, job, numbers),
                back=lambda blobs: sum(map(len, blobs)),
            )
            found.update(zip(numbers, blobs, strict=True))
        return found

    def _fetch(self, task: int, values: Mapping[int, Location]) -> Body:
        sim = self.simulation
        wanted = {parent: where for parent, where in values.items() if parent not in self.values}
        stored = {parent: where for parent, where in wanted.items() if isinstance(where, Ref)}
        for parent, where in wanted.items():
            if not isinstance(where, Ref):
                self.values[parent] = from_frames(unpack_inline(where)[1])
        began = sim.timeline.now
        if sim.options.reads_one_by_one:
            for parent, ref in stored.items():
                yield from self._fetch_from(ref.shard, {parent: ref})
        else:
            by_shard = _by_server(stored, lambda parent: stored[parent].shard).items()
            some = [(shard, {parent: stored[parent] for parent in parents}) for shard, parents in by_shard]
            yield from sim.together(self.sandbox, [self._fetch_from(*each) for each in some])
        self.locations.update(wanted)
        nbytes = sum(ref.nbytes for ref in stored.values())
        seconds = sim.timeline.now - began
        lost = [parent for parent in stored if parent in self.unreadable and parent not in self.values]
        if not lost:
            self.feed(InputsFetched(task, nbytes, seconds))
            return
        running = -1 if self.executor.running is None else self.executor.running
        runs = [(*self._who, running)]
        standing = yield from self.sandbox.ask(sim.metadata, partial(self._beat_once, runs))
        # Of a job that is over, they were removed, not lost.
        self.feed(InputsLost(task, lost, nbytes, seconds) if standing is Standing.OK else Halted(standing))

    def _fetch_from(self, shard: int, refs: Mapping[int, Ref]) -> Body:
        sim = self.simulation

        def ask(some: list[Ref]) -> Body:
            nbytes = sum(ref.nbytes for ref in some)
            return self.sandbox.ask(sim.server(shard), lambda: self.sandbox.store.get(some), back=lambda _: nbytes)

        try:
            frames = yield from ask(list(refs.values()))
            for parent, pieces in zip(refs, frames, strict=True):
                self.values[parent] = from_frames(pieces)
        except ValueLost:
            for parent, ref in refs.items():  # one by one, since others need the good ones
                try:
                    (pieces,) = yield from ask([ref])
                    self.values[parent] = from_frames(pieces)
                except ValueLost:
                    self.unreadable.add(parent)

    # -- what others are to know ----------------------------------------------------------------

    def arrive(self, arrive: Arrive) -> Body:
        """Store what is mentioned, publish results and errors, and arrive at children."""
        copies: dict[int, int] = {}
        for _, parent, parents_of_child in arrive.arrivals:
            copies[parent] = max(copies.get(parent, 0), parents_of_child)
        inputs = arrive.successor.inputs if arrive.successor is not None else {}
        needed = [parent for parents_of_start in inputs.values() for parent in parents_of_start]
        parents = [parent for _, parent, _ in arrive.arrivals]
        began = self.simulation.timeline.now
        locations, failed, nbytes = yield from self.locate([*parents, *arrive.results, *needed], copies)
        yield from self.signal(arrive, locations, failed, nbytes, self.simulation.timeline.now - began)

    def signal(
        self,
        arrive: Arrive,
        locations: Mapping[int, Location],
        failed: Mapping[int, bytes],
        nbytes: int = 0,
        seconds: float = 0.0,
    ) -> Body:
        """Tell the store and the proxy, once everything that is mentioned is stored."""
        sim = self.simulation
        events: list[Any] = []
        done = [
            [task, location_to_wire(locations[task]), self.values[task][1], b"", "int", 0.0, 0.0]
            for task in arrive.results
            if task in locations
        ]
        if done:
            events.append(["done", done])
        erred = {task: self.errors.pop(task) for task in arrive.errors} | dict(failed)
        if erred:
            events.append(["erred", list(erred.items())])
        succession = self._succession(arrive.successor, locations)
        lingering = self.waiter.offer() if arrive.retire and succession is None else None
        arrivals = [
            Arrival(child, parent, parents, locations[parent])
            for child, parent, parents in arrive.arrivals
            if parent in locations
        ] + [Arrival(child, parent, parents, None) for child, parent, parents in arrive.asks]
        said = self._pack(events)

        def step() -> Reply:
            reply: Reply = self.sandbox.store.arrive(
                *self._who, arrivals, said, retire=arrive.retire, succession=succession, lingering=lingering
            )
            sim.watch.heard(*self._who, reply.standing, self.sandbox.name)
            sim.watch.claimed(self, reply)
            return reply

        reply = yield from self.sandbox.ask(sim.metadata, step)
        sim.watch.told(self, reply)
        asked = f" asks {arrive.asks}" if arrive.asks else ""
        sim.tell(self.name, f"arrived {arrive.arrivals} {arrive.results} {arrive.errors}{asked}: {_told(reply)}")
        if reply.retired:
            self.waiter.offered = lingering is not None and lingering.seconds > 0
        for claim in reply.claims:
            for parent, location in claim.values.items():
                self.locations.setdefault(parent, location)
        self.feed(Answered(reply.standing, reply.claims, reply.retired, self.sandbox.clock(), nbytes, seconds))

    def locate(self, tasks: Iterable[int], fan_ins: Mapping[int, int] | None = None) -> Body:
        """Find out where values are, writing those that nobody else could read yet."""
        sim, mine = self.simulation, self.assignment
        located: dict[int, Location] = {}
        failed: dict[int, bytes] = {}
        large: dict[int, list[tuple[int, str, list[bytes]]]] = {}
        for task in dict.fromkeys(tasks):
            if task in self.locations:
                located[task] = self.locations[task]
                continue
            value, nbytes = self.values[task]
            name = object_name(mine.job, task, mine.executor, mine.attempt)
            frames = to_frames(value, nbytes)
            if sim.options.policy.inline(nbytes, (fan_ins or {}).get(task, 1)):
                located[task] = pack_inline(name, frames)
            else:
                large.setdefault(self.sandbox.store.shard_of(name), []).append((task, name, frames))
        bodies = [self._put(shard, items, located, failed) for shard, items in large.items()]
        yield from sim.together(self.sandbox, bodies)
        self.locations.update(located)
        nbytes = sum(
            where.nbytes
            for items in large.values()
            for task, _, _ in items
            if isinstance(where := located.get(task), Ref)
        )
        return located, failed, nbytes

    def _put(
        self,
        shard: int,
        items: list[tuple[int, str, list[bytes]]],
        located: dict[int, Location],
        failed: dict[int, bytes],
    ) -> Body:
        sim, job = self.simulation, self.assignment.job

        def ask(some: list[tuple[int, str, list[bytes]]]) -> Body:
            nbytes = sum(self.values[task][1] for task, _, _ in some if task in self.values)
            objects = [(name, frames) for _, name, frames in some]
            refs = yield from self.sandbox.ask(sim.shards[shard], lambda: self.sandbox.store.put(objects), out=nbytes)
            if overflowed := sum(ref.nbytes for ref in refs if ref.overflowed):
                yield sim.timeline.sleep(sim.overflow.seconds(overflowed, sim.timeline.now))
            return refs

        try:
            refs = yield from ask(items)
            located.update((task, ref) for (task, _, _), ref in zip(items, refs, strict=True))
        except StoreFull:
            for item in items:  # one of them is too much: find out which
                try:
                    (located[item[0]],) = yield from ask([item])
                except StoreFull:
                    failed[item[0]] = pack(["StoreFull", job, item[0]])

    def _succession(self, successor: Successor | None, locations: Mapping[int, Location]) -> Succession | None:
        if successor is None:
            return None
        inputs = {start: parents for start, parents in successor.inputs.items() if locations.keys() >= set(parents)}
        if not inputs:
            return None
        given = {parent: locations[parent] for parents in inputs.values() for parent in parents}
        starts = [task for task in successor.assignment.starts if task in inputs]
        record = replace(successor.assignment, starts=starts, given=given)
        return Succession(record, self._pack([["delegating", [record.executor]], ["invoke", record.to_bytes()]]))

    def delegate(self, delegate: Delegate) -> Body:
        """Start other executors with a part of the work, as many as there is room for."""
        sim, mine = self.simulation, self.assignment
        locations, failed, _ = yield from self.locate(parent for parents in delegate.inputs for parent in parents)
        if failed:  # keep the work here, where the values are
            self.feed(Delegated(0, self.sandbox.clock()))
            return
        records = [
            replace(each, given={parent: locations[parent] for parent in parents})
            for each, parents in zip(delegate.assignments, delegate.inputs, strict=True)
        ]
        mails = [sim.mail_of(each) for each in records]

        called = itertools.count()

        def step() -> list[str]:
            sim.watch.repeated += next(called) > 0
            posted: list[str] = self.sandbox.store.delegate_and_post(*self._who, records, mails, mine.ceiling)
            return posted

        recipients = yield from self.sandbox.ask(sim.metadata, step)
        granted = len(recipients)
        sim.tell(self.name, f"gives away {[list(each.starts) for each in records[:granted]]} of {len(records)}")
        if granted:
            posted = [(name, each) for name, each in zip(recipients, records, strict=False) if name]
            unposted = [each for name, each in zip(recipients, records, strict=False) if not name]
            refused = unposted
            if sim.options.policy.invoke_here(len(unposted), warm=False):
                answers = yield from sim.together(self.sandbox, [sim.service.invoke(each) for each in unposted])
                refused = [each for each, answer in zip(unposted, answers, strict=True) if answer is not None]
            events: list[Any] = [["delegating", [each.executor for each in records[:granted]]]]
            if posted:
                events.append(["posted", [[name, each.executor] for name, each in posted]])
            events.extend(["invoke", each.to_bytes()] for each in refused)
            yield from self._say(events)
        self.feed(Delegated(granted, self.sandbox.clock()))

    def _say(self, events: list[Any]) -> Body:
        sim, said = self.simulation, self._pack(events)
        yield from self.sandbox.ask(sim.metadata, lambda: self.sandbox.store.arrive(*self._who, events=said))

    def _pack(self, events: list[Any]) -> bytes:
        # The number tells two publications with the same content from one that is repeated.
        return pack([next(self._numbers), events]) if events else b""


def _by_server(items: Iterable[int], where: Any) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for item in items:
        found.setdefault(where(item), []).append(item)
    return found


def _told(reply: Reply) -> str:
    claims = " ".join(f"{claim.child}:{claim.verdict.value}" for claim in reply.claims)
    return f"{reply.standing.value} {claims}{' retired' if reply.retired else ''}"
