"""The purse of a simulated cluster: a real `Budget`, judged by what the simulated Lambda bills. Pure.

This is `dask_serverless.spending` in virtual time, and it says what I7 allows to be spent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dask_serverless.budget import Budget
from dask_serverless.job_events import JobFailed
from dask_serverless.simulator.timeline import Body
from lambda_worker.core.wire import pack

if TYPE_CHECKING:
    from dask_serverless.simulator.proxy import Proxy

LOOK_SECONDS = 0.25
#: When the budget is found to be exceeded, so much later nothing is invoked any more.
STOP_SECONDS_MAX = 1.0
#: Memory of the default function.
GIGABYTES = 2.0


class Purse:
    """What a simulated cluster may spend, and has spent.

    Parameters
    ----------
    proxy
        Whose jobs are stopped.
    """

    def __init__(self, proxy: Proxy) -> None:
        options = proxy.simulation.options
        self.proxy = proxy
        self.budget = Budget(options.budget_dollars, options.executions_per_task)
        self.exceeded_at: float | None = None
        self.storms: set[str] = set()  # jobs that were given up for being done over and over

    def watch(self) -> Body:
        """Look at the bill now and then, until everything is over."""
        sim = self.proxy.simulation
        while self.budget.dollars is not None and not sim.is_over():
            yield sim.timeline.sleep(LOOK_SECONDS)
            gb_seconds, requests = self._billed()
            exceeded = self.budget.judge(gb_seconds, requests)
            if exceeded:
                self._refuse(exceeded)

    def _refuse(self, exceeded: str) -> None:
        sim = self.proxy.simulation
        if self.exceeded_at is None:
            sim.tell("proxy", f"stops: {exceeded}")
            self.exceeded_at = sim.timeline.now
        for job in list(self.proxy.ledger.jobs):
            self._stop(job)

    def ended(self, job: str) -> None:
        """An executor of a job has retired."""
        self._judge(job, self.budget.count(job, {"executors": 1}))

    def died(self, job: str) -> None:
        """An executor of a job has died."""
        self._judge(job, self.budget.died(job))

    def _judge(self, job: str, exceeded: str) -> None:
        if exceeded:
            self.proxy.simulation.tell("proxy", exceeded)
            self.storms.add(job)
            self._stop(job)

    def _stop(self, job: str) -> None:
        self.proxy.feed(JobFailed(job, pack(["BudgetExceeded", job, -1])))

    def _billed(self) -> tuple[float, float]:
        sim = self.proxy.simulation
        under_way = sum(sim.timeline.now - sandbox.invoked_at for sandbox in sim.service.busy.values())
        return (sim.service.bill.seconds + under_way) * GIGABYTES, sim.service.bill.requests

    @property
    def closed(self) -> bool:
        """Whether nothing may be invoked any more."""
        now = self.proxy.simulation.timeline.now
        return self.exceeded_at is not None and now > self.exceeded_at + STOP_SECONDS_MAX

    def overspent(self) -> str:
        """Say how more was spent than the budget and what was under way when it was exceeded ("": not so)."""
        sim = self.proxy.simulation
        if self.budget.dollars is None:
            return ""
        spent = self.budget.cost(*self._billed())
        function = sim.options.function
        wave = function.concurrency * (function.timeout_seconds + LOOK_SECONDS) * GIGABYTES
        if spent <= self.budget.dollars + self.budget.cost(wave, function.concurrency):
            return ""
        return f"{spent:.3g} USD were spent of {self.budget.dollars:g}"
