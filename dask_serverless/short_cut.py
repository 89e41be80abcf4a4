"""Between the scheduler and the fleet worker, which live in one process and on one event loop.

Distributed sends every message between a scheduler and a worker through a socket, here from one end
of a process to the other. For stubs that was most of what a small task cost. So what is said of
stubs is handed over directly; all else goes through the stream as ever, unseen by this module.

Rules kept here:

* Never within a call: the scheduler speaks to workers in the middle of its transitions, and whoever
  answers there and then would change its state under its hands. What is handed over waits for the
  event loop's next turn.
* In order, and no more than `TURN_MESSAGES_MAX` in one turn: others want the loop, too.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

#: A scheduler handles a message in some 0.1 ms.
TURN_MESSAGES_MAX = 500

logger = logging.getLogger("dask_serverless.fleet")


class Hatch:
    """Hands messages over, in order, at the event loop's next turn.

    Parameters
    ----------
    take
        Called with each message.
    """

    def __init__(self, take: Callable[[Any], None]) -> None:
        self._take = take
        self._waiting: deque[Any] = deque()

    def __repr__(self) -> str:
        return f"<Hatch: {len(self._waiting)} waiting>"

    def put(self, message: Any) -> None:
        """Hand a message over; to be called on the event loop."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._turn)
        self._waiting.append(message)

    def _turn(self) -> None:
        waiting = self._waiting
        for _ in range(min(len(waiting), TURN_MESSAGES_MAX)):
            try:
                self._take(waiting[0])
            except Exception:  # our bug; the other messages are other keys' lives
                logger.exception("a message could not be handled: %r", waiting[0])
            waiting.popleft()  # afterwards: until then, what is put joins this turn or the one after
        if waiting:
            asyncio.get_running_loop().call_soon(self._turn)


class ShortCut:
    """Stands before the scheduler's stream to the fleet worker, and takes what is said of stubs.

    Parameters
    ----------
    stream
        Distributed's own; whatever else is asked of a stream, it answers.
    is_stub
        Tells whether executors compute a key.
    compute
        Called with each ``compute-task`` for a stub.
    """

    def __init__(
        self, stream: Any, is_stub: Callable[[Hashable], bool], compute: Callable[[dict[str, Any]], None]
    ) -> None:
        self._stream = stream
        self._is_stub = is_stub
        self._hatch = Hatch(compute)

    def __repr__(self) -> str:
        return f"<ShortCut before {self._stream!r}>"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def send(self, *messages: dict[str, Any]) -> None:
        """Send messages, as `distributed.batched.BatchedSend.send` does."""
        others = []
        for message in messages:
            if message["op"] == "compute-task" and self._is_stub(message["key"]) and not self._stream.closed():
                self._hatch.put(message)
            else:
                others.append(message)
        if others:
            self._stream.send(*others)
