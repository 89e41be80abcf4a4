"""The store's vocabulary, shared by the executor that hears it and the port that says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from lambda_worker.core.wire import Location


class Standing(Enum):
    """Whether an attempt may go on."""

    OK = "ok"
    FENCED = "fenced"  # a newer attempt exists, or the record is gone: write nothing more
    CANCELLED = "cancelled"  # the job is cancelled: stop


class Verdict(Enum):
    """What a fan-in said to an arrival."""

    WAIT = "wait"  # other parents are still missing: forget the child
    YOURS = "yours"  # every parent has arrived and the child is this executor's to run
    TAKEN = "taken"  # another executor runs it
    DONE = "done"  # it has been run


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer for one child of an `arrive`; `values` (all parents) only with `Verdict.YOURS`."""

    child: int
    verdict: Verdict
    values: Mapping[int, Location] = field(default_factory=dict)
