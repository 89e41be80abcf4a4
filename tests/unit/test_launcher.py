"""The launcher's mail: whoever dies with it is lost by name, in whatever order the news come."""

from __future__ import annotations

import asyncio
import functools
from types import SimpleNamespace

import pytest

from dask_serverless import whereabouts
from dask_serverless.launcher import Launcher
from lambda_worker.core.schedule import Assignment
from lambda_worker.core.wire import Ref


class Hands:
    """Runs everything on the loop."""

    def __init__(self):
        self.closing = asyncio.Event()
        self.tasks = []

    def spawn(self, work):
        self.tasks.append(asyncio.ensure_future(work))

    async def call(self, function, *args):
        return function(*args)


def make(lost, live=True):
    backend = SimpleNamespace(store=SimpleNamespace(take_back=lambda name: b""))
    hands = Hands()
    counts = {"mails": 0, "invocations": 0}
    return Launcher(backend, hands, counts, lambda job, executor: live, lambda each, why: lost.append(each)), hands


async def test_who_came_by_mail_is_lost_with_its_recipient():
    lost = []
    launcher, _ = make(lost)
    launcher.note_posted("j1/a/1", "j2", "b")
    await launcher.recipient_died("j1/a/1", "signal: killed")
    assert [(each.job, each.executor) for each in lost] == [("j2", "b")]


async def test_also_when_the_death_is_heard_of_before_the_mail():
    lost = []
    launcher, hands = make(lost)
    await launcher.recipient_died("j1/a/1", "signal: killed")
    assert lost == []
    launcher.note_posted("j1/a/1", "j2", "b")
    await asyncio.gather(*hands.tasks)
    assert [(each.job, each.executor) for each in lost] == [("j2", "b")]


async def test_who_has_ended_is_not_lost():
    lost = []
    launcher, hands = make(lost, live=False)
    await launcher.recipient_died("j1/a/1", "signal: killed")
    launcher.note_posted("j1/a/1", "j2", "b")
    assert hands.tasks == [] and lost == []


def test_only_the_newest_executors_are_remembered(monkeypatch):
    monkeypatch.setattr(whereabouts, "EXECUTORS_MAX", 2)
    known = whereabouts.Whereabouts()
    for name in "abc":
        known.retired("job", name, f"sandbox-{name}", f"room-{name}")
    assert repr(known) == "<Whereabouts of 2 executors in 2 sandboxes>"


def test_a_sandbox_is_known_by_what_was_written_there_under_whatever_name_it_lingers():
    known = whereabouts.Whereabouts()
    known.retired("j1", "a", "S", "j1/a/1")
    reader = Assignment("j3", "b", 1, (0,), given={0: Ref("j1/7/a/1", 0, 1_000)})
    assert known.best(reader) == "j1/a/1"
    known.retired("j2", "c", "S", "j2/c/1")  # it was invoked once more
    assert known.best(reader) == "j2/c/1"
    other = {1: Ref("j1/8/e/1", 0, 10)}
    known.retired("j1", "e", "T", "j1/e/1")
    known.retired("j2", "d", "S", "")  # and did not linger
    assert known.best(reader) == ""
    assert known.best(Assignment("j3", "b", 1, (0, 1), given={**reader.given, **other})) == "j1/e/1"
    assert known.best(Assignment("j3", "b", 1, (0,), given={0: Ref("j1/7/z/1", 0, 1_000)})) == ""


def test_who_was_sent_mail_is_at_work_until_it_ends_or_is_gone():
    known = whereabouts.Whereabouts()

    def spot(writer):
        return known.spot(Ref(f"j1/7/{writer}/1", 0, 1_000), lambda job, executor: executor == "b")

    assert spot("a") == ("", False)
    assert spot("b") == ("j1/b", True)
    known.retired("j1", "a", "S", "j1/a/1")
    assert spot("a") == ("S", False)
    known.posted("j1/a/1", "j2", "c")
    assert spot("a") == ("S", True)
    known.ended("j2", "c")
    assert spot("a") == ("S", False)
    known.posted("j1/a/1", "j2", "d")
    known.posted("j1/a/1", "j3", "e")
    known.ended("j2")  # we hear of it late
    assert spot("a") == ("S", True)
    known.ended("j3")
    assert spot("a") == ("S", False)
    known.posted("j1/a/1", "j3", "f")
    known.died("j1/a/1")
    known.ended("j3", "f")
    assert spot("a") == ("", False)


@pytest.mark.parametrize("live", [True, False])
async def test_mail_makes_its_recipient_busy_unless_it_has_ended_before_we_hear_of_it(live):
    launcher, _ = make([], live=live)
    launcher.note_retired("j1", "a", "S", "j1/a/1")
    launcher.note_posted("j1/a/1", "j2", "b")
    spot = functools.partial(launcher.whereabouts.spot, Ref("j1/7/a/1", 0, 1_000), lambda job, executor: False)
    assert spot() == ("S", live)
    launcher.forget("j2", "b")
    assert spot() == ("S", False)
    await launcher.recipient_died("j1/a/1", "signal: killed")
    assert spot() == ("", False)


@pytest.mark.fault(9)
async def test_whom_lambda_has_not_accepted_yet_is_not_taken_for_silent():
    launcher, hands = make([])
    accepted = asyncio.get_running_loop().create_future()
    launcher._backend.invoker = SimpleNamespace(answers=lambda assignments, under_way: accepted)
    sending = asyncio.ensure_future(launcher.hear_refusals([Assignment("j1", "a", 1, (0,))], None))
    await asyncio.sleep(0)
    assert launcher.is_sending("j1", "a") and not launcher.is_sending("j1", "b")
    accepted.set_result([None])
    await sending
    assert not launcher.is_sending("j1", "a")
