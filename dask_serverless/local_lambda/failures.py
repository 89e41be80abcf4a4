"""A bounded in-memory queue with SQS's meaning: receive hides a message for a while, delete removes it.

Pure: time is passed in and waiting is the caller's. At least once, in no promised order, like a
standard queue. Above its limits the oldest message is dropped (and counted): an on-failure
destination that nobody reads must not fill the user's memory.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import Any

MESSAGES_MAX = 10_000
QUEUE_BYTES_MAX = 128 * 1024 * 1024
VISIBILITY_SECONDS = 30.0


@dataclass(slots=True)
class Message:
    """A message and when it may be received (again)."""

    number: int
    body: str
    visible_at: float
    sent_at: float
    receives: int = 0

    def to_sqs(self) -> dict[str, Any]:
        """Return the message as a ReceiveMessage response shows it."""
        return {
            "MessageId": f"00000000-0000-4000-8000-{self.number:012x}",
            # Names the receive too: SQS hands out a new handle each time, and the newest one deletes.
            "ReceiptHandle": f"{self.number}-{self.receives}",
            "MD5OfBody": hashlib.md5(self.body.encode(), usedforsecurity=False).hexdigest(),
            "Body": self.body,
            "Attributes": {
                "ApproximateReceiveCount": str(self.receives),
                "SentTimestamp": str(int(self.sent_at * 1000)),
            },
        }


class FailureQueue:
    """Records of failed asynchronous invocations, waiting to be read.

    Examples
    --------
    >>> queue = FailureQueue()
    >>> queue.put("a", now=0)
    >>> [message] = queue.receive(10, now=0)
    >>> queue.receive(10, now=1)
    []
    >>> queue.delete(message["ReceiptHandle"])
    >>> len(queue)
    0
    """

    def __init__(self, messages_max: int = MESSAGES_MAX, bytes_max: int = QUEUE_BYTES_MAX) -> None:
        self.messages_max = messages_max
        self.bytes_max = bytes_max
        self.dropped = 0
        self._messages: dict[int, Message] = {}
        self._bytes = 0
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._messages)

    def __repr__(self) -> str:
        return f"<FailureQueue: {len(self)} messages, {self._bytes} bytes, {self.dropped} dropped>"

    def put(self, body: str, now: float) -> None:
        """Append a message."""
        number = next(self._numbers)
        self._messages[number] = Message(number, body, visible_at=0.0, sent_at=now)
        self._bytes += len(body)
        while len(self._messages) > self.messages_max or self._bytes > self.bytes_max:
            self._remove(next(iter(self._messages)))
            self.dropped += 1

    def receive(self, count: int, now: float, visibility_seconds: float = VISIBILITY_SECONDS) -> list[dict[str, Any]]:
        """Return up to `count` visible messages, oldest first, and hide them for a while."""
        received = list(itertools.islice((m for m in self._messages.values() if m.visible_at <= now), count))
        for message in received:
            message.visible_at = now + visibility_seconds
            message.receives += 1
        return [message.to_sqs() for message in received]

    def delete(self, receipt_handle: str) -> None:
        """Remove a message. Repeating it, or naming a message that is gone, has no effect."""
        number = receipt_handle.partition("-")[0]
        if number.isdigit():
            self._remove(int(number))

    def next_visible_at(self) -> float | None:
        """Return when the next message becomes visible (None: the queue is empty)."""
        return min((message.visible_at for message in self._messages.values()), default=None)

    def _remove(self, number: int) -> None:
        message = self._messages.pop(number, None)
        if message is not None:
            self._bytes -= len(message.body)
