"""What executors wear: which changes follow from what, and what is never sent."""

from __future__ import annotations

import asyncio
import pickle
from types import SimpleNamespace

import dask.config
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_serverless import outfit as tailoring
from dask_serverless.outfit import Tailor, name_of_run, to_send
from lambda_worker.core.errors import Tampered
from lambda_worker.core.outfit import KINDS, Outfit, Piece, changes
from lambda_worker.core.wire import Ref
from lambda_worker.wardrobe import Wardrobe

SECRET = b"secret"


def piece(kind, name, serial=1):
    return Piece(kind, name, serial, b"")


def test_nothing_changes_for_what_is_worn():
    wanted = Outfit(3, (piece("worker", "a", 1), piece("nanny", "a", 2)))
    assert changes({("worker", "a"): 1, ("nanny", "a"): 2}, wanted) == ([], [])


def test_what_was_registered_anew_is_taken_off_and_put_on():
    wanted = Outfit(3, (piece("worker", "a", 1), piece("worker", "b", 4)))
    assert changes({("worker", "a"): 1, ("worker", "b"): 2, ("run", "c"): 3}, wanted) == (
        [("worker", "b"), ("run", "c")],
        [piece("worker", "b", 4)],
    )


def test_kinds_are_put_on_in_their_order_and_pieces_in_that_of_registration():
    pieces = [piece("run", "r"), piece("worker", "b"), piece("nanny", "n"), piece("worker", "a"), piece("config", "c")]
    assert [each.name for each in changes({}, Outfit(1, tuple(pieces)))[1]] == ["c", "n", "b", "a", "r"]


slots = st.dictionaries(st.tuples(st.sampled_from(KINDS), st.sampled_from("abcd")), st.integers(1, 3))


@given(slots, slots)
def test_after_the_changes_exactly_the_wanted_is_worn(worn, wanted):
    worn = dict(worn)
    outfit = Outfit(1, tuple(Piece(kind, name, serial, b"") for (kind, name), serial in wanted.items()))
    off, on = changes(worn, outfit)
    for slot in off:
        del worn[slot]
    for each in on:
        assert each.slot not in worn
        worn[each.slot] = each.serial
    assert worn == wanted
    assert changes(worn, outfit) == ([], [])


def test_an_outfit_travels():
    outfit = Outfit(7, (Piece("worker", "a", 1, b"inline"), Piece("run", "b", 2, Ref("outfit/piece-2", 1, 10, 2))))
    assert Outfit.from_bytes(outfit.to_bytes()) == outfit


@pytest.mark.parametrize(
    "key",
    [
        "serverless.lambda.memory",
        "distributed.comm.tls.ca-file",
        "distributed.comm.require-encryption",
        "distributed.scheduler.work-stealing",
        "temporary-directory",
        "mine.api-key",
        "mine.secrets.of_the_house",
        "mine.access_token",
        "mine.password",
    ],
)
def test_secrets_and_what_is_this_process_own_are_not_sent(key):
    with dask.config.set({key: "canary"}):
        assert "canary" not in str(to_send(dask.config.config, {}))


def test_what_differs_from_the_defaults_is_sent():
    defaults = {"tokenize": {"ensure-deterministic": False}, "array": {"rechunk": {"method": None, "threshold": 4}}}
    config = {"tokenize": {"ensure_deterministic": True}, "array": {"rechunk": {"method": "tasks", "threshold": 4}}}
    assert to_send(config, defaults) == {
        "tokenize": {"ensure_deterministic": True},
        "array": {"rechunk": {"method": "tasks"}},
    }


def test_what_cannot_be_pickled_is_not_sent():
    assert to_send({"mine": {"lock": (each for each in ()), "good": 1}}, {}) == {"mine": {"good": 1}}


class Objects:
    """A store of objects, and no more."""

    def __init__(self):
        self.objects = {}
        self.gets = 0
        self.room_at = 0  # what is put goes there

    def put(self, objects):
        refs = [Ref(name, self.room_at, 1) for name, _ in objects]
        self.put_again([(ref, frames) for ref, (_, frames) in zip(refs, objects, strict=True)])
        return refs

    def put_again(self, objects):
        self.objects.update((ref, [bytes(frame) for frame in frames]) for ref, frames in objects)

    def get(self, refs):
        self.gets += 1
        return [self.objects[ref] for ref in refs]


class Worker:
    """Says what it puts on and takes off; what is called "bad" fails."""

    def __init__(self):
        self.said = []

    def put_on(self, kind, name, body):
        self.said.append(("+", kind, name, body))
        return ValueError(name) if name == "bad" else None

    def take_off(self, kind, name):
        self.said.append(("-", kind, name))


@pytest.fixture
def house():
    scheduler = SimpleNamespace(worker_plugins={}, nanny_plugins={})
    store, worker = Objects(), Worker()

    async def call(function, *args):
        return function(*args)

    tailor = Tailor(scheduler, store, SECRET, call)  # type: ignore[arg-type]
    wardrobe = Wardrobe(store, SECRET, worker)  # type: ignore[arg-type]
    return SimpleNamespace(scheduler=scheduler, store=store, worker=worker, tailor=tailor, wardrobe=wardrobe)


def register(house, kind, name, body):
    getattr(house.scheduler, f"{kind}_plugins")[name] = body
    asyncio.run(house.tailor.note_plugin(kind, name))


def said(house):
    if house.tailor.current is not None:
        house.wardrobe.wear(*house.tailor.current)
    found, house.worker.said = house.worker.said, []
    return found


def test_nothing_to_wear_costs_nothing(house):
    asyncio.run(house.tailor.note_plugin("worker", "never was"))
    assert house.tailor.current is None and house.tailor.refs() == []


def test_an_executor_wears_what_the_scheduler_has(house):
    register(house, "worker", "a", b"A")
    register(house, "nanny", "n", b"N" * (tailoring.INLINE_BYTES_MAX + 1))
    assert [each[:3] for each in said(house)] == [("+", "nanny", "n"), ("+", "worker", "a")]
    register(house, "worker", "a", b"A")  # the same once more is set up once more, as in Dask
    assert said(house) == [("-", "worker", "a"), ("+", "worker", "a", b"A")]
    del house.scheduler.worker_plugins["a"]
    asyncio.run(house.tailor.note_plugin("worker", "a"))
    assert said(house) == [("-", "worker", "a")]
    assert [ref.name for ref in house.tailor.refs()] == ["outfit/piece-2", "outfit/4"]


def test_what_is_worn_is_read_once(house):
    register(house, "worker", "a", b"A")
    said(house)
    assert house.store.gets == 1
    assert said(house) == [] and house.store.gets == 1


@pytest.mark.fault(17)
def test_what_was_lost_is_stored_again_where_executors_look(house):
    register(house, "worker", "plugin", b"A" * (tailoring.INLINE_BYTES_MAX + 1))
    before = dict(house.store.objects)
    house.store.objects.clear()
    house.store.room_at = -1  # whatever has room by now
    asyncio.run(house.tailor.restore())
    assert house.store.objects == before


def test_an_older_version_changes_nothing(house):
    register(house, "worker", "a", b"A")
    older = house.tailor.current
    register(house, "worker", "b", b"B")
    said(house)
    house.wardrobe.wear(*older)
    assert house.worker.said == [] and house.wardrobe.version == 2


def test_a_failure_is_kept_for_who_asks_until_it_is_put_on_anew(house, caplog):
    register(house, "worker", "bad", b"")
    said(house)
    assert isinstance(house.wardrobe.failures["worker", "bad"], ValueError)
    assert "worker plugin bad failed in an executor" in caplog.text
    del house.scheduler.worker_plugins["bad"]
    asyncio.run(house.tailor.note_plugin("worker", "bad"))
    said(house)
    assert house.wardrobe.failures == {}


def test_what_run_did_is_repeated_by_others_and_forgotten_with_a_restart(house):
    call = (b"function", b"args", b"")
    asyncio.run(house.tailor.note_run("one", call, house.tailor.next_serial()))
    assert said(house) == [("+", "run", "one", pickle.dumps(call, protocol=5))]
    fresh = Wardrobe(house.store, SECRET, house.worker)
    fresh.worn["run", "one"] = 1  # it has made the call itself
    fresh.wear(*house.tailor.current)
    assert house.worker.said == []
    house.tailor.forget_runs()
    asyncio.run(house.tailor.note_plugin("worker", "any"))
    assert Outfit.from_bytes(house.store.objects[Ref("outfit/2", 0, 1)][1]).pieces == ()


def test_more_calls_than_a_new_executor_repeats_are_warned_of(house, monkeypatch, caplog):
    monkeypatch.setattr(tailoring, "RUNS_MAX", 2)
    for number in range(3):
        asyncio.run(house.tailor.note_run(str(number), (b"", b"", b""), house.tailor.next_serial()))
    assert [name for _, _, name, _ in said(house)] == ["1", "2"]
    assert "Use a worker plugin" in caplog.text


def test_the_same_call_has_the_same_name():
    assert name_of_run((b"f", b"x", b"")) == name_of_run((b"f", b"x", b"")) != name_of_run((b"f", b"", b"x"))


@pytest.mark.fault(42)
@pytest.mark.parametrize("name", ["outfit/1", "outfit/piece-1"])
def test_bytes_that_nobody_sealed_are_not_read(house, name):
    register(house, "worker", "a", b"A" * (tailoring.INLINE_BYTES_MAX + 1))
    house.store.objects[Ref(name, 0, 1)][1] = b"other"
    with pytest.raises(Tampered):
        said(house)
    assert house.worker.said == [] and house.wardrobe.version == 0
