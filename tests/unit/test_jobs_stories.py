"""Random stories of a ledger: whatever comes in whatever order, every key that was asked for is answered once, and
nothing stays in the store."""

from __future__ import annotations

import itertools
import random
from collections import deque
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from dask_serverless.job_events import (
    Admitted,
    Close,
    Delegating,
    Done,
    Erred,
    Fail,
    Finish,
    Free,
    Import,
    Imported,
    ImportFailed,
    Launch,
    Lost,
    Released,
    Result,
    Retired,
    Room,
    Submitted,
)
from dask_serverless.jobs import Ledger
from tests.unit.ledger_story import ERROR, ref, submitted


@dataclass
class Worker:
    """An executor of the model: runs tasks, tells the event stream."""

    job: str
    name: str
    ready: list[int]


@dataclass
class Model:
    """A store with a ceiling, executors and a scheduler around one ledger. `random` chooses what happens next.

    What the dispatcher does at once here is what it does at once in earnest; what waits for a thread there, waits
    in `underway` here, and may be overtaken.
    """

    seed: int
    ceiling: int
    ledger: Ledger = field(default_factory=Ledger)
    graphs: dict = field(default_factory=dict)
    cancelled: set = field(default_factory=set)
    workers: list = field(default_factory=list)  # admitted, and invoked
    records: set = field(default_factory=set)  # what the store counts
    tasks_done: dict = field(default_factory=dict)
    objects: set = field(default_factory=set)
    stream: deque = field(default_factory=deque)  # in order, as the event stream is
    underway: list = field(default_factory=list)  # in any order
    alive: dict = field(default_factory=dict)  # keys that the scheduler has: answers so far
    given: dict = field(default_factory=dict)  # what a key was finished with
    story: list = field(default_factory=list)

    def __post_init__(self):
        self.random = random.Random(self.seed)
        self.serial = itertools.count(1)
        self.jobs = itertools.count(1)

    # the ledger's instructions, and what must hold after each event

    def feed(self, event):
        self.story.append(event)
        if isinstance(event, Submitted):
            self.graphs[event.job] = event.graph
            self.tasks_done[event.job] = set()
            for key in (*event.visible, *event.pointers):
                self.alive[key] = 0
        if isinstance(event, Released):
            self.alive.pop(event.key, None)
            self.given.pop(event.key, None)
        for instruction in self.ledger.handle(event):
            self.story.append(instruction)
            self.perform(instruction)
        busy = {job for job, *_ in self.records} | {job for job, _ in self.underway if job}
        for job in self.ledger.stalled():
            told = any(getattr(each, "job", None) == job for each in self.stream)
            assert job in busy or told, f"{job} is pending for no reason"

    def perform(self, instruction):
        match instruction:
            case Finish(key, made):
                self.answer(key)
                self.given[key] = made.location
                assert made.location in self.objects, "finished with a value that is not there"
            case Fail(key):
                self.answer(key)
            case Free(refs):
                for each in refs:
                    assert each not in self.given.values(), f"{each} was freed while a key holds it"
                self.objects.difference_update(refs)
            case Launch(job, starts):
                assert starts
                self.underway.append((job, lambda: self.admit(job, list(starts))))
            case Import(key):
                self.underway.append((None, lambda: self.imported(key)))
            case Close(job, keep):
                held = {each for each in self.given.values() if each.name.startswith(f"{job}/")}
                assert held <= set(keep), "what other jobs were given may be kept as well"
                self.underway.append((None, lambda: self.close(job, set(keep))))

    def answer(self, key):
        assert key in self.alive, f"{key} is answered after it was released"
        self.alive[key] += 1
        assert self.alive[key] == 1, f"{key} is answered twice"

    # what is under way

    def admit(self, job, starts):
        free = self.ceiling - len(self.records) if job not in self.cancelled else 0
        share = self.random.randint(1, len(starts))
        groups = [starts[n : n + share] for n in range(0, len(starts), share)]
        made = []
        for group in groups[: max(0, free)]:
            name = f"e{next(self.serial)}"
            self.records.add((job, name))
            made.append(Worker(job, name, [task for task, _ in group]))
        refused = [start for group in groups[len(made) :] for start in group]
        later = [start for start in refused if self.random.random() < 0.3]
        refused = [start for start in refused if start not in later]
        given = {task for group in groups for task, location in group if location is not None}

        def heard():
            self.feed(Admitted(job, [each.name for each in made], refused, later))
            if later:
                self.underway.append((job, lambda: self.feed(Room())))  # they have waited for long enough
            for each in made:
                self.underway.append((job, lambda each=each: self.begin(each, given)))

        self.underway.append((job, heard))

    def begin(self, worker, given):
        for task in [task for task in worker.ready if task in given]:
            worker.ready.remove(task)
            self.complete(worker, task)
        self.workers.append(worker)

    def imported(self, key):
        if self.random.random() < 0.8:
            where = ref("exports", next(self.serial))
            self.objects.add(where)
            self.feed(Imported(key, where))
        else:
            self.feed(ImportFailed(key, ERROR))

    def close(self, job, keep):
        self.cancelled.add(job)
        self.records = {record for record in self.records if record[0] != job}
        self.objects = {each for each in self.objects if not each.name.startswith(f"{job}/") or each in keep}
        self.underway.append((None, lambda: self.feed(Room())))

    # executors

    def complete(self, worker, task):
        done, graph = self.tasks_done[worker.job], self.graphs[worker.job]
        done.add(task)
        for child in graph.children[task]:
            if all(parent in done for parent in graph.parents[child]):
                worker.ready.append(child)

    def step(self, worker):
        job, graph = worker.job, self.graphs[worker.job]
        if (job, worker.name) not in self.records:  # fenced
            self.workers.remove(worker)
            return
        luck = self.random.random()
        if luck < 0.02:
            self.workers.remove(worker)
            self.underway.append((job, lambda: self.lose(worker)))
        elif not worker.ready:
            self.workers.remove(worker)
            self.records.discard((job, worker.name))
            self.stream.append(Retired(job, worker.name))
        elif luck < 0.2 and len(worker.ready) > 1 and len(self.records) < self.ceiling:
            other = Worker(job, f"e{next(self.serial)}", [worker.ready.pop(0)])
            self.records.add((job, other.name))
            self.stream.append(Delegating(job, [other.name]))
            self.workers.append(other)
        else:
            task = worker.ready.pop()
            if luck > 0.95:
                self.stream.append(Erred(job, task, ERROR))
                return
            if task in graph.visible:
                for _ in range(2 if luck > 0.9 else 1):  # sometimes twice, by another attempt
                    where = ref(job, task, f"w{next(self.serial)}")
                    self.objects.add(where)
                    self.stream.append(Done(job, [Result(task, where, 1, b"", "int", 0.0, 0.0)]))
            self.complete(worker, task)

    def lose(self, worker):
        self.feed(Lost(worker.job, worker.name, ERROR))
        self.records.discard((worker.job, worker.name))
        self.underway.append((None, lambda: self.feed(Room())))

    # the scheduler

    def submit(self):
        job = f"j{next(self.jobs)}"
        size = self.random.randint(0, 6)
        own = [f"{job}-{n}" for n in range(size)]
        known = sorted(self.alive)
        outside = [*self.random.sample(known, min(len(known), 3)), f"far-{self.random.randint(1, 3)}"]
        parents = {}
        for n, key in enumerate(own):
            choice = [*own[:n], *outside]
            parents[key] = self.random.sample(choice, self.random.randint(0, min(3, len(choice))))
        wanted = self.random.sample(own, self.random.randint(1, size)) if size else []
        pointers = {f"{job}-p": self.random.choice(outside)} if not size or self.random.random() < 0.2 else {}
        self.feed(submitted(job, parents, wanted, externals=outside, pointers=pointers))

    def release(self):
        # An outside key may be let go as well; mostly the scheduler lets go what it knows.
        keys = sorted(self.ledger.keys, key=str)
        if keys:
            self.feed(Released(self.random.choice(keys)))

    def hear(self):
        self.feed(self.stream.popleft())

    # everything together

    def moves(self):
        yield from ((self.step, worker) for worker in self.workers)
        if self.stream:
            yield (self.hear,)
        yield from ((self.do, number) for number in range(len(self.underway)))

    def do(self, number):
        _, action = self.underway.pop(number)
        action()

    def run(self, steps):
        for _ in range(steps):
            moves = [*self.moves(), (self.submit,), (self.release,)]
            move, *arguments = self.random.choice(moves)
            move(*arguments)
        self.drain()
        pending = [key for key, answers in self.alive.items() if not answers]
        assert not pending and not self.ledger.jobs, f"nobody answers for {pending}"
        for key in list(self.ledger.keys):
            self.feed(Released(key))
        self.drain()
        assert repr(self.ledger) == "<Ledger jobs=0 keys=0>"
        assert not self.objects, "left in the store"

    def drain(self):
        for _ in range(100_000):
            moves = list(self.moves())
            if not moves:
                return
            move, *arguments = self.random.choice(moves)
            move(*arguments)
        raise AssertionError("does not come to rest")


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(5, 120))
def test_in_any_story_every_key_is_answered_once_and_nothing_stays(seed, ceiling, steps):
    model = Model(seed, ceiling)
    try:
        model.run(steps)
    except BaseException as error:
        error.add_note("\n".join(map(repr, model.story[-40:])))
        raise
