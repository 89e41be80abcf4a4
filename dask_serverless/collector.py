"""Python's garbage collector, kept out of the way while large graphs are made."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Pauses:
    """How many threads want the collector paused, and what its state was before the first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.depth = 0
        self.was_enabled = False


_pauses = _Pauses()


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector while many objects are made that all stay.

    Making a million tasks sets it off again and again, and each time it walks all that was made so
    far. May be nested, and entered by several threads; when the last one leaves, the collector is
    as it was before the first. What was made in between counts as old at once: otherwise
    the first collection afterwards would walk through all of it, in the scheduler's event loop.

    Examples
    --------
    >>> import gc
    >>> with collector_paused():
    ...     gc.isenabled()
    False
    >>> gc.isenabled()
    True
    """
    with _pauses.lock:
        if _pauses.depth == 0:
            _pauses.was_enabled = gc.isenabled()
            gc.disable()
        _pauses.depth += 1
    try:
        yield
    finally:
        with _pauses.lock:
            _pauses.depth -= 1
            if _pauses.depth == 0 and _pauses.was_enabled:
                if gc.get_freeze_count() == 0:  # else we would thaw what somebody else froze
                    gc.freeze()
                    gc.unfreeze()
                gc.enable()
