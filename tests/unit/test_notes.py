"""Notes for a successor: sealed, read back as they were meant, and gone when nobody needs them."""

from __future__ import annotations

import pickle

import pytest
from distributed.protocol import Serialized

from dask_serverless.dask_graph import plan_call
from dask_serverless.job_events import Done, Erred
from dask_serverless.notes import INLINE_BYTES_MAX, Data, JobNote, Notes
from dask_serverless.simulator.sim_store import SimStore
from dask_serverless.simulator.tier import Tier
from dask_serverless.submissions import Replan, Submission
from lambda_worker.core.schedule import Assignment
from lambda_worker.core.wire import Ref, events_name, pack, seal

pytestmark = pytest.mark.fault(25)
SECRET = b"secret"


@pytest.fixture
def store():
    return SimStore(Tier(lambda: 0.0))


@pytest.fixture
def notes(store):
    return Notes(store, SECRET, 1)


def job_note(key="x", nbytes=10, waits=False):
    submission = Submission(Serialized({"serializer": "pickle"}, [b"m" * nbytes]), frozenset({key}), {"retries": 1})
    again = Replan(submission, [key], {"other"}, ())
    return JobNote(plan_call(key, max, 1, 2), again, {0: b"segment"}, {b"digest": Ref("constants/1", 0, 5)}, waits)


def said(job, executor, *events):
    return (job, executor, 1, seal(SECRET, events_name(job, executor, 1), pack([1, list(events)])))


def value(task):
    return ["done", [[task, b"value", 5, b"type", "int", 0.0, 1.0]]]


@pytest.mark.parametrize("nbytes", [10, 2 * INLINE_BYTES_MAX])
def test_a_job_is_found_as_it_was_noted(store, notes, nbytes):
    notes.note_launch("j1", job_note(nbytes=nbytes), 1, {"1-0": [(0, None), (3, b"inline")], "1-1": [(4, None)]})
    notes.note_given("j1", 1, {"1-0": [(0, None), (3, b"inline")]}, {"1-0": "sandbox"})
    notes.note_error("j1", 7, b"error")
    store.open_job("j1", {})
    store.admit([Assignment("j1", "1-0", 1, [0, 3])], ceiling=8)
    found = Notes(store, SECRET, 1001).read()
    note, (past,) = found.jobs["j1"], found.pasts
    assert note.plan.keys == ["x"] and not note.plan.bodies
    assert (note.segments, note.constants) == ({0: b"segment"}, {b"digest": Ref("constants/1", 0, 5)})
    submission = note.again.submission
    assert (submission.nbytes, submission.keys, submission.annotations) == (nbytes, {"x"}, {"retries": 1})
    assert (list(note.again.wanted), set(note.again.outside)) == (["x"], {"other"})
    assert (past.given, past.recipients) == ({0: None, 3: b"inline"}, {"1-0": "sandbox"})
    assert past.executors == ["1-0"] and past.said == [Erred("j1", 7, b"error")]


@pytest.mark.fault(22)
def test_what_the_store_has_forgotten_is_noted_again(store, notes):
    notes.note_launch("j1", job_note(), 1, {"1-0": [(0, None)]})
    notes.note_given("j1", 1, {"1-0": [(0, None)]}, {})
    notes.note_heard([said("j1", "1-0", value(0))])
    notes.note_launch("j2", job_note("y"), 2, {"2-0": [(0, None)]})
    notes.end("j2")
    notes.let_go("y")
    notes.note_data([Data("scattered", 8, b"inline")])
    notes.note_data([Data("let go", 8, b"inline")])
    notes.let_go("let go")
    notes.flush()
    before = store.noted()
    store.tier.forget()
    assert store.noted() == {}
    notes.note_again()
    assert store.noted() == before
    data = [name for name in before if name.startswith("data:")]
    assert len(data) == 1 and {name.split(":")[1] for name in before.keys() - data} == {"j1"}
    # So does who has read it from its predecessor.
    another = Notes(store, SECRET, 1001)
    another.read()
    store.tier.forget()
    another.note_again()
    assert store.noted() == before


@pytest.mark.fault(22)
def test_what_is_struck_or_replaced_while_it_is_noted_again_stays_so(store, notes):
    """Another thread is faster, again and again."""

    def publish(name, key):
        notes.note_dataset(name, [key], Serialized({}, []))

    changes = [
        lambda: notes.strike_dataset("first"),
        lambda: publish("second", "new"),
        lambda: publish("first", "new"),
        lambda: notes.strike_dataset("second"),
    ]
    for name in ("first", "second", "third"):
        publish(name, "old")
    store.tier.forget()
    note = store.note

    def note_late(notes):
        if changes:
            store.note = note
            changes.pop(0)()
            store.note = note_late
        note(notes)

    store.note = note_late
    notes.note_again()
    assert not changes
    found = {data.name: data.keys for data in Notes(store, SECRET, 1001).read().datasets}
    assert found == {"first": ("new",), "third": ("old",)}


def test_what_executors_were_about_to_be_given_counts_if_they_have_it(store, notes):
    """1. It is noted; 2. some of the executors are admitted; 3. the proxy dies."""
    notes.note_launch("j1", job_note(), 1, {"1-0": [(0, None)], "1-1": [(1, None)]})
    store.open_job("j1", {})
    store.admit([Assignment("j1", "1-0", 1, [0])], ceiling=8)
    (past,) = Notes(store, SECRET, 1001).read().pasts
    assert past.given == {0: None}


def test_a_launch_that_found_no_room_leaves_no_note(store, notes):
    notes.note_launch("j1", job_note(), 1, {"1-0": [(0, None)]})
    notes.note_given("j1", 1, {}, {})
    assert list(store.noted()) == ["job:j1"]


def test_a_job_that_waits_is_found_and_has_no_past(store, notes):
    notes.note_waiting("j1", job_note(waits=True))
    found = Notes(store, SECRET, 1001).read()
    assert list(found.jobs) == ["j1"] and not found.pasts


def test_of_what_executors_say_only_what_matters_is_noted(store, notes):
    notes.note_launch("j1", job_note(), 1, {"1-0": [(0, None)]})
    heard = [
        said("j1", "1-0", ["count", {"tasks_run": 1}]),
        said("j1", "1-0", ["posted", [["sandbox", "1-0.1"]]]),
        said("j1", "1-0", value(0)),
        said("unknown", "1-0", value(0)),
        ("j1", "1-0", 1, b""),
        ("j1", "1-0", 1, b"forged" * 20),
    ]
    notes.note_heard(heard)
    assert sum(name.startswith("heard:") for name in store.noted()) == 2
    (past,) = Notes(store, SECRET, 1001).read().pasts
    assert [type(each) for each in past.said] == [Done] and past.recipients == {"1-0.1": "sandbox"}


def test_what_was_said_after_the_death_is_heard(store, notes):
    notes.note_launch("j1", job_note(), 1, {"1-0": [(0, None)]})
    store.open_job("j1", {})
    store.admit([Assignment("j1", "1-0", 1, [0])], ceiling=8)
    store.arrive("j1", "1-0", 1, events=said("j1", "1-0", value(0))[3], retire=True)
    successor = Notes(store, SECRET, 1001)
    found = successor.read()
    assert [type(each).__name__ for each in found.unheard] == ["Done", "Retired"]
    assert found.pasts[0].results().keys() == {0}
    assert Notes(store, SECRET, 2001).read().pasts[0].results().keys() == {0}  # and noted for the next one


def test_notes_go_when_the_job_is_over_and_no_key_is_held(store, notes):
    notes.note_launch("j1", job_note(nbytes=2 * INLINE_BYTES_MAX), 1, {"1-0": [(0, None)]})
    notes.note_heard([said("j1", "1-0", value(0))])
    assert not notes.end("j1")  # its key is held still
    notes.flush()
    assert len(store.noted()) == 3
    assert notes.let_go("x")
    notes.flush()
    assert store.noted() == {} and store.tier.keys() == []
    notes.note_given("j1", 1, {"1-0": [(0, None)]}, {})  # was on its way
    assert store.noted() == {}


def test_a_key_that_another_job_makes_now_is_that_ones(store, notes):
    notes.note_launch("j1", job_note(), 1, {"1-0": [(0, None)]})
    notes.end("j1")
    notes.note_launch("j2", job_note(), 2, {"2-0": [(0, None)]})
    notes.flush()
    assert sorted(store.noted()) == ["given:j2:2", "job:j2"]


def test_datasets_are_found_until_they_are_struck(store, notes):
    notes.note_dataset(("my", "data"), ["x", "y"], Serialized({"a": 1}, [b"frame"]))
    notes.note_dataset("other", ["z"], Serialized({}, []))
    notes.strike_dataset("other")
    (dataset,) = Notes(store, SECRET, 1001).read().datasets
    assert (dataset.name, dataset.keys, dataset.data.frames) == (("my", "data"), ("x", "y"), [b"frame"])


@pytest.mark.fault(24, 25)
def test_scattered_data_is_found_until_its_key_is_let_go(store, notes, caplog):
    stored, lost = store.keep([("exports/1", [b"tag"]), ("exports/2", [b"tag"])])
    for key, where in ((("x", 1), stored), ("small", b"inline"), ("gone", b"inline"), ("lost", lost)):
        notes.note_data([Data(key, 7, where)])
    assert notes.let_go("gone")
    notes.flush()
    assert not notes.let_go("never noted")
    store.free([lost])
    successor = Notes(store, SECRET, 1001)
    found = {data.key: data for data in successor.read().data}
    assert {key: data.location for key, data in found.items()} == {("x", 1): stored, "small": b"inline"}
    assert found["small"].nbytes == 7 and "'lost'" in caplog.text
    assert len(store.noted()) == 2
    for key in found:
        assert successor.let_go(key)
    successor.flush()
    assert store.noted() == {}


@pytest.mark.fault(24, 25)
def test_data_that_is_scattered_again_is_found(store, notes):
    """1. A key is let go; 2. it is scattered again; 3. what nobody needs any more is removed."""
    first, second = store.keep([("exports/1", [b"tag"]), ("exports/2", [b"tag"])])
    notes.note_data([Data("x", 7, first)])
    assert notes.let_go("x")
    notes.note_data([Data("x", 8, second)])
    notes.flush()
    (data,) = Notes(store, SECRET, 1001).read().data
    assert (data.location, data.nbytes) == (second, 8)
    assert notes.let_go("x")
    notes.flush()
    assert store.noted() == {}


@pytest.mark.fault(24, 25)
def test_of_two_notes_of_scattered_data_the_later_one_counts(store, notes):
    """A process has died before it had struck the one that it had replaced."""
    refs = store.keep([(f"exports/{n}", [b"tag"]) for n in range(9, 12)])  # numbers, and not letters, are compared
    for number, where in zip(range(9, 12), refs, strict=True):
        Notes(store, SECRET, number).note_data([Data("x", 7, where)])
    (data,) = Notes(store, SECRET, 1001).read().data
    assert data.location == refs[-1]
    assert len(store.noted()) == 1 and store.missing(refs) == refs[:-1]


class Trap:
    sprung = False

    def __reduce__(self):
        return setattr, (Trap, "sprung", True)


@pytest.mark.fault(31, 42)
def test_nothing_foreign_is_unpickled(store, notes, caplog):
    forged = seal(b"another secret", "job:j1", pack([None, pickle.dumps(Trap())]))
    store.note(
        {"job:j1": forged, "dataset:1": forged, "data:1": forged, "heard:j2:1": forged, "given:j3:1": b"nothing"}
    )
    moved = seal(SECRET, "job:j8", pack([None, pickle.dumps(Trap())]))  # ours, but under another name
    store.note({"job:j9": moved})
    found = Notes(store, SECRET, 1001).read()
    assert not found.jobs and not found.datasets and not found.data and not Trap.sprung
    assert "j1" in caplog.text and "j9" in caplog.text


def test_a_note_that_cannot_be_unpickled_costs_its_own_job_only(store, notes, caplog):
    notes.note_launch("j1", job_note(), 1, {"1-0": [(0, None)]})
    store.note({"job:j2": seal(SECRET, "job:j2", pack([None, b"cno_such_module\nname\n."]))})
    assert list(Notes(store, SECRET, 1001).read().jobs) == ["j1"]
    assert "job j2, which another process had begun, cannot be resumed" in caplog.text
