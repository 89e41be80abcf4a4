"""The size of a cluster: how many executors may run at once, and how many Dask workers there are.

`ServerlessCluster` is one of these. Here is what changes its size (`scale`, `adapt`) and what waits
for it (`wait_for_workers`). Both numbers are kept here at once; the event loop follows.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from typing import Any

from dask.utils import parse_timedelta
from distributed import Scheduler
from distributed.core import Status
from distributed.deploy.adaptive import Adaptive as StockAdaptive
from distributed.deploy.cluster import Cluster
from distributed.exceptions import WorkerStartTimeoutError
from distributed.metrics import time
from distributed.objects import SchedulerInfo
from distributed.utils import NoOpAwaitable

from dask_serverless import cluster_arguments as arguments
from dask_serverless.adaptive import CeilingAdaptive
from dask_serverless.config import Settings
from dask_serverless.dask_workers import DaskWorkers

logger = logging.getLogger("dask_serverless.cluster")


class ScalableCluster(Cluster):
    """A cluster with a ceiling of executors, and Dask workers beside them.

    Who extends it sets what is declared here, before the cluster is started.
    """

    settings: Settings
    scheduler: Scheduler | None
    _ceiling: int
    _dask_workers_wanted: int
    _dask_workers: DaskWorkers | None
    _proxy: Any
    _local: Any

    def _note(self, text: str) -> None:
        raise NotImplementedError

    @property
    def ceiling(self) -> int:
        """How many executors may run at once."""
        return self._ceiling

    def scale(
        self, n: int | None = None, memory: Any = None, cores: int | None = None, *, dask_workers: int | None = None
    ) -> Any:
        """Set how many executors may run at once, or how many Dask workers there are, or both.

        No executor is started for it: Lambda starts executors when there is work. Those that run
        beyond a lower ceiling finish what they have. Dask workers are started, or retired: what they
        hold moves to others first. Neither is waited for, see `wait_for_workers`.

        Parameters
        ----------
        n
            The new ceiling. It ends `adapt`.
        memory, cores
            The ceiling as memory or cores altogether (an executor has ``threads_per_worker``).
        dask_workers
            How many ordinary Dask workers run beside the executors.

        Examples
        --------
        >>> cluster.scale(10)  # doctest: +SKIP
        >>> cluster.scale(dask_workers=2)  # doctest: +SKIP
        """
        if n is None and memory is None and cores is None:
            ceiling = self._ceiling if dask_workers is not None else 0  # as in LocalCluster: scale() is scale(0)
        else:
            ceiling = arguments.ceiling_of(n, memory, cores, self.settings)
        if dask_workers is not None:
            self._dask_workers_wanted = arguments.check_dask_workers(dask_workers)
        if ceiling != self._ceiling or dask_workers is None:
            if self._adaptive is not None:
                self._adaptive.stop()
            self._set_ceiling(ceiling)
        if dask_workers is not None and self._may_change:
            self.loop.add_callback(self._apply_dask_workers)  # type: ignore[union-attr]
        return NoOpAwaitable() if self.asynchronous else None

    @property
    def _may_change(self) -> bool:
        return self.status in (Status.created, Status.starting, Status.running) and self.loop is not None

    def _set_ceiling(self, ceiling: int) -> None:
        self._ceiling = ceiling
        if self._may_change:
            self.loop.add_callback(self._apply_ceiling)  # type: ignore[union-attr]

    async def _catch_up(self) -> None:
        """Do what `scale` was asked for while the cluster started."""
        if self._ceiling != self._local.ceiling:
            await self._apply_ceiling()
        await self._apply_dask_workers()

    async def _apply_ceiling(self) -> None:
        if self.status != Status.running or self._proxy is None:
            return
        self._local.set_ceiling(self._ceiling)
        self._proxy.set_ceiling(self._ceiling)
        fleet = getattr(self._proxy, "fleet", None)
        if fleet is not None and self.scheduler is not None and fleet.address in self.scheduler.workers:
            identity = self.scheduler.workers[fleet.address].identity()
            self._update_worker_status("add", {"workers": {fleet.address: identity}})

    async def _apply_dask_workers(self) -> None:
        if self.status != Status.running or self._dask_workers is None:
            return
        try:
            await self._dask_workers.scale(self._dask_workers_wanted)
        except Exception as error:
            self._dask_workers_wanted = self._dask_workers.wanted
            self._note(f"a Dask worker did not start: {error}")
            logger.error("a Dask worker did not start: %s", error)

    def adapt(  # type: ignore[override]
        self,
        Adaptive: Any = None,
        minimum: int | float = 0,
        maximum: int | float | None = math.inf,
        minimum_cores: int | None = None,
        maximum_cores: int | None = None,
        minimum_memory: Any = None,
        maximum_memory: Any = None,
        **kwargs: Any,
    ) -> CeilingAdaptive:
        """Let the cluster have between `minimum` and `maximum` executors.

        Lambda adapts by itself, from none to the ceiling; so this sets the ceiling. `minimum` is
        accepted and kept (a local cluster keeps sandboxes warm for minutes anyway). `scale` ends it.

        Parameters
        ----------
        Adaptive, **kwargs
            No effect: there is no control loop to configure.
        minimum, minimum_cores, minimum_memory
            The fewest executors, as a count, cores or memory.
        maximum, maximum_cores, maximum_memory
            The most. Without any of them the ceiling stays as it is.

        Examples
        --------
        >>> cluster.adapt(minimum=0, maximum=20)  # doctest: +SKIP
        """
        if unknown := kwargs.keys() - inspect.signature(StockAdaptive).parameters.keys():
            raise TypeError(f"adapt() got an unexpected keyword argument {min(unknown)!r}")
        if Adaptive is not None:
            arguments.warn_no_effect("Adaptive", "Lambda adapts by itself, there is no control loop to replace")
        least, most = arguments.adaptive_bounds(
            (minimum, minimum_cores, minimum_memory),
            (maximum, maximum_cores, maximum_memory),
            self._ceiling,
            self.settings,
        )
        adaptive = CeilingAdaptive(self, least, most, **kwargs)
        if self._adaptive is not None:
            self._adaptive.stop()
        self._adaptive = adaptive
        self._set_ceiling(most)
        return adaptive

    def wait_for_workers(self, n_workers: int, timeout: Any = None) -> Any:
        """Wait until the cluster can have `n_workers` executors, and Dask workers, at once.

        That is so as soon as the fleet is up, since executors start with the work.

        Parameters
        ----------
        n_workers
            At most the ceiling plus the Dask workers; more is refused, unless there is a timeout (somebody
            else may call `scale` meanwhile).
        timeout
            Seconds after which to raise `TimeoutError`.
        """
        if isinstance(n_workers, bool) or not isinstance(n_workers, int) or n_workers < 1:
            raise ValueError(f"`n_workers` must be a positive integer. Instead got {n_workers}.")
        return self.sync(self._wait_for_workers, n_workers, timeout=timeout)

    async def _wait_for_workers(self, n_workers: int = 0, timeout: Any = None) -> None:
        deadline = time() + parse_timedelta(timeout) if timeout else math.inf
        while True:
            info = await self.scheduler_comm.identity(n_workers=-1)
            fleet = getattr(getattr(self._proxy, "fleet", None), "address", None)
            running = [a for a, each in info["workers"].items() if each["status"] == Status.running.name]
            ordinary = len(running) - (fleet in running)
            count = ordinary + (self._ceiling if fleet in running else 0)
            if count >= n_workers:
                self.scheduler_info = SchedulerInfo(info)
                return
            reachable = self._ceiling + max(ordinary, self._dask_workers_wanted)
            if n_workers > reachable and not timeout:
                raise ValueError(
                    f"wait_for_workers({n_workers}) would wait for ever: at most {reachable} workers (executors at "
                    f"once, and Dask workers) may run here; call scale({n_workers}) first, or give a timeout"
                )
            if time() > deadline:
                raise WorkerStartTimeoutError(count, n_workers, timeout)
            await asyncio.sleep(0.05)
