"""Turn a planned graph into what executors read: stored constants and sealed segments."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dask_serverless.bodies import segment_bodies
from dask_serverless.constant_pool import ConstantPool
from dask_serverless.dask_graph import JobPlan
from dask_serverless.first_assignments import first_assignments
from dask_serverless.literals import Literals
from dask_serverless.plan.partition import edges
from dask_serverless.plan.prefixes import Prefixes
from dask_serverless.plan.sharing import Sharing
from dask_serverless.prefixes import prefixes_of
from lambda_worker.compression import Compressor
from lambda_worker.core.errors import ServerlessError, StoreFull, UnpicklableTask, ValueTooLarge
from lambda_worker.core.schedule import BODIES_TASKS, SEGMENT_TASKS, Assignment, Segment, seal_segment
from lambda_worker.core.wire import Location, Ref
from lambda_worker.parcels import payload_room
from lambda_worker.ports import JobStore

#: Segments of jobs up to this size are kept to travel inside invocations; larger jobs are stored in parcels.
KEEP_SEGMENTS_BYTES = 2**20


@dataclass(slots=True)
class Preparation:
    """A job ready to run. `segments` are sealed, by number; those of a large job are let go once
    they are stored. Its key `prefixes` are numbered."""

    job: str
    plan: JobPlan
    segments: dict[int, bytes]
    prefixes: Prefixes

    def assignments(
        self,
        starts: Sequence[tuple[int, Location | None]],
        sharing: Sharing,
        ceiling: int,
        live: int,
        payload_bytes_max: int,
        serial: int,
        scheduler: str = "",
        outfit: tuple[int, Ref] | None = None,
        learned: Mapping[int, Sequence[float]] = {},  # noqa: B006
        near: Mapping[int, str] = {},  # noqa: B006
    ) -> list[Assignment]:
        """Group start tasks into assignments for new executors.

        Segments travel inside an assignment when all that it hints at fits into the payload.

        Parameters
        ----------
        starts
            Start tasks, with the value of those that are made elsewhere.
        sharing
            How many executors to use, at most, and how evenly.
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
        learned
            Seconds and bytes to be expected of a task, by prefix number.
        near
            In which sandbox the inputs of start tasks are, if that lingers.
        """
        space = payload_room(payload_bytes_max)
        made = first_assignments(
            self.job, self.plan.graph, self.segments, starts, sharing, ceiling, live, space, serial, near
        )
        return [replace(each, scheduler=scheduler, outfit=outfit, learned=learned) for each in made]


def prepare(job: str, plan: JobPlan, secret: bytes, pool: ConstantPool | None = None) -> Preparation:
    """Store a plan's constants and pickle its segments. Takes time if there is a pool: not for an event loop.

    Parameters
    ----------
    pool
        Where constants go. None for a small plan that has none: nothing is stored.

    Raises
    ------
    UnpicklableTask, ValueTooLarge, StoreFull
        Naming the task or the data.
    """
    prefixes = prefixes_of(plan)
    segments = dict(_sealed_segments(job, plan, prefixes, secret, pool))
    return Preparation(job, replace(plan, bodies=(), constants={}), segments, prefixes)


def prepare_and_open(
    job: str, plan: JobPlan, secret: bytes, store: JobStore, pool: ConstantPool, compressor: Compressor
) -> Preparation:
    """Do as `prepare`, and open the job: its segments are stored as they are made, so that those of a
    large job are never all in memory.

    Raises
    ------
    UnpicklableTask, ValueTooLarge, StoreFull, StoreUnavailable
    """
    prefixes = prefixes_of(plan)
    parcel: dict[int, bytes] = {}
    nbytes = 0
    kept = True  # all segments are in this one parcel
    for number, segment in _sealed_segments(job, plan, prefixes, secret, pool, compressor):
        parcel[number] = segment
        nbytes += len(segment)
        if nbytes > KEEP_SEGMENTS_BYTES:
            store.open_job(job, parcel)
            parcel, nbytes, kept = {}, 0, False
    store.open_job(job, parcel)
    return Preparation(job, replace(plan, bodies=(), constants={}), parcel if kept else {}, prefixes)


def _sealed_segments(
    job: str,
    plan: JobPlan,
    prefixes: Prefixes,
    secret: bytes,
    pool: ConstantPool | None,
    compressor: Compressor | None = None,
) -> Iterator[tuple[int, bytes]]:
    count = len(plan.graph)
    constants: dict[Any, Sequence[Any]] = {}
    literals = None
    if pool is not None:
        constants = {name: _keep(job, name, value, pool) for name, value in plan.constants.items()}
        literals = Literals(-(-count // BODIES_TASKS), functools.partial(pool.keep, job))
    for number, each in enumerate(edges(plan.graph)):
        if prefixes.runs[number]:
            each = replace(each, prefixes=prefixes.runs[number])
        last = min(each.first + SEGMENT_TASKS, count)
        bodies = [
            segment_bodies(plan, first, min(first + BODIES_TASKS, last), constants, literals)
            for first in range(each.first, last, BODIES_TASKS)
        ]
        if compressor is not None:
            bodies = [compressor.shrink_blob(blob) for blob in bodies]
        yield number, seal_segment(secret, job, number, Segment(each.to_bytes(), bodies))


def _keep(job: str, name: Any, value: Any, pool: ConstantPool) -> Ref:
    try:
        return pool.keep(job, value)
    except (ValueTooLarge, StoreFull) as error:
        raise type(error)(f"the data {name!r} in the graph: {error}") from None
    except ServerlessError:
        raise
    except Exception as error:
        raise UnpicklableTask(
            f"the data {name!r} ({type(value).__name__}) in the graph cannot be pickled: {error}"
        ) from error
