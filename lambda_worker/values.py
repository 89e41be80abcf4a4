"""Values as frames: a header, one pickle (protocol 5), then its large buffers, uncopied.

The pickle and buffers are laid out as ``distributed``'s "pickle" family lays them out, so the proxy
can hand a stored value to a Dask client without unpickling it.
"""

from __future__ import annotations

import pickle
from typing import Any

import cloudpickle

from lambda_worker.compression import expand
from lambda_worker.core.wire import Frame, Frames, pack, unpack


def pickled(value: Any, buffers: list[pickle.PickleBuffer] | None = None) -> bytes:
    """Pickle by the rule of ``distributed.protocol.pickle``: plain pickle first, cloudpickle for
    what plain pickle cannot do or what lives in ``__main__``.

    Raises whatever cloudpickle raises when the value cannot be pickled at all.
    """
    callback = None if buffers is None else buffers.append
    try:
        result = pickle.dumps(value, protocol=5, buffer_callback=callback)
        if not any(name in result for name in names_by_value()):
            return result
    except Exception:  # noqa: S110 - whatever plain pickle cannot do, cloudpickle gets a try at
        pass
    if buffers is not None:
        buffers.clear()
    return bytes(cloudpickle.dumps(value, protocol=5, buffer_callback=callback))


def names_by_value() -> list[bytes]:
    """Return the modules of which nothing is pickled by name, as they would appear in a pickle."""
    return [b"__main__", *(name.encode() for name in cloudpickle.list_registry_pickle_by_value())]


def value_to_frames(value: Any) -> list[Frame]:
    """Turn a value into frames; its large buffers are referred to, not copied.

    Examples
    --------
    >>> frames_to_value(value_to_frames({"x": 1}))
    {'x': 1}
    """
    buffers: list[pickle.PickleBuffer] = []
    body = pickled(value, buffers)
    views: list[memoryview] = []
    for buffer in buffers:
        try:
            views.append(buffer.raw())
        except BufferError:  # not contiguous: no raw bytes to refer to, so pickle it in band
            return [pack([]), pickled(value)]
    return [pack([not view.readonly for view in views]), body, *views]


def writeable_flags(frames: Frames) -> tuple[bool, ...]:
    """Tell for each buffer of a value whether it was writeable when it was pickled."""
    return tuple(unpack(frames[0]))


def frames_to_value(frames: Frames) -> Any:
    """Undo `value_to_frames`. Arrays that were writeable are writeable again (one copy each,
    where the frames themselves are read-only)."""
    frames = expand(frames)
    buffers: list[Frame] = []
    for frame, writeable in zip(frames[2:], writeable_flags(frames), strict=True):
        readonly = memoryview(frame).readonly
        if writeable and readonly:
            buffers.append(bytearray(frame))
        elif readonly or writeable:
            buffers.append(frame)
        else:
            buffers.append(memoryview(frame).toreadonly())
    return pickle.loads(frames[1], buffers=buffers)
