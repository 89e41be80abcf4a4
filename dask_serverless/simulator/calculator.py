"""What a workload would take in AWS: time, invocations, bytes and money, from the same simulation without faults. Pure.

The figures are as good as what they are made from: durations and sizes of tasks, which the caller brings, and how fast
Lambda and the storage tier are, for which there are published measurements (``docs/simulation.md``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dask_serverless.plan.price import Cost, Machine, Prices, price
from dask_serverless.simulator.clusters import GIB, MEMORY_BYTES, ours
from dask_serverless.simulator.faults import NONE
from dask_serverless.simulator.simulation import Options, Simulation
from dask_serverless.simulator.workload import Workload

#: One server of the storage tier.
SHARD = Machine(vcpus=4, gb=30)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a workload takes. Printed, it is for people; the fields are for programs.

    Parameters
    ----------
    seconds
        From its submission to its last answer.
    tasks
        That run.
    invocations, executors_peak
        Of Lambda; and environments at work at once.
    lambda_seconds
        That are billed, of all environments together.
    input_bytes
        That tasks read from elsewhere.
    bytes_read, bytes_written, steps
        At the storage tier.
    shards
        Servers of the storage tier, beside the one for metadata.
    cost
        In US dollars, of Lambda and of the storage tier as long as the workload runs: what it costs to have it wait is
        not in here, nor are S3 and machines of the client.
    """

    seconds: float
    tasks: int
    invocations: int
    executors_peak: int
    lambda_seconds: float
    input_bytes: int
    bytes_read: int
    bytes_written: int
    steps: int
    shards: int
    cost: Cost

    def __str__(self) -> str:
        cost = self.cost
        return "\n".join(
            (
                f"time: {self.seconds:.3g} s for {self.tasks:,} tasks, with {self.executors_peak:,} executors at once",
                f"invocations: {self.invocations:,}, {self.lambda_seconds:,.1f} s of Lambda in all",
                f"storage tier: {self.steps:,} round trips, {_size(self.bytes_written)} written, "
                f"{_size(self.bytes_read)} read" + f"; inputs: {_size(self.input_bytes)} read" * bool(self.input_bytes),
                f"cost: ${cost.total:.6f} (Lambda ${cost.compute:.6f}, requests ${cost.requests:.6f}, "
                f"{self.shards + 1} storage servers meanwhile ${cost.storage:.6f})",
            )
        )


def _size(nbytes: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}"
    return f"{nbytes:.0f} B"


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
    >>> print(str(prediction).splitlines()[1].partition(",")[0])
    invocations: 32
    """
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
        tasks=sum(len(job.tasks) for job in workload.jobs),
        invocations=bill.requests,
        executors_peak=bill.peak,
        lambda_seconds=bill.seconds,
        input_bytes=sum(task.input_nbytes for job in workload.jobs for task in job.tasks.values()),
        bytes_read=sum(each["bytes_read"] for each in counted),
        bytes_written=sum(each["bytes_written"] for each in counted),
        steps=sum(each["round_trips"] for each in counted),
        shards=options.shards,
        cost=price(
            gb_seconds=bill.seconds * memory_bytes / GIB,
            requests=bill.requests,
            storage_seconds=outcome.seconds * (options.shards + 1),
            storage=SHARD,
            prices=prices,
        ),
    )
