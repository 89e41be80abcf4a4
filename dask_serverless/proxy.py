"""The proxy: a scheduler plugin in front of the client handlers. Knows no plan.

It takes the place of one handler, ``update-graph``, keeps the whole graph for itself and passes on
a *collapsed* graph: one stub per visible key, and unchanged whatever must run on a Dask worker. So
the scheduler's own futures, reference counts, cancellation and publishing go on working, while the
tasks in between cost it nothing.

Order is kept: the handler is awaited before the client's next message, as the stock one is.
"""

from __future__ import annotations

import asyncio
import logging
import textwrap
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from distributed import Scheduler
from distributed.core import error_message
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.protocol import Serialized, deserialize
from distributed.utils import offload
from distributed.utils_comm import gather_from_workers

from dask_serverless.backend import Backend
from dask_serverless.dask_graph import (
    PLACEMENTS,
    JobPlan,
    annotation,
    as_expr_ser,
    materialise,
    plan_job,
    split,
    stub_graph,
)
from dask_serverless.dispatch import Dispatcher
from dask_serverless.jobs import Released
from dask_serverless.scheduler_link import FleetWorker
from lambda_worker.core.errors import PlatformError, ValueLost
from lambda_worker.core.wire import Location

logger = logging.getLogger("dask_serverless.proxy")

#: Expressions up to this size are unpickled and planned on the event loop: a thread costs more.
INLINE_EXPR_BYTES = 20_000

#: Annotations that executors or the split answer for; a stub must not carry them.
_NOT_FOR_STUBS = (*PLACEMENTS, "retries", "serverless", "executor")


@dataclass(frozen=True, slots=True)
class _Kept:
    """A submitted graph, kept while any of its visible keys may have to be computed again."""

    tasks: Mapping[Any, Any]
    annotations_by_type: Mapping[str, Mapping[Any, Any]]
    annotations: Mapping[str, Any]
    pinned: Mapping[Any, str]


class Proxy(SchedulerPlugin):
    """Adds Lambda to a scheduler.

    Parameters
    ----------
    scheduler
        A stock scheduler in this process.
    backend
        Where the storage tier and Lambda are.
    """

    name = "dask-serverless"

    def __init__(self, scheduler: Scheduler, backend: Backend) -> None:
        self.scheduler = scheduler
        self.backend = backend
        self.fleet: FleetWorker | None = None
        self.dispatcher = Dispatcher(backend, self)  # type: ignore[arg-type]
        self._kept: dict[Hashable, _Kept] = {}
        self._arrivals: dict[Hashable, asyncio.Future[None]] = {}
        self._stock_update_graph = scheduler.stream_handlers["update-graph"]

    # -- life -----------------------------------------------------------------------------------

    async def start(self, scheduler: Scheduler | None = None) -> None:
        """Take the handler's place and register the fleet worker."""
        if self.fleet is not None:  # distributed starts its plugins, too
            return
        scheduler = self.scheduler
        self.dispatcher.start()
        self.fleet = FleetWorker(
            scheduler.address,
            proxy=self,
            name="serverless",
            nthreads=max(1, self.backend.ceiling),
            memory_limit=0,
            security=scheduler.security,
            host=_host_of(scheduler.address),
            dashboard=False,
        )
        await self.fleet
        scheduler.stream_handlers["update-graph"] = self.update_graph_message
        scheduler.add_plugin(self)

    async def close(self) -> None:
        """Give the handler back, and stop everything that was started."""
        if self.scheduler.stream_handlers.get("update-graph") == self.update_graph_message:
            self.scheduler.stream_handlers["update-graph"] = self._stock_update_graph
        for waiting in self._arrivals.values():
            waiting.cancel()
        await self.dispatcher.close()
        if self.fleet is not None:
            await self.fleet.close(nanny=False, reason="cluster-close")

    def stats(self) -> dict[str, int]:
        """Return counters since the start."""
        counts = dict(self.dispatcher.counts)
        for name, amount in self.backend.store.counters().items():
            counts[name] = counts.get(name, 0) + amount
        return counts

    def set_ceiling(self, ceiling: int) -> None:
        """Change how many executors may live at once."""
        self.dispatcher.set_ceiling(ceiling)

    def backend_failed(self, error: PlatformError) -> None:
        """The storage tier or Lambda is gone for good."""
        self.dispatcher.backend_failed(error)

    # -- a graph arrives ------------------------------------------------------------------------

    async def update_graph_message(
        self,
        *,
        client: str,
        expr_ser: Serialized,
        keys: Collection[Any],
        internal_priority: dict[Any, int] | None = None,
        annotations: dict[str, Any] | None = None,
        actors: bool | list[Any] | None = None,
        **message: Any,
    ) -> None:
        """Handle ``update-graph`` in the scheduler's place, then let it handle the rest."""
        keys = set(keys)
        annotations = annotations or {}
        try:
            kept, plan = await self._plan(expr_ser, keys, annotations, actors)
        except Exception as error:
            logger.debug("a graph was refused", exc_info=error)
            refusal = error_message(error)
            for key in keys:
                self.scheduler.report(
                    {
                        "op": "task-erred",
                        "key": key,
                        "exception": refusal["exception"],
                        "traceback": refusal["traceback"],
                    },
                    client=client,
                )
            return
        stubs = stub_graph((*plan.visible, *plan.pointers), plan.sources())
        for key in stubs:
            self._kept[key] = kept
        graph = {**stubs, **{key: kept.tasks[key] for key in kept.pinned}}
        by_type = {
            name: found
            for name in (*kept.annotations_by_type, *annotations)
            if (found := self._annotated(name, stubs, kept))
        }
        await self._stock_update_graph(
            client=client,
            expr_ser=as_expr_ser(graph, by_type),
            keys=keys,
            internal_priority=internal_priority or {key: number for number, key in enumerate(graph)},
            annotations={name: value for name, value in annotations.items() if name == "priority"},
            actors=actors,
            **message,
        )
        # Without a pause since the scheduler took the stubs: nobody can have asked for them yet.
        lost = [key for key in stubs if key not in self.scheduler.tasks]
        for key in lost:  # it refused the graph: a key it depends on is gone
            self._kept.pop(key, None)
        if stubs and not lost:
            self.dispatcher.submit(self.dispatcher.new_job(), plan)

    def _annotated(self, name: str, stubs: Collection[Any], kept: _Kept) -> dict[Any, Any]:
        keys = set(kept.pinned) if name in _NOT_FOR_STUBS else {*stubs, *kept.pinned}
        return annotation(name, keys, kept.annotations_by_type, kept.annotations)

    async def _plan(
        self, expr_ser: Serialized, keys: set[Any], annotations: dict[str, Any], actors: bool | list[Any] | None
    ) -> tuple[_Kept, JobPlan]:
        small = sum(memoryview(frame).nbytes for frame in expr_ser.frames) <= INLINE_EXPR_BYTES

        def read() -> Any:
            try:
                expr = deserialize(expr_ser.header, expr_ser.frames)
            except Exception as error:
                raise RuntimeError(
                    textwrap.dedent("""\
                    Error during deserialization of the task graph. This frequently
                    occurs if the Scheduler and Client have different environments.
                    For more information, see
                    https://docs.dask.org/en/stable/deployment-considerations.html#consistent-software-environments
                    """)
                ) from error
            return materialise(expr, keys)

        materialised = read() if small else await offload(read)
        tasks = materialised.tasks
        by_type = materialised.annotations_by_type
        kept = _Kept(tasks, by_type, annotations, split(tasks, keys, by_type, annotations, actors))
        while True:
            plan = await self._plan_kept(kept, keys, small)
            # While a thread was planning, keys may have been released: plan again without them.
            if all(key not in tasks or key in kept.pinned or self._is_known(key) for key in plan.externals):
                return kept, plan

    async def _plan_kept(self, kept: _Kept, keys: Collection[Any], small: bool) -> JobPlan:
        tasks, pinned = kept.tasks, kept.pinned
        known = {key for key in tasks if self._is_known(key)}
        wanted = {key for key in keys if key in tasks and key not in known and key not in pinned}
        for key in pinned:
            if key not in known:
                wanted.update(
                    dep for dep in tasks[key].dependencies if dep in tasks and dep not in known and dep not in pinned
                )
        elsewhere = known.union(pinned)
        arguments = (tasks, wanted, elsewhere, kept.annotations_by_type, kept.annotations)
        return plan_job(*arguments) if small else await offload(plan_job, *arguments)

    def _is_known(self, key: Any) -> bool:
        """Tell whether the scheduler has a key that nobody needs to compute again."""
        ts = self.scheduler.tasks.get(key)
        return ts is not None and ts.state not in ("released", "forgotten")

    # -- what the fleet worker asks -------------------------------------------------------------

    def is_stub(self, key: Hashable) -> bool:
        """Tell whether executors compute a key."""
        return key in self._kept

    def wanted(self, key: Hashable) -> None:
        """The scheduler wants a stub: answer if it is known, compute it again if it was let go."""
        entry = self.dispatcher.ledger.keys.get(key)
        if entry is None:
            self._recompute(key)
        elif entry.result is not None:
            self.finish(key, entry.result)
        elif entry.error is not None:
            self.fail(key, entry.error)

    def _recompute(self, key: Hashable) -> None:
        kept = self._kept[key]
        known = {each for each in kept.tasks if each != key and (each in kept.pinned or self._is_known(each))}
        plan = plan_job(kept.tasks, {key}, known, kept.annotations_by_type, kept.annotations)
        self.dispatcher.submit(self.dispatcher.new_job(), plan)

    def location(self, key: Hashable) -> Location | None:
        """Return where the value of a stub is, if it has one."""
        entry = self.dispatcher.ledger.keys.get(key)
        return None if entry is None or entry.result is None else entry.result.location

    # -- what the dispatcher says ---------------------------------------------------------------

    def finish(self, key: Hashable, result: Any) -> None:
        """Pass on that a key has a value."""
        if self.fleet is not None:
            self.fleet.finish(key, result)

    def fail(self, key: Hashable, error: bytes) -> None:
        """Pass on that a key has erred."""
        if self.fleet is not None:
            self.fleet.fail(key, error)

    async def export(self, key: Hashable) -> None:
        """Bring a key that was made elsewhere into the storage tier."""
        if self.fleet is not None:
            await self.fleet.export(key)

    async def value_of(self, key: Any) -> Any:
        """Wait for a key that Dask workers or clients make, and return its value."""
        while True:
            ts = self.scheduler.tasks.get(key)
            if ts is None or ts.state == "forgotten":
                raise ValueLost(f"{key!r} was released before it could be used")
            if ts.state == "erred":
                raise ValueLost(f"{key!r} has erred: {ts.exception_text}")
            if ts.state == "memory" and ts.who_has:
                break
            waiting = self._arrivals.setdefault(key, asyncio.get_running_loop().create_future())
            await asyncio.shield(waiting)
        if self.fleet is not None and key in self.fleet.data:
            return self.fleet.data[key]
        who_has = {key: [ws.address for ws in ts.who_has]}
        data, _, _, _ = await gather_from_workers(who_has, rpc=self.scheduler.rpc)
        if key not in data:
            raise ValueLost(f"no Dask worker has {key!r} any more")
        return data[key]

    # -- what the scheduler does ----------------------------------------------------------------

    def transition(self, key: Any, start: str, finish: str, *args: Any, stimulus_id: str, **kwargs: Any) -> None:
        """Follow every key: what is released here is released in the ledger."""
        if key in self._arrivals and finish in ("memory", "erred", "forgotten"):
            waiting = self._arrivals.pop(key)
            if not waiting.done():
                waiting.set_result(None)
        if finish == "released":
            if key in self.dispatcher.ledger.keys:
                self.dispatcher.feed(Released(key))
                if self.fleet is not None:
                    self.fleet.forget(key)
        elif finish == "forgotten":
            self._kept.pop(key, None)


def _host_of(address: str) -> str | None:
    """Return the host that the fleet worker listens on: the scheduler's own."""
    scheme, _, rest = address.partition("://")
    return None if scheme == "inproc" else rest.rpartition(":")[0].strip("[]")
