"""What the first executors of a job are given: start tasks in groups, each with the segments worth reading. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dask_serverless.plan.graph import Graph
from dask_serverless.plan.partition import assign_by_class
from dask_serverless.plan.sharing import Sharing
from lambda_worker.core.schedule import Assignment
from lambda_worker.core.wire import Location


def first_assignments(
    job: str,
    graph: Graph,
    segments: Mapping[int, bytes],
    starts: Sequence[tuple[int, Location | None]],
    sharing: Sharing,
    ceiling: int,
    live: int,
    payload_room: int,
    serial: int,
    near: Mapping[int, str] = {},  # noqa: B006
) -> list[Assignment]:
    """Group start tasks into assignments for new executors.

    Segments travel inside an assignment when all that it hints at fits into the payload.

    Parameters
    ----------
    job, graph, segments
        Whose start tasks these are; the segments that are at hand, sealed, by number.
    starts
        Start tasks, with the value of those that are made elsewhere.
    sharing
        How many executors to use, at most, and how evenly.
    ceiling, live
        How many may live at once in the whole cluster, and how many do already.
    payload_room
        How large what travels along may be.
    serial
        Makes the executors' names unique within the job.
    near
        In which sandbox the inputs of start tasks are, if that lingers.

    Examples
    --------
    >>> from dask_serverless.plan import Sharing, number
    >>> graph, _ = number({"a": (), "b": (), "c": ("a", "b")}, ["c"])
    >>> starts = [(0, None), (1, None)]
    >>> made = first_assignments("job", graph, {0: b"..."}, starts, Sharing(2), 8, 0, 1000, serial=1)
    >>> [(each.executor, each.starts, each.segments) for each in made]
    [('1-0', [0], {0: b'...'}), ('1-1', [1], {0: b'...'})]
    """
    values = dict(starts)
    found = assign_by_class(graph, sharing, values, near)
    made = []
    room = max(0, ceiling - live - len(found))
    for number, (function_class, group) in enumerate(found):
        given = {task: location for task in group.starts if (location := values[task]) is not None}
        inline = {n: segments[n] for n in group.segments if n in segments}
        space = payload_room - sum(len(each) for each in given.values() if isinstance(each, bytes))
        if len(inline) < len(group.segments) or sum(map(len, inline.values())) > space:
            inline = {}
        name, hint = f"{serial}-{number}", group.segments
        assignment = Assignment(job, name, 1, group.starts, given, hint, inline, ceiling, room)
        settle = sharing.lead * len(found)
        made.append(replace(assignment, function_class=function_class, home=group.home, settle=settle))
    return made
