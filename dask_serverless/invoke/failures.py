"""What Lambda gave up on: a queue of OnFailure records.

An asynchronous invocation that dies (killed, timed out, out of memory) leaves no answer. Lambda puts
a record of it into the function's OnFailure destination, an SQS queue, which is read here by long
polling. The local Lambda service writes the same records and speaks the same SQS requests.

A record is deleted after the reader has taken it *and come back for the next one*: a reader that is
cancelled in between sees it again. Records may come twice; the ledger's attempts answer for that.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from lambda_worker.invoker import open_client

logger = logging.getLogger("dask_serverless.failures")

POLL_SECONDS_MAX = 20  # the most that SQS allows
BATCH_MAX = 10  # likewise
BACKOFF_SECONDS_MIN = 0.1
BACKOFF_SECONDS_MAX = 10.0


class Failure(NamedTuple):
    """One invocation that Lambda gave up on: its event, and why."""

    event: dict[str, Any]
    error_type: str
    error_message: str


class FailureQueue:
    """Read OnFailure records from an SQS queue, on the caller's event loop.

    Parameters
    ----------
    queue_url
        The queue.
    endpoint_url, region, credentials
        Where SQS is and who asks, as for `LambdaInvoker`.
    poll_seconds
        How long one request may wait for a record.
    sleep
        Waits between attempts while the endpoint is not to be reached.

    Examples
    --------
    >>> async def report(queue):  # doctest: +SKIP
    ...     async for event, error_type, error_message in queue:
    ...         print(error_type, error_message)
    """

    def __init__(
        self,
        queue_url: str,
        endpoint_url: str | None = None,
        region: str | None = None,
        *,
        credentials: tuple[str, str] | None = None,
        poll_seconds: int = POLL_SECONDS_MAX,
        sleep: Callable[[float], Any] = asyncio.sleep,
    ):
        self.queue_url = queue_url
        self.endpoint_url = endpoint_url
        self.region = region
        self._credentials = credentials
        self._poll_seconds = min(poll_seconds, POLL_SECONDS_MAX)
        self._sleep = sleep

    def __repr__(self) -> str:
        return f"<FailureQueue {self.queue_url}>"

    async def __aiter__(self) -> AsyncIterator[Failure]:
        """Yield failures for ever; ends by cancellation (or ``aclose``) only."""
        backoff = BACKOFF_SECONDS_MIN
        while True:
            try:
                async with open_client(
                    "sqs",
                    self.endpoint_url,
                    self.region,
                    credentials=self._credentials,
                    read_seconds_max=self._poll_seconds + 10.0,
                ) as client:
                    while True:
                        messages = await self._receive(client)
                        backoff = BACKOFF_SECONDS_MIN
                        for message in messages:
                            failure = failure_of(message.get("Body", ""))
                            if failure is not None:
                                yield failure
                        if messages:
                            await self._delete(client, messages)
            except Exception as error:
                # Loud once it lasts; a blip of the endpoint is nobody's news.
                level = logging.WARNING if backoff >= BACKOFF_SECONDS_MAX / 4 else logging.DEBUG
                logger.log(level, "failure queue %s: %s; again in %.1f s", self.queue_url, error, backoff)
                await self._sleep(backoff)
                backoff = min(2 * backoff, BACKOFF_SECONDS_MAX)

    async def _receive(self, client: Any) -> list[dict[str, Any]]:
        response = await client.receive_message(
            QueueUrl=self.queue_url, MaxNumberOfMessages=BATCH_MAX, WaitTimeSeconds=self._poll_seconds
        )
        return list(response.get("Messages", ()))

    async def _delete(self, client: Any, messages: list[dict[str, Any]]) -> None:
        entries = [
            {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]} for number, message in enumerate(messages)
        ]
        await client.delete_message_batch(QueueUrl=self.queue_url, Entries=entries)


def failure_of(body: str) -> Failure | None:
    """Read an OnFailure record; None when it is none (it is logged, and not worth dying for).

    Examples
    --------
    >>> failure_of('{"requestPayload": {"v": 1}, "requestContext": {"condition": "RetriesExhausted"}, '
    ...            '"responsePayload": {"errorType": "Runtime.ExitError", "errorMessage": "signal: killed"}}')
    Failure(event={'v': 1}, error_type='Runtime.ExitError', error_message='signal: killed')
    """
    try:
        record = json.loads(body)
        event = record["requestPayload"]
        if not isinstance(event, dict):
            raise TypeError("requestPayload is not an object")
    except (ValueError, TypeError, KeyError) as error:
        logger.warning("not an OnFailure record (%s): %.200s", error, body)
        return None
    context = record.get("requestContext") or {}
    response = record.get("responsePayload")
    response = response if isinstance(response, dict) else {}
    error_message = str(response.get("errorMessage") or context.get("condition") or "unknown")
    return Failure(event, str(response.get("errorType") or _type_in(error_message, context)), error_message)


def _type_in(error_message: str, context: dict[str, Any]) -> str:
    """Name a failure whose record gives no type: AWS leaves it out for timeouts."""
    if re.search(r"timed out", error_message, re.IGNORECASE):
        return "Sandbox.Timedout"
    return str(context.get("condition") or "Unknown")
