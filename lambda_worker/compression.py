"""Frames of stored values, compressed where that is measured to pay.

A sample of a frame is compressed first: how much it loses, and how long that takes, decide about the frame, with how
fast values were seen to move (`Policy.seconds_saved`). What looks random is never compressed, and hardly anything is
where the storage tier is as near as on one machine.

It is compressed in two ways: as it is, and with the first bytes of all its words together, then all second ones, and so
on. Of numbers that are near each other, signs and exponents are, while their last bits look random: only apart from
those do they compress (the *shuffle* of Alted, "Why modern CPUs are starving and what can be done about it", 2010).

A value's first frame tells which buffers were writeable; if anything is compressed, it tells how and of which lengths.
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
#: Larger ones as well: beside the frame, what it becomes is in memory, twice where its words are taken apart.
FRAME_BYTES_MAX = 256 * 2**20
#: A sample is so many pieces of this size, evenly spread.
SAMPLE_PIECES = 4
SAMPLE_PIECE_BYTES = 4 * 1024

#: Words are taken to be of so many bytes. Those of four are two to such a word, and gain as much.
WORD_BYTES = 8
#: Words are taken apart within pieces of this size, which fit into a core's cache.
SHUFFLED_BYTES = 2**18

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
        if not any(lean):
            return list(frames)
        pairs = list(zip(lean, rest, strict=True))
        how = [(memoryview(frame).nbytes, small[1]) if small else (0, 0) for small, frame in pairs]
        return [pack([unpack(head), how]), *[small[0] if small else frame for small, frame in pairs]]

    def shrink_blob(self, blob: bytes) -> bytes:
        """Return a pickle, compressed if it pays."""
        if not (lean := self._shrink(blob)):
            return blob
        small, word = lean
        return _COMPRESSED + bytes([word]) + len(blob).to_bytes(8, "big") + small

    def _shrink(self, frame: Frame) -> tuple[bytes, int] | None:
        """Return what a frame becomes and the length of its words; None: it stays as it is."""
        word = self._best_words(frame)
        if not word:
            return None
        small = cast(bytes, _compress(frame if word == 1 else take_apart(frame), store_size=False))
        return (small, word) if len(small) < memoryview(frame).nbytes else None  # else the sample was not like the rest

    def _best_words(self, frame: Frame) -> int:
        """Return how many bytes long the words are that a frame is taken apart into; 1: none; 0: do not compress it."""
        view = memoryview(frame)
        if not (self.policy.compress and FRAME_BYTES_MIN <= view.nbytes <= FRAME_BYTES_MAX):
            return 0
        view = view.cast("B")
        step = (view.nbytes - SAMPLE_PIECE_BYTES) // (SAMPLE_PIECES - 1) // WORD_BYTES * WORD_BYTES
        sample = b"".join([view[n * step : n * step + SAMPLE_PIECE_BYTES] for n in range(SAMPLE_PIECES)])
        bandwidth = None if self.speed is None else self.speed.bandwidth

        def gain(data: Frame, seconds: float) -> float:
            begun = self.clock()
            nbytes = len(_compress(data, store_size=False))
            seconds += self.clock() - begun
            return self.policy.seconds_saved(1 - nbytes / len(sample), seconds / len(sample), bandwidth)

        gains = {0: 0.0, 1: gain(sample, 0.0)}
        if view.nbytes <= FRAME_BYTES_MAX // 2:
            begun = self.clock()
            apart = take_apart(sample)
            gains[WORD_BYTES] = gain(apart, 2 * (self.clock() - begun))  # to be put together again later
        return max(gains, key=gains.__getitem__)


def _expand(lean: Frame, nbytes: int, word: int) -> bytearray:
    found = cast(bytearray, _decompress(lean, uncompressed_size=nbytes, return_bytearray=True))
    if word != 1:
        put_together(found)
    return found


def take_apart(frame: Frame) -> bytearray:
    """Return the bytes of a frame with the first ones of all words together, then the second ones, and so on.

    Examples
    --------
    >>> bytes(take_apart(b"12345678abcdefgh!"))
    b'1a!2b3c4d5e6f7g8h'
    """
    found = bytearray(memoryview(frame).cast("B"))
    for begin in range(0, len(found), SHUFFLED_BYTES):
        piece = bytes(found[begin : begin + SHUFFLED_BYTES])
        found[begin : begin + len(piece)] = b"".join([piece[n::WORD_BYTES] for n in range(WORD_BYTES)])
    return found


def put_together(apart: bytearray) -> None:
    """Undo `take_apart`, where it is.

    Examples
    --------
    >>> apart = take_apart(b"12345678abcdefgh!")
    >>> put_together(apart)
    >>> apart
    bytearray(b'12345678abcdefgh!')
    """
    for begin in range(0, len(apart), SHUFFLED_BYTES):
        piece = bytes(apart[begin : begin + SHUFFLED_BYTES])
        end, done = begin + len(piece), 0
        for n in range(WORD_BYTES):
            count = len(range(n, len(piece), WORD_BYTES))
            apart[begin + n : end : WORD_BYTES] = piece[done : done + count]
            done += count


def expand(frames: Frames) -> list[Frame]:
    """Undo `Compressor.shrink`; frames that it left as they were are left so."""
    head = unpack(frames[0])
    if not head or not isinstance(head[0], list):
        return list(frames)
    writeable, how = head
    return [
        pack(writeable),
        *[
            _expand(frame, nbytes, word) if word else frame
            for frame, (nbytes, word) in zip(frames[1:], how, strict=True)
        ],
    ]


def expand_blob(blob: bytes) -> bytes:
    """Undo `Compressor.shrink_blob`."""
    if blob[:1] != _COMPRESSED:
        return blob
    return bytes(_expand(memoryview(blob)[10:], int.from_bytes(blob[2:10], "big"), blob[1]))
