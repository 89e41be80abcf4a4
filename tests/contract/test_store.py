"""The promises of `lambda_worker.ports.Store` and `JobStore`, one by one, on every store there is.

A test reads as a story: executors ``a``, ``b``, ... of job ``job`` arrive at children (numbers from 100) for parents
(small numbers); values tell who brought them. What only a server can show is in ``test_store_redis.py``.
"""

import array
import itertools
import os
import threading
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lambda_worker.core.errors import StoreForgot, ValueLost, ValueTooLarge
from lambda_worker.core.schedule import Assignment
from lambda_worker.core.wire import Ref, frames_nbytes
from lambda_worker.ports import Claim, Lapsed, Reply, Standing, Succession, Verdict
from tests.contract.stories import edge, opened, record, verdicts
from tests.waiting import until

OK, FENCED, CANCELLED = Standing.OK, Standing.FENCED, Standing.CANCELLED
WAIT, YOURS, TAKEN, DONE = Verdict.WAIT, Verdict.YOURS, Verdict.TAKEN, Verdict.DONE
MIB = 2**20

#: Of bulk data also where there is no room on the shards.
also_overflowing = pytest.mark.parametrize(
    "make_store", ["redis", "simulated", "overflowing", "simulated-overflowing"], indirect=True
)


# Fan-ins


def test_the_last_parent_gets_the_child_with_all_values(store):
    opened(store, "a", "b")
    ref = Ref("job/2/b/1", 0, 10)
    assert verdicts(store.arrive("job", "a", 1, [edge(100, 1, 2, b"one")])) == [(100, WAIT)]
    assert store.arrive("job", "b", 1, [edge(100, 2, 2, ref)]).claims == (Claim(100, YOURS, {1: b"one", 2: ref}),)
    assert verdicts(store.arrive("job", "a", 1, [edge(100, 1, 2)])) == [(100, TAKEN)]


def test_setting_an_edge_twice_is_setting_it_once(store):
    opened(store, "a", "b")
    for executor in "aab":
        assert verdicts(store.arrive("job", executor, 1, [edge(100, 1, 2)])) == [(100, WAIT)]
    assert verdicts(store.arrive("job", "a", 1, [edge(100, 1, 2), edge(100, 1, 2)])) == [(100, WAIT)]


def test_the_first_value_of_an_edge_stays(store):
    opened(store, "a", "b")
    store.arrive("job", "a", 1, [edge(100, 1, 2, b"first")])
    store.arrive("job", "b", 1, [edge(100, 1, 2, b"second")])
    (claim,) = store.arrive("job", "b", 1, [edge(100, 2, 2, b"other")]).claims
    assert claim.values == {1: b"first", 2: b"other"}


@pytest.mark.fault(4)
def test_the_owner_hears_yours_again_at_any_attempt_with_the_same_values(store):
    opened(store, "a", "b")
    store.arrive("job", "a", 1, [edge(100, 1, 2, b"one")])
    won = store.arrive("job", "b", 1, [edge(100, 2, 2, b"two")])
    assert store.arrive("job", "b", 1, [edge(100, 2, 2, b"other")]) == won
    assert store.admit([record("b", 2)], 0) == 1  # the supervisor starts the next attempt
    assert store.arrive("job", "b", 2, [edge(100, 2, 2, b"other")]) == won
    store.drop("job", "b")
    assert store.admit([record("b", 3)], 1_000) == 1
    assert store.arrive("job", "b", 3, [edge(100, 2, 2, b"other")]) == won


def test_a_child_is_done_when_its_owner_has_retired(store):
    opened(store, "a", "b")
    store.arrive("job", "a", 1, [edge(100, 1, 2)])
    store.arrive("job", "b", 1, [edge(100, 2, 2)])
    assert store.arrive("job", "b", 1, [edge(101, 9, 2)], retire=True) == Reply(OK, (Claim(101, WAIT),), retired=True)
    assert verdicts(store.arrive("job", "a", 1, [edge(100, 1, 2), edge(101, 9, 2)])) == [(100, DONE), (101, WAIT)]


def test_one_answer_for_each_child_in_the_order_of_the_call(store):
    opened(store, "a")
    arrivals = [edge(102, 1, 2), edge(100, 1, 2), edge(102, 2, 2), edge(101, 1, 1)]
    assert verdicts(store.arrive("job", "a", 1, arrivals)) == [(102, YOURS), (100, WAIT), (101, YOURS)]


def test_inline_values_may_be_any_bytes(store):
    opened(store, "a")
    values = {0: b"", 1: b"r", 2: b"owner", 3: bytes(range(256)), 4: os.urandom(70_000)}
    (claim,) = store.arrive("job", "a", 1, [edge(100, p, 5, value) for p, value in values.items()]).claims
    assert claim.values == values


def test_many_children_in_one_call(store):
    opened(store, "a")
    before = store.counters()["round_trips"]
    reply = store.arrive("job", "a", 1, [edge(child, 1, 1) for child in range(20_000)])
    assert {claim.verdict for claim in reply.claims} == {YOURS}
    assert store.arrive("job", "a", 1, retire=True).retired  # more claims than Lua can unpack
    assert store.counters()["round_trips"] - before == 2
    opened(store, "b")
    assert verdicts(store.arrive("job", "b", 1, [edge(19_999, 1, 1)])) == [(19_999, DONE)]


@pytest.mark.fault(8)
@pytest.mark.parametrize("clients", [8, 1], ids=["a client each", "threads of one client"])
def test_many_executors_at_once_and_one_wins(make_store, clients):
    stores = [make_store() for _ in range(clients)]
    opened(stores[0], *"abcdefgh")
    barrier, answers = threading.Barrier(8), []

    def run(number):
        barrier.wait()
        for child in range(100, 150):
            reply = stores[number % clients].arrive("job", "abcdefgh"[number], 1, [edge(child, number, 8)])
            answers.extend(reply.claims)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [claim for claim in answers if claim.verdict is YOURS]
    assert sorted(claim.child for claim in won) == list(range(100, 150))
    assert all(set(claim.values) == set(range(8)) for claim in won)


class Model:
    """What `arrive` promises, in the fewest words: to be compared with the real thing, reply by reply."""

    def __init__(self):
        self.attempts, self.edges, self.owner, self.done = {}, {}, {}, set()

    def arrive(self, executor, attempt, arrivals, retire):
        if attempt < self.attempts.get(executor, attempt + 1):
            return Reply(FENCED)
        self.attempts[executor] = attempt
        answers = {}
        for arrival in arrivals:
            child = arrival.child
            if child not in self.owner:
                self.edges.setdefault(child, {}).setdefault(arrival.parent, arrival.value)
        for arrival in arrivals:
            child = arrival.child
            if child not in self.owner and len(self.edges[child]) == arrival.parents:
                self.owner[child] = executor
            if child in self.done:
                answers[child] = Claim(child, DONE)
            elif child not in self.owner:
                answers[child] = Claim(child, WAIT)
            elif self.owner[child] != executor:
                answers[child] = Claim(child, TAKEN)
            else:
                answers[child] = Claim(child, YOURS, self.edges[child])
        retired = retire and all(claim.verdict is not YOURS for claim in answers.values())
        if retired:
            self.done |= {child for child, owner in self.owner.items() if owner == executor}
            del self.attempts[executor]
        return Reply(OK, tuple(answers.values()), retired)


_jobs = itertools.count()


@pytest.mark.fault(6, 8)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_interleaving_gives_each_child_one_owner_and_all_values(store, data):
    """Goal: no schedule, repetition, duplicate or new attempt loses a fan-in or gives it away twice.

    Method: edges are dealt to executors, some to several (as if both had run the parent). Hypothesis chooses who goes
    next, how much it brings, whether it repeats its last call (a lost reply), starts over at the next attempt, or lets
    an older attempt speak once more. Every reply must be the model's. At the end all finish what they have.
    """
    job = f"job-{next(_jobs)}"
    executors = "abcd"[: data.draw(st.integers(1, 4), "executors")]
    degrees = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4), "in-degrees")
    mine = {executor: [] for executor in executors}
    for child, degree in enumerate(degrees, 100):
        for parent in range(degree):
            for executor in data.draw(st.sets(st.sampled_from(executors), min_size=1), "who runs the parent"):
                mine[executor].append((child, parent, degree))
    opened(store, *executors, job=job)
    model = Model()
    model.attempts = dict.fromkeys(executors, 1)
    newest, position, last = dict.fromkeys(executors, 1), dict.fromkeys(executors, 0), {}
    heard = []

    def step(executor, attempt, arrivals, retire):
        last[executor] = (executor, attempt, arrivals, retire)
        reply = store.arrive(job, executor, attempt, arrivals, retire=retire)
        assert reply == model.arrive(executor, attempt, arrivals, retire)
        heard.extend((executor, claim) for claim in reply.claims if claim.verdict is YOURS)

    def bring(executor, count, retire=False):
        edges = mine[executor][position[executor] : position[executor] + count]
        position[executor] += count
        value = f"{executor}{newest[executor]}".encode()
        step(executor, newest[executor], [edge(*which, b"%s %d" % (value, which[1])) for which in edges], retire)

    actions = st.sampled_from(["bring", "bring", "bring", "repeat", "restart", "stale", "retire"])
    for executor, action, count in data.draw(
        st.lists(st.tuples(st.sampled_from(executors), actions, st.integers(1, 4)), max_size=25), "steps"
    ):
        if action == "bring":
            bring(executor, count)
        elif action == "repeat" and executor in last:
            step(*last[executor])
        elif action == "restart" and executor in model.attempts:
            newest[executor] += 1
            position[executor] = 0
            assert store.admit([record(executor, newest[executor], job=job)], 1_000) == 1
            model.attempts[executor] = newest[executor]
        elif action == "stale" and newest[executor] > 1:
            step(executor, newest[executor] - 1, [edge(*which, b"stale") for which in mine[executor]], True)
        elif action == "retire" and position[executor] >= len(mine[executor]):
            step(executor, newest[executor], [], True)
    for executor in executors:
        bring(executor, len(mine[executor]))

    owners = {}
    for executor, claim in heard:
        owners.setdefault(claim.child, set()).add(executor)
        assert set(claim.values) == set(range(degrees[claim.child - 100]))
        assert b"stale" not in claim.values.values()
    assert {child: len(names) for child, names in owners.items()} == {100 + i: 1 for i in range(len(degrees))}
    store.close_job(job, [])


# Attempts, leases, retirement


@pytest.mark.fault(7)
def test_an_older_attempt_is_fenced_and_has_no_effect(store):
    opened(store, "a", "b")
    store.admit([record("a", 2)], 1_000)
    assert store.arrive("job", "a", 1, [edge(100, 1, 1)], b"events", retire=True) == Reply(FENCED)
    assert store.delegate("job", "a", 1, [record("a.1")], 1_000) == 0
    assert store.beat([("job", "a", 1, 5), ("job", "a", 2, 5)]) == [FENCED, OK]
    assert verdicts(store.arrive("job", "b", 1, [edge(100, 1, 1)])) == [(100, YOURS)]
    assert store.listen(0) == []
    assert store.recall("job", "a.1") is None


@pytest.mark.fault(7)
def test_a_newer_attempt_than_the_record_knows_fences_the_older(store):
    opened(store, "a")
    assert store.beat([("job", "a", 2, -1), ("job", "a", 1, -1)]) == [OK, FENCED]


@pytest.mark.fault(6)
def test_of_two_sandboxes_that_speak_for_one_attempt_the_first_holds_it(make_store):
    """1. Lambda delivers an invocation twice; 2. one copy wins a child; 3. the other must not retire with it."""
    proxy, first, second = make_store(), make_store(holder="first"), make_store(holder="second")
    opened(proxy, "a")
    assert verdicts(first.arrive("job", "a", 1, [edge(100, 1, 1)])) == [(100, YOURS)]
    assert second.arrive("job", "a", 1, retire=True) == Reply(FENCED)
    assert second.delegate("job", "a", 1, [record("a.1")], 10) == 0
    assert second.beat([("job", "a", 1, -1)]) == [FENCED]
    assert proxy.beat([("job", "a", 1, -1)]) == [OK]  # who has no name
    assert proxy.admit([record("a", 2)], 10) == 1
    assert second.beat([("job", "a", 2, -1)]) == [OK]
    assert first.beat([("job", "a", 2, -1), ("job", "a", 3, -1)]) == [FENCED, OK]
    assert second.beat([("job", "a", 3, -1)]) == [FENCED]


def test_who_has_no_record_is_fenced(store):
    opened(store, "a")
    assert store.arrive("job", "nobody", 1, [edge(100, 1, 1)]) == Reply(FENCED)
    store.drop("job", "a")
    store.drop("job", "a")
    assert store.arrive("job", "a", 1, [edge(100, 1, 1)]) == Reply(FENCED)
    assert store.beat([("job", "a", 1, -1), ("other job", "a", 1, -1)]) == [FENCED, FENCED]
    assert store.beat([]) == []


def test_retire_removes_the_record_and_says_so_in_the_stream(store):
    opened(store, "a")
    assert store.arrive("job", "a", 1, events=b"last words", retire=True) == Reply(OK, (), retired=True)
    assert store.listen(0) == [("job", "a", 1, b"last words"), ("job", "a", 1, b"")]
    # A lost reply: who asks again is told FENCED, and nothing happens twice.
    assert store.arrive("job", "a", 1, events=b"last words", retire=True) == Reply(FENCED)
    assert store.listen(0) == []


def test_who_wins_a_child_does_not_retire(store):
    opened(store, "a")
    won = Reply(OK, (Claim(100, YOURS, {1: b"value"}),), retired=False)
    assert store.arrive("job", "a", 1, [edge(100, 1, 1)], retire=True) == won
    assert store.arrive("job", "a", 1, [edge(100, 1, 1)], retire=True) == won
    assert store.beat([("job", "a", 1, 100)]) == [OK]
    assert store.arrive("job", "a", 1, retire=True).retired


def test_a_successor_takes_the_place_in_the_step_that_retires(store):
    opened(store, "a")
    heir = record("a.1", starts=[3, 4], function_class=2)
    step = {"events": b"last words", "retire": True, "succession": Succession(heir, b"invoke it")}
    assert store.arrive("job", "a", 1, **step) == Reply(OK, (), retired=True)
    assert store.listen(0) == [("job", "a", 1, b"last words"), ("job", "a", 1, b"invoke it"), ("job", "a", 1, b"")]
    assert store.beat([("job", "a", 1, -1), ("job", "a.1", 1, -1)]) == [FENCED, OK]
    assert store.recall("job", "a.1") == heir
    # It holds the only place, and a repetition after a lost reply changes nothing.
    assert store.admit([record("b")], 1) == 0
    assert store.arrive("job", "a", 1, **step) == Reply(FENCED)
    assert store.listen(0) == []
    assert store.arrive("job", "a.1", 1, retire=True).retired
    assert store.admit([record("b")], 1) == 1


def test_who_wins_a_child_has_no_successor_yet(store):
    opened(store, "a")
    succession = Succession(record("a.1"), b"invoke it")
    assert not store.arrive("job", "a", 1, [edge(100, 1, 1)], retire=True, succession=succession).retired
    assert store.recall("job", "a.1") is None
    assert store.listen(0) == []
    assert not store.arrive("job", "a", 1, succession=succession).retired  # nor who does not retire
    assert store.recall("job", "a.1") is None


def test_a_successor_is_of_the_same_job(store):
    opened(store, "a")
    with pytest.raises(ValueError, match="its own job"):
        store.arrive("job", "a", 1, retire=True, succession=Succession(record("b", job="other"), b""))


@pytest.mark.fault(30)
def test_a_lease_lapses_by_store_time_and_is_renewed_by_any_step(make_store):
    store = make_store(lease_seconds=0.05)
    patient = make_store(lease_seconds=60)
    opened(store, "a", "b")
    assert store.beat([("job", "a", 1, 7)]) == [OK]
    assert patient.beat([("job", "b", 1, -1)]) == [OK]
    assert until(store.lapsed) == [Lapsed("job", "a", 1, 7)]
    assert store.lapsed() == [Lapsed("job", "a", 1, 7)]  # they stay until they are dropped
    assert patient.arrive("job", "a", 1).standing is OK
    assert store.lapsed() == []
    store.arrive("job", "a", 1)
    until(store.lapsed)
    assert patient.delegate("job", "a", 1, [], 0) == 0  # nothing to create, nothing done
    assert patient.admit([record("a", 2)], 0) == 1
    assert store.lapsed() == []
    assert store.beat([("job", "a", 2, 3)]) == [OK]
    assert until(store.lapsed) == [Lapsed("job", "a", 2, 3)]
    store.drop("job", "a")
    assert store.lapsed() == []


# Admission and delegation


def test_a_prefix_is_admitted_below_the_ceiling_of_the_whole_cluster(store):
    opened(store, "a", "b")
    opened(store, "c", job="other")
    assert store.admit([record("d"), record("e"), record("f")], 5) == 2
    assert store.recall("job", "e") is not None and store.recall("job", "f") is None
    assert store.admit([record("d"), record("e"), record("f")], 5) == 2  # what exists counts as created
    assert store.arrive("other", "c", 1, retire=True).retired
    assert store.admit([record("f")], 5) == 1
    assert store.admit([], 5) == 0


def test_without_a_ceiling_all_are_admitted(store):
    opened(store, "a")
    store.set_ceiling(1)
    assert store.admit([record("b")], 5) == 0
    assert store.admit([record("b"), record("c")], None) == 2
    assert store.admit([record("d")], 5) == 0  # they count for everybody else


def test_delegate_moves_starts_below_the_ceiling(store):
    store.open_job("job", {})
    assert store.admit([record("a", starts=[0, 1, 2, 3], given={0: b"inline"}, segments={0: b"x"})], 10) == 1
    helpers = [record("a.1", starts=[1]), record("a.2", starts=[2]), record("a.3", starts=[3])]
    assert store.delegate("job", "a", 1, helpers, 3) == 2
    assert store.delegate("job", "a", 1, helpers[:2], 3) == 2
    assert store.recall("job", "a") == record("a", starts=[0, 3], given={0: b"inline"}, without=(1, 2))
    assert store.recall("job", "a.1") == helpers[0]
    assert store.beat([("job", name, 1, -1) for name in ("a.1", "a.2", "a.3")]) == [OK, OK, FENCED]


@pytest.mark.fault(5)
def test_what_a_dead_executor_had_is_recalled(store):
    opened(store, "a", "b")
    ref = Ref("job/3/b/1", 0, 10)
    store.arrive("job", "b", 1, [edge(100, 3, 2, ref), edge(101, 3, 2), edge(102, 3, 2)])
    store.arrive("job", "a", 1, [edge(100, 1, 2, b"one"), edge(101, 1, 2), edge(103, 1, 2)])
    assert store.delegate("job", "a", 1, [record("a.1", starts=[101])], 10) == 1
    again = store.recall("job", "a")
    assert again == record("a", claims={100: {1: b"one", 3: ref}}, without=(101,))
    assert Assignment.from_bytes(again.to_bytes()) == again
    # What was given away by one attempt is not run by any later one, nor are tasks that are to blame.
    assert store.admit([replace(again, attempt=2, without=(7, 101))], 0) == 1
    assert store.recall("job", "a") == replace(again, attempt=2, without=(7, 101))
    assert store.arrive("job", "a", 1, [edge(102, 1, 2)]).standing is FENCED
    assert store.arrive("job", "a", 2, retire=True).retired
    assert store.recall("job", "a") is None


def test_who_was_recalled_wins_nothing_any_more(make_store):
    """Else the next attempt would not know of it: see ``recall.lua``."""
    proxy, first, second = make_store(), make_store(holder="first"), make_store(holder="second")
    opened(proxy, "a")
    first.beat([("job", "a", 1, -1)])
    assert proxy.recall("job", "a") == record("a")
    assert first.arrive("job", "a", 1, [edge(100, 1, 1)]) == Reply(FENCED)
    assert second.beat([("job", "a", 1, -1)]) == [FENCED]
    assert proxy.admit([record("a", 2)], 1_000) == 1
    assert verdicts(second.arrive("job", "a", 2, [edge(100, 1, 1)])) == [(100, YOURS)]


def test_of_who_is_alive_it_is_told_what_it_has_and_nothing_changes(store):
    opened(store, "c")
    assert store.admit([record("a", starts=[0, 1, 2])], 1_000) == 1
    store.arrive("job", "a", 1, [edge(100, 0, 2, b"zero"), edge(100, 1, 2, b"one")])  # won with its values
    store.arrive("job", "a", 1, [edge(101, 1, 2, None), edge(101, 2, 2, None)])  # won by asking
    assert store.delegate("job", "a", 1, [record("b", starts=[2])], 1_000) == 1
    had = store.recall("job", "a", alive=True)
    assert (had.attempt, had.starts, had.without) == (1, [0, 1], (2,))
    assert had.claims == {100: {0: b"zero", 1: b"one"}}
    assert verdicts(store.arrive("job", "c", 1, [edge(101, 1, 2), edge(101, 2, 2)])) == [(101, TAKEN)]
    assert verdicts(store.arrive("job", "a", 1, [edge(101, 1, 2)])) == [(101, YOURS)]
    assert store.recall("job", "nobody", alive=True) is None


def test_who_has_a_record_is_named(store):
    opened(store, "a", "b")
    opened(store, "c", job="job-2")
    assert store.delegate("job", "a", 1, [record("a.1", starts=[1])], 10) == 1
    store.arrive("job", "b", 1, retire=True)
    assert store.executors("job") == ["a", "a.1"]
    store.drop("job", "a")
    assert (store.executors("job"), store.executors("job-2"), store.executors("jo")) == (["a.1"], ["c"], [])
    store.cancel("job")
    assert store.executors("job") == []


def test_the_inputs_of_a_fan_in_are_found_where_they_arrived(store):
    opened(store, "a", "b")
    ref = Ref("job/3/b/1", 0, 10)
    store.arrive("job", "b", 1, [edge(100, 3, 3, ref)])
    assert store.locate("job", 100) == {3: ref}
    store.arrive("job", "a", 1, [edge(100, 1, 3, b"one"), edge(100, 2, 3, b"two")])
    assert store.locate("job", 100) == {1: b"one", 2: b"two", 3: ref}
    assert store.locate("job", 101) == {}
    store.close_job("job", [])
    assert store.locate("job", 100) == {}


def test_the_place_of_a_value_made_elsewhere_is_said_and_said_again(store):
    opened(store, "a")
    store.place("job", {0: b"zero", 5: Ref("exports/1", 0, 10)})
    assert store.locate("job", 0) == {0: b"zero"}
    store.place("job", {5: Ref("exports/2", 0, 10)})
    assert store.locate("job", 5) == {5: Ref("exports/2", 0, 10)}
    store.close_job("job", [])
    assert store.locate("job", 5) == {}


def test_values_that_are_missing_are_named(store):
    refs = store.put([("job/1/a/1", [bytes(32), b"one"]), ("job/2/a/1", [bytes(32), b"two"])])
    assert store.missing(refs) == []
    store.free([refs[1]])
    assert store.missing(refs) == [refs[1]]
    assert store.missing([]) == []


@pytest.mark.fault(6)
def test_a_repeated_delegation_does_not_bring_back_who_retired(store):
    opened(store, "a")
    assert store.delegate("job", "a", 1, [record("a.1", starts=[1])], 10) == 1
    assert store.arrive("job", "a.1", 1, retire=True).retired
    assert store.delegate("job", "a", 1, [record("a.1", starts=[1])], 10) == 1
    assert store.recall("job", "a.1") is None


def test_a_new_attempt_may_delegate_anew(store):
    opened(store, "a")
    store.delegate("job", "a", 1, [record("a.1", starts=[1])], 10)
    store.drop("job", "a.1")
    store.admit([record("a", 2)], 10)
    assert store.delegate("job", "a", 2, [record("a.1", starts=[1])], 10) == 1
    assert store.beat([("job", "a.1", 1, -1)]) == [OK]
    store.drop("job", "a.1")
    assert store.beat([("job", "a", 3, -1)]) == [OK]  # nobody announced this attempt
    assert store.delegate("job", "a", 3, [record("a.1", starts=[1])], 10) == 1
    assert store.beat([("job", "a.1", 1, -1)]) == [OK]


def test_a_new_attempt_has_the_starts_it_is_admitted_with(store):
    opened(store, "a")
    assert store.admit([record("a", 1, starts=[5])], 10) == 1
    assert store.recall("job", "a") == record("a", 1)  # what exists does not change
    store.delegate("job", "a", 1, [record("a.1")], 10)
    assert store.recall("job", "a").starts == []
    assert store.admit([record("a", 2)], 10) == 1
    assert store.recall("job", "a") == record("a", 2)
    assert store.admit([record("a", 1)], 10) == 1  # late: nothing changes
    assert store.recall("job", "a") == record("a", 2)


def test_other_starts_under_the_same_name_stay_with_the_giver(store):
    opened(store, "a")
    assert store.delegate("job", "a", 1, [record("a.1", starts=[1])], 10) == 1
    assert store.delegate("job", "a", 1, [record("a.1", starts=[2]), record("a.2")], 10) == 0
    with pytest.raises(ValueError):
        store.delegate("job", "a", 1, [record("x", job="other")], 10)


# Jobs


def test_cancel(store):
    opened(store, "a", "b")
    opened(store, "c", job="other")
    store.cancel("job")
    store.cancel("job")
    assert store.arrive("job", "a", 1, [edge(100, 1, 1)], b"events", retire=True) == Reply(CANCELLED)
    assert store.beat([("job", "b", 1, -1), ("other", "c", 1, -1)]) == [CANCELLED, OK]
    assert store.delegate("job", "a", 1, [record("a.1")], 10) == 0
    assert store.admit([record("d")], 10) == 0
    store.open_job("job", {})  # repeated after the cancellation: does not undo it
    assert store.admit([record("d")], 10) == 0
    assert store.admit([record("e", job="other")], 2) == 1  # the cancelled do not count as live
    assert store.listen(0) == []


def test_unknown_and_closed_jobs_admit_none(store, leftovers):
    assert store.admit([record("a")], 10) == 0
    opened(store, "a")
    store.close_job("job", [])
    assert store.admit([record("a")], 10) == 0
    store.cancel("job")
    assert not leftovers(store)


@also_overflowing
def test_close_job_removes_all_but_kept_objects(store, leftovers):
    opened(store, "a", "b")
    store.arrive("job", "a", 1, [edge(100, 1, 2), edge(101, 1, 1)])
    store.delegate("job", "a", 1, [record("a.1")], 10)
    store.drop("job", "b")
    refs = store.put([(f"job/{i}/a/1", [b"tag", b"%d" % i]) for i in range(9)])
    others = store.put([("other/1/a/1", [b"tag"])])
    store.put_slices("job", "0a1b", 0, {target: [b"tag"] for target in range(7)})
    for _ in range(2):
        store.close_job("job", refs[:2])
    assert store.get(refs[:2] + others) == [[b"tag", b"0"], [b"tag", b"1"], [b"tag"]]
    for lost in refs[2:4]:
        with pytest.raises(ValueLost, match=lost.name):
            store.get([lost])
    assert store.beat([("job", "a", 1, -1)]) == [FENCED]
    with pytest.raises(ValueLost):
        store.load("job", [0])
    store.free(refs[:2] + others)
    store.free(others)
    assert not leftovers(store)


def test_usage_and_counters(store):
    before, at_first = store.usage(), store.counters()
    assert before.keys() == {"store_keys", "store_bytes", "overflow_bytes"}
    (ref,) = store.put([("job/1/a/1", [b"tag", b"x" * 1_000])])
    store.get([ref])
    assert store.usage()["store_keys"] > before["store_keys"]
    after = store.counters()
    assert {name: after[name] - at_first[name] for name in ("objects_written", "bytes_written", "bytes_read")} == {
        "objects_written": 1,
        "bytes_written": 1_003,
        "bytes_read": 1_003,
    }


# Events


def test_events_come_once_and_in_order(make_store):
    writer, reader = make_store(), make_store()
    opened(writer, "a", "b")
    for number in range(5):
        writer.arrive("job", "ab"[number % 2], 1, events=b"%d" % number)
    assert [event for *_, event in reader.listen(0)] == [b"0", b"1", b"2", b"3", b"4"]
    writer.arrive("job", "a", 1, events=b"5")
    assert reader.listen(0) == [("job", "a", 1, b"5")]
    assert reader.listen(0) == []
    assert writer.listen(0) == []  # forgotten by the store


def test_events_that_were_not_confirmed_are_heard_by_the_next_listener(make_store):
    writer = make_store()
    opened(writer, "a")
    writer.arrive("job", "a", 1, events=b"1")
    assert make_store().listen(0) == make_store().listen(0) == [("job", "a", 1, b"1")]


def test_listen_wakes_up_for_an_event_and_ends_without(make_store):
    writer, reader = make_store(), make_store()
    opened(writer, "a")
    heard = []
    thread = threading.Thread(target=lambda: heard.extend(reader.listen(30)))
    thread.start()
    writer.arrive("job", "a", 1, events=b"news")
    thread.join(10)
    assert heard == [("job", "a", 1, b"news")]
    assert reader.listen(0.01) == []


@pytest.mark.fault(28)
def test_a_repeated_call_publishes_its_events_once(store):
    opened(store, "a")
    for _ in range(2):
        store.arrive("job", "a", 1, [edge(100, 1, 2)], b"events")
    store.arrive("job", "a", 1, [edge(100, 2, 2)], b"events")
    store.arrive("job", "a", 2, [edge(100, 2, 2)], b"events")
    assert [attempt for _, _, attempt, _ in store.listen(0)] == [1, 1, 2]


def hears_that_all_was_forgotten(store):
    """Check that it is told, whatever it asks, until it begins again."""
    for _ in range(2):
        with pytest.raises(StoreForgot):
            store.listen(0)
        with pytest.raises(StoreForgot):
            store.executors("job")


@pytest.mark.fault(22)
def test_who_has_begun_hears_that_all_was_forgotten(make_store, forget):
    store, executor = make_store(), make_store()
    assert not store.begin() and store.begin() and make_store().begin()
    opened(executor, "a")
    executor.arrive("job", "a", 1, events=b"before")
    forget(store)
    hears_that_all_was_forgotten(store)
    # Nothing of the old jobs can act any more: nobody knows them.
    assert executor.beat([("job", "a", 1, 0)]) == [Standing.FENCED]
    assert executor.arrive("job", "a", 1, [edge(100, 1, 1)], b"after", retire=True).standing is Standing.FENCED
    assert executor.delegate("job", "a", 1, [Assignment("job", "b", 1, [1])], 8) == 0
    assert not store.begin()
    assert store.listen(0) == []
    opened(executor, "a")
    executor.arrive("job", "a", 1, events=b"new")
    assert store.listen(0) == [("job", "a", 1, b"new")]


@pytest.mark.fault(19)
def test_of_what_another_server_remembers_nothing_counts(make_store, fail_over):
    """It has the mark, but not the last words: who went on from there would run what is done, or wait for the dead."""
    save, fail_over = fail_over
    store, executor = make_store(), make_store()
    assert not store.begin()
    opened(executor, "a")
    save(store)
    executor.arrive("job", "a", 1, [edge(100, 1, 2)], events=b"forgotten")
    assert store.listen(0) == [("job", "a", 1, b"forgotten")]
    fail_over(store)
    hears_that_all_was_forgotten(store)
    assert executor.beat([("job", "a", 1, 0)]) == [Standing.OK], "the other server knows it"
    assert not store.begin() and store.begin()
    assert executor.beat([("job", "a", 1, 0)]) == [Standing.FENCED]
    assert store.listen(0) == [] and store.executors("job") == [] and store.noted() == {}
    opened(executor, "a")
    executor.arrive("job", "a", 1, events=b"new")
    assert store.listen(0) == [("job", "a", 1, b"new")]


def test_who_has_not_begun_is_not_told(make_store, forget):
    """An executor finds out by being fenced."""
    store = make_store()
    forget(store)
    assert store.listen(0) == []


def test_a_large_backlog_comes_in_bounded_batches(store):
    opened(store, "a")
    for number in range(2_300):
        store.arrive("job", "a", 1, events=b"%d" % number)
    batches = [store.listen(0) for _ in range(4)]
    assert [len(batch) for batch in batches] == [1_000, 1_000, 300, 0]
    assert [int(event) for batch in batches for *_, event in batch] == list(range(2_300))


# Segments and objects


@also_overflowing
def test_segments(store):
    segments = {number: os.urandom(number) for number in range(300)}
    store.open_job("job", segments)
    store.open_job("job", segments)
    assert store.load("job", [7, 0, 299, 7]) == [segments[7], b"", segments[299], segments[7]]
    assert store.load("job", []) == []
    with pytest.raises(ValueLost, match="segment 300 of job 'job'"):
        store.load("job", [7, 300, 301])


@also_overflowing
def test_objects_come_back_frame_by_frame(store):
    memory = memoryview(array.array("d", range(1_000)))
    values = [
        [b"tag", b"", bytearray(b"body")],
        [b"tag", memory, memory[::2], memoryview(b"")],
        [b"tag", memory.cast("B").cast("d", (10, 100))],
        [os.urandom(100_000), b"x" * 20_000],
    ]
    refs = store.put([(f"job/{i}/a/1", frames) for i, frames in enumerate(values)])
    assert [ref.nbytes for ref in refs] == [frames_nbytes(frames) for frames in values]
    for _ in range(2):
        got = store.get(refs)
        assert [[bytes(f) for f in frames] for frames in got] == [[bytes(f) for f in frames] for frames in values]
        assert store.put([(f"job/{i}/a/1", frames) for i, frames in enumerate(values)]) == refs
    assert store.get([]) == [] and store.put([]) == []


def test_a_value_above_the_limit_is_refused_before_anything_is_written(make_store, leftovers):
    store = make_store(object_bytes_max=MIB)
    frames = [b"tag", *[bytes(MIB)] * 3]
    limit = r"3,145,731 bytes is larger than 1,048,576 \(serverless.storage.object-bytes-max\)"
    with pytest.raises(ValueTooLarge, match=limit):
        store.put([("job/1/a/1", [b"tag"]), ("job/2/a/1", frames)])
    assert not leftovers(store)


@pytest.mark.fault(23)
def test_missing_values_are_named(store):
    refs = store.put([(f"job/{i}/a/1", [b"tag", b"body"]) for i in range(4)])
    store.free(refs[1:3])
    with pytest.raises(ValueLost, match="'job/1/a/1'"):
        store.get(refs)
    with pytest.raises(ValueLost):
        store.get([refs[0]._replace(nbytes=8)])  # not what was written
    with pytest.raises(ValueLost):
        store.get([refs[0]._replace(stripes=2)])
    with pytest.raises(ValueError):
        store.put([("job/1/a/1", [])])


# Slices of shuffles


@also_overflowing
def test_slices_come_back_by_output_partition(store):
    opened(store)
    memory = memoryview(array.array("d", range(10_000)))
    first = {target: [b"tag", b"from 0 to %d" % target] for target in range(50)}
    second = {3: [b"tag", b"", memory, bytes(20_000)], 7: [b"tag", memory[::2]]}
    store.put_slices("job", "0a1b", 0, first)
    store.put_slices("job", "0a1b", 11, second)
    store.put_slices("job", "another", 0, {3: [b"other"]})
    store.put_slices("job", "0a1b", 12, {})
    for target, sources in ((3, {0: first, 11: second}), (7, {0: first, 11: second}), (8, {0: first})):
        expected = {source: [bytes(frame) for frame in slices[target]] for source, slices in sources.items()}
        found = store.get_slices("job", "0a1b", target, 1_000)
        assert {source: [bytes(frame) for frame in frames] for source, frames in found.items()} == expected
    assert store.get_slices("job", "0a1b", 50, 1_000) == {}
    assert store.get_slices("other", "0a1b", 3, 1_000) == {}


@also_overflowing
def test_slices_that_come_too_late_do_not_stay(store, leftovers):
    opened(store)
    store.put_slices("job", "0a1b", 0, {target: [b"tag"] for target in range(10)})
    store.cancel("job")
    store.put_slices("job", "0a1b", 1, {target: [b"tag"] for target in range(10)})
    store.close_job("job", [])
    assert not leftovers(store)
    store.put_slices("job", "0a1b", 2, {target: [b"tag"] for target in range(10)})
    assert not leftovers(store)


@also_overflowing
def test_writing_a_slice_again_replaces_it(store):
    opened(store)
    store.put_slices("job", "0a1b", 0, {1: [b"tag", bytes(20_000), bytes(30_000)], 2: [b"tag"]})
    for _ in range(2):
        store.put_slices("job", "0a1b", 0, {1: [b"tag", b"again"]})
    store.put_slices("job", "0a1b", 4, {1: [b"tag", b"beside"]})
    found = {0: [b"tag", b"again"], 4: [b"tag", b"beside"]}
    assert store.get_slices("job", "0a1b", 1, 1_000) == found
    assert store.get_slices("job", "0a1b", 2, 1_000) == {0: [b"tag"]}


def test_a_slice_above_the_limit_is_refused_before_anything_is_written(make_store, leftovers):
    store = make_store(object_bytes_max=1_000)
    with pytest.raises(ValueTooLarge, match=r"partition 3 has for partition 1 of shuffle 0a1b \(1,001 bytes\)"):
        store.put_slices("job", "0a1b", 3, {0: [b"tag"], 1: [bytes(1_001)]})
    assert not leftovers(store)


# Configuration


def test_notes_are_kept_by_name_for_whoever_comes_next(make_store, leftovers):
    first = make_store()
    assert first.noted() == {}
    first.note({"job:j1": b"one", "job:j2": b"two"})
    first.note({"job:j1": b"another", "dataset": bytes(range(256))})
    first.note({})  # renews their time to live, and no more
    second = make_store()
    assert second.noted() == {"job:j1": b"another", "job:j2": b"two", "dataset": bytes(range(256))}
    for _ in range(2):  # to be repeated
        second.strike(["job:j2", "dataset", "nothing"])
        assert first.noted() == {"job:j1": b"another"}
    first.strike([])
    first.strike(["job:j1"])
    assert first.noted() == {}
    assert leftovers(first) == []


@also_overflowing
def test_what_was_lost_or_spoiled_is_written_again(make_store):
    store = make_store()
    refs = store.put([("outfit/1", [b"tag", b"one"]), ("outfit/2", [b"tag", b"two"])])
    store.free([refs[0]])
    for _ in range(2):
        store.put_again([(refs[0], [b"tag", b"one"]), (refs[1], [b"tag", b"new"])])
        assert make_store().get(refs) == [[b"tag", b"one"], [b"tag", b"new"]]
    with pytest.raises(ValueError, match=r"'outfit/1' had 6 bytes, and cannot be written with another size"):
        store.put_again([(refs[0], [b"tag", b"longer"])])
    store.put_again([])


@also_overflowing
def test_what_is_kept_is_read_and_removed_like_anything_else(make_store):
    store = make_store()
    (ref, other) = store.keep([("exports/1", [b"tag", b"one"]), ("exports/2", [b"tag", b"two"])])
    assert make_store().get([other, ref]) == [[b"tag", b"two"], [b"tag", b"one"]]
    assert store.missing([ref, other]) == []
    store.free([ref])
    assert store.missing([ref, other]) == [ref]
