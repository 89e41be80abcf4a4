"""What the proxy of a persistent cluster notes for its successor, should its process die.

Notes are in the store, by name, sealed under that name: nothing foreign is ever unpickled.

=================== ==========================================================================================
``job:JOB``         the planned graph, the message that brought it; once it is started, its small segments, too
``given:JOB:N``     which starts executors are about to be given, by executor; then, which they have been given
``heard:JOB:N``     what an executor said of values, errors and mail, as it was sealed: before the store forgets it
``error:JOB:N``     an error that the proxy itself found
``dataset:NAME``    a published dataset
``data:KEY:N``      where scattered data is: each time it is scattered, another note
=================== ==========================================================================================

All that has to do with a job goes when the job is over and none of its keys is held any more. What is large lies on a
shard, and is only named by its note.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import pickle
import threading
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from distributed.protocol import Serialized
from distributed.protocol import pickle as dask_pickle

from dask_serverless.dask_graph import JobPlan
from dask_serverless.job_events import Done, Erred
from dask_serverless.listener import decode
from dask_serverless.resumption import Past
from dask_serverless.submissions import Replan, Submission
from lambda_worker.core.errors import StoreFull, ValueTooLarge
from lambda_worker.core.wire import (
    Location,
    Ref,
    location_from_wire,
    location_to_wire,
    open_frames,
    pack,
    seal,
    seal_frames,
    unpack,
    unseal,
)
from lambda_worker.ports import JobStore

logger = logging.getLogger("dask_serverless.notes")

#: By executor, its starts, with the values of those that are made elsewhere.
Given: TypeAlias = Mapping[str, Sequence[tuple[int, Location | None]]]
#: Bodies up to this size are kept with the metadata.
INLINE_BYTES_MAX = 64 * 2**10


@dataclass(frozen=True, slots=True)
class JobNote:
    """What is noted of a job before it begins: its plan without bodies, how to make that again, the segments that are
    nowhere else, and the constants that its tasks read, by content. One that still waits has neither."""

    plan: JobPlan
    again: Replan
    segments: Mapping[int, bytes] = field(default_factory=dict)
    constants: Mapping[bytes, Ref] = field(default_factory=dict)
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Dataset:
    """A published dataset: its name, the keys it is made of, and what a client makes of them."""

    name: Any
    keys: Sequence[Any]
    data: Serialized


@dataclass(frozen=True, slots=True)
class Data:
    """Scattered data: its key, its size as the scheduler knew it, and where it is."""

    key: Any
    nbytes: int
    location: Location


@dataclass(frozen=True, slots=True)
class Found:
    """What a predecessor has left: its jobs, in order; what is noted of each that had begun; what it had published;
    what executors have said since its death; and data that was scattered."""

    jobs: Mapping[str, JobNote]
    pasts: Sequence[Past]
    datasets: Sequence[Dataset]
    unheard: Sequence[Any]
    data: Sequence[Data] = ()


@dataclass(slots=True)
class _Noted:
    keys: set[Hashable]  # those that are still held
    names: list[str] = field(default_factory=list)
    refs: list[Ref] = field(default_factory=list)
    over: bool = False


class Notes:
    """The notes of one proxy. Safe to use from several threads.

    Parameters
    ----------
    store, secret
        Where notes are kept, and what they are sealed with.
    numbers_from
        The first number of those that are numbered.
    """

    def __init__(self, store: JobStore, secret: bytes, numbers_from: int) -> None:
        self._store = store
        self._secret = secret
        self._numbers = itertools.count(numbers_from)
        self._jobs: dict[str, _Noted] = {}
        self._job_of: dict[Hashable, str] = {}
        self._begun: set[str] = set()
        self._data: dict[Hashable, str] = {}  # the note of each key that was scattered
        self._struck: list[str] = []
        self._freed: list[Ref] = []
        self._written: dict[str, bytes] = {}  # what is in the store, should that forget it
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Notes of {len(self._jobs)} jobs>"

    # -- what is noted; all of it blocks --------------------------------------------------------

    def has_begun(self, job: str) -> bool:
        """Tell whether a job was noted, as one that is started."""
        return job in self._begun

    def note_waiting(self, job: str, note: JobNote) -> None:
        """Note a job that is not started yet."""
        self._enter(job, note)
        self._note_all(job, self._job_note(job, note))

    def note_launch(self, job: str, note: JobNote | None, launch: int, given: Given) -> None:
        """Note what executors of a job are about to be given, and before the first of them the job itself."""
        notes = {}
        if note is not None:
            self._enter(job, note)
            notes = self._job_note(job, note)
            self._begun.add(job)
        self._note_all(job, notes | self._given_note(job, launch, given, None))

    def note_given(self, job: str, launch: int, given: Given, recipients: Mapping[str, str]) -> None:
        """Note what executors have been given, if there was room for any, and who was sent the mail of each ("": it
        was invoked)."""
        if not given:
            return self._strike([f"given:{job}:{launch}"])
        self._note_all(job, self._given_note(job, launch, given, recipients))

    def _enter(self, job: str, note: JobNote) -> None:
        with self._lock:
            if job not in self._jobs:
                self._jobs[job] = _Noted(set())
                self._hold(job, note.plan.visible)

    def _job_note(self, job: str, note: JobNote) -> dict[str, bytes]:
        try:
            return self._noted(job, f"job:{job}", _job_to_bytes(note))
        except (ValueTooLarge, StoreFull) as error:
            logger.warning("job %s will not be resumed should this process die: %s", job, error)
            return {}

    def _given_note(
        self, job: str, launch: int, given: Given, recipients: Mapping[str, str] | None
    ) -> dict[str, bytes]:
        wire = [
            [executor, [[task, None if where is None else location_to_wire(where)] for task, where in starts]]
            for executor, starts in given.items()
        ]
        return self._noted(job, f"given:{job}:{launch}", pack([recipients, wire]))

    def note_heard(self, heard: Sequence[tuple[str, str, int, bytes]]) -> None:
        """Note what executors have said, as far as it matters to a successor; before the store forgets it."""
        notes = {}
        for job, executor, attempt, blob in heard:
            if job in self._jobs and blob and _matters(self._decode(job, executor, attempt, blob)):
                name = f"heard:{job}:{next(self._numbers)}"
                notes[name] = seal(self._secret, name, pack([executor, attempt, blob]))
                self._add(job, name)
        if notes:
            self._write(notes)

    def note_error(self, job: str, task: int, error: bytes) -> None:
        """Note an error that the proxy found: executors have not heard of it."""
        if job in self._jobs:
            self._note_all(job, self._noted(job, f"error:{job}:{next(self._numbers)}", pack([task, error])))

    def note_dataset(self, name: Hashable, keys: Sequence[Hashable], data: Serialized) -> None:
        """Note a dataset that was published."""
        body = dask_pickle.dumps((name, tuple(keys), data.header, [bytes(frame) for frame in data.frames]))
        note = _dataset_note(name)
        self._write({note: seal(self._secret, note, body)})

    def strike_dataset(self, name: Hashable) -> None:
        """A dataset is published no more."""
        self._strike([_dataset_note(name)])

    def note_data(self, data: Sequence[Data]) -> None:
        """Note where scattered data is, until its keys are let go."""
        notes: dict[str, bytes] = {}
        names: dict[str, Hashable] = {}
        for each in data:
            # 1. A key is let go; 2. it is scattered again, and noted; 3. its first note is struck: not this one.
            name = f"data:{_digest(each.key)}:{next(self._numbers)}"
            with self._lock:
                if (before := self._data.get(each.key)) is not None:
                    self._struck.append(before)
                self._data[each.key] = name
            body = dask_pickle.dumps((each.key, each.nbytes, location_to_wire(each.location)))
            notes[name] = seal(self._secret, name, body)
            names[name] = each.key
        self._write(notes)
        self._strike([name for name, key in names.items() if self._data.get(key) != name])  # let go meanwhile

    def keep_alive(self) -> None:
        """Renew the time to live of all that is noted."""
        with self._lock:
            refs = [ref for noted in self._jobs.values() for ref in noted.refs]
        self._store.note({})
        self._store.touch(refs)

    def note_again(self) -> None:
        """Note once more all that is noted, where it was forgotten. What is stored beside is elsewhere, and stays."""
        told: dict[str, bytes | None] = {}
        with self._lock:
            todo: dict[str, bytes | None] = dict(self._written)
        while todo:
            self._store.note({name: blob for name, blob in todo.items() if blob is not None})
            self._store.strike([name for name, blob in todo.items() if blob is None])
            told |= todo
            # 1. A note is read above; 2. it is struck, or replaced, in the store; 3. it is there again, as it was.
            with self._lock:
                todo = {name: now for name, blob in told.items() if (now := self._written.get(name)) is not blob}

    def flush(self) -> None:
        """Remove what is noted for nobody any more."""
        with self._lock:
            names, self._struck = self._struck, []
            refs, self._freed = self._freed, []
        self._strike(names)
        if refs:
            self._store.free(refs)

    # -- what becomes of jobs -------------------------------------------------------------------

    def let_go(self, key: Hashable) -> bool:
        """Nobody holds a key any more; tell whether there is something to `flush`."""
        with self._lock:
            if (name := self._data.pop(key, None)) is not None:
                self._struck.append(name)
            job = self._job_of.pop(key, "")
            if job in self._jobs:
                self._jobs[job].keys.discard(key)
                self._forget_unwanted(job)
            return bool(self._struck)

    def end(self, job: str) -> bool:
        """A job is over; tell whether there is something to `flush`."""
        with self._lock:
            if job in self._jobs:
                self._jobs[job].over = True
                self._forget_unwanted(job)
            return bool(self._struck)

    def keep_only(self, job: str, keys: Collection[Hashable]) -> None:
        """Of the keys of a job that was found, only these are held."""
        with self._lock:
            self._hold(job, keys)

    def _hold(self, job: str, keys: Collection[Hashable]) -> None:
        self._jobs[job].keys = set(keys)
        for key in keys:
            before = self._job_of.get(key)
            if before is not None and before != job and before in self._jobs:
                self._jobs[before].keys.discard(key)
                self._forget_unwanted(before)
            self._job_of[key] = job

    def _forget_unwanted(self, job: str) -> None:
        noted = self._jobs[job]
        if noted.over and not noted.keys:
            self._struck += noted.names
            self._freed += noted.refs
            del self._jobs[job]
            self._begun.discard(job)

    def _add(self, job: str, name: str, ref: Ref | None = None) -> None:
        with self._lock:
            noted = self._jobs.get(job)
            if noted is None:  # over meanwhile
                self._struck.append(name)
                self._freed += [] if ref is None else [ref]
                return
            noted.names.append(name)
            noted.refs += [] if ref is None else [ref]

    def _noted(self, job: str, name: str, body: bytes) -> dict[str, bytes]:
        """Return the note that is to be made; what is large is stored beside it."""
        ref = None
        if len(body) > INLINE_BYTES_MAX:
            where = f"notes/{next(self._numbers)}"
            (ref,) = self._store.put([(where, seal_frames(self._secret, where, [body]))])
            content = pack([location_to_wire(ref), None])
        else:
            content = pack([None, body])
        self._add(job, name, ref)
        return {name: seal(self._secret, name, content)}

    def _note_all(self, job: str, notes: Mapping[str, bytes]) -> None:
        self._write(notes)
        if job not in self._jobs:  # over meanwhile
            self._strike(list(notes))

    def _write(self, notes: Mapping[str, bytes]) -> None:
        with self._lock:
            self._written.update(notes)
        self._store.note(notes)

    def _strike(self, names: Sequence[str]) -> None:
        with self._lock:
            for name in names:
                self._written.pop(name, None)
        self._store.strike(names)

    # -- what is found --------------------------------------------------------------------------

    def read(self) -> Found:
        """Return what a predecessor has noted, and strike what nothing can be made of."""
        blobs = self._store.noted()
        jobs: dict[str, JobNote] = {}
        for name in sorted((name for name in blobs if name.startswith("job:")), key=_number_of_job):
            job = name.removeprefix("job:")
            self._jobs[job] = _Noted(set())
            try:
                note = jobs[job] = _job_from_bytes(self._body(job, name, blobs[name]))
            except Exception as error:  # users' classes are unpickled
                logger.warning("job %s, which another process had begun, cannot be resumed: %s", job, error)
                self.end(job)
                continue
            if note.waits:  # nothing of it was started: who wants its keys has them planned again
                self.keep_only(job, note.plan.visible)
                self.end(job)
            else:
                self._begun.add(job)
        # 1. Who lives; 2. what was said. Who retires in between is heard.
        live = {job: self._store.executors(job) for job in self._begun}
        unheard = list(self._drain())
        blobs = self._written = self._store.noted()
        pasts = {job: Past(job, note.plan, live[job]) for job, note in jobs.items() if job in live}
        datasets: list[Dataset] = []
        scattered: dict[Hashable, Data] = {}
        for name in sorted(blobs, key=_serial):
            kind, _, rest = name.partition(":")
            job = rest.partition(":")[0]
            if kind == "job":
                continue
            try:
                if kind == "dataset":
                    datasets.append(_dataset_from_bytes(bytes(unseal(self._secret, name, blobs[name]))))
                elif kind == "data":
                    key, nbytes, where = pickle.loads(unseal(self._secret, name, blobs[name]))
                    location = location_from_wire(where)
                    if key in scattered:  # it died before it had struck the earlier one
                        self._outdo(self._data[key], scattered[key].location, location)
                    self._data[key] = name
                    scattered[key] = Data(key, nbytes, location)
                elif job not in pasts:
                    self._struck.append(name)
                elif kind == "heard":
                    executor, attempt, blob = unpack(unseal(self._secret, name, blobs[name]))
                    for event in self._decode(job, executor, attempt, blob):
                        if isinstance(event, Done | Erred):
                            pasts[job].said.append(event)
                        elif isinstance(event, tuple) and event[0] == "posted":
                            pasts[job].recipients.update((each, recipient) for recipient, each in event[2])
                    self._add(job, name)
                else:
                    content = unpack(self._body(job, name, blobs[name]))
                    if kind == "given":
                        pasts[job].recipients.update(content[0] or {})
                        for executor, starts in content[1]:
                            if content[0] is not None or executor in live[job]:
                                pasts[job].given.update(_starts_from_wire(starts))
                    else:
                        pasts[job].said.append(Erred(job, *content))
            except Exception as error:
                logger.warning("what another process has noted under %r cannot be read: %s", name, error)
        refs = [ref for past in pasts.values() for ref in past.refs()]
        refs += [each.location for each in scattered.values() if isinstance(each.location, Ref)]
        missing = set(self._store.missing(refs))
        data = [each for each in scattered.values() if each.location not in missing]
        for lost in [each for each in scattered.values() if each.location in missing]:
            logger.warning("the scattered data %r is lost", lost.key)
            self.let_go(lost.key)
        for past in pasts.values():
            past.missing = missing
        self.flush()
        return Found(jobs, list(pasts.values()), datasets, unheard, data)

    def _outdo(self, name: str, before: Location, now: Location) -> None:
        """A later note of a key is found: the earlier one, and what it names, are for nobody."""
        self._struck.append(name)
        if isinstance(before, Ref) and before != now:
            self._freed.append(before)

    def _drain(self) -> Iterator[Any]:
        """Read what executors have said since the predecessor died."""
        while heard := self._store.listen(0):
            self.note_heard(heard)
            for each in heard:
                yield from self._decode(*each)

    def _decode(self, *heard: Any) -> list[Any]:
        try:
            return decode(self._secret, *heard)
        except Exception:  # one bad event must not cost the others
            logger.exception("an event of %s/%s could not be read", *heard[:2])
            return []

    def _body(self, job: str, name: str, blob: bytes) -> bytes:
        wire, body = unpack(unseal(self._secret, name, blob))
        if wire is None:
            self._add(job, name)
            return bytes(body)
        ref = Ref(*wire)
        self._add(job, name, ref)
        (sealed,) = self._store.get([ref])
        return b"".join(map(bytes, open_frames(self._secret, ref.name, sealed)))


def _matters(events: Sequence[Any]) -> bool:
    return any(isinstance(each, Done | Erred) or (isinstance(each, tuple) and each[0] == "posted") for each in events)


def _starts_from_wire(starts: Sequence[Any]) -> dict[int, Location | None]:
    return {task: where and location_from_wire(where) for task, where in starts}


def _job_to_bytes(note: JobNote) -> bytes:
    again, asked = note.again, note.again.submission
    message = (asked.expr_ser.header, [bytes(frame) for frame in asked.expr_ser.frames])
    submission = (message, asked.keys, dict(asked.annotations), dict(asked.pinned))
    plan = replace(note.plan, bodies=(), constants={})
    rest = (
        list(again.wanted),
        list(again.outside),
        again.classes,
        dict(note.segments),
        dict(note.constants),
        note.waits,
    )
    return dask_pickle.dumps((plan, submission, rest))


def _job_from_bytes(body: bytes) -> JobNote:
    plan, (message, keys, annotations, pinned), (wanted, outside, classes, *rest) = pickle.loads(body)
    submission = Submission(Serialized(*message), keys, annotations, pinned)
    return JobNote(plan, Replan(submission, wanted, frozenset(outside), classes), *rest)


def _dataset_note(name: Hashable) -> str:
    return f"dataset:{_digest(name)}"


def _digest(name: Hashable) -> str:
    return hashlib.sha256(dask_pickle.dumps(name)).hexdigest()[:32]


def _dataset_from_bytes(body: bytes) -> Dataset:
    name, keys, header, frames = pickle.loads(body)
    return Dataset(name, keys, Serialized(header, frames))


def _number_of_job(name: str) -> int:
    return int(name.removeprefix("job:j"))


def _serial(name: str) -> int:
    number = name.rpartition(":")[2]
    return int(number) if number.isdigit() else 0
