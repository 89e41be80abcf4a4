"""What goes wrong in a run, and how often: drawn from its seed, class by class. Pure.

A run with every fault at once finds less than many runs with a few each: where everything dies, nothing gets far
enough to meet the rare case. So each class is on or off by itself (*swarm testing*: Groce et al., ISSTA'12).
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace

#: For each class of faults: its rates, with the range each is drawn from (logarithmically).
CLASSES: dict[str, dict[str, tuple[float, float]]] = {
    "crash": {"crash_per_second": (0.002, 0.5)},
    "crash-at-step": {"crash_at_step": (0.002, 0.1)},
    "invocation-lost": {"invocation_lost": (0.02, 0.3)},
    "invocation-doubled": {"invocation_doubled": (0.05, 0.5)},
    "invocation-late": {"invocation_late": (0.02, 0.3)},
    "throttle": {"throttled": (0.05, 0.6)},
    "unknown-outcome": {"unknown_outcome": (0.02, 0.3)},
    "failure-record": {"failure_lost": (0.05, 1.0), "failure_doubled": (0.01, 0.3)},
    "reply-lost": {"reply_lost": (0.005, 0.1), "request_lost": (0.005, 0.1)},
    "step-late": {"step_doubled": (0.005, 0.1)},
    "partition": {"cut_per_second": (0.005, 0.1), "cut_seconds": (0.5, 60.0)},
    "value-lost": {"value_lost_per_second": (0.01, 1.0)},
    "shard-lost": {"shard_lost_per_second": (0.005, 0.1)},
    "rollback": {"rollback_per_second": (0.005, 0.1), "rollback_seconds": (0.01, 1.0)},
    "shard-full": {"shard_mebibytes": (1.0, 300.0)},
    "clock-jump": {"jump_per_second": (0.005, 0.1), "jump_seconds": (1.0, 3600.0)},
    "straggler": {"slow_sandbox": (0.05, 0.5), "slow_factor": (3.0, 30.0)},
    "cold-start": {"cold_seconds": (0.5, 20.0)},
    # Last: what the others draw stays what it was before there was this one.
    "metadata-lost": {"metadata_lost_per_second": (0.005, 0.1)},
    "failover": {"failover_per_second": (0.005, 0.1), "failover_seconds": (0.01, 10.0)},
}


#: The chance of each class.
SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Faults:
    """How often what goes wrong. Shares are of all occasions; rates are per second of virtual time.

    Parameters
    ----------
    crash_per_second, crash_at_step
        Sandboxes die at any moment; and just before or after a step at the store.
    invocation_lost, invocation_doubled, invocation_late
        Invocations that Lambda has accepted never begin, begin twice, or begin later than a lease lasts.
    throttled, unknown_outcome
        Requests are refused with 429, or break: then nobody knows whether Lambda has accepted them.
    failure_lost, failure_doubled
        Lambda's records of what failed are lost, or come twice.
    reply_lost, request_lost, step_doubled
        A step at the store is repeated after it was done, after it never arrived, or is done again later.
    cut_per_second, cut_seconds
        A sandbox cannot reach the store, for so long on average.
    value_lost_per_second, shard_lost_per_second
        Shards lose single values, or everything.
    rollback_per_second, rollback_seconds
        A shard loses what was written last.
    shard_mebibytes
        What a shard has room for (0: as much as is needed).
    jump_per_second, jump_seconds
        The store's clock jumps, forth and back.
    slow_sandbox, slow_factor
        Some sandboxes are slower than others, by this factor.
    cold_seconds
        How long a cold start takes, on average.
    metadata_lost_per_second
        The metadata server dies, and is there again, empty.
    failover_per_second, failover_seconds
        Another one takes its place, which has not heard the last words: of so many seconds at most.
    """

    crash_per_second: float = 0.0
    crash_at_step: float = 0.0
    invocation_lost: float = 0.0
    invocation_doubled: float = 0.0
    invocation_late: float = 0.0
    throttled: float = 0.0
    unknown_outcome: float = 0.0
    failure_lost: float = 0.0
    failure_doubled: float = 0.0
    reply_lost: float = 0.0
    request_lost: float = 0.0
    step_doubled: float = 0.0
    cut_per_second: float = 0.0
    cut_seconds: float = 0.0
    value_lost_per_second: float = 0.0
    shard_lost_per_second: float = 0.0
    rollback_per_second: float = 0.0
    rollback_seconds: float = 0.0
    shard_mebibytes: float = 0.0
    jump_per_second: float = 0.0
    jump_seconds: float = 0.0
    slow_sandbox: float = 0.0
    slow_factor: float = 1.0
    cold_seconds: float = 0.2
    metadata_lost_per_second: float = 0.0
    failover_per_second: float = 0.0
    failover_seconds: float = 0.0

    @property
    def loses_values(self) -> bool:
        """Whether stored values may be gone."""
        return bool(self.value_lost_per_second or self.shard_lost_per_second or self.rollback_per_second)

    @property
    def loses_metadata(self) -> bool:
        """Whether what is known of jobs may be gone."""
        return bool(self.metadata_lost_per_second or self.failover_per_second)

    @property
    def classes(self) -> list[str]:
        """Which classes are on."""
        default = asdict(Faults())
        mine = asdict(self)
        return [name for name, rates in CLASSES.items() if any(mine[rate] != default[rate] for rate in rates)]

    def __repr__(self) -> str:
        changed = {each.name: getattr(self, each.name) for each in fields(self)}
        shown = [f"{name}={value:.3g}" for name, value in changed.items() if value != getattr(NONE, name)]
        return f"Faults({', '.join(shown)})"

    def over(self) -> Faults:
        """Return what is left when nothing goes wrong any more: what was slow or small stays so."""
        return replace(
            NONE,
            shard_mebibytes=self.shard_mebibytes,
            slow_sandbox=self.slow_sandbox,
            slow_factor=self.slow_factor,
            cold_seconds=self.cold_seconds,
        )


NONE = Faults()


def luck_of(seed: int) -> random.Random:
    """Return the luck that a seed's faults are drawn from."""
    return random.Random(f"{seed} faults")  # by text: the same in every process


def draw(luck: random.Random, among: Collection[str] = tuple(CLASSES), share: float = SHARE) -> Faults:
    """Draw what goes wrong in a run: each class with a chance of `share`.

    Examples
    --------
    >>> draw(random.Random("1"), share=1.0).classes == list(CLASSES)
    True
    >>> draw(random.Random("1"), among=[])
    Faults()
    """
    rates: dict[str, float] = {}
    for name, ranges in CLASSES.items():
        on = luck.random() < share
        for rate, (low, high) in ranges.items():
            drawn = low * (high / low) ** luck.random()  # drawn even if it is off: the others stay as they are
            if on and name in among:
                rates[rate] = drawn
    return Faults(**rates)
