"""Work beside an event loop: blocking calls in threads, and closing that does not take for ever."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("dask_serverless.cluster")


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Run a blocking function in a thread of its own.

    Not `asyncio.to_thread`: its pool is gone when clusters are closed at the interpreter's end.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if not done.cancelled():
            done.set_result(result) if error is None else done.set_exception(error)

    def run() -> None:
        result, failure = None, None
        try:
            result = function(*args)
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    try:
        threading.Thread(target=run, name=f"dask-serverless-{function.__name__}", daemon=True).start()
    except RuntimeError:  # no new threads at the interpreter's end (Python 3.12): nobody else needs the loop
        return function(*args)
    return await done


async def bounded(work: Any, seconds: float, what: str) -> None:
    """Wait for a part to close, but not for ever, and whatever it does."""
    try:
        await asyncio.wait_for(work, seconds)
    except TimeoutError:
        logger.warning("%s did not close within %.0f s; going on without it", what, seconds)
    except Exception:
        logger.exception("%s did not close cleanly", what)
