"""What is published is copied: beside all other work, and not at its expense."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

from dask_serverless.durable import Durable
from dask_serverless.hands import STORE_THREADS, Hands
from dask_serverless.job_events import Kept, Released
from dask_serverless.jobs import Ledger
from dask_serverless.simulator.sim_store import SimStore
from dask_serverless.simulator.tier import Tier
from lambda_worker.core.wire import Ref

pytestmark = pytest.mark.fault(24)
SECONDS_MAX = 20.0


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
        self.fleet = None
        self.dispatcher = SimpleNamespace(
            ledger=self.ledger,
            call=self.hands.call,
            spawn=self.hands.spawn,
            feed=self.ledger.handle,
            legacy=SimpleNamespace(notes=None),
        )
        self.backend = SimpleNamespace(store=self.store, store_config=SimpleNamespace(overflow="file:///overflow"))
        self.scheduler = SimpleNamespace(handlers={"publish_put": None}, tasks={})
        self.durable = Durable(self)

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
