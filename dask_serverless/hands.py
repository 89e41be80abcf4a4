"""The hands of a dispatcher: blocking calls on threads, and coroutines, none of which outlives it."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

STORE_THREADS = 8


class Hands:
    """Work that goes on until it is done or its owner closes. To be used on one event loop.

    Attributes
    ----------
    closing
        Set once nothing new shall begin.
    """

    def __init__(self) -> None:
        self.closing = threading.Event()
        self._pool = ThreadPoolExecutor(STORE_THREADS, thread_name_prefix="serverless-store")
        self._tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"<Hands: {len(self._tasks)} under way{', closing' if self.closing.is_set() else ''}>"

    def call(self, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Run a blocking call of the store on a thread."""
        return asyncio.get_running_loop().run_in_executor(self._pool, functools.partial(function, *args))

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        """Run a coroutine until it ends or everything is closed."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Cancel what runs; calls that threads have begun are not waited for."""
        self.closing.set()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._pool.shutdown(wait=False, cancel_futures=True)
