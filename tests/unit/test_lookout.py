"""Launches that wait for room where their inputs are: with the real ledger, on a real loop, one alarm for a job."""

from __future__ import annotations

import asyncio

import pytest

from dask_serverless.experience import Experience
from dask_serverless.job_events import Admitted, Launch, Retired, Submitted
from dask_serverless.jobs import Ledger
from dask_serverless.lookout import Lookout
from dask_serverless.places import Places
from dask_serverless.plan import number
from dask_serverless.whereabouts import Whereabouts
from lambda_worker.core.policy import Policy
from lambda_worker.core.wire import Ref


class Story:
    """Job j1 is made by executors a and b; j2 reads what they have made. Reading takes twenty hours, or two seconds."""

    def __init__(self, places: int = 3, bytes_per_second: float = 1e4, urgent: bool = False) -> None:
        self.ledger, self.whereabouts, self.experience = Ledger(), Whereabouts(), Experience()
        self.looks = asyncio.Event()
        policy = Policy(bytes_per_second=bytes_per_second)
        self.places = Places(places)
        self.lookout = Lookout(policy, self.ledger, self.places, self.whereabouts, self.experience, self.looks.set)
        made, _ = number({"x": (), "y": ()}, ["x", "y"])
        read, _ = number({"z": ("x",)}, ["z"], externals={"x"})
        for event in (
            Submitted("j1", made, {"x": 0, "y": 1}, {}, {}),
            Admitted("j1", ["a", "b"]),
            Submitted("j2", read, {"z": 1}, {"x": 0}, {}, urgent),
        ):
            self.ledger.handle(event)
        self.experience.log.begin("j2", 1, ["z"])
        self.launch = Launch("j2", [(0, Ref("j1/0/a/1", 0, 700_000_000))])


async def test_however_often_one_looks_there_is_one_alarm():
    story = Story()
    for _ in range(100):
        assert story.lookout.choose(story.launch).later
    assert repr(story.lookout) == "<Lookout with 1 alarms: <Patience of 1 of 1 jobs>>"
    assert story.experience.log.get("j2").counts == {"wait": 1}
    story.lookout.forget("j2")
    assert repr(story.lookout) == "<Lookout with 0 alarms: <Patience of 0 of 0 jobs>>"


async def test_without_room_nobody_is_called_since_whoever_makes_some_is_heard():
    story = Story(places=2)
    assert story.lookout.choose(story.launch).later
    assert repr(story.lookout) == "<Lookout with 0 alarms: <Patience of 1 of 1 jobs>>"


async def test_who_has_waited_for_long_enough_is_called():
    story = Story(bytes_per_second=1e10)  # seventy milliseconds
    assert story.lookout.choose(story.launch).later
    await asyncio.wait_for(story.looks.wait(), 20)
    assert story.lookout.choose(story.launch).now


async def test_who_has_ended_where_it_lingers_is_not_waited_for():
    story = Story()
    story.ledger.handle(Retired("j1", "a"))
    story.whereabouts.retired("j1", "a", "S", "j1/a/1")
    choice = story.lookout.choose(story.launch)
    assert choice.near == {0: "S"}
    assert story.lookout.choose(story.launch).later, "somebody is just being sent there"
    story.lookout.sent(choice)
    assert story.lookout.choose(story.launch).near == {0: "S"}


@pytest.mark.parametrize("job", ["j2", "over"])
async def test_an_urgent_job_waits_for_nobody_nor_does_one_that_is_over(job):
    story = Story(urgent=job == "j2")
    assert story.lookout.choose(Launch(job, story.launch.starts)).now
