"""Keys are held for a client that goes away silently, until somebody asks for them or its time is over."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from distributed import Scheduler
from distributed.core import connect

from dask_serverless.grace import Grace
from dask_serverless.holders import Holders
from dask_serverless.stubs import as_expr_ser, stub_graph

pytestmark = pytest.mark.fault(26)
SECONDS_MAX = 20.0


class Later:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self, seconds, call, name):
        entry = (self.now + seconds, call, name)
        self.calls.append(entry)
        return SimpleNamespace(cancel=lambda: entry in self.calls and self.calls.remove(entry))

    def advance(self, seconds):
        self.now += seconds
        for entry in [each for each in self.calls if each[0] <= self.now]:
            self.calls.remove(entry)
            entry[1](entry[2])


class Story:
    """A stock scheduler without workers, and clients that only say what they want."""

    def __init__(self, scheduler, seconds):
        self.scheduler = scheduler
        self.later = Later()
        self.holders = Holders(scheduler, self.later)
        self.grace = Grace(scheduler, self.holders, seconds)
        self.grace.install()

    async def submit(self, client, *keys):
        await self.scheduler.update_graph(
            client=client,
            expr_ser=as_expr_ser(stub_graph(keys, {})),
            keys=set(keys),
            internal_priority=dict.fromkeys(keys, 0),
            span_metadata={"collections": []},
            submitting_task=None,
        )
        self.holders.hand_over(keys)

    async def join(self, client):
        comm = await connect(self.scheduler.address)
        await comm.write({"op": "register-client", "client": client, "reply": False, "versions": {}})
        await comm.read()  # the stream has started
        return comm

    async def until(self, condition):
        async with asyncio.timeout(SECONDS_MAX):
            while not condition():
                await asyncio.sleep(0)

    def wanted(self):
        return {key for key, ts in self.scheduler.tasks.items() if ts.who_wants}


@pytest.fixture
async def story(request):
    seconds = getattr(request, "param", 30.0)
    async with Scheduler(port=0, host="127.0.0.1", dashboard=False, dashboard_address=":0") as scheduler:
        yield Story(scheduler, seconds)


async def go_away(story, client, *keys):
    comm = await story.join(client)
    await story.submit(client, *keys)
    comm.abort()
    await story.until(lambda: client not in story.scheduler.clients)


async def test_what_a_silent_client_wanted_is_there_until_its_time_is_over(story):
    await go_away(story, "a", "x", "y")
    story.later.advance(29.9)
    assert story.wanted() == {"x", "y"}
    story.later.advance(0.2)
    assert not story.scheduler.tasks
    assert story.scheduler.clients.keys() == {"fire-and-forget"}


async def test_each_departure_has_a_time_of_its_own(story):
    await go_away(story, "a", "x")
    story.later.advance(20)
    await go_away(story, "a", "y")
    story.later.advance(15)
    assert story.wanted() == {"y"}
    story.later.advance(15)
    assert not story.scheduler.tasks


async def test_who_asks_for_a_key_holds_it_from_then_on(story):
    await go_away(story, "a", "x", "y")
    await story.submit("b", "x")
    story.scheduler.client_releases_keys(["x"], "b")
    assert story.wanted() == {"y"}
    story.grace.client_desires_keys(["y"], "b")
    assert not story.later.calls, "nobody is waited for any more"
    story.later.advance(60)
    assert story.wanted() == {"y"}


async def test_a_goodbye_lets_go_at_once(story):
    comm = await story.join("a")
    await story.submit("a", "x")
    await comm.write([{"op": "close-client"}, {"op": "close-stream"}])
    await story.until(lambda: not story.scheduler.tasks)
    assert not story.later.calls
    comm.abort()


@pytest.mark.parametrize("story", [0.0], indirect=True)
async def test_without_a_grace_it_is_as_under_localcluster(story):
    await go_away(story, "a", "x")
    assert not story.scheduler.tasks


async def test_what_has_failed_is_not_held(story):
    comm = await story.join("a")
    await story.submit("a", "x", "y")
    story.scheduler.tasks["x"].state = "erred"
    comm.abort()
    await story.until(lambda: "a" not in story.scheduler.clients)
    assert story.wanted() == {"y"}


async def test_what_others_want_or_nobody_waits_for_stays(story):
    await story.submit("b", "x")
    await story.submit("a", "y")
    story.scheduler.client_desires_keys(["y"], "fire-and-forget")
    await go_away(story, "a", "x")
    story.later.advance(60)
    assert story.wanted() == {"x", "y"}


async def test_a_restart_ends_the_waiting(story):
    await go_away(story, "a", "x")
    await story.scheduler.restart(wait_for_workers=False, stimulus_id="test")
    assert not story.scheduler.tasks
    await story.submit("b", "x")
    story.later.advance(60)
    assert story.wanted() == {"x"}


async def test_who_comes_back_before_its_old_connection_was_found_broken_is_not_thrown_out(story):
    old = await story.join("a")
    await story.submit("a", "x")
    new = await story.join("a")  # nobody has noticed that the old one leads nowhere
    assert story.wanted() == {"x"}
    await story.submit("a", "x")
    old.abort()
    other = await story.join("b")  # by then the scheduler has heard of it
    story.later.advance(60)
    assert story.wanted() == {"x"}
    assert "a" in story.scheduler.clients
    assert not story.scheduler.client_comms["a"].comm.closed()
    await new.write([{"op": "close-client"}, {"op": "close-stream"}])
    await story.until(lambda: not story.scheduler.tasks)
    for comm in (new, other):
        comm.abort()


async def test_a_scheduler_that_closes_waits_for_nobody():
    scheduler = await Scheduler(port=0, host="127.0.0.1", dashboard=False, dashboard_address=":0")
    story = Story(scheduler, 30.0)
    comm = await story.join("a")
    await story.submit("a", "x")
    await scheduler.close()
    assert not story.later.calls
    comm.abort()
