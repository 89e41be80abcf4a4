"""Preloaded into the process that sandboxes are forked from: each of them has another idea of the time of day.

Python code that asks for it (`time.time`) is an hour early, right, or an hour late; durations are what they are.
"""

from __future__ import annotations

import os
import time

OFFSETS_SECONDS = (-3600.0, 0.0, 3600.0)
_true_time, _true_time_ns = time.time, time.time_ns


def skew() -> None:
    """Set this process's clock, by its number."""
    offset = OFFSETS_SECONDS[os.getpid() % len(OFFSETS_SECONDS)]
    time.time = lambda: _true_time() + offset
    time.time_ns = lambda: _true_time_ns() + int(offset * 1e9)


os.register_at_fork(after_in_child=skew)
