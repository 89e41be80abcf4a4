"""What can happen to jobs, and what the ledger asks the dispatcher to do. Pure data."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from dask_serverless.plan.graph import Graph
from lambda_worker.core.wire import Location, Ref

Key: TypeAlias = Hashable


@dataclass(frozen=True, slots=True)
class Result:
    """What an executor reports of a visible task."""

    task: int
    location: Location
    nbytes: int
    type: bytes
    typename: str
    started: float
    stopped: float


# -- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submitted:
    """A planned graph. `visible` and `externals` map keys to task numbers; `pointers` map an alias
    that was asked for to the external key it stands for. An `urgent` one waits for nobody's room. Of one
    that another proxy has begun, some starts were `given` to executors (with the values of those that are made
    elsewhere), and `executors` have a record."""

    job: str
    graph: Graph
    visible: Mapping[Key, int]
    externals: Mapping[Key, int]
    pointers: Mapping[Key, Key]
    urgent: bool = False
    given: Mapping[int, Location | None] = field(default_factory=dict)
    executors: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Admitted:
    """Executors were given starts; `refused` starts found no room below the ceiling, and others begin `later`, when
    there is room where their inputs are."""

    job: str
    executors: Sequence[str]
    refused: Sequence[tuple[int, Location | None]] = ()
    later: Sequence[tuple[int, Location | None]] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """Visible tasks have values."""

    job: str
    results: Sequence[Result]


@dataclass(frozen=True, slots=True)
class Erred:
    """A task raised, finally; `error` is encoded."""

    job: str
    task: int
    error: bytes


@dataclass(frozen=True, slots=True)
class Delegating:
    """An executor has handed work to new executors."""

    job: str
    executors: Sequence[str]


@dataclass(frozen=True, slots=True)
class Retired:
    """An executor ended well."""

    job: str
    executor: str


@dataclass(frozen=True, slots=True)
class Lost:
    """An executor died; `error` says why, encoded."""

    job: str
    executor: str
    error: bytes


@dataclass(frozen=True, slots=True)
class JobFailed:
    """Nothing of a job can go on; `error` is encoded."""

    job: str
    error: bytes


@dataclass(frozen=True, slots=True)
class Imported:
    """The value of a key that Dask workers or a client made is now in the storage tier."""

    key: Key
    location: Location


@dataclass(frozen=True, slots=True)
class Kept:
    """A key made elsewhere, for which nobody need have asked, has its value in the storage tier."""

    key: Key
    location: Location


@dataclass(frozen=True, slots=True)
class ImportFailed:
    """A key made elsewhere has no value to offer; `error` is encoded."""

    key: Key
    error: bytes


@dataclass(frozen=True, slots=True)
class Released:
    """The scheduler no longer holds a key."""

    key: Key


@dataclass(frozen=True, slots=True)
class Room:
    """There may be room for executors below the ceiling again."""


Event: TypeAlias = (
    Submitted
    | Admitted
    | Done
    | Erred
    | Delegating
    | Retired
    | Lost
    | JobFailed
    | Imported
    | Kept
    | ImportFailed
    | Released
    | Room
)

# -- instructions ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Launch:
    """Give these starts (with the values that are there already) to executors; answered by
    `Admitted`."""

    job: str
    starts: Sequence[tuple[int, Location | None]]


@dataclass(frozen=True, slots=True)
class Import:
    """Get the value of a key made elsewhere into the storage tier; answered by `Imported` or
    `ImportFailed`."""

    key: Key


@dataclass(frozen=True, slots=True)
class Finish:
    """Tell the scheduler that a key is there."""

    key: Key
    result: Result


@dataclass(frozen=True, slots=True)
class Fail:
    """Tell the scheduler that a key has erred."""

    key: Key
    error: bytes


@dataclass(frozen=True, slots=True)
class Free:
    """Remove stored values."""

    refs: Sequence[Ref]


@dataclass(frozen=True, slots=True)
class Close:
    """Fence a job's executors and remove what it left behind, except `keep`."""

    job: str
    keep: Sequence[Ref]


Instruction: TypeAlias = Launch | Import | Finish | Fail | Free | Close
