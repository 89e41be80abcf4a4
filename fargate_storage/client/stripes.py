"""Stripes: values that are too large for one round trip are cut, and put together again. Pure.

The first element of the first stripe tells the lengths of the frames.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from lambda_worker.core.wire import Frame, Frames, frames_nbytes, pack, unpack


def flat(frame: Frame) -> bytes | memoryview:
    """View a frame as plain bytes, without a copy where the frame's memory is in one piece.

    Examples
    --------
    >>> import array
    >>> flat(memoryview(array.array("d", [1.0, 2.0]))).nbytes
    16
    """
    if isinstance(frame, bytes):
        return frame
    view = memoryview(frame)
    # `cast` refuses an empty view with several dimensions, and memory that has gaps.
    return view.cast("B") if view.c_contiguous and view.nbytes else view.tobytes()


def cut(frames: Frames, stripe_bytes: int) -> list[list[bytes | memoryview]]:
    """Cut frames into stripes of at most `stripe_bytes`, the first of which begins with the frames' lengths.

    A value that fits into one stripe stays as it is, without lengths.

    Examples
    --------
    >>> first, *others = cut([b"abc", b"defg"], 4)
    >>> [bytes(piece) for piece in first[1:]], [[bytes(piece) for piece in stripe] for stripe in others]
    ([b'abc', b'd'], [[b'efg']])
    """
    views = [flat(frame) for frame in frames]
    lengths = [len(view) for view in views]
    if sum(lengths) <= stripe_bytes:
        return [views]
    stripes: list[list[bytes | memoryview]] = [[pack(lengths)]]
    room = stripe_bytes
    for whole in views:
        view = memoryview(whole)
        while len(view):
            if not room:
                stripes.append([])
                room = stripe_bytes
            stripes[-1].append(view[:room])
            room -= len(stripes[-1][-1])
            view = view[len(stripes[-1][-1]) :]
    return stripes


class Uncut:
    """A value that was cut, being put together again: its frames' memory is filled as stripes arrive, in any order.

    So the value is in memory once, and beside it no more than the stripes that are on their way.

    Parameters
    ----------
    first
        The first stripe; raises `ValueError` when it is not what `cut` made.
    nbytes
        The size of all frames together. It is trusted; what the stripe says is not.

    Examples
    --------
    >>> stripes = cut([b"abc", b"defg"], 4)
    >>> value = Uncut(stripes[0], 7)
    >>> value.place(1, stripes[1])
    >>> [bytes(frame) for frame in value.frames()]
    [b'abc', b'defg']
    """

    def __init__(self, first: Sequence[Frame], nbytes: int) -> None:
        lengths = unpack(first[0]) if first else None
        if not isinstance(lengths, list) or not all(isinstance(length, int) and length >= 0 for length in lengths):
            raise ValueError("the first stripe does not tell the lengths of frames")
        if sum(lengths) != nbytes:
            raise ValueError(f"the frames have {sum(lengths):,} bytes, not {nbytes:,}")
        self._stripe_bytes = frames_nbytes(first[1:])
        self._frames = [bytearray(length) for length in lengths]
        self._missing = nbytes
        self._lock = threading.Lock()
        self.place(0, first[1:])

    def place(self, stripe: int, pieces: Sequence[Frame]) -> None:
        """Copy a stripe to where it belongs; all but the last are of one size, so that is known."""
        offset = stripe * self._stripe_bytes
        placed = 0
        frames = iter(self._frames)
        frame = next(frames, None)
        for piece in pieces:
            view = memoryview(piece)
            while len(view):
                while frame is not None and offset >= len(frame):
                    offset -= len(frame)
                    frame = next(frames, None)
                if frame is None:
                    raise ValueError("a stripe reaches beyond the last frame")
                part = view[: len(frame) - offset]
                # Through a view: a slice of the bytearray itself would be copied twice.
                memoryview(frame)[offset : offset + len(part)] = part
                offset += len(part)
                placed += len(part)
                view = view[len(part) :]
        with self._lock:
            self._missing -= placed

    def frames(self) -> list[Frame]:
        """Return the frames; raises `ValueError` when a part of them is missing."""
        if self._missing:
            raise ValueError(f"{self._missing:,} bytes are missing")
        return list(self._frames)
