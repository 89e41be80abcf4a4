"""A line between a client and a server that can be cut, slow, silent or noisy: bytes in, bytes out, on unix sockets.

It stands where a network would be. While a direction is silent, what is sent waits, as in a network that sends it
again: it arrives late, perhaps after its sender has given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable
from typing import Any

CHUNK_BYTES = 64 * 1024
#: What is spoiled is in the middle of a chunk of at least this size: the bytes of a value, not a command's words.
SPOILED_BYTES_MIN = 8 * 1024
TO_SERVER, TO_CLIENT = "to server", "to client"
DIRECTIONS = (TO_SERVER, TO_CLIENT)


class Loop:
    """An event loop on a thread of its own, for what stands between processes.

    Examples
    --------
    >>> with Loop() as loop:
    ...     loop.run(asyncio.sleep(0, "done"))
    'done'
    """

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="chaos", daemon=True)
        self._thread.start()

    def run(self, work: Any, seconds_max: float = 10.0) -> Any:
        """Run a coroutine there and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(seconds_max)

    def call(self, call: Callable[..., object], *args: Any) -> None:
        """Call something there, soon."""
        self.loop.call_soon_threadsafe(call, *args)

    def close(self) -> None:
        """End it, and what runs there."""

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self.run(end())
        self.call(self.loop.stop)
        self._thread.join(10.0)
        self.loop.close()

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FaultProxy:
    """Passes bytes on between clients of one unix socket and a server at another.

    Parameters
    ----------
    loop
        Where it runs.
    path, target
        Where it listens, and where the server does.
    luck
        Chooses what is spoiled.
    """

    def __init__(self, loop: Loop, path: str, target: str, luck: random.Random) -> None:
        self.path = path
        self.target = target
        self.delay_seconds = 0.0  # of each chunk
        self.bytes_per_second = float("inf")  # of each connection
        self.spoil = dict.fromkeys(DIRECTIONS, 0)  # how many chunks are still to be spoiled
        self.spoiled = 0
        self.cuts = 0
        self._loop = loop
        self._luck = luck
        self._sound = {direction: asyncio.Event() for direction in DIRECTIONS}
        for event in self._sound.values():
            event.set()
        self._connections = set[asyncio.StreamWriter]()
        self._server = loop.run(asyncio.start_unix_server(self._serve, path, limit=CHUNK_BYTES))

    def cut(self) -> None:
        """Break every connection."""

        def cut() -> None:
            self.cuts += len(self._connections)
            for writer in list(self._connections):
                writer.transport.abort()

        self._loop.call(cut)

    def silence(self, *directions: str) -> None:
        """Pass nothing on in these directions from now on; none: all passes again."""

        def change() -> None:
            for direction, event in self._sound.items():
                (event.clear if direction in directions else event.set)()

        self._loop.call(change)

    def heal(self) -> None:
        """Be a good line again."""
        self.delay_seconds, self.bytes_per_second = 0.0, float("inf")
        self.spoil = dict.fromkeys(DIRECTIONS, 0)
        self.silence()

    def close(self) -> None:
        """Stop listening, and break what is left."""
        self._loop.call(self._server.close)
        self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            their_reader, their_writer = await asyncio.open_unix_connection(self.target, limit=CHUNK_BYTES)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, their_writer}
        self._connections |= both
        pumps = [
            asyncio.ensure_future(self._pump(reader, their_writer, TO_SERVER)),
            asyncio.ensure_future(self._pump(their_reader, writer, TO_CLIENT)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            self._connections -= both
            for each in both:
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                if self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                if self.bytes_per_second < float("inf"):
                    await asyncio.sleep(len(chunk) / self.bytes_per_second)
                await self._sound[direction].wait()
                if self.spoil[direction] > 0 and len(chunk) >= SPOILED_BYTES_MIN:
                    chunk = self._spoil(chunk)
                    self.spoil[direction] -= 1
                    self.spoiled += 1
                writer.write(chunk)
                await writer.drain()

    def _spoil(self, chunk: bytes) -> bytes:
        """Flip one bit, somewhere in the middle."""
        at = self._luck.randrange(len(chunk) // 4, 3 * len(chunk) // 4)
        return chunk[:at] + bytes([chunk[at] ^ (1 << self._luck.randrange(8))]) + chunk[at + 1 :]
