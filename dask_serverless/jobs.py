"""The job ledger: what has been asked for, what is under way, what is known. Pure.

Events in, instructions out (`Ledger.handle`); the dispatcher performs the instructions. A job is
one submitted graph; the ledger keeps its *visible* keys (those somebody outside asked for) and
nothing of the tasks between them but their edges, for error propagation.

The life of a visible key::

    pending --> done ----> (released)
       |  `---> erred ---> (released)
       `--> released: nobody wants it any more

The life of a start task: *gated* (an external whose value is not there yet) -> *ready* -> launched.
A job is closed when none of its visible keys is pending; executors still at work for it are fenced.

Rules, where two things could happen: the first result of a key stays; a released key takes no
result; an error of a task is the error of every pending visible key that depends on it. A value that
tasks of an open job may read is not freed, whoever has let go of its key: an executor that died
reads it again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dask_serverless.job_events import (
    Admitted,
    Close,
    Delegating,
    Done,
    Erred,
    Event,
    Fail,
    Finish,
    Free,
    Import,
    Imported,
    ImportFailed,
    Instruction,
    JobFailed,
    Kept,
    Key,
    Launch,
    Lost,
    Released,
    Result,
    Retired,
    Room,
    Submitted,
)
from dask_serverless.plan.graph import Graph
from lambda_worker.core.wire import Location, Ref


@dataclass(slots=True)
class Entry:
    """What is known of one key."""

    job: str | None  # which job makes it; None: made elsewhere
    task: int = -1
    target: Key | None = None  # the key that a pointer stands for
    result: Result | None = None
    error: bytes | None = None

    @property
    def pointer(self) -> bool:
        """Whether it stands for another key."""
        return self.target is not None

    @property
    def pending(self) -> bool:
        """Whether it has neither a value nor an error yet."""
        return self.result is None and self.error is None


@dataclass(slots=True)
class Job:
    """One submitted graph."""

    name: str
    graph: Graph
    keys: dict[int, list[Key]]  # pending visible tasks and the keys that name them
    ready: list[tuple[int, Location | None]] = field(default_factory=list)
    gated: dict[int, Key] = field(default_factory=dict)  # start tasks, and the key each waits for
    urgent: bool = False
    launching: int = 0
    rooms_seen: int = 0  # of the ledger's `_rooms`, when the last launch was made
    live: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    holds: list[Ref] = field(default_factory=list)  # values that its tasks may need (again), until it is over

    @property
    def stalled(self) -> bool:
        """Whether keys are pending that nobody is working on: never, unless we have a bug."""
        return bool(self.keys) and not (self.ready or self.gated or self.launching or self.live)


class Ledger:
    """All jobs and all keys of one cluster."""

    def __init__(self) -> None:
        self.keys: dict[Key, Entry] = {}
        self.jobs: dict[str, Job] = {}
        # Who waits for a key: start tasks of jobs, and pointers to it.
        self._gates: dict[Key, dict[str, int]] = {}
        self._pointers: dict[Key, dict[Key, None]] = {}
        # What an event still has to bring about: keys with an answer to pass on, jobs with starts to launch.
        self._answered: deque[Key] = deque()
        self._due: dict[str, Job] = {}
        # By job, the stored values that keys hold, and how many keys hold each.
        self._held: dict[str, dict[Ref, int]] = {}
        # Jobs whose starts found no room below the ceiling, oldest first; how often room has appeared.
        self._waiting: dict[str, None] = {}
        self._trying: str | None = None  # the first of them, while it asks for room again
        self._rooms = 0
        # Jobs with starts that wait for room where their inputs are: these stand in nobody's way. When room has
        # appeared, those who shall look at it, and who does.
        self._patient: dict[str, None] = {}
        self._tour: deque[str] = deque()
        self._touring: str | None = None
        self._tour_again = False  # room has appeared meanwhile

    def __repr__(self) -> str:
        return f"<Ledger jobs={len(self.jobs)} keys={len(self.keys)}>"

    def handle(self, event: Event) -> list[Instruction]:
        """Take in one event and return what to do, in order."""
        out: list[Instruction] = []
        self._take(event, out)
        while self._answered:  # not by recursion: a line of jobs may be of any length
            self._tell_waiting(self._answered.popleft(), out)
        for job in self._due.values():  # at the end, so that what came together is launched together
            if job.ready and job.keys:
                out.append(Launch(job.name, job.ready))
                job.ready = []
                job.launching += 1
                job.rooms_seen = self._rooms
        self._due.clear()
        return out

    def _take(self, event: Event, out: list[Instruction]) -> None:
        match event:
            case Done(name, results):
                self._on_done(name, results, out)
            case Released(key):
                self._on_released(key, out)
            case Submitted():
                self._on_submitted(event, out)
            case Admitted():
                self._on_admitted(event, out)
            case Retired(name, executor):
                self._on_gone(name, executor, out)
            case Delegating(name, executors):
                job = self.jobs.get(name)
                if job is not None:
                    job.live.update(each for each in executors if each not in job.gone)
            case Erred(name, task, error):
                job = self.jobs.get(name)
                if job is not None:
                    self._fail_from(job, task, error, out)
                    self._settle(job, out)
            case Lost(name, executor, error):
                job = self.jobs.get(name)
                if job is not None and executor not in job.gone:
                    self._fail_job(job, error, out)
            case JobFailed(name, error):
                job = self.jobs.get(name)
                if job is not None:
                    self._fail_job(job, error, out)
            case Imported(key, location):
                self._on_imported(key, location, out)
            case Kept(key, location):
                self.keys.setdefault(key, Entry(None))
                self._on_imported(key, location, out)
            case ImportFailed(key, error):
                if key in self.keys and self.keys[key].pending and self.keys[key].job is None:
                    self.keys[key].error = error
                    self._answered.append(key)
            case Room():
                self._room_appeared(out)

    @property
    def live(self) -> int:
        """How many executors are at work, as far as is known."""
        return sum(len(job.live) for job in self.jobs.values())

    def stalled(self) -> list[str]:
        """Name the jobs that cannot end any more. The dispatcher fails them rather than hang."""
        return [job.name for job in self.jobs.values() if job.stalled]

    def held(self) -> list[Ref]:
        """Return the stored values that keys hold. They must not expire."""
        return [ref for held in self._held.values() for ref in held]

    def held_of(self, job: str) -> list[Ref]:
        """Return those that a job has made."""
        return list(self._held.get(job, ()))

    def holds(self, ref: Ref) -> bool:
        """Tell whether a key holds a stored value."""
        return ref in self._held.get(_maker(ref), ())

    # -- a job begins ---------------------------------------------------------------------------

    def _on_submitted(self, event: Submitted, out: list[Instruction]) -> None:
        graph = event.graph
        keys: dict[int, list[Key]] = {}
        for key, task in event.visible.items():
            known = self.keys.get(key)
            if known is not None and known.pending and known.job in self.jobs:
                continue  # two clients asked at the same time: the job that came first answers for both
            if known is not None and known.result is not None:  # made elsewhere, and now here
                self._forget_value(known.result, out)
            keys.setdefault(task, []).append(key)
            self.keys[key] = Entry(event.job, task)
        job = self.jobs[event.job] = Job(event.job, graph, keys, urgent=event.urgent)
        externals = set(event.externals.values())
        job.ready = [(task, None) for task in graph.starts if task not in externals and task not in event.given]
        job.live.update(event.executors)
        for location in event.given.values():
            self._hold_for(job, location)
        awaited = {key: task for key, task in event.externals.items() if task not in event.given}
        for key, task in awaited.items():
            job.gated[task] = key
            self._gates.setdefault(key, {})[job.name] = task
        for key, target in event.pointers.items():
            self.keys[key] = Entry(None, target=target)
            self._pointers.setdefault(target, {})[key] = None
        for key in (*awaited, *event.pointers.values()):
            self._await(key, out)
        self._launch(job, out)
        self._settle(job, out)

    def _await(self, key: Key, out: list[Instruction]) -> None:
        """Somebody waits for a key: ask for it if nobody makes it, answer at once if it is there."""
        entry = self.keys.get(key)
        if entry is None:
            self.keys[key] = Entry(None)
            out.append(Import(key))
        elif not entry.pending:
            self._answered.append(key)

    def _tell_waiting(self, key: Key, out: list[Instruction]) -> None:
        entry = self.keys[key]
        for name, task in self._gates.pop(key, {}).items():
            job = self.jobs[name]
            del job.gated[task]
            if entry.result is not None:
                self._hold_for(job, entry.result.location)
                job.ready.append((task, entry.result.location))
                self._launch(job, out)
            else:
                self._fail_from(job, task, entry.error or b"", out)
            self._settle(job, out)
        for pointer in self._pointers.pop(key, ()):
            if entry.result is not None:
                self._give(pointer, entry.result, out)
            else:
                self._fail(pointer, entry.error or b"", out)

    def _give(self, key: Key, result: Result, out: list[Instruction]) -> None:
        entry = self.keys.get(key)
        if entry is None or not entry.pending:  # released, or it has a value: the first one stays
            self._free_unheld([result], out)
            return
        entry.result = result
        if isinstance(result.location, Ref):
            self._hold(result.location)
        job = self.jobs.get(entry.job or "")
        if job is not None and job.graph.children[entry.task]:
            self._hold_for(job, result.location)
        out.append(Finish(key, result))
        self._answered.append(key)

    # -- a job goes on --------------------------------------------------------------------------

    def _launch(self, job: Job, out: list[Instruction]) -> None:
        """Launch a job's ready starts; behind those that wait for room, if any do."""
        if not job.ready or not job.keys:
            return
        if job.name in self._patient and job.launching:
            return  # it looks again when it has been answered
        if self._waiting and not job.urgent:
            self._waiting[job.name] = None
        else:
            self._due[job.name] = job

    def _room_appeared(self, out: list[Instruction]) -> None:
        """Room may have appeared: where the inputs of those are that wait for that, and anywhere for the others.

        One after the other, as they were submitted: who comes later often needs what who comes earlier makes.
        """
        self._rooms += 1
        if self._touring is None:
            self._begin_tour(out)
        else:
            self._tour_again = True  # whoever is next in it has its turn first

    def _begin_tour(self, out: list[Instruction]) -> None:
        self._tour_again = False
        self._tour = deque(self._patient)
        self._go_on_touring(out)

    def _go_on_touring(self, out: list[Instruction]) -> None:
        while self._tour:
            name = self._tour.popleft()
            if name in self._patient and self.jobs[name].ready:
                self._touring = name
                self._due[name] = self.jobs[name]
                return
        self._launch_waiting(out)
        if self._tour_again and self._patient:
            self._begin_tour(out)

    def _launch_waiting(self, out: list[Instruction]) -> None:
        """Room may have appeared below the ceiling: try with the job that has waited longest.

        One at a time: if it finds room, the next follows (`_on_admitted`). Trying with all of them
        at every retirement would be quadratic in the number of jobs.
        """
        if self._trying is None and self._waiting:
            self._trying = next(iter(self._waiting))
            self._due[self._trying] = self.jobs[self._trying]

    def _on_admitted(self, event: Admitted, out: list[Instruction]) -> None:
        job = self.jobs.get(event.job)
        if job is None:
            return
        if self._trying == job.name:
            self._trying = None
        job.launching -= 1
        job.live.update(each for each in event.executors if each not in job.gone)
        new = bool(job.ready)  # since it tried
        job.ready[:0] = [*event.refused, *event.later]
        if event.refused or (new and not event.later):
            self._waiting.setdefault(job.name)  # who tried and was refused keeps its place
        else:
            self._waiting.pop(job.name, None)
        room_appeared = job.rooms_seen != self._rooms  # while the answer was on its way
        toured = self._touring == job.name
        if toured:
            self._touring = None
        if not event.later:
            self._patient.pop(job.name, None)
        else:
            self._patient.setdefault(job.name)
            if toured:
                self._tour_again |= new
            elif (new or room_appeared) and job.name not in self._tour:
                self._tour.append(job.name)
        if event.refused and not room_appeared:  # there is room for nobody
            if toured:
                self._tour.clear()
            if toured and self._tour_again:
                self._begin_tour(out)
        elif self._touring is None and (toured or self._tour):
            self._go_on_touring(out)
        else:
            self._launch_waiting(out)

    def _on_imported(self, key: Key, location: Location, out: list[Instruction]) -> None:
        entry = self.keys.get(key)
        if entry is None or entry.job is not None or not entry.pending:  # released, or asked for twice
            if isinstance(location, Ref):
                out.append(Free([location]))
            return
        self._give(key, Result(-1, location, 0, b"", "", 0.0, 0.0), out)
        out[:] = [each for each in out if not (isinstance(each, Finish) and each.key == key)]

    def _on_done(self, name: str, results: Sequence[Result], out: list[Instruction]) -> None:
        job = self.jobs.get(name)
        late: list[Result] = []
        for result in results:
            keys = job.keys.pop(result.task, None) if job is not None else None
            if keys is not None:
                for key in keys:
                    self._give(key, result, out)
            elif job is None or not job.graph.children[result.task]:
                late.append(result)  # a second result, or one that nobody wants any more
            # else arrivals may have mentioned it; it goes with its job
        self._free_unheld(late, out)
        if job is not None:
            self._settle(job, out)

    def _hold(self, ref: Ref) -> None:
        held = self._held.setdefault(_maker(ref), {})
        held[ref] = held.get(ref, 0) + 1

    def _hold_for(self, job: Job, location: Location | None) -> None:
        """1. A key's last reader is done; 2. the key is released; 3. who read it dies; 4. its next attempt reads it."""
        if isinstance(location, Ref):
            self._hold(location)
            job.holds.append(location)

    def _let_go(self, ref: Ref) -> bool:
        """Hold a value once less; tell whether nobody holds it any more."""
        held = self._held[_maker(ref)]
        held[ref] -= 1
        if held[ref]:
            return False
        del held[ref]
        if not held:
            del self._held[_maker(ref)]
        return True

    def _forget_value(self, result: Result, out: list[Instruction]) -> None:
        """A key has a value no longer."""
        if isinstance(result.location, Ref) and self._let_go(result.location):
            out.append(Free([result.location]))

    def _free_unheld(self, results: Sequence[Result], out: list[Instruction]) -> None:
        refs = [result.location for result in results if isinstance(result.location, Ref)]
        refs = [ref for ref in refs if not self.holds(ref)]
        if refs:
            out.append(Free(refs))

    def _on_released(self, key: Key, out: list[Instruction]) -> None:
        entry = self.keys.pop(key, None)
        if entry is None:
            return
        if entry.result is not None:
            self._forget_value(entry.result, out)
        elif entry.pending and entry.job in self.jobs:
            job = self.jobs[entry.job]
            names = job.keys.get(entry.task, [])
            if key in names:
                names.remove(key)
                if not names:
                    del job.keys[entry.task]
                self._settle(job, out)
        elif entry.target is not None and entry.pending:
            _remove(self._pointers, entry.target, key)
        if key in self._gates or key in self._pointers:
            # Somebody still needs what was let go: ask for it, which gives a value or an error.
            self.keys[key] = Entry(None)
            out.append(Import(key))

    def _on_gone(self, name: str, executor: str, out: list[Instruction]) -> None:
        job = self.jobs.get(name)
        if job is not None:
            job.live.discard(executor)
            job.gone.add(executor)
        self._room_appeared(out)

    # -- a job ends -----------------------------------------------------------------------------

    def _fail_from(self, job: Job, task: int, error: bytes, out: list[Instruction]) -> None:
        """Fail every pending visible key at or below a task."""
        if not job.keys:
            return
        for each in (task, *job.graph.descendants(task)):
            for key in job.keys.pop(each, ()):
                self._fail(key, error, out)

    def _fail(self, key: Key, error: bytes, out: list[Instruction]) -> None:
        entry = self.keys.get(key)
        if entry is None or not entry.pending:
            return
        entry.error = error
        out.append(Fail(key, error))
        self._answered.append(key)

    def _fail_job(self, job: Job, error: bytes, out: list[Instruction]) -> None:
        keys, job.keys = job.keys, {}
        for names in keys.values():
            for key in names:
                self._fail(key, error, out)
        self._settle(job, out)

    def _settle(self, job: Job, out: list[Instruction]) -> None:
        """Close a job that has nothing pending."""
        if job.keys or job.name not in self.jobs:
            return
        del self.jobs[job.name]
        self._waiting.pop(job.name, None)
        self._patient.pop(job.name, None)
        if self._touring == job.name:
            self._touring = None
        if self._trying == job.name:
            self._trying = None  # closing makes room, and then the next in line tries
        for key in job.gated.values():
            _remove(self._gates, key, job.name)
        freed = [ref for ref in job.holds if self._let_go(ref) and _maker(ref) != job.name]
        if freed:  # its own go with it
            out.append(Free(freed))
        out.append(Close(job.name, self.held_of(job.name)))


def _remove(waiting: dict[Key, Any], key: Key, who: Key) -> None:
    """Take one out of those who wait for a key."""
    del waiting[key][who]
    if not waiting[key]:
        del waiting[key]


def _maker(ref: Ref) -> str:
    """Return the name of the job that wrote a value."""
    return ref.name.partition("/")[0]
