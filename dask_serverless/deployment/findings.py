"""What is wrong with a deployment, judged by what was found of it. Pure.

What was found is an `Inventory`: the stack, and every piece that carries the deployment's tags. What is wrong is a list
of `Finding`: each says what, whose fault it is and what to do. `condition_of` says in one word how it stands:

| the stack                               | pieces        | condition         |
|-----------------------------------------|---------------|-------------------|
| is another's                            |               | `ANOTHERS`        |
| is not there, or deleted                | none          | `NOTHING`         |
| is not there, or deleted                | some          | `HALF_DELETED`    |
| could not be deleted                    |               | `HALF_DELETED`    |
| is being changed                        |               | `IN_PROGRESS`     |
| could not be made, or changed           |               | `HALF_DEPLOYED`   |
| is complete                             | one is missing| `HALF_DEPLOYED`   |
| is complete                             | all are there | `COMPLETE`        |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from dask_serverless.deployment.manifest import (
    BUCKET,
    FAILURE_QUEUE,
    FUNCTION,
    LOG_GROUP,
    PIECE_TAG,
    SERVICE,
    Piece,
    belongs,
)

#: The stack is as it was asked to be; after the last two, as it was before.
SETTLED = frozenset({"CREATE_COMPLETE", "UPDATE_COMPLETE", "IMPORT_COMPLETE"})
UNDONE = frozenset({"UPDATE_ROLLBACK_COMPLETE", "IMPORT_ROLLBACK_COMPLETE"})
DELETED = "DELETE_COMPLETE"
DELETE_FAILED = "DELETE_FAILED"
#: Looks as if something went on, but is a stack that has never been begun: a change set that nobody has executed.
NEVER_BEGUN = "REVIEW_IN_PROGRESS"
#: With these something begins that is told of in a stack's events; what failed before is an old story.
BEGINNINGS = frozenset(
    {"CREATE_IN_PROGRESS", "UPDATE_IN_PROGRESS", "DELETE_IN_PROGRESS", "IMPORT_IN_PROGRESS", NEVER_BEGUN}
)


class Condition(StrEnum):
    """How a deployment stands, in one word."""

    NOTHING = "nothing"
    COMPLETE = "complete"
    HALF_DEPLOYED = "half-deployed"
    HALF_DELETED = "half-deleted"
    IN_PROGRESS = "in progress"
    ANOTHERS = "another's"


class Fault(StrEnum):
    """Whose fault something is."""

    AWS = "AWS, or what it lets this account do"
    SOMEBODY = "somebody who changed the deployment by other means"
    NOBODY = "nobody"
    OURS = "dask-serverless (please report it)"


@dataclass(frozen=True, slots=True)
class Event:
    """What a stack tells of itself and its resources."""

    logical_id: str
    type: str
    status: str
    reason: str = ""
    is_stack: bool = False


@dataclass(frozen=True, slots=True)
class Stack:
    """A CloudFormation stack."""

    id: str
    status: str
    reason: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    failures: tuple[Event, ...] = ()
    protected: bool = False  # against being deleted


@dataclass(frozen=True, slots=True)
class Found:
    """Something that is there, and the facts of it that are judged here (see `flaws`)."""

    type: str
    id: str
    tags: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def piece(self) -> str:
        """Which piece it is, or what it is called, if its tag says nothing."""
        return self.tags.get(PIECE_TAG, self.id)

    def __str__(self) -> str:
        return f"{self.piece} ({self.type} {self.id})"


@dataclass(frozen=True, slots=True)
class Inventory:
    """What was found of a deployment: its stack, its pieces, and what carries its tags but is of no kind we know."""

    name: str
    stack: Stack | None = None
    found: tuple[Found, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong: with which piece, what, whose fault, and what to do."""

    piece: str
    what: str
    fault: Fault
    remedy: str

    def __str__(self) -> str:
        return f"{self.piece}: {self.what}\n    whose fault: {self.fault}\n    what to do: {self.remedy}"


def latest_failures(events: Iterable[Event]) -> tuple[Event, ...]:
    """Return what failed the last time something was done with a stack, first things first.

    Parameters
    ----------
    events
        Newest first, as AWS tells them.

    Examples
    --------
    >>> new, begun = Event("Queue", "Q", "CREATE_FAILED", "limit"), Event("s", "S", "CREATE_IN_PROGRESS", "", True)
    >>> latest_failures([Event("Key", "K", "CREATE_FAILED", "Resource creation cancelled"), new, begun, new]) == (new,)
    True
    """
    failed: list[Event] = []
    for each in events:
        if each.is_stack and each.status in BEGINNINGS:
            break
        # Who was only cancelled has failed because another one has.
        if not each.is_stack and each.status.endswith("_FAILED") and "cancelled" not in each.reason:
            failed.append(each)
    return tuple(reversed(failed))


def condition_of(inventory: Inventory, pieces: Sequence[Piece]) -> Condition:
    """Say in one word how a deployment stands."""
    stack = inventory.stack
    if stack is None or stack.status == DELETED:
        return Condition.HALF_DELETED if inventory.found else Condition.NOTHING
    if not belongs(stack.tags, inventory.name):
        return Condition.ANOTHERS
    if stack.status == DELETE_FAILED:
        return Condition.HALF_DELETED
    if stack.status.endswith("_IN_PROGRESS") and stack.status != NEVER_BEGUN:
        return Condition.IN_PROGRESS
    if stack.status in SETTLED | UNDONE and not missing(inventory, pieces):
        return Condition.COMPLETE
    return Condition.HALF_DEPLOYED


def missing(inventory: Inventory, pieces: Iterable[Piece]) -> list[Piece]:
    """Return the pieces that are not there."""
    name = inventory.name
    there = {(each.type, each.tags.get(PIECE_TAG)) for each in inventory.found if belongs(each.tags, name)}
    return [piece for piece in pieces if (piece.type, piece.name) not in there]


def examine(inventory: Inventory, pieces: Sequence[Piece]) -> list[Finding]:
    """Say what is wrong with a deployment; nothing is, if it is complete and as it should be."""
    return list(_examine(inventory, pieces, condition_of(inventory, pieces)))


def _examine(inventory: Inventory, pieces: Sequence[Piece], condition: Condition) -> Iterator[Finding]:
    name, stack = inventory.name, inventory.stack
    again = f"`dask serverless destroy --name {name}`, then deploy again"
    if condition is Condition.NOTHING:
        what = "nothing is there: neither a stack of this name nor anything with its tags"
        yield Finding(name, what, Fault.NOBODY, "deploy it; or was another region, account or name meant?")
        return
    if stack is None or stack.status == DELETED:
        remedy = f"`dask serverless destroy --name {name}` removes it"
        for each in inventory.found:
            yield Finding(each.piece, f"{each.type} {each.id} was left behind: its stack is gone", Fault.NOBODY, remedy)
        return
    told = f"the stack is {stack.status}" + (f": {stack.reason}" if stack.reason else "")
    if condition is Condition.ANOTHERS:
        remedy = "choose another name: nothing of it is touched here"
        yield Finding(name, "a stack of this name is there, without the tags of a deployment", Fault.SOMEBODY, remedy)
        return
    if condition is Condition.IN_PROGRESS:
        yield Finding(name, told, Fault.NOBODY, "wait until that has ended, then ask again")
        return
    for event in stack.failures:
        verb = "removed" if event.status == DELETE_FAILED else "made, or changed"
        what = f"{event.type} could not be {verb}: {event.reason or 'AWS gives no reason'}"
        yield Finding(event.logical_id, what, Fault.AWS, f"remove the cause, then {again}")
    if condition is Condition.HALF_DELETED:
        yield Finding(name, told, Fault.AWS, f"`dask serverless destroy --name {name}` goes on where that has stopped")
        return
    absent = missing(inventory, pieces)
    if stack.status in UNDONE:
        what = f"{told}; the last change was undone, and all is as it was before"
        yield Finding(name, what, Fault.AWS, "remove the cause, then deploy again")
    elif stack.status not in SETTLED:
        what = told + (f"; not there: {', '.join(piece.name for piece in absent)}" if absent else "")
        yield Finding(name, what, Fault.AWS, again)
        absent = []  # they have not been made, for a reason that has been told
    for piece in absent:
        what = f"{piece.type} is missing, although the stack is complete; without it {piece.without}"
        yield Finding(piece.name, what, Fault.SOMEBODY, again)
    queues = {each.facts.get("arn") for each in inventory.found if each.tags.get(PIECE_TAG) == FAILURE_QUEUE}
    for each in inventory.found:
        for what, fault in flaws(each, queues):
            yield Finding(each.piece, f"{each.type} {each.id} {what}", fault, "put it right, or deploy again")


def flaws(found: Found, queues: Iterable[object] = ()) -> Iterator[tuple[str, Fault]]:
    """Say what is wrong with something that is there.

    Parameters
    ----------
    found
        What is there.
    queues
        The failure queue, by its ARN; nothing, if that is missing.

    Examples
    --------
    >>> list(flaws(Found(LOG_GROUP, "log", facts={"retention_days": None})))[0][0]
    'keeps everything for ever, which is paid for'
    """
    facts = found.facts
    if found.type == FUNCTION:
        if facts.get("state") == "Failed":
            yield f"cannot run: {facts.get('reason') or 'AWS gives no reason'}", Fault.AWS
        if facts.get("retries") != 0:  # None: nobody has said so, and then it is 2
            yield "is tried again by Lambda when it fails: attempts are counted here, so that must be 0", Fault.SOMEBODY
        expected = set(queues)
        if facts.get("destination") is None or (expected and facts["destination"] not in expected):
            yield "does not tell the failure queue of its failures: deaths are heard of late", Fault.SOMEBODY
    if found.type == LOG_GROUP and not facts.get("retention_days"):
        yield "keeps everything for ever, which is paid for", Fault.SOMEBODY
    if found.type == BUCKET and not facts.get("expires"):
        yield "keeps everything for ever, which is paid for: its objects should expire", Fault.SOMEBODY
    if found.type == SERVICE:
        running, desired = facts.get("running"), facts.get("desired")
        if isinstance(running, int) and isinstance(desired, int) and running < desired:
            yield f"has {running} of {desired} servers that should run", Fault.AWS
