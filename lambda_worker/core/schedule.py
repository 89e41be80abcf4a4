"""Static schedules as data: what an executor must know of a graph to walk it alone.

A planner numbers the tasks of a job ``0 .. n-1`` so that every parent has a smaller number than its
children, and cuts them into *segments* of `SEGMENT_TASKS` consecutive numbers. A segment carries
the edges of its tasks (here) beside their pickled bodies (opaque here). An executor is given an
`Assignment`: the tasks it starts from, the values they need, and which segments to read first;
small segments travel inside it.

Source: static schedules by depth-first search, Wukong (SoCC'20) section 3.2. Unlike there, a
schedule is not copied per start task (which is quadratic for a shared tail): start tasks of one
executor share segments, and a segment beyond a fan-in is read by whoever wins that fan-in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lambda_worker.core.wire import Location, Ref, location_from_wire, location_to_wire, pack, seal, unpack, unseal

SEGMENT_TASKS = 256

#: Bodies of so many consecutive tasks of a segment are in one pickle. What tasks share is written once in each of them,
#: and an executor with a few tasks of a segment, one of a thousand, unpickles little more than these.
BODIES_TASKS = 32

#: Segments named in an assignment as worth reading at once, at most.
HINT_SEGMENTS_MAX = 64

#: Key prefixes of a job that are told apart, at most.
PREFIXES_MAX = 64


def segment_of(task: int) -> int:
    """Return the number of the segment that holds a task."""
    return task // SEGMENT_TASKS


@dataclass(frozen=True, slots=True)
class Edges:
    """The edges of the tasks of one segment.

    Parameters
    ----------
    first
        Number of the first task; the others follow without a gap.
    parents, children
        For each task in order, the numbers of its distinct parents (in the order in which the
        task's body expects their values) and of its distinct children.
    fan_ins
        For each child of any of these tasks that has more than one parent: how many.
    visible
        Tasks whose value somebody outside the job asked for.
    retries
        How often a task may be run again after its own exception, where that is not zero.
    classes
        For each of these tasks and of their children: the number of the function class it needs, where
        that is not the default one. Classes ascend: who has a larger one runs tasks of a smaller.
    prefixes
        The numbers of the tasks' key prefixes, in order, each followed by how many tasks have it; empty: all
        have number 0. They are numbers of the job, and below `PREFIXES_MAX`.
    """

    first: int
    parents: Sequence[Sequence[int]]
    children: Sequence[Sequence[int]]
    fan_ins: Mapping[int, int] = field(default_factory=dict)
    visible: frozenset[int] = frozenset()
    retries: Mapping[int, int] = field(default_factory=dict)
    classes: Mapping[int, int] = field(default_factory=dict)
    prefixes: Sequence[int] = ()

    def to_bytes(self) -> bytes:
        """Encode."""
        fields = [self.first, self.parents, self.children, self.fan_ins, sorted(self.visible), self.retries]
        if self.classes or self.prefixes:  # most jobs have only the default class, and small ones one prefix
            fields += [self.classes, self.prefixes] if self.prefixes else [self.classes]
        return pack(fields)

    @classmethod
    def from_bytes(cls, blob: bytes) -> Edges:
        """Undo `to_bytes`."""
        first, parents, children, fan_ins, visible, retries, *seldom = unpack(blob)
        return cls(first, parents, children, fan_ins, frozenset(visible), retries, *seldom)


@dataclass(frozen=True, slots=True)
class Segment:
    """One stored piece of a job's graph: encoded `Edges`, and pickles of the bodies of `BODIES_TASKS` tasks each.

    A body is a call or a task. A call is ``(key, function, arguments, places, keywords)``: `places` are pairs of
    the index of an argument and the index of the parent (aligned with ``Edges.parents``) whose value it
    is; None when the arguments are all parents' values in order. A task is ``(task, names, constants)``: a callable
    that takes a mapping, the names under which it expects its parents' values (aligned likewise), and the stored
    constants it needs, as a mapping from name to `Ref` fields, or None.
    """

    edges: bytes
    bodies: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one executor is given: the content of an executor record and of an invocation.

    Parameters
    ----------
    job, executor, attempt
        Who runs. The attempt is the fencing epoch: an older one is refused by the store.
    starts
        Tasks to begin with. One that is itself in `given` is already done.
    given
        Values that came from elsewhere, by task number.
    hint
        Segments worth reading at once.
    segments
        Segments that travel inside the invocation, sealed, by number.
    ceiling
        Live executors in the whole cluster, at most, when this was assigned.
    room
        How many more executors could have been started when this was assigned.
    scheduler
        Address of the Dask scheduler, for tasks that are clients themselves ("": they cannot be).
    claims
        Children that an earlier attempt was told are its own, each with the values of all its parents.
    without
        Tasks that are not to be run here, although they follow from the starts: an earlier attempt gave
        them away, or they are blamed for the end of executors.
    redo
        Whether all starts are to be run, although somebody may have run them before: then the value of one may
        be in `given`, for another start that needs it.
    patience
        Seconds after which the executor leaves what is left to a successor (0: when its time is up). What it
        has done is safe then; so where executors die often, little is lost with each.
    stored
        Where the whole of this assignment is, when it is too large for an invocation.
    function_class
        Number of the function class that runs this (0: the default one).
    outfit
        Version of what the executor shall wear, and where it is (see `lambda_worker.core.outfit`).
    home
        Ascending numbers ``[first, end, first, end, ...]``. Fan-ins ``first <= task < end`` at which this executor
        meets others had better run here: large values for them are held back (see `lambda_worker.core.held`).
    learned
        Seconds and bytes to be expected of a task, by number of its key prefix, as far as they are known.
    settle
        Seconds in which all who begin together with this one will have begun, as was learned from earlier jobs.
    """

    job: str
    executor: str
    attempt: int
    starts: Sequence[int]
    given: Mapping[int, Location] = field(default_factory=dict)
    hint: Sequence[int] = ()
    segments: Mapping[int, bytes] = field(default_factory=dict)
    ceiling: int = 1
    room: int = 0
    scheduler: str = ""
    claims: Mapping[int, Mapping[int, Location]] = field(default_factory=dict)
    without: Sequence[int] = ()
    redo: bool = False
    patience: float = 0.0
    stored: Ref | None = None
    function_class: int = 0
    outfit: tuple[int, Ref] | None = None
    home: Sequence[int] = ()
    learned: Mapping[int, Sequence[float]] = field(default_factory=dict)
    settle: float = 0.0

    @property
    def located(self) -> dict[int, Location]:
        """Where the values are that came with this, by task number: those of starts and those of claims.

        Examples
        --------
        >>> Assignment("job", "e", 2, [0], given={0: b"x"}, claims={7: {3: b"y", 4: b"z"}}).located
        {3: b'y', 4: b'z', 0: b'x'}
        """
        found: dict[int, Location] = {}
        for values in self.claims.values():
            found.update(values)
        return {**found, **self.given}

    def to_bytes(self) -> bytes:
        """Encode."""
        given = _values_to_wire(self.given)
        fields: list[Any] = [self.job, self.executor, self.attempt, self.starts, given, self.hint]
        fields += [self.segments, self.ceiling, self.room, self.scheduler]
        seldom: dict[str, Any] = {}  # most assignments have none of these
        if self.claims:
            seldom["claims"] = {child: _values_to_wire(values) for child, values in self.claims.items()}
        if self.without:
            seldom["without"] = self.without
        if self.redo:
            seldom["redo"] = True
        if self.patience:
            seldom["patience"] = self.patience
        if self.stored is not None:
            seldom["stored"] = list(self.stored)
        if self.function_class:
            seldom["class"] = self.function_class
        if self.outfit is not None:
            seldom["outfit"] = [self.outfit[0], *self.outfit[1]]
        if self.home:
            seldom["home"] = self.home
        if self.learned:
            seldom["learned"] = self.learned
        if self.settle:
            seldom["settle"] = self.settle
        return pack([*fields, seldom] if seldom else fields)

    @classmethod
    def from_bytes(cls, blob: bytes | memoryview) -> Assignment:
        """Undo `to_bytes`."""
        job, executor, attempt, starts, given, hint, segments, ceiling, room, scheduler, *more = unpack(blob)
        seldom: dict[str, Any] = more[0] if more else {}
        return cls(
            job,
            executor,
            attempt,
            starts,
            _values_from_wire(given),
            hint,
            segments,
            ceiling,
            room,
            scheduler,
            claims={child: _values_from_wire(values) for child, values in seldom.get("claims", {}).items()},
            without=tuple(seldom.get("without", ())),
            redo=seldom.get("redo", False),
            patience=seldom.get("patience", 0.0),
            stored=Ref(*seldom["stored"]) if "stored" in seldom else None,
            function_class=seldom.get("class", 0),
            outfit=(seldom["outfit"][0], Ref(*seldom["outfit"][1:])) if "outfit" in seldom else None,
            home=tuple(seldom.get("home", ())),
            learned=seldom.get("learned", {}),
            settle=seldom.get("settle", 0.0),
        )


def _values_to_wire(values: Mapping[int, Location]) -> dict[int, Any]:
    return {task: location_to_wire(location) for task, location in values.items()}


def _values_from_wire(values: Mapping[int, Any]) -> dict[int, Location]:
    return {task: location_from_wire(item) for task, item in values.items()}


def _segment_name(job: str, number: int) -> str:
    return f"{job}/segment/{number}"


def seal_segment(secret: bytes, job: str, number: int, segment: Segment) -> bytes:
    """Encode a segment for the store or an invocation, bound to its job and number."""
    return seal(secret, _segment_name(job, number), pack([segment.edges, segment.bodies]))


def open_segment(secret: bytes, job: str, number: int, blob: bytes) -> tuple[Edges, list[bytes]]:
    """Undo `seal_segment`: decoded edges and still pickled bodies; raises `Tampered`.

    Examples
    --------
    >>> sealed = seal_segment(b"secret", "job", 0, Segment(Edges(0, [[]], [[]]).to_bytes(), [b"pickle"]))
    >>> open_segment(b"secret", "job", 0, sealed)[1]
    [b'pickle']
    """
    edges, bodies = unpack(unseal(secret, _segment_name(job, number), blob))
    return Edges.from_bytes(edges), bodies
