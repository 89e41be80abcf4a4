"""How fast to invoke: a token bucket whose rate gives way to 429. Pure.

Lambda admits a burst and then a rate; what rate, nobody tells. So the rate is found as TCP finds
its window (additive increase, multiplicative decrease): every accepted invocation raises it a
little, a refusal halves it, but only once per `Limits.decrease_seconds_min`, since the refusals of one
burst are one piece of news.

How many requests are on their way at once is bounded by whoever sends them, and how many executors live by the store
(`dask_serverless.places`): this module knows of neither.

Time is handed in, in seconds of any clock that does not run backwards. What waits, waits at the
caller; this module only says how many may go, and when it is worth asking again.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of a governor.

    Parameters
    ----------
    rate_per_second_max, rate_per_second_min
        Between these the rate moves; it begins at the upper one.
    burst_max
        How many may go at once after a pause: as many as Lambda makes environments for a function within ten seconds.
    increase
        By how many per second the rate grows with each full second's worth of accepted invocations.
    decrease_factor, decrease_seconds_min
        What a refusal leaves of the rate, and how long one decrease answers for all refusals.
    """

    rate_per_second_max: float = 1_000.0
    rate_per_second_min: float = 1.0
    burst_max: int = 1_000
    increase: float = 50.0
    decrease_factor: float = 0.5
    decrease_seconds_min: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.rate_per_second_min <= self.rate_per_second_max:
            raise ValueError("rates must be 0 < rate_per_second_min <= rate_per_second_max")
        if self.burst_max < 1:
            raise ValueError(f"burst_max must be at least 1, not {self.burst_max}")
        if not 0 < self.decrease_factor < 1:
            raise ValueError(f"decrease_factor must lie between 0 and 1, not be {self.decrease_factor}")


@dataclass(frozen=True, slots=True)
class Admission:
    """How many may go now; and after how many seconds to ask again (None: all may go)."""

    count: int
    again_seconds: float | None


class Governor:
    """Says how many invocations may start.

    Examples
    --------
    >>> governor = Governor(Limits(rate_per_second_max=10, burst_max=2), now=0.0)
    >>> governor.admit(5, now=0.0)
    Admission(count=2, again_seconds=0.1)
    >>> governor.answered(now=0.05, throttled=True)
    >>> governor.rate_per_second
    5.0
    """

    def __init__(self, limits: Limits | None = None, now: float = 0.0):
        self.limits = limits or Limits()
        self.rate_per_second = self.limits.rate_per_second_max
        self._tokens = float(self.limits.burst_max)
        self._filled_at = now
        self._decreased_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Governor {self.rate_per_second:.0f}/s, {self._tokens:.0f} tokens>"

    def admit(self, wanted: int, now: float) -> Admission:
        """Take tokens for as many of `wanted` as may go now."""
        self._fill(now)
        # A hair's breadth, since tokens are sums of floats: ten tenths must make a whole one.
        count = max(0, min(wanted, int(self._tokens + 1e-9)))
        self._tokens -= count
        if count == wanted:
            return Admission(count, None)
        return Admission(count, max(0.0, (1.0 - self._tokens) / self.rate_per_second))

    def answered(self, now: float, throttled: bool) -> None:
        """Hear that an invocation was answered."""
        self._fill(now)  # what has passed has passed at the old rate
        if not throttled:
            grown = self.rate_per_second + self.limits.increase / self.rate_per_second
            self.rate_per_second = min(self.limits.rate_per_second_max, grown)
        elif now - self._decreased_at >= self.limits.decrease_seconds_min:
            self._decreased_at = now
            shrunk = self.rate_per_second * self.limits.decrease_factor
            self.rate_per_second = max(self.limits.rate_per_second_min, shrunk)
            # The burst that was saved up is what was refused: let none of it follow.
            self._tokens = min(self._tokens, 0.0)

    def _fill(self, now: float) -> None:
        elapsed = max(0.0, now - self._filled_at)
        self._filled_at = max(now, self._filled_at)
        self._tokens = min(float(self.limits.burst_max), self._tokens + elapsed * self.rate_per_second)
