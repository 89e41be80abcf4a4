"""What a workload would take in AWS: time, invocations, bytes and money, from the same simulation without faults. Pure.

The figures are as good as what they are made from: durations and sizes of tasks, which the caller brings, and how fast
Lambda and the storage tier are, for which there are published measurements (``docs/simulation.md``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dask_serverless.plan.graph import Graph
from dask_serverless.simulator.faults import NONE
from dask_serverless.simulator.lambda_service import LambdaConfig
from dask_serverless.simulator.simulation import Options, Simulation
from dask_serverless.simulator.workload import SimJob, SimTask, Workload
from lambda_worker.core.policy import Policy

GIB = 2**30


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
    memory_bytes: int = 3 * GIB,
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


# -- clusters ---------------------------------------------------------------------------------------


def ours(executors: int, shards: int = 4, warm: int | None = None, seconds_per_task: float | None = None) -> Options:
    """Return a cluster of this package as it would be in AWS, with warm sandboxes."""
    return Options(
        policy=Policy(ceiling=executors),
        ceiling=executors,
        shards=shards,
        function=LambdaConfig(
            concurrency=executors,
            warm=executors if warm is None else warm,
            request_seconds=0.02,
            dispatch_seconds=WARM_START_SECONDS,
            dispatch_spread=WARM_START_SPREAD,
            invokers=256,
        ),
        seconds_per_task=seconds_per_task,
        liveness_seconds=100_000.0,
    )


#: From the answer of an asynchronous invocation to its first instruction in a warm sandbox: the median, and the
#: deviation of the logarithm. Fitted to Wukong's tree reduction; hundreds of sandboxes wait for the slowest.
WARM_START_SECONDS = 0.1
WARM_START_SPREAD = 0.9


def wukong(executors: int, shards: int = 75) -> Options:
    """Return a cluster that decides as Wukong (SoCC'20) does: an executor for each start task, and every value through
    the store. Delayed I/O and task clustering are off; what its static scheduler and proxy do is done by ours."""
    policy = Policy(
        ceiling=executors,
        inline_bytes_max=0,
        publish_seconds_min=0.0,
        publications_per_second_max=1e9,
        hold=False,
        group=False,
        split=False,
        prefetch=False,
    )
    cluster = ours(executors, shards)
    function = replace(cluster.function, request_seconds=0.05)
    return replace(cluster, policy=policy, function=function, linger_seconds=0.0, latency_seconds=0.002)


# -- workloads --------------------------------------------------------------------------------------


def workload_of(
    parents: Sequence[Sequence[int]], seconds: Sequence[float] | float, nbytes: Sequence[int] | int = 100
) -> Workload:
    """Make a workload of a graph. Parents have smaller numbers than their children; what has no child is wanted.

    Examples
    --------
    >>> workload_of([[], [], [0, 1]], seconds=0.1).jobs[0].visible
    {'j1-2': 2}
    """
    count = len(parents)
    children: list[list[int]] = [[] for _ in range(count)]
    for task, row in enumerate(parents):
        for parent in row:
            children[parent].append(task)
    wanted = [task for task in range(count) if not children[task]]
    starts = [task for task in range(count) if not parents[task]]
    tasks = {
        task: SimTask(
            seconds if isinstance(seconds, float | int) else seconds[task],
            nbytes if isinstance(nbytes, int) else nbytes[task],
        )
        for task in range(count)
    }
    graph = Graph(parents, children, starts, frozenset(wanted))
    return Workload([SimJob("j1", graph, tasks, {f"j1-{task}": task for task in wanted})])


def tree(numbers: int, seconds: float, nbytes: int = 30) -> Workload:
    """Return a tree reduction of so many numbers by pairs, in depth-first order (Wukong's TR)."""
    parents: list[list[int]] = []

    def add(count: int) -> int:
        # As deep as the logarithm of `numbers`.
        row = [] if count <= 2 else [add(count // 2), add(count - count // 2)]
        parents.append(row)
        return len(parents) - 1

    add(numbers)
    return workload_of(parents, seconds, nbytes)


def chains(count: int, length: int, seconds: float, nbytes: int = 30) -> Workload:
    """Return independent chains (Wukong's scaling experiments)."""
    parents = [[task - 1] if task % length else [] for task in range(count * length)]
    return workload_of(parents, seconds, nbytes)
