"""What is done next to remove a deployment. Pure: an inventory in, a step out.

Nothing is remembered from one run to the next: each step follows from what is there. So whatever has stopped a removal,
the next one goes on from there, and one that finds nothing does nothing.

1. The stack is deleted by CloudFormation, with its buckets emptied before: one that is not empty is why that fails.
2. What that has left, or failed at, is removed here, if it carries the deployment's tags.
3. A stack that could not be deleted is deleted again once its pieces are gone: what is not there is no obstacle.
"""

from __future__ import annotations

from dataclasses import dataclass

from dask_serverless.deployment.findings import DELETE_FAILED, DELETED, NEVER_BEGUN, Found, Inventory, Stack
from dask_serverless.deployment.manifest import BUCKET, REMOVAL_ORDER, belongs

#: How often one run asks CloudFormation to delete a stack.
DELETIONS_MAX = 3


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing is left."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nothing more may be done, for this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """The stack is being deleted, or is about to be; or it is being changed, and cannot be deleted meanwhile."""

    stack: Stack


@dataclass(frozen=True, slots=True)
class DeleteStack:
    """Empty these buckets, and have CloudFormation delete the stack."""

    stack: Stack
    buckets: tuple[Found, ...]


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove these, in this order."""

    found: tuple[Found, ...]


Step = Done | Refuse | Wait | DeleteStack | Remove


def ours(inventory: Inventory) -> tuple[Found, ...]:
    """Return the pieces that may be removed, in the order in which they can be."""
    found = [each for each in inventory.found if belongs(each.tags, inventory.name)]
    return tuple(sorted(found, key=lambda each: (REMOVAL_ORDER.index(each.type), each.id)))


def next_step(inventory: Inventory, first: Inventory, deletions: int) -> Step:
    """Decide what to do next.

    Parameters
    ----------
    inventory
        What is there now.
    first
        What was there when the removal began.
    deletions
        How often CloudFormation was asked to delete the stack since.
    """
    stack = inventory.stack
    pieces = ours(inventory)
    if stack is None or stack.status == DELETED:
        return Remove(pieces) if pieces else Done()
    if not belongs(stack.tags, inventory.name):
        return Refuse(
            f"the stack {inventory.name!r} does not carry the tags of a deployment: it is another's, and stays"
        )
    if first.stack is None or stack.id != first.stack.id:
        return Refuse(f"another deployment {inventory.name!r} was begun meanwhile")
    if stack.protected:  # before its buckets are emptied
        return Refuse(f"the stack {stack.id} is protected against being deleted: lift that first, if you are sure")
    changing = stack.status.endswith("_IN_PROGRESS") and stack.status not in (NEVER_BEGUN, "CREATE_IN_PROGRESS")
    if changing or (deletions and stack.status != DELETE_FAILED):
        return Wait(stack)
    if deletions:
        if pieces:
            return Remove(pieces)
        if deletions >= DELETIONS_MAX:
            reasons = [f"{event.logical_id}: {event.reason}" for event in stack.failures] or [stack.reason]
            return Refuse(f"CloudFormation could not delete the stack, {deletions} times: {'; '.join(reasons)}")
    return DeleteStack(stack, tuple(each for each in pieces if each.type == BUCKET))
