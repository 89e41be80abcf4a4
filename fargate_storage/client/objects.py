"""Stored values and segments: the bulk data, on shards.

A value is a Redis list of its frames, so that large buffers are sent as they are and come back one by one. Above
``stripe_bytes`` it is cut into stripes (`stripes.py`), lists of their own on one shard after the other. Names are
unique to one write, so writing (delete, then push, in one transaction) may be repeated even while somebody reads.

What finds no room on a shard, or is too large for one, goes to the overflow, if there is one; its `Ref` says so.
Whatever is missing on a shard is looked for there, too: values that are to outlive it have a copy under their name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

from redis.exceptions import ResponseError

from fargate_storage.client.config import StoreConfig
from fargate_storage.client.endpoint import Command, Counters, Endpoint
from fargate_storage.client.keys import Keys, job_of, stripe_name
from fargate_storage.client.overflow import OVERFLOW, Overflow
from fargate_storage.client.room import Room
from fargate_storage.client.shard_map import ShardMap, while_shards_go
from fargate_storage.client.stripes import Uncut, cut
from lambda_worker.core.errors import ValueLost, ValueTooLarge
from lambda_worker.core.wire import Frame, Frames, Ref, frames_nbytes

#: Bounds of one round trip: what a server must hold at once, and what is lost when it must be repeated.
BATCH_BYTES_MAX = 64 * 2**20
BATCH_ITEMS_MAX = 512

T = TypeVar("T")
R = TypeVar("R")


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


def by_shard(items: Iterable[tuple[int, T]]) -> dict[int, list[T]]:
    """Part what is done at each shard from what is done at others.

    Examples
    --------
    >>> by_shard([(1, "a"), (0, "b"), (1, "c")])
    {1: ['a', 'c'], 0: ['b']}
    """
    parts: dict[int, list[T]] = {}
    for shard, item in items:
        parts.setdefault(shard, []).append(item)
    return parts


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
        self.room = Room(overflow)
        # Threads only help where there are several servers to wait for. They start when they are needed.
        self._threads = ThreadPoolExecutor(min(len(shards), 8), "storage") if len(shards) > 1 else None

    @while_shards_go
    def put(self, objects: Sequence[tuple[str, Frames]]) -> list[Ref]:
        """Write values; see `lambda_worker.ports.Store.put`."""
        bytes_max = self._config.object_bytes_max
        sizes = {name: frames_nbytes(frames) for name, frames in objects}
        large = [each for each in objects if sizes[each[0]] > bytes_max]
        if large and self._overflow is None:
            raise ValueTooLarge(
                f"a value of {sizes[large[0][0]]:,} bytes is larger than {bytes_max:,} "
                "(serverless.storage.object-bytes-max): make the chunks smaller, or raise that limit"
            )
        fitting = [each for each in objects if sizes[each[0]] <= bytes_max]
        refs = self.room.find(
            lambda: self._put(fitting),
            lambda: self._keep(fitting),
            lambda: self._unlink([self._ref(name, sizes[name]) for name, _ in fitting]),
            is_new=True,
        )
        found = {ref.name: ref for ref in [*refs, *self._keep(large)]}
        return [found[name] for name, _ in objects]

    def keep(self, objects: Sequence[tuple[str, Frames]]) -> list[Ref]:
        """Write values to the overflow; without one, to the shards."""
        return self.put(objects) if self._overflow is None else self._keep(objects)

    @while_shards_go
    def put_again(self, objects: Sequence[tuple[Ref, Frames]]) -> None:
        """Write values where their refs say; see `lambda_worker.ports.JobStore.put_again`."""
        for ref, frames in objects:
            if frames_nbytes(frames) != ref.nbytes:
                raise ValueError(f"{ref.name!r} had {ref.nbytes:,} bytes, and cannot be written with another size")
            if ref.overflowed and self._overflow is None:
                raise ValueLost(
                    f"value {ref.name!r} was in an overflow, and there is none (serverless.storage.overflow)"
                )
        on_shards = [each for each in objects if not each[0].overflowed]
        self.room.find(
            lambda: self._write(on_shards),
            lambda: self._replace(on_shards),  # under their names, where readers look for what is not on its shard
            lambda: self._unlink([ref for ref, _ in on_shards]),
        )
        self._replace([each for each in objects if each[0].overflowed])

    def _replace(self, objects: Sequence[tuple[Ref, Frames]]) -> None:
        for ref, frames in objects:
            if self.room.replace(ref.name, frames):
                self._count_kept(ref.nbytes)

    def _keep(self, objects: Sequence[tuple[str, Frames]]) -> list[Ref]:
        refs = []
        for name, frames in objects:
            assert self._overflow is not None
            self._overflow.write(name, frames)
            refs.append(Ref(name, OVERFLOW, frames_nbytes(frames)))
            self._count_kept(refs[-1].nbytes)
        return refs

    def _count_kept(self, nbytes: int) -> None:
        self._counters.add(objects_written=1, objects_overflowed=1, bytes_written=nbytes)

    def _ref(self, name: str, nbytes: int) -> Ref:
        # By name, not by chance: writing twice must write to the same place.
        stripes = max(1, -(-nbytes // self._config.stripe_bytes))
        return Ref(name, self.shard_map.by_name(name), nbytes, stripes)

    def _put(self, objects: Sequence[tuple[str, Frames]]) -> list[Ref]:
        refs = [self._ref(name, frames_nbytes(frames)) for name, frames in objects]
        self._write([(ref, frames) for ref, (_, frames) in zip(refs, objects, strict=True)])
        return refs

    def _write(self, objects: Sequence[tuple[Ref, Frames]]) -> None:
        stripes: list[tuple[int, tuple[str, int, list[bytes | memoryview]]]] = []
        for ref, frames in objects:
            if not frames:
                raise ValueError(f"{ref.name!r} has no frames: a sealed value has at least its tag")
            pieces = cut(frames, self._config.stripe_bytes)
            stripes += [(shard, (ref.name, stripe, pieces[stripe])) for stripe, shard in self._places(ref)]
        self.on_each(by_shard(stripes), self._put_stripes)
        self._counters.add(objects_written=len(objects), bytes_written=sum(ref.nbytes for ref, _ in objects))

    @while_shards_go
    def get(self, refs: Sequence[Ref]) -> list[list[Frame]]:
        """Read values; see `lambda_worker.ports.Store.get`."""
        # Of a value in stripes, only the first one, which tells how large the frames are.
        wanted = by_shard(
            (self._places(ref)[0][1], ((ref.name, 0), ref.nbytes // ref.stripes))
            for ref in dict.fromkeys(refs)
            if not ref.overflowed
        )
        firsts: dict[str, list[Frame]] = {}
        for part in self.on_each(wanted, self._get_stripes):
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
        def remove(shard: int, items: list[tuple[Ref, int]]) -> None:
            for batch in batches(items, lambda item: 0):
                commands: list[Command] = []
                for (name, *_), stripe in batch:
                    commands.append(("UNLINK", self._keys.of_object(name, stripe)))
                    commands.append(("SREM", self._keys.of_job(job_of(name), "objects"), stripe_name(name, stripe)))
                self.shards[shard].ask(*commands)

        self.on_each(self._stripes(refs), remove)

    @while_shards_go
    def missing(self, refs: Sequence[Ref]) -> list[Ref]:
        """Return those values of which a stripe is not there, and that are not in the overflow."""

        def look(shard: int, items: list[tuple[Ref, int]]) -> set[Ref]:
            absent: set[Ref] = set()
            for batch in batches(items, lambda item: 0):
                keys = [self._keys.of_object(ref.name, stripe) for ref, stripe in batch]
                there = self.shards[shard].ask(*[("EXISTS", key) for key in keys])
                absent.update(ref for (ref, _), found in zip(batch, there, strict=True) if not found)
            return absent

        absent = set().union(*self.on_each(self._stripes(refs), look)).union(ref for ref in refs if ref.overflowed)
        if self._overflow is not None:
            absent = {ref for ref in absent if not self._overflow.has(ref.name)}
        return [ref for ref in refs if ref in absent]

    @while_shards_go
    def touch(self, refs: Sequence[Ref]) -> None:
        """Renew values' time to live."""

        def renew(shard: int, items: list[tuple[Ref, int]]) -> None:
            for batch in batches(items, lambda item: 0):
                keys = [self._keys.of_object(ref.name, stripe) for ref, stripe in batch]
                self.shards[shard].ask(*[("EXPIRE", key, self._config.ttl_seconds) for key in keys])

        self.on_each(self._stripes(refs), renew)
        if self._overflow is not None:
            self._overflow.touch([ref.name for ref in refs])

    @while_shards_go
    def put_segments(self, job: str, segments: Mapping[int, bytes]) -> None:
        """Write a job's sealed segments."""
        key = self._keys.of_job(job, "segments")
        parts = by_shard((self._segment_place(job, number), (number, segment)) for number, segment in segments.items())

        def write(shard: int, items: list[tuple[int, bytes]]) -> None:
            for batch in batches(items, lambda item: len(item[1])):
                fields = [part for item in batch for part in item]
                self.shards[shard].transaction([("HSET", key, *fields), ("EXPIRE", key, self._config.ttl_seconds)])

        def write_beside() -> list[bool]:
            return [self.room.replace(_segment_name(job, number), [segment]) for number, segment in segments.items()]

        def remove(shard: int, items: list[tuple[int, bytes]]) -> None:
            self.shards[shard].ask(("HDEL", key, *[number for number, _ in items]))

        self.room.find(lambda: self.on_each(parts, write), write_beside, lambda: self.on_each(parts, remove))
        self._counters.add(bytes_written=sum(map(len, segments.values())))

    @while_shards_go
    def get_segments(self, job: str, numbers: Sequence[int]) -> list[bytes]:
        """Read sealed segments; raises `ValueLost` naming the first that is missing."""
        parts = by_shard((self._segment_place(job, number), number) for number in dict.fromkeys(numbers))
        key = self._keys.of_job(job, "segments")

        def read(shard: int, wanted: list[int]) -> list[tuple[int, bytes | None]]:
            found: list[tuple[int, bytes | None]] = []
            for batch in batches(wanted, lambda number: 0):
                replies = self.shards[shard].ask(("HMGET", key, *batch), ("EXPIRE", key, self._config.ttl_seconds))
                found += zip(batch, replies[0], strict=True)
            return found

        segments = dict(pair for part in self.on_each(parts, read) for pair in part)
        values = []
        for number in numbers:
            segment = segments[number]
            if segment is None and self._overflow is not None:
                beside = self._overflow.read(_segment_name(job, number))
                segment = None if beside is None else b"".join(beside)
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

    def _stripes(self, refs: Iterable[Ref]) -> dict[int, list[tuple[Ref, int]]]:
        return by_shard((shard, (ref, stripe)) for ref in refs for stripe, shard in self._places(ref))

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

        def read(shard: int, stripes: list[int]) -> None:
            for stripe in stripes:  # one at a time: a stripe is a round trip's worth
                (pieces,) = self._get_stripes(shard, [((ref.name, stripe), 0)]).values()
                value.place(stripe, pieces)

        self.on_each(by_shard((shard, stripe) for stripe, shard in self._places(ref)[1:]), read)
        return value.frames()


def _segment_name(job: str, number: int) -> str:
    return f"{job}/segments/{number}"
