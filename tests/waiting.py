"""Waiting for conditions, never for time: bounded, and saying what did not come true."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

WAIT_SECONDS_MAX = 20.0
PAUSE_SECONDS = 0.02


def until(condition: Callable[[], T], what: str | Callable[[], str] = "", seconds_max: float = WAIT_SECONDS_MAX) -> T:
    """Return what `condition` returns as soon as that is true; `what` says what was waited for, and may find out then.

    Examples
    --------
    >>> until([1].pop)
    1
    """
    deadline = time.monotonic() + seconds_max
    while not (found := condition()):
        if time.monotonic() > deadline:
            said = (what() if callable(what) else what) or condition
            raise AssertionError(f"not within {seconds_max:g} s: {said} (last seen: {found!r})")
        time.sleep(PAUSE_SECONDS)
    return found
