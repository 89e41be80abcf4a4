"""What recovery does about jobs that seem to have nobody at work: it asks the store before it gives them up."""

from types import SimpleNamespace

import pytest

from dask_serverless.job_events import Admitted, Delegating, JobFailed, Retired, Submitted
from dask_serverless.jobs import Ledger
from dask_serverless.plan import number
from dask_serverless.recovery import Recovery
from dask_serverless.simulator.sim_store import SimStore
from dask_serverless.simulator.tier import Tier
from lambda_worker.core.schedule import Assignment


class Dispatcher:
    """A ledger whose one job has lost all the executors that it knows of."""

    def __init__(self):
        self.store = SimStore(Tier(lambda: 0.0))
        settings = SimpleNamespace(allowed_failures=3, executor_lease=15.0)
        self.backend = SimpleNamespace(store=self.store, settings=settings)
        self.ledger, self.failed, self.fed = Ledger(), None, []
        graph, _ = number({"x": ()}, ["x"])
        self.store.open_job("j1", {})
        for event in (Submitted("j1", graph, {"x": 0}, {}, {}), Admitted("j1", ["a"]), Retired("j1", "a")):
            self.ledger.handle(event)

    async def call(self, function, *args):
        return function(*args)

    def feed(self, event):
        self.fed.append(event)
        self.ledger.handle(event)


@pytest.fixture
def dispatcher():
    return Dispatcher()


async def sweeps(dispatcher, count):
    recovery = Recovery(dispatcher)
    for _ in range(count):
        await recovery._sweep_once()
    return [event for event in dispatcher.fed if isinstance(event, Delegating | JobFailed)]


async def test_whose_work_was_given_away_by_one_that_died_before_it_said_so_is_found(dispatcher):
    dispatcher.store.admit([Assignment("j1", "a.1.1", 1, [0])], None)
    assert await sweeps(dispatcher, 3) == [Delegating("j1", ["a.1.1"])]
    assert dispatcher.ledger.stalled() == []


async def test_what_was_said_last_may_be_on_its_way_but_not_for_long(dispatcher):
    assert await sweeps(dispatcher, 1) == []
    (failed,) = await sweeps(dispatcher, 2)
    assert isinstance(failed, JobFailed) and b"no executor works on" in failed.error
