"""What a cluster may cost: how its user sets that."""

from __future__ import annotations

from typing import Any

from dask_serverless import cluster_arguments as arguments
from dask_serverless.cluster_size import ScalableCluster


class BudgetedCluster(ScalableCluster):
    """A cluster that stops at its budget."""

    def set_budget(self, dollars: float | None) -> Any:
        """Set what this cluster may spend on Lambda, from its start, in USD. None lifts the limit.

        When more was spent than that, nothing more is started, and what is pending fails with `BudgetExceeded`. Raised,
        the cluster goes on to work: compute what has failed once more.

        Parameters
        ----------
        dollars
            The new limit.

        Returns
        -------
        float
            What was spent until now, in USD. An awaitable of it, if asynchronous.

        Examples
        --------
        >>> cluster.set_budget(5.0)  # doctest: +SKIP
        0.0123
        """
        return self.sync(self._set_budget, arguments.check_budget(dollars))

    async def _set_budget(self, dollars: float | None) -> float:
        if self.status.name != "running":
            raise RuntimeError(f"cluster {self.name!r} is {self.status.name}: it has no budget")
        spent: float = await self._proxy.dispatcher.spending.set_budget(dollars)
        return spent
