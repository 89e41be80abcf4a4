"""What Dask code finds around it inside a task: `get_worker`, `get_client`, `secede`.

Under `LocalCluster` a task runs in a thread of a Dask worker's pool, and these functions reach for
that worker and that pool. In an executor there is neither; `TaskWorker` and `_Seat` answer for them,
with as much as the functions touch. Clients that tasks make talk to the same scheduler as everybody;
values they gather come through it from the storage tier, never from other executors.

A task that *secedes* (it waits for tasks of its own) gives its place below the ceiling to others: the
proxy is told, and the tasks that wait behind it in this executor are given away. So tasks may submit
tasks to any depth, with a single executor.

One `TaskWorker` lives as long as its sandbox, so that plugins may keep it; each executor that runs
there in turn attaches to it. What needs an event loop (plugins, coroutines, clients) shares one, in a
thread of its own that is started when it is first needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import logging
import os
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import dask.config
from distributed import Client, NannyPlugin, WorkerPlugin
from distributed.actor import ProxyRPC
from distributed.core import Status
from distributed.protocol import pickle
from distributed.security import Security
from distributed.threadpoolexecutor import thread_state as pool_state
from distributed.utils import LoopRunner, import_file, in_async_call, sync, thread_state
from distributed.worker import _worker_cvar

from lambda_worker import errand

if TYPE_CHECKING:
    from tornado.ioloop import IOLoop

logger = logging.getLogger("lambda_worker.dask_context")

#: Events that plugins log while no executor runs here wait for the next one, the oldest leaving first.
EVENTS_WAITING_MAX = 1_000


class Host(Protocol):
    """The executor that runs in a sandbox now."""

    def seceded(self, thread: int) -> None:
        """The running task leaves its place."""

    def rejoined(self, thread: int) -> None:
        """The running task takes a place again."""

    def log_event(self, topic: Any, message: Any) -> None:
        """The running task, or a plugin, logs an event."""


_STARTING_LOOP = threading.Lock()


@functools.cache
def _event_loop() -> IOLoop:
    """Return this process's event loop for everything of Dask, started once (after a fork, never before)."""
    # As `LocalCluster` silences its workers: a user's terminal is not for what Dask does inside.
    logging.getLogger("distributed").setLevel(logging.WARNING)
    runner = LoopRunner(asynchronous=False)
    runner.start()
    return runner.loop


class _Seat:
    """Stands for the thread pool that a task may leave and join again."""

    def __init__(self, on_leave: Callable[[int], None], on_return: Callable[[int], None]) -> None:
        self._threads: set[threading.Thread] = set()
        self._rejoin_lock = threading.Lock()
        self._rejoin_list: list[tuple[threading.Thread, threading.Event]] = []
        self._on_leave = on_leave
        self._on_return = on_return

    def _adjust_thread_count(self) -> None:
        self._on_leave(threading.get_ident())

    def submit(self, call: Callable[[], None]) -> None:
        """Let whoever waits to join again do so; there is always room for them."""
        with self._rejoin_lock:
            waiting, self._rejoin_list = self._rejoin_list, []
        for thread, event in waiting:
            self._threads.add(thread)
            self._on_return(thread.ident or 0)
            event.set()


class _Scheduler:
    """The scheduler as a Dask worker sees it: an address, and calls, for which there is a client."""

    def __init__(self, address: str, client: Callable[[], Client]) -> None:
        self.address = address
        self._client = client

    def __getattr__(self, call: str) -> Any:
        if call.startswith("_"):  # nobody asks a scheduler for these
            raise AttributeError(call)

        async def ask(**message: Any) -> Any:
            client = self._client()
            if client.status != "running":  # it was made just now, here on the loop
                await client
            return await getattr(client.scheduler, call)(**message)

        return ask


class _TaskClient(Client):
    """A client whose values go through the scheduler: executors accept no connections, and the
    worker that stands for all of them may not be reachable from where this runs."""

    def subscribe_topic(self, topic: str, handler: Any) -> None:
        # What tasks print through Dask is for the user's client. Shown here, it would be a task's output again.
        if handler is not Client._default_event_handlers.get(topic):
            super().subscribe_topic(topic, handler)

    async def _get_dataset(self, *args: Any, **options: Any) -> Any:
        # It tells the scheduler of every future here. Actors are in cycles: those of ended tasks stay until collected.
        gc.collect()
        return await super()._get_dataset(*args, **options)

    async def _gather(self, futures: Any, errors: str = "raise", direct: Any = None, local_worker: Any = None) -> Any:
        return await super()._gather(futures, errors=errors, direct=False, local_worker=None)

    async def _scatter(self, data: Any, *args: Any, **options: Any) -> Any:
        return await super()._scatter(data, *args, **{**options, "direct": False, "local_worker": None})


class TaskWorker:
    """What `distributed.get_worker` returns inside a task, and what plugins are set up with.

    Parameters
    ----------
    scheduler
        The scheduler's address.
    name
        The sandbox's name.
    tls
        What a client needs to reach a scheduler that wants TLS: arguments of `distributed.Security`,
        with certificates and keys themselves in the place of their paths.
    """

    _clients: dict[str, Client] = {}

    def __init__(self, scheduler: str, name: str, tls: Mapping[str, Any] | None = None) -> None:
        self.scheduler = _Scheduler(scheduler, self._get_client)
        self.name = self.id = name
        self.address = self.contact_address = f"serverless://{name}"
        self.nthreads = 1
        self._making_client = threading.Lock()
        self.status = Status.running
        self.data: dict[Hashable, Any] = {}
        self.plugins: dict[str, Any] = {}
        self.extensions: dict[str, Any] = {}
        self.periodic_callbacks: dict[str, Any] = {}
        self.state = SimpleNamespace(tasks={})
        self.wardrobe: Any = None
        self.local_directory = tempfile.gettempdir()
        if self.local_directory not in sys.path:  # a Dask worker imports from its directory
            sys.path.insert(0, self.local_directory)
        self._tls = tls
        self._nanny = _Nanny(self)
        self._watchers: list[WorkerPlugin] = []
        self._host: Host | None = None
        self._waiting: deque[tuple[Any, Any]] = deque(maxlen=EVENTS_WAITING_MAX)
        self._seat = _Seat(self._on_leave, self._on_return)

    def __repr__(self) -> str:
        return f"<TaskWorker {self.name}, in process {os.getpid()}>"

    @property
    def loop(self) -> IOLoop:
        """The event loop of this process, in a thread of its own: of its client, and of asynchronous tasks."""
        with _STARTING_LOOP:
            return _event_loop()

    io_loop = loop

    def run_coroutine(self, awaitable: Awaitable[Any]) -> Any:
        """Run what an asynchronous task returned, on the loop where its client and its actors' answers are."""
        raised: list[BaseException] = []

        async def run() -> Any:
            try:
                return await awaitable
            except BaseException as error:  # some would end the loop, others lose their type on the way
                raised.append(error)

        asyncio_loop: Any = self.loop.asyncio_loop  # type: ignore[attr-defined]
        # bound: the invocation's, as for every task
        result = asyncio.run_coroutine_threadsafe(run(), asyncio_loop).result()
        if raised:
            raise raised[0]
        return result

    # -- the executor that runs here ------------------------------------------------------------

    def attach(self, host: Host | None) -> None:
        """Say which executor runs in this sandbox now; None: no executor does."""
        self._host = host
        while host is not None and self._waiting:
            host.log_event(*self._waiting.popleft())

    def begin(self, key: Hashable) -> None:
        """Surround the task that this thread runs next."""
        _worker_cvar.set(self)  # type: ignore[arg-type]
        thread_state.key = key
        thread_state.start_time = time.time()
        pool_state.executor = self._seat
        pool_state.proceed = True
        self._seat._threads.add(threading.current_thread())
        if self._watchers:
            self.state.tasks[key] = SimpleNamespace(key=key, state="waiting", exception=None, traceback=None)
            self._transition(key, "waiting", "ready")
            self._transition(key, "ready", "executing")

    def end(self, error: BaseException | None = None) -> None:
        """The task that this thread ran has ended."""
        key = thread_state.key
        task = self.state.tasks.get(key)
        if task is not None:
            if error is not None:
                task.exception, task.traceback = error, error.__traceback__
            self._transition(key, "executing", "memory" if error is None else "error")
            del self.state.tasks[key]

    def _transition(self, key: Hashable, start: str, finish: str) -> None:
        self.state.tasks[key].state = finish
        for plugin in self._watchers:
            try:
                plugin.transition(key, start, finish)  # type: ignore[arg-type]
            except Exception:  # as on a Dask worker: it must not cost the task
                logger.exception("the transition method of plugin %r failed", plugin)

    def get_current_task(self) -> Hashable:
        """Return the key of the task that runs."""
        return getattr(thread_state, "key", None)

    def log_event(self, topic: Any, message: Any) -> None:
        """Log an event on the scheduler; so `distributed.print` and `warn` reach the client."""
        if isinstance(message, dict):
            message = {**message, "worker": self.address}
        if self._host is None:
            self._waiting.append((topic, message))
        else:
            self._host.log_event(topic, message)

    def _on_leave(self, thread: int) -> None:
        if self._host is not None:
            self._host.seceded(thread)

    def _on_return(self, thread: int) -> None:
        if self._host is not None:
            self._host.rejoined(thread)

    # -- the outfit -----------------------------------------------------------------------------

    def put_on(self, kind: str, name: str, body: bytes) -> BaseException | None:
        """Put on one piece of the outfit; return the exception if it fails.

        Parameters
        ----------
        kind, name, body
            As in `lambda_worker.core.outfit.Piece`; the body is its pickle.
        """
        try:
            content = pickle.loads(body)
            if kind == "config":
                dask.config.update(dask.config.config, content)
            elif kind == "run":
                errand.call(self, *content)
            else:
                plugins, worker = self._place(kind)
                plugins[name] = content
                self._watch()
                self._call(lambda: content.setup(worker))
        except Exception as error:
            return error
        return None

    def take_off(self, kind: str, name: str) -> BaseException | None:
        """Take off what `put_on` has put on; return the exception if its teardown fails."""
        plugins, worker = self._place(kind)
        plugin = plugins.pop(name, None)
        self._watch()
        try:
            if hasattr(plugin, "teardown"):
                self._call(lambda: plugin.teardown(worker))
        except Exception as error:
            return error
        return None

    def _place(self, kind: str) -> tuple[dict[str, Any], Any]:
        return (self._nanny.plugins, self._nanny) if kind == "nanny" else (self.plugins, self)

    def _watch(self) -> None:
        """Find the plugins that want to hear of tasks; most do not, and cost nothing."""
        self._watchers = [
            plugin
            for plugin in self.plugins.values()
            if getattr(type(plugin), "transition", WorkerPlugin.transition) is not WorkerPlugin.transition
        ]

    def _call(self, function: Callable[[], Any]) -> Any:
        """Call user code on the event loop's thread, where a Dask worker runs it."""

        async def on_loop() -> Any:
            result = function()
            return await result if inspect.isawaitable(result) else result

        return sync(self.loop, on_loop)

    def wait_for(self, awaitable: Awaitable[Any]) -> Any:
        """Run a coroutine on the event loop, and return what it returns."""
        return self._call(lambda: awaitable)

    async def upload_file(self, filename: str, data: str | bytes, load: bool = True) -> dict[str, Any]:
        """Write a file into this sandbox, and import what can be imported from it, anew."""
        path = Path(self.local_directory, filename)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        if load:
            import_file(str(path))
        return {"status": "OK", "nbytes": len(data)}

    # -- what else is touched -------------------------------------------------------------------

    def rpc(self, address: str) -> ProxyRPC:
        """Return calls to a Dask worker, as an actor's methods use them.

        They go through the scheduler: where this runs, Dask workers may not be reachable.
        """
        return ProxyRPC(self.scheduler, address)

    def handle_stimulus(self, *events: Any) -> None:
        """Nothing to handle: there is no Dask worker's state here."""

    def _get_client(self, timeout: float | None = None) -> Client:
        address, loop = self.scheduler.address, self.loop
        on_loop = in_async_call(loop)
        # Several tasks may ask at once. On the loop nobody may wait for who waits for the loop.
        with contextlib.nullcontext() if on_loop else self._making_client:
            return self._find_client(address, loop, on_loop, timeout)

    def _find_client(self, address: str, loop: IOLoop, on_loop: bool, timeout: float | None) -> Client:
        client = self._clients.get(address)
        if client is None or client.status in ("closing", "closed"):
            client = self._clients[address] = _TaskClient(
                address,
                loop=loop,
                asynchronous=on_loop,
                security=None if self._tls is None else Security(**self._tls),
                timeout=timeout or "30s",
                set_as_default=True,
                direct_to_workers=False,
                name="executor",
            )
        elif not on_loop and client.status != "running":  # an asynchronous task has made it, just now
            sync(loop, _connected, client)
        return client


class _Nanny:
    """What nanny plugins are set up with: the sandbox, whose process is its own nanny.

    Parameters
    ----------
    worker
        The worker of this sandbox, which answers for everything else.
    """

    env = os.environ  #: what a nanny gives its worker's process, this process has at once

    def __init__(self, worker: TaskWorker) -> None:
        self.worker = worker
        self.plugins: dict[str, NannyPlugin] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.worker, name)


async def _connected(client: Client) -> None:
    await client
