"""How fast values move between this executor and the store, learned as they move. Pure."""

from __future__ import annotations

#: Small transfers tell of latency, not of bandwidth.
COUNTED_BYTES_MIN = 256 * 1024
#: What the newest transfer counts among those before.
NEWEST = 0.3


class Speed:
    """Bandwidth in bytes per second: a moving mean of what was measured.

    Parameters
    ----------
    bandwidth
        What is taken for granted until a transfer was measured.

    Examples
    --------
    >>> speed = Speed(75e6)
    >>> speed.moved(10, seconds=1.0), speed.bandwidth
    (None, 75000000.0)
    >>> speed.moved(100_000_000, seconds=1.0), speed.bandwidth
    (None, 100000000.0)
    """

    def __init__(self, bandwidth: float) -> None:
        self.bandwidth = bandwidth
        self._measured = False

    def moved(self, nbytes: int, seconds: float) -> None:
        """Take in one measured transfer."""
        if nbytes < COUNTED_BYTES_MIN or seconds <= 0.0:
            return
        newest = nbytes / seconds
        self.bandwidth = self.bandwidth + NEWEST * (newest - self.bandwidth) if self._measured else newest
        self._measured = True
