"""The SQS protocol (AWS JSON 1.0) in front of the failure queue: what an unmodified client needs to read it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from dask_serverless.local_lambda.config import ACCOUNT, FAILURE_QUEUE
from dask_serverless.local_lambda.failures import VISIBILITY_SECONDS, FailureQueue
from dask_serverless.local_lambda.front import Exchange

WAIT_SECONDS_MAX = 20.0
RECEIVE_MESSAGES_MAX = 10


class QueueApi:
    """Answers the four actions a reader uses.

    Parameters
    ----------
    endpoint_url
        Of the service; the queue's URL begins with it.
    clock
        Seconds that only measure durations.
    """

    def __init__(self, endpoint_url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.queue = FailureQueue()
        self.queue_url = f"{endpoint_url}/{ACCOUNT}/{FAILURE_QUEUE}"
        self._clock = clock
        # Long polls, oldest first: what was asked, and the end of the wait.
        self._polls: dict[Exchange, tuple[dict[str, Any], asyncio.TimerHandle]] = {}
        self._wakeup: asyncio.TimerHandle | None = None

    def put(self, body: str) -> None:
        """Append a record and hand it to whoever waits for one."""
        self.queue.put(body, self._clock())
        self._serve_polls()

    def route(self, exchange: Exchange) -> None:
        """Answer a request whose X-Amz-Target names SQS."""
        action = exchange.headers["x-amz-target"].partition(".")[2]
        try:
            request = json.loads(exchange.body or b"{}")
        except ValueError:
            return self._refuse(exchange, "InvalidMessageContents", "The request is not JSON.")
        if action == "GetQueueUrl":
            if request.get("QueueName") != FAILURE_QUEUE:
                return self._refuse_queue(exchange)
            return self._answer(exchange, {"QueueUrl": self.queue_url})
        if not str(request.get("QueueUrl", "")).endswith(f"/{FAILURE_QUEUE}"):
            return self._refuse_queue(exchange)
        if action == "ReceiveMessage":
            return self._receive(exchange, request)
        if action == "DeleteMessage":
            self.queue.delete(str(request.get("ReceiptHandle", "")))
            return self._answer(exchange, {})
        if action == "DeleteMessageBatch":
            entries = request.get("Entries", [])
            for entry in entries:
                self.queue.delete(str(entry["ReceiptHandle"]))
            return self._answer(exchange, {"Successful": [{"Id": entry["Id"]} for entry in entries], "Failed": []})
        return self._refuse(exchange, "UnsupportedOperation", f"{action} is not offered by the local service.")

    def _receive(self, exchange: Exchange, request: dict[str, Any]) -> None:
        if self._try(exchange, request):
            return
        seconds = min(float(request.get("WaitTimeSeconds") or 0), WAIT_SECONDS_MAX)
        if seconds <= 0:
            return self._answer(exchange, {})
        handle = asyncio.get_running_loop().call_later(seconds, self._end_poll, exchange, True)
        self._polls[exchange] = (request, handle)
        exchange.on_gone(lambda: self._end_poll(exchange, False))
        self._arm()

    def _try(self, exchange: Exchange, request: dict[str, Any]) -> bool:
        count = min(int(request.get("MaxNumberOfMessages") or 1), RECEIVE_MESSAGES_MAX)
        visibility = request.get("VisibilityTimeout")
        messages = self.queue.receive(
            count, self._clock(), VISIBILITY_SECONDS if visibility is None else float(visibility)
        )
        if messages:
            self._answer(exchange, {"Messages": messages})
        return bool(messages)

    def _end_poll(self, exchange: Exchange, answer: bool) -> None:
        poll = self._polls.pop(exchange, None)
        if poll is None:
            return
        poll[1].cancel()
        if answer:
            self._answer(exchange, {})

    def _serve_polls(self) -> None:
        for exchange, (request, _) in list(self._polls.items()):
            if not self._try(exchange, request):
                break
            self._end_poll(exchange, False)
        self._arm()

    def _arm(self) -> None:
        """Wake up when a hidden message becomes visible again, if anyone waits."""
        if self._wakeup is not None:
            self._wakeup.cancel()
            self._wakeup = None
        visible_at = self.queue.next_visible_at()
        if self._polls and visible_at is not None:
            delay = max(0.0, visible_at - self._clock()) + 0.001
            self._wakeup = asyncio.get_running_loop().call_later(delay, self._serve_polls)

    def _answer(self, exchange: Exchange, value: dict[str, Any]) -> None:
        exchange.answer(200, {"Content-Type": "application/x-amz-json-1.0"}, json.dumps(value).encode())

    def _refuse(self, exchange: Exchange, code: str, message: str, query_code: str | None = None) -> None:
        exchange.answer(
            400,
            {"Content-Type": "application/x-amz-json-1.0", "x-amzn-query-error": f"{query_code or code};Sender"},
            json.dumps({"__type": f"com.amazonaws.sqs#{code}", "message": message}).encode(),
        )

    def _refuse_queue(self, exchange: Exchange) -> None:
        self._refuse(
            exchange,
            "QueueDoesNotExist",
            "The specified queue does not exist.",
            "AWS.SimpleQueueService.NonExistentQueue",
        )
