"""Asking for a child whose other parents may have arrived: `lambda_worker.ports.Store.arrive` without a value."""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lambda_worker.core.schedule import Assignment
from lambda_worker.core.verdicts import Standing, Verdict
from lambda_worker.ports import Arrival

WAIT, YOURS, TAKEN, DONE = Verdict.WAIT, Verdict.YOURS, Verdict.TAKEN, Verdict.DONE


def edge(child, parent, parents, value=b"value"):
    return Arrival(child, parent, parents, value)


def ask(child, parent, parents):
    return Arrival(child, parent, parents, None)


def opened(store, *executors):
    store.open_job("job", {0: b"segment"})
    records = [Assignment("job", executor, 1, [0], hint=[]) for executor in executors]
    assert store.admit(records, 1_000) == len(executors)


def verdicts(reply):
    return [(claim.child, claim.verdict) for claim in reply.claims]


def test_who_asks_too_early_leaves_no_trace(store):
    opened(store, "a", "b")
    assert verdicts(store.arrive("job", "a", 1, [ask(100, 1, 2)])) == [(100, WAIT)]
    # Had the edge been set, this would be the last one.
    assert verdicts(store.arrive("job", "b", 1, [edge(100, 2, 2)])) == [(100, WAIT)]


def test_who_asks_when_all_others_are_there_wins_with_their_values(store):
    opened(store, "a", "b")
    store.arrive("job", "b", 1, [edge(100, 2, 3, b"two")])
    (claim,) = store.arrive("job", "a", 1, [ask(100, 1, 3), ask(100, 3, 3)]).claims
    assert (claim.verdict, claim.values) == (YOURS, {2: b"two"})
    (again,) = store.arrive("job", "a", 1, [ask(100, 1, 3), ask(100, 3, 3)]).claims
    assert again == claim
    assert verdicts(store.arrive("job", "b", 1, [edge(100, 2, 3)])) == [(100, TAKEN)]
    assert not store.arrive("job", "a", 1, [ask(100, 1, 3)], retire=True).retired, (
        "it hears first that the child is its"
    )
    assert store.arrive("job", "a", 1, retire=True).retired
    assert verdicts(store.arrive("job", "b", 1, [edge(100, 2, 3), ask(101, 9, 2)])) == [(100, DONE), (101, WAIT)]


def test_an_edge_that_is_there_already_does_not_count_twice(store):
    opened(store, "a")
    store.arrive("job", "a", 1, [edge(100, 1, 2)])
    assert verdicts(store.arrive("job", "a", 1, [ask(100, 1, 2)])) == [(100, WAIT)]


def test_whoever_gives_up_waiting_arrives_like_others(store):
    opened(store, "a", "b")
    store.arrive("job", "a", 1, [ask(100, 1, 2)])
    assert verdicts(store.arrive("job", "a", 1, [edge(100, 1, 2, b"one")])) == [(100, WAIT)]
    (claim,) = store.arrive("job", "b", 1, [ask(100, 2, 2)]).claims
    assert (claim.verdict, claim.values) == (YOURS, {1: b"one"})


def test_a_child_won_by_asking_is_arrived_at_again_after_a_death(store):
    opened(store, "a", "b")
    store.arrive("job", "b", 1, [edge(100, 2, 2, b"two"), edge(101, 2, 2, b"two")])
    assert verdicts(store.arrive("job", "a", 1, [ask(100, 1, 2), edge(101, 1, 2, b"one")])) == [
        (100, YOURS),
        (101, YOURS),
    ]
    again = store.recall("job", "a")
    assert again.claims == {101: {1: b"one", 2: b"two"}}, "the value for 100 has died with the executor"
    assert store.recall("job", "a") == again
    opened_again = Assignment("job", "a", 2, [0], hint=[], claims=again.claims)
    assert store.admit([opened_again], None) == 1
    (claim,) = store.arrive("job", "a", 2, [ask(100, 1, 2)]).claims
    assert (claim.verdict, claim.values) == (YOURS, {2: b"two"})
    # Or somebody else computes the parent, if the new attempt has given it away.
    store.recall("job", "a")
    (claim,) = store.arrive("job", "b", 1, [edge(100, 1, 2, b"one")]).claims
    assert (claim.verdict, claim.values) == (YOURS, {1: b"one", 2: b"two"})


def test_who_is_fenced_wins_nothing_by_asking(store):
    opened(store, "a", "b")
    store.arrive("job", "b", 1, [edge(100, 2, 2)])
    store.admit([Assignment("job", "a", 2, [0], hint=[])], None)
    assert store.arrive("job", "a", 1, [ask(100, 1, 2)]).standing is Standing.FENCED
    assert verdicts(store.arrive("job", "a", 2, [ask(100, 1, 2)])) == [(100, YOURS)]


jobs = itertools.count()


@pytest.mark.fault(8)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_in_any_order_one_wins_and_nobody_is_left_waiting(store, data):
    """Any number of executors ask and arrive, and in the end all arrive: exactly one owns the child."""
    job = f"asks-{next(jobs)}"
    parents = data.draw(st.integers(2, 5))
    store.open_job(job, {})
    store.admit([Assignment(job, str(n), 1, [n], hint=[]) for n in range(parents)], None)
    asks = data.draw(st.lists(st.integers(0, parents - 1), max_size=12))
    arrivals = data.draw(st.permutations(range(parents)))
    calls = [("ask", n) for n in asks] + [("arrive", n) for n in arrivals]
    owners, arrived, held = set(), set(), set()
    for kind, n in data.draw(st.permutations(calls)):
        value = None if kind == "ask" else b"%d" % n
        (claim,) = store.arrive(job, str(n), 1, [Arrival(7, n, parents, value)]).claims
        if kind == "arrive" and claim.verdict is WAIT:
            arrived.add(n)
        if claim.verdict is YOURS:
            owners.add(n)
            if kind == "ask" and n not in arrived:
                held.add(n)
            assert claim.values.keys() | held == set(range(parents))
            assert all(value == b"%d" % parent for parent, value in claim.values.items())
    assert len(owners) == 1
    store.close_job(job, [])
