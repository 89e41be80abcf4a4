"""The promises of `lambda_worker.ports.Store` and `JobStore`, one by one, on real servers.

A test reads as a story: executors ``a``, ``b``, ... of job ``job`` arrive at children (numbers from 100) for parents
(small numbers); values tell who brought them.
"""

import array
import itertools
import os
import threading
import time
from dataclasses import replace

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fargate_storage.client import RedisStore, StoreConfig
from fargate_storage.client.endpoint import PIECE_BYTES_MAX, pack_commands
from fargate_storage.client.keys import Keys
from fargate_storage.service import LocalTier
from lambda_worker.core.errors import StoreFull, StoreUnavailable, ValueLost, ValueTooLarge
from lambda_worker.core.schedule import Assignment
from lambda_worker.core.wire import Ref, frames_nbytes
from lambda_worker.ports import Arrival, Claim, Lapsed, Reply, Standing, Succession, Verdict

OK, FENCED, CANCELLED = Standing.OK, Standing.FENCED, Standing.CANCELLED
WAIT, YOURS, TAKEN, DONE = Verdict.WAIT, Verdict.YOURS, Verdict.TAKEN, Verdict.DONE
MIB = 2**20


def record(executor, attempt=1, starts=(0,), job="job", **fields):
    return Assignment(job, executor, attempt, list(starts), hint=[], **fields)


def edge(child, parent, parents, value=b"value"):
    return Arrival(child, parent, parents, value)


def opened(store, *executors, job="job"):
    """Open a job with one record for each executor."""
    store.open_job(job, {0: b"segment"})
    assert store.admit([record(executor, job=job) for executor in executors], 1_000) == len(executors)


def verdicts(reply):
    return [(claim.child, claim.verdict) for claim in reply.claims]


def eventually(condition, seconds=5.0):
    """Return what `condition` returns as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "did not happen in time"
        threading.Event().wait(0.005)
    return result


def connections(store):
    """Return one raw connection to each server, to look behind the store."""
    config = store.config
    return [redis.Redis.from_url(url, password=config.password) for url in (config.metadata, *config.shards)]


def keys_of(store):
    """Return all keys of the store's cluster, with their time to live."""
    return {
        key.decode(): server.ttl(key)
        for server in connections(store)
        for key in server.scan_iter(f"{store.config.cluster}:*")
    }


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


def test_a_fan_in_of_100_000_edges_is_linear(store):
    opened(store, "a", "b")
    seconds = []
    for first in range(0, 100_000, 10_000):
        start = time.perf_counter()
        reply = store.arrive("job", "a", 1, [edge(100, p, 100_000) for p in range(first, first + 10_000)])
        seconds.append(time.perf_counter() - start)
    assert len(reply.claims[0].values) == 100_000
    # Edges that came last may not cost (much) more than those that came first; the last call also reads all values.
    assert min(seconds[5:9]) < 5 * max(seconds[:4])
    assert store.arrive("job", "a", 1, retire=True).retired


def test_many_children_in_one_call(store):
    opened(store, "a")
    before = store.counters()["round_trips"]
    reply = store.arrive("job", "a", 1, [edge(child, 1, 1) for child in range(20_000)])
    assert {claim.verdict for claim in reply.claims} == {YOURS}
    assert store.arrive("job", "a", 1, retire=True).retired  # more claims than Lua can unpack
    assert store.counters()["round_trips"] - before == 2
    opened(store, "b")
    assert verdicts(store.arrive("job", "b", 1, [edge(19_999, 1, 1)])) == [(19_999, DONE)]


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


def test_an_older_attempt_is_fenced_and_has_no_effect(store):
    opened(store, "a", "b")
    store.admit([record("a", 2)], 1_000)
    assert store.arrive("job", "a", 1, [edge(100, 1, 1)], b"events", retire=True) == Reply(FENCED)
    assert store.delegate("job", "a", 1, [record("a.1")], 1_000) == 0
    assert store.beat([("job", "a", 1, 5), ("job", "a", 2, 5)]) == [FENCED, OK]
    assert verdicts(store.arrive("job", "b", 1, [edge(100, 1, 1)])) == [(100, YOURS)]
    assert store.listen(0) == []
    assert store.recall("job", "a.1") is None


def test_a_newer_attempt_than_the_record_knows_fences_the_older(store):
    opened(store, "a")
    assert store.beat([("job", "a", 2, -1), ("job", "a", 1, -1)]) == [OK, FENCED]


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


def test_a_lease_lapses_by_store_time_and_is_renewed_by_any_step(make_store):
    store = make_store(lease_seconds=0.05)
    patient = make_store(lease_seconds=60)
    opened(store, "a", "b")
    assert store.beat([("job", "a", 1, 7)]) == [OK]
    assert patient.beat([("job", "b", 1, -1)]) == [OK]
    assert eventually(store.lapsed) == [Lapsed("job", "a", 1, 7)]
    assert store.lapsed() == [Lapsed("job", "a", 1, 7)]  # they stay until they are dropped
    assert patient.arrive("job", "a", 1).standing is OK
    assert store.lapsed() == []
    store.arrive("job", "a", 1)
    eventually(store.lapsed)
    assert patient.delegate("job", "a", 1, [], 0) == 0  # nothing to create, nothing done
    assert patient.admit([record("a", 2)], 0) == 1
    assert store.lapsed() == []
    assert store.beat([("job", "a", 2, 3)]) == [OK]
    assert eventually(store.lapsed) == [Lapsed("job", "a", 2, 3)]
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


def test_unknown_and_closed_jobs_admit_none(store):
    assert store.admit([record("a")], 10) == 0
    opened(store, "a")
    store.close_job("job", [])
    assert store.admit([record("a")], 10) == 0
    store.cancel("job")
    assert keys_of(store) == {}


def test_close_job_leaves_no_key_but_kept_objects(make_store):
    store = make_store(stripe_bytes=1_000)
    opened(store, "a", "b")
    store.arrive("job", "a", 1, [edge(100, 1, 2), edge(101, 1, 1), edge(102, 1, 1)])
    store.delegate("job", "a", 1, [record("a.1")], 10)
    store.drop("job", "b")
    refs = store.put([(f"job/{i}/a/1", [b"tag", b"x" * 1_500]) for i in range(600)])
    others = store.put([("other/1/a/1", [b"tag"])])
    store.put_slices("job", "0a1b", 0, {target: [b"tag"] for target in range(700)})
    store.close_job("job", refs[:2])
    store.close_job("job", refs[:2])
    assert len(store.get(refs[:2] + others)) == 3
    for lost in refs[2:4]:
        with pytest.raises(ValueLost, match=lost.name):
            store.get([lost])
    keys = Keys(store.config.cluster)
    kept = {keys.of_object(ref.name, stripe) for ref in refs[:2] for stripe in range(2)}
    assert set(keys_of(store)) == kept | {keys.of_object("other/1/a/1"), keys.of_job("other", "objects")}
    assert store.beat([("job", "a", 1, -1)]) == [FENCED]
    store.free(refs[:2] + others)
    store.free(others)
    assert keys_of(store) == {}


def test_touch_renews_the_time_to_live_of_every_stripe(make_store):
    store = make_store(stripe_bytes=1_000, ttl_seconds=1_000)
    (ref,) = store.put([("job/1/a/1", [b"tag", b"x" * 2_500])])
    longer = make_store(stripe_bytes=1_000, ttl_seconds=100_000)
    assert ref.stripes == 3
    longer.touch([ref])
    lives = {key: ttl for key, ttl in keys_of(store).items() if "object" not in key.rpartition(":")[2]}
    assert [ttl for key, ttl in lives.items()] and all(ttl > 1_000 for ttl in lives.values())
    store.touch([Ref("job/9/a/1", 0, 1)])  # nothing there: nothing happens


def test_a_large_job_is_removed_in_steps(store):
    names = [f"e{i}" for i in range(2_500)]
    store.open_job("job", {})
    assert store.admit([record(name) for name in names], 5_000) == 2_500
    store.arrive("job", "e0", 1, [edge(child, 1, 2) for child in range(2_500)])
    before = store.counters()["round_trips"]
    store.cancel("job")
    store.close_job("job", [])
    assert keys_of(store) == {}
    assert store.counters()["round_trips"] - before < 20


def test_every_key_has_a_time_to_live(make_store):
    store = make_store(ttl_seconds=1_000, stripe_bytes=1_000)
    opened(store, "a", "b")
    store.arrive("job", "a", 1, [edge(100, 1, 2), edge(101, 1, 1)], b"events")
    store.delegate("job", "a", 1, [record("a.1")], 10)
    store.put([("job/1/a/1", [b"x" * 2_500])])
    opened(store, job="job-2")
    store.put_slices("job-2", "0a1b", 0, {target: [b"tag"] for target in range(10)})
    store.beat([("job", "b", 1, 1)])
    store.arrive("job", "b", 1, retire=True)
    store.arrive("job", "a.1", 1, [edge(102, 1, 1)], b"events")  # the last step makes keys, too
    keys = keys_of(store)
    assert len(keys) >= 15
    assert all(900 < ttl <= 1_000 for ttl in keys.values()), keys


def test_a_job_in_use_outlives_its_first_time_to_live(make_store):
    short, long = make_store(ttl_seconds=100), make_store(ttl_seconds=10_000)
    opened(short, "a")
    (ref,) = short.put([("job/1/a/1", [b"tag"])])
    short.arrive("job", "a", 1, [edge(101, 1, 1), edge(100, 1, 2)])
    long.beat([("job", "a", 1, -1)])
    long.load("job", [0])
    long.get([ref])
    old = {key for key, ttl in keys_of(short).items() if ttl <= 100}
    # Fan-ins are renewed by arrivals, and the list of objects by writes.
    assert {key.rpartition("}:")[2] for key in old} == {"fan-in:100", "fan-in:101", "objects"}


def test_usage_and_counters(store):
    before, at_first = store.usage(), store.counters()
    assert before.keys() == {"store_keys", "store_bytes"}
    (ref,) = store.put([("job/1/a/1", [b"tag", b"x" * 1_000])])
    store.get([ref])
    assert store.usage()["store_keys"] == before["store_keys"] + 2
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


def test_a_repeated_call_publishes_its_events_once(store):
    opened(store, "a")
    for _ in range(2):
        store.arrive("job", "a", 1, [edge(100, 1, 2)], b"events")
    store.arrive("job", "a", 1, [edge(100, 2, 2)], b"events")
    store.arrive("job", "a", 2, [edge(100, 2, 2)], b"events")
    assert [attempt for _, _, attempt, _ in store.listen(0)] == [1, 1, 2]


def test_listen_wakes_up_for_an_event_and_ends_without(make_store):
    writer, reader = make_store(), make_store(wait_seconds=0.4)
    opened(writer, "a")
    heard = []
    thread = threading.Thread(target=lambda: heard.extend(reader.listen(30)))
    thread.start()
    server = connections(reader)[0]
    eventually(lambda: any(client["cmd"] == "xread" and "b" in client["flags"] for client in server.client_list()))
    writer.arrive("job", "a", 1, events=b"news")
    thread.join(10)
    assert heard == [("job", "a", 1, b"news")]
    start = time.monotonic()
    assert reader.listen(0.3) == []  # longer than one wait at the server
    assert 0.3 <= time.monotonic() - start < 2


def test_closing_ends_a_listener_and_refuses_further_use(store):
    heard = []
    thread = threading.Thread(target=lambda: heard.append(store.listen(30)))
    thread.start()
    server = connections(store)[0]
    eventually(lambda: any(client["cmd"] == "xread" and "b" in client["flags"] for client in server.client_list()))
    store.close()
    thread.join(10)
    assert heard == [[]]
    with pytest.raises(StoreUnavailable, match="closed by this side"):
        store.beat([("job", "a", 1, -1)])
    store.close()


def test_a_large_backlog_comes_in_bounded_batches(store):
    opened(store, "a")
    for number in range(2_300):
        store.arrive("job", "a", 1, events=b"%d" % number)
    batches = [store.listen(0) for _ in range(4)]
    assert [len(batch) for batch in batches] == [1_000, 1_000, 300, 0]
    assert [int(event) for batch in batches for *_, event in batch] == list(range(2_300))


# Segments and objects


def test_segments(store):
    segments = {number: os.urandom(number) for number in range(300)}
    store.open_job("job", segments)
    store.open_job("job", segments)
    assert store.load("job", [7, 0, 299, 7]) == [segments[7], b"", segments[299], segments[7]]
    assert store.load("job", []) == []
    with pytest.raises(ValueLost, match="segment 300 of job 'job'"):
        store.load("job", [7, 300, 301])


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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=8), stripe_bytes=st.integers(1, 30))
def test_stripes_give_back_what_was_cut(make_store, lengths, stripe_bytes):
    store = make_store(stripe_bytes=stripe_bytes)
    frames = [os.urandom(length) for length in lengths]
    refs = store.put([("job/1/a/1", frames), ("job/2/a/1", frames)])
    assert refs[0].stripes == max(1, -(-sum(lengths) // stripe_bytes))
    assert store.get(refs) == [frames, frames]
    store.close()


def test_a_value_of_100_mib(store):
    frames = [b"tag", bytes(50 * MIB), os.urandom(MIB) * 50]
    (ref,) = store.put([("job/1/a/1", frames)])
    assert ref.stripes == 2
    assert store.get([ref]) == [frames]
    store.free([ref])


def test_a_value_above_the_limit_is_refused_before_anything_is_written(make_store):
    store = make_store(object_bytes_max=MIB)
    frames = [b"tag", *[bytes(MIB)] * 3]
    limit = r"3,145,731 bytes is larger than 1,048,576 \(serverless.storage.object-bytes-max\)"
    with pytest.raises(ValueTooLarge, match=limit):
        store.put([("job/1/a/1", [b"tag"]), ("job/2/a/1", frames)])
    assert keys_of(store) == {}


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


def test_what_is_not_a_stored_value_counts_as_lost(make_store):
    store = make_store(stripe_bytes=1_000)
    for stripes, size in ((1, 10), (2, 1_500)):
        (ref,) = store.put([("job/1/a/1", [b"x" * size])])
        assert ref.stripes == stripes
        key = Keys(store.config.cluster).of_object(ref.name)
        server = connections(store)[1 + ref.shard]
        server.delete(key)
        server.set(key, b"a string")
        with pytest.raises(ValueLost):
            store.get([ref])
        server.delete(key)
        server.rpush(key, b"not lengths", b"x" * 1_000)
        with pytest.raises(ValueLost):
            store.get([ref])


def test_many_values_take_few_round_trips(store):
    before = store.counters()["round_trips"]
    refs = store.put([(f"job/{i}/a/1", [b"tag", b"body"]) for i in range(400)])
    store.get(refs)
    assert store.counters()["round_trips"] - before == 4  # two shards, there and back


# Failures of the tier


# Slices of shuffles


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


def test_slices_that_come_too_late_do_not_stay(store):
    opened(store)
    store.put_slices("job", "0a1b", 0, {target: [b"tag"] for target in range(10)})
    store.cancel("job")
    store.put_slices("job", "0a1b", 1, {target: [b"tag"] for target in range(10)})
    store.close_job("job", [])
    assert keys_of(store) == {}
    store.put_slices("job", "0a1b", 2, {target: [b"tag"] for target in range(10)})
    assert keys_of(store) == {}


def test_writing_a_slice_again_replaces_it(store):
    opened(store)
    store.put_slices("job", "0a1b", 0, {1: [b"tag", bytes(20_000), bytes(30_000)], 2: [b"tag"]})
    for _ in range(2):
        store.put_slices("job", "0a1b", 0, {1: [b"tag", b"again"]})
    store.put_slices("job", "0a1b", 4, {1: [b"tag", b"beside"]})
    found = {0: [b"tag", b"again"], 4: [b"tag", b"beside"]}
    assert store.get_slices("job", "0a1b", 1, 1_000) == found
    assert store.get_slices("job", "0a1b", 2, 1_000) == {0: [b"tag"]}


def test_many_slices_take_one_round_trip_to_each_shard(store):
    opened(store)
    before = store.counters()
    store.put_slices("job", "0a1b", 0, {target: [b"tag", b"body"] for target in range(400)})
    after = store.counters()
    assert after["round_trips"] - before["round_trips"] == 3, "and one to ask whether the job is open"
    assert after["slices_written"] - before["slices_written"] == 400
    assert after["bytes_written"] - before["bytes_written"] == 400 * 7
    assert list(store.get_slices("job", "0a1b", 399, 7)) == [0]
    assert store.counters()["round_trips"] - after["round_trips"] == 1
    assert store.counters()["bytes_read"] - after["bytes_read"] == 7


def test_a_large_output_partition_is_read_in_bounded_steps(store, monkeypatch):
    opened(store)
    monkeypatch.setattr("fargate_storage.client.objects.BATCH_BYTES_MAX", 100_000)
    monkeypatch.setattr("fargate_storage.client.slices.BATCH_BYTES_MAX", 100_000)
    written = {source: [b"tag", os.urandom(30_000), b"%d" % source] for source in range(20)}
    for source, frames in written.items():
        store.put_slices("job", "0a1b", source, {5: frames})
    before = store.counters()["round_trips"]
    assert store.get_slices("job", "0a1b", 5, 20 * 30_000) == written
    assert store.counters()["round_trips"] - before == 2 + 7, "names, sizes, and three slices at a time"
    assert store.get_slices("job", "0a1b", 6, 20 * 30_000) == {}


def test_a_large_frame_is_cut_into_fields(store, monkeypatch):
    opened(store)
    monkeypatch.setattr("fargate_storage.client.slices.FIELD_BYTES_MAX", 30_000)
    frames = [b"tag", os.urandom(100_000), os.urandom(30_000), os.urandom(60_000)]
    store.put_slices("job", "0a1b", 3, {0: frames})
    assert store.get_slices("job", "0a1b", 0, 190_003) == {3: frames}


def test_slices_that_are_not_whole_are_lost(store):
    opened(store)
    store.put_slices("job", "0a1b", 3, {0: [b"tag", bytes(20_000)]})
    key = Keys(store.config.cluster).of_object("job/shuffle/0a1b/0")
    (server,) = [server for server in connections(store) if server.exists(key)]
    server.hdel(key, "3.1.0")
    with pytest.raises(ValueLost, match="'job/shuffle/0a1b/0' is not as it was written: frame 1"):
        store.get_slices("job", "0a1b", 0, 20_000)
    server.delete(key)
    server.set(key, b"a string")
    assert store.get_slices("job", "0a1b", 0, 20_000) == {}


def test_a_slice_above_the_limit_is_refused_before_anything_is_written(make_store):
    store = make_store(object_bytes_max=1_000)
    with pytest.raises(ValueTooLarge, match=r"partition 3 has for partition 1 of shuffle 0a1b \(1,001 bytes\)"):
        store.put_slices("job", "0a1b", 3, {0: [b"tag"], 1: [bytes(1_001)]})
    assert keys_of(store) == {}


def test_a_broken_connection_is_repaired_unseen(store):
    opened(store, "a")
    assert store.beat([("job", "a", 1, -1)]) == [OK]
    for server in connections(store):
        server.client_kill_filter(_type="normal", skipme=True)
    assert store.beat([("job", "a", 1, -1)]) == [OK]
    assert store.load("job", [0]) == [b"segment"]


def test_a_step_that_a_server_refuses_is_no_success(store):
    key = Keys(store.config.cluster).of_job("job", "objects")
    for server in connections(store)[1:]:
        server.set(key, b"not a set")
    with pytest.raises(StoreUnavailable, match="refused a step: WRONGTYPE"):
        store.put([("job/1/a/1", [b"tag"])])


def test_a_server_that_forgot_its_scripts_is_told_again(store):
    opened(store, "a")
    connections(store)[0].script_flush()
    assert store.beat([("job", "a", 1, -1)]) == [OK]


def test_large_values_are_sent_uncopied_in_pieces_that_pass_a_slow_link():
    value = bytes(3 * MIB)
    pieces = pack_commands([("RPUSH", "key", b"tag", value, b"end"), ("PING",)])
    assert max(map(len, pieces)) == PIECE_BYTES_MAX
    assert sum(isinstance(piece, memoryview) and piece.obj is value for piece in pieces) == 12
    head = b"*5\r\n$5\r\nRPUSH\r\n$3\r\nkey\r\n$3\r\ntag\r\n$3145728\r\n"
    assert b"".join(pieces) == head + value + b"\r\n$3\r\nend\r\n*1\r\n$4\r\nPING\r\n"


def test_a_blip_is_waited_for(tmp_path):
    with LocalTier() as tier:
        config = tier.config("test")
        path = config.metadata.removeprefix("unix://")
        hidden = str(tmp_path / "hidden")
        store = RedisStore(config)
        os.rename(path, hidden)  # nobody can connect
        timer = threading.Timer(0.3, os.rename, (hidden, path))
        timer.start()
        store.open_job("job", {})
        timer.join()
        store.close()


def test_a_dead_server_is_named_in_bounded_time():
    with LocalTier() as tier:
        store = RedisStore(tier.config("test"))
        opened(store, "a")
        (ref,) = store.put([("job/1/a/1", [b"tag"])])
        assert tier.alive()
        os.kill(tier.pids["shard-0"], 9)
        assert eventually(tier.poll) == ["shard-0"]
        start = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"shard 0 server at .*shard-0\.sock cannot be reached") as error:
            store.get([ref])
        assert time.monotonic() - start < 5
        assert store.config.password not in str(error.value)
        assert store.beat([("job", "a", 1, -1)]) == [OK]  # the metadata server still answers
        with pytest.raises(StoreUnavailable):
            store.ping()
        store.close()


def test_a_silent_server_is_given_up_in_bounded_time():
    with LocalTier() as tier:
        store = RedisStore(tier.config("test", wait_seconds=0.3, retry_seconds=0.2))
        store.ping()
        os.kill(tier.pids["metadata"], 19)  # SIGSTOP: connections stay, answers do not come
        start = time.monotonic()
        with pytest.raises(StoreUnavailable, match="metadata server"):
            store.beat([("job", "a", 1, -1)])
        assert time.monotonic() - start < 3
        store.close()


def test_a_full_shard_says_so_and_names_its_limit():
    with LocalTier(maxmemory_bytes=8 * MIB) as tier:
        store = RedisStore(tier.config("test"))
        with pytest.raises(StoreFull, match=r"shard 0 server at .* is full \(limit: 8,388,608 bytes\)"):
            for number in range(20):
                store.put([(f"job/{number}/a/1", [b"tag", bytes(MIB)])])
        store.close()


def test_a_full_metadata_server_still_lets_executors_beat_retire_and_be_cancelled():
    with LocalTier(metadata_bytes=8 * MIB) as tier:
        store = RedisStore(tier.config("test"))
        opened(store, "a", "b")
        with pytest.raises(StoreFull, match="metadata server"):
            for number in range(2_000):
                store.arrive("job", "a", 1, [edge(100 + number, 1, 2, bytes(10_000))])
        with pytest.raises(StoreFull):
            for number in range(2_000):
                store.admit([record(f"c{number}", given={0: bytes(10_000)})], 5_000)
        assert store.beat([("job", "a", 1, 5)]) == [OK]
        assert store.arrive("job", "b", 1, retire=True).retired
        store.cancel("job")
        store.close_job("job", [])
        opened(store, "d", job="next")
        store.close()


# Configuration


def test_config_travels_as_text_and_hides_the_password():
    config = StoreConfig("demo", "unix:///tmp/a", ("redis://h:1", "rediss://h:2"), "pass word", ttl_seconds=5)
    assert StoreConfig.from_json(config.to_json()) == config
    assert "pass word" not in repr(config)
    assert StoreConfig.from_json(config.to_json()[:-1] + ',"from_the_future":1}') == config
    with pytest.raises(ValueError):
        StoreConfig("demo", "redis://:secret@h:1")
    with pytest.raises(ValueError):
        replace(config, ttl_seconds=0)
