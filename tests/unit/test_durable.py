"""What is published is copied, what is scattered is kept: beside all other work, and not at its expense."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

from dask_serverless.durable import BATCH_KEYS_MAX, Durable
from dask_serverless.hands import STORE_THREADS, Hands
from dask_serverless.job_events import Kept, Released
from dask_serverless.jobs import Ledger
from dask_serverless.notes import Notes
from dask_serverless.simulator.sim_store import SimStore
from dask_serverless.simulator.tier import Tier
from lambda_worker.core.wire import Ref

pytestmark = pytest.mark.fault(24)
SECONDS_MAX = 20.0
SECRET = b"secret"


def store_value(value, keep):
    assert keep
    if value == "bad":
        raise TypeError("cannot pickle it")
    return repr(value).encode()


class SlowStore(SimStore):
    """Keeps nothing before its gate is open."""

    def __init__(self):
        super().__init__(Tier(lambda: 0.0))
        self.gate = threading.Event()
        self.kept = []

    def keep(self, objects):
        assert self.gate.wait(SECONDS_MAX)
        self.kept += [name for name, _ in objects]
        return super().keep(objects)


class Story:
    """A proxy, as far as it keeps anything."""

    def __init__(self):
        self.store = SlowStore()
        self.ledger = Ledger()
        self.hands = Hands()
        self.notes = Notes(self.store, SECRET, 1)
        self.calls = 0
        self.fleet = SimpleNamespace(store_value=store_value)
        self.dispatcher = SimpleNamespace(
            ledger=self.ledger,
            call=self.call,
            spawn=self.hands.spawn,
            feed=self.feed,
            legacy=SimpleNamespace(notes=self.notes),
        )
        self.backend = SimpleNamespace(store=self.store, store_config=SimpleNamespace(overflow="file:///overflow"))
        self.scheduler = SimpleNamespace(handlers={"scatter": self.scatter}, tasks={})
        self.durable = Durable(self)

    def call(self, *args):
        self.calls += 1
        return self.hands.call(*args)

    def feed(self, event):
        if isinstance(event, Released):
            self.notes.let_go(event.key)
        self.ledger.handle(event)

    async def scatter(self, data):
        tasks = {key: SimpleNamespace(state="memory", nbytes=5, get_nbytes=lambda: 5) for key in data}
        self.scheduler.tasks |= tasks
        return list(data)

    async def value_of(self, key):
        return key

    def is_stub(self, key):
        return key == "stub"

    def location(self, key):
        entry = self.ledger.keys.get(key)
        return None if entry is None or entry.result is None else entry.result.location

    def has(self, key, ref):
        self.ledger.handle(Kept(key, ref))


@pytest.fixture
async def story():
    story = Story()
    yield story
    story.store.gate.set()
    await story.hands.close()


async def test_results_are_copied_one_by_one_and_other_work_goes_on(story):
    count = 2 * STORE_THREADS
    refs = story.store.put([(f"j1/{n}", [b"tag"]) for n in range(count)])
    for ref in refs:
        story.has(ref.name, ref)
    story.has("beside", Ref("j1/beside", -1, 100))  # this one is in the overflow
    story.durable.publish([*(ref.name for ref in refs), "beside", "not there yet"])
    copies = list(story.hands._tasks)
    assert await asyncio.wait_for(story.hands.call(max, 1, 2), SECONDS_MAX) == 2
    story.ledger.handle(Released(refs[-1].name))  # while it waited
    story.store.gate.set()
    await asyncio.wait_for(asyncio.gather(*copies), SECONDS_MAX)
    assert story.store.kept == [ref.name for ref in refs[:-1]]
    (late,) = story.store.put([("j1/late", [b"tag"])])
    story.has("not there yet", late)
    story.durable.finished("not there yet")
    await asyncio.wait_for(asyncio.gather(*story.hands._tasks), SECONDS_MAX)
    assert story.store.kept[-1] == "j1/late"


async def test_a_copy_that_nobody_holds_any_more_is_freed(story):
    """1. It is being written; 2. the value is freed; 3. the copy is there."""
    (ref,) = story.store.put([("j1/0", [b"tag"])])
    story.has("x", ref)
    story.durable.publish(["x"])
    (copy,) = story.hands._tasks
    await asyncio.wait([copy], timeout=0)  # it has begun
    story.ledger.handle(Released("x"))
    story.store.gate.set()
    await asyncio.wait_for(copy, SECONDS_MAX)
    assert story.store.kept == ["j1/0"] and story.store.missing([ref]) == [ref]


async def test_many_small_values_are_kept_in_a_few_calls(story, caplog):
    story.durable._stock = {"scatter": story.scatter}
    keys = [*range(2 * BATCH_KEYS_MAX), "bad", "stub", "last"]
    assert await story.durable.scatter(data=keys) == keys
    assert story.calls == 6, "for each of three pieces one to store and one to note"
    found = {data.key: data.location for data in Notes(story.store, SECRET, 1001).read().data}
    assert found == {key: repr(key).encode() for key in keys if key not in ("bad", "stub")}
    assert "the scattered data 'bad' will not survive this process: cannot pickle it" in caplog.text


async def test_of_data_that_was_let_go_while_it_was_stored_nothing_stays(story):
    (ref,) = story.store.put([("exports/1", [b"tag"])])

    def store_late(value, keep):
        if value == "gone":
            story.scheduler.tasks["gone"].state = "released"
        return ref if value == "gone" else b"inline"

    story.fleet.store_value = store_late
    story.durable._stock = {"scatter": story.scatter}
    await story.durable.scatter(data=["gone", "there"])
    assert [data.key for data in Notes(story.store, SECRET, 1001).read().data] == ["there"]
    assert story.store.missing([ref]) == [ref] and story.location("gone") is None


async def test_of_data_that_was_let_go_before_it_was_noted_there_is_no_note(story):
    note_data = story.notes.note_data

    def note_late(data):
        story.feed(Released("gone"))
        note_data(data)

    story.notes.note_data = note_late
    story.durable._stock = {"scatter": story.scatter}
    await story.durable.scatter(data=["gone", "there"])
    story.notes.flush()
    assert [data.key for data in Notes(story.store, SECRET, 1001).read().data] == ["there"]
