"""A Lambda endpoint before another one: it refuses, breaks, doubles or delays invocations, and passes the rest on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from urllib.parse import urlsplit

from tests.chaos.fault_proxy import Loop

#: What may happen to an invocation: refused with 429; failed with 500; accepted, but the connection breaks before the
#: answer; accepted twice; accepted later than those after it (and answered at once).
FAULTS = ("throttled", "failed", "broken", "doubled", "late")
#: What does not pass by itself, so that nobody draws it: the credentials have ended.
EXPIRED = "expired"
LATE_SECONDS_MAX = 1.0


class LambdaProxy:
    """Passes requests on to a Lambda endpoint, as they are, one connection for each.

    Parameters
    ----------
    loop
        Where it runs.
    luck
        Decides what happens to which invocation.
    """

    def __init__(self, loop: Loop, luck: random.Random) -> None:
        self.target = ""  # the endpoint's URL; known later than our own
        self.chances = dict.fromkeys(FAULTS, 0.0)  # of each invocation
        self.happened: Counter[str] = Counter()
        self._loop = loop
        self._luck = luck
        self._late = set[asyncio.Task[None]]()
        self._server = loop.run(asyncio.start_server(self._serve, "127.0.0.1", 0))
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def heal(self) -> None:
        """Pass everything on."""
        self.chances = dict.fromkeys(FAULTS, 0.0)

    def close(self) -> None:
        """Stop listening."""
        self._loop.call(self._server.close)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                answer = await self._answer(await _message(reader))
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
        writer.transport.abort()

    async def _answer(self, request: bytes) -> bytes | None:
        """Return the answer to a request; None: the connection breaks."""
        fault = self._draw() if b"/invocations" in request.partition(b"\r\n")[0] else None
        self.happened[fault or "passed"] += 1
        match fault:
            case "throttled":
                return _refusal(429, "TooManyRequestsException", "Rate Exceeded.")
            case "failed":
                return _refusal(500, "ServiceException", "The service failed.")
            case "expired":
                return _refusal(403, "ExpiredTokenException", "The security token included in the request is expired")
            case "broken":
                await self._pass_on(request)
                return None
            case "doubled":
                await self._pass_on(request)
            case "late":
                task = asyncio.ensure_future(self._later(request))
                self._late.add(task)
                task.add_done_callback(self._late.discard)
                return b"HTTP/1.1 202 Accepted\r\nx-amzn-RequestId: late\r\nContent-Length: 0\r\n\r\n"
        return await self._pass_on(request)

    def _draw(self) -> str | None:
        left = self._luck.random()
        for fault, chance in self.chances.items():
            left -= chance
            if left < 0:
                return fault
        return None

    async def _later(self, request: bytes) -> None:
        await asyncio.sleep(self._luck.random() * LATE_SECONDS_MAX)
        while True:  # it was accepted: Lambda keeps it in its queue until there is a place
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                if b" 429 " not in (await self._pass_on(request)).partition(b"\r\n")[0]:
                    return
            await asyncio.sleep(0.1)

    async def _pass_on(self, request: bytes) -> bytes:
        parts = urlsplit(self.target)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            writer.write(request)
            await writer.drain()
            return await _message(reader)
        finally:
            writer.transport.abort()


async def _message(reader: asyncio.StreamReader) -> bytes:
    """Read one request or answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line.partition(b":")[2] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return head + await reader.readexactly(int(lengths[0]) if lengths else 0)


def _refusal(status: int, error_type: str, message: str) -> bytes:
    body = json.dumps({"Type": "Service", "Message": message}).encode()
    return (
        f"HTTP/1.1 {status} Refused\r\nContent-Type: application/json\r\nx-amzn-ErrorType: {error_type}\r\n"
        f"x-amzn-RequestId: refused\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
