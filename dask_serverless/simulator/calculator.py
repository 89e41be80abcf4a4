"""What a workload would take in AWS: time, invocations, bytes and money, from the same simulation without faults. Pure.

The figures are as good as what they are made from: durations and sizes of tasks, which the caller brings, and how fast
Lambda and the storage tier are, for which there are published measurements (``docs/simulation.md``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dask_serverless.simulator.clusters import GIB, MEMORY_BYTES, ours
from dask_serverless.simulator.faults import NONE
from dask_serverless.simulator.simulation import Options, Simulation
from dask_serverless.simulator.workload import Workload


@dataclass(frozen=True, slots=True)
class Prices:
    """What AWS asks for, in US dollars (us-east-1, x86, 2026)."""

    gib_second: float = 0.0000166667
    request: float = 0.20 / 1e6
    shard_hour: float = 0.295  # Fargate, 4 vCPU and 30 GB


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a workload takes.

    Parameters
    ----------
    seconds
        From its submission to its last answer.
    invocations, executors_peak
        Of Lambda; and environments at work at once.
    lambda_seconds
        That are billed, of all environments together.
    bytes_read, bytes_written, steps
        At the storage tier.
    dollars_lambda, dollars_storage
        The storage tier as long as the workload runs; what it costs to have it wait is not in here.
    """

    seconds: float
    invocations: int
    executors_peak: int
    lambda_seconds: float
    bytes_read: int
    bytes_written: int
    steps: int
    dollars_lambda: float
    dollars_storage: float

    @property
    def dollars(self) -> float:
        """What it costs altogether."""
        return self.dollars_lambda + self.dollars_storage


def predict(
    workload: Workload,
    options: Options | None = None,
    memory_bytes: int = MEMORY_BYTES,
    prices: Prices | None = None,
    seed: int = 0,
) -> Prediction:
    """Predict what a workload takes.

    Parameters
    ----------
    workload
        What is computed: its tasks, how long each takes and how large its value is.
    options
        The cluster (None: `ours`, for as many executors as there are start tasks).
    memory_bytes
        Of each Lambda.
    prices
        What AWS asks for.
    seed
        Draws latencies.

    Examples
    --------
    >>> from dask_serverless.simulator.shapes import tree
    >>> prediction = predict(tree(64, seconds=0.1))
    >>> 0.6 < prediction.seconds < 1.5
    True
    """
    prices = prices or Prices()
    if options is None:
        options = ours(max(len(job.graph.starts) for job in workload.jobs))
    simulation = Simulation(seed, workload, NONE, replace(options, watched=False))
    outcome = simulation.run()
    if outcome.violation is not None:
        raise outcome.violation
    counted = [store.counters() for store in simulation.stores]
    bill = simulation.service.bill
    return Prediction(
        seconds=outcome.seconds,
        invocations=bill.requests,
        executors_peak=bill.peak,
        lambda_seconds=bill.seconds,
        bytes_read=sum(each["bytes_read"] for each in counted),
        bytes_written=sum(each["bytes_written"] for each in counted),
        steps=sum(each["round_trips"] for each in counted),
        dollars_lambda=bill.seconds * memory_bytes / GIB * prices.gib_second + bill.requests * prices.request,
        dollars_storage=outcome.seconds / 3600 * prices.shard_hour * (options.shards + 1),
    )
