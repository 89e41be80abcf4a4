"""Performs an executor's instructions: tasks in line, input and output beside them.

The main thread runs tasks. I/O threads perform everything else while a task is running; when none
is, the main thread does the I/O itself, which saves two thread switches for a short job. All
threads feed events to the one `Executor` under one lock; nobody else touches its state.

Rule: data before signal. Whatever an arrival or a result mentions has been written before.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import queue
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lambda_worker.beside import Beside
from lambda_worker.core.errors import (
    MissingModule,
    ProtocolError,
    StoreFull,
    StoreUnavailable,
    Tampered,
    UnpicklableResult,
    ValueLost,
    ValueTooLarge,
)
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
    Run,
    Successor,
    TakePlace,
    WakeAfter,
)
from lambda_worker.core.policy import Policy
from lambda_worker.core.schedule import Assignment, Edges, open_segment
from lambda_worker.core.verdicts import Standing
from lambda_worker.core.wire import (
    Frame,
    Location,
    Ref,
    frames_nbytes,
    location_to_wire,
    object_name,
    open_frames,
    pack,
    pack_inline,
    seal,
    seal_frames,
    unpack_inline,
)
from lambda_worker.last_words import LastWords
from lambda_worker.lingering import Waiter, mail_of
from lambda_worker.parcels import fit
from lambda_worker.ports import Arrival, Clock, Invoker, Store, Succession
from lambda_worker.task_runner import (
    Bodies,
    call_stack,
    describe_error,
    describe_value,
    is_reschedule,
    key_of,
    large_nbytes,
    run_body,
)
from lambda_worker.values import frames_to_value, pickled, value_to_frames
from lambda_worker.wardrobe import Wardrobe

if TYPE_CHECKING:
    from lambda_worker.dask_context import TaskWorker

#: Constants kept between tasks and invocations of one sandbox, in bytes of their frames.
CONSTANTS_BYTES_MAX = 256 * 2**20

_MEMORY_ADVICE = (
    "The executor that ran this task has no more memory: raise the cluster's memory_limit= (serverless.lambda.memory), "
    "or use smaller chunks."
)


def events_name(job: str, executor: str, attempt: int) -> str:
    """Name the seal of the events that one attempt publishes."""
    return f"{job}/events/{executor}/{attempt}"


@dataclass
class World:
    """What the drivers of one sandbox share: the ports, the secret and the numbers."""

    store: Store
    invoker: Invoker
    secret: bytes
    policy: Policy
    clock: Clock
    beside: Beside
    wall_offset: float = 0.0  # add to `clock` for the time of day, as Dask's task stream wants it
    lease_seconds: float = 15.0
    linger_seconds: float = 0.0
    payload_bytes_max: int = 256 * 1024
    last_words_directory: str | None = None
    name: str = ""  # of the sandbox
    worker: TaskWorker | None = None  # what Dask code finds in this sandbox, once a task has run in it
    wardrobe: Wardrobe | None = None
    # For tasks that are clients, see `lambda_worker.dask_context.TaskWorker`. Has a private key.
    tls: Mapping[str, Any] | None = field(default=None, repr=False)
    constants: dict[str, tuple[int, Any]] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    types: dict[type, tuple[bytes, str]] = field(default_factory=dict)

    def task_worker(self, scheduler: str, name: str) -> TaskWorker:
        """Return the Dask worker that stands for this sandbox; it is made once."""
        if self.worker is None or self.worker.scheduler.address != scheduler:
            from lambda_worker.dask_context import TaskWorker  # Dask, which a Lambda loads for its first task only

            self.worker = TaskWorker(scheduler, self.name or name, self.tls)
            self.worker.wardrobe = self.wardrobe = Wardrobe(self.store, self.secret, self.worker)
        return self.worker

    def open_location(self, location: Location) -> Any:
        """Read one value, wherever it is."""
        if isinstance(location, Ref):
            return self.open_value(location.name, self.store.get([location])[0])
        return self.open_value(*unpack_inline(location))

    def open_value(self, name: str, sealed: Sequence[Frame]) -> Any:
        """Check and decode the sealed frames of a value."""
        return frames_to_value(open_frames(self.secret, name, sealed))

    def constant(self, ref: Ref) -> Any:
        """Read a constant; it stays here for the next task, the oldest leaving first."""
        found = self.constants.get(ref.name)
        if found is None:
            found = (ref.nbytes, self.open_location(ref))
            room = CONSTANTS_BYTES_MAX - ref.nbytes
            while self.constants and sum(size for size, _ in self.constants.values()) > room:
                del self.constants[next(iter(self.constants))]
            self.constants[ref.name] = found
        return found[1]


@dataclass(frozen=True, slots=True)
class _Failed:
    """Something beside the tasks failed; the main thread raises it."""

    error: BaseException


class Driver:
    """Run one assignment to its end in this process.

    Parameters
    ----------
    world
        Ports, secret and numbers of this sandbox.
    assignment
        What to run.
    seconds_left
        Until Lambda ends this process.
    waiter
        Lingers when this executor has retired.
    """

    def __init__(
        self, world: World, assignment: Assignment, seconds_left: float = math.inf, waiter: Waiter | None = None
    ) -> None:
        self.world = world
        self._until = world.policy.leave_at(world.clock(), seconds_left) if seconds_left < math.inf else math.inf
        self.assignment = assignment
        self.waiter = waiter
        self.executor = Executor(assignment, world.policy)
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[Instruction | _Failed] = queue.SimpleQueue()
        self._bodies = Bodies()
        self._values: dict[int, Any] = {}
        self._errors: dict[int, bytes] = {}
        self._unreadable: dict[int, Exception] = {}  # inputs, and why
        self._missing: dict[int, str] = {}
        self._durations: dict[int, tuple[float, float]] = {}
        self._locations: dict[int, Location] = dict(assignment.given)
        self._counters: dict[str, int] = {"executors": 1}
        self._counted_runs = (0, 0)
        self._words: LastWords | None = None
        self._publications = itertools.count()
        self._context: TaskWorker | None = None
        self._main_thread = 0

    def run(self) -> str:
        """Run; return why it ended ("" when everything was done).

        Raises
        ------
        PlatformError
            When the storage tier failed for good. The record stays, its lease runs out.
        """
        self._main_thread = threading.get_ident()
        if self.world.last_words_directory:
            with contextlib.suppress(OSError):  # it only serves to name a task: no reason to fail one
                self._words = LastWords(
                    self.world.last_words_directory, f"{self.assignment.job}.{self.assignment.executor}"
                )
        self.world.beside.after(self.world.lease_seconds / 3, self._beat)
        edges = {number: self._open_segment(number, blob) for number, blob in self.assignment.segments.items()}
        try:
            self._dress()
            reason = self._loop(self._handle(Began(self.world.clock(), edges, self._until)))
        finally:
            # An alarm may hold this object a little longer: it must not beat for a dead executor.
            self.executor.finished = True
            self._values.clear()
            if self._context is not None:
                self._context.attach(None)
        if self._words is not None:
            self._words.close()
        return reason

    # -- the main thread ------------------------------------------------------------------------

    def _dress(self) -> None:
        """Surround tasks with what Dask code expects, and put on what the cluster wants worn."""
        mine = self.assignment
        if not mine.scheduler:
            return
        from lambda_worker.shuffle import Shuffles  # and with it Dask: see `World.task_worker`

        self._context = self.world.task_worker(mine.scheduler, f"{mine.job}/{mine.executor}")
        self._context.attach(self)
        self._context.plugins["shuffle"] = Shuffles(self.world.store, self.world.secret, mine.job)
        if mine.outfit is not None and self.world.wardrobe is not None:
            self.world.wardrobe.wear(*mine.outfit)

    def _loop(self, todo: list[Instruction]) -> str:
        while True:
            run, others = self._sort(todo)
            if run is None and not others:
                item = self._inbox.get()
                if isinstance(item, _Failed):
                    raise item.error
                run, others = self._sort([item])
            if run is not None:
                for instruction in others:
                    self.world.beside.submit(self._perform_beside, instruction)
                todo = self._handle(self._run(run))
                continue
            *beside, mine = others
            if isinstance(mine, Finish):
                return mine.reason
            for instruction in beside:
                self.world.beside.submit(self._perform_beside, instruction)
            event = self._perform(mine)
            todo = [] if event is None else self._handle(event)

    @staticmethod
    def _sort(todo: Iterable[Instruction]) -> tuple[Run | None, list[Instruction]]:
        run: Run | None = None
        others: list[Instruction] = []
        for instruction in todo:
            if isinstance(instruction, Run):
                run = instruction
            else:
                others.append(instruction)
        return run, others

    def _run(self, run: Run) -> Event:
        task = run.task
        clock = self.world.clock
        for parent in run.parents:
            if parent in self._unreadable:  # other tasks that need it err as well, each in its own name
                self._errors[task] = self._error(task, self._unreadable[parent])
                return TaskErred(task, clock(), final=True)
        if self._words is not None:
            self._words.say(task)
        started = clock()
        try:
            body = self._bodies.get(task)
            if self._context is not None:
                self._context.begin(key_of(body))
            values = [self._values[parent] for parent in run.parents]
            run_coroutine = None if self._context is None else self._context.run_coroutine
            result = run_body(body, values, self.world.constant, run_coroutine)
        except (SystemExit, KeyboardInterrupt):
            raise  # as in Dask: they end the process, not the task
        except MissingModule as error:
            self._missing[task] = error.name or str(error)
            return TaskErred(task, clock(), final=True)
        except BaseException as error:
            if self._context is not None:
                self._context.end(error)
            if is_reschedule(error):
                return Rescheduled(task, clock())
            if isinstance(error, MemoryError):
                error.add_note(_MEMORY_ADVICE)
            self._durations[task] = (started + self.world.wall_offset, clock() + self.world.wall_offset)
            self._errors[task] = self._error(task, error)
            return TaskErred(task, clock(), final=isinstance(error, ValueLost | Tampered))
        if self._context is not None:
            self._context.end()
        now = clock()
        self._values[task] = result
        self._durations[task] = (started + self.world.wall_offset, now + self.world.wall_offset)
        return TaskDone(task, now - started, now, large_nbytes(result))

    # -- every thread ---------------------------------------------------------------------------

    def _handle(self, event: Event) -> list[Instruction]:
        """Feed an event; forget at once what is no longer needed; return the rest."""
        with self._lock:
            instructions = self.executor.handle(event)
            if instructions and isinstance(instructions[0], Forget):
                for task in instructions[0].tasks:
                    self._values.pop(task, None)
                    self._unreadable.pop(task, None)
                    self._durations.pop(task, None)
                    self._locations.pop(task, None)
                for segment in instructions[0].segments:
                    self._bodies.forget(segment)
                del instructions[0]
        return instructions

    def _perform_beside(self, instruction: Instruction) -> None:
        """Perform on an I/O thread, and everything that follows except running tasks."""
        try:
            todo = [instruction]
            while todo:
                mine, *rest = todo
                if isinstance(mine, Run | Finish):
                    self._inbox.put(mine)
                    todo = rest
                    continue
                event = self._perform(mine)
                todo = rest + ([] if event is None else self._handle(event))
        except BaseException as error:
            self._inbox.put(_Failed(error))

    def _perform(self, instruction: Instruction) -> Event | None:
        match instruction:
            case Arrive():
                return self._arrive(instruction)
            case Fetch(task, values):
                return self._fetch(task, values.items())
            case LoadSegments(segments):
                blobs = self.world.store.load(self.assignment.job, segments)
                return SegmentsLoaded({n: self._open_segment(n, blob) for n, blob in zip(segments, blobs, strict=True)})
            case Delegate():
                return self._delegate(instruction)
            case WakeAfter(seconds):
                self.world.beside.after(seconds, self._wake)
                return None
            case GivePlace():
                self._say("seceded")
                return None
            case TakePlace():
                self._say("rejoined")
                return None
        raise ProtocolError(f"nobody performs {instruction!r}")

    def _wake(self) -> None:
        for instruction in self._handle(Woken(self.world.clock())):
            self.world.beside.submit(self._perform_beside, instruction)

    def _beat(self) -> None:
        if self.executor.finished:
            return
        mine = self.assignment
        running = self.executor.running
        try:
            (standing,) = self.world.store.beat(
                [(mine.job, mine.executor, mine.attempt, -1 if running is None else running)]
            )
            if running is not None and standing is Standing.OK:
                self._say("stack", [running, call_stack(self._main_thread)])
        except StoreUnavailable:
            standing = Standing.OK  # the next one may get through; the lease decides
        if standing is Standing.OK:
            self.world.beside.after(self.world.lease_seconds / 3, self._beat)
        else:
            for instruction in self._handle(Halted(standing)):
                self._inbox.put(instruction)

    def seceded(self) -> None:
        """The running task waits for others: make room for them, here and below the ceiling."""
        self._say("seceded")
        for instruction in self._handle(Seceded()):
            self.world.beside.submit(self._perform_beside, instruction)

    def rejoined(self) -> None:
        """The running task goes on, and takes its place below the ceiling again."""
        self._say("rejoined")

    def log_event(self, topic: Any, message: Any) -> None:
        """Publish what a task or a plugin logs as an event of Dask's."""
        self._say("log", pickled((topic, message)))

    def _say(self, word: str, content: Any = None) -> None:
        mine = self.assignment
        self.world.store.arrive(mine.job, mine.executor, mine.attempt, events=self._seal_events([[word, content]]))

    def _open_segment(self, number: int, blob: bytes) -> Edges:
        edges, bodies = open_segment(self.world.secret, self.assignment.job, number, blob)
        self._bodies.add(number, bodies)
        return edges

    # -- values in ------------------------------------------------------------------------------

    def _fetch(self, task: int, values: Iterable[tuple[int, Location]]) -> Event:
        wanted = [(parent, location) for parent, location in values if parent not in self._values]
        try:
            stored = [(parent, location) for parent, location in wanted if isinstance(location, Ref)]
            frames = self.world.store.get([ref for _, ref in stored]) if stored else []
            for (parent, ref), sealed in zip(stored, frames, strict=True):
                self._values[parent] = self.world.open_value(ref.name, sealed)
            for parent, location in wanted:
                if not isinstance(location, Ref):
                    self._values[parent] = self.world.open_location(location)
        except StoreUnavailable:
            raise
        except Exception:
            # Lost, tampered with, or not to be unpickled here. One by one, since others need the good ones.
            for parent, location in wanted:
                if parent not in self._values:
                    self._fetch_one(parent, location)
        self._locations.update(wanted)
        return InputsFetched(task)

    def _fetch_one(self, parent: int, location: Location) -> None:
        try:
            self._values[parent] = self.world.open_location(location)
        except StoreUnavailable:
            raise
        except Exception as error:
            self._unreadable[parent] = error  # who needs it errs when its turn to run comes

    # -- values out -----------------------------------------------------------------------------

    def _arrive(self, arrive: Arrive) -> Event:
        mine = self.assignment
        parents = [parent for _, parent, _ in arrive.arrivals]
        copies: dict[int, int] = {}
        for _, parent, parents_of_child in arrive.arrivals:
            copies[parent] = max(copies.get(parent, 0), parents_of_child)
        inputs = arrive.successor.inputs if arrive.successor is not None else {}
        needed = [parent for parents_of_start in inputs.values() for parent in parents_of_start]
        locations, failed = self._locate([*parents, *arrive.results, *needed], copies)
        events: list[Any] = []
        done = [
            [
                task,
                location_to_wire(locations[task]),
                *describe_value(self._values[task], self.world.types),
                *self._durations[task],
            ]
            for task in arrive.results
            if task in locations
        ]
        if done:
            events.append(["done", done])
        missing = {task: self._missing.pop(task) for task in arrive.errors if task in self._missing}
        if missing:  # without its module a body cannot be read, not even for the task's name
            events.append(["missing", list(missing.items())])
        erred = {task: self._errors.pop(task) for task in arrive.errors if task not in missing} | failed
        if erred:
            events.append(["erred", list(erred.items())])
        counts = self._counts()
        if counts:
            events.append(["count", counts])
        succession = self._succession(arrive.successor, locations)
        # Whose place is taken by another executor leaves its sandbox to it as well.
        lingering = self.waiter.offer() if self.waiter is not None and arrive.retire and succession is None else None
        reply = self.world.store.arrive(
            mine.job,
            mine.executor,
            mine.attempt,
            [
                Arrival(child, parent, parents_of_child, locations[parent])
                for child, parent, parents_of_child in arrive.arrivals
                if parent in locations
            ],
            self._seal_events(events),
            retire=arrive.retire,
            succession=succession,
            lingering=lingering,
        )
        if reply.retired and self.waiter is not None:
            self.waiter.offered = lingering is not None and lingering.seconds > 0
        for claim in reply.claims:
            for parent, location in claim.values.items():
                self._locations.setdefault(parent, location)
        return Answered(reply.standing, reply.claims, reply.retired, self.world.clock())

    def _locate(
        self, tasks: Iterable[int], fan_ins: Mapping[int, int] | None = None
    ) -> tuple[dict[int, Location], dict[int, bytes]]:
        """Find out where values are, writing those that nobody else could read yet.

        `fan_ins` gives the in-degree of the widest child for which each value is published.
        Returns the locations, and an encoded error for each value that cannot be written.
        """
        mine = self.assignment
        located: dict[int, Location] = {}
        failed: dict[int, bytes] = {}
        large: list[tuple[int, str, list[Frame]]] = []
        for task in dict.fromkeys(tasks):
            known = self._locations.get(task)
            if known is not None:
                located[task] = known
                continue
            name = object_name(mine.job, task, mine.executor, mine.attempt)
            try:
                frames = value_to_frames(self._values[task])
            except Exception as error:
                kind = type(self._values[task])
                failed[task] = self._error(
                    task,
                    UnpicklableResult(
                        f"Could not serialize object of type {kind.__qualname__}: the result of task"
                        f" {self._key(task)!r} cannot be pickled ({kind.__module__}.{kind.__qualname__}): {error}."
                        " To use it where it is made, compute both in one graph, or run them on a Dask worker:"
                        " dask.annotate(serverless=False)"
                    ),
                )
                continue
            sealed = seal_frames(self.world.secret, name, frames)
            if self.world.policy.inline(frames_nbytes(frames), (fan_ins or {}).get(task, 1)):
                located[task] = pack_inline(name, sealed)
            else:
                large.append((task, name, sealed))
        try:
            refs = self.world.store.put([(name, sealed) for _, name, sealed in large]) if large else []
            located.update((task, ref) for (task, _, _), ref in zip(large, refs, strict=True))
        except (ValueTooLarge, StoreFull):
            # One of them is too much: write them one by one to find out which.
            for task, name, sealed in large:
                try:
                    (located[task],) = self.world.store.put([(name, sealed)])
                except (ValueTooLarge, StoreFull) as error:
                    said = type(error)(f"the value of task {self._key(task)!r}: {error}")
                    failed[task] = self._error(task, said)
        self._locations.update(located)
        return located, failed

    def _succession(self, successor: Successor | None, locations: Mapping[int, Location]) -> Succession | None:
        if successor is None:
            return None
        # A start whose input has no location has erred with that input.
        inputs = {start: parents for start, parents in successor.inputs.items() if locations.keys() >= set(parents)}
        if not inputs:
            return None
        given = {parent: locations[parent] for parents in inputs.values() for parent in parents}
        record = replace(
            successor.assignment, starts=[task for task in successor.assignment.starts if task in inputs], given=given
        )
        (fitting,) = fit([record], self.world.store, self.world.secret, self.world.payload_bytes_max)
        # The proxy invokes it: whoever takes a place should not begin before the place is left.
        said = [["delegating", [record.executor]], ["invoke", fitting.to_bytes()]]
        return Succession(record, self._seal_events(said))

    def _delegate(self, delegate: Delegate) -> Event:
        mine = self.assignment
        assignments = []
        locations, failed = self._locate(parent for parents in delegate.inputs for parent in parents)
        if failed:  # keep the work here, where the values are
            return Delegated(0, self.world.clock())
        for assignment, parents in zip(delegate.assignments, delegate.inputs, strict=True):
            given = {parent: locations[parent] for parent in parents}
            assignments.append(replace(assignment, given=given))
        posting = bool(self.world.linger_seconds)
        mails = [mail_of(self.world.secret, each) if posting else b"" for each in assignments]
        recipients = self.world.store.delegate_and_post(
            mine.job, mine.executor, mine.attempt, assignments, mails, mine.ceiling
        )
        granted = len(recipients)
        if not granted:
            return Delegated(0, self.world.clock())
        posted = [(name, each) for name, each in zip(recipients, assignments, strict=False) if name]
        unposted = [each for name, each in zip(recipients, assignments, strict=False) if not name]
        fitting = fit(unposted, self.world.store, self.world.secret, self.world.payload_bytes_max)
        invoker = self.world.invoker
        if self.world.policy.invoke_here(len(fitting), invoker.warm):
            errors = invoker.invoke(fitting)
            refused = [assignment for assignment, error in zip(fitting, errors, strict=True) if error is not None]
        else:
            refused = fitting
        with self._lock:
            self._counters["invocations"] = self._counters.get("invocations", 0) + len(fitting) - len(refused)
        events: list[Any] = [["delegating", [assignment.executor for assignment in assignments[:granted]]]]
        if posted:
            events.append(["posted", [[name, each.executor] for name, each in posted]])
        # Their records exist: the proxy, which has more patience, invokes those that were not invoked here.
        events.extend(["invoke", assignment.to_bytes()] for assignment in refused)
        self.world.store.arrive(mine.job, mine.executor, mine.attempt, events=self._seal_events(events))
        return Delegated(granted, self.world.clock())

    # -- small things ---------------------------------------------------------------------------

    def _key(self, task: int) -> Any:
        try:
            return key_of(self._bodies.get(task))
        except Exception:  # its body cannot be unpickled: the number has to do
            return f"#{task} of {self.assignment.job}"

    def _error(self, task: int, error: BaseException) -> bytes:
        if isinstance(error, ValueLost | Tampered):
            error = type(error)(f"an input of task {self._key(task)!r} cannot be read: {error}")
        return describe_error(error, self._key(task), self._durations.get(task))

    def _seal_events(self, events: list[Any]) -> bytes:
        if not events:
            return b""
        mine = self.assignment
        name = events_name(mine.job, mine.executor, mine.attempt)
        # The number tells two publications with the same content from one that is repeated.
        return seal(self.world.secret, name, pack([next(self._publications), events]))

    def _counts(self) -> dict[str, int]:
        """Count what happened since this was last asked in this sandbox."""
        with self._lock:
            counts, self._counters = self._counters, {}
        for name, total in self.world.store.counters().items():
            if total != self.world.counted.get(name, 0):
                counts[name] = total - self.world.counted.get(name, 0)
                self.world.counted[name] = total
        runs = (self.executor.tasks_run, self.executor.tasks_rerun)
        for name, now, before in zip(("tasks_run", "tasks_rerun"), runs, self._counted_runs, strict=True):
            if now != before:
                counts[name] = now - before
        self._counted_runs = runs
        return counts
