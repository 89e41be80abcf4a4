"""What the servers of a simulated storage tier keep, as data. Pure; `sim_store` has the steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from lambda_worker.core.schedule import Assignment
from lambda_worker.core.wire import Frame, Frames, Location, Ref, frames_nbytes

Who = tuple[str, str]  # job and executor

#: What the metadata server knows.
_METADATA = tuple("jobs leases events mark notes ceiling lingering generation mail taken taken_back".split())


@dataclass(slots=True)
class Record:
    """What is known of one executor."""

    attempt: int
    assignment: Assignment
    generation: int
    running: int = -1
    holder: str = ""
    recipient: str = ""
    gave: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    heard: list[object] = field(default_factory=list)


class FanIn:
    """The parents of a child that are done, with their values, and whose child it is."""

    def __init__(self, parents: int) -> None:
        self.parents = parents
        self.values: dict[int, Location] = {}
        self.owner: str | None = None
        self.held = False  # the owner has asked for it: values of some parents are with it alone

    def __repr__(self) -> str:
        return f"<FanIn {sorted(self.values)} of {self.parents}, owner {self.owner}>"

    def set(self, parent: int, value: Location) -> None:
        """Set an edge. The first value stays."""
        self.values.setdefault(parent, value)

    def complete(self, held: Set[int] = frozenset()) -> bool:
        """Tell whether all parents are done, with those that an executor holds."""
        return len(self.values) + len(held - self.values.keys()) >= self.parents


@dataclass(slots=True)
class JobState:
    """The metadata of one job."""

    opened: bool = False
    cancelled: bool = False
    records: dict[str, Record] = field(default_factory=dict)
    claims: dict[str, dict[int, None]] = field(default_factory=dict)
    fan_ins: dict[int, FanIn] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Shard:
    """One server of bulk data."""

    objects: dict[str, list[Frame]] = field(default_factory=dict)
    segments: dict[tuple[str, int], bytes] = field(default_factory=dict)
    slices: dict[str, dict[int, list[Frame]]] = field(default_factory=dict)
    nbytes: int = 0


class Tier:
    """What the servers of one cluster keep.

    Parameters
    ----------
    clock
        Their time, in seconds; it may jump.
    shards
        How many there are, beside the one for metadata.
    shard_bytes_max, overflow_bytes_max
        What a shard has room for, and what there is beside the shards.
    measure
        Tells the size of a value's frames; in a simulation they stand for more than they are.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        shards: int = 2,
        shard_bytes_max: int = 2**60,
        measure: Callable[[Frames], int] = frames_nbytes,
        overflow_bytes_max: int = 0,
    ) -> None:
        self.clock = clock
        self.shards = [Shard() for _ in range(shards)]
        self.overflow = Shard()
        self.shard_bytes_max = shard_bytes_max
        self.overflow_bytes_max = overflow_bytes_max
        self.measure = measure
        self.jobs: dict[str, JobState] = {}
        self.leases: dict[Who, float] = {}
        self.events: list[tuple[str, str, int, bytes]] = []
        self.process = 1  # which one the metadata server is
        self.mark: tuple[int, int] = (0, 0)  # at which process it was put, and by which `begin`
        self.marks = 0
        self.notes: dict[str, bytes] = {}
        self.ceiling: int | None = None
        self.lingering: dict[str, float] = {}
        self.generation = 0
        self.mail: dict[str, bytes] = {}
        self.taken: dict[str, bytes] = {}
        self.taken_back: dict[str, bytes] = {}
        self.on_events: Callable[[], object] = lambda: None  #: called when there are new events
        self.on_mail: Callable[[str], object] = lambda name: None  #: called when mail is sent, with its recipient

    def __repr__(self) -> str:
        return f"<Tier: {len(self.leases)} executors in {len(self.jobs)} jobs>"

    def keys(self) -> list[str]:
        """Name everything that is kept, except what lasts no longer than a lease (mail) and the ceiling.

        Examples
        --------
        >>> tier = Tier(lambda: 0.0)
        >>> tier.shards[0].objects["job/1/a/1"] = [b"tag"]
        >>> tier.keys()
        ['object:job/1/a/1']
        """
        return list(self._keys())

    def _keys(self) -> Iterator[str]:
        yield from (f"lease:{job}:{executor}" for job, executor in self.leases)
        yield from ("events",) * bool(self.events)
        yield from ("notes",) * bool(self.notes)
        for name, job in self.jobs.items():
            yield from (f"{name}:job",) * job.opened
            yield from (f"{name}:done",) * bool(job.done)
            yield from (f"{name}:record:{executor}" for executor in job.records)
            yield from (f"{name}:claims:{executor}" for executor, claims in job.claims.items() if claims)
            yield from (f"{name}:fan-in:{child}" for child in job.fan_ins)
        for shard in self.places():
            yield from (f"object:{name}" for name in shard.objects)
            yield from (f"slices:{name}" for name in shard.slices)
            yield from (f"segment:{job}:{number}" for job, number in shard.segments)

    def place(self, ref: Ref) -> Shard:
        """Return where a value is."""
        return self.overflow if ref.overflowed else self.shards[ref.shard]

    def places(self) -> list[Shard]:
        """Return all that keep bulk data: the shards, and what is beside them."""
        return [*self.shards, self.overflow]

    def room(self, ref: Ref) -> int:
        """Return how many bytes there is room for where a value is to be."""
        limit = self.overflow_bytes_max if ref.overflowed else self.shard_bytes_max
        return limit - self.place(ref).nbytes

    def job(self, name: str) -> JobState:
        """Return a job's metadata; of an unknown one, nothing that stays."""
        return self.jobs.get(name) or JobState()

    # -- faults ---------------------------------------------------------------------------------

    def forget(self) -> None:
        """The metadata server dies, and is there again, empty. Values and segments are elsewhere."""
        self.process += 1
        self.clear()

    def clear(self) -> None:
        """Remove all metadata."""
        for each in (self.jobs, self.leases, self.events, self.notes, self.lingering, self.mail):
            each.clear()
        self.taken.clear()
        self.taken_back.clear()
        self.ceiling, self.generation, self.mark = None, 0, (0, 0)

    def save(self) -> dict[str, Any]:
        """Return what the metadata server knows now, as another one has it that follows this one."""
        return copy.deepcopy({name: getattr(self, name) for name in _METADATA})

    def fail_over(self, saved: dict[str, Any]) -> None:
        """The metadata server dies, and another takes its place that has heard nothing since `save`."""
        self.process += 1
        for name, value in copy.deepcopy(saved).items():
            setattr(self, name, value)

    def lose(self, shard: int, names: Sequence[str] | None = None) -> int:
        """A shard (-1: the overflow) loses values: some, or all that it has with its segments. Return how many."""
        server = self.places()[shard]
        lost = list(server.objects) if names is None else [name for name in names if name in server.objects]
        for name in lost:
            server.nbytes -= self.measure(server.objects.pop(name))
        if names is None:
            server.segments.clear()
            server.slices.clear()
        return len(lost)
