"""Stored values and segments: the bulk data, on shards.

A value is a Redis list of its frames, so that large buffers are sent as they are and come back one by one. Above
``stripe_bytes`` it is cut into stripes, lists of their own on one shard after the other; the first element of the
first stripe then tells the lengths of the frames. Names are unique to one write, so writing (delete, then push, in
one transaction) may be repeated even while somebody reads.

What finds no room on a shard, or is too large for one, goes to the overflow, if there is one; its `Ref` says so.
Whatever is missing on a shard is looked for there, too: values that are to outlive it have a copy under their name.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

from redis.exceptions import ResponseError

from fargate_storage.client.config import StoreConfig
from fargate_storage.client.endpoint import Command, Counters, Endpoint
from fargate_storage.client.keys import Keys, job_of, stripe_name
from fargate_storage.client.overflow import OVERFLOW, Overflow
from fargate_storage.client.shard_map import ShardMap, while_shards_go
from lambda_worker.core.errors import StoreFull, ValueLost, ValueTooLarge
from lambda_worker.core.wire import Frame, Frames, Ref, frames_nbytes, pack, unpack

#: Bounds of one round trip: what a server must hold at once, and what is lost when it must be repeated.
BATCH_BYTES_MAX = 64 * 2**20
BATCH_ITEMS_MAX = 512
#: After a shard has said that it is full, it is not sent any values for so long: each would cross the network in vain.
FULL_SECONDS = 1.0
_OVERFLOW_HINT = "or have values overflow to a disk (serverless.storage.overflow)"

T = TypeVar("T")
R = TypeVar("R")


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


def batches(items: Iterable[T], nbytes: Callable[[T], int]) -> Iterator[list[T]]:
    """Group items, in order, so that each group keeps the bounds of one round trip (or is a single item)."""
    batch: list[T] = []
    total = 0
    for item in items:
        size = nbytes(item)
        if batch and (total + size > BATCH_BYTES_MAX or len(batch) == BATCH_ITEMS_MAX):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch


class Objects:
    """Values and segments on all shards of a cluster; safe to use from several threads."""

    def __init__(
        self,
        shards: Sequence[Endpoint],
        keys: Keys,
        config: StoreConfig,
        counters: Counters,
        shard_map: ShardMap | None = None,
        overflow: Overflow | None = None,
    ) -> None:
        self.shards = tuple(shards)
        self.shard_map = shard_map or ShardMap(len(self.shards))
        self._keys = keys
        self._config = config
        self._counters = counters
        self._overflow = overflow
        self._full_until = float("-inf")
        # Threads only help where there are several servers to wait for. They start when they are needed.
        self._threads = ThreadPoolExecutor(min(len(shards), 8), "storage") if len(shards) > 1 else None

    @while_shards_go
    def put(self, objects: Sequence[tuple[str, Frames]]) -> list[Ref]:
        """Write values; see `lambda_worker.ports.Store.put`."""
        bytes_max = self._config.object_bytes_max
        sizes = {name: frames_nbytes(frames) for name, frames in objects}
        if self._overflow is None:
            for nbytes in sizes.values():
                if nbytes > bytes_max:
                    raise ValueTooLarge(
                        f"a value of {nbytes:,} bytes is larger than {bytes_max:,} "
                        "(serverless.storage.object-bytes-max): make the chunks smaller, or raise that limit"
                    )
        # Asked in vain a moment ago, maybe for something larger: then a shard is only asked when nobody else has room.
        asked = time.monotonic() >= self._full_until
        fitting = [each for each in objects if asked and sizes[each[0]] <= bytes_max]
        try:
            refs = {ref.name: ref for ref in self._put(fitting)}
        except StoreFull as error:
            if self._overflow is None:
                raise StoreFull(f"{error}, {_OVERFLOW_HINT}") from None
            self._full_until = time.monotonic() + FULL_SECONDS
            # Some of them may have been written, or a part of one.
            self._unlink([self._ref(name, sizes[name]) for name, _ in fitting])
            refs = {}
        for name, frames in objects:
            if name not in refs:
                refs[name] = self._put_beside(name, frames, sizes[name])
        return [refs[name] for name, _ in objects]

    def _put_beside(self, name: str, frames: Frames, nbytes: int) -> Ref:
        """Write a value to the overflow; if that is full too, to a shard: it may fit where more did not."""
        try:
            return self._keep(name, frames, nbytes)
        except StoreFull as error:
            if nbytes > self._config.object_bytes_max:
                raise
            try:
                (ref,) = self._put([(name, frames)])
            except StoreFull:
                self._unlink([self._ref(name, nbytes)])
                raise error from None
            return ref

    def keep(self, objects: Sequence[tuple[str, Frames]]) -> list[Ref]:
        """Write values to the overflow; without one, to the shards."""
        if self._overflow is None:
            return self.put(objects)
        return [self._keep(name, frames, frames_nbytes(frames)) for name, frames in objects]

    @while_shards_go
    def put_again(self, objects: Sequence[tuple[Ref, Frames]]) -> None:
        """Write values where their refs say; see `lambda_worker.ports.JobStore.put_again`."""
        for ref, frames in objects:
            if frames_nbytes(frames) != ref.nbytes:
                raise ValueError(f"{ref.name!r} had {ref.nbytes:,} bytes, and cannot be written with another size")
        on_shards = [each for each in objects if not each[0].overflowed]
        beside = [each for each in objects if each[0].overflowed]
        try:
            self._write(on_shards)
        except StoreFull as error:
            if self._overflow is None:
                raise StoreFull(f"{error}, {_OVERFLOW_HINT}") from None
            self._unlink([ref for ref, _ in on_shards])
            beside = list(objects)  # under their names, where readers look for what is not on its shard
        for ref, frames in beside:
            self._replace(ref, frames)

    def _replace(self, ref: Ref, frames: Frames) -> None:
        """Have a value in the overflow, instead of anything else under its name."""
        if self._overflow is None:
            raise ValueLost(f"value {ref.name!r} was in an overflow, and there is none (serverless.storage.overflow)")
        if self._overflow.read(ref.name) != [flat(frame) for frame in frames]:
            # The first complete write stays, so what is spoiled goes first. What is good stays: it may be being read.
            self._overflow.delete([ref.name])
            self._keep(ref.name, frames, ref.nbytes)

    def _keep(self, name: str, frames: Frames, nbytes: int) -> Ref:
        assert self._overflow is not None
        self._overflow.write(name, frames)
        self._counters.add(objects_written=1, objects_overflowed=1, bytes_written=nbytes)
        return Ref(name, OVERFLOW, nbytes)

    def _ref(self, name: str, nbytes: int) -> Ref:
        # By name, not by chance: writing twice must write to the same place.
        stripes = max(1, -(-nbytes // self._config.stripe_bytes))
        return Ref(name, self.shard_map.by_name(name), nbytes, stripes)

    def _put(self, objects: Sequence[tuple[str, Frames]]) -> list[Ref]:
        refs = [self._ref(name, frames_nbytes(frames)) for name, frames in objects]
        self._write([(ref, frames) for ref, (_, frames) in zip(refs, objects, strict=True)])
        return refs

    def _write(self, objects: Sequence[tuple[Ref, Frames]]) -> None:
        stripes: dict[int, list[tuple[str, int, list[bytes | memoryview]]]] = {}
        for ref, frames in objects:
            if not frames:
                raise ValueError(f"{ref.name!r} has no frames: a sealed value has at least its tag")
            pieces = cut(frames, self._config.stripe_bytes)
            for stripe, shard in self._places(ref):
                stripes.setdefault(shard, []).append((ref.name, stripe, pieces[stripe]))
        self.on_each(stripes, self._put_stripes)
        self._counters.add(objects_written=len(objects), bytes_written=sum(ref.nbytes for ref, _ in objects))

    @while_shards_go
    def get(self, refs: Sequence[Ref]) -> list[list[Frame]]:
        """Read values; see `lambda_worker.ports.Store.get`."""
        wanted: dict[int, dict[str, int]] = {}
        for ref in refs:  # of a value in stripes, only the first one, which tells how large the frames are
            if not ref.overflowed:
                wanted.setdefault(self._places(ref)[0][1], {})[ref.name] = ref.nbytes // ref.stripes
        firsts: dict[str, list[Frame]] = {}
        by_shard = {shard: [((name, 0), size) for name, size in items.items()] for shard, items in wanted.items()}
        for part in self.on_each(by_shard, self._get_stripes):
            firsts.update((name, pieces) for (name, _), pieces in part.items())
        distinct = {ref.name: self._value(ref, firsts.get(ref.name, [])) for ref in dict.fromkeys(refs)}
        values = [distinct[ref.name] for ref in refs]
        self._counters.add(bytes_read=sum(ref.nbytes for ref in refs))
        return values

    @while_shards_go
    def free(self, refs: Sequence[Ref]) -> None:
        """Remove values, and their copies."""
        try:
            self._unlink(refs)
        finally:  # one place that cannot be reached is no reason to leave something in the other
            if self._overflow is not None:
                self._overflow.delete([ref.name for ref in refs])

    def _unlink(self, refs: Sequence[Ref]) -> None:
        stripes: dict[int, list[tuple[str, int]]] = {}
        for ref in refs:
            for stripe, shard in self._places(ref):
                stripes.setdefault(shard, []).append((ref.name, stripe))

        def remove(shard: int, items: list[tuple[str, int]]) -> None:
            for batch in batches(items, lambda item: 0):
                commands: list[Command] = []
                for name, stripe in batch:
                    commands.append(("UNLINK", self._keys.of_object(name, stripe)))
                    commands.append(("SREM", self._keys.of_job(job_of(name), "objects"), stripe_name(name, stripe)))
                self.shards[shard].ask(*commands)

        self.on_each(stripes, remove)

    @while_shards_go
    def missing(self, refs: Sequence[Ref]) -> list[Ref]:
        """Return those values of which a stripe is not there, and that are not in the overflow."""
        stripes: dict[int, list[tuple[Ref, int]]] = {}
        for ref in refs:
            for stripe, shard in self._places(ref):
                stripes.setdefault(shard, []).append((ref, stripe))

        def look(shard: int, items: list[tuple[Ref, int]]) -> set[Ref]:
            absent: set[Ref] = set()
            for batch in batches(items, lambda item: 0):
                keys = [self._keys.of_object(ref.name, stripe) for ref, stripe in batch]
                there = self.shards[shard].ask(*[("EXISTS", key) for key in keys])
                absent.update(ref for (ref, _), found in zip(batch, there, strict=True) if not found)
            return absent

        absent = set().union(*self.on_each(stripes, look)).union(ref for ref in refs if ref.overflowed)
        if self._overflow is not None:
            absent = {ref for ref in absent if not self._overflow.has(ref.name)}
        return [ref for ref in refs if ref in absent]

    @while_shards_go
    def touch(self, refs: Sequence[Ref]) -> None:
        """Renew values' time to live."""
        stripes: dict[int, list[str]] = {}
        for ref in refs:
            for stripe, shard in self._places(ref):
                stripes.setdefault(shard, []).append(self._keys.of_object(ref.name, stripe))

        def renew(shard: int, keys: list[str]) -> None:
            for batch in batches(keys, lambda key: 0):
                self.shards[shard].ask(*[("EXPIRE", key, self._config.ttl_seconds) for key in batch])

        self.on_each(stripes, renew)
        if self._overflow is not None:
            self._overflow.touch([ref.name for ref in refs])

    @while_shards_go
    def put_segments(self, job: str, segments: Mapping[int, bytes]) -> None:
        """Write a job's sealed segments."""
        by_shard: dict[int, list[tuple[int, bytes]]] = {}
        for number, segment in segments.items():
            by_shard.setdefault(self._segment_place(job, number), []).append((number, segment))
        key = self._keys.of_job(job, "segments")

        def write(shard: int, items: list[tuple[int, bytes]]) -> None:
            for batch in batches(items, lambda item: len(item[1])):
                fields = [part for item in batch for part in item]
                try:
                    self.shards[shard].transaction([("HSET", key, *fields), ("EXPIRE", key, self._config.ttl_seconds)])
                except StoreFull:
                    if self._overflow is None:
                        raise
                    for number, segment in batch:
                        self._overflow.write(_segment_name(job, number), [segment])

        self.on_each(by_shard, write)
        self._counters.add(bytes_written=sum(map(len, segments.values())))

    @while_shards_go
    def get_segments(self, job: str, numbers: Sequence[int]) -> list[bytes]:
        """Read sealed segments; raises `ValueLost` naming the first that is missing."""
        by_shard: dict[int, list[int]] = {}
        for number in dict.fromkeys(numbers):
            by_shard.setdefault(self._segment_place(job, number), []).append(number)
        key = self._keys.of_job(job, "segments")

        def read(shard: int, wanted: list[int]) -> list[tuple[int, bytes | None]]:
            found: list[tuple[int, bytes | None]] = []
            for batch in batches(wanted, lambda number: 0):
                replies = self.shards[shard].ask(("HMGET", key, *batch), ("EXPIRE", key, self._config.ttl_seconds))
                found += zip(batch, replies[0], strict=True)
            return found

        segments = dict(pair for part in self.on_each(by_shard, read) for pair in part)
        values = []
        for number in numbers:
            segment = segments[number]
            if segment is None and self._overflow is not None:
                segment = b"".join(self._overflow.read(_segment_name(job, number)) or ()) or None
            if segment is None:
                raise ValueLost(f"segment {number} of job {job!r} is not in the storage tier")
            values.append(segment)
        self._counters.add(bytes_read=sum(map(len, values)))
        return values

    @while_shards_go
    def forget_job(self, job: str, keep: Sequence[Ref]) -> None:
        """Remove what a job left on the shards, except some values. May be repeated, also after half of it."""
        kept = {stripe_name(ref.name, stripe) for ref in keep for stripe in range(ref.stripes)}
        listed = self._keys.of_job(job, "objects")

        def forget(shard: int, _: None) -> None:
            server = self.shards[shard]
            before: list[Command] = [("UNLINK", self._keys.of_job(job, "segments"))]
            cursor = b"0"
            found = False
            while True:
                replies = server.ask(*before, ("SSCAN", listed, cursor, "COUNT", BATCH_ITEMS_MAX))
                cursor, names = replies[-1]
                found = found or bool(names)
                # A name whose bits have changed is nobody's, and must not keep the others from being removed.
                doomed = [name for each in names if (name := each.decode(errors="replace")) not in kept]
                # A stripe's name may stand where a value's name does: the key is made alike.
                before = [("UNLINK", *[self._keys.of_object(name) for name in doomed])] if doomed else []
                if cursor == b"0":
                    break
            if found:  # most jobs store no value
                server.ask(*before, ("UNLINK", listed))

        self.on_each(dict.fromkeys(self.shard_map.left()), forget)
        if self._overflow is not None:
            self._overflow.forget(job, [ref.name for ref in keep])

    def close(self) -> None:
        """Let threads end. The shards are closed by whoever made them."""
        if self._threads:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _places(self, ref: Ref) -> list[tuple[int, int]]:
        if ref.overflowed:
            return []
        where = self.shard_map.server
        return [(stripe, where(ref.shard + stripe, stripe_name(ref.name, stripe))) for stripe in range(ref.stripes)]

    def _segment_place(self, job: str, number: int) -> int:
        return self.shard_map.server(number, _segment_name(job, number))

    def on_each(self, work: Mapping[int, T], do: Callable[[int, T], R]) -> list[R]:
        """Do something with each shard's part of some work, at the same time."""
        if len(work) <= 1 or self._threads is None:
            return [do(shard, part) for shard, part in work.items()]
        futures = [self._threads.submit(do, shard, part) for shard, part in work.items()]
        # All of them, also when one has failed: what a caller then removes must not be written after that.
        wait(futures)  # bound: each step at a shard has one
        return [future.result() for future in futures]

    def _put_stripes(self, shard: int, stripes: list[tuple[str, int, list[bytes | memoryview]]]) -> None:
        ttl = self._config.ttl_seconds
        for batch in batches(stripes, lambda item: sum(map(len, item[2]))):
            commands: list[Command] = []
            listed: dict[str, list[str]] = {}
            for name, stripe, pieces in batch:
                key = self._keys.of_object(name, stripe)
                commands += [("DEL", key), ("RPUSH", key, *pieces), ("EXPIRE", key, ttl)]
                listed.setdefault(self._keys.of_job(job_of(name), "objects"), []).append(stripe_name(name, stripe))
            for key, names in listed.items():
                commands += [("SADD", key, *names), ("EXPIRE", key, ttl)]
            self.shards[shard].transaction(commands)

    def _get_stripes(self, shard: int, wanted: list[tuple[tuple[str, int], int]]) -> dict[tuple[str, int], list[Frame]]:
        found = {}
        for batch in batches(wanted, lambda item: item[1]):
            commands: list[Command] = []
            for (name, stripe), _ in batch:
                key = self._keys.of_object(name, stripe)
                commands += [("LRANGE", key, 0, -1), ("EXPIRE", key, self._config.ttl_seconds)]
            replies: list[Any] = self.shards[shard].call(*commands)
            for (wanted_stripe, _), pieces in zip(batch, replies[::2], strict=True):
                # Not a list (WRONGTYPE) is not what was written: as good as missing.
                found[wanted_stripe] = [] if isinstance(pieces, ResponseError) else pieces
        return found

    def _value(self, ref: Ref, first: list[Frame]) -> list[Frame]:
        try:
            frames = first if ref.stripes == 1 else self._striped(ref, first)
        except (ValueError, TypeError):  # not written by `cut`
            frames = []
        if (not frames or frames_nbytes(frames) != ref.nbytes) and self._overflow is not None:
            frames = self._overflow.read(ref.name) or []
        if not frames or frames_nbytes(frames) != ref.nbytes:
            where = "the overflow"
            if not ref.overflowed:
                where = f"the {self.shards[ref.shard % len(self.shards)].role} server"
            raise ValueLost(f"value {ref.name!r} ({ref.nbytes:,} bytes) is not in {where} as it was written")
        return frames

    def _striped(self, ref: Ref, first: list[Frame]) -> list[Frame]:
        value = Uncut(first, ref.nbytes)
        first.clear()
        others: dict[int, list[int]] = {}
        for stripe, shard in self._places(ref)[1:]:
            others.setdefault(shard, []).append(stripe)

        def read(shard: int, stripes: list[int]) -> None:
            for stripe in stripes:  # one at a time: a stripe is a round trip's worth
                (pieces,) = self._get_stripes(shard, [((ref.name, stripe), 0)]).values()
                value.place(stripe, pieces)

        self.on_each(others, read)
        return value.frames()


def _segment_name(job: str, number: int) -> str:
    return f"{job}/segments/{number}"
