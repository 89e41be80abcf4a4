"""HTTP/1.1 as the service needs it: one object per request, straight on a transport.

An invocation is three requests to this process, and a thousand of them come at once. tornado's server, on its lowest
level, took most of what the service costs: a coroutine, futures and timers for each request. Here a connection is a
buffer and a function, which callers and sandboxes keep open. Rules: one request of a connection at a time, the next
one when it has been answered; what is not HTTP is refused by closing.
"""

from __future__ import annotations

import asyncio
import http
import json
import re
import socket
from collections.abc import Callable, Mapping

from dask_serverless.local_lambda.config import HTTP_BODY_BYTES_MAX, SYNC_PAYLOAD_BYTES_MAX

#: As tornado and most servers have it.
HEAD_BYTES_MAX = 64 * 1024
#: A burst of a thousand sandboxes connects within moments.
BACKLOG = 2048

_REASONS = {status.value: status.phrase for status in http.HTTPStatus}
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,8})(?:;[^\r\n]*)?\r\n")


class Refused(Exception):
    """What came is no request that is understood here."""


class Exchange:
    """One request and the answer to it, which may come much later.

    Attributes
    ----------
    headers
        By name, in lower case.
    body
        Empty if it was larger than any that is accepted.
    size
        Of the body as it was sent.
    """

    __slots__ = ("_connection", "_gone", "answered", "body", "headers", "method", "path", "size")

    def __init__(self, connection: Connection, method: str, path: str, headers: Mapping[str, str]) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = b""
        self.size = 0
        self.answered = False
        self._connection = connection
        self._gone: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<Exchange: {self.method} {self.path}, {self.size} bytes>"

    def on_gone(self, callback: Callable[[], None]) -> None:
        """Have `callback` called if the caller goes away before it is answered."""
        self._gone = callback

    def gone(self) -> None:
        """The caller went away: there is nobody to answer."""
        if not self.answered:
            self.answered = True
            if self._gone is not None:
                self._gone()

    def answer(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        """Answer the request; nothing happens if it was answered or its caller has gone away."""
        if self.answered:
            return
        self.answered = True
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if status != 204:
            lines.append(f"Content-Length: {len(body)}")
        self._connection.answer("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n", body)

    def answer_json(self, status: int, value: object, headers: Mapping[str, str] | None = None) -> None:
        """Answer with JSON."""
        self.answer(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode())


class Connection(asyncio.Protocol):
    """One caller: requests in, one after the other, and their answers."""

    def __init__(self, route: Callable[[Exchange], None], open_connections: set[Connection]) -> None:
        self._route = route
        self._open = open_connections
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._exchange: Exchange | None = None  # whose body is being read, or which waits for its answer
        self._left = 0  # bytes of its body that are still to come
        self._chunked = False
        self._reading = False
        self._body = bytearray()
        self._keep = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._open.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell whoever was going to answer."""
        self._open.discard(self)
        self._transport = None
        if self._exchange is not None and not self._reading:
            self._exchange.gone()

    def data_received(self, data: bytes) -> None:
        """Take in a piece of what the caller says."""
        self._buffer += data
        if self._exchange is not None and not self._reading and len(self._buffer) > HEAD_BYTES_MAX:
            return self.close()  # nobody speaks so much before it is answered
        self._go_on()

    def close(self) -> None:
        """End the connection; what was written is still sent."""
        if self._transport is not None:
            self._transport.close()

    def answer(self, head: bytes, body: bytes) -> None:
        """Send the answer to the request, and take the next one."""
        self._exchange = None
        if self._transport is None:
            return
        self._transport.write(head + body if len(body) < HEAD_BYTES_MAX else head)
        if len(body) >= HEAD_BYTES_MAX:
            self._transport.write(body)
        if not self._keep:
            self._transport.close()
        elif self._buffer:
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        try:
            while self._transport is not None and (self._reading or self._exchange is None):
                if not (self._read_body() if self._reading else self._read_head()):
                    return
        except Refused:
            self.close()

    def _read_head(self) -> bool:
        """Begin a request, if its head is there."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > HEAD_BYTES_MAX:
                raise Refused
            return False
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise Refused
        headers = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon:
                raise Refused
            headers[name.lower()] = value.strip()
        self._keep = words[2] != "HTTP/1.0" and headers.get("connection", "").lower() != "close"
        self._chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > HTTP_BODY_BYTES_MAX:
            raise Refused
        self._left = 0 if self._chunked else int(length)
        self._exchange = Exchange(self, words[0], words[1], headers)
        self._reading = True
        if headers.get("expect", "").lower() == "100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _read_body(self) -> bool:
        """Take what is there of a body; have the request answered when it is complete."""
        exchange = self._exchange
        assert exchange is not None
        while self._chunked:
            if not self._left:
                match = _CHUNK.match(self._buffer)
                if match is None:
                    if len(self._buffer) > HEAD_BYTES_MAX:
                        raise Refused
                    return False
                size = int(match[1], 16)
                if size == 0:
                    end = self._buffer.find(b"\r\n\r\n", match.end() - 2)
                    if end < 0:  # the trailers, of which nobody takes notice
                        return False
                    del self._buffer[: end + 4]
                    break
                del self._buffer[: match.end()]
                self._left = size + 2
            if len(self._buffer) < 3 and self._left > len(self._buffer):
                return False
            # The last two bytes of a chunk are the end of a line.
            self._take(exchange, min(len(self._buffer), max(0, self._left - 2)))
            if self._left > 2:
                return False
            if len(self._buffer) < self._left:
                return False
            del self._buffer[: self._left]
            self._left = 0
        if not self._chunked and self._left:
            self._take(exchange, min(len(self._buffer), self._left))
            if self._left:
                return False
        exchange.body, self._body = bytes(self._body), bytearray()
        self._reading = False
        self._route(exchange)
        return True

    def _take(self, exchange: Exchange, count: int) -> None:
        exchange.size += count
        self._left -= count
        if exchange.size > HTTP_BODY_BYTES_MAX:
            raise Refused
        if exchange.size <= SYNC_PAYLOAD_BYTES_MAX:
            self._body += self._buffer[:count]
        else:
            self._body.clear()
        del self._buffer[:count]


class Front:
    """The listening side: gives every request to `route` once it has been read."""

    def __init__(self, route: Callable[[Exchange], None]) -> None:
        self._route = route
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self.port: int = self._socket.getsockname()[1]

    async def start(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Connection(self._route, self._connections), sock=self._socket, backlog=BACKLOG
        )

    async def close(self) -> None:
        """Stop listening and close every connection."""
        if self._server is None:
            self._socket.close()
            return
        self._server.close()
        for connection in list(self._connections):
            connection.close()
