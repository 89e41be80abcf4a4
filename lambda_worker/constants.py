"""Constants in a sandbox: what sits in many tasks is stored once, fetched once, and kept for the next invocation.

What is kept are bytes, already checked, never objects: tasks may change what they are given, and what one task has
changed must not be what a task of another job is given under the name of its content.
"""

from __future__ import annotations

from typing import Any

from lambda_worker.cache import Cache
from lambda_worker.compression import expand
from lambda_worker.core.wire import Frame, Ref, frames_nbytes, open_frames
from lambda_worker.ports import Store
from lambda_worker.values import frames_to_value


class Constants:
    """The constants that one sandbox has read; safe to use from several threads.

    Parameters
    ----------
    store, secret
        Where they are, and what they are sealed with.
    cache
        Keeps them, beside values.
    """

    def __init__(self, store: Store, secret: bytes, cache: Cache) -> None:
        self._store = store
        self._secret = secret
        self._cache = cache

    @property
    def nbytes_max(self) -> int:
        """How many bytes of constants a job may have open, at most."""
        return self._cache.bytes_max // 4

    def value(self, ref: Ref) -> Any:
        """Make a constant: a new object each time.

        Raises
        ------
        ValueLost, Tampered, StoreUnavailable
        """
        frames: list[Frame] | None = self._cache.get(ref.name)
        if frames is None:
            frames = expand(open_frames(self._secret, ref.name, self._store.get([ref])[0]))
            nbytes = frames_nbytes(frames)
            if nbytes <= self._cache.bytes_max:
                # What came in stripes is memory that could be written to: read-only, it is copied for each value.
                frames = [memoryview(frame).toreadonly() for frame in frames]
                self._cache.put(ref.name, frames, nbytes)
        return frames_to_value(frames)
