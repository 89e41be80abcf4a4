"""As many Dask workers as are wanted: with workers that are only pretended."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from distributed.core import Status

from dask_serverless.dask_workers import DaskWorkers


class Worker:
    """What `DaskWorkers` needs of a worker."""

    def __init__(self, name, fails=False):
        self.name, self.fails = name, fails
        self.status = Status.init
        self.may_start = asyncio.Event()
        self.may_start.set()

    def __await__(self):
        async def start():
            await self.may_start.wait()
            if self.status != Status.init:
                raise RuntimeError("closed while starting")
            if self.fails:
                raise OSError(f"{self.name} does not start")
            self.status = Status.running
            return self

        return start().__await__()

    async def close(self):
        self.status = Status.closed
        self.may_start.set()


class Scheduler:
    """Books of workers, and a note of who was retired."""

    def __init__(self):
        self.aliases, self.workers, self.retired = {}, {}, []

    def holds(self, name, actors=0, nbytes=0):
        self.aliases[name] = name
        self.workers[name] = SimpleNamespace(actors=range(actors), nbytes=nbytes)

    async def retire_workers(self, names):
        self.retired += names


@pytest.fixture
def made():
    return []


@pytest.fixture
def workers(made):
    def make(name):
        made.append(Worker(name))
        return made[-1]

    return DaskWorkers(Scheduler(), make)


async def test_up_and_down(workers, made):
    await workers.scale(3)
    assert list(workers.running) == ["dask-0", "dask-1", "dask-2"]
    await workers.scale(1)
    assert workers.scheduler.retired == ["dask-2", "dask-1"]  # the youngest first, if none holds anything
    assert list(workers.running) == ["dask-0"] and repr(workers) == "<DaskWorkers 1 of 1>"
    await workers.scale(2)
    assert list(workers.running) == ["dask-0", "dask-1"]  # names are given again
    await workers.close()
    assert {each.status for each in made} == {Status.closed}


async def test_who_holds_actors_or_most_goes_last(workers):
    await workers.scale(3)
    for name, actors, nbytes in (("dask-0", 0, 5), ("dask-1", 1, 0), ("dask-2", 0, 9)):
        workers.scheduler.holds(name, actors, nbytes)
    await workers.scale(1)
    assert workers.scheduler.retired == ["dask-0", "dask-2"]


async def test_who_asks_last_decides(workers):
    await asyncio.gather(*(workers.scale(count) for count in (4, 0, 2)))
    assert list(workers.running) == ["dask-0", "dask-1"]


async def test_one_that_ended_by_itself_is_made_anew_when_asked_for(workers, made):
    await workers.scale(2)
    await made[0].close()
    assert list(workers.running) == ["dask-1"]
    await workers.scale(2)
    assert sorted(workers.running) == ["dask-0", "dask-1"] and len(made) == 3


async def test_a_start_that_fails_is_raised_and_forgotten(made):
    def make(name):
        made.append(Worker(name, fails=name == "dask-1"))
        return made[-1]

    workers = DaskWorkers(Scheduler(), make)
    with pytest.raises(OSError, match="dask-1 does not start"):
        await workers.scale(2)
    assert (list(workers.running), workers.wanted) == (["dask-0"], 1)
    assert made[1].status == Status.closed


async def test_retiring_that_fails_ends_them_nevertheless(workers, made, caplog):
    async def refuse(names):
        raise RuntimeError("no room elsewhere")

    await workers.scale(1)
    workers.scheduler.retire_workers = refuse
    await workers.scale(0)
    assert made[0].status == Status.closed and "no room elsewhere" in caplog.text


async def test_closing_while_they_start(made):
    def make(name):
        made.append(Worker(name))
        made[-1].may_start.clear()
        return made[-1]

    workers = DaskWorkers(Scheduler(), make)
    scaling = asyncio.ensure_future(workers.scale(2))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await workers.close()
    await scaling
    assert len(made) == 2 and {each.status for each in made} == {Status.closed} and not workers.running
    await workers.scale(3)
    assert len(made) == 2
