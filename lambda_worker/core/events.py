"""What can happen to an `Executor`: frozen, one sentence each. Time arrives with the event."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from lambda_worker.core.schedule import Edges
from lambda_worker.core.verdicts import Claim, Standing
from lambda_worker.core.wire import Location


@dataclass(frozen=True, slots=True)
class Began:
    """The Lambda has started; `edges` are the segments that came with the assignment. Its time is over
    soon after `until`. Of values that are given, the sandbox may have some from jobs before: `cached` are their sizes.
    """

    now: float
    edges: Mapping[int, Edges]
    until: float = math.inf
    cached: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SegmentsLoaded:
    """Segments that were asked for have been read."""

    edges: Mapping[int, Edges]


@dataclass(frozen=True, slots=True)
class InputsFetched:
    """The values that a task needs from elsewhere are here; so many bytes of them were read in so many seconds.

    `sizes` are those of values that are larger here than where they were read: they were compressed.
    """

    task: int
    nbytes: int = 0
    seconds: float = 0.0
    sizes: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InputsLost:
    """Of the values that a task needs from elsewhere, some are lost; the others are here."""

    task: int
    lost: Sequence[int]
    nbytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class WritingsMissed:
    """A task could not be run: what the parents of its parents have written for it, beside their values, is lost.
    (Of a shuffle: the transfers, whose slices an unpack reads, are the barrier's parents.) The driver holds the error
    under the task's number."""

    task: int
    now: float


@dataclass(frozen=True, slots=True)
class Located:
    """Where the store says that the inputs of a fan-in are, as far as it has been told."""

    task: int
    values: Mapping[int, Location]


@dataclass(frozen=True, slots=True)
class Irreplaceable:
    """A task was to be run again, but its value was made outside the job: only the proxy can have it made again."""

    task: int


@dataclass(frozen=True, slots=True)
class TaskDone:
    """A task returned; its value, of about `nbytes`, is held by the driver under its number."""

    task: int
    seconds: float
    now: float
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class TaskErred:
    """A task raised; the driver holds its error under its number.

    `final` errors are not retried: they cannot get better (an input or a module is missing).
    """

    task: int
    now: float
    final: bool = False


@dataclass(frozen=True, slots=True)
class Rescheduled:
    """A task asked to be run again, later and perhaps elsewhere; this is not a try that failed."""

    task: int
    now: float


@dataclass(frozen=True, slots=True)
class Answered:
    """The store answered an `Arrive`; for it, so many bytes of values were written in so many seconds."""

    standing: Standing
    claims: Sequence[Claim]
    retired: bool
    now: float
    nbytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Delegated:
    """The store granted the first `granted` shares of the last `Delegate`."""

    granted: int
    now: float


@dataclass(frozen=True, slots=True)
class Woken:
    """The time asked for by a `WakeAfter` has passed."""

    now: float


@dataclass(frozen=True, slots=True)
class Seceded:
    """The running task will wait, perhaps for tasks that are ready behind it."""


@dataclass(frozen=True, slots=True)
class Halted:
    """A heartbeat learnt that this attempt must stop."""

    standing: Standing


Event: TypeAlias = (
    Began
    | SegmentsLoaded
    | InputsFetched
    | InputsLost
    | WritingsMissed
    | Located
    | Irreplaceable
    | TaskDone
    | TaskErred
    | Rescheduled
    | Answered
    | Delegated
    | Woken
    | Seceded
    | Halted
)
