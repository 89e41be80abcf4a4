"""What must hold, as ratios within one run: each target looks at what is kept of runs and says whether it is met."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.ablation import ALL_ON, NO_LOCALITY

Kept = Mapping[str, Any]
#: LocalCluster and ours, of the same shape: two workers of one thread, one of two.
SHAPES = {"2x1": ("local", "serverless"), "1x2": ("threads", "serverless-threads")}
HEAVY = ("gemm", "svd1", "svd2", "tsqr", "svc")
#: Naps of so many seconds, how many at once, and what they may take, against the ideal.
NAPS = ((0.1, 500, 1.5), (0.1, 1_000, 2.0), (0.5, 500, 1.15), (0.5, 1_000, 1.15))
#: Threads of an executor that naps.
NAP_THREADS = (1, 25)
#: What a task of a twelve times larger graph may cost more before its cost grows.
GROWTH_MAX = 1.25
#: What a model, a prediction, and a chunk's random generator (its state: 624 words) take in `svc-1000`.
MODEL_BYTES = 60_000
RESULT_BYTES = 8
STATE_BYTES = 2_496


@dataclass(frozen=True, slots=True)
class Target:
    """One promise: the ratio it is about, its bound, and how to find it (None: not measured)."""

    text: str
    bound: float
    at_least: bool
    find: Callable[[Kept], float | None]

    def verdict(self, kept: Kept) -> tuple[str, str]:
        """Return the ratio found and whether the target is met, in words."""
        ratio = self.find(kept)
        if ratio is None:
            return "", "not measured"
        met = ratio >= self.bound if self.at_least else ratio <= self.bound
        return f"{ratio:.4g}", "met" if met else "**missed**"


def seconds(kept: Kept, workload: str, entrant: str, section: str = "workloads") -> float | None:
    """Return the median time of an entrant, if it has any."""
    result = kept.get(section, {}).get(workload, {}).get("entrants", {}).get(entrant, {})
    times = result.get("seconds") or []
    return statistics.median(times) if times else None


def counted(kept: Kept, workload: str, entrant: str, name: str, section: str = "workloads") -> float | None:
    result = kept.get(section, {}).get(workload, {}).get("entrants", {}).get(entrant, {})
    found = (result.get("counted") or {}).get(name)
    return None if found is None else float(found)


def ratio(over: float | None, under: float | None) -> float | None:
    return None if over is None or not under else over / under


def fastest(kept: Kept, workload: str) -> tuple[float | None, float | None]:
    """Return the times of the faster of the two LocalClusters, and of the faster of ours."""
    local, ours = ([seconds(kept, workload, name) for name in names] for names in zip(*SHAPES.values(), strict=True))
    return min(filter(None, local), default=None), min(filter(None, ours), default=None)


def bytes_of(kept: Kept, workload: str, entrant: str, names: tuple[str, ...]) -> float | None:
    found = [counted(kept, workload, entrant, name, "ablation") for name in names]
    return None if None in found else sum(each for each in found if each is not None)


def per_task(kept: Kept, workload: str) -> float | None:
    tasks = kept.get("workloads", {}).get(workload, {}).get("tasks")
    return ratio(seconds(kept, workload, "serverless"), tasks)


def constants(kept: Kept) -> float | None:
    """Return what was written for one model in a thousand tasks, against model, inputs and predictions once."""
    size = kept.get("workloads", {}).get("svc-1000", {}).get("size")
    if size is None:
        return None
    once = MODEL_BYTES + STATE_BYTES * size["chunks"] + RESULT_BYTES * size["samples"]
    return ratio(counted(kept, "svc-1000", "serverless", "bytes_written"), once)


def _against(kept: Kept, *, workload: str, local: str, ours: str) -> float | None:
    return ratio(seconds(kept, workload, local), seconds(kept, workload, ours))


def naps(kept: Kept, *, nap: float, at_once: int, threads: int) -> float | None:
    """Return how long naps took on warm executors, against the ideal."""
    for result in kept.get("wide", {}).values():
        if (result["nap"], result["at_once"], result["threads"]) == (nap, at_once, threads):
            return ratio(statistics.median(turn["seconds"] for turn in result["warm"]), result["ideal"])
    return None


def _writes(kept: Kept, *, workload: str) -> float | None:
    """Return what was written, against what is written without locality."""
    return ratio(*(bytes_of(kept, workload, entrant, ("bytes_written",)) for entrant in (ALL_ON, NO_LOCALITY)))


def targets() -> Iterator[Target]:
    yield Target(
        "tree of no-ops: LocalCluster's time (2 x 1) / ours",
        30,
        True,
        lambda kept: ratio(seconds(kept, "tree", "local"), seconds(kept, "tree", "serverless")),
    )
    yield Target(
        "tree of no-ops: ours / the synchronous scheduler's",
        2,
        False,
        lambda kept: ratio(seconds(kept, "tree", "serverless"), seconds(kept, "tree", "sync")),
    )
    yield Target(
        "100,000 tasks: time per task / that of 8,191",
        GROWTH_MAX,
        False,
        lambda kept: ratio(per_task(kept, "tree-100k"), per_task(kept, "tree")),
    )
    for name in HEAVY:
        for shape, (local, ours) in SHAPES.items():
            yield Target(
                f"{name}: LocalCluster's time / ours, both {shape}",
                1,
                True,
                functools.partial(_against, workload=name, local=local, ours=ours),
            )
    yield Target(
        "gemm: bytes written and read / without locality",
        0.5,
        False,
        lambda kept: ratio(
            bytes_of(kept, "gemm", ALL_ON, ("bytes_written", "bytes_read")),
            bytes_of(kept, "gemm", NO_LOCALITY, ("bytes_written", "bytes_read")),
        ),
    )
    for name in ("tsqr", "tsqr-auto"):
        yield Target(
            f"{name}: bytes written / without locality", 0.001, False, functools.partial(_writes, workload=name)
        )
    yield Target("svc-1000: bytes written / (model + inputs + predictions)", 2, False, constants)
    for nap, at_once, bound in NAPS:
        for threads in NAP_THREADS:
            by = f"{at_once:,} executors" if threads == 1 else f"{at_once // threads:,} executors of {threads} threads"
            find = functools.partial(naps, nap=nap, at_once=at_once, threads=threads)
            yield Target(f"10,000 naps of {nap} s on {by}, warm: time / ideal", bound, False, find)
