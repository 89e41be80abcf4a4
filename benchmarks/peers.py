"""Other projects' engines on this machine, each as its documentation says, with two workers.

They are extras: one that is not installed, or does not start, says why (`Absent`) and the others go on without it.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.contenders import WORKERS, Absent, Contender

#: Of one of cubed's workers, which proves before it starts that it needs no more: as much as one of our executors has.
ALLOWED_MEMORY = "2GB"
#: Of Ray's object store.
OBJECT_STORE_BYTES = 4 * 2**30
#: Of Lithops, how often it looks for results; its default is 2 s.
POLL_SECONDS = 0.1


def needed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Absent(f"{module} cannot be imported: {error} (pip install 'dask-serverless[bench]')") from error


class Ray(Contender):
    """Ray, by its scheduler for Dask graphs."""

    name = "ray"
    title = f"Ray's Dask scheduler (num_cpus={WORKERS})"

    def open(self) -> None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # it listens on loopback only
        ray = needed("ray")
        self._get = needed("ray.util.dask").ray_dask_get
        ray.init(
            num_cpus=WORKERS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=OBJECT_STORE_BYTES,
        )
        self.stack.callback(ray.shutdown)

    def compute(self, *collections: Any) -> Any:
        import dask

        found = dask.compute(*collections, scheduler=self._get)
        return found[0] if len(collections) == 1 else found

    def persist(self, collection: Any) -> Any:
        return collection.persist(scheduler=self._get)  # the import has taught `persist` to keep references

    def get(self, graph: Any, key: str) -> Any:
        return self._get(graph, key)


class Lithops(Contender):
    """Lithops on this machine: functions and maps, no graphs. Results come through files."""

    name = "lithops"
    # Version 1 of its localhost backend forks a process for each call; version 2, the default, starts an interpreter,
    # which was measured at ten times the time.
    title = f"Lithops localhost, version 1 (worker_processes={WORKERS})"

    def open(self) -> None:
        lithops = needed("lithops")
        config = {
            "lithops": {
                "backend": "localhost",
                "storage": "localhost",
                "log_level": "ERROR",
                "monitoring_interval": POLL_SECONDS,
            },
            "localhost": {"worker_processes": WORKERS, "runtime": sys.executable, "version": 1},
        }
        self._executor = lithops.FunctionExecutor(config=config)
        self.stack.callback(self._executor.clean)

    def map(self, function: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        # Workers find our modules by themselves; looking for what to send would take it seconds for each map.
        futures = self._executor.map(function, list(items), include_modules=None)
        found: list[Any] = self._executor.get_result(futures)
        return found

    def map_reduce(self, function: Callable[..., Any], items: Iterable[Any], reduce: Callable[[Any], Any]) -> Any:
        # Its own reducer polls for its inputs inside a third function; adding up here is faster.
        return reduce(self.map(function, items))

    def call(self, function: Callable[..., Any], item: Any) -> Any:
        return self._executor.get_result(self._executor.call_async(function, item, include_modules=None))

    def probe(self, function: Callable[[Any], Any]) -> Any:
        return self.call(function, 0)


class Cubed(Contender):
    """cubed on this machine's processes: arrays, with every intermediate in Zarr files."""

    name = "cubed"
    title = f"cubed, processes (max_workers={WORKERS}, allowed_mem={ALLOWED_MEMORY})"

    def open(self) -> None:
        self._cubed = needed("cubed")
        self._random = needed("cubed.random")
        self.xp = needed("cubed.array_api")
        work_dir = tempfile.mkdtemp(prefix="bench-cubed-")
        self.stack.callback(shutil.rmtree, work_dir, ignore_errors=True)
        self._spec = self._cubed.Spec(work_dir=work_dir, allowed_mem=ALLOWED_MEMORY)
        self._executor = needed("cubed.runtime.executors.local").ProcessesExecutor(max_workers=WORKERS)

    def matrix(self, rows: int, columns: int, chunk_rows: int, chunk_columns: int) -> Any:
        return self._random.random((rows, columns), chunks=(chunk_rows, chunk_columns), spec=self._spec)

    def compute(self, *arrays: Any) -> Any:
        found = self._cubed.compute(*arrays, executor=self._executor)
        return found[0] if len(arrays) == 1 else found

    def probe(self, function: Callable[[Any], Any]) -> Any:
        probing = self._cubed.map_blocks(lambda block: block * 0 + function(), self.matrix(1, 1, 1, 1), dtype="float64")
        return int(self.compute(probing)[0, 0])
