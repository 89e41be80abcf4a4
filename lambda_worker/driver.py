"""Performs an executor's instructions: tasks in line, input and output beside them.

The main thread runs tasks. I/O threads perform everything else while a task is running; when none
is, the main thread does the I/O itself, which saves two thread switches for a short job. All
threads feed events to the one `Executor` under one lock; nobody else touches its state. What others
are to know goes through the `Publisher`.
"""

from __future__ import annotations

import contextlib
import functools
import math
import queue
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lambda_worker.belongings import Belongings
from lambda_worker.core.errors import (
    MissingModule,
    ProtocolError,
    StoreUnavailable,
    Tampered,
    ValueLost,
    WritingsLost,
)
from lambda_worker.core.events import (
    Began,
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
    TakePlace,
    WakeAfter,
)
from lambda_worker.core.schedule import Assignment, Edges, open_segment
from lambda_worker.core.verdicts import Standing
from lambda_worker.core.wire import (
    Location,
    Ref,
    location_to_wire,
)
from lambda_worker.last_words import LastWords
from lambda_worker.lingering import Waiter
from lambda_worker.publisher import Publisher
from lambda_worker.restoring import Restored, until_restored
from lambda_worker.task_runner import (
    call_stack,
    is_reschedule,
    key_of,
    large_nbytes,
    run_body,
)
from lambda_worker.values import pickled
from lambda_worker.world import World

if TYPE_CHECKING:
    from lambda_worker.dask_context import TaskWorker

_MEMORY_ADVICE = (
    "The executor that ran this task has no more memory: raise the cluster's memory_limit= (serverless.lambda.memory), "
    "or use smaller chunks."
)


@dataclass(frozen=True, slots=True)
class _Failed:
    """Something beside the tasks failed; the main thread raises it."""

    error: BaseException


_ABSENT = object()


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
        self.executor = Executor(assignment, world.policy)
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[Instruction | _Failed] = queue.SimpleQueue()
        constants = Restored(world.constants, self._ask_to_restore)
        self._belongings = Belongings(assignment.job, assignment.located, world.cache, constants)
        self._publisher = Publisher(world, assignment, self._belongings, self.executor, waiter)
        self._words: LastWords | None = None
        self._context: TaskWorker | None = None
        self._main_thread = 0
        self._away: set[int] = set()  # threads whose task waits for others
        self._told_away = False
        self._telling = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None  # of task threads, where there are several
        self._thread_of: dict[int, int] = {}  # of each task that runs on one of them

    def run(self) -> str:
        """Run; return why it ended ("" when everything was done).

        Raises
        ------
        PlatformError
            When the storage tier failed for good. The record stays, its lease runs out.
        """
        self._main_thread = threading.get_ident()
        if self.world.last_words is not None:
            with contextlib.suppress(OSError):  # it only serves to name a task: no reason to fail one
                self.world.last_words.begin(f"{self.assignment.job}.{self.assignment.executor}")
                self._words = self.world.last_words
        self.world.beside.after(self.world.lease_seconds / 3, self._beat)
        if self.assignment.attempt > 1:  # whatever it was that killed the one before: memory was short, perhaps
            self.world.cache.shrink(0)
        edges = {number: self._open_segment(number, blob) for number, blob in self.assignment.segments.items()}
        if self.world.policy.threads > 1:
            self._pool = ThreadPoolExecutor(self.world.policy.threads, thread_name_prefix="executor-task")
        try:
            self._dress()
            self.world.headroom.watch()
            cached = {
                task: nbytes
                for task, location in self.assignment.given.items()
                if isinstance(location, Ref) and (nbytes := self.world.cache.nbytes_of(location.name))
            }
            reason = self._loop(self._handle(Began(self.world.clock(), edges, self._until, cached)))
        finally:
            # An alarm may hold this object a little longer: it must not beat for a dead executor.
            with self._lock:
                self.executor.finished = True
                self.world.cache.make_room(0)
            self.world.headroom.rest()
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)  # a task that runs is waited for, as where there is one thread
            self._belongings.clear()
            if self._context is not None:
                self._context.attach(None)
        if self._words is not None:
            self._words.end()
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
            wear = functools.partial(self.world.wardrobe.wear, *mine.outfit)
            until_restored(wear, self._ask_to_restore)

    def _loop(self, todo: list[Instruction]) -> str:
        while True:
            run, others = self._sort(todo)
            if run is None and not others:
                item = self._inbox.get()  # bound: every step at the store has one, and so has the invocation itself
                if isinstance(item, _Failed):
                    raise item.error
                run, others = self._sort([item])
            if run is not None and self._pool is not None:
                self._pool.submit(self._run_on_thread, run)
                todo = others
                continue
            if run is not None:
                for instruction in others:
                    self.world.beside.submit(self._perform_beside, instruction)
                todo = self._handle(self._run(run))
                if self._away:
                    self.rejoined(self._main_thread)  # it ended without
                continue
            *beside, mine = others
            if isinstance(mine, Finish):
                return mine.reason
            for instruction in beside:
                self.world.beside.submit(self._perform_beside, instruction)
            event = self._perform(mine)
            todo = [] if event is None else self._handle(event)

    def _sort(self, todo: Iterable[Instruction]) -> tuple[Run | None, list[Instruction]]:
        """Part the task to run now from all else; where there are several threads, others run the other tasks."""
        run: Run | None = None
        others: list[Instruction] = []
        for instruction in todo:
            if isinstance(instruction, Run):
                if run is not None and self._pool is not None:
                    self._pool.submit(self._run_on_thread, run)
                run = instruction
            else:
                others.append(instruction)
        return run, others

    def _run_on_thread(self, run: Run | None) -> None:
        """Run a task, and those that follow from it, on a task thread."""
        try:
            while run is not None:
                self._thread_of[run.task] = threading.get_ident()
                event = self._run(run)
                self._thread_of.pop(run.task, None)
                if threading.get_ident() in self._away:
                    self.rejoined(threading.get_ident())
                run, others = self._sort(self._handle(event))
                for instruction in others:
                    self.world.beside.submit(self._perform_beside, instruction)
                if self._away:  # more run beside those that wait, or fewer
                    self._tell_away()
        except BaseException as error:
            self._inbox.put(_Failed(error))

    def _run(self, run: Run) -> Event:
        task = run.task
        clock = self.world.clock
        if not run.parents and self._belongings.is_external(task):
            return self._bring(task)
        if (why := self._belongings.why_unreadable(run.parents)) is not None:
            self._belongings.errors[task] = self._belongings.error(task, why)
            return TaskErred(task, clock(), final=True)
        self.world.headroom.watch()
        if self._words is not None:
            self._words.say(task if self.executor.tasks_running == 1 else -1)  # who is not alone is not to blame
        started = clock()
        try:
            body = self._belongings.bodies.get(task)
            if self._context is not None:
                self._context.begin(key_of(body))
            values = [self._belongings.values[parent] for parent in run.parents]
            run_coroutine = None if self._context is None else self._context.run_coroutine
            started = clock()  # what it took to load the task is not the task's time
            result = run_body(body, values, self._belongings.bodies.constant, run_coroutine)
        except (SystemExit, KeyboardInterrupt):
            raise  # as in Dask: they end the process, not the task
        except MissingModule as error:
            self._belongings.missing[task] = error.name or str(error)
            return TaskErred(task, clock(), final=True)
        except BaseException as error:
            if self._context is not None:
                self._context.end(error)
            if is_reschedule(error):
                return Rescheduled(task, clock())
            if isinstance(error, MemoryError):
                error.add_note(_MEMORY_ADVICE)
            self._belongings.durations[task] = (started + self.world.wall_offset, clock() + self.world.wall_offset)
            self._belongings.errors[task] = self._belongings.error(task, error)
            if isinstance(error, WritingsLost):
                return WritingsMissed(task, clock())
            return TaskErred(task, clock(), final=isinstance(error, ValueLost | Tampered))
        if self._context is not None:
            self._context.end()
        now = clock()
        self._belongings.values[task] = result
        self._belongings.remade(task)
        self._belongings.errors.pop(task, None)
        self._belongings.durations[task] = (started + self.world.wall_offset, now + self.world.wall_offset)
        return TaskDone(task, now - started, now, large_nbytes(result))

    def _bring(self, task: int) -> Event:
        """Read a value that was made outside this job. If it is lost, or the proxy does not say where it is, it is the
        proxy's to see to it."""
        began = self.world.clock()
        where = self._belongings.lost.get(task)
        if self._publisher.say("lost", [[task, None if where is None else location_to_wire(where)]]) and where is None:
            found = self._publisher.wait_for_place(task)
            if found is not None:
                try:
                    value = self.world.open_location(found)
                except (ValueLost, Tampered):
                    assert isinstance(found, Ref)
                    self._publisher.say("lost", [[task, location_to_wire(found)]])
                else:
                    self._belongings.values[task] = value
                    self._belongings.locations[task] = found
                    now = self.world.clock()
                    return TaskDone(task, now - began, now, large_nbytes(value))
        return Irreplaceable(task)

    # -- every thread ---------------------------------------------------------------------------

    def _handle(self, event: Event) -> list[Instruction]:
        """Feed an event; forget at once what is no longer needed; return the rest."""
        with self._lock:
            instructions = self.executor.handle(event)
            if not self.executor.finished:
                self.world.cache.make_room(self.executor.kept_nbytes)  # first: what is forgotten goes there
            if instructions and isinstance(instructions[0], Forget):
                self._belongings.forget(instructions[0])
                del instructions[0]
                self.world.headroom.watch()
        return instructions

    def _perform_beside(self, instruction: Instruction) -> None:
        """Perform on an I/O thread, and everything that follows except running tasks."""
        try:
            todo = [instruction]
            while todo:
                mine, *rest = todo
                if isinstance(mine, Run) and self._pool is not None:
                    self._pool.submit(self._run_on_thread, mine)
                    todo = rest
                    continue
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
                return self._publisher.arrive(instruction)
            case Fetch(task, values):
                return self._fetch(task, values.items())
            case Locate(task):
                return self._locate(task)
            case LoadSegments(segments):
                return self._load(segments)
            case Delegate():
                return self._publisher.delegate(instruction)
            case WakeAfter(seconds):
                self.world.beside.after(seconds, self._wake)
                return None
            case GivePlace():
                self._publisher.say("seceded")
                return None
            case TakePlace():
                self._publisher.say("rejoined")
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
                thread = self._thread_of.get(running, self._main_thread)
                self._publisher.say("stack", [running, call_stack(thread)])
        except StoreUnavailable:
            standing = Standing.OK  # the next one may get through; the lease decides
        if standing is Standing.OK:
            self.world.beside.after(self.world.lease_seconds / 3, self._beat)
        else:
            for instruction in self._handle(Halted(standing)):
                self._inbox.put(instruction)

    def seceded(self, thread: int) -> None:
        """The task on a thread waits for others: make room for them, here and below the ceiling."""
        with self._lock:
            self._away.add(thread)
        self._tell_away()

    def rejoined(self, thread: int) -> None:
        """The task on a thread goes on, or has ended."""
        with self._lock:
            self._away.discard(thread)
        self._tell_away()

    def _tell_away(self) -> None:
        """Let others have this executor's place while every task that runs here waits for others."""
        with self._telling:  # one after the other: the last word counts
            with self._lock:
                away = 0 < len(self._away) >= self.executor.tasks_running
                if away == self._told_away:
                    return
                self._told_away = away
            self._publisher.say("seceded" if away else "rejoined")
        if away:
            for instruction in self._handle(Seceded()):
                self.world.beside.submit(self._perform_beside, instruction)

    def log_event(self, topic: Any, message: Any) -> None:
        """Publish what a task or a plugin logs as an event of Dask's."""
        self._publisher.say("log", pickled((topic, message)))

    def _load(self, segments: Sequence[int]) -> Event:
        try:
            return SegmentsLoaded(
                until_restored(functools.partial(self._load_segments, segments), self._ask_to_restore)
            )
        except (ValueLost, Tampered):
            if (over := self._over()) is not None:  # they were removed, not lost
                return over
            raise

    def _load_segments(self, segments: Sequence[int]) -> dict[int, Edges]:
        blobs = self.world.store.load(self.assignment.job, segments)
        return {number: self._open_segment(number, blob) for number, blob in zip(segments, blobs, strict=True)}

    def _open_segment(self, number: int, blob: bytes) -> Edges:
        edges, bodies = open_segment(self.world.secret, self.assignment.job, number, blob)
        self._belongings.bodies.add(number, bodies)
        return edges

    # -- values in ------------------------------------------------------------------------------

    def _fetch(self, task: int, values: Iterable[tuple[int, Location]]) -> Event:
        began = self.world.clock()
        found = self._belongings.values
        anew = not self.world.policy.locality
        wanted = [(parent, location) for parent, location in values if anew or parent not in found]
        stored = [(parent, location) for parent, location in wanted if isinstance(location, Ref)]
        for parent, ref in stored:
            if (kept := self.world.cache.take(ref.name, _ABSENT)) is not _ABSENT:
                found[parent] = kept
        unread = [(parent, ref) for parent, ref in stored if anew or parent not in found]
        nbytes = sum(ref.nbytes for _, ref in unread)
        try:
            with self.world.cache.expecting(2 * nbytes):  # as it was sealed, and as a value
                frames = self.world.get([ref for _, ref in unread]) if unread else []
                for (parent, ref), sealed in zip(unread, frames, strict=True):
                    found[parent] = self.world.open_value(ref.name, sealed)
                del frames
            for parent, location in wanted:
                if not isinstance(location, Ref):
                    found[parent] = self.world.open_location(location)
        except StoreUnavailable:
            raise
        except Exception:
            # Lost, tampered with, or not to be unpickled here. One by one, since others need the good ones.
            for parent, location in wanted:
                if parent not in found:
                    self._fetch_one(parent, location)
        lost_before = self._belongings.lost  # what was made again meanwhile is not where it was
        self._belongings.locations.update((parent, where) for parent, where in wanted if parent not in lost_before)
        seconds = self.world.clock() - began
        if lost := [parent for parent, _ in wanted if parent not in found and parent in self._belongings.lost]:
            if (over := self._over()) is not None:  # they were removed, not lost
                return over
            return InputsLost(task, lost, nbytes, seconds)
        here = [(parent, ref) for parent, ref in stored if parent in found]
        larger = {parent: size for parent, ref in here if (size := large_nbytes(found[parent])) > ref.nbytes}
        return InputsFetched(task, nbytes, seconds, larger)

    def _over(self) -> Halted | None:
        """Ask whether this executor is to stop, because its job is over or another attempt has taken its place."""
        mine, running = self.assignment, self.executor.running
        (standing,) = self.world.store.beat(
            [(mine.job, mine.executor, mine.attempt, -1 if running is None else running)]
        )
        return None if standing is Standing.OK else Halted(standing)

    def _fetch_one(self, parent: int, location: Location) -> None:
        try:
            self._belongings.values[parent] = self.world.open_location(location)
        except StoreUnavailable:
            raise
        except Exception as error:
            self._belongings.unreadable[parent] = error  # who needs it errs when its turn to run comes
            if isinstance(error, ValueLost | Tampered) and isinstance(location, Ref):
                self._belongings.lost[parent] = location  # but this can be made again

    def _locate(self, task: int) -> Event:
        values = self.world.store.locate(self.assignment.job, task)
        for parent, location in values.items():
            self._belongings.locations.setdefault(parent, location)
        return Located(task, values)

    def _ask_to_restore(self, constant: str = "") -> bool:
        return self._publisher.say("lacking", constant)
