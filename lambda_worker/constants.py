"""Constants in a sandbox: what sits in many tasks is stored once, fetched once, and kept for the next invocation.

What is kept are bytes, already checked, never objects: tasks may change what they are given, and what one task has
changed must not be what a task of another job is given under the name of its content.
"""

from __future__ import annotations

import threading
from typing import Any

from lambda_worker.compression import expand
from lambda_worker.core.wire import Frame, Ref, frames_nbytes, open_frames
from lambda_worker.ports import Store
from lambda_worker.values import frames_to_value

#: Constants kept between tasks and invocations of one sandbox, in bytes of their frames.
CONSTANTS_BYTES_MAX = 256 * 2**20


class Constants:
    """The constants that one sandbox has read; safe to use from several threads.

    Parameters
    ----------
    store, secret
        Where they are, and what they are sealed with.
    nbytes_max
        How many bytes to keep; who was used longest ago leaves first.
    """

    def __init__(self, store: Store, secret: bytes, nbytes_max: int = CONSTANTS_BYTES_MAX) -> None:
        self._store = store
        self._secret = secret
        self._nbytes_max = nbytes_max
        self._kept: dict[str, list[Frame]] = {}  # the one used last is last
        self._nbytes = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Constants: {len(self._kept)} kept, {self._nbytes:,} bytes>"

    def value(self, ref: Ref) -> Any:
        """Make a constant: a new object each time.

        Raises
        ------
        ValueLost, Tampered, StoreUnavailable
        """
        return frames_to_value(self._frames(ref))

    def _frames(self, ref: Ref) -> list[Frame]:
        with self._lock:
            frames = self._kept.pop(ref.name, None)
            if frames is not None:
                self._kept[ref.name] = frames
                return frames
        frames = expand(open_frames(self._secret, ref.name, self._store.get([ref])[0]))
        nbytes = frames_nbytes(frames)
        if nbytes <= self._nbytes_max:
            # What came in stripes is memory that could be written to: read-only, it is copied for each value.
            frames = [memoryview(frame).toreadonly() for frame in frames]
            with self._lock:
                if ref.name not in self._kept:
                    self._kept[ref.name] = frames
                    self._nbytes += nbytes
                while self._nbytes > self._nbytes_max:
                    self._nbytes -= frames_nbytes(self._kept.pop(next(iter(self._kept))))
        return frames
