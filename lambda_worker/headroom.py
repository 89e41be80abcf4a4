"""Room for tasks: what is cached goes before a process has too much memory.

A cache may have half of an executor's memory, less what its job has of values (`World`). Nobody knows what a task will
need beside its inputs: so while one runs and there is much in the cache, somebody looks, and lets go of it in time.
"""

from __future__ import annotations

import os
import threading
import time

from lambda_worker.cache import Cache

#: With less than this share of the memory in the cache, nobody looks.
CALM_SHARE = 1 / 8
#: The process may have this share of the memory: then the cache begins to shrink.
TIGHT_SHARE = 0.7
#: Between two looks: memory that is new is written at some GB in a second.
LOOK_SECONDS = 0.02


def resident_bytes() -> int:
    """Return how much memory this process has; 0 if the system does not tell (it is not Linux).

    Examples
    --------
    >>> resident_bytes() > 1_000_000
    True
    """
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            return int(file.read(200).split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def cache_bytes_max(memory_bytes: int) -> int:
    """Return how much may be cached: half of the memory where somebody can look after it, and an eighth elsewhere."""
    return memory_bytes // 2 if resident_bytes() else int(memory_bytes * CALM_SHARE)


class Headroom:
    """Sees to it that tasks have room.

    Parameters
    ----------
    cache
        Shrinks when memory gets tight.
    memory_bytes
        Of the sandbox.
    """

    def __init__(self, cache: Cache, memory_bytes: int) -> None:
        self._cache = cache
        self._calm = memory_bytes * CALM_SHARE
        self._tight = memory_bytes * TIGHT_SHARE
        self._lock = threading.Lock()
        self._busy = False
        self._thread: threading.Thread | None = None  # its own: alarms ask the store, which may take long

    def watch(self) -> None:
        """Something is at work: look from now on, as long as there is something to let go of."""
        if self._cache.nbytes <= self._calm:
            return
        with self._lock:
            self._busy = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="executor-headroom", daemon=True)
                self._thread.start()

    def rest(self) -> None:
        """Nothing is at work any more."""
        with self._lock:
            self._busy = False

    def look(self) -> bool:
        """Let go of as much as memory is short of; tell whether to look again."""
        excess = resident_bytes() - self._tight
        if excess > 0:
            self._cache.shrink(int(max(0, self._cache.nbytes - excess)))
        with self._lock:
            if self._busy and self._cache.nbytes > self._calm:
                return True
            self._thread = None
            return False

    def _watch(self) -> None:
        while self.look():
            time.sleep(LOOK_SECONDS)
