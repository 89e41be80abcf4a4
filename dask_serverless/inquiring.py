"""What a user may ask a cluster: what would happen to a collection (`explain`), and what was decided (`decisions`)."""

from __future__ import annotations

from typing import Any

from dask_serverless.cluster_budget import BudgetedCluster
from dask_serverless.decisions import JobDecisions
from dask_serverless.explaining import Planned, keys_of, plan_of
from dask_serverless.forecast import Forecast


class InquirableCluster(BudgetedCluster):
    """A cluster that says what it would do, and what it did."""

    def explain(self, collection: Any) -> Any:
        """Say what would happen to a Dask collection here, before it is computed. Nothing is run.

        Parameters
        ----------
        collection
            A collection, or a list of them.

        Returns
        -------
        dask_serverless.forecast.Forecast
            Print it, or show it in a notebook. An awaitable of it, if asynchronous.

        See Also
        --------
        dask_serverless.explain
        """
        return self.sync(self._explain, plan_of(collection, self.settings, self.has))

    def has(self, key: Any) -> bool:
        """Tell whether a key has a value here, or will have one."""
        ts = None if self.scheduler is None else self.scheduler.tasks.get(key)
        return ts is not None and ts.state not in ("released", "forgotten")

    async def _explain(self, planned: Planned) -> Forecast:
        expected = self._experience.statistics.expect(planned.prefixes)
        return planned.forecast(expected, self._ceiling, self.settings)

    def decisions(self, of: Any = None) -> Any:
        """Return what was decided in a job, with numbers that led to it: "why was it slow?".

        An executor tells what it has decided when it retires, and every five seconds before. The last 100 jobs are
        remembered.

        Parameters
        ----------
        of
            A future, a collection that was persisted, a `dask.delayed.Delayed` that was computed, or the name of a
            job (``"j3"``). None: the job that was begun last.

        Returns
        -------
        dask_serverless.decisions.JobDecisions
            Print it; or read its `counts`, `samples` and `observed`. An awaitable of it, if asynchronous.

        Raises
        ------
        KeyError
            When no such job is remembered.

        Examples
        --------
        >>> print(cluster.decisions())  # doctest: +SKIP
        job j1 of 65 tasks
        first       1  how many executors the job began with
                       proxy: executors=2, starts=64, places=2, seconds=None, unknown_tasks=65
        ...
        """
        return self.sync(self._decisions, of)

    async def _decisions(self, of: Any) -> JobDecisions:
        log = self._experience.log
        found: JobDecisions = log.last if of is None else log.job(of) if isinstance(of, str) else log.find(keys_of(of))
        return found.copy()  # executors may go on reporting

    @property
    def _experience(self) -> Any:
        if self._proxy is None:
            raise RuntimeError(f"cluster {self.name!r} is {self.status.name}: it has no experience")
        return self._proxy.dispatcher.experience
