"""Compare peer-to-peer shuffles with `LocalCluster`'s, in one run.

The two contenders take turns (`--repeat` times) and the table gives medians and their ratios; see `throughput.py`. The
data is made inside the tasks, for both alike, and what comes back is small. Nothing here asserts a time.

    python benchmarks/shuffle.py [--repeat 3] [--quick] [--mib 256] [--only shuffle merge set_index rechunk]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
from distributed import Client, LocalCluster
from throughput import WORKERS, Program, Row, compute, measure, table, tree

from dask_serverless import ServerlessCluster

MIB = 2**20
PARTITIONS = 32
PROGRAMS = ("shuffle", "merge", "set_index", "rechunk")
COUNTERS = ("tasks_run", "executors", "slices_written", "bytes_written", "bytes_read", "round_trips")
#: Two keys, five numbers and a short text.
ROW_BYTES = 7 * 8 + 12


def part(number: int, rows: int, turn: int) -> pd.DataFrame:
    rng = np.random.default_rng([number, turn])
    keys = rng.integers(0, rows * PARTITIONS, (2, rows))
    numbers = {f"number{i}": rng.random(rows) for i in range(5)}
    text = pd.array(np.char.add("text ", (keys[0] % 1_000).astype(str)), dtype="string[pyarrow]")
    return pd.DataFrame({"key": keys[0], "other": keys[1], **numbers, "text": text})


def frame(mib: int, turn: int) -> Any:
    rows = mib * MIB // ROW_BYTES // PARTITIONS
    return dd.from_map(part, range(PARTITIONS), rows=rows, turn=turn, meta=part(0, 1, 0))


def figures(found: pd.DataFrame) -> pd.DataFrame:
    """Return what tells that the rows are there, the same for any order of them."""
    return pd.DataFrame({"rows": [len(found)], "keys": [int(found.key.sum())], "other": [int(found.other.sum())]})


def on_frames(shuffle: Callable[[Any], Any], mib: int) -> Program:
    """Return a program that shuffles a frame of `mib` megabytes and adds up what came of it."""

    def build(client: Client | None, turn: int) -> Callable[[], Any]:
        shuffled = shuffle(frame(mib, turn))
        counted = shuffled.map_partitions(figures, meta={"rows": "i8", "keys": "i8", "other": "i8"})
        return lambda: tuple(compute(client, counted).sum())

    return build


def on_arrays(mib: int) -> Program:
    """Return a program that turns an array of `mib` megabytes from columns of chunks to rows of chunks."""
    side = int((mib * MIB / 8) ** 0.5) // PARTITIONS * PARTITIONS

    def build(client: Client | None, turn: int) -> Callable[[], Any]:
        with dask.config.set({"array.chunk-size": mib * MIB // PARTITIONS}):
            x = da.random.default_rng(turn).integers(0, 1_000, (side, side), chunks=(side, side // PARTITIONS))
            rows = x.rechunk((side // PARTITIONS, side), method="p2p")
        total = (rows * np.arange(side)).sum(axis=1).max()
        return lambda: int(compute(client, total))

    return build


def report(rows: list[Row]) -> str:
    """Return the two tables: times with their ratio, and what ours did."""
    times = []
    did = []
    for row in rows:
        local, ours = row.median("local"), row.median("serverless")
        times.append([row.title, f"{local:.2f}", f"{ours:.2f}", f"{local / ours:.2f}"])
        did.append(
            [row.title, *(f"{sorted(c[name] for c in row.counters)[len(row.counters) // 2]:,}" for name in COUNTERS)]
        )
    return (
        table(["median of the turns", "local s", "serverless s", "local / serverless"], times)
        + "\n\n"
        + table(["serverless, per turn", *(name.replace("_", " ") for name in COUNTERS)], did)
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, help="turns of each contender (default: 3)")
    parser.add_argument("--mib", type=int, default=256, help="size of what is shuffled (default: 256)")
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument("--quick", action="store_true", help="small sizes and one turn: does it run at all?")
    options = parser.parse_args(arguments)
    if options.repeat < 1 or options.mib < 1:
        parser.error("--repeat and --mib must be 1 or more")
    mib, repeat = (8, 1) if options.quick else (options.mib, options.repeat)

    def merged(left: Any) -> Any:
        right = left[["key"]].drop_duplicates(split_out=PARTITIONS, shuffle_method="p2p")
        return left.merge(right, on="key", shuffle_method="p2p", broadcast=False)

    def indexed(data: Any) -> Any:
        rows = PARTITIONS * len(part(0, mib * MIB // ROW_BYTES // PARTITIONS, 0))
        divisions = [rows * i // PARTITIONS for i in range(PARTITIONS + 1)]
        return data.set_index("key", divisions=divisions, drop=False, shuffle_method="p2p")

    programs: dict[str, tuple[str, Program]] = {
        "shuffle": (f"shuffle, {mib} MiB", on_frames(lambda data: data.shuffle("key", shuffle_method="p2p"), mib)),
        "merge": (f"merge with its own keys, {mib} MiB", on_frames(merged, mib)),
        "set_index": (f"set_index, {mib} MiB", on_frames(indexed, mib)),
        "rechunk": (f"rechunk, {mib} MiB", on_arrays(mib)),
    }
    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0") as local_cluster,
        Client(local_cluster, set_as_default=False) as local,
        ServerlessCluster(n_workers=WORKERS, storage_max_memory=8 * 2**30) as serverless_cluster,
        Client(serverless_cluster, set_as_default=False) as serverless,
    ):
        contenders: dict[str, Client | None] = {"local": local, "serverless": serverless}
        warm_ups = [tree(2 * WORKERS), on_frames(lambda data: data.shuffle("key", shuffle_method="p2p"), 1)]
        rows = []
        for client in contenders.values():
            for warm_up in warm_ups:
                warm_up(client, 0)()
        for name in options.only:
            title, program = programs[name]
            row = Row(title, 0)
            measure(row, program, contenders, serverless_cluster, repeat)
            rows.append(row)
    print(f"`local` is LocalCluster(n_workers={WORKERS}, threads_per_worker=1),")
    print(f"`serverless` is ServerlessCluster(n_workers={WORKERS}); {repeat} turn(s) each, interleaved.\n")
    print(report(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
