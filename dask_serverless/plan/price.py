"""What AWS would ask for what was used: plain arithmetic over list prices, so that plans, reports and benchmarks agree.

Lambda bills memory by the second (whether it computes or waits) and each request; Fargate bills vCPUs and memory
for as long as a task of it runs. Prices are handed in; the defaults are those of x86 in us-east-1, on demand.
"""

from __future__ import annotations

from dataclasses import dataclass

SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """List prices, in USD."""

    lambda_gb_second: float = 0.0000166667
    lambda_request: float = 0.0000002
    fargate_vcpu_second: float = 0.000011244
    fargate_gb_second: float = 0.004445 / SECONDS_PER_HOUR


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The size of one Fargate task.

    Examples
    --------
    >>> Machine(vcpus=4, gb=30).cost(SECONDS_PER_HOUR, Prices()) > 0.29
    True
    """

    vcpus: float
    gb: float

    def cost(self, seconds: float, prices: Prices) -> float:
        """Return what so many seconds of it cost, without Fargate's minimum of one minute."""
        return seconds * (self.vcpus * prices.fargate_vcpu_second + self.gb * prices.fargate_gb_second)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What something cost, in USD, by what it was paid for.

    Examples
    --------
    >>> cost = price(gb_seconds=2.0, requests=5, storage_seconds=1.0, storage=Machine(vcpus=4, gb=30))
    >>> f"{cost.compute:.7f} {cost.requests:.7f} {cost.storage:.7f} {cost.total:.7f}"
    '0.0000333 0.0000010 0.0000820 0.0001164'
    """

    compute: float
    requests: float
    storage: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.compute + self.requests + self.storage


def price(
    *,
    gb_seconds: float,
    requests: float,
    storage_seconds: float = 0.0,
    storage: Machine | None = None,
    prices: Prices | None = None,
) -> Cost:
    """Return what invocations and a storage tier cost.

    Parameters
    ----------
    gb_seconds
        Memory of the functions times the time they were billed for.
    requests
        Invocations. (Asynchronous payloads above 256 KB count more than once; the default settings send none.)
    storage_seconds, storage
        For how long a storage tier of this size was there; None: not counted.
    prices
        Prices; default: list prices.
    """
    asked = prices or Prices()
    return Cost(
        compute=gb_seconds * asked.lambda_gb_second,
        requests=requests * asked.lambda_request,
        storage=storage.cost(storage_seconds, asked) if storage is not None else 0.0,
    )
