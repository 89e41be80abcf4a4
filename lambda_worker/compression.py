"""Frames of stored values, compressed where that is measured to pay.

A sample of a frame is compressed first: how much it loses, and how long that takes, decide about the frame, with how
fast values were seen to move (`Policy.compresses`). What looks random is never compressed, and hardly anything is where
the storage tier is as near as on one machine.

A value's first frame tells which buffers were writeable; if anything is compressed, it tells the lengths as well.
Values are compressed before they are sealed: nothing is expanded before its tag was checked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from lz4.block import compress as _compress
from lz4.block import decompress as _decompress

from lambda_worker.core.policy import Policy
from lambda_worker.core.speed import Speed
from lambda_worker.core.wire import Frame, Frames, pack, unpack
from lambda_worker.ports import Clock

#: Smaller frames stay as they are: what could be saved is less than a sample costs.
FRAME_BYTES_MIN = 16 * 1024
#: Larger ones as well: beside the frame, what it becomes is in memory.
FRAME_BYTES_MAX = 256 * 2**20
#: A sample is so many pieces of this size, evenly spread.
SAMPLE_PIECES = 4
SAMPLE_PIECE_BYTES = 4 * 1024

#: What a compressed blob begins with. Pickles, which blobs are otherwise, begin with another byte.
_COMPRESSED = b"\0"


@dataclass(frozen=True, slots=True)
class Compressor:
    """Compresses frames where it pays.

    Parameters
    ----------
    policy
        Weighs what is saved against what it takes.
    clock
        Measures what it takes.
    speed
        How fast values have moved to and from the storage tier; None: nobody has measured that.

    Examples
    --------
    >>> import time
    >>> frames = [pack([]), bytes(100_000)]
    >>> lean = Compressor(Policy(bytes_per_second=1e6), time.perf_counter).shrink(frames)
    >>> len(lean[1]) < 1000, expand(lean) == frames
    (True, True)
    """

    policy: Policy
    clock: Clock = field(repr=False)
    speed: Speed | None = None

    def shrink(self, frames: Frames) -> list[Frame]:
        """Return the frames of a value, compressed where it pays."""
        head, *rest = frames
        lean = [self._shrink(frame) for frame in rest]
        if all(each is None for each in lean):
            return list(frames)
        lengths = [0 if small is None else memoryview(frame).nbytes for small, frame in zip(lean, rest, strict=True)]
        kept: list[Frame] = [frame if small is None else small for small, frame in zip(lean, rest, strict=True)]
        return [pack([unpack(head), lengths]), *kept]

    def shrink_blob(self, blob: bytes) -> bytes:
        """Return a pickle, compressed if it pays."""
        lean = self._shrink(blob)
        return blob if lean is None else _COMPRESSED + len(blob).to_bytes(8, "big") + lean

    def _shrink(self, frame: Frame) -> bytes | None:
        view = memoryview(frame)
        if not FRAME_BYTES_MIN <= view.nbytes <= FRAME_BYTES_MAX:
            return None
        view = view.cast("B")
        step = (view.nbytes - SAMPLE_PIECE_BYTES) // (SAMPLE_PIECES - 1)
        sample = b"".join([view[n * step : n * step + SAMPLE_PIECE_BYTES] for n in range(SAMPLE_PIECES)])
        begun = self.clock()
        nbytes = len(_compress(sample, store_size=False))
        seconds = self.clock() - begun
        bandwidth = None if self.speed is None else self.speed.bandwidth
        if not self.policy.compresses(1 - nbytes / len(sample), seconds / len(sample), bandwidth):
            return None
        lean = cast(bytes, _compress(view, store_size=False))
        return lean if len(lean) < view.nbytes else None


def expand(frames: Frames) -> list[Frame]:
    """Undo `Compressor.shrink`; frames that it left as they were are left so."""
    head = unpack(frames[0])
    if not head or not isinstance(head[0], list):
        return list(frames)
    writeable, lengths = head
    return [
        pack(writeable),
        *[
            _decompress(frame, uncompressed_size=length, return_bytearray=True) if length else frame
            for frame, length in zip(frames[1:], lengths, strict=True)
        ],
    ]


def expand_blob(blob: bytes) -> bytes:
    """Undo `Compressor.shrink_blob`."""
    if blob[:1] != _COMPRESSED:
        return blob
    return cast(bytes, _decompress(memoryview(blob)[9:], uncompressed_size=int.from_bytes(blob[1:9], "big")))
