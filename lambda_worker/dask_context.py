"""What Dask code finds around it inside a task: `get_worker`, `get_client`, `secede`.

Under `LocalCluster` a task runs in a thread of a Dask worker's pool, and these functions reach for
that worker and that pool. In an executor there is neither; `TaskWorker` and `_Seat` answer for them,
with as much as the functions touch. Clients that tasks make talk to the same scheduler as everybody;
values they gather come through it from the storage tier, never from other executors.

A task that *secedes* (it waits for tasks of its own) gives its place below the ceiling to others: the
proxy is told, and the tasks that wait behind it in this executor are given away. So tasks may submit
tasks to any depth, with a single executor.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any

from distributed import Client
from distributed.actor import ProxyRPC
from distributed.security import Security
from distributed.threadpoolexecutor import thread_state as pool_state
from distributed.utils import LoopRunner, in_async_call, sync, thread_state
from distributed.worker import _worker_cvar

if TYPE_CHECKING:
    from tornado.ioloop import IOLoop


class _Seat:
    """Stands for the thread pool that a task may leave and join again."""

    def __init__(self, on_leave: Callable[[], None], on_return: Callable[[], None]) -> None:
        self._threads = {threading.current_thread()}
        self._rejoin_lock = threading.Lock()
        self._rejoin_list: list[tuple[threading.Thread, threading.Event]] = []
        self._on_leave = on_leave
        self._on_return = on_return

    def _adjust_thread_count(self) -> None:
        self._on_leave()

    def submit(self, call: Callable[[], None]) -> None:
        """Let whoever waits to join again do so; there is always room for them."""
        with self._rejoin_lock:
            waiting, self._rejoin_list = self._rejoin_list, []
        for thread, event in waiting:
            self._threads.add(thread)
            self._on_return()
            event.set()


class _Scheduler:
    """The scheduler as a Dask worker sees it: an address, and calls, for which there is a client."""

    def __init__(self, address: str, client: Callable[[], Client]) -> None:
        self.address = address
        self._client = client

    def __getattr__(self, call: str) -> Any:
        if call.startswith("_"):
            raise AttributeError(call)

        async def request(**message: Any) -> Any:
            client = await self._client()  # made here, on the loop, it is not connected yet
            return await getattr(client.scheduler, call)(**message)

        return request


class _TaskClient(Client):
    """A client whose values go through the scheduler: executors accept no connections, and the
    worker that stands for all of them may not be reachable from where this runs."""

    # What tasks print through Dask is for the user's client. Shown here, it would be a task's output again.
    _default_event_handlers: dict[str, Any] = {}

    async def _gather(self, futures: Any, errors: str = "raise", direct: Any = None, local_worker: Any = None) -> Any:
        return await super()._gather(futures, errors=errors, direct=False, local_worker=None)

    async def _scatter(self, data: Any, *args: Any, **options: Any) -> Any:
        return await super()._scatter(data, *args, **{**options, "direct": False, "local_worker": None})


class TaskWorker:
    """What `distributed.get_worker` returns inside a task.

    Parameters
    ----------
    scheduler
        The scheduler's address.
    name
        The executor's name.
    on_secede, on_rejoin
        Called when a task leaves its place, and when it takes one again.
    on_event
        Called with topic and message of an event that a task logs.
    tls
        What a client needs to reach a scheduler that wants TLS: arguments of `distributed.Security`,
        with certificates and keys themselves in the place of their paths.
    """

    _clients: dict[str, Client] = {}
    _loop_runner: LoopRunner | None = None

    def __init__(
        self,
        scheduler: str,
        name: str,
        on_secede: Callable[[], None],
        on_rejoin: Callable[[], None],
        on_event: Callable[[Any, Any], None],
        tls: Mapping[str, Any] | None = None,
    ) -> None:
        self.scheduler = _Scheduler(scheduler, self._get_client)
        self.name = self.id = name
        self.address = f"serverless://{name}"
        self.data: dict[Hashable, Any] = {}
        self.plugins: dict[str, Any] = {}
        self.local_directory = tempfile.gettempdir()
        self._on_event = on_event
        self._tls = tls
        self._seat = _Seat(on_secede, on_rejoin)
        self._key: Hashable = None

    def __repr__(self) -> str:
        return f"<TaskWorker {self.name}, in process {os.getpid()}>"

    @property
    def loop(self) -> IOLoop:
        """The event loop of this process, in a thread of its own: of its client, and of asynchronous tasks."""
        runner = self._loop_runner
        if runner is None:
            runner = TaskWorker._loop_runner = LoopRunner()
            runner.start()
        return runner.loop

    def run_coroutine(self, awaitable: Awaitable[Any]) -> Any:
        """Run what an asynchronous task returned, on the loop where its client and its actors' answers are."""
        raised: list[BaseException] = []

        async def run() -> Any:
            try:
                return await awaitable
            except BaseException as error:  # some would end the loop, others lose their type on the way
                raised.append(error)

        asyncio_loop: Any = self.loop.asyncio_loop  # type: ignore[attr-defined]
        result = asyncio.run_coroutine_threadsafe(run(), asyncio_loop).result()
        if raised:
            raise raised[0]
        return result

    def begin(self, key: Hashable) -> None:
        """Surround the task that this thread runs next."""
        _worker_cvar.set(self)  # type: ignore[arg-type]
        self._key = key
        thread_state.key = key
        thread_state.start_time = time.time()
        pool_state.executor = self._seat
        pool_state.proceed = True
        self._seat._threads.add(threading.current_thread())

    def get_current_task(self) -> Hashable:
        """Return the key of the task that runs."""
        return self._key

    def log_event(self, topic: Any, message: Any) -> None:
        """Log an event on the scheduler; so `distributed.print` and `warn` reach the client."""
        if isinstance(message, dict):
            message = {**message, "worker": self.address}
        self._on_event(topic, message)

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
        client = self._clients.get(address)
        if client is None or client.status in ("closing", "closed"):
            client = self._clients[address] = _TaskClient(
                address,
                timeout=timeout or "30s",
                set_as_default=True,
                direct_to_workers=False,
                name="executor",
                loop=loop,
                asynchronous=on_loop,
                security=None if self._tls is None else Security(**self._tls),
            )
        elif not on_loop and client.status != "running":  # an asynchronous task has made it, just now
            sync(loop, _connected, client)
        return client


async def _connected(client: Client) -> None:
    await client
