"""Removes a deployment, step by step (`steps`): looks what is there, does what follows, and looks again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from dask_serverless.deployment.account import Account, Busy
from dask_serverless.deployment.findings import Found, Inventory, Stack
from dask_serverless.deployment.steps import DeleteStack, Done, Refuse, Remove, Wait, next_step, ours
from lambda_worker.core.errors import DeploymentRefused, RemovalUnfinished

#: What takes longest are the network interfaces of functions, which Lambda gives back when it likes.
SECONDS_MAX = 3600.0
PAUSE_SECONDS = 5.0


async def planned(account: Account) -> tuple[list[str], tuple[str, ...]]:
    """Say what is there to be removed, and what is not known here, and remove nothing."""
    inventory = await account.inventory()
    if isinstance(step := next_step(inventory, inventory, 0), Refuse):
        raise DeploymentRefused(step.reason)
    stack = [] if inventory.stack is None else [f"the stack {inventory.stack.id}, which is {inventory.stack.status}"]
    return stack + [str(each) for each in ours(inventory)], inventory.unknown


async def destroy(
    account: Account,
    say: Callable[[str], object],
    seconds_max: float = SECONDS_MAX,
    *,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Inventory:
    """Remove a deployment, and return what is left when its pieces are gone: what this version does not know.

    Whatever stops it half-way, it can be run again, and goes on from what is there then.

    Parameters
    ----------
    account
        Where the deployment is.
    say
        Is told what is done.
    seconds_max
        How long it may take; then it is a `RemovalUnfinished`, and what was begun goes on.
    sleep, clock
        Time.
    """
    deadline = clock() + seconds_max
    first = inventory = await account.inventory()
    deletions = 0
    while True:  # bound: the deadline
        match next_step(inventory, first, deletions):
            case Done():
                return inventory
            case Refuse(reason):
                raise DeploymentRefused(reason)
            case DeleteStack(stack, buckets):
                deletions += 1
                waits_for = await _delete_stack(account, stack, buckets, say)
            case Wait(stack):
                waits_for = f"the stack is {stack.status}"
            case Remove(found):
                waits_for = await _remove(account, found, say)
        if clock() >= deadline:
            text = f"deployment {inventory.name!r} is not removed within {seconds_max:g} s: {waits_for}"
            raise RemovalUnfinished(f"{text}. What was begun goes on; run this again later")
        await sleep(PAUSE_SECONDS)
        stack_now = await account.stack()
        if stack_now is not None and stack_now.status == "DELETE_IN_PROGRESS":
            inventory = replace(inventory, stack=stack_now)  # the rest is CloudFormation's, as long as that goes on
        else:
            inventory = await account.inventory()


async def _delete_stack(account: Account, stack: Stack, buckets: Sequence[Found], say: Callable[[str], object]) -> str:
    for bucket in buckets:
        await account.empty(bucket)
        say(f"emptied {bucket}")
    await account.delete_stack(stack)
    say(f"asked CloudFormation to delete the stack {stack.id}, which was {stack.status}")
    return "the stack has not begun to be deleted"


async def _remove(account: Account, found: Sequence[Found], say: Callable[[str], object]) -> str:
    """Remove what can be, and say what has to wait. One that is refused does not keep others from being removed."""
    waiting, refused = [], []
    for each in found:
        try:
            await account.remove(each)
            say(f"removed {each}")
        except Busy as error:
            waiting.append(str(error))
        except DeploymentRefused as error:
            refused.append(str(error))
    if refused:
        raise DeploymentRefused("\n".join(refused + waiting))
    return "\n".join(waiting) or "what was removed is still told of"
