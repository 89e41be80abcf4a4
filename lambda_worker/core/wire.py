"""How bytes look between the proxy, the executors and the storage tier.

Rules kept here:

* Control messages are msgpack, never pickle.
* Nothing is decoded before its tag is checked: every sealed thing carries an HMAC-SHA256 over a
  *name* (what the bytes claim to be: job, task, writer and attempt) and the bytes themselves, so
  valid bytes cannot be replayed under another name.
* A value is a list of *frames* (a header, one pickle, its out-of-band buffers), never joined, so
  large buffers are not copied.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import msgpack

from lambda_worker.core.errors import Tampered

PROTOCOL_VERSION = 1
TAG_BYTES = 32
#: What a message is packed into at first. msgpack's own 256 KiB are mapped anew for each message, and unmapped.
PACK_BYTES = 4096

Frame: TypeAlias = bytes | bytearray | memoryview
Frames: TypeAlias = Sequence[Frame]


class Ref(NamedTuple):
    """Where a stored value is: its name (unique to one write), first shard (-1: the overflow), size and stripes."""

    name: str
    shard: int
    nbytes: int
    stripes: int = 1

    @property
    def overflowed(self) -> bool:
        """Whether the value is in the overflow, and not on a shard.

        Examples
        --------
        >>> Ref("job/1/a/1", -1, 100).overflowed
        True
        """
        return self.shard < 0


#: Where a value is: a reference into the storage tier, or the value itself (see `pack_inline`).
Location: TypeAlias = bytes | Ref


def location_to_wire(location: Location) -> bytes | list[Any]:
    """Make a location that `pack` can carry."""
    return list(location) if isinstance(location, Ref) else location


def location_from_wire(item: bytes | Sequence[Any]) -> Location:
    """Undo `location_to_wire`."""
    return item if isinstance(item, bytes) else Ref(*item)


def object_name(job: str, task: int, executor: str, attempt: int) -> str:
    """Name the value that one attempt of one executor writes for one task."""
    return f"{job}/{task}/{executor}/{attempt}"


def events_name(job: str, executor: str, attempt: int) -> str:
    """Name the seal of the events that one attempt publishes."""
    return f"{job}/events/{executor}/{attempt}"


def pack(message: Any) -> bytes:
    """Encode a control message."""
    return cast(bytes, msgpack.packb(message, use_bin_type=True, buf_size=PACK_BYTES))


def unpack(blob: Frame) -> Any:
    """Decode a control message (tuples come back as lists, dict keys may be integers)."""
    return msgpack.unpackb(blob, raw=False, strict_map_key=False, use_list=True)


def frames_nbytes(frames: Iterable[Frame]) -> int:
    """Count the bytes of all frames."""
    return sum(memoryview(frame).nbytes for frame in frames)


def _tag(secret: bytes, name: str, frames: Iterable[Frame]) -> bytes:
    mac = hmac.new(secret, digestmod=hashlib.sha256)
    label = name.encode()
    mac.update(len(label).to_bytes(4, "big") + label)
    for frame in frames:
        view = memoryview(frame)
        mac.update(view.nbytes.to_bytes(8, "big"))
        mac.update(view)
    return mac.digest()


def seal_frames(secret: bytes, name: str, frames: Frames) -> list[Frame]:
    """Put a tag in front of frames, binding them to `name`.

    Examples
    --------
    >>> sealed = seal_frames(b"secret", "job/0/a/1", [b"head", b"body"])
    >>> open_frames(b"secret", "job/0/a/1", sealed)
    [b'head', b'body']
    >>> open_frames(b"secret", "job/1/a/1", sealed)
    Traceback (most recent call last):
        ...
    lambda_worker.core.errors.Tampered: 'job/1/a/1' does not carry this cluster's tag: not decoded
    """
    return [_tag(secret, name, frames), *frames]


def open_frames(secret: bytes, name: str, sealed: Frames) -> list[Frame]:
    """Check the tag of sealed frames and return the frames behind it.

    Raises
    ------
    Tampered
        When the tag is not that of this name, these bytes and this secret.
    """
    if not sealed or not hmac.compare_digest(bytes(sealed[0]), _tag(secret, name, sealed[1:])):
        raise Tampered(f"{name!r} does not carry this cluster's tag: not decoded")
    return list(sealed[1:])


def seal(secret: bytes, name: str, body: bytes) -> bytes:
    """Put a tag in front of one small message.

    Examples
    --------
    >>> bytes(unseal(b"secret", "events", seal(b"secret", "events", b"hello")))
    b'hello'
    """
    return _tag(secret, name, (body,)) + body


def unseal(secret: bytes, name: str, blob: Frame) -> memoryview:
    """Check the tag of a sealed message and return its body; raises `Tampered`."""
    view = memoryview(blob)
    open_frames(secret, name, (view[:TAG_BYTES], view[TAG_BYTES:]))
    return view[TAG_BYTES:]


def pack_inline(name: str, sealed: Frames) -> bytes:
    """Make one small byte string of a sealed value and its name, to travel inside a message."""
    return pack([name, *[bytes(frame) for frame in sealed]])


def unpack_inline(blob: bytes) -> tuple[str, list[Frame]]:
    """Undo `pack_inline`; the frames are still sealed."""
    name, *sealed = unpack(blob)
    return name, sealed
