"""Submitted graphs, kept while one of their visible keys may have to be computed again.

A graph of a million task objects takes gigabytes, the message that brought it a tenth of that. So a
large graph is kept as the message, and read once more in the rare case that a value was lost or
let go; a small one is kept as objects, which is faster to plan again.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distributed.protocol import Serialized, deserialize

from dask_serverless.collector import collector_paused
from dask_serverless.dask_graph import JobPlan, Materialised, materialise, plan_job, split
from dask_serverless.literals import EMBEDDED_BYTES_MAX
from dask_serverless.plan.classes import FunctionClass
from dask_serverless.shuffles import shuffle_internals

#: Expressions up to this size are unpickled and planned on the event loop, and kept as objects: a thread costs more.
INLINE_EXPR_BYTES = 20_000


@dataclass(slots=True, eq=False)
class Submission:
    """One submitted graph.

    Parameters
    ----------
    expr_ser
        The expression, as the client sent it.
    keys
        What was asked for.
    annotations
        The global ones.
    pinned
        The tasks that run on Dask workers, and why (known once it was surveyed).
    """

    expr_ser: Serialized
    keys: frozenset[Hashable]
    annotations: Mapping[str, Any]
    pinned: Mapping[Hashable, str] = field(default_factory=dict)
    _read: Materialised | None = None

    def __repr__(self) -> str:
        return f"<Submission: {len(self.keys)} keys, {self.nbytes:,} bytes>"

    @property
    def nbytes(self) -> int:
        """The size of the message."""
        return sum(memoryview(frame).nbytes for frame in self.expr_ser.frames)

    @property
    def small(self) -> bool:
        """Whether it is worked on in the event loop."""
        return self.nbytes <= INLINE_EXPR_BYTES

    @property
    def light(self) -> bool:
        """Whether nothing in it can be so large that it is stored by itself."""
        return self.nbytes <= EMBEDDED_BYTES_MAX

    def read(self) -> Materialised:
        """Turn the message into tasks; runs users' code, and takes time if the graph is not small.

        Raises
        ------
        RuntimeError
            When it cannot be unpickled here, with the advice that the stock scheduler gives.
        """
        if self._read is not None:
            return self._read
        try:
            with collector_paused():
                expr = deserialize(self.expr_ser.header, self.expr_ser.frames)
        except Exception as error:
            raise RuntimeError(
                textwrap.dedent("""\
                Error during deserialization of the task graph. This frequently
                occurs if the Scheduler and Client have different environments.
                For more information, see
                https://docs.dask.org/en/stable/deployment-considerations.html#consistent-software-environments
                """)
            ) from error
        read = materialise(expr, self.keys)
        if self.small:
            self._read = read
        return read


@dataclass(frozen=True, slots=True, eq=False)
class Replan:
    """Plans a job, and plans it again: holds on to the message only, not to a million tasks.

    Parameters
    ----------
    submission
        The graph.
    wanted
        The keys that executors shall compute.
    outside
        Those that are made elsewhere.
    classes
        Of functions.
    """

    submission: Submission
    wanted: Collection[Hashable]
    outside: Collection[Hashable]
    classes: Sequence[FunctionClass]

    def __call__(self) -> JobPlan:
        """Read the message once more, and plan what it brought."""
        return self.of(self.submission.read())

    def of(self, read: Materialised) -> JobPlan:
        """Plan what was read."""
        annotations = self.submission.annotations
        return plan_job(read.tasks, self.wanted, self.outside, read.annotations_by_type, annotations, self.classes)


@dataclass(frozen=True, slots=True)
class Survey:
    """What is to be known of a graph before it is planned.

    Parameters
    ----------
    materialised
        Its tasks.
    pinned
        Those that run on Dask workers, and why.
    seen
        Keys in it that the scheduler had heard of while it was looked at: candidates, no more.
    referred
        Keys that it refers to, but that are not in it: futures of other graphs.
    """

    materialised: Materialised
    pinned: Mapping[Hashable, str]
    seen: list[Any]
    referred: set[Any]


def survey(submission: Submission, actors: Any, has_heard_of: Callable[[Hashable], bool]) -> Survey:
    """Look at every task of a graph once; beside the event loop, unless the graph is small."""
    materialised = submission.read()
    tasks = materialised.tasks
    pinned = split(tasks, submission.keys, materialised.annotations_by_type, submission.annotations, actors)
    own = shuffle_internals(tasks) - pinned.keys()  # means something to one job only
    seen = [key for key in tasks if has_heard_of(key) and key not in own]
    present = tasks.keys()
    referred: set[Any] = set()
    for task in tasks.values():
        if not task.dependencies <= present:
            referred.update(task.dependencies - present)
    return Survey(materialised, pinned, seen, referred)
