"""Who computes: Dask's own schedulers and this package. (`peers` are those of other projects.)

Each has two workers with one thread, or one with two: as many as the others. A contender is opened in a process of its
own (`stage`), where it may set what it likes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Self

import dask
from dask.system import CPU_COUNT
from dask.utils import parse_bytes

from dask_serverless.config import DEFAULTS

WORKERS = 2
#: Executors that linger are billed for it, so they are waited for; and for how long at most.
SETTLE_SECONDS_MAX = 3.0
SETTLE_POLL_SECONDS = 0.1


MEMORY = "serverless.lambda.memory"


class Absent(Exception):
    """Says why a contender cannot take part."""


class Contender:
    """One that computes Dask graphs; `get`, `compute` and `persist` are what workloads use of it.

    Parameters
    ----------
    settings
        Dask's configuration for this one, by key; `serverless` has it for the ablation.
    """

    name = "?"
    title = "?"
    client: Any = None

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        self.settings = dict(settings or {})
        self.cluster: Any = None
        self.stack = ExitStack()

    def __enter__(self) -> Self:
        self.stack.enter_context(dask.config.set(self.settings))
        try:
            self.open()
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def open(self) -> None:
        """Start everything; what is to be closed goes on the stack."""

    def compute(self, *collections: Any) -> Any:
        found = dask.compute(*collections)
        return found[0] if len(collections) == 1 else found

    def persist(self, collection: Any) -> Any:
        return collection.persist()

    def get(self, graph: Any, key: str) -> Any:
        return dask.get(graph, key)

    def probe(self, function: Callable[[Any], Any]) -> Any:
        """Run a function where tasks run."""
        return self.compute(dask.delayed(function, pure=False)(0))

    def counters(self) -> dict[str, float]:
        """Return counters since the start, once everything that was begun has been counted."""
        return {}


class Synchronous(Contender):
    """Dask's synchronous scheduler: what the tasks alone cost."""

    name = "sync"
    title = "the synchronous scheduler"

    def open(self) -> None:
        self.stack.enter_context(dask.config.set(scheduler="sync"))


class Distributed(Contender):
    """A cluster of `distributed`'s kind, with a client that is the default."""

    def start(self) -> Any:
        raise NotImplementedError

    def open(self) -> None:
        from distributed import Client

        self.cluster = self.stack.enter_context(self.start())
        self.client = self.stack.enter_context(Client(self.cluster))

    def get(self, graph: Any, key: str) -> Any:
        return self.client.get(graph, key)


class Local(Distributed):
    """LocalCluster, as it is for programs that hold the GIL."""

    name = "local"
    title = f"LocalCluster(n_workers={WORKERS}, threads_per_worker=1)"
    workers, threads = WORKERS, 1

    def start(self) -> Any:
        from distributed import LocalCluster

        return LocalCluster(n_workers=self.workers, threads_per_worker=self.threads, dashboard_address=None)


class Threads(Local):
    """LocalCluster, as it is for programs that release it."""

    name = "threads"
    title = f"LocalCluster(n_workers=1, threads_per_worker={WORKERS})"
    workers, threads = 1, WORKERS


class Serverless(Distributed):
    """Ours, of the shape that it has by default."""

    name = "serverless"
    title = f"ServerlessCluster(n_workers={WORKERS})"
    workers, threads = WORKERS, 1

    def start(self) -> Any:
        from distributed.system import MEMORY_LIMIT

        from dask_serverless import ServerlessCluster

        # Without locality everything is written, which must fit as well.
        with dask.config.set({"serverless.storage.max-memory": MEMORY_LIMIT // 2}):
            return ServerlessCluster(n_workers=self.workers, threads_per_worker=self.threads, dashboard_address=None)

    def counters(self) -> dict[str, float]:
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        found = self.cluster.stats()
        while time.monotonic() < deadline:
            before = found
            time.sleep(SETTLE_POLL_SECONDS)
            found = self.cluster.stats()
            if found["gb_seconds"] == before["gb_seconds"]:
                break
        return dict(found)


class ServerlessThreads(Serverless):
    """Ours, of the shape that is best for programs that release the GIL."""

    name = "serverless-threads"
    title = f"ServerlessCluster(n_workers=1, threads_per_worker={WORKERS})"
    workers, threads = 1, WORKERS

    def start(self) -> Any:
        # As much as several of one thread have together, as LocalCluster has it.
        memory = self.settings.get(MEMORY, f"{WORKERS * parse_bytes(DEFAULTS['serverless']['lambda']['memory'])} B")
        with dask.config.set({MEMORY: memory}):
            return super().start()


def has_setting(key: str) -> bool:
    """Whether the installed version knows a configuration key."""
    found: Any = {"serverless": DEFAULTS["serverless"]}
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return False
        found = found[part]
    return True


def classes() -> dict[str, type[Contender]]:
    """Return all contenders by name, in the order of the tables."""
    from benchmarks.peers import Cubed, Lithops, Ray

    everybody = (Synchronous, Local, Threads, Serverless, ServerlessThreads, Ray, Lithops, Cubed)
    return {each.name: each for each in everybody}


def make(name: str, settings: Mapping[str, Any]) -> Contender:
    """Return a contender, not opened."""
    return classes()[name](settings)


def cores() -> int:
    """Return how many cores this process may use, as Dask counts them."""
    return int(CPU_COUNT)
