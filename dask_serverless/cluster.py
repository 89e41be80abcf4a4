"""`ServerlessCluster`: what a user makes in the place of `distributed.LocalCluster`.

Life of a cluster: *created* → *starting* (storage tier and Lambda in threads, beside them the stock
scheduler on the cluster's loop; then the proxy) → *running* → *closing* → *closed*. A start that fails
goes to *failed* and at once to *closed*, leaving nothing.

Rules kept here:

* One teardown, in a task of its own, which every `close` waits for: a caller's timeout or
  cancellation gives up the waiting, never the teardown.
* No blocking call on the loop.
* The scheduler is stock (`stock_scheduler`).
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import datetime
import inspect
import logging
import threading
import uuid
import weakref
from collections.abc import Callable, Generator
from typing import Any, ClassVar

from dask.utils import format_bytes
from distributed import Nanny, Scheduler
from distributed.core import Status, rpc
from distributed.objects import SchedulerInfo
from distributed.security import Security
from distributed.utils import Log, Logs, silence_logging_cmgr
from tornado.ioloop import IOLoop, PeriodicCallback

from dask_serverless import cluster_arguments as arguments
from dask_serverless.backend import Backend, LocalBackend, size_left
from dask_serverless.beside_loop import bounded, in_thread
from dask_serverless.dask_workers import DaskWorkers, local_dask_worker, local_options
from dask_serverless.inquiring import InquirableCluster
from dask_serverless.plan.price import price
from dask_serverless.stock_scheduler import (
    executors_tls,
    make_scheduler,
    make_security,
    reachable_address,
    scheduler_options,
)
from lambda_worker.core.errors import PlatformError, ServerlessError

logger = logging.getLogger("dask_serverless.cluster")

HEALTH_INTERVAL_SECONDS = 1.0
#: The proxy and the scheduler say goodbye to their peers, who may be gone; the processes are ended after it.
PROXY_CLOSE_SECONDS_MAX = 10.0
SCHEDULER_CLOSE_SECONDS_MAX = 10.0
DASK_WORKERS_CLOSE_SECONDS_MAX = 90.0  # theirs is 60, and nothing may be left of them
ATEXIT_CLOSE_SECONDS_MAX = 10.0

#: Always in `ServerlessCluster.stats`, also before anything has happened.
STATS = (
    "invocations",
    "executors",
    "sandboxes_cold",
    "sandboxes_warm",
    "tasks_planned",
    "tasks_run",
    "tasks_rerun",
    "executors_lost",
    "executors_restarted",
    "executors_backed_up",
    "objects_written",
    "objects_overflowed",
    "slices_written",
    "slices_overflowed",
    "bytes_written",
    "bytes_read",
    "round_trips",
    "graphs_kept",
    "tasks_under_way",
    "proxy_bytes",
    "store_keys",
    "store_bytes",
    "overflow_bytes",
    "gb_seconds",
    "dollars",
)
#: What Lambda itself counts counts; an invocation that was sent and lost is not one.
_LAMBDA_STATS = (
    "invocations",
    "sandboxes_cold",
    "sandboxes_warm",
    "gb_seconds",
    "store_keys",
    "store_bytes",
    "overflow_bytes",
)


class ServerlessCluster(InquirableCluster):
    """A Dask cluster whose tasks run in Lambda functions that schedule among themselves.

    A drop-in for `distributed.LocalCluster`. This kind runs on this machine: a stock scheduler in this
    process, real storage servers and a local Lambda service beside it, all on loopback.

    Parameters
    ----------
    name
        Name of the cluster.
    n_workers
        How many executors may run at once (the ceiling); default: ``serverless.workers.count``, else
        the CPU count. 0: none until `scale`.
    threads_per_worker
        How many tasks one executor runs at the same time; default: ``serverless.executor.threads`` (1). Without
        `n_workers` there are as many executors as fill this machine's cores.
    processes, worker_class, worker_dashboard_address, services, worker_services, start
        Accepted for LocalCluster's sake; a value that means something there warns.
    loop, asynchronous, security, protocol, blocked_handlers, interface, service_kwargs, scheduler_kwargs
        As for LocalCluster. With TLS (``security=True`` or a `Security`) tasks that are clients use it as well.
    host, ip
        Where the scheduler listens; default: loopback.
    scheduler_port
        Port of the scheduler; 0: any.
    silence_logs
        Level below which distributed's logs are not shown; falsy: as they are.
    dashboard_address
        Where the dashboard listens. Without a host it is the scheduler's host, so loopback by default
        (LocalCluster opens all interfaces). None: no dashboard.
    scheduler_sync_interval
        Seconds between exchanges of cluster information with the scheduler.
    memory_limit
        Memory of one Lambda, as ``"2 GiB"``; "auto": ``serverless.lambda.memory``. None and 0, which lift the
        limit in LocalCluster, warn and give the largest there is.
    timeout
        How long one invocation may take, as ``"5 minutes"``.
    preload
        Modules to import before sandboxes are forked.
    environment, env
        Environment variables for tasks.
    local_directory
        Where a private temporary directory is made.
    dask_workers
        How many ordinary Dask workers run beside the executors, for actors and tasks that ask for a Dask
        worker (``workers=``, ``resources=``, ``dask.annotate(serverless=False)``). Each is a process. Default:
        ``serverless.dask-workers.count``. Without any, such tasks run in this process.
    dask_worker_options
        Options of `distributed.Nanny` and `distributed.Worker` for them, as ``{"nthreads": 2}``.
    resources
        What a Dask worker declares; if there are none, this process's own.
    storage_shards, storage_max_memory
        How many storage servers hold objects, and their memory together.
    budget
        What the cluster may spend on Lambda, in USD; default: ``serverless.budget.dollars`` (no limit). See
        `set_budget`.
    persistent
        Whether the cluster outlives the death of this process, for ``serverless.persistent.timeout``. It needs a
        `name`; a cluster that was left under that name is taken over with its results and the jobs under way, else a
        new one is started. While the process lives, others that use the name get `ClusterInUse`. `close` ends all.
    shutdown_on_close
        Whether the cluster closes when the interpreter ends.
    quiet
        Whether messages about the cluster's life are only kept for `get_logs`, not printed.
    **others
        Further options of LocalCluster, Worker and Nanny: warned of. Unknown names: TypeError.

    Examples
    --------
    >>> from distributed import Client
    >>> cluster = ServerlessCluster(n_workers=4, memory_limit="1 GiB")  # doctest: +SKIP
    >>> client = Client(cluster)  # doctest: +SKIP
    """

    _instances: ClassVar[weakref.WeakSet[ServerlessCluster]] = weakref.WeakSet()
    _proxy_class: Callable[[Scheduler, Backend], Any] | None = None  # None: dask_serverless.proxy.Proxy
    _backend_class: Callable[..., Any] = LocalBackend

    def __init__(
        self,
        name: str | None = None,
        n_workers: int | None = None,
        threads_per_worker: int | None = None,
        processes: bool | None = None,
        loop: IOLoop | None = None,
        start: Any = None,
        host: str | None = None,
        ip: str | None = None,
        scheduler_port: int = 0,
        silence_logs: int | str | bool | None = logging.WARN,
        dashboard_address: Any = ":8787",
        worker_dashboard_address: Any = None,
        services: Any = None,
        worker_services: Any = None,
        service_kwargs: dict[str, Any] | None = None,
        asynchronous: bool = False,
        security: Security | bool | None = None,
        protocol: str | None = None,
        blocked_handlers: list[str] | None = None,
        interface: str | None = None,
        worker_class: Any = None,
        scheduler_kwargs: dict[str, Any] | None = None,
        scheduler_sync_interval: Any = 1,
        *,
        memory_limit: Any = "auto",
        timeout: Any = None,
        preload: Any = None,
        environment: dict[str, str] | None = None,
        env: dict[str, str] | None = None,
        local_directory: Any = None,
        dask_workers: int | None = None,
        dask_worker_options: dict[str, Any] | None = None,
        resources: dict[str, float] | None = None,
        storage_shards: int | None = None,
        storage_max_memory: Any = None,
        budget: float | None = None,
        persistent: bool = False,
        shutdown_on_close: bool = True,
        quiet: bool = True,
        **others: Any,
    ):
        # Everything that can be refused is refused before `Cluster.__init__`, which may start a thread.
        self.status = Status.closed  # for __del__, should this fail
        arguments.check_others(others, _OWN_NAMES)
        arguments.check_worker_shape(
            processes, worker_class, worker_dashboard_address, services, worker_services, start
        )
        ceiling = arguments.check_ceiling(n_workers)
        self.settings = arguments.load_settings(
            n_workers=ceiling,
            threads_per_worker=threads_per_worker,
            memory_limit=memory_limit,
            timeout=timeout,
            preload=preload,
            storage_shards=storage_shards,
            storage_max_memory=storage_max_memory,
            dask_workers=dask_workers,
            budget=budget,
        )
        self._dask_worker_options = arguments.check_dask_worker_options(dask_worker_options, resources)
        self._ceiling = self.settings.workers_count if ceiling is None else ceiling
        self.security = make_security(security)
        self._scheduler_options = scheduler_options(
            host=host if ip is None else ip,
            port=scheduler_port,
            protocol=protocol,
            interface=interface,
            security=self.security,
            dashboard_address=dashboard_address,
            blocked_handlers=blocked_handlers,
            service_kwargs=service_kwargs,
            scheduler_kwargs=scheduler_kwargs,
        )
        variables = arguments.check_environment(environment, env)
        directory = arguments.check_local_directory(local_directory)
        arguments.check_persistent(persistent, name, self.settings)
        name = str(uuid.uuid4())[:8] if name is None else str(name)
        tls = executors_tls(self.security)
        self._local = self._backend_class(name, self._ceiling, self.settings, variables, directory, tls, persistent)
        self.persistent = persistent
        self._scheduler_port = scheduler_port
        self._variables = variables
        self._silence_logs = silence_logs

        if loop is None and asynchronous:
            loop = IOLoop.current()
        self.processes = True
        self.shutdown_on_close = shutdown_on_close
        self.scheduler: Scheduler | None = None
        self._proxy: Any = None
        self._dask_workers: DaskWorkers | None = None
        self._dask_workers_wanted = self.settings.dask_workers_count
        self._teardown: asyncio.Task[None] | None = None
        self._failure: PlatformError | None = None
        self._background: set[asyncio.Task[Any]] = set()
        self._exit_stack = contextlib.ExitStack()
        super().__init__(
            asynchronous=asynchronous,
            loop=loop,
            name=name,
            quiet=quiet,
            scheduler_sync_interval=scheduler_sync_interval,
        )
        if silence_logs:
            self._exit_stack.enter_context(silence_logging_cmgr(level=silence_logs))
            self._exit_stack.enter_context(silence_logging_cmgr(level=silence_logs, root="bokeh"))
        self._instances.add(self)

        if not self.called_from_running_loop:
            self._loop_runner.start()
            try:
                self.sync(self._start)
            except BaseException:
                # Also after Ctrl-C, which ends the waiting and not the start.
                with contextlib.suppress(Exception):
                    self.sync(self._close, callback_timeout=60)
                self._loop_runner.stop()
                raise

    # -- start ----------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, Any, ServerlessCluster]:
        async def started() -> ServerlessCluster:
            if self.status in (Status.created, Status.starting):
                await self._start()
            return self

        return started().__await__()

    async def _start(self) -> None:
        while self.status == Status.starting:
            await asyncio.sleep(0.01)
        if self.status == Status.running:
            return
        if self.status != Status.created:
            raise ValueError("Cluster is closed")
        self.status = Status.starting
        try:
            await self._start_parts()
            await super()._start()
        except BaseException as error:
            self.status = Status.failed
            await self._close()
            if isinstance(error, ServerlessError) or not isinstance(error, Exception):
                raise
            raise RuntimeError(f"Cluster failed to start: {error}") from error
        self._spawn(self._close_after_scheduler())
        self._spawn(self._catch_up())

    async def _start_parts(self) -> None:
        # Beside each other: the scheduler loads its dashboard (a second of CPU) while processes start.
        backend_start = asyncio.ensure_future(in_thread(self._local.start))
        try:
            if self.persistent:  # its address may be known
                await asyncio.wait([backend_start])
            scheduler = await self._start_scheduler()
        finally:
            # Waited for in any case: a thread cannot be cancelled, and what it starts must be closed.
            await asyncio.wait([backend_start])
            if not backend_start.cancelled():
                backend_start.exception()  # seen: the scheduler's own failure is the first, and is raised
        backend = backend_start.result()  # bound: it is done
        self.settings = backend.settings
        self._proxy = self._make_proxy(scheduler, backend)
        await self._proxy.start()
        self._dask_workers = DaskWorkers(scheduler, self._make_dask_worker)
        await self._dask_workers.scale(self._dask_workers_wanted)
        address = getattr(scheduler, "external_address", None) or scheduler.address
        self.scheduler_comm = rpc(address, connection_args=self.security.get_connection_args("client"))
        self.periodic_callbacks["health"] = PeriodicCallback(self._check_health, HEALTH_INTERVAL_SECONDS * 1000)
        await in_thread(self._local.note_scheduler, address)
        self._note(f"{self._local!r}, scheduler at {address}")

    async def _start_scheduler(self) -> Scheduler:
        """Start the scheduler; of a cluster that was taken over, where clients remember it, if that can be."""
        before = self._local.scheduler_address
        if before is not None and not self._scheduler_port and (port := before.rpartition(":")[2]).isdigit():
            try:
                self.scheduler = make_scheduler(self._scheduler_options | {"port": int(port)})
                return await self.scheduler
            except (OSError, RuntimeError) as error:
                logger.info("the scheduler cannot listen where it was, at %s: %s", before, error)
        self.scheduler = make_scheduler(self._scheduler_options)
        return await self.scheduler

    def _make_proxy(self, scheduler: Scheduler, backend: Backend) -> Any:
        make = self._proxy_class
        if make is None:
            from dask_serverless.proxy import Proxy

            make = Proxy
        proxy = make(scheduler, backend)
        proxy.resources = self._dask_worker_options.get("resources")
        return proxy

    def _make_dask_worker(self, name: str) -> Any:
        assert self.scheduler is not None and self._local.directory is not None
        options = local_options(
            self.settings, self.security, self._silence_logs, self._local.directory, self._variables
        )
        environment = {**options["env"], **(self._dask_worker_options.get("env") or {})}
        options |= {**self._dask_worker_options, "env": environment}
        return local_dask_worker(reachable_address(self.scheduler), name, options)

    async def _close_after_scheduler(self) -> None:
        """Close when the scheduler ends by itself: idle timeout, or a client that shut it down by address."""
        assert self.scheduler is not None
        await self.scheduler.finished()
        if self.status == Status.running:
            await self._close()

    async def _check_health(self) -> None:
        """Tell the proxy, once, that a process of the backend has died."""
        if self._failure is not None or self.status != Status.running:
            return
        try:
            await in_thread(self._local.check)
        except PlatformError as failure:
            if self._failure is None and self.status == Status.running:
                self._failure = failure
                self._note(str(failure))
                self._proxy.backend_failed(failure)

    # -- close ----------------------------------------------------------------------------------

    def close(self, timeout: float | None = None) -> Any:
        """Close the cluster: end its scheduler, its processes, and remove its files.

        Parameters
        ----------
        timeout
            Seconds to wait for it; the closing goes on if they are not enough.
        """
        closed = super().close(timeout)
        if not self.asynchronous:
            self._loop_runner.stop()
        return closed

    async def _close(self) -> None:
        if self.status == Status.closed:
            return
        if self._teardown is None:
            self._teardown = asyncio.ensure_future(self._tear_down())
        await asyncio.shield(self._teardown)

    async def _tear_down(self) -> None:
        while self.status == Status.starting:  # a start under way cannot be stopped in the middle
            await asyncio.sleep(0.01)
        # A start that fails leaves what others have done to who tries again.
        end = self._local.detach if self._local.attached and self.status == Status.failed else self._local.close
        self.status = Status.closing
        try:
            if self._adaptive is not None:
                self._adaptive.stop()
            if health := self.periodic_callbacks.get("health"):
                health.stop()
            if self._dask_workers is not None:
                await bounded(self._dask_workers.close(), DASK_WORKERS_CLOSE_SECONDS_MAX, "the Dask workers")
            if self._proxy is not None:
                await bounded(self._proxy.close(), PROXY_CLOSE_SECONDS_MAX, "the proxy")
            if self.scheduler is not None:
                await bounded(self.scheduler.close(), SCHEDULER_CLOSE_SECONDS_MAX, "the scheduler")
        finally:
            try:
                await in_thread(end)
            finally:
                current = asyncio.current_task()
                for task in self._background - {current}:
                    task.cancel()
                self._exit_stack.close()
                await super()._close()
                self.scheduler_info = SchedulerInfo({**self.scheduler_info, "workers": {}})

    async def __aenter__(self) -> ServerlessCluster:
        await self
        return self

    def _note(self, text: str) -> None:
        """Keep a line for `get_logs`, without printing it."""
        self._cluster_manager_logs.append((datetime.datetime.now(), text))

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # -- what it is -----------------------------------------------------------------------------

    @property
    def workers(self) -> dict[Any, Any]:
        """The cluster's Dask workers by name: the fleet worker, and a `distributed.Nanny` for each ordinary one."""
        fleet = getattr(self._proxy, "fleet", None)
        ordinary = {} if self._dask_workers is None else self._dask_workers.running
        return {**({} if fleet is None or self.status == Status.closed else {fleet.name: fleet}), **ordinary}

    @property
    def worker_spec(self) -> dict[Any, dict[str, Any]]:
        """What `workers` are made of, as for `distributed.SpecCluster`."""
        options = self._dask_worker_options
        return {
            name: {"cls": type(each), "options": dict(options) if isinstance(each, Nanny) else {}}
            for name, each in self.workers.items()
        }

    @classmethod
    def from_name(cls, name: str) -> ServerlessCluster:
        """Return the running cluster of that name in this process; else take over the persistent one that another
        process has left, as ``ServerlessCluster(name=name, persistent=True)`` does, with as many executors.

        Raises
        ------
        ValueError
            There is none. Any other cluster belongs to the process that made it and ends with it; others connect
            to its scheduler.
        ClusterInUse
            The process that the persistent cluster belongs to lives.
        """
        for cluster in cls._instances:
            if cluster.name == name and cluster.status in (Status.created, Status.starting, Status.running):
                return cluster
        if (executors := size_left(name)) is not None:
            return cls(n_workers=executors, name=name, persistent=True)
        raise ValueError(
            f"there is no cluster named {name!r} in this process, and no process has left a persistent one of that "
            "name. A local cluster belongs to the process that made it: elsewhere, connect to its scheduler, "
            "Client(<its scheduler_address>), or give it "
            'scheduler_kwargs={"scheduler_file": path} and use Client(scheduler_file=path)'
        )

    # -- what it did ----------------------------------------------------------------------------

    def stats(self) -> Any:
        """Return counters since the start, as a flat dict (an awaitable of it, if asynchronous).

        ``invocations``, ``executors``, ``sandboxes_cold``, ``sandboxes_warm``, ``tasks_planned``,
        ``tasks_run``, ``tasks_rerun``, ``executors_lost``,
        ``executors_restarted``, ``executors_backed_up``, ``objects_written``, ``objects_overflowed`` (those of
        them that went to disk), ``slices_written`` (parts of shuffled partitions), ``slices_overflowed``,
        ``bytes_written``, ``bytes_read``, ``round_trips``; ``gb_seconds`` as Lambda would bill them, and
        ``dollars``: what they and the invocations cost (``serverless.lambda.price-...``). As they are now:
        ``store_keys``, ``store_bytes`` and ``overflow_bytes``; and what this process holds for graphs, namely
        ``graphs_kept`` (those with a future somewhere), ``tasks_under_way`` (whose edges are in memory, some 400
        bytes each) and ``proxy_bytes`` (kept messages, small values, segments on their way).
        """
        return self.sync(self._stats)

    async def _stats(self) -> dict[str, int | float]:
        if self.status != Status.running:
            raise RuntimeError(f"cluster {self.name!r} is {self.status.name}: it has no counters")
        counters = await in_thread(self._local.counters)
        stats: dict[str, int | float] = dict.fromkeys(STATS, 0)
        stats.update(self._proxy.stats())
        stats.update({name: counters[name] for name in _LAMBDA_STATS if name in counters})
        used, requests = stats["gb_seconds"], stats["invocations"]
        stats["dollars"] = price(gb_seconds=used, requests=requests, prices=self.settings.prices).total
        return stats

    async def _get_logs(self, cluster: bool = True, scheduler: bool = True, workers: Any = True) -> Logs:
        logs: Logs = await super()._get_logs(cluster=cluster, scheduler=scheduler, workers=workers)
        if workers is True:
            lines = await in_thread(self._local.logs)
            logs["Executors"] = Log("\n".join(lines))
        return logs

    def __repr__(self) -> str:
        return (
            f"{self._cluster_class_name}({self.name!r}, {self.scheduler_address!r}, workers={self._ceiling}, "
            f"threads={self._ceiling * self.settings.executor_threads}, "
            f"memory={format_bytes(self._ceiling * self.settings.lambda_memory)})"
        )

    def _repr_html_(self, cluster_status: str | None = None) -> str:
        memory = format_bytes(self.settings.lambda_memory)
        row = (
            f'<tr><td style="text-align: left;"><strong>Status:</strong> {self.status.name}</td>'
            f'<td style="text-align: left;"><strong>Executors at once:</strong> {self._ceiling} of {memory}</td></tr>'
            f'<tr><td style="text-align: left;"><strong>Dask workers:</strong> {self._dask_workers_wanted}</td></tr>'
        )
        html: str = super()._repr_html_(cluster_status=row + (cluster_status or ""))
        return html

    def _scaling_status(self) -> str:
        mode = "Adaptive" if self._adaptive and self._adaptive.periodic_callback else "Manual"
        return (
            f'<table><tr><td style="text-align: left;">Scaling mode: {mode}</td></tr>'
            f'<tr><td style="text-align: left;">Executors at once: {self._ceiling}</td></tr>'
            f'<tr><td style="text-align: left;">Dask workers: {self._dask_workers_wanted}</td></tr></table>'
        )


_OWN_NAMES = frozenset(inspect.signature(ServerlessCluster).parameters) - {"others"}


def _close_clusters() -> None:
    """Close what the user forgot."""
    for cluster in list(ServerlessCluster._instances):
        if not cluster.shutdown_on_close or cluster.status == Status.closed:
            continue
        loop: Any = cluster.loop
        if cluster.asynchronous or not loop.asyncio_loop.is_running():  # the user's loop, which has ended
            cluster._local.close()
            cluster.status = Status.closed
            continue
        try:
            cluster.close(timeout=ATEXIT_CLOSE_SECONDS_MAX)
        except (TimeoutError, RuntimeError):  # whatever hangs, no process may stay
            cluster._local.close()


# Not atexit if it can be had: before atexit's turn, concurrent.futures (which registers the same way, at its
# import, and so runs after us) has shut every thread pool in the process, and nothing closes in order.
getattr(threading, "_register_atexit", atexit.register)(_close_clusters)
