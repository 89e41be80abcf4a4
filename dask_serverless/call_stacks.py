"""Where tasks are that have been running for a while: what executors said at their last heartbeats. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class CallStack(NamedTuple):
    """What one executor was doing, and when it said so."""

    task: int
    frames: Sequence[str]
    said: float


class CallStacks:
    """The last stack of each executor that runs a long task.

    Parameters
    ----------
    fresh_seconds
        How long a stack is worth showing: an executor that goes on to other tasks does not take it back.

    Examples
    --------
    >>> stacks = CallStacks(fresh_seconds=10.0)
    >>> stacks.note("j1", "1-0", 7, ["in f"], now=0.0)
    >>> list(stacks.fresh(now=5.0)), list(stacks.fresh(now=15.0))
    ([('j1', 7, ['in f'])], [])
    """

    def __init__(self, fresh_seconds: float) -> None:
        self._fresh_seconds = fresh_seconds
        self._stacks: dict[tuple[str, str], CallStack] = {}

    def note(self, job: str, executor: str, task: int, frames: Sequence[str], now: float) -> None:
        """Take in what an executor says."""
        self._stacks[job, executor] = CallStack(task, frames, now)

    def forget(self, job: str, executor: str | None = None) -> None:
        """An executor is gone, or all of a job's are."""
        if executor is not None:
            self._stacks.pop((job, executor), None)
        else:
            self._stacks = {who: stack for who, stack in self._stacks.items() if who[0] != job}

    def fresh(self, now: float) -> Iterator[tuple[str, int, Sequence[str]]]:
        """Yield job, task and frames of what was said lately."""
        for (job, _), stack in self._stacks.items():
            if now - stack.said <= self._fresh_seconds:
                yield job, stack.task, stack.frames
