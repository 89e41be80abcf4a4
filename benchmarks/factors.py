"""What each part of our policy is worth in AWS, calculated: Wukong's factor analysis (figure 23), of ours.

    python -m benchmarks.factors                            # print it; a minute
    python -m benchmarks.factors --write docs/benchmarks.md # into the documentation

`benchmarks.ablation` measures on one machine, where values cross a socket and two executors are all there are. What
keeps values where they are, and work together, pays where the network is slow and executors are many: there the same
executor code runs in the simulator, on Wukong's workloads and on look-ups in large tables, on the network of today
(``docs/simulation.md`` tells how well it fits). Nothing here is measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import command, results
from benchmarks.ablation import ALL_OFF, ALL_ON, NO_LOCALITY
from benchmarks.anchors import CONCURRENCY, FARGATE_NODES
from benchmarks.report import factor_tables
from dask_serverless.simulator.calculator import Prediction, predict
from dask_serverless.simulator.clusters import ours
from dask_serverless.simulator.shapes import experienced, gemm, lookups, svd1, svd2, tree, tsqr
from dask_serverless.simulator.simulation import Options
from dask_serverless.simulator.workload import Workload

#: Latencies are drawn: means of so many runs.
SEEDS = 5
#: Executors and data servers: Wukong's experiments, and what a small team starts.
CLUSTERS = ((CONCURRENCY, FARGATE_NODES), (100, 4))

WORKLOADS: Mapping[str, tuple[str, Callable[[], Workload]]] = {
    "tree": ("tree reduction of 1,024 numbers, 500 ms each", lambda: tree(1_024, 0.5)),
    "svd1": ("SVD1, 4,096,000 x 100 in blocks of 10,000 rows", lambda: svd1(4_096_000)),
    "svd2": ("SVD2, 50,000 x 50,000 in blocks of 5,000", lambda: svd2(50_000)),
    "gemm": ("GEMM, 15,000 x 15,000 in blocks of 2,000", lambda: gemm(15_000, 2_000)),
    "lookups": ("look-ups, 500 of 20 ms in each of 10 tables of 1 GB", lambda: lookups(10, 500, 0.02, 10**9)),
    "tsqr": ("TSQR, 4,194,304 x 128 in blocks of 16,384 rows", lambda: tsqr(256 * 16_384)),
}


def _policy(**off: Any) -> Callable[[Options], Options]:
    return lambda options: replace(options, policy=replace(options.policy, **off))


#: Each part, and the cluster without it. Compression and the cache are not simulated.
PARTS: Mapping[str, Callable[[Options], Options]] = {
    "hold": _policy(hold=False),
    "group": _policy(group=False),
    "split": _policy(split=False),
    "prefetch": _policy(prefetch=False),
    "inline": _policy(inline_bytes_max=-1),
    "linger": lambda options: replace(options, linger_seconds=0.0),
}
#: What is known of tasks from earlier jobs is no setting.
LEARNED = "learned"


def entrants(options: Options) -> Iterator[tuple[str, Options, bool]]:
    """Yield who takes part: a name, the cluster, and whether it has run such tasks before."""
    everything = options
    yield ALL_ON, options, True
    for name, without in PARTS.items():
        yield f"without {name}", without(options), True
        everything = without(everything)
    yield f"without {LEARNED}", options, False
    yield ALL_OFF, everything, False
    yield NO_LOCALITY, _policy(locality=False)(everything), False


def compute(
    make: Callable[[], Workload], executors: int, shards: int, seeds: int = SEEDS
) -> dict[str, dict[str, float]]:
    """Return what each entrant takes: means of some runs."""
    fresh, again = make(), experienced(make())
    cluster = ours(executors, shards)
    found = {}
    for label, options, known in entrants(cluster):
        runs = [numbers(predict(again if known else fresh, options, seed=seed)) for seed in range(seeds)]
        found[label] = {name: mean(each[name] for each in runs) for name in runs[0]}
    return found


def numbers(found: Prediction) -> dict[str, float]:
    """Return what is kept of a prediction."""
    return {
        "seconds": found.seconds,
        "written": found.bytes_written,
        "read": found.bytes_read,
        "steps": found.steps,
        "invocations": found.invocations,
        "lambda_dollars": found.cost.compute + found.cost.requests,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="WORKLOAD", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--write", type=Path, metavar="PAGE", help="merge into this page (docs/benchmarks.md)")
    options = parser.parse_args(arguments)
    run = results.describe_run(SEEDS)
    path = options.write
    before = results.read(None if path is None else path.with_suffix("") / "results.json")
    found = {}
    for name in options.only:
        title, make = WORKLOADS[name]
        for executors, shards in CLUSTERS:
            heading = f"{title}: {executors:,} executors at most, {shards} data servers"
            entries = compute(make, executors, shards)
            found[f"{name} on {executors:,}"] = {"title": heading, "entrants": entries, "quick": False}
        if path is not None:
            command.write(path, results.merge(before, "factors", found, run))
    print("\n\n".join(factor_tables(results.merge(results.EMPTY, "factors", found, run))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
