"""HTTP as the service needs it: one object per request, on tornado's lowest level.

`tornado.web` would cost more per request than everything else the service does for an invocation.
"""

from __future__ import annotations

import http
import json
from collections.abc import Callable
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.netutil import bind_sockets

from dask_serverless.local_lambda.config import HTTP_BODY_BYTES_MAX, SYNC_PAYLOAD_BYTES_MAX

_REASONS = {status.value: status.phrase for status in http.HTTPStatus}


class Exchange(HTTPMessageDelegate):
    """One request and the answer to it, which may come much later."""

    def __init__(self, connection: HTTPConnection, route: Callable[[Exchange], None]) -> None:
        self.method = ""
        self.path = ""
        self.headers: HTTPHeaders = HTTPHeaders()
        self.size = 0  # of the body as it was sent; the body itself is dropped when it is beyond every limit
        self.answered = False
        self._connection = connection
        self._route = route
        self._chunks: list[bytes] = []

    def __repr__(self) -> str:
        return f"<Exchange: {self.method} {self.path}, {self.size} bytes>"

    def headers_received(self, start_line: Any, headers: HTTPHeaders) -> None:
        """Keep what the request is about."""
        assert isinstance(start_line, RequestStartLine)
        self.method, self.path = start_line.method, start_line.path
        self.headers = headers

    def data_received(self, chunk: bytes) -> None:
        """Keep a piece of the body, unless there is too much of it."""
        self.size += len(chunk)
        if self.size <= SYNC_PAYLOAD_BYTES_MAX:
            self._chunks.append(chunk)
        else:
            self._chunks.clear()

    def finish(self) -> None:
        """Have the request, now complete, answered."""
        self._route(self)

    def on_connection_close(self) -> None:
        """Note that the caller went away in the middle of its request: there is nobody to answer."""
        self.answered = True

    @property
    def body(self) -> bytes:
        """The request's body (empty if it was larger than any that is accepted)."""
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)

    def on_gone(self, callback: Callable[[], None]) -> None:
        """Have `callback` called if the caller goes away before it is answered."""
        self._connection.set_close_callback(callback)  # type: ignore[attr-defined]

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        """Answer the request; nothing happens if it was answered or its caller has gone away."""
        if self.answered:
            return
        self.answered = True
        fields = HTTPHeaders()
        for name, value in headers.items():
            fields[name] = value
        if status != 204:
            fields["Content-Length"] = str(len(body))
        reason = _REASONS.get(status, "Unknown")
        # The future's failure (the caller has gone) is consumed by tornado itself.
        self._connection.write_headers(ResponseStartLine("HTTP/1.1", status, reason), fields, body or None)
        self._connection.finish()

    def answer_json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        """Answer with JSON."""
        self.answer(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode())


class Front(HTTPServerConnectionDelegate):
    """The listening side: gives every request to `route` once it has been read."""

    def __init__(self, route: Callable[[Exchange], None]) -> None:
        self._route = route
        self._server = HTTPServer(self, max_body_size=HTTP_BODY_BYTES_MAX, max_buffer_size=HTTP_BODY_BYTES_MAX)
        # A burst of a thousand sandboxes connects within moments.
        [listener] = bind_sockets(0, "127.0.0.1", backlog=2048)
        self.port: int = listener.getsockname()[1]
        self._server.add_sockets([listener])

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """Return what is to receive one request."""
        return Exchange(request_conn, self._route)

    async def close(self) -> None:
        """Stop listening and close every connection."""
        self._server.stop()
        await self._server.close_all_connections()
