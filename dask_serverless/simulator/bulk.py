"""Bulk data of a simulated storage tier: segments, values and slices on shards. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

from dask_serverless.simulator.tier import Shard, Tier
from lambda_worker.core.errors import StoreFull, ValueLost, ValueTooLarge
from lambda_worker.core.wire import Frame, Frames, Ref, frames_nbytes


class Bulk:
    """The part of a `SimStore` that reads and writes values. The promises are in `lambda_worker.ports`."""

    def __init__(self, tier: Tier, object_bytes_max: int) -> None:
        self.tier = tier
        self.object_bytes_max = object_bytes_max
        names = (
            "round_trips",
            "objects_written",
            "objects_overflowed",
            "slices_written",
            "slices_overflowed",
            "bytes_written",
            "bytes_read",
        )
        self._counters = dict.fromkeys(names, 0)

    def load(self, job: str, segments: Sequence[int]) -> list[bytes]:
        """See `lambda_worker.ports.Store.load`."""
        self._count(round_trips=1)
        found = []
        for number in segments:
            segment = self._shard(number).segments.get((job, number))
            if segment is None:
                raise ValueLost(f"segment {number} of job {job!r} is not in the storage tier")
            found.append(segment)
        self._count(bytes_read=sum(map(len, found)))
        return found

    def put(self, objects: Sequence[tuple[str, Frames]]) -> list[Ref]:
        """See `lambda_worker.ports.Store.put`."""
        self._count(round_trips=1)
        sizes = []
        for name, frames in objects:
            sizes.append(self.tier.measure(frames))
            if sizes[-1] > self.object_bytes_max:
                raise ValueTooLarge(
                    f"a value of {sizes[-1]:,} bytes is larger than {self.object_bytes_max:,} "
                    "(serverless.storage.object-bytes-max): make the chunks smaller, or raise that limit"
                )
            if not frames:
                raise ValueError(f"{name!r} has no frames: a sealed value has at least its tag")
        refs = []
        for (name, frames), nbytes in zip(objects, sizes, strict=True):
            refs.append(self._write(Ref(name, self.shard_of(name), nbytes), frames))
        return refs

    def _write(self, ref: Ref, frames: Frames) -> Ref:
        """Write a value where its `Ref` says, or beside the shards if there is no room; return where it is."""
        self._remove(self.tier.place(ref), [ref.name])
        if ref.nbytes > self.tier.room(ref):
            limit = f"(limit: {self.tier.shard_bytes_max:,} bytes)"
            full = StoreFull(f"the shard {ref.shard} server is full {limit}")
            ref = ref._replace(shard=-1)
            self._remove(self.tier.overflow, [ref.name])
            if ref.nbytes > self.tier.room(ref):
                raise full
        place = self.tier.place(ref)
        place.objects[ref.name] = [frame if isinstance(frame, bytes) else bytes(frame) for frame in frames]
        place.nbytes += ref.nbytes
        self._count(objects_written=1, objects_overflowed=int(ref.overflowed), bytes_written=ref.nbytes)
        return ref

    def put_again(self, objects: Sequence[tuple[Ref, Frames]]) -> None:
        """See `lambda_worker.ports.JobStore.put_again`."""
        self._count(round_trips=1)
        for ref, frames in objects:
            if self.tier.measure(frames) != ref.nbytes:
                raise ValueError(f"{ref.name!r} had {ref.nbytes:,} bytes, and cannot be written with another size")
            self._write(ref, frames)

    def keep(self, objects: Sequence[tuple[str, Frames]]) -> list[Ref]:
        """See `lambda_worker.ports.JobStore.keep`. Nothing is copied here."""
        return self.put(objects)

    def get(self, refs: Sequence[Ref]) -> list[list[Frame]]:
        """See `lambda_worker.ports.Store.get`."""
        self._count(round_trips=1)
        found = []
        for ref in refs:
            frames = self._find(ref)
            if frames is None or self.tier.measure(frames) != ref.nbytes or ref.stripes != 1:
                where = "the overflow" if ref.overflowed else f"the shard {ref.shard} server"
                raise ValueLost(f"value {ref.name!r} ({ref.nbytes:,} bytes) is not in {where} as it was written")
            found.append(list(frames))
        self._count(bytes_read=sum(ref.nbytes for ref in refs))
        return found

    def free(self, refs: Sequence[Ref]) -> None:
        """See `lambda_worker.ports.JobStore.free`."""
        self._count(round_trips=1)
        for ref in refs:
            for place in (self.tier.place(ref), self.tier.overflow):
                self._remove(place, [ref.name])

    def missing(self, refs: Sequence[Ref]) -> list[Ref]:
        """See `lambda_worker.ports.JobStore.missing`."""
        self._count(round_trips=1)
        return [ref for ref in refs if self._find(ref) is None]

    def touch(self, refs: Sequence[Ref]) -> None:
        """See `lambda_worker.ports.JobStore.touch`. Nothing expires here."""
        self._count(round_trips=1)

    def put_slices(self, job: str, shuffle: str, source: int, slices: Mapping[int, Frames]) -> None:
        """See `lambda_worker.ports.Store.put_slices`."""
        self._count(round_trips=1)
        for target, frames in slices.items():
            if frames_nbytes(frames) > self.object_bytes_max:
                raise ValueTooLarge(
                    f"what partition {source} has for partition {target} of shuffle {shuffle} "
                    f"({frames_nbytes(frames):,} bytes) is larger than {self.object_bytes_max:,} "
                    "(serverless.storage.object-bytes-max): make the partitions smaller, or raise that limit"
                )
        if not self.tier.job(job).opened:
            return
        for target, frames in slices.items():
            name = f"{job}/shuffle/{shuffle}/{target}"
            pieces: list[Frame] = [bytes(frame) for frame in frames]
            self.tier.shards[self.shard_of(name)].slices.setdefault(name, {})[source] = pieces
        self._count(slices_written=len(slices), bytes_written=sum(map(frames_nbytes, slices.values())))

    def get_slices(self, job: str, shuffle: str, target: int, nbytes: int) -> dict[int, list[Frame]]:
        """See `lambda_worker.ports.Store.get_slices`."""
        self._count(round_trips=1)
        name = f"{job}/shuffle/{shuffle}/{target}"
        found = self.tier.shards[self.shard_of(name)].slices.get(name, {})
        self._count(bytes_read=sum(map(frames_nbytes, found.values())))
        return {source: list(frames) for source, frames in found.items()}

    def _find(self, ref: Ref) -> list[Frame] | None:
        """Return a value's frames: what its shard does not have may be beside the shards."""
        frames = self.tier.place(ref).objects.get(ref.name)
        return self.tier.overflow.objects.get(ref.name) if frames is None else frames

    def shard_of(self, name: str) -> int:
        """Tell where a value is written: by name, so that writing twice writes to the same place."""
        return zlib.crc32(name.encode()) % len(self.tier.shards)

    def _shard(self, number: int) -> Shard:
        return self.tier.shards[number % len(self.tier.shards)]

    def _remove(self, shard: Shard, names: Sequence[str]) -> None:
        for name in names:
            frames = shard.objects.pop(name, None)
            if frames is not None:
                shard.nbytes -= self.tier.measure(frames)

    def _count(self, **amounts: int) -> None:
        for name, amount in amounts.items():
            self._counters[name] += amount


def job_of(name: str) -> str:
    """Return the job that a stored value belongs to."""
    return name.partition("/")[0]
