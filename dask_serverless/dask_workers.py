"""Ordinary Dask workers beside the fleet: for actors, and for tasks that must run on a Dask worker.

`DaskWorkers` keeps as many as are wanted: it starts them together and retires them one after the
other, so that what they hold moves to others first. What a worker is made of is handed in (`make`):
here a process of this machine (`local_dask_worker`) under a nanny, which starts it again when it dies.

Lives on the scheduler's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from distributed import Nanny, Scheduler
from distributed.comm import get_address_host
from distributed.core import Status
from distributed.security import Security

from dask_serverless.beside_loop import bounded
from dask_serverless.config import Settings

logger = logging.getLogger("dask_serverless.dask_workers")

#: Names are this and a number, so that `workers=["dask-0"]` can be written.
NAME_PREFIX = "dask-"
#: What a retiring worker holds is copied to others; one that cannot is closed nevertheless.
RETIRE_SECONDS_MAX = 60.0
#: A nanny lets its process start before it ends it, and on a busy machine starting Python takes its time.
CLOSE_SECONDS_MAX = 60.0

_ENDED = (Status.closing, Status.closed, Status.failed)


class DaskWorkers:
    """As many Dask workers as are wanted.

    Parameters
    ----------
    scheduler
        Theirs, in this process.
    make
        Makes a worker of a name: something like `distributed.deploy.spec.ProcessInterface`, that is
        started by awaiting it, and has ``close`` and ``status``.
    """

    def __init__(self, scheduler: Scheduler, make: Callable[[str], Any]) -> None:
        self.scheduler = scheduler
        self.wanted = 0
        self._make = make
        self._workers: dict[str, Any] = {}
        self._changing = asyncio.Lock()
        self._closed = False

    def __repr__(self) -> str:
        return f"<DaskWorkers {len(self.running)} of {self.wanted}>"

    @property
    def running(self) -> dict[str, Any]:
        """Those that were started and have not ended, by name."""
        return {name: each for name, each in self._workers.items() if each.status not in _ENDED}

    async def scale(self, count: int) -> None:
        """Have so many from now on; who asks last decides.

        Raises
        ------
        Exception
            What a worker that could not be started raised. As many are wanted then as there are.
        """
        self.wanted = count
        async with self._changing:
            self._workers = self.running  # whoever was retired by a client, and closed, is made anew if wanted
            missing = self.wanted - len(self._workers)
            if self._closed or not missing:
                return
            if missing > 0:
                await self._start(missing)
            else:
                await self._retire(-missing)

    async def _start(self, count: int) -> None:
        wanted = self.wanted
        names = [name for n in range(wanted) if (name := f"{NAME_PREFIX}{n}") not in self._workers][:count]
        made = {name: self._make(name) for name in names}
        self._workers.update(made)
        results = await asyncio.gather(*made.values(), return_exceptions=True)
        failed = {name: each for name, each in zip(made, results, strict=True) if isinstance(each, BaseException)}
        for name in failed:
            self._workers.pop(name, None)
            await bounded(made[name].close(), CLOSE_SECONDS_MAX, f"Dask worker {name}")
        if failed and not self._closed:
            if self.wanted == wanted:
                self.wanted = len(self._workers)
            raise next(iter(failed.values()))

    async def _retire(self, count: int) -> None:
        names = sorted(self._workers, key=self._cost_of_losing)[:count]
        try:
            await asyncio.wait_for(self.scheduler.retire_workers(names=names), RETIRE_SECONDS_MAX)
        except Exception as error:
            logger.warning("what the Dask workers %s hold was not moved: %s", ", ".join(names), error)
        await self._end(names)

    def _cost_of_losing(self, name: str) -> tuple[int, int, int]:
        """Sort workers: without actors first, then those that hold least, then the youngest."""
        ws = self.scheduler.workers.get(self.scheduler.aliases.get(name, ""))
        number = -int(name.removeprefix(NAME_PREFIX))
        return (0, 0, number) if ws is None else (len(ws.actors), ws.nbytes, number)

    async def _end(self, names: list[str]) -> None:
        ending = {name: self._workers.pop(name) for name in names}
        await asyncio.gather(
            *(bounded(each.close(), CLOSE_SECONDS_MAX, f"Dask worker {name}") for name, each in ending.items())
        )

    async def close(self) -> None:
        """End all of them, at once: the cluster goes as well."""
        self._closed = True
        self.wanted = 0
        await self._end(list(self._workers))  # also those that are just starting: they are not waited for
        async with self._changing:
            await self._end(list(self._workers))


def local_dask_worker(scheduler: str, name: str, options: Mapping[str, Any]) -> Nanny:
    """Make a worker that is a process of this machine.

    Parameters
    ----------
    scheduler
        Address of the scheduler.
    name
        Name of the worker.
    options
        As for `distributed.Nanny`.
    """
    # Where the scheduler is: on loopback, unless the user has chosen another place.
    return Nanny(scheduler, name=name, **{"host": get_address_host(scheduler), **options})


def local_options(
    settings: Settings, security: Security, silence_logs: Any, directory: str, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Return options for `local_dask_worker` that follow from the cluster's."""
    place = os.path.join(directory, "dask-workers")
    os.makedirs(place, exist_ok=True)
    return {
        "nthreads": settings.dask_workers_threads,
        "memory_limit": "auto" if settings.dask_workers_memory is None else settings.dask_workers_memory,
        "dashboard": False,
        "security": security,
        "silence_logs": silence_logs,
        "local_directory": place,
        "env": dict(environment),
    }
