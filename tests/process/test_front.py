"""HTTP as the local Lambda service reads it, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from dask_serverless.local_lambda.config import HTTP_BODY_BYTES_MAX, SYNC_PAYLOAD_BYTES_MAX
from dask_serverless.local_lambda.front import HEAD_BYTES_MAX, Exchange, Front

SECONDS_MAX = 10.0


@contextlib.asynccontextmanager
async def speaking(route):
    """Connect to a front; yield what reads and what writes."""
    front = Front(route)
    await front.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    try:
        async with asyncio.timeout(SECONDS_MAX):
            yield reader, writer
    finally:
        writer.close()
        await front.close()


def echo(exchange: Exchange) -> None:
    exchange.answer(200, {"X-Size": str(exchange.size)}, exchange.body)


async def answer(reader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return head, await reader.readexactly(length)


CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n"
PLAIN = b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"


@pytest.mark.parametrize(("request_", "body"), [(PLAIN, b"hello"), (CHUNKED, b"hello world")])
@pytest.mark.parametrize("piece", [1, 7, 1_000])
async def test_requests_arrive_in_whatever_pieces_they_come(request_, body, piece):
    async with speaking(echo) as (reader, writer):
        twice = request_ * 2
        for first in range(0, len(twice), piece):
            writer.write(twice[first : first + piece])
            await writer.drain()
            await asyncio.sleep(0)
        assert [(await answer(reader))[1] for _ in range(2)] == [body, body]


async def test_a_request_waits_until_the_one_before_it_is_answered():
    waiting: list[Exchange] = []
    came = asyncio.Event()

    def route(exchange):
        waiting.append(exchange)
        came.set()

    async with speaking(route) as (reader, writer):
        writer.write(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n")
        await came.wait()
        assert [each.path for each in waiting] == ["/1"]
        came.clear()
        waiting[0].answer(200, {}, b"one")
        waiting[0].answer(500, {}, b"not twice")
        assert (await answer(reader))[1] == b"one"
        await came.wait()
        waiting[1].answer(204, {})
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204 No Content\r\n")


async def test_whoever_goes_away_before_the_answer_is_noticed_and_afterwards_is_not():
    gone = asyncio.Event()
    came = asyncio.Event()

    def route(exchange):
        exchange.on_gone(gone.set)
        if exchange.path == "/answered":
            exchange.answer(200, {})
        else:
            came.set()

    async with speaking(route) as (reader, writer):
        writer.write(b"GET /answered HTTP/1.1\r\n\r\n")
        await answer(reader)
        assert not gone.is_set()
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await came.wait()
        writer.close()
        await gone.wait()


@pytest.mark.parametrize(
    "nonsense",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/2\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (HTTP_BODY_BYTES_MAX + 1),
        b"GET / HTTP/1.1\r\nX: " + b"x" * HEAD_BYTES_MAX + b"x",
    ],
)
async def test_what_is_not_understood_is_refused_by_closing(nonsense):
    async with speaking(echo) as (reader, writer):
        writer.write(nonsense)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""


async def test_a_body_beyond_every_quota_is_counted_and_dropped():
    size = SYNC_PAYLOAD_BYTES_MAX + 1
    async with speaking(echo) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
        head, body = await answer(reader)
        assert f"X-Size: {size}".encode() in head
        assert body == b""


@pytest.mark.parametrize("last", [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"])
async def test_whoever_wants_one_answer_only_has_it_and_the_end(last):
    async with speaking(echo) as (reader, writer):
        writer.write(last)
        assert (await answer(reader))[1] == b""
        assert await reader.read() == b""


async def test_whoever_asks_whether_to_go_on_is_told():
    async with speaking(echo) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"ok")
        assert (await answer(reader))[1] == b"ok"
