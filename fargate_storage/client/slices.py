"""Slices: what a shuffle moves, from many input partitions to many output partitions.

One hash for each output partition, on the shard that its name says, with the input partition as field. So a transfer
writes with one round trip to each shard, an unpack reads with one, and a slice that is written twice is there once.
The hash is named and listed like a stored value: `Objects.forget_job` removes it with the job.

A field holds a slice's frames, packed; a large frame is in fields of its own, so that it is sent uncopied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from redis.exceptions import ResponseError

from fargate_storage.client.config import StoreConfig
from fargate_storage.client.endpoint import JOIN_BYTES_MAX, Argument, Command, Counters
from fargate_storage.client.keys import Keys
from fargate_storage.client.objects import BATCH_BYTES_MAX, Objects, batches, flat
from fargate_storage.client.shard_map import while_shards_go
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


class Slices:
    """The slices on all shards of a cluster; safe to use from several threads."""

    def __init__(self, objects: Objects, keys: Keys, config: StoreConfig, counters: Counters) -> None:
        self._objects = objects
        self._shards = objects.shards
        self.shard_map = objects.shard_map
        self._keys = keys
        self._config = config
        self._counters = counters

    @while_shards_go
    def put(self, job: str, shuffle: str, source: int, slices: Mapping[int, Frames]) -> None:
        """Write slices; see `lambda_worker.ports.Store.put_slices`."""
        by_shard: dict[int, list[tuple[str, Frames, int]]] = {}
        for target, frames in slices.items():
            nbytes = frames_nbytes(frames)
            if nbytes > self._config.object_bytes_max:
                raise ValueTooLarge(
                    f"what partition {source} has for partition {target} of shuffle {shuffle} ({nbytes:,} bytes) is "
                    f"larger than {self._config.object_bytes_max:,} (serverless.storage.object-bytes-max): "
                    "make the partitions smaller, or raise that limit"
                )
            name = _name(job, shuffle, target)
            by_shard.setdefault(self.shard_map.by_name(name), []).append((name, frames, nbytes))
        ttl = self._config.ttl_seconds
        listed = self._keys.of_job(job, "objects")

        def write(shard: int, items: list[tuple[str, Frames, int]]) -> None:
            for batch in batches(items, lambda item: item[2]):
                commands: list[Command] = []
                for name, frames, _ in batch:
                    key = self._keys.of_object(name)
                    commands += [("HSET", key, *fields_of(source, frames)), ("EXPIRE", key, ttl)]
                commands += [("SADD", listed, *[name for name, _, _ in batch]), ("EXPIRE", listed, ttl)]
                self._shards[shard].transaction(commands)

        self._objects.on_each(by_shard, write)
        written = sum(nbytes for items in by_shard.values() for _, _, nbytes in items)
        self._counters.add(slices_written=len(slices), bytes_written=written)

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
        self._counters.add(bytes_read=sum(map(frames_nbytes, slices.values())))
        return slices

    @while_shards_go
    def remove(self, job: str, shuffle: str, targets: Iterable[int]) -> None:
        """Remove all slices of some output partitions."""
        by_shard: dict[int, list[str]] = {}
        for target in targets:
            name = _name(job, shuffle, target)
            by_shard.setdefault(self.shard_map.by_name(name), []).append(name)
        listed = self._keys.of_job(job, "objects")

        def unlink(shard: int, names: list[str]) -> None:
            for batch in batches(names, lambda name: 0):
                self._shards[shard].ask(("UNLINK", *map(self._keys.of_object, batch)), ("SREM", listed, *batch))

        self._objects.on_each(by_shard, unlink)


def _name(job: str, shuffle: str, target: int) -> str:
    return f"{job}/shuffle/{shuffle}/{target}"
