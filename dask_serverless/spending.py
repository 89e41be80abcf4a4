"""Watches what a cluster spends, and stops it at its budget: the ears and hands of `budget`.

Lambda cannot be told to end what runs, so nothing is: every job fails, which fences its executors, and whatever
waits to be invoked is not invoked any more. A cluster whose budget was raised goes on to work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dask_serverless.budget import Budget
from dask_serverless.job_events import JobFailed
from lambda_worker.core.errors import BudgetExceeded, PlatformError
from lambda_worker.task_runner import describe_error

if TYPE_CHECKING:
    from dask_serverless.dispatch import Dispatcher

logger = logging.getLogger("dask_serverless.spending")

#: How often the bill is looked at while there is a budget and something runs: that is what may be overspent.
LOOK_SECONDS = 0.25


class Spending:
    """What a dispatcher does about costs.

    Parameters
    ----------
    dispatcher
        Keeps the ledger.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        settings = dispatcher.backend.settings
        self.budget = Budget(settings.budget_dollars, settings.budget_executions_per_task, settings.prices)
        self.refusal: BudgetExceeded | None = None  # why nothing more is started, if so

    async def watch(self) -> None:
        """Look at the bill now and then, for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self.budget.dollars is None or not self.dispatcher.ledger.jobs:
                continue
            try:
                await self.look()
            except PlatformError as error:  # whoever watches over Lambda itself says so to everybody
                logger.debug("what was spent is not known: %s", error)
            except Exception:  # our bug; the watch goes on
                logger.exception("the bill could not be read")

    async def look(self) -> float:
        """Judge what was spent until now, and return it."""
        gb_seconds, requests = await self.dispatcher.call(self.dispatcher.backend.billed)
        exceeded = self.budget.judge(gb_seconds, requests)
        if not exceeded:
            self.refusal = None
        elif self.refusal is None:
            logger.warning("%s", exceeded)
            self.refusal = BudgetExceeded(exceeded)
        if self.refusal is not None:
            for job in list(self.dispatcher.ledger.jobs):
                self._stop(job, exceeded)
        return self.budget.spent

    async def set_budget(self, dollars: float | None) -> float:
        """Change the limit, and judge by it at once; return what was spent."""
        self.budget.dollars = dollars
        return await self.look()

    def count(self, job: str, counts: Mapping[str, int]) -> None:
        """An executor has said what it did."""
        self._stop(job, self.budget.count(job, counts))

    def died(self, job: str) -> None:
        """An executor has died."""
        self._stop(job, self.budget.died(job))

    def _stop(self, job: str, exceeded: str) -> None:
        if exceeded:
            self.dispatcher.feed(JobFailed(job, describe_error(BudgetExceeded(exceeded))))
