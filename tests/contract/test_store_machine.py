"""The scripts as a state machine: whatever is called in whatever order, every store answers as the model does.

The model below says in the fewest words what `lambda_worker.ports` promises of records, attempts, fan-ins, claims and
events. Sandboxes speak for executors, for attempts old and new, once or twice, also for jobs that are over.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from dask_serverless.simulator.tier import Tier
from lambda_worker.core.schedule import Assignment
from lambda_worker.ports import Arrival, Claim, Reply, Standing, Succession, Verdict
from tests.machines import RuleBasedStateMachine, run_machine
from tests.unit.test_simulator import AnybodyHoldsAnAttempt, CounterInsteadOfEdges, NoFencing

OK, FENCED, CANCELLED = Standing.OK, Standing.FENCED, Standing.CANCELLED
WAIT, YOURS, TAKEN, DONE = Verdict.WAIT, Verdict.YOURS, Verdict.TAKEN, Verdict.DONE

NAMES = ("a", "b", "c")
CHILDREN = (100, 101, 102, 103)
PARENTS = 3
HOLDERS = ("", "first", "second")  # who has no name is the proxy
_jobs = itertools.count()


@dataclass
class Record:
    """What is known of an executor."""

    assignment: Assignment
    attempt: int
    holder: str = ""
    gave: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)


@dataclass
class FanIn:
    """A set of edges, and an owner."""

    values: dict[int, bytes] = field(default_factory=dict)
    owner: str = ""
    held: bool = False  # it was won by asking


class Model:
    """One job at a store."""

    def __init__(self) -> None:
        self.cancelled = self.closed = False
        self.records: dict[str, Record] = {}
        self.fan_ins: dict[int, FanIn] = {}
        self.claims: dict[str, set[int]] = {}  # outlive the record
        self.done: set[int] = set()
        self.events: list[tuple[str, int, bytes]] = []
        self.heard: dict[str, list[object]] = {}

    def enter(self, executor, attempt, holder):
        if self.cancelled:
            return CANCELLED
        known = self.records.get(executor)
        if known is None or known.attempt > attempt:
            return FENCED
        if known.attempt < attempt:
            known.attempt, known.holder = attempt, holder
        elif not known.holder:
            known.holder = holder
        elif holder and holder != known.holder:
            return FENCED
        return OK

    def create(self, assignment):
        self.records[assignment.executor] = Record(assignment, assignment.attempt)
        self.heard.pop(assignment.executor, None)

    def arrive(self, executor, attempt, holder, arrivals, events, retire, succession):
        standing = self.enter(executor, attempt, holder)
        if standing is not OK:
            return Reply(standing)
        answers, asked = {}, {}
        for child in dict.fromkeys(each.child for each in arrivals):
            fan_in = self.fan_ins.get(child, FanIn())
            settled = child in self.done or bool(fan_in.owner)
            for each in arrivals:
                if each.child == child and not settled:
                    if each.value is None:
                        asked.setdefault(child, set()).add(each.parent)
                    else:
                        fan_in.values.setdefault(each.parent, each.value)
                        self.fan_ins[child] = fan_in
            if not settled and len(fan_in.values.keys() | asked.get(child, set())) >= PARENTS:
                fan_in.owner, fan_in.held = executor, not asked.get(child, set()) <= fan_in.values.keys()
                self.fan_ins[child] = fan_in
            if child in self.done:
                answers[child] = Claim(child, DONE)
            elif not fan_in.owner:
                answers[child] = Claim(child, WAIT)
            elif fan_in.owner != executor:
                answers[child] = Claim(child, TAKEN)
            else:
                answers[child] = Claim(child, YOURS, dict(fan_in.values))
                self.claims.setdefault(executor, set()).add(child)
        call = (attempt, tuple((each.child, each.parent) for each in arrivals), retire, events)
        if events and call not in self.heard.setdefault(executor, []):
            self.heard[executor].append(call)
            self.events.append((executor, attempt, events))
        retired = retire and all(claim.verdict is not YOURS for claim in answers.values())
        if retired:
            for child in self.claims.pop(executor, ()):
                self.done.add(child)
                self.fan_ins.pop(child, None)
            del self.records[executor]
            self.heard.pop(executor, None)
            if succession is not None:
                self.create(succession.record)
                self.events.append((executor, attempt, succession.events))
            self.events.append((executor, attempt, b""))
        return Reply(OK, tuple(answers.values()), retired)

    def add(self, records, ceiling, giver="", giver_attempt=0):
        if self.cancelled or self.closed:
            return 0
        gave = self.records[giver].gave if giver else {}
        for count, record in enumerate(records):
            known, gift = self.records.get(record.executor), (giver_attempt, tuple(record.starts))
            if giver and gave.get(record.executor) == gift:
                continue  # the same call again
            if giver and known is not None:
                if tuple(known.assignment.starts) != tuple(record.starts):
                    return count
            elif known is None and len(self.records) >= ceiling:
                return count
            elif known is None or known.attempt < record.attempt:
                self.create(record)
            if giver:
                gave[record.executor] = gift
        return len(records)

    def delegate(self, executor, attempt, holder, records, ceiling):
        if self.enter(executor, attempt, holder) is not OK:
            return 0
        return self.add(records, ceiling, executor, attempt)

    def recall(self, executor, alive):
        known = self.records.get(executor)
        if known is None:
            return None
        if not alive:
            known.holder = "-"
        gone = {*known.assignment.without, *(task for _, starts in known.gave.values() for task in starts)}
        claims = {}
        for child in sorted(self.claims.get(executor, ())):
            fan_in = self.fan_ins[child]
            if not fan_in.held:
                claims[child] = dict(fan_in.values)
            elif not alive:
                fan_in.owner, fan_in.held = "", False
                self.claims[executor].discard(child)
        return replace(
            known.assignment,
            attempt=known.attempt,
            starts=[task for task in known.assignment.starts if task not in gone],
            claims={child: values for child, values in claims.items() if child not in gone},
            without=tuple(sorted(gone)),
        )

    def end(self):
        self.records.clear()
        self.claims.clear()


class StoreMachine(RuleBasedStateMachine):
    """Calls a store and the model alike."""

    def __init__(self, make_store):
        super().__init__()
        self.stores = {holder: make_store(holder=holder) for holder in HOLDERS}
        self.serial = itertools.count(1)
        self.begin()

    def begin(self):
        self.job, self.model, self.last = f"machine-{next(_jobs)}", Model(), None
        self.stores[""].open_job(self.job, {0: b"segment"})
        self.admit(NAMES, 0, 3)

    executors = st.sampled_from(NAMES)
    holders = st.sampled_from(HOLDERS)
    attempts = st.sampled_from([0, 0, 0, 0, -1, 1])  # beside the newest

    def attempt_of(self, executor, beside):
        known = self.model.records.get(executor)
        return max(1, (known.attempt if known else 1) + beside)

    def record(self, executor, attempt, starts=(0, 1, 2)):
        return Assignment(self.job, executor, attempt, list(starts), hint=[])

    @rule(
        executors=st.lists(executors, min_size=1, max_size=3, unique=True), beside=attempts, ceiling=st.integers(1, 4)
    )
    def admit(self, executors, beside, ceiling):
        records = [self.record(executor, self.attempt_of(executor, beside)) for executor in executors]
        assert self.stores[""].admit(records, ceiling) == self.model.add(records, ceiling)

    @rule(
        executor=executors,
        beside=attempts,
        holder=holders,
        edges=st.sets(st.tuples(st.sampled_from(CHILDREN), st.integers(0, PARENTS - 1)), max_size=5),
        asking=st.sets(st.sampled_from(CHILDREN)),
        speaks=st.booleans(),
        retire=st.sampled_from([False, False, True]),
        successor=st.booleans(),
    )
    def arrive(self, executor, beside, holder, edges, asking, speaks, retire, successor):
        number = next(self.serial)
        arrivals = [
            Arrival(child, parent, PARENTS, None if child in asking else b"%d from %d" % (parent, number))
            for child, parent in sorted(edges)
        ]
        events = b"said %d" % number if speaks else b""
        succession = Succession(self.record(f"heir-{number}", 1), b"heir %d" % number) if retire and successor else None
        attempt = self.attempt_of(executor, beside)
        self.last = (executor, attempt, holder, arrivals, events, retire, succession)
        self.call(*self.last)

    @precondition(lambda self: self.last is not None)
    @rule()
    def repeat(self):
        """A reply was lost."""
        self.call(*self.last)

    def call(self, executor, attempt, holder, *what):
        arrivals, events, retire, succession = what
        reply = self.stores[holder].arrive(self.job, executor, attempt, arrivals, events, retire, succession)
        expected = self.model.arrive(executor, attempt, holder, *what)
        assert reply == expected

    @rule(
        executor=executors,
        beside=attempts,
        holder=holders,
        given=st.lists(st.tuples(executors, st.sampled_from([(0,), (1,), (1, 2)])), min_size=1, max_size=3),
        ceiling=st.integers(1, 4),
    )
    def delegate(self, executor, beside, holder, given, ceiling):
        attempt = self.attempt_of(executor, beside)
        records = [self.record(name, 1, starts) for name, starts in given if name != executor]
        found = self.stores[holder].delegate(self.job, executor, attempt, records, ceiling)
        if records:
            assert found == self.model.delegate(executor, attempt, holder, records, ceiling)
        else:
            assert found == 0

    @rule(executor=executors, beside=attempts, holder=holders, running=st.integers(-1, 3))
    def beat(self, executor, beside, holder, running):
        attempt = self.attempt_of(executor, beside)
        standings = self.stores[holder].beat([(self.job, executor, attempt, running)])
        assert standings == [self.model.enter(executor, attempt, holder)]

    @rule(executor=executors, alive=st.booleans())
    def recall(self, executor, alive):
        found = self.stores[""].recall(self.job, executor, alive)
        expected = self.model.recall(executor, alive)
        assert found == expected if found is None or expected is None else as_told(found) == as_told(expected)

    @rule(executor=executors, seldom=st.integers(0, 2))
    def drop(self, executor, seldom):
        if seldom:
            return
        self.stores[""].drop(self.job, executor)
        self.model.records.pop(executor, None)
        self.model.heard.pop(executor, None)

    @rule(how=st.sampled_from(["cancel", "close"]), seldom=st.integers(0, 4))
    def end_job(self, how, seldom):
        if seldom:
            return
        if how == "close":
            self.stores[""].close_job(self.job, [])
            heard = self.model.events
            self.model = Model()
            self.model.closed, self.model.events = True, heard
        else:
            self.stores[""].cancel(self.job)
            if not self.model.closed:
                self.model.cancelled = True
                self.model.end()

    @precondition(lambda self: self.model.closed or self.model.cancelled)
    @rule()
    def begin_another(self):
        """Another job, by the same names: nothing of this one is left over for it."""
        self.listen()
        self.stores[""].close_job(self.job, [])
        self.begin()

    @rule()
    def listen(self):
        heard = [(executor, attempt, events) for _, executor, attempt, events in self.stores[""].listen(0)]
        expected, self.model.events = self.model.events, []
        assert heard == expected

    @invariant()
    def records_are_those_of_the_model(self):
        assert self.stores[""].executors(self.job) == sorted(self.model.records)

    @invariant()
    def inputs_are_where_the_model_has_them(self):
        for child in CHILDREN:
            fan_in = self.model.fan_ins.get(child)
            assert self.stores[""].locate(self.job, child) == ({} if fan_in is None else fan_in.values)

    def teardown(self):
        while self.stores[""].listen(0):  # the next machine hears its own
            pass
        self.stores[""].close_job(self.job, [])


def as_told(assignment):
    return replace(assignment, starts=list(assignment.starts), without=tuple(assignment.without))


@pytest.mark.fault(6, 7, 8)
@pytest.mark.parametrize("kind", ["redis", "simulated"])
def test_every_store_answers_as_the_model_does(kind, request):
    made = request.getfixturevalue({"redis": "make_redis_store", "simulated": "make_sim_store"}[kind])
    stores = {}

    def make_store(holder):  # clients are kept: a machine opens a job of its own
        if holder not in stores:
            stores[holder] = made(holder=holder)
        return stores[holder]

    run_machine(lambda: StoreMachine(make_store), examples=150)


@pytest.mark.parametrize("bug", [CounterInsteadOfEdges, NoFencing, AnybodyHoldsAnAttempt])
def test_a_planted_bug_is_found(bug):
    def make():
        tier = Tier(lambda: 0.0)
        return StoreMachine(lambda holder: bug(tier, holder=holder))

    with pytest.raises(AssertionError):
        run_machine(make, examples=300, shrink=False)
