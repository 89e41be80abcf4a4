"""Room for tasks: what is cached goes before a process has too much memory.

A cache may have half of an executor's memory (`World`), less what its job has of values. Nobody knows what a task will
need beside its inputs: so while one runs and there is much in the cache, somebody looks, and lets go of it in time.
"""

from __future__ import annotations

import os

from lambda_worker.beside import Beside
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


class Headroom:
    """Sees to it that tasks have room.

    Parameters
    ----------
    cache
        Shrinks when memory gets tight.
    memory_bytes
        Of the sandbox.
    beside
        Calls in time.
    """

    def __init__(self, cache: Cache, memory_bytes: int, beside: Beside | None) -> None:
        self._cache = cache
        self._calm = memory_bytes * CALM_SHARE
        self._tight = memory_bytes * TIGHT_SHARE
        self._beside = beside
        self._watching = False
        self._idle = False

    def watch(self) -> None:
        """A task is about to run: look from now on, as long as there is something to let go of."""
        self._idle = False
        if self._cache.nbytes > self._calm and not self._watching and self._beside is not None:
            self._watching = True
            self._look()

    def rest(self) -> None:
        """No task runs any more."""
        self._idle = True

    def _look(self) -> None:
        excess = resident_bytes() - self._tight
        if excess > 0:
            self._cache.shrink(int(max(0, self._cache.nbytes - excess)))
        if self._cache.nbytes > self._calm and not self._idle and self._beside is not None:
            self._beside.after(LOOK_SECONDS, self._look)
        else:
            self._watching = False
