"""Clusters to calculate with: this package's and Wukong's, in AWS, on warm sandboxes. Pure.

What was *fitted* to Wukong's measurements is here, with the one measurement that each number was fitted to. All other
figures of the model were measured by others, or decided by Wukong's code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dask_serverless.simulator.lambda_service import LambdaConfig
from dask_serverless.simulator.network import BASELINE_PER_SECOND, SHARD_PER_SECOND, ZONE_PER_SECOND
from dask_serverless.simulator.simulation import Options
from lambda_worker.core.policy import Policy

GIB = 2**30
#: Of each Lambda in Wukong's experiments, and in ours here.
MEMORY_BYTES = 3 * GIB

#: Fitted (SVD of 128,000 x 100, figure 10): from the answer of an asynchronous invocation to its first instruction in a
#: warm sandbox, the median; and (1,000 tasks on 1,000 Lambdas, figure 21) the deviation of the logarithm.
WARM_START_SECONDS = 0.07
WARM_START_SPREAD = 0.4
#: Fitted (SVD of 256,000 x 256,000, figure 11): what all Lambdas move together. The 20 GiB/s of `network` are newer.
WUKONG_ZONE_PER_SECOND = 6.3e9
#: Fitted (product of 10,000 x 10,000, figure 13): bytes that an executor of Wukong packs or unpacks: pickles in base64.
WUKONG_PACKED_PER_SECOND = 47e6
#: Assumed: what a step at the store takes an executor of Wukong, there and back, if nobody is in its way.
WUKONG_STEP_SECONDS = 0.002
#: Fitted (tree reduction without delay, figure 9): the deviation of the logarithm of that. Hundreds of executors share
#: one server for counters, and those on the longest path wait for the slowest.
WUKONG_STEP_SPREAD = 1.6
#: Wukong's threshold for large objects: 200 MB.
WUKONG_LARGE_BYTES = 200 * 10**6
#: How long an executor of Wukong looks again for what its large object lacks, before it writes it.
WUKONG_HOLD_SECONDS = 171.5
#: What one of ours packs (seals) or unpacks (checks): as the policy takes for granted where shards are near.
OURS_PACKED_PER_SECOND = Policy().bytes_per_second


@dataclass(frozen=True, slots=True)
class WukongPolicy(Policy):
    """Decides as Wukong does: by one fixed threshold, and never by time.

    Parameters
    ----------
    large_bytes
        Tasks stay with inputs of this size, or of more (task clustering), and these are held back for
        fan-ins (delayed I/O). For all others that are ready an executor is invoked, except for one of them.

    Examples
    --------
    >>> policy = WukongPolicy(ceiling=1_000)
    >>> policy.shares(13, seconds_per_task=1e-6), policy.moves(10**6, 1e-6, 1e8), policy.moves(2 * 10**8, 60.0, 1e9)
    (13, True, False)
    """

    large_bytes: int = WUKONG_LARGE_BYTES

    def moves(self, nbytes: int, seconds: float, bandwidth: float) -> bool:
        """Tell whether a ready task may run elsewhere: if its inputs here are below the threshold."""
        return not self.group or nbytes < self.large_bytes

    def shares(self, ready: int, seconds_per_task: float, seconds_left: float = 0.0) -> int:
        """Tell how many executors ready tasks are split among: each has its own."""
        return max(1, min(self.ceiling, ready))

    def tries_first(self, known: bool) -> bool:
        """Tell whether a task is run before others are shared: never."""
        return False

    def branches(self, shares: int) -> tuple[int, int]:
        """Tell how many executors are started at once: all."""
        return shares, 0

    def hold_seconds(
        self, nbytes: int, bandwidth: float, executors: int = 1, expected_seconds: float | None = None
    ) -> float:
        """Tell how long large values are held back."""
        return WUKONG_HOLD_SECONDS

    def ask_pause_max(self, executors: int, waited: float) -> float:
        """Tell how seldom an executor looks again."""
        return self.ask_seconds_max


def ours(executors: int, shards: int = 4, warm: int | None = None, zone_per_second: float = ZONE_PER_SECOND) -> Options:
    """Return a cluster of this package as it would be in AWS, with warm sandboxes of 3 GiB.

    Parameters
    ----------
    executors
        The ceiling.
    shards
        Data servers.
    warm
        Sandboxes that are there already (None: all).
    zone_per_second
        Bytes that all of them move together.
    """
    return Options(
        policy=Policy(
            ceiling=executors,
            bytes_per_second=BASELINE_PER_SECOND,
            tier_bytes_per_second=min(zone_per_second, shards * SHARD_PER_SECOND),
            kept_bytes_max=MEMORY_BYTES // 4,
        ),
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
        packed_per_second=OURS_PACKED_PER_SECOND,
        zone_per_second=zone_per_second,
        liveness_seconds=100_000.0,
    )


def wukong(
    executors: int, shards: int = 75, clustering: bool = True, delayed: bool = True, shares: bool = True
) -> Options:
    """Return a cluster that decides as Wukong (SoCC'20) does.

    An executor for each start task; of the children that become ready one is run, and an executor is invoked for each
    other; values go through the store, one after the other. What its static scheduler and proxy do is done by ours.

    Parameters
    ----------
    executors, shards
        The ceiling, and servers for values.
    clustering, delayed
        Whether tasks stay with large inputs, and whether these are held back.
    """
    policy = WukongPolicy(
        ceiling=executors,
        inline_bytes_max=0,
        invoke_here_min=1,
        full_seconds=0.0,
        publish_seconds_min=0.0,
        publications_per_second_max=1e9,
        kept_bytes_max=MEMORY_BYTES,
        hold=delayed,
        hold_bytes_min=WUKONG_LARGE_BYTES,
        ask_seconds_min=0.05,
        ask_seconds_max=0.5,
        group=clustering,
        split=shares,
        prefetch=False,
    )
    cluster = ours(executors, shards, zone_per_second=WUKONG_ZONE_PER_SECOND)
    return replace(
        cluster,
        policy=policy,
        function=replace(cluster.function, request_seconds=0.05),
        linger_seconds=0.0,
        latency_seconds=WUKONG_STEP_SECONDS / 2,
        latency_spread=WUKONG_STEP_SPREAD,
        packed_per_second=WUKONG_PACKED_PER_SECOND,
        whole_schedules=True,
        reads_one_by_one=True,
        gather=False,
    )
