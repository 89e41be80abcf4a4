"""Invoking from the cluster's side: at a pace that Lambda accepts, and hearing what it gave up on."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from dask_serverless.invoke.failures import Failure, FailureQueue
from dask_serverless.invoke.governor import Admission, Governor, Limits
from lambda_worker.invoker import THROTTLED, LambdaInvoker

__all__ = ["Admission", "Failure", "FailureQueue", "GovernedInvoker", "Governor", "Limits"]


class GovernedInvoker(LambdaInvoker):
    """A `LambdaInvoker` that asks a `Governor` before each request.

    Parameters
    ----------
    *args, **kwargs
        As for `LambdaInvoker`.
    limits
        The governor's bounds.
    """

    def __init__(self, *args: Any, limits: Limits | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.governor = Governor(limits)
        # Touched on the invoker's own loop only.
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def _before(self, now: float) -> None:
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        self._pump(loop)
        await turn

    async def _after(self, now: float, code: str | None) -> None:
        self.governor.answered(now, throttled=code in THROTTLED)
        self._pump(asyncio.get_running_loop())

    def _pump(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and self._waiting[0].done():  # cancelled while it waited
            self._waiting.popleft()
        if not self._waiting:
            return
        admission = self.governor.admit(len(self._waiting), loop.time())
        for _ in range(admission.count):
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
        if admission.again_seconds is not None:
            self._timer = loop.call_later(admission.again_seconds, self._pump, loop)
