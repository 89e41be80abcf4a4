"""What the driver needs from the world, as promises. Adapters implement them; tests hold every
adapter, fakes included, to the same contract suite (``tests/contract``).

The methods are synchronous: an executor calls them from its I/O threads, the proxy from a thread
pool. Every method may be called from several threads at once. Every method is safe to repeat:
after a lost reply the caller calls again, and the second call has no further effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lambda_worker.core.schedule import Assignment
from lambda_worker.core.verdicts import Claim, Standing, Verdict
from lambda_worker.core.wire import Frame, Frames, Location, Ref

__all__ = [
    "Arrival",
    "Claim",
    "Clock",
    "Invoker",
    "JobStore",
    "Lapsed",
    "Lingering",
    "Reply",
    "Standing",
    "Store",
    "Succession",
    "Verdict",
]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A parent is done for a child. `parents` is the child's in-degree. Without a `value` (it is held by who
    arrives) this only asks for the child."""

    child: int
    parent: int
    parents: int
    value: Location | None


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to `Store.arrive`. `retired` is True when the record was removed."""

    standing: Standing
    claims: Sequence[Claim] = ()
    retired: bool = False


@dataclass(frozen=True, slots=True)
class Succession:
    """Who takes the place of an executor that retires, and what is published when that happens."""

    record: Assignment
    events: bytes


@dataclass(frozen=True, slots=True)
class Lingering:
    """An executor that has retired waits for mail: under which name, and for how long (0: no longer)."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Lapsed:
    """A record whose lease ran out: who, and the task it last said it was running (-1: none)."""

    job: str
    executor: str
    attempt: int
    running: int


class Store(Protocol):
    """The storage tier as executors see it: records, fan-ins, events, segments, objects.

    A store is one sandbox's. Lambda may deliver an invocation twice: of several sandboxes that speak for
    the same attempt, the first one holds it, and the others are fenced.

    Times are store time; no caller's clock is trusted. All keys carry the cluster's prefix and a
    time to live. Raises `StoreUnavailable` when the tier cannot be reached, `StoreFull` when it
    refuses a write for lack of memory.
    """

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
        """Tell fan-ins that parents are done, publish events, and perhaps retire: one atomic step,
        one round trip.

        Setting an edge twice is setting it once. Exactly one executor is told `YOURS` for a child;
        the same executor hears it again at any attempt, with the same values. The first value
        that arrives for an edge is the one that stays. Whoever only asks for a child wins it if all edges
        are there beside those asked with, hears the values of the others, and has no effect otherwise; a child is
        arrived at or asked for in one call, not both. A claimed child is added to the record. `events`
        (opaque, sealed by the caller; empty: none) are appended to the event stream. With `retire`
        the record and its lease are removed, its claims are marked done, and a retirement is
        appended to the event stream, unless this call won a child (`YOURS`). With a `succession` as
        well, the place becomes another executor's in the same step: its record is created whatever the
        ceiling, and the events of the succession are appended before the retirement. With `lingering`,
        who retires can be sent mail from this step on, until that time is over. A fenced caller
        has no effect at all. The lease is renewed.

        A tier without room refuses (`StoreFull`) arrivals with values that travel inside them. References it takes
        from a reserve, and events and retirements always.
        """
        ...

    def delegate(self, job: str, executor: str, attempt: int, records: Sequence[Assignment], ceiling: int) -> int:
        """Create the records of new executors, as many (a prefix) as fit below `ceiling` live
        executors in the whole cluster, and return how many. Only then may they be invoked.

        For each record created, its starts leave the delegating executor's record (they are
        remembered there as given away). Returns 0 if the caller is fenced or cancelled. A record
        that exists already counts as created, and nothing changes.
        """
        ...

    def delegate_and_post(
        self,
        job: str,
        executor: str,
        attempt: int,
        records: Sequence[Assignment],
        mails: Sequence[bytes],
        ceiling: int,
    ) -> list[str]:
        """Do as `delegate`, and send the mail of each new record to an executor that lingers.

        Returns, for each record that exists now, the name of who was sent its mail, or "": it is to be
        invoked. Mail is sent once. For a record with empty mail, one that lingers is sent away (its
        place may be needed).
        """
        ...

    def take_mail(self, name: str, seconds: float) -> bytes:
        """Linger: wait for mail up to `seconds`, and linger no longer. Empty: there is none, or who
        lingers is sent away."""
        ...

    def beat(self, runs: Sequence[tuple[str, str, int, int]]) -> list[Standing]:
        """Renew leases. Each item is ``(job, executor, attempt, task running now or -1)``."""
        ...

    def load(self, job: str, segments: Sequence[int]) -> list[bytes]:
        """Read sealed segments by number. Raises `ValueLost` naming the first that is missing."""
        ...

    def put(self, objects: Sequence[tuple[str, Frames]]) -> list[Ref]:
        """Write values (name, sealed frames) and return where they are. Names are unique to one
        write, so writing twice writes the same. Large frames are not copied."""
        ...

    def get(self, refs: Sequence[Ref]) -> list[list[Frame]]:
        """Read the sealed frames of stored values. Raises `ValueLost` naming the first missing."""
        ...

    def locate(self, job: str, child: int) -> dict[int, Location]:
        """Return where the inputs of a fan-in are, of those that have arrived there with a value (none: it is not
        known here, or its job is closed); or where the value of `child` itself is, by its own number, if that was
        said with `JobStore.place`."""
        ...

    def put_slices(self, job: str, shuffle: str, source: int, slices: Mapping[int, Frames]) -> None:
        """Write what input partition `source` of a shuffle has for output partitions (sealed frames by
        output partition). Writing a slice again replaces it; slices of other sources stay. Large
        frames are not copied. They go when the job is closed; of a closed job none stay."""
        ...

    def get_slices(self, job: str, shuffle: str, target: int, nbytes: int) -> dict[int, list[Frame]]:
        """Read all slices of output partition `target`, by input partition; none if there are none.

        `nbytes` says how much to expect: what is large comes in bounded steps. Slices that are
        written meanwhile may be missing. Raises `ValueLost` when what is there is not whole.
        """
        ...

    def counters(self) -> Mapping[str, int]:
        """Return what this client did since it was made: ``round_trips``, ``objects_written``,
        ``objects_overflowed``, ``slices_written``, ``slices_overflowed``, ``bytes_written``, ``bytes_read``."""
        ...


class JobStore(Store, Protocol):
    """The storage tier as the proxy sees it: everything a `Store` does, and the life of jobs."""

    def begin(self) -> bool:
        """Put a mark where records are, unless there is one; tell whether there was. As long as it is
        there, nothing of what the store was told about jobs since then is lost. If it is lost, so are all
        jobs: their executors are fenced at their next step, since nobody knows them."""
        ...

    def open_job(self, job: str, segments: Mapping[int, bytes]) -> None:
        """Write a job's record and sealed segments of it. May be called again with more of them; to be
        called, with the last ones, before any `admit`."""
        ...

    def admit(self, records: Sequence[Assignment], ceiling: int | None, opening: bool = False) -> int:
        """Create records for a job's first executors, as many (a prefix) as fit below `ceiling`
        live executors in the cluster (None: all of them, whatever `set_ceiling` says); return how
        many. Cancelled or closed jobs admit none.

        With `opening` the job is opened along with it: for one whose segments all travel inside the
        one assignment, so that nobody will ever read them from here: if that executor gives its task
        away, it gives them along."""
        ...

    def admit_and_post(
        self,
        records: Sequence[Assignment],
        mails: Sequence[bytes],
        ceiling: int | None,
        opening: bool = False,
        preferred: Sequence[str] = (),
    ) -> list[str]:
        """Do as `admit`, and send mail as `delegate_and_post` does; to those who are preferred ("": anybody) if
        they linger now. Who is preferred for one of the records is sent no other's mail."""
        ...

    def take_back(self, name: str) -> bytes:
        """Take back mail that was sent and has not been taken. Empty: there is none. From then on, it
        cannot be taken."""
        ...

    def send_home(self) -> None:
        """Send away everybody who lingers now. Who has a record now will not linger."""
        ...

    def set_ceiling(self, ceiling: int) -> None:
        """Change how many executors may live; executors that are already at work delegate by it."""
        ...

    def listen(self, seconds: float) -> list[tuple[str, str, int, bytes]]:
        """Wait for events up to `seconds`; return ``(job, executor, attempt, events)`` in order of
        publication. Empty `events` mean: this executor retired. Each event is returned once;
        what was returned is forgotten by the store at the next call. After `begin`, raises `StoreForgot`
        when the store has lost its mark, and with it all records: until `begin` is called again."""
        ...

    def lapsed(self) -> list[Lapsed]:
        """Return the records whose lease has run out (they stay until `drop`)."""
        ...

    def executors(self, job: str) -> list[str]:
        """Name the executors of a job that have a record, sorted. Takes time in the number of all that live. Raises
        `StoreForgot` as `listen` does: then that there are none says nothing."""
        ...

    def recall(self, job: str, executor: str, alive: bool = False) -> Assignment | None:
        """Return what an executor was given and has claimed but not given away, as its newest attempt was
        told (without segments): what the next attempt has to do. None if there is no record (any more). The
        sandbox that speaks for that attempt, if it is not dead after all, is fenced from then on.

        A child that was won by asking needs values that died with the attempt: it has no owner any more, and
        is arrived at again. Of an executor that is `alive`, such children are left out, and nothing changes."""
        ...

    def drop(self, job: str, executor: str) -> None:
        """Remove a record and its lease, so that its executor is fenced."""
        ...

    def cancel(self, job: str) -> None:
        """Mark a job cancelled and remove its records: every executor hears CANCELLED (or FENCED)
        at its next step."""
        ...

    def close_job(self, job: str, keep: Sequence[Ref]) -> None:
        """Remove everything a job left behind (records, fan-ins, segments, objects) except `keep`."""
        ...

    def keep(self, objects: Sequence[tuple[str, Frames]]) -> list[Ref]:
        """Write values as `put` does, but where the death of a server does not reach, if the tier has such a place: a
        new one, or a copy of one that is stored already under that name. Who reads the latter where it was finds the
        copy once it is lost there."""
        ...

    def put_again(self, objects: Sequence[tuple[Ref, Frames]]) -> None:
        """Write values anew that were lost, or are not as they were written any more, with frames of the same size:
        in such a way that who knows them by their refs finds them, wherever new ones would be put by now."""
        ...

    def free(self, refs: Sequence[Ref]) -> None:
        """Remove stored values."""
        ...

    def place(self, job: str, values: Mapping[int, Location]) -> None:
        """Say where values are that were made outside a job; what was said before is replaced."""
        ...

    def missing(self, refs: Sequence[Ref]) -> list[Ref]:
        """Return those stored values of which at least a part is not there (any more)."""
        ...

    def touch(self, refs: Sequence[Ref]) -> None:
        """Renew the time to live of stored values that somebody still holds."""
        ...

    def note(self, notes: Mapping[str, bytes]) -> None:
        """Keep notes of a proxy for its successor, by name; what was noted under a name before is replaced.
        All notes live on (also when nothing is noted) for their time to live."""
        ...

    def noted(self) -> dict[str, bytes]:
        """Return all notes."""
        ...

    def strike(self, names: Sequence[str]) -> None:
        """Remove notes; those that are not there are no error."""
        ...

    def usage(self) -> Mapping[str, int]:
        """Return ``store_keys``, ``store_bytes`` and ``overflow_bytes`` of the whole tier now."""
        ...


class Invoker(Protocol):
    """How an executor starts another one."""

    @property
    def warm(self) -> bool:
        """Whether an invocation costs a request and no more: the AWS client has been made."""
        ...

    def invoke(self, assignments: Sequence[Assignment]) -> list[BaseException | None]:
        """Invoke one Lambda (asynchronously, `Event`) for each assignment, at the same time.

        Returns, for each, None when Lambda accepted it, or why not. An accepted invocation may
        still be lost or doubled: leases and fencing answer for that.
        """
        ...


class Clock(Protocol):
    """Time that only measures durations."""

    def __call__(self) -> float:
        """Return seconds since some fixed point; never runs backwards."""
        ...
