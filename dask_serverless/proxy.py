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
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any

from distributed import Scheduler
from distributed.core import error_message
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.protocol import Serialized
from distributed.utils import offload
from distributed.utils_comm import gather_from_workers

from dask_serverless.attendant import Attendant
from dask_serverless.backend import Backend
from dask_serverless.collector import collector_paused
from dask_serverless.dask_graph import PLACEMENTS, JobPlan, Materialised, annotation
from dask_serverless.dispatch import Dispatcher
from dask_serverless.durable import Durable
from dask_serverless.fleet_nanny import FleetNanny
from dask_serverless.grace import Grace
from dask_serverless.handshake import Handshake
from dask_serverless.holders import Holders
from dask_serverless.job_events import Released
from dask_serverless.placement import prefer_dask_workers
from dask_serverless.replay import Replay
from dask_serverless.scheduler_link import FleetWorker, ShownBytes
from dask_serverless.stock_scheduler import reachable_address
from dask_serverless.stubs import as_expr_ser, stub_graph
from dask_serverless.submissions import Replan, Submission, Survey, survey
from dask_serverless.successor import Successor
from lambda_worker.core.errors import PlatformError, ValueLost
from lambda_worker.core.wire import Location
from lambda_worker.task_runner import describe_error

logger = logging.getLogger("dask_serverless.proxy")

#: The fleet worker's name, which stubs are restricted to.
FLEET = "serverless"

#: How long a Dask worker may be silent about a value before the value is given up: as long as a connection may take.
LOST_SECONDS_MAX = 30.0

#: Annotations that executors or the split answer for; a stub must not carry them.
_NOT_FOR_STUBS = (*PLACEMENTS, "retries", "serverless", "executor")


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
        self.resources: Mapping[str, float] | None = None  # what the fleet worker declares
        self.nanny = FleetNanny(self, scheduler.security)
        self.dispatcher = Dispatcher(backend, self, reachable_address(scheduler))  # type: ignore[arg-type]
        self.attendant = Attendant(scheduler, self.dispatcher)
        self.kept: dict[Hashable, Submission] = {}  #: the graph of each stub
        self._classes = backend.settings.function_classes
        self._closing = False
        self._replacing: asyncio.Future[None] | None = None
        self._again: dict[Hashable, None] = {}
        self._plannings = itertools.count()
        self._planned_again: set[Hashable] = set()
        self._plannings_again: set[asyncio.Task[None]] = set()
        self._arrivals: dict[Hashable, asyncio.Future[None]] = {}
        self._replay = Replay(self)
        self._handshake = Handshake(scheduler)
        self._successor = Successor(self, FLEET)
        self.holders = Holders(scheduler)
        self._grace = Grace(scheduler, self.holders, backend.settings.client_grace)
        self.durable = Durable(self)
        self.update_stock: Callable[..., Any] = scheduler.stream_handlers["update-graph"]
        self._stock_gather = scheduler.handlers["gather"]

    # -- life -----------------------------------------------------------------------------------

    async def start(self, scheduler: Scheduler | None = None) -> None:
        """Take the handler's place and register the fleet worker."""
        if self.fleet is not None:  # distributed starts its plugins, too
            return
        found = await self.dispatcher.legacy.take_over()
        self.dispatcher.start()
        await self.attendant.start()
        await self.nanny.listen_beside(self.scheduler.address, _host_of(self.scheduler.address))
        await self._start_fleet()
        prefer_dask_workers(self.scheduler, FLEET)
        self.scheduler.stream_handlers["update-graph"] = self.update_graph_message
        self.scheduler.handlers["gather"] = self.gather_message
        self._replay.install()
        self._handshake.install()
        self._grace.install()  # around the handshake: who is refused was never here
        self._successor.install()
        self.durable.install()
        self.scheduler.add_plugin(self)
        if found is not None:
            await self._successor.show(found)

    async def _start_fleet(self, predecessor: str = "") -> None:
        scheduler = self.scheduler
        address = reachable_address(scheduler)
        executors = max(1, self.dispatcher.places.ceiling)
        self.fleet = FleetWorker(
            scheduler.address,
            proxy=self,
            predecessor=predecessor,
            name=FLEET,
            nthreads=executors * self.backend.settings.executor_threads,
            memory_limit=0,
            security=scheduler.security,
            # Not the scheduler's own address if that is inside this process: Dask workers read from the fleet worker.
            protocol=address.partition("://")[0],
            host=_host_of(address),
            dashboard=False,
            nanny=self.nanny.address,
            resources=dict(self.resources) if self.resources else None,
        )
        # Shown to those who look; nothing is limited by it, since this "worker" is part of the user's process.
        self.fleet.memory_manager.memory_limit = executors * self.backend.settings.lambda_memory
        await self.fleet
        ws = scheduler.workers[self.fleet.address]
        ws.memory_limit = ShownBytes(ws.memory_limit)
        self.fleet.take_short_cut()

    async def close(self) -> None:
        """Give the handler back, and stop everything that was started."""
        self._closing = True
        if self.scheduler.stream_handlers.get("update-graph") == self.update_graph_message:
            self.scheduler.stream_handlers["update-graph"] = self.update_stock
            self.scheduler.handlers["gather"] = self._stock_gather
        self._replay.uninstall()
        self._grace.uninstall()
        self._handshake.uninstall()
        self.durable.uninstall()
        self._successor.uninstall()
        for waiting in (*self._arrivals.values(), *self._plannings_again):
            waiting.cancel()
        self.attendant.close()
        await self.dispatcher.close()
        if self.fleet is not None:
            await self.fleet.close(nanny=False, reason="cluster-close")
        await self.nanny.close()

    def stats(self) -> dict[str, int]:
        """Return counters since the start."""
        dispatcher = self.dispatcher
        counts = dispatcher.counts | dispatcher.recovery.counts | dispatcher.losses.counts | dispatcher.backups.counts
        counts |= dispatcher.rebuilding.counts
        for name, amount in self.backend.store.counters().items():
            counts[name] = counts.get(name, 0) + amount
        graphs = set(self.kept.values())
        counts["graphs_kept"] = len(graphs)
        counts["proxy_bytes"] = sum(graph.nbytes for graph in graphs) + self.dispatcher.held_bytes()
        counts["tasks_under_way"] = sum(len(job.graph) for job in self.dispatcher.ledger.jobs.values())
        return counts

    def set_ceiling(self, ceiling: int) -> None:
        """Change how many executors may live at once."""
        self.dispatcher.set_ceiling(ceiling)
        if self.fleet is not None:
            settings = self.backend.settings
            self.fleet.resize(max(1, ceiling), settings.executor_threads, settings.lambda_memory)

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
        submission = Submission(expr_ser, frozenset(keys), annotations)
        try:
            found = await self._survey(submission, actors, holder)
            pinned = submission.pinned
            plan, sources, again = await self._plan(submission, found)
            stubs = stub_graph((*plan.visible, *plan.pointers), sources)
            graph = {**stubs, **{key: found.materialised.tasks[key] for key in pinned}}
            own = found.materialised.annotations_by_type
            by_type = {
                name: values
                for name in (*own, *annotations)
                if (values := annotation(name, set(pinned) if name in _NOT_FOR_STUBS else set(graph), own, annotations))
            }
            # An ordinary Dask worker beside the fleet must not be given a stub.
            by_type["workers"] = {**dict.fromkeys(stubs, [FLEET]), **by_type.get("workers", {})}
            collapsed = as_expr_ser(graph, by_type)
            shown = {
                name: annotation(name, set(stubs), own, annotations)
                for name in _NOT_FOR_STUBS
                if name in own or name in annotations
            }
            del found, own  # a million tasks, perhaps: the plan has what it needs of them
        except Exception as error:
            self.holders.drop(holder)
            self._refuse(keys, client, error)
            return
        for key in stubs:
            self.kept[key] = submission
        # A graph that needs nothing of others, but what is there and held, cannot be refused for what they
        # let go: it need not wait.
        there = all(self.location(key) is not None and self._is_known(key) for key in plan.externals)
        early = bool(stubs) and there and not (plan.pointers or pinned)
        if early:
            self.dispatcher.submit(self.dispatcher.new_job(), plan, light=submission.light, again=again)
        with collector_paused():  # a task state for every stub
            await self.update_stock(
                client=client,
                expr_ser=collapsed,
                keys=keys,
                internal_priority=internal_priority or {key: number for number, key in enumerate(graph)},
                annotations={},
                actors=actors,
                **message,
            )
        self._show_annotations(stubs, shown)
        # Without a pause since the scheduler took the stubs: nobody can have asked for them yet.
        lost = [key for key in stubs if key not in self.scheduler.tasks]
        for key in lost:  # it refused the graph: a key it depends on is gone
            self.kept.pop(key, None)
            if early:
                self.dispatcher.feed(Released(key))
        self.holders.hand_over(keys)
        if stubs and not lost and not early:
            self.dispatcher.submit(self.dispatcher.new_job(), plan, light=submission.light, again=again)
        self.holders.drop(holder)

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

    def _show_annotations(self, stubs: Collection[Any], shown: Mapping[str, Mapping[Any, Any]]) -> None:
        """Have plugins of the scheduler find on a stub what the user wrote, and not what holds it to the fleet."""
        for key in stubs:
            ts = self.scheduler.tasks.get(key)
            if ts is not None and ts.annotations:
                ts.annotations.pop("workers", None)
                ts.annotations.update((name, found[key]) for name, found in shown.items() if key in found)
                ts.annotations = ts.annotations or None

    async def _survey(self, submission: Submission, actors: bool | list[Any] | None, holder: str) -> Survey:
        """Read a graph, and hold what it builds on."""
        arguments = (submission, actors, self.scheduler.tasks.__contains__)
        found = survey(*arguments) if submission.small else await offload(survey, *arguments)
        submission.pinned = found.pinned
        self.holders.hold(
            [key for key in {*found.seen, *submission.keys, *found.referred} if self._is_known(key)], holder
        )
        return found

    async def _plan(self, submission: Submission, found: Survey) -> tuple[JobPlan, dict[Any, set[Any]], Replan]:
        """Plan what executors shall do of a graph; find out what each visible key keeps alive, how to plan again."""
        tasks, pinned = found.materialised.tasks, found.pinned
        known = set(filter(self._is_known, found.seen))
        wanted = {key for key in submission.keys if key in tasks and key not in known and key not in pinned}
        for key in pinned:
            if key not in known:
                wanted.update(
                    dep for dep in tasks[key].dependencies if dep in tasks and dep not in known and dep not in pinned
                )

        again = Replan(submission, wanted, known.union(pinned), self._classes)

        def make(read: Materialised) -> tuple[JobPlan, dict[Any, set[Any]]]:
            plan = again.of(read)
            return plan, plan.sources()

        plan, sources = make(found.materialised) if submission.small else await offload(make, found.materialised)
        return plan, sources, again

    def _is_known(self, key: Any) -> bool:
        """Tell whether the scheduler has a key that nobody needs to compute again."""
        ts = self.scheduler.tasks.get(key)
        return ts is not None and ts.state not in ("released", "forgotten")

    async def gather_message(self, keys: Collection[Any], serializers: list[str] | None = None) -> dict[str, Any]:
        """Handle ``gather`` in the scheduler's place: stubs' values come straight from the storage tier.

        Through the fleet worker, as the stock handler would have it, they would cross a socket of this
        very process, with a copy at either end.
        """
        fleet = self.fleet
        # What was scattered may be here, and a copy of it stored.
        stubs = [key for key in keys if self._has_value(key) and (fleet is None or key not in fleet.data)]
        if not stubs or fleet is None or (serializers is not None and "pickle" not in serializers):
            return await self._stock_gather(keys=keys, serializers=serializers)  # type: ignore[no-any-return]
        values = await fleet.values_of(stubs)
        lost = [key for key in stubs if key not in values and not self._is_elsewhere(key)]
        if lost:  # the client asks again when they have been computed again
            return {"status": "error", "keys": lost}
        others = [key for key in keys if key not in values]
        if not others:
            self.scheduler.log_event("all", {"action": "gather", "count": len(values)})
            return {"status": "OK", "data": values}
        reply: dict[str, Any] = await self._stock_gather(keys=others, serializers=serializers)
        if reply["status"] == "OK":
            reply["data"].update(values)
        return reply

    def _has_value(self, key: Any) -> bool:
        """Tell whether the scheduler takes a stub for done, and its value is there."""
        ts = self.scheduler.tasks.get(key)
        return ts is not None and ts.state == "memory" and self.location(key) is not None

    def _is_elsewhere(self, key: Any) -> bool:
        """Tell whether the storage tier has a copy only: a Dask worker, or this process, has a value itself."""
        fleet, ts = self.fleet, self.scheduler.tasks.get(key)
        if ts is None or ts.state != "memory" or fleet is None:
            return False
        return key in fleet.data or any(ws.address != fleet.address for ws in ts.who_has or ())

    # -- what the fleet worker asks -------------------------------------------------------------

    def is_stub(self, key: Hashable) -> bool:
        """Tell whether executors compute a key."""
        return key in self.kept

    def graphs_with(self, key: Hashable) -> list[Submission]:
        """Return the users' graphs, of those that are kept, in which a key may be a task."""
        kept = self.kept.get(key)
        return [kept] if kept is not None else list(dict.fromkeys(self.kept.values()))

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
        by_graph: dict[Submission, list[Any]] = {}
        for key in keys:
            if key in self.kept and key not in self._planned_again:
                by_graph.setdefault(self.kept[key], []).append(key)
        for submission, wanted in by_graph.items():
            self._planned_again.update(wanted)
            task = asyncio.ensure_future(self._plan_again(submission, wanted))
            self._plannings_again.add(task)
            task.add_done_callback(self._plannings_again.discard)

    async def _plan_again(self, submission: Submission, wanted: list[Any]) -> None:
        # Only what the stubs themselves keep alive may be counted on.
        known = set(submission.pinned)
        for key in wanted:
            if (ts := self.scheduler.tasks.get(key)) is not None:
                known.update(dependency.key for dependency in ts.dependencies)
        known.difference_update(wanted)

        again = Replan(submission, wanted, known, self._classes)
        try:
            plan = again() if submission.small else await offload(again)
        except Exception as error:  # it could be read and planned the first time
            logger.exception("%r could not be planned again", submission)
            for key in wanted:
                self.fail(key, describe_error(error))
        else:
            # Meanwhile nobody may want it any more, and what nobody wants nobody would free.
            if any(self._is_awaited(key) for key in wanted):
                self.dispatcher.submit(self.dispatcher.new_job(), plan, light=submission.light, again=again)
                for key in wanted:
                    if not self._is_awaited(key):
                        self.dispatcher.feed(Released(key))
        finally:
            self._planned_again.difference_update(wanted)

    def _is_awaited(self, key: Any) -> bool:
        ts = self.scheduler.tasks.get(key)
        return ts is not None and ts.state == "processing"

    def location(self, key: Hashable) -> Location | None:
        """Return where the value of a stub is, if it has one."""
        entry = self.dispatcher.ledger.keys.get(key)
        return None if entry is None or entry.result is None else entry.result.location

    async def restart_fleet(self, reason: str) -> None:
        """Replace every process that runs tasks, and the fleet worker with what it holds.

        What was pending is asked for again, by the scheduler, of the new fleet worker.
        """
        for key, entry in list(self.dispatcher.ledger.keys.items()):
            if entry.pending and key in self.kept:
                self.dispatcher.feed(Released(key))
        await self.attendant.restart()
        old = self.fleet
        if old is not None:
            await self.scheduler.remove_worker(old.address, stimulus_id=reason, expected=True)
        if self._replacing is not None:
            await self._replacing

    # -- what the dispatcher says ---------------------------------------------------------------

    def finish(self, key: Hashable, result: Any) -> None:
        """Pass on that a key has a value."""
        if not self.attendant.errands.finish(key, result) and self.fleet is not None:
            self.fleet.finish(key, result)
            self.durable.finished(key)

    def fail(self, key: Hashable, error: bytes) -> None:
        """Pass on that a key has erred."""
        if not self.attendant.errands.fail(key, error) and self.fleet is not None:
            self.fleet.fail(key, error)

    def task_event(self, topic: Any, message: Any) -> None:
        """Pass on what a task logs, prints or warns of through Dask."""
        self.scheduler.log_event(topic, message)

    async def export(self, key: Hashable) -> None:
        """Bring a key that was made elsewhere into the storage tier."""
        if self.fleet is not None:
            await self.fleet.export(key)

    def give_up(self, key: Hashable) -> None:
        """Tell the scheduler, if executors made a value, that it is no longer there."""
        if self.fleet is not None and key in self.kept:
            self.fleet.give_up(key)

    def ask_again(self, keys: Sequence[Hashable]) -> None:
        """Have keys computed again, those for which the scheduler still waits."""
        for key in keys:
            if not self.attendant.errands.begin(key) and key in self.kept and self._is_awaited(key):
                self.wanted(key)

    async def value_of(self, key: Any) -> Any:
        """Wait for a key that Dask workers or clients make, and return its value.

        A Dask worker that dies takes values along, and the scheduler has them made again: this goes on waiting.
        What comes from another process is `Serialized`: it need not be understood here.
        """
        refused: set[str] = set()  # workers that had no answer since the value was last said to be there
        while True:
            ts = self.scheduler.tasks.get(key)
            if ts is None or ts.state == "forgotten":
                raise ValueLost(f"{key!r} was released before it could be used")
            if ts.state == "erred":
                raise ValueLost(f"{key!r} has erred: {ts.exception_text}")
            holders = {ws.address for ws in ts.who_has} if ts.state == "memory" and ts.who_has else set()
            if holders and self.fleet is not None and key in self.fleet.data:
                return self.fleet.data[key]
            if not holders - refused:
                waiting = self._arrivals.setdefault(key, asyncio.get_running_loop().create_future())
                # Who died is noticed at once by the scheduler, most often; who has lost a value, never.
                bound = LOST_SECONDS_MAX if holders else None
                try:
                    await asyncio.wait_for(asyncio.shield(waiting), bound)
                except TimeoutError:
                    raise ValueLost(f"no Dask worker has {key!r} any more") from None
                refused.clear()
                continue
            data, _, failed, _ = await gather_from_workers({key: list(holders - refused)}, rpc=self.scheduler.rpc)
            if key in data:
                return data[key]
            if failed:
                raise ValueLost(f"the value of {key!r} could not leave its Dask worker: can it be pickled?")
            refused |= holders

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
            self.kept.pop(key, None)
            self.durable.forget(key)

    def valid_workers_downscaling(self, scheduler: Scheduler, workers: list[Any]) -> list[Any]:
        """Keep the fleet worker out of it when Dask asks which workers could go."""
        return [ws for ws in workers if self.fleet is None or ws.address != self.fleet.address]

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        """The fleet worker is part of the cluster: when the scheduler lets it go (as it does with every
        worker that has no nanny in `Client.restart`), another one takes its place."""
        if self.fleet is not None and worker == self.fleet.address and not self._closing:
            self._replacing = asyncio.ensure_future(self._replace_fleet(self.fleet))

    async def _replace_fleet(self, old: FleetWorker) -> None:
        address = old.address
        await old.close(nanny=False, reason="replaced")
        if not self._closing:
            await self._start_fleet(address)


def _host_of(address: str) -> str | None:
    """Return the host that the fleet worker listens on: the scheduler's own."""
    scheme, _, rest = address.partition("://")
    return None if scheme == "inproc" else rest.rpartition(":")[0].strip("[]")
