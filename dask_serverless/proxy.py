"""The proxy: a scheduler plugin in front of the client handlers. Knows no plan.

It takes the place of one handler, ``update-graph``, keeps the whole graph for itself and passes on
a *collapsed* graph: one stub per visible key, and unchanged whatever must run on a Dask worker. So
the scheduler's own futures, reference counts, cancellation and publishing go on working, while the
tasks in between cost it nothing.

Order is kept: the handler is awaited before the client's next message, as the stock one is.
"""

from __future__ import annotations

import asyncio
import itertools
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
from dask_serverless.collector import collector_paused
from dask_serverless.dask_graph import PLACEMENTS, JobPlan, annotation, materialise, plan_job, split
from dask_serverless.dispatch import Dispatcher
from dask_serverless.handshake import Handshake
from dask_serverless.job_events import Released
from dask_serverless.replay import Replay
from dask_serverless.scheduler_link import FleetWorker
from dask_serverless.stubs import as_expr_ser, stub_graph
from lambda_worker.core.errors import PlatformError, ValueLost
from lambda_worker.core.wire import Location

logger = logging.getLogger("dask_serverless.proxy")

#: The fleet worker's name, which stubs are restricted to.
FLEET = "serverless"

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
        self.dispatcher = Dispatcher(backend, self, scheduler.address)  # type: ignore[arg-type]
        self._kept: dict[Hashable, _Kept] = {}
        self._classes = backend.settings.function_classes
        self._closing = False
        self._replacing: asyncio.Future[None] | None = None
        self._again: dict[Hashable, None] = {}
        self._plannings = itertools.count()
        self._arrivals: dict[Hashable, asyncio.Future[None]] = {}
        self._replay = Replay(self)
        self._handshake = Handshake(scheduler)
        self._stock_update_graph = scheduler.stream_handlers["update-graph"]

    # -- life -----------------------------------------------------------------------------------

    async def start(self, scheduler: Scheduler | None = None) -> None:
        """Take the handler's place and register the fleet worker."""
        if self.fleet is not None:  # distributed starts its plugins, too
            return
        self.dispatcher.start()
        await self._start_fleet()
        self.scheduler.stream_handlers["update-graph"] = self.update_graph_message
        self._replay.install()
        self._handshake.install()
        self.scheduler.add_plugin(self)

    async def _start_fleet(self) -> None:
        scheduler = self.scheduler
        self.fleet = FleetWorker(
            scheduler.address,
            proxy=self,
            name=FLEET,
            nthreads=max(1, self.backend.ceiling),
            memory_limit=0,
            security=scheduler.security,
            host=_host_of(scheduler.address),
            dashboard=False,
        )
        # Shown to those who look; nothing is limited by it, since this "worker" is part of the user's process.
        self.fleet.memory_manager.memory_limit = max(1, self.backend.ceiling) * self.backend.settings.lambda_memory
        await self.fleet

    async def close(self) -> None:
        """Give the handler back, and stop everything that was started."""
        self._closing = True
        if self.scheduler.stream_handlers.get("update-graph") == self.update_graph_message:
            self.scheduler.stream_handlers["update-graph"] = self._stock_update_graph
        self._replay.uninstall()
        self._handshake.uninstall()
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
        # What this graph builds on must not be released while it is being planned.
        holder = f"serverless-planning-{next(self._plannings)}"
        try:
            kept, plan = await self._plan(expr_ser, keys, annotations, actors, holder)
            stubs = stub_graph((*plan.visible, *plan.pointers), plan.sources())
            graph = {**stubs, **{key: kept.tasks[key] for key in kept.pinned}}
            by_type = {
                name: found
                for name in (*kept.annotations_by_type, *annotations)
                if (found := self._annotated(name, stubs, kept))
            }
            # An ordinary Dask worker beside the fleet must not be given a stub.
            by_type["workers"] = {**dict.fromkeys(stubs, [FLEET]), **by_type.get("workers", {})}
            collapsed = as_expr_ser(graph, by_type)
        except Exception as error:
            self.drop_holder(holder)
            self._refuse(keys, client, error)
            return
        for key in stubs:
            self._kept[key] = kept
        with collector_paused():  # a task state for every stub
            await self._stock_update_graph(
                client=client,
                expr_ser=collapsed,
                keys=keys,
                internal_priority=internal_priority or {key: number for number, key in enumerate(graph)},
                annotations={},
                actors=actors,
                **message,
            )
        self._show_annotations(stubs, kept)
        # Without a pause since the scheduler took the stubs: nobody can have asked for them yet.
        lost = [key for key in stubs if key not in self.scheduler.tasks]
        for key in lost:  # it refused the graph: a key it depends on is gone
            self._kept.pop(key, None)
        if stubs and not lost:
            self.dispatcher.submit(self.dispatcher.new_job(), plan)
        self.drop_holder(holder)

    def _refuse(self, keys: Collection[Any], client: str, error: Exception) -> None:
        """Tell a client that its graph cannot be computed, as the stock handler would."""
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

    def _hold(self, keys: Collection[Any], holder: str) -> None:
        """Keep keys alive under a name of our own, as variables and queues do."""
        if keys:
            self.scheduler.client_desires_keys(keys, holder)

    def drop_holder(self, holder: str) -> None:
        """Let go what is kept alive under a name of our own."""
        held = self.scheduler.clients.get(holder)
        if held is not None:
            self.scheduler.client_releases_keys([ts.key for ts in held.wants_what], holder)
            del self.scheduler.clients[holder]

    def _show_annotations(self, stubs: Collection[Any], kept: _Kept) -> None:
        """Have plugins of the scheduler find on a stub what the user wrote, and not what holds it to the fleet."""
        kept_back = {
            name: annotation(name, set(stubs), kept.annotations_by_type, kept.annotations)
            for name in _NOT_FOR_STUBS
            if name in kept.annotations_by_type or name in kept.annotations
        }
        for key in stubs:
            ts = self.scheduler.tasks.get(key)
            if ts is not None and ts.annotations:
                ts.annotations.pop("workers", None)
                ts.annotations.update((name, found[key]) for name, found in kept_back.items() if key in found)
                ts.annotations = ts.annotations or None

    def _annotated(self, name: str, stubs: Collection[Any], kept: _Kept) -> dict[Any, Any]:
        keys = set(kept.pinned) if name in _NOT_FOR_STUBS else {*stubs, *kept.pinned}
        return annotation(name, keys, kept.annotations_by_type, kept.annotations)

    async def _plan(
        self,
        expr_ser: Serialized,
        keys: set[Any],
        annotations: dict[str, Any],
        actors: bool | list[Any] | None,
        holder: str,
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
        pinned = kept.pinned
        known = {key for key in tasks if self._is_known(key)}
        # Futures of other graphs are referred to, but are not in this one.
        referred = {dep for task in tasks.values() for dep in task.dependencies if dep not in tasks}
        self._hold([key for key in {*known, *keys, *referred} if self._is_known(key)], holder)
        wanted = {key for key in keys if key in tasks and key not in known and key not in pinned}
        for key in pinned:
            if key not in known:
                wanted.update(
                    dep for dep in tasks[key].dependencies if dep in tasks and dep not in known and dep not in pinned
                )
        arguments = (tasks, wanted, known.union(pinned), by_type, annotations, self._classes)
        return kept, plan_job(*arguments) if small else await offload(plan_job, *arguments)

    def _is_known(self, key: Any) -> bool:
        """Tell whether the scheduler has a key that nobody needs to compute again."""
        ts = self.scheduler.tasks.get(key)
        return ts is not None and ts.state not in ("released", "forgotten")

    # -- what the fleet worker asks -------------------------------------------------------------

    def is_stub(self, key: Hashable) -> bool:
        """Tell whether executors compute a key."""
        return key in self._kept

    def kept_with(self, key: Hashable) -> _Kept | None:
        """Return the graph of the user's in which a key is a task, if it is still kept."""
        kept = self._kept.get(key)
        if kept is None:
            kept = next((each for each in self._kept.values() if key in each.tasks), None)
        return kept

    def wanted(self, key: Hashable) -> None:
        """The scheduler wants a stub: answer if it is known, compute it again if it was let go."""
        entry = self.dispatcher.ledger.keys.get(key)
        # A key that somebody waits for as made elsewhere, but that is ours to make.
        forgotten = entry is not None and entry.pending and entry.job is None and not entry.pointer
        if entry is None or forgotten:
            if not self._again:
                asyncio.get_running_loop().call_soon(self._compute_again)
            self._again[key] = None
        elif entry.result is not None:
            self.finish(key, entry.result)
        elif entry.error is not None:
            self.fail(key, entry.error)

    def _compute_again(self) -> None:
        """Plan once more, from the kept graphs, the keys that were asked for again in this turn of the loop."""
        keys, self._again = self._again, {}
        by_graph: dict[int, list[Any]] = {}
        for key in keys:
            if key in self._kept:
                by_graph.setdefault(id(self._kept[key]), []).append(key)
        for wanted in by_graph.values():
            kept = self._kept[wanted[0]]
            # Only what the stubs themselves keep alive may be counted on.
            known = set(kept.pinned)
            for key in wanted:
                if (ts := self.scheduler.tasks.get(key)) is not None:
                    known.update(dependency.key for dependency in ts.dependencies)
            known.difference_update(wanted)
            plan = plan_job(kept.tasks, wanted, known, kept.annotations_by_type, kept.annotations, self._classes)
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

    def task_event(self, topic: Any, message: Any) -> None:
        """Pass on what a task logs, prints or warns of through Dask."""
        self.scheduler.log_event(topic, message)

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
        value = data[key]  # the scheduler's own connections leave values as they travel
        return deserialize(value.header, value.frames) if isinstance(value, Serialized) else value

    # -- what the scheduler does ----------------------------------------------------------------

    def transition(self, key: Any, start: str, finish: str, *args: Any, stimulus_id: str, **kwargs: Any) -> None:
        """Follow every key: what is released here is released in the ledger."""
        if key in self._arrivals and finish in ("memory", "erred", "forgotten"):
            waiting = self._arrivals.pop(key)
            if not waiting.done():
                waiting.set_result(None)
        if finish not in ("released", "forgotten"):
            return
        if key in self.dispatcher.ledger.keys:
            self.dispatcher.feed(Released(key))
        if self.fleet is not None:
            self.fleet.forget(key, for_good=finish == "forgotten")
        if finish == "forgotten":
            self._kept.pop(key, None)

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        """The fleet worker is part of the cluster: when the scheduler lets it go (as it does with every
        worker that has no nanny in `Client.restart`), another one takes its place."""
        if self.fleet is not None and worker == self.fleet.address and not self._closing:
            self._replacing = asyncio.ensure_future(self._replace_fleet(self.fleet))

    async def _replace_fleet(self, old: FleetWorker) -> None:
        await old.close(nanny=False, reason="replaced")
        if not self._closing:
            await self._start_fleet()


def _host_of(address: str) -> str | None:
    """Return the host that the fleet worker listens on: the scheduler's own."""
    scheme, _, rest = address.partition("://")
    return None if scheme == "inproc" else rest.rpartition(":")[0].strip("[]")
