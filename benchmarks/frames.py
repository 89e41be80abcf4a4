"""Workloads on frames: a groupby, and what moves rows between all partitions (peer-to-peer where there are peers).

The data is made inside the tasks, for all alike, and what comes back is small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np

from benchmarks import tasks
from benchmarks.contenders import Contender
from benchmarks.workloads import Workload

MIB = 2**20
PARTITIONS = 32
#: Two keys, five numbers and a short text.
ROW_BYTES = 7 * 8 + 12
META = {"rows": "i8", "keys": "i8", "other": "i8"}


def rows_in(mib: int) -> int:
    """Return how many rows a partition has."""
    return mib * MIB // ROW_BYTES // PARTITIONS


def frame(mib: int, turn: int, keys: int) -> Any:
    meta = tasks.part(0, 1, 1, 0)
    return dd.from_map(tasks.part, range(PARTITIONS), rows=rows_in(mib), keys=keys, seed=turn, meta=meta)


def groupby(contender: Contender, turn: int, *, mib: int, groups: int) -> Callable[[], tuple[int, float]]:
    found = frame(mib, turn, groups).groupby("key").agg({"number0": "sum", "number1": "mean", "other": "count"})

    def run() -> tuple[int, float]:
        table = contender.compute(found)
        return int(table.other.sum()), float(table.number0.sum())

    return run


def shuffled(contender: Contender, data: Any) -> Callable[[], tuple[int, ...]]:
    counted = data.map_partitions(tasks.figures, meta=META)
    return lambda: tuple(int(each) for each in contender.compute(counted).sum())


def merge(contender: Contender, turn: int, *, mib: int) -> Callable[[], tuple[int, ...]]:
    """Merge a frame with its own keys, which have been shuffled on their own."""
    left = frame(mib, turn, rows_in(mib) * PARTITIONS)
    right = left[["key"]].drop_duplicates(split_out=PARTITIONS)
    return shuffled(contender, left.merge(right, on="key", broadcast=False))


def shuffle(contender: Contender, turn: int, *, mib: int) -> Callable[[], tuple[int, ...]]:
    return shuffled(contender, frame(mib, turn, rows_in(mib) * PARTITIONS).shuffle("key"))


def set_index(contender: Contender, turn: int, *, mib: int) -> Callable[[], tuple[int, ...]]:
    keys = rows_in(mib) * PARTITIONS
    divisions = [keys * i // PARTITIONS for i in range(PARTITIONS + 1)]
    return shuffled(contender, frame(mib, turn, keys).set_index("key", divisions=divisions, drop=False))


def rechunk(contender: Contender, turn: int, *, mib: int) -> Callable[[], int]:
    """Turn an array from columns of chunks to rows of chunks."""
    side = int((mib * MIB / 8) ** 0.5) // PARTITIONS * PARTITIONS
    with dask.config.set({"array.chunk-size": mib * MIB // PARTITIONS}):
        x = da.random.default_rng(turn).integers(0, 1_000, (side, side), chunks=(side, side // PARTITIONS))
        rows = x.rechunk((side // PARTITIONS, side), method="p2p" if contender.client else "tasks")
    total = (rows * np.arange(side)).sum(axis=1).max()
    return lambda: int(contender.compute(total))


def on_rows(name: str, title: str, build: Callable[..., Any], mib: int = 256, **more: Any) -> Workload:
    return Workload(
        name=name,
        title=f"{title}, {{mib}} MiB",
        full={"mib": mib, **more},
        quick={"mib": 8, **more},
        ablated={"mib": 128},
        build=build,
        tasks=lambda size: 4 * PARTITIONS,
    )


WORKLOADS = [
    on_rows("groupby", "dataframe groupby, {groups:,} groups", groupby, mib=1_024, groups=1_000),
    on_rows("merge", "dataframe merge with its own keys", merge, mib=512),
    on_rows("shuffle", "dataframe shuffle", shuffle),
    on_rows("set_index", "dataframe set_index", set_index),
    on_rows("rechunk", "array rechunk", rechunk),
]
