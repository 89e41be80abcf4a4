"""What goes on beside the tasks of one sandbox: a few I/O threads and an alarm clock.

Made once per process (after a fork, never before) and kept while the sandbox is warm.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

logger = logging.getLogger("lambda_worker.beside")

IO_THREADS = 4


class Beside:
    """Run calls beside the main thread, now or after a while."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(IO_THREADS, thread_name_prefix="executor-io")
        self._changed = threading.Condition()
        self._alarms: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._closed = False
        self._thread: threading.Thread | None = None

    def submit(self, call: Callable[..., object], *args: Any) -> None:
        """Run a call on an I/O thread, soon. The call answers for its own errors."""
        self._pool.submit(call, *args)

    def after(self, seconds: float, call: Callable[[], object]) -> None:
        """Run a call on the alarm's own thread once `seconds` have passed.

        It should be short: what takes long, it submits.
        """
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._ring, name="executor-alarm", daemon=True)
                self._thread.start()
            heapq.heappush(self._alarms, (time.monotonic() + seconds, next(self._numbers), call))
            if self._alarms[0][2] is call:
                self._changed.notify()

    def _ring(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                if not self._alarms:
                    self._changed.wait()  # bound: this process's life; nobody waits for this thread
                    continue
                wait = self._alarms[0][0] - time.monotonic()
                if wait > 0:
                    self._changed.wait(wait)
                    continue
                call = heapq.heappop(self._alarms)[2]
            try:
                call()
            except Exception:  # the alarm rings for everybody: it must outlive one bad call
                logger.exception("an alarm's call failed")

    def close(self) -> None:
        """End the threads; what is still queued runs first."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._pool.shutdown(wait=True)
