"""Slices: what a shuffle moves, from many input partitions to many output partitions.

One hash for each output partition, on the shard that its name says, with the input partition as field. So a transfer
writes with one round trip to each shard, an unpack reads with one, and a slice that is written twice is there once.
The hash is named and listed like a stored value: `Objects.forget_job` removes it with the job.

A field holds a slice's frames, packed; a large frame is in fields of its own, so that it is sent uncopied.

What finds no room there goes to the overflow: all that one call brings, as one value whose first frame tells which
frames are whose. Its name tells from which input partition it is, and for which output partitions, so that who reads
one of these finds it and reads no more than its own. Nobody looks there unless a shard has less than was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from fargate_storage.client.config import StoreConfig
from fargate_storage.client.endpoint import JOIN_BYTES_MAX, Argument, Command, Counters
from fargate_storage.client.keys import Keys
from fargate_storage.client.objects import BATCH_BYTES_MAX, Objects, batches, by_shard
from fargate_storage.client.shard_map import while_shards_go
from fargate_storage.client.stripes import flat
from lambda_worker.core.errors import ValueLost, ValueTooLarge
from lambda_worker.core.wire import Frame, Frames, frames_nbytes, pack, unpack

#: A larger frame is cut: what one reply must bring in time, and Redis strings end at 512 MiB.
FIELD_BYTES_MAX = 64 * 2**20


def fields_of(source: int, frames: Frames) -> list[Argument]:
    r"""Return the fields of a slice, each followed by its value.

    Examples
    --------
    >>> fields_of(3, [b"tag", b"body"])
    [b'3', b'\x92\xc4\x03tag\xc4\x04body']
    >>> [len(field) if len(field) > 10 else field for field in fields_of(3, [b"tag", bytes(20_000)])]
    [b'3', b'\x92\xc4\x03tag\xcdN ', b'3.1.0', 20000]
    """
    head: list[Any] = []
    large: list[Argument] = []
    for number, frame in enumerate(map(flat, frames)):
        if len(frame) > JOIN_BYTES_MAX:
            head.append(len(frame))
            view = memoryview(frame)
            for piece, start in enumerate(range(0, len(view), FIELD_BYTES_MAX)):
                large += [b"%d.%d.%d" % (source, number, piece), view[start : start + FIELD_BYTES_MAX]]
        else:
            head.append(bytes(frame))
    return [b"%d" % source, pack(head), *large]


def slices_of(fields: Mapping[bytes, bytes]) -> dict[int, list[Frame]]:
    """Undo `fields_of`, for all slices of a hash; raises `ValueError` when a part is missing.

    Examples
    --------
    >>> fields = fields_of(3, [b"tag", bytes(20_000)]) + fields_of(0, [b"tag"])
    >>> slices = slices_of(dict(zip(fields[::2], fields[1::2])))
    >>> {source: list(map(len, frames)) for source, frames in slices.items()}
    {3: [3, 20000], 0: [3]}
    """
    slices: dict[int, list[Frame]] = {}
    for field, value in fields.items():
        if b"." in field:
            continue
        frames: list[Frame] = []
        for number, part in enumerate(unpack(value)):
            if isinstance(part, bytes):
                frames.append(part)
                continue
            pieces = [
                fields.get(field + b".%d.%d" % (number, piece), b"") for piece in range(-(-part // FIELD_BYTES_MAX))
            ]
            frame = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if len(frame) != part:
                raise ValueError(f"frame {number} of slice {field!r} is missing")
            frames.append(frame)
        slices[int(field)] = frames
    return slices


class Parcel(NamedTuple):
    """What the overflow has of one input partition, for output partitions from `first` to `last`.

    Examples
    --------
    >>> Parcel("job-1/shuffle/0a1b/3/0-7", 3, 0, 7) == Parcel.named("job-1/shuffle/0a1b/3/0-7")
    True
    """

    name: str
    source: int
    first: int
    last: int

    @classmethod
    def named(cls, name: str) -> Parcel:
        """Return the parcel of a name."""
        _, source, targets = name.rsplit("/", 2)
        return cls(name, int(source), *map(int, targets.split("-")))


class Slices:
    """The slices on all shards of a cluster, and beside them; safe to use from several threads."""

    def __init__(self, objects: Objects, keys: Keys, config: StoreConfig, counters: Counters) -> None:
        self._objects = objects
        self._shards = objects.shards
        self.shard_map = objects.shard_map
        self._room = objects.room
        self._keys = keys
        self._config = config
        self._counters = counters

    @while_shards_go
    def put(self, job: str, shuffle: str, source: int, slices: Mapping[int, Frames]) -> None:
        """Write slices; see `lambda_worker.ports.Store.put_slices`."""
        if not slices:
            return
        sizes = {target: frames_nbytes(frames) for target, frames in slices.items()}
        largest = max(sizes, key=sizes.__getitem__)
        fits = sizes[largest] <= self._config.object_bytes_max
        if not fits and self._room.overflow is None:
            raise ValueTooLarge(
                f"what partition {source} has for partition {largest} of shuffle {shuffle} ({sizes[largest]:,} bytes) "
                f"is larger than {self._config.object_bytes_max:,} (serverless.storage.object-bytes-max): "
                "make the partitions smaller, or raise that limit"
            )
        parts = self._by_shard(job, shuffle, slices)
        ttl = self._config.ttl_seconds
        listed = self._keys.of_job(job, "objects")

        def write(shard: int, items: list[tuple[str, int]]) -> None:
            for batch in batches(items, lambda item: sizes[item[1]]):
                commands: list[Command] = []
                for name, target in batch:
                    key = self._keys.of_object(name)
                    commands += [("HSET", key, *fields_of(source, slices[target])), ("EXPIRE", key, ttl)]
                commands += [("SADD", listed, *[name for name, _ in batch]), ("EXPIRE", listed, ttl)]
                self._shards[shard].transaction(commands)

        def remove(shard: int, items: list[tuple[str, int]]) -> None:
            for batch in batches(items, lambda item: 0):
                fields = [(name, fields_of(source, slices[target])[::2]) for name, target in batch]
                self._shards[shard].ask(*[("HDEL", self._keys.of_object(name), *some) for name, some in fields])

        put_beside = partial(self._put_beside, f"{job}/shuffle/{shuffle}/{source}/", slices)
        remove_from_shards = partial(self._objects.on_each, parts, remove)
        if fits:
            self._room.find(partial(self._objects.on_each, parts, write), put_beside, remove_from_shards)
        else:
            put_beside()
            remove_from_shards()
        self._counters.add(slices_written=len(slices), bytes_written=sum(sizes.values()))

    def _put_beside(self, prefix: str, slices: Mapping[int, Frames]) -> None:
        assert self._room.overflow is not None
        # Who writes again may bring others together: then they are put together, so that no slice is there twice.
        before = [each for each in self._parcels(prefix) if each.first <= max(slices) and min(slices) <= each.last]
        together = {target: frames for each in before for target, frames in self._opened(each)} | dict(slices)
        name = f"{prefix}{min(together)}-{max(together)}"
        head = pack([[target, len(frames)] for target, frames in together.items()])
        self._room.replace(name, [head, *(frame for frames in together.values() for frame in frames)])
        self._room.overflow.delete([each.name for each in before if each.name != name])
        self._counters.add(slices_overflowed=len(slices))

    @while_shards_go
    def get(self, job: str, shuffle: str, target: int, nbytes: int) -> dict[int, list[Frame]]:
        """Read slices; see `lambda_worker.ports.Store.get_slices`."""
        name = _name(job, shuffle, target)
        key = self._keys.of_object(name)
        shard = self._shards[self.shard_map.by_name(name)]
        renew = ("EXPIRE", key, self._config.ttl_seconds)
        if nbytes <= BATCH_BYTES_MAX:
            reply, _ = shard.call(("HGETALL", key), renew)
            # Not a hash (WRONGTYPE) is not what was written: as good as missing.
            found = [] if isinstance(reply, ResponseError) else reply
            fields = dict(zip(found[::2], found[1::2], strict=True))
        else:
            names, _ = shard.call(("HKEYS", key), renew)
            names = [] if isinstance(names, ResponseError) else names
            sizes: list[int] = []
            for some in batches(names, lambda field: 0):
                sizes += shard.ask(*[("HSTRLEN", key, field) for field in some])
            fields = {}
            for batch in batches(zip(names, sizes, strict=True), lambda item: item[1]):
                (values,) = shard.ask(("HMGET", key, *[field for field, _ in batch]))
                fields.update((field, value or b"") for (field, _), value in zip(batch, values, strict=True))
        try:
            slices = slices_of(fields)
        except (ValueError, TypeError) as error:
            raise ValueLost(f"what is stored as {name!r} is not as it was written: {error}") from None
        if sum(map(frames_nbytes, slices.values())) < nbytes:
            slices = self._get_beside(f"{job}/shuffle/{shuffle}/", target) | slices
        self._counters.add(bytes_read=sum(map(frames_nbytes, slices.values())))
        return slices

    def _get_beside(self, prefix: str, target: int) -> dict[int, list[Frame]]:
        parcels = [each for each in self._parcels(prefix) if each.first <= target <= each.last]
        return {each.source: frames for each in parcels for _, frames in self._opened(each, target)}

    def _opened(self, parcel: Parcel, only: int | None = None) -> Iterator[tuple[int, list[Frame]]]:
        """Read a parcel, or the one slice in it; what is not as it was written is left out, or not what was sealed."""
        assert self._room.overflow is not None
        first = 1
        for head in self._room.overflow.read(parcel.name, 0, 1) or ():
            try:
                contents = [(int(target), int(count)) for target, count in unpack(head)]
            except (ValueError, TypeError):
                return
            for target, count in contents:
                frames = None if only not in (None, target) else self._room.overflow.read(parcel.name, first, count)
                if frames:
                    yield target, frames
                first += count

    @while_shards_go
    def remove(self, job: str, shuffle: str, targets: Iterable[int]) -> None:
        """Remove all slices of some output partitions, and all that are beside the shards."""
        listed = self._keys.of_job(job, "objects")

        def unlink(shard: int, items: list[tuple[str, int]]) -> None:
            for batch in batches(items, lambda item: 0):
                names = [name for name, _ in batch]
                self._shards[shard].ask(("UNLINK", *map(self._keys.of_object, names)), ("SREM", listed, *names))

        self._objects.on_each(self._by_shard(job, shuffle, targets), unlink)
        if self._room.overflow is not None:
            self._room.overflow.delete(self._room.overflow.names(f"{job}/shuffle/{shuffle}/"))

    def _by_shard(self, job: str, shuffle: str, targets: Iterable[int]) -> dict[int, list[tuple[str, int]]]:
        names = ((_name(job, shuffle, target), target) for target in targets)
        return by_shard((self.shard_map.by_name(name), (name, target)) for name, target in names)

    def _parcels(self, prefix: str) -> list[Parcel]:
        return [] if self._room.overflow is None else list(map(Parcel.named, self._room.overflow.names(prefix)))


def _name(job: str, shuffle: str, target: int) -> str:
    return f"{job}/shuffle/{shuffle}/{target}"
