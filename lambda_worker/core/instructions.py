"""What an `Executor` asks its driver to do. The driver does it and answers with an event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from lambda_worker.core.journal import Report
from lambda_worker.core.observed import Sums
from lambda_worker.core.schedule import Assignment
from lambda_worker.core.wire import Location


@dataclass(frozen=True, slots=True)
class LoadSegments:
    """Read segments; answered by `SegmentsLoaded`."""

    segments: Sequence[int]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Read the values a task needs from elsewhere; answered by `InputsFetched` or `InputsLost`."""

    task: int
    values: Mapping[int, Location]


@dataclass(frozen=True, slots=True)
class Locate:
    """Ask the store where the inputs of a fan-in are that is to be run again; answered by `Located`."""

    task: int


@dataclass(frozen=True, slots=True)
class Run:
    """Run a task now, in line; answered by `TaskDone` or `TaskErred` (or by `Irreplaceable`)."""

    task: int
    parents: Sequence[int]


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop the values of tasks, and the bodies of whole segments: nobody here needs them any more."""

    tasks: Sequence[int]
    segments: Sequence[int] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Successor:
    """Who goes on with the tasks that do not fit into an executor that has nothing else to do.

    As with `Delegate`, the driver adds the values: `inputs` names the parents of each start.
    """

    assignment: Assignment
    inputs: Mapping[int, Sequence[int]]


@dataclass(frozen=True, slots=True)
class Arrive:
    """Publish: store what is too large to travel, then tell the fan-ins and the proxy.

    `arrivals` are (child, parent, in-degree of the child); `results` and `errors` are visible
    tasks and erred tasks. An executor that retires may leave its place to a `successor`, in the same
    step. With `asks` (edges as in `arrivals`) nothing is stored: each child is won if all its other edges
    are there, and else nobody hears of them. Answered by `Answered`. What was `observed` and decided
    (`journal`) since the last report goes along.
    """

    arrivals: Sequence[tuple[int, int, int]]
    results: Sequence[int]
    errors: Sequence[int]
    retire: bool
    successor: Successor | None = None
    asks: Sequence[tuple[int, int, int]] = ()
    observed: Mapping[int, Sums] = field(default_factory=dict, repr=False, compare=False)
    journal: Report = field(default=({}, []), repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Delegate:
    """Give shares of the ready tasks to new executors; answered by `Delegated`.

    Each assignment lacks the values its starts need: `inputs` names the parents whose values the
    driver must add (from what it holds) before it creates the record and invokes.
    """

    assignments: Sequence[Assignment]
    inputs: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class WakeAfter:
    """Answer with `Woken` once this much time has passed, even while a task runs."""

    seconds: float


@dataclass(frozen=True, slots=True)
class GivePlace:
    """Everything here waits for a while: let others have this executor's place below the ceiling."""


@dataclass(frozen=True, slots=True)
class TakePlace:
    """Work goes on here."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing is left to do for this assignment (or it must stop: `reason`)."""

    reason: str = ""


Instruction: TypeAlias = (
    LoadSegments | Fetch | Locate | Run | Forget | Arrive | Delegate | WakeAfter | GivePlace | TakePlace | Finish
)
