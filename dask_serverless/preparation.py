"""Turn a planned graph into what executors read: stored constants and sealed segments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dask_serverless.bodies import segment_bodies
from dask_serverless.dask_graph import JobPlan
from dask_serverless.plan.partition import assign_starts, edges
from lambda_worker.core.errors import StoreFull, UnpicklableTask, ValueTooLarge
from lambda_worker.core.schedule import BODIES_TASKS, SEGMENT_TASKS, Assignment, Segment, seal_segment
from lambda_worker.core.wire import Location, Ref, seal_frames
from lambda_worker.parcels import payload_room
from lambda_worker.ports import JobStore
from lambda_worker.values import value_to_frames

#: Segments of jobs up to this size are kept to travel inside invocations; larger jobs are stored in parcels.
KEEP_SEGMENTS_BYTES = 2**20


@dataclass(slots=True)
class Preparation:
    """A job ready to run. `segments` are sealed, by number; those of a large job are let go once
    they are stored."""

    job: str
    plan: JobPlan
    segments: dict[int, bytes]

    def assignments(
        self,
        starts: Sequence[tuple[int, Location | None]],
        groups: int,
        ceiling: int,
        live: int,
        payload_bytes_max: int,
        serial: int,
        scheduler: str = "",
        outfit: tuple[int, Ref] | None = None,
    ) -> list[Assignment]:
        """Group start tasks into assignments for new executors.

        Segments travel inside an assignment when all that it hints at fits into the payload.

        Parameters
        ----------
        starts
            Start tasks, with the value of those that are made elsewhere.
        groups
            How many executors to use, at most.
        ceiling
            How many may live at once in the whole cluster.
        live
            How many live already.
        payload_bytes_max
            Size of an invocation, at most.
        serial
            Makes the executors' names unique within the job.
        scheduler
            Address of the Dask scheduler, for tasks that are clients themselves ("": they cannot be).
        outfit
            What executors shall wear.
        """
        values = dict(starts)
        found = [
            (function_class, group)
            for function_class, tasks in _by_class(self.plan.graph.classes, values)
            for group in assign_starts(self.plan.graph, max(1, groups * len(tasks) // len(values)), tasks)
        ]
        made = []
        room = max(0, ceiling - live - len(found))
        for number, (function_class, group) in enumerate(found):
            given = {task: location for task in group.starts if (location := values[task]) is not None}
            inline = {n: self.segments[n] for n in group.segments if n in self.segments}
            space = payload_room(payload_bytes_max) - sum(
                len(each) for each in given.values() if isinstance(each, bytes)
            )
            if len(inline) < len(group.segments) or sum(map(len, inline.values())) > space:
                inline = {}
            name = f"{serial}-{number}"
            assignment = Assignment(self.job, name, 1, group.starts, given, group.segments, inline, ceiling, room)
            assignment = replace(assignment, scheduler=scheduler, function_class=function_class, outfit=outfit)
            made.append(replace(assignment, home=group.home) if group.home is not None else assignment)
        return made


def _by_class(classes: Mapping[int, int], starts: Iterable[int]) -> list[tuple[int, list[int]]]:
    """Part start tasks by function class, the largest first: what needs more most likely takes longer."""
    found: dict[int, list[int]] = {}
    for start in sorted(starts):
        found.setdefault(classes.get(start, 0), []).append(start)
    return sorted(found.items(), reverse=True)


def prepare(job: str, plan: JobPlan, secret: bytes, store: JobStore) -> Preparation:
    """Store a plan's constants and pickle its segments. Takes time: not for an event loop.

    Raises
    ------
    UnpicklableTask, ValueTooLarge, StoreFull
        Naming the task or the data.
    """
    constants = _store_constants(job, plan, secret, store)
    segments = dict(_sealed_segments(job, plan, constants, secret))
    return Preparation(job, replace(plan, bodies=(), constants={}), segments)


def prepare_and_open(job: str, plan: JobPlan, secret: bytes, store: JobStore) -> Preparation:
    """Do as `prepare`, and open the job: its segments are stored as they are made, so that those of a
    large job are never all in memory.

    Raises
    ------
    UnpicklableTask, ValueTooLarge, StoreFull, StoreUnavailable
    """
    constants = _store_constants(job, plan, secret, store)
    parcel: dict[int, bytes] = {}
    nbytes = 0
    kept = True  # all segments are in this one parcel
    for number, segment in _sealed_segments(job, plan, constants, secret):
        parcel[number] = segment
        nbytes += len(segment)
        if nbytes > KEEP_SEGMENTS_BYTES:
            store.open_job(job, parcel)
            parcel, nbytes, kept = {}, 0, False
    store.open_job(job, parcel)
    return Preparation(job, replace(plan, bodies=(), constants={}), parcel if kept else {})


def _sealed_segments(
    job: str, plan: JobPlan, constants: Mapping[Any, Sequence[Any]], secret: bytes
) -> Iterator[tuple[int, bytes]]:
    count = len(plan.graph)
    for number, each in enumerate(edges(plan.graph)):
        last = min(each.first + SEGMENT_TASKS, count)
        bodies = [
            segment_bodies(plan, first, min(first + BODIES_TASKS, last), constants)
            for first in range(each.first, last, BODIES_TASKS)
        ]
        yield number, seal_segment(secret, job, number, Segment(each.to_bytes(), bodies))


def _store_constants(job: str, plan: JobPlan, secret: bytes, store: JobStore) -> dict[Any, Sequence[Any]]:
    constants: dict[Any, Sequence[Any]] = {}
    for number, (name, value) in enumerate(plan.constants.items()):
        stored_name = f"{job}/constant-{number}"
        try:
            frames = value_to_frames(value)
        except Exception as error:
            raise UnpicklableTask(
                f"the data {name!r} ({type(value).__name__}) in the graph cannot be pickled: {error}"
            ) from error
        try:
            constants[name] = store.put([(stored_name, seal_frames(secret, stored_name, frames))])[0]
        except (ValueTooLarge, StoreFull) as error:
            raise type(error)(f"the data {name!r} in the graph: {error}") from None
    return constants
