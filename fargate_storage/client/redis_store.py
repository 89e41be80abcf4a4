"""The storage tier with Redis: every promise of `lambda_worker.ports.Store` and `JobStore`.

Rules kept here:

* One call is one round trip, but for bulk data on several shards or above the bounds of one batch.
* Every call may be repeated, by the caller or by `Endpoint`; what a reply would have said is said again. One
  exception is harmless: who retired and asks again is told FENCED, since the record is gone.
* Who is fenced is decided by the attempt. A newer attempt than the record knows is believed (see ``common.lua``), and
  so is `admit` with a newer attempt, which gives the record a new assignment.
* Ownership of a child outlives the record: after `drop`, the same executor, admitted again, hears YOURS again, and
  nobody else does.
"""

from __future__ import annotations

import functools
import hashlib
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fargate_storage.client import scripts
from fargate_storage.client.config import StoreConfig
from fargate_storage.client.endpoint import Counters, Endpoint
from fargate_storage.client.keys import Keys
from fargate_storage.client.objects import Objects
from fargate_storage.client.overflow import open_overflow
from fargate_storage.client.shard_map import ShardMap, while_shards_go
from fargate_storage.client.slices import Slices
from lambda_worker.core.errors import StoreForgot, StoreFull, StoreUnavailable
from lambda_worker.core.schedule import Assignment
from lambda_worker.core.wire import (
    Frame,
    Frames,
    Location,
    Ref,
    location_from_wire,
    location_to_wire,
    pack,
    unpack,
)
from lambda_worker.ports import Arrival, Claim, Lapsed, Lingering, Reply, Standing, Succession, Verdict

#: What one step of a long removal, or of a sweep, may touch: bounds how long the server is busy with it.
STEP_ITEMS_MAX = 1_000
#: What one `listen` returns at most; the rest comes with the next call.
EVENTS_MAX = 1_000
#: One wait at the server; shorter than a reply may take, so that a vanished server is noticed.
LISTEN_SECONDS_MAX = 2.0


class RedisStore:
    """The storage tier of one cluster.

    Safe to use from several threads. Connections do not survive a fork: make a store after forking, not before.

    `counters` counts as ``round_trips`` every exchange with a server (a pipeline or a script is one, a repetition is
    another), as ``bytes_written`` and ``bytes_read`` the frames of stored values and of slices, and the segments; what
    travels inside arrivals, records and events is not counted.

    Parameters
    ----------
    config
        Where the tier is. Nothing is connected before the first call.
    holder
        Names the sandbox that speaks. Of several that speak for one attempt, the first one holds it, and the others
        are fenced. Who has no name neither holds an attempt nor is fenced by who does.

    Examples
    --------
    >>> store = RedisStore(StoreConfig("demo", "redis://10.0.0.7:6379"))
    >>> store
    <RedisStore 'demo' at 10.0.0.7:6379, shards: none>
    >>> store.close()
    """

    def __init__(self, config: StoreConfig, holder: str = "") -> None:
        self.config = config
        self._holder = holder
        self._keys = Keys(config.cluster)
        self._counters = Counters()
        self._metadata = Endpoint("metadata", config.metadata, config, self._counters)
        self.shard_map = ShardMap(max(1, len(config.shards)), self._read_shard_map, self._close_shard)
        shards = [
            Endpoint(f"shard {i}", url, config, self._counters, functools.partial(self.shard_map.is_gone, i))
            for i, url in enumerate(config.shards)
        ]
        self._servers = [self._metadata, *shards]
        self._overflow = None
        if config.overflow is not None:
            self._overflow = open_overflow(config.overflow, config.overflow_bytes_max, config.ttl_seconds)
        on = shards or [self._metadata]
        self._objects = Objects(on, self._keys, config, self._counters, self.shard_map, self._overflow)
        self._slices = Slices(self._objects, self._keys, config, self._counters)
        self._lease_ms = round(config.lease_seconds * 1000)
        self._listening = threading.Lock()
        self._returned_to: bytes | None = None  # the last event that `listen` returned
        self._mark: bytes | None = None  # what `begin` has found or put at the metadata server
        self._closed = False

    def __repr__(self) -> str:
        shards = ", ".join(server.address for server in self._servers[1:]) or "none"
        return f"<RedisStore {self.config.cluster!r} at {self._metadata.address}, shards: {shards}>"

    # What executors use

    def arrive(
        self,
        job: str,
        executor: str,
        attempt: int,
        arrivals: Sequence[Arrival] = (),
        events: bytes = b"",
        retire: bool = False,
        succession: Succession | None = None,
        lingering: Lingering | None = None,
    ) -> Reply:
        """See `lambda_worker.ports.Store.arrive`.

        A call is recognised as a repetition, so that its events are not published twice, when edges, events and
        `retire` equal those of one of the executor's last 16 calls with events: events that are to be told apart must
        differ (a sequence number will do).
        """
        edges = [part for arrival in arrivals for part in (arrival.child, arrival.parent, arrival.parents)]
        values = [b"" if arrival.value is None else _location_to_store(arrival.value) for arrival in arrivals]
        digest = hashlib.blake2b(pack([attempt, edges, retire]) + events, digest_size=8).hexdigest() if events else ""
        if succession is not None and succession.record.job != job:
            raise ValueError("an executor can only be succeeded in its own job")
        fields = (
            *(job, executor, attempt, self._lease_ms, self.config.ttl_seconds, int(retire), digest, edges),
            [] if succession is None else [*_record_fields(succession.record)[1:], succession.events],
            [] if lingering is None else [lingering.name, round(lingering.seconds * 1000)],
            self._holder,
        )
        try:
            answer = self._run(scripts.ARRIVE, scripts.header(*fields, 0), events, *values)
        except StoreFull:
            if any(isinstance(arrival.value, bytes) for arrival in arrivals):
                raise
            urgency = 1 if any(values) else 2
            answer = self._run(scripts.ARRIVE, scripts.header(*fields, urgency), events, *values)
        standing, retired, answers = answer
        return Reply(Standing(standing.decode()), tuple(map(_claim, answers)), bool(retired))

    def delegate(self, job: str, executor: str, attempt: int, records: Sequence[Assignment], ceiling: int) -> int:
        """See `lambda_worker.ports.Store.delegate`.

        A record of the same name but with other starts is not the same record: creation stops there, and the starts
        stay with the caller.
        """
        return len(self.delegate_and_post(job, executor, attempt, records, (), ceiling))

    def delegate_and_post(
        self,
        job: str,
        executor: str,
        attempt: int,
        records: Sequence[Assignment],
        mails: Sequence[bytes],
        ceiling: int,
    ) -> list[str]:
        """See `lambda_worker.ports.Store.delegate_and_post`."""
        if any(record.job != job for record in records):
            raise ValueError("an executor can only give away tasks of its own job")
        return self._create(job, executor, attempt, records, mails, ceiling)

    def take_mail(self, name: str, seconds: float) -> bytes:
        """See `lambda_worker.ports.Store.take_mail`."""
        mail, taken = self._keys.of_mail("mail", name), self._keys.of_mail("taken", name)
        # What was moved, but never arrived here because the connection broke, is found by the repetition.
        wait = max(0.001, min(seconds, LISTEN_SECONDS_MAX, self.config.wait_seconds / 2))  # BLMOVE 0 would be for ever
        try:
            before, found, _ = self._metadata.ask(
                ("LINDEX", taken, 0),
                ("BLMOVE", mail, taken, "LEFT", "RIGHT", f"{wait:.3f}"),
                ("PEXPIRE", taken, self._lease_ms),
            )
        except StoreFull:  # to wait needs memory, to leave does not
            before = found = None
        if before is None and found is None:
            found = self._run(scripts.LEAVE, name, self._lease_ms)
        return before or found or b""

    def beat(self, runs: Sequence[tuple[str, str, int, int]]) -> list[Standing]:
        """See `lambda_worker.ports.Store.beat`."""
        if not runs:
            return []
        flat = [part for run in runs for part in run]
        standings = self._run(scripts.BEAT, scripts.header(self._lease_ms, self.config.ttl_seconds, flat, self._holder))
        return [Standing(standing.decode()) for standing in standings]

    def load(self, job: str, segments: Sequence[int]) -> list[bytes]:
        """See `lambda_worker.ports.Store.load`."""
        return self._objects.get_segments(job, segments)

    def put(self, objects: Sequence[tuple[str, Frames]]) -> list[Ref]:
        """See `lambda_worker.ports.Store.put`; raises `ValueTooLarge` above ``object_bytes_max`` (no overflow)."""
        return self._objects.put(objects)

    def get(self, refs: Sequence[Ref]) -> list[list[Frame]]:
        """See `lambda_worker.ports.Store.get`. Reading a value renews its time to live."""
        return self._objects.get(refs)

    def locate(self, job: str, child: int) -> dict[int, Location]:
        """See `lambda_worker.ports.Store.locate`."""
        (flat,) = self._metadata.ask(("HGETALL", self._keys.of_job(job, f"fan-in:{child}")))
        return _values(flat)

    def put_slices(self, job: str, shuffle: str, source: int, slices: Mapping[int, Frames]) -> None:
        """See `lambda_worker.ports.Store.put_slices`; raises `ValueTooLarge` above ``object_bytes_max``.

        Asking afterwards misses nothing: `close_job` removes the job's key first and then looks for what is stored.
        """
        self._slices.put(job, shuffle, source, slices)
        (is_open,) = self._metadata.ask(("EXISTS", self._keys.of_job(job, "job")))
        if not is_open:
            self._slices.remove(job, shuffle, slices)

    def get_slices(self, job: str, shuffle: str, target: int, nbytes: int) -> dict[int, list[Frame]]:
        """See `lambda_worker.ports.Store.get_slices`. Reading them renews their time to live."""
        return self._slices.get(job, shuffle, target, nbytes)

    def counters(self) -> Mapping[str, int]:
        """See `lambda_worker.ports.Store.counters`."""
        return self._counters.snapshot()

    # What the proxy uses beside it

    def begin(self) -> bool:
        """See `lambda_worker.ports.JobStore.begin`."""
        mine = f"{self._metadata.info('server')['run_id']}-{secrets.token_hex(8)}".encode()
        put = (("SET", self._keys.mark, mine, "NX", "EX", self.config.ttl_seconds), ("GET", self._keys.mark))
        _, found = self._metadata.ask(*put)
        if found and _process_of(found) != _process_of(mine):
            self._empty()
            _, found = self._metadata.ask(*put)
        self._mark = found or mine  # forgotten in between: then the next step finds out
        self._returned_to = None  # of another stream, perhaps
        return self._mark != mine  # a call that is repeated finds its own

    def open_job(self, job: str, segments: Mapping[int, bytes]) -> None:
        """See `lambda_worker.ports.JobStore.open_job`."""
        self._objects.put_segments(job, segments)
        key = self._keys.of_job(job, "job")  # last: who can see the job can read its segments
        self._metadata.transaction([("HSET", key, "opened", 1), ("EXPIRE", key, self.config.ttl_seconds)])

    def admit(self, records: Sequence[Assignment], ceiling: int | None, opening: bool = False) -> int:
        """See `lambda_worker.ports.JobStore.admit`.

        A record that exists counts as created. If `records` bring a newer attempt, it takes the new assignment, the
        older attempt is fenced, and the ceiling does not matter (it is counted already).
        """
        return len(self.admit_and_post(records, (), ceiling, opening))

    def admit_and_post(
        self,
        records: Sequence[Assignment],
        mails: Sequence[bytes],
        ceiling: int | None,
        opening: bool = False,
        preferred: Sequence[str] = (),
    ) -> list[str]:
        """See `lambda_worker.ports.JobStore.admit_and_post`."""
        return self._create("", "", 0, records, mails, -1 if ceiling is None else ceiling, opening, preferred)

    def begin_admit(
        self,
        records: Sequence[Assignment],
        mails: Sequence[bytes],
        ceiling: int | None,
        opening: bool = False,
        preferred: Sequence[str] = (),
    ) -> Callable[[], list[str]]:
        """Send what `admit_and_post` sends, if that can be done without waiting; return what waits for the answer."""
        header = self._creation("", "", 0, records, mails, -1 if ceiling is None else ceiling, opening, preferred)
        answer = scripts.CREATE.begin(self._metadata, self._keys.prefix, header)
        return lambda: _recipients(answer())

    def take_back(self, name: str) -> bytes:
        """See `lambda_worker.ports.JobStore.take_back`."""
        mail, back = self._keys.of_mail("mail", name), self._keys.of_mail("taken-back", name)
        _, _, found = self._metadata.ask(
            ("LMOVE", mail, back, "LEFT", "LEFT"),
            ("PEXPIRE", back, self._lease_ms),
            ("LINDEX", back, 0),
        )
        return found or b""

    def send_home(self) -> None:
        """See `lambda_worker.ports.JobStore.send_home`."""
        self._run(scripts.SEND_HOME, self.config.ttl_seconds, self._lease_ms)

    def set_ceiling(self, ceiling: int) -> None:
        """See `lambda_worker.ports.JobStore.set_ceiling`."""
        self._metadata.ask(("SET", self._keys.ceiling, ceiling, "EX", self.config.ttl_seconds))

    def listen(self, seconds: float) -> list[tuple[str, str, int, bytes]]:
        """See `lambda_worker.ports.JobStore.listen`. One cluster has one listener."""
        deadline = time.monotonic() + seconds
        with self._listening:
            while True:
                wait = min(max(deadline - time.monotonic(), 0.0), LISTEN_SECONDS_MAX, self.config.wait_seconds / 2)
                try:
                    entries = self._next_events(wait)
                except StoreUnavailable:
                    if self._closed:  # by another thread: no error, only the end
                        return []
                    raise
                if entries:
                    self._returned_to = entries[-1][0]
                    return [_event(fields) for _, fields in entries]
                if time.monotonic() >= deadline:
                    return []

    def lapsed(self) -> list[Lapsed]:
        """See `lambda_worker.ports.JobStore.lapsed`; at most 1,000 at a time, the longest silent first."""
        return [
            Lapsed(job.decode(), executor.decode(), attempt, running)
            for job, executor, attempt, running in self._run(scripts.LAPSED, STEP_ITEMS_MAX)
        ]

    def executors(self, job: str) -> list[str]:
        """See `lambda_worker.ports.JobStore.executors`. Every record has a lease."""
        server, mark, members = self._metadata.ask(
            ("INFO", "server"), ("GET", self._keys.mark), ("ZRANGE", self._keys.leases, 0, -1)
        )
        self._refuse_strangers(server, mark)
        mine = self._keys.lease_member(job, "")
        return sorted(member.decode().removeprefix(mine) for member in members if member.startswith(mine.encode()))

    def recall(self, job: str, executor: str, alive: bool = False) -> Assignment | None:
        """See `lambda_worker.ports.JobStore.recall`."""
        reply = self._run(scripts.RECALL, job, executor, int(alive))
        if not reply:
            return None
        record, claims = reply
        fields: dict[bytes, bytes] = dict(zip(record[::2], record[1::2], strict=True))
        assignment = Assignment.from_bytes(fields[b"assignment"])
        gone = set(assignment.without)
        for name, gave in fields.items():
            if name.startswith(b"gave:"):
                gone.update(unpack(gave.partition(b":")[2]))
        return replace(
            assignment,
            attempt=int(fields[b"attempt"]),
            starts=[start for start in assignment.starts if start not in gone],
            claims={
                child: values
                for child, values in (*assignment.claims.items(), *((child, _values(flat)) for child, flat in claims))
                if child not in gone
            },
            without=tuple(sorted(gone)),
        )

    def drop(self, job: str, executor: str) -> None:
        """See `lambda_worker.ports.JobStore.drop`."""
        record = self._keys.of_job(job, f"record:{executor}")
        lease = self._keys.lease_member(job, executor)
        self._metadata.transaction([("UNLINK", record), ("ZREM", self._keys.leases, lease)])

    def cancel(self, job: str) -> None:
        """See `lambda_worker.ports.JobStore.cancel`."""
        while self._run(scripts.CANCEL, job, self.config.ttl_seconds, STEP_ITEMS_MAX):
            pass

    def close_job(self, job: str, keep: Sequence[Ref]) -> None:
        """See `lambda_worker.ports.JobStore.close_job`.

        A value that a fenced executor still writes after this stays until its time to live, or until this is called
        again. Events of the job that were not listened to stay in the stream.
        """
        while self._run(scripts.CLOSE, job, STEP_ITEMS_MAX):
            pass
        self._objects.forget_job(job, keep)

    def keep(self, objects: Sequence[tuple[str, Frames]]) -> list[Ref]:
        """See `lambda_worker.ports.JobStore.keep`."""
        return self._objects.keep(objects)

    def put_again(self, objects: Sequence[tuple[Ref, Frames]]) -> None:
        """See `lambda_worker.ports.JobStore.put_again`."""
        self._objects.put_again(objects)

    def free(self, refs: Sequence[Ref]) -> None:
        """See `lambda_worker.ports.JobStore.free`."""
        self._objects.free(refs)

    def place(self, job: str, values: Mapping[int, Location]) -> None:
        """See `lambda_worker.ports.JobStore.place`."""
        listed, ttl = self._keys.of_job(job, "fan-ins"), self.config.ttl_seconds
        commands: list[tuple[Any, ...]] = []
        for task, location in values.items():
            key = self._keys.of_job(job, f"fan-in:{task}")
            commands += [("HSET", key, task, _location_to_store(location)), ("EXPIRE", key, ttl)]
            commands += [("SADD", listed, task), ("EXPIRE", listed, ttl)]
        self._metadata.transaction(commands)

    def missing(self, refs: Sequence[Ref]) -> list[Ref]:
        """See `lambda_worker.ports.JobStore.missing`."""
        return self._objects.missing(refs)

    def touch(self, refs: Sequence[Ref]) -> None:
        """See `lambda_worker.ports.JobStore.touch`."""
        self._objects.touch(refs)

    def note(self, notes: Mapping[str, bytes]) -> None:
        """See `lambda_worker.ports.JobStore.note`."""
        fields = [part for note in notes.items() for part in note]
        write: list[tuple[Any, ...]] = [("HSET", self._keys.notes, *fields)] if fields else []
        self._metadata.ask(*write, ("EXPIRE", self._keys.notes, self.config.ttl_seconds))

    def noted(self) -> dict[str, bytes]:
        """See `lambda_worker.ports.JobStore.noted`."""
        (flat,) = self._metadata.ask(("HGETALL", self._keys.notes))
        return {name.decode(): note for name, note in zip(flat[::2], flat[1::2], strict=True)}

    def strike(self, names: Sequence[str]) -> None:
        """See `lambda_worker.ports.JobStore.strike`."""
        if names:
            self._metadata.ask(("HDEL", self._keys.notes, *names))

    @while_shards_go
    def usage(self) -> Mapping[str, int]:
        """See `lambda_worker.ports.JobStore.usage`; counts all clusters that share these servers."""
        keys = sum(server.ask(("DBSIZE",))[0] for server in self._servers_left())
        used = sum(int(server.info("memory")["used_memory"]) for server in self._servers_left())
        kept = 0 if self._overflow is None else self._overflow.usage()
        return {"store_keys": keys, "store_bytes": used, "overflow_bytes": kept}

    # Beyond the port

    @while_shards_go
    def ping(self) -> None:
        """Raise `StoreUnavailable` unless every server answers that was not given up."""
        for server in self._servers_left():
            server.ask(("PING",))

    def give_up_shards(self, shards: Iterable[int]) -> None:
        """Have everybody go on without some shards, for good: what they held is missing from now on.

        To be repeated as long as the cluster lives: as every key, the map has a time to live.

        Raises
        ------
        StoreUnavailable
            None would be left.
        """
        shards = set(shards)
        if shards.issuperset(self.shard_map.left()):
            raise StoreUnavailable("no storage server for values is left: what they held is lost")
        fields = [part for shard in shards for part in (shard, "gone")]
        key = self._keys.shard_map
        self._metadata.ask(("HSET", key, *fields), ("EXPIRE", key, self.config.ttl_seconds))
        self.shard_map.learn(self._read_shard_map())

    def close(self) -> None:
        """Close all connections. May be repeated."""
        self._closed = True
        self._objects.close()
        for server in self._servers:
            server.close()

    def _read_shard_map(self) -> list[int]:
        (shards,) = self._metadata.ask(("HKEYS", self._keys.shard_map))
        return list(map(int, shards))

    def _close_shard(self, shard: int) -> None:
        self._servers[shard + 1].close()  # whoever waits for it hears of it

    def _servers_left(self) -> list[Endpoint]:
        return [self._metadata, *(self._servers[shard + 1] for shard in self.shard_map.left() if self.config.shards)]

    def _run(self, script: scripts.Script, *arguments: Any) -> Any:
        return script.run(self._metadata, self._keys.prefix, *arguments)

    def _create(
        self,
        job: str,
        executor: str,
        attempt: int,
        records: Sequence[Assignment],
        mails: Sequence[bytes],
        ceiling: int,
        opening: bool = False,
        preferred: Sequence[str] = (),
    ) -> list[str]:
        if not records:
            return []
        header = self._creation(job, executor, attempt, records, mails, ceiling, opening, preferred)
        return _recipients(self._run(scripts.CREATE, header))

    def _creation(
        self,
        job: str,
        executor: str,
        attempt: int,
        records: Sequence[Assignment],
        mails: Sequence[bytes],
        ceiling: int,
        opening: bool,
        preferred: Sequence[str],
    ) -> bytes:
        letters, names = mails or [b""] * len(records), preferred or [""] * len(records)
        items = [
            [*_record_fields(record), mail, name] for record, mail, name in zip(records, letters, names, strict=True)
        ]
        ttl = self.config.ttl_seconds
        return scripts.header(job, executor, attempt, self._lease_ms, ttl, ceiling, items, int(opening), self._holder)

    def _next_events(self, seconds: float) -> list[Any]:
        key = self._keys.events
        block = ("BLOCK", max(1, round(seconds * 1000))) if seconds > 0 else ()  # BLOCK 0 would be for ever
        # Read from the beginning, not from behind the last event: what was returned is trimmed first, so whatever is
        # left was not returned, also when another process listened before this one.
        commands: list[tuple[Any, ...]] = [("XREAD", "COUNT", EVENTS_MAX, *block, "STREAMS", key, "0")]
        if self._returned_to is not None:
            commands.insert(0, ("XTRIM", key, "MINID", "=", _behind(self._returned_to)))
        # First, and on the same connection: what is read behind it was read where the mark is, or is not.
        commands[:0] = [("INFO", "server"), ("GETEX", self._keys.mark, "EX", self.config.ttl_seconds)]
        server, mark, *_, reply = self._metadata.ask(*commands)
        self._refuse_strangers(server, mark)
        self._returned_to = None
        return reply[0][1] if reply else []

    def _refuse_strangers(self, server: bytes, mark: bytes | None) -> None:
        """Raise `StoreForgot` if this is not the mark, or not the server, that was begun with."""
        if self._mark is not None and (mark != self._mark or b"run_id:" + _process_of(mark) not in server):
            raise StoreForgot(
                f"the metadata server at {self._metadata.address} has lost what it knew: it has died and was started "
                "again, another one has taken its place, or somebody has emptied it"
            )

    def _empty(self) -> None:
        """Remove what another server has saved of this cluster, jobs first: from then on nobody can act in one."""
        mine = re.sub(r"([*?\[\\])", r"\\\1", self._keys.prefix)  # whatever a user calls a cluster
        for what in (f"{mine}{{*}}:job", f"{mine}*"):
            cursor: Any = 0
            while True:
                ((cursor, keys),) = self._metadata.ask(("SCAN", cursor, "MATCH", what, "COUNT", STEP_ITEMS_MAX))
                if keys:
                    self._metadata.ask(("UNLINK", *keys))
                if cursor == b"0":
                    break


def _process_of(mark: bytes) -> bytes:
    """Return which server process a mark was put at: another one has, at best, what that had at some moment."""
    return mark.partition(b"-")[0]


def _behind(entry: bytes) -> str:
    """Return the smallest stream id above another one."""
    milliseconds, _, sequence = entry.decode().partition("-")
    return f"{milliseconds}-{int(sequence) + 1}"


def _event(fields: Sequence[bytes]) -> tuple[str, str, int, bytes]:
    event = dict(zip(fields[::2], fields[1::2], strict=True))
    return event[b"job"].decode(), event[b"executor"].decode(), int(event[b"attempt"]), event[b"events"]


def _recipients(answer: Sequence[bytes]) -> list[str]:
    return [recipient.decode() for recipient in answer]


def _record_fields(record: Assignment) -> list[Any]:
    # Segments travel with the invocation to save a read; in the record they would only be a second copy.
    blob = replace(record, segments={}).to_bytes()
    return [record.job, record.executor, record.attempt, pack(list(record.starts)), blob]


def _location_to_store(location: Location) -> bytes:
    # One byte in front tells the two kinds apart; packing an inline value would copy it just the same.
    return b"r" + pack(location_to_wire(location)) if isinstance(location, Ref) else b"i" + location


def _location_from_store(blob: bytes) -> Location:
    return location_from_wire(unpack(blob[1:])) if blob[:1] == b"r" else blob[1:]


def _claim(answer: Sequence[Any]) -> Claim:
    child, verdict, *values = answer
    return Claim(child, Verdict(verdict.decode()), _values(values[0]) if values else {})


#: What else there is in the hash of a fan-in.
_NO_PARENTS = (b"owner", b"held")


def _values(flat: Sequence[bytes]) -> dict[int, Location]:
    """Read the values of a fan-in, as the server keeps them (beside its owner)."""
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return {int(parent): _location_from_store(value) for parent, value in pairs if parent not in _NO_PARENTS}
