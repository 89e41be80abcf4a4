"""The ledger as a state machine: graphs, executors, releases and deaths in any order.

Whatever comes, a key is answered once, an answer is right, a value that somebody holds is not freed and no other is
freed twice, and no wanted key is without somebody who sees to it.
"""

from __future__ import annotations

import itertools

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

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
    JobFailed,
    Launch,
    Lost,
    Released,
    Retired,
    Room,
)
from dask_serverless.jobs import Ledger
from lambda_worker.core.wire import Ref
from tests.machines import RuleBasedStateMachine, run_machine
from tests.unit.ledger_story import ERROR, result, submitted

KEYS = ["k0", "k1", "k2", "k3", "k4", "k5"]
JOBS_MAX = 6
picks = st.integers(0, 99)


class LedgerMachine(RuleBasedStateMachine):
    """A ledger, what it was told, and what it said."""

    def __init__(self):
        super().__init__()
        self.ledger = Ledger()
        self.serial = itertools.count(1)
        self.jobs = {}  # by name: what was submitted
        self.wanted = set()  # keys that the scheduler waits for or holds
        self.answers = {}
        self.launched = []  # (job, starts), to be admitted
        self.live = []  # (job, executor)
        self.imports = []
        self.freed, self.closed = set(), set()

    def tell(self, event):
        for instruction in self.ledger.handle(event):
            match instruction:
                case Finish(key, _) | Fail(key, _):
                    assert key in self.wanted, f"nobody waits for {key}"
                    assert key not in self.answers, f"{key} is answered twice"
                    self.answers[key] = type(instruction)
                case Launch(job, starts):
                    assert job in self.jobs and job not in self.closed and starts
                    self.launched.append((job, list(starts)))
                case Import(key):
                    self.imports.append(key)
                case Free(refs):
                    held = set(self.ledger.held())
                    for each in refs:
                        assert each not in held, f"{each} is freed, and held"
                        assert each not in self.freed, f"{each} is freed twice"
                        self.freed.add(each)
                case Close(job, keep):
                    assert job not in self.closed, f"{job} is closed twice"
                    assert not self.freed & set(keep), "what was freed cannot be kept"
                    self.closed.add(job)

    def pick(self, found, number):
        return found[number % len(found)]

    # -- what users do --------------------------------------------------------------------------

    @precondition(lambda self: len(self.jobs) < JOBS_MAX)
    @rule(
        edges=st.lists(st.tuples(picks, picks), max_size=6),
        size=st.integers(1, 5),
        wanted=st.sets(st.sampled_from(KEYS), min_size=1, max_size=3),
        needs=st.sets(st.sampled_from(KEYS), max_size=2),
    )
    def submit(self, edges, size, wanted, needs):
        """A graph, of which some tasks have names that others know. It may need keys of others, or unknown ones."""
        job = f"j{len(self.jobs)}"
        wanted = [key for key in sorted(wanted) if key not in self.wanted]  # as a scheduler: what is there is not asked
        externals = sorted(needs - set(wanted))
        if not wanted:
            return
        names = [*externals, *(f"{job}-{n}" for n in range(size)), *wanted]
        parents = {name: () for name in names}
        for low, high in edges:
            low, high = sorted((low % len(names), high % len(names)))
            if low < high and names[high] not in externals:
                parents[names[high]] = (*parents[names[high]], names[low])
        event = submitted(job, parents, wanted, externals)
        self.jobs[job] = event
        for key in wanted:
            self.wanted.add(key)
            self.answers.pop(key, None)
        self.tell(event)

    @precondition(lambda self: self.wanted)
    @rule(which=picks)
    def release(self, which):
        key = self.pick(sorted(self.wanted), which)
        self.wanted.discard(key)
        self.answers.pop(key, None)
        self.tell(Released(key))

    # -- what executors do ----------------------------------------------------------------------

    @precondition(lambda self: self.launched)
    @rule(which=picks, granted=st.integers(0, 3), refused=st.integers(0, 3))
    def admit(self, which, granted, refused):
        job, starts = self.launched.pop(which % len(self.launched))
        executors = [f"e{next(self.serial)}" for _ in starts[:granted]]
        self.live += [(job, executor) for executor in executors]
        first_later = granted + refused
        self.tell(Admitted(job, executors, starts[granted:first_later], starts[first_later:]))

    @precondition(lambda self: self.live)
    @rule(which=picks)
    def delegate(self, which):
        job, _ = self.pick(self.live, which)
        executor = f"e{next(self.serial)}"
        self.live.append((job, executor))
        self.tell(Delegating(job, [executor]))

    @precondition(lambda self: self.jobs)
    @rule(which=picks, tasks=st.sets(picks, min_size=1, max_size=3), again=st.booleans())
    def done(self, which, tasks, again):
        """Also of jobs that are over, and of tasks that were done before."""
        job = self.pick(sorted(self.jobs), which)
        visible = sorted(set(self.jobs[job].visible.values()))
        results = []
        for task in sorted({visible[task % len(visible)] for task in tasks}):
            writer = f"w{next(self.serial)}"
            results.append(result(job, task, writer))
        self.tell(Done(job, results))

    @precondition(lambda self: self.jobs)
    @rule(which=picks, task=picks)
    def err(self, which, task):
        job = self.pick(sorted(self.jobs), which)
        self.tell(Erred(job, task % len(self.jobs[job].graph), ERROR))

    @precondition(lambda self: self.live)
    @rule(which=picks, ends=st.sampled_from([Retired, Lost]))
    def end(self, which, ends):
        job, executor = self.live.pop(which % len(self.live))
        self.tell(Retired(job, executor) if ends is Retired else Lost(job, executor, ERROR))

    @precondition(lambda self: self.jobs)
    @rule(which=picks)
    def fail(self, which):
        self.tell(JobFailed(self.pick(sorted(self.jobs), which), ERROR))

    @rule()
    def room(self):
        self.tell(Room())

    @precondition(lambda self: self.imports)
    @rule(which=picks, kind=st.sampled_from(["stored", "inline", "failed"]))
    def bring(self, which, kind):
        key = self.imports.pop(which % len(self.imports))
        if kind == "failed":
            self.tell(ImportFailed(key, ERROR))
        else:
            location = b"inline" if kind == "inline" else Ref(f"exports/{next(self.serial)}", 0, 100)
            self.tell(Imported(key, location))

    # -- what holds always ----------------------------------------------------------------------

    @invariant()
    def nobody_is_forgotten(self):
        ledger = self.ledger
        for key in self.wanted - self.answers.keys():
            entry = ledger.keys.get(key)
            assert entry is not None and entry.pending, f"{key} is wanted, and has an answer that nobody heard"
            job = ledger.jobs.get(entry.job)
            assert job is not None and key in job.keys[entry.task], f"no job makes {key}"

    @invariant()
    def what_is_held_was_not_freed(self):
        assert not self.freed & set(self.ledger.held())

    @invariant()
    def jobs_that_are_over_are_closed(self):
        for job in self.jobs:
            assert (job in self.closed) == (job not in self.ledger.jobs)

    @invariant()
    def who_cannot_end_is_named(self):
        """A job that is not said to be stalled has starts to come, or somebody at work."""
        stalled = set(self.ledger.stalled())
        working = {job for job, _ in self.live} | {job for job, _ in self.launched}
        for name, job in self.ledger.jobs.items():
            seen_to = name in working or bool(job.ready) or bool(job.gated)
            assert (name in stalled) != seen_to, f"{name}: stalled {name in stalled}, seen to {seen_to}"

    def teardown(self):
        """Everything ends, and is let go: nothing is left."""
        while self.imports:
            self.bring(0, "inline")
        for job in sorted(self.jobs):
            self.done(sorted(self.jobs).index(job), set(range(100)), False)
            self.tell(JobFailed(job, ERROR))
        self.nobody_is_forgotten()
        assert self.wanted <= self.answers.keys(), "every key that is wanted has an answer"
        assert not self.ledger.jobs and self.closed == set(self.jobs)
        while self.wanted:
            self.release(0)
        while self.imports:
            self.bring(0, "stored")
        for key in list(self.ledger.keys):  # imports that somebody still had asked for
            self.tell(Released(key))
        assert not self.ledger.held() and not self.ledger.keys
        assert not (self.ledger._gates or self.ledger._pointers or self.ledger._waiting)


def test_in_any_order_every_key_is_answered_once_and_nothing_stays():
    run_machine(LedgerMachine, examples=200)
