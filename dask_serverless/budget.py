"""What a cluster may cost, and how much of its work may be done again. Pure: counters in, refusals out.

Two limits, since each is blind where the other sees. **Dollars** hold for the whole cluster, and are judged by what
Lambda has billed: whatever it was spent on, it ends there. **Executions per task** hold for each job, and are judged by
what its executors did: a job whose work is done over and over (retry storms, executors that start one another) ends
long before the money does. What the user asked for (``retries=``, `distributed.Reschedule`) does not count as done
again.

Neither is exact: what is under way when a limit is found to be exceeded is paid for as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dask_serverless.plan.price import Prices, price

#: Small jobs may need so many more: one task that ends executors four times is no storm.
EXECUTIONS_MORE = 100


@dataclass(slots=True)
class Executions:
    """What was done for one job: how often tasks ran, how often the user asked for that, how many executors there were.

    Of an executor that died, at least one task ran that it did not live to tell of.
    """

    tasks: int
    tasks_run: int = 0
    tasks_rerun: int = 0
    executors: int = 0
    deaths: int = 0


class Budget:
    """The limits of one cluster.

    Parameters
    ----------
    dollars
        What may be spent on Lambda, in USD (None: no limit).
    executions_per_task
        How often the tasks of a job may run, on average, and how many executors there may be for each.
    prices
        Prices; default: list prices.

    Examples
    --------
    >>> budget = Budget(dollars=0.001)
    >>> budget.judge(gb_seconds=50.0, requests=10), round(budget.spent, 6)
    ('', 0.000835)
    >>> print(budget.judge(gb_seconds=80.0, requests=20).partition(". ")[0])
    this cluster has spent 0.0013 USD (80 GB-seconds, 20 invocations of Lambda), above its budget of 0.001 USD
    """

    def __init__(
        self, dollars: float | None = None, executions_per_task: int = 10, prices: Prices | None = None
    ) -> None:
        self.dollars = dollars
        self.executions_per_task = executions_per_task
        self.spent = 0.0
        self._prices = prices or Prices()
        self._jobs: dict[str, Executions] = {}

    def __repr__(self) -> str:
        return f"<Budget: {self.spent:.2g} of {'any' if self.dollars is None else f'{self.dollars:.2g}'} USD>"

    # -- money ----------------------------------------------------------------------------------

    def cost(self, gb_seconds: float, requests: float) -> float:
        """Return what Lambda asks for that, in USD."""
        return price(gb_seconds=gb_seconds, requests=requests, prices=self._prices).total

    def judge(self, gb_seconds: float, requests: float) -> str:
        """Take in what Lambda has billed so far; say what exceeds the budget ("": nothing does)."""
        self.spent = self.cost(gb_seconds, requests)
        if self.dollars is None or self.spent <= self.dollars:
            return ""
        return (
            f"this cluster has spent {self.spent:.2g} USD ({gb_seconds:.3g} GB-seconds, {requests:.0f} invocations of "
            f"Lambda), above its budget of {self.dollars:g} USD. Nothing more is started. Raise it with "
            "cluster.set_budget(dollars), or with budget= (serverless.budget.dollars) for the next cluster"
        )

    # -- work that is done again ----------------------------------------------------------------

    def begin(self, job: str, tasks: int) -> None:
        """A job of so many tasks begins."""
        self._jobs[job] = Executions(tasks)

    def count(self, job: str, counts: Mapping[str, int]) -> str:
        """Take in what an executor did (``tasks_run``, ``tasks_rerun``, ``executors``); say what exceeds the limit."""
        done = self._jobs.get(job)
        if done is None:
            return ""
        done.tasks_run += counts.get("tasks_run", 0)
        done.tasks_rerun += counts.get("tasks_rerun", 0)
        done.executors += counts.get("executors", 0)
        return self._judge(job, done)

    def died(self, job: str) -> str:
        """Take in that an executor of a job died; say what exceeds the limit."""
        done = self._jobs.get(job)
        if done is None:
            return ""
        done.deaths += 1
        return self._judge(job, done)

    def forget(self, job: str) -> None:
        """A job is over."""
        self._jobs.pop(job, None)

    def _judge(self, job: str, done: Executions) -> str:
        limit = self.executions_per_task * done.tasks + EXECUTIONS_MORE
        runs, executors = done.tasks_run - done.tasks_rerun + done.deaths, done.executors + done.deaths
        # Who asks to run later may live to see many executors.
        if runs <= limit and executors <= limit + done.tasks_rerun:
            return ""
        return (
            f"job {job} of {done.tasks} tasks has run tasks {runs} times in {executors} executors, of which "
            f"{done.deaths} died. That is above its budget of {self.executions_per_task} executions per task (and "
            f"{EXECUTIONS_MORE} more), so it is given up. The executors' log (cluster.get_logs()) says why they die; "
            "or raise serverless.budget.executions-per-task"
        )
