"""One Redis server, as the rest of the client sees it: commands in, replies out, one round trip.

Rules kept here:

* A command is sent as it is: large values are handed to the socket uncopied (redis-py with hiredis would join them).
* A broken connection is tried again for ``retry_seconds``; everything that is sent through here may be repeated.
* Outsiders' exceptions end here: callers see `StoreUnavailable` and `StoreFull`, which name the endpoint and never
  the password.
"""

from __future__ import annotations

import inspect
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection
from redis.exceptions import AuthenticationError, NoScriptError, OutOfMemoryError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from fargate_storage.client.config import StoreConfig
from lambda_worker.core.errors import StoreFull, StoreUnavailable

Argument: TypeAlias = bytes | bytearray | memoryview | str | int
Command: TypeAlias = Sequence[Argument]

#: Arguments above this size go to the socket as they are; smaller ones are joined, which saves system calls.
JOIN_BYTES_MAX = 16 * 1024
#: A socket's time limit is for a whole `sendall`, so what it is given must pass a slow link within ``wait_seconds``.
PIECE_BYTES_MAX = 256 * 1024
#: What `begin` sends at once. A socket's buffer takes it, so that sending does not wait.
BEGIN_BYTES_MAX = 64 * 1024
#: Each connection has a buffer of this size, which is written once: a megabyte of it in each of a thousand sandboxes is
#: a gigabyte, and reads a value of 64 MiB in the same CPU time.
READ_BYTES = 2**16
#: Connections do not say which client they are of: to find out its version, redis-py reads the installed package's
#: metadata for each of them, and a fresh sandbox spends 5 ms on it. (Releases before 7 know it by other names.)
NAMELESS: dict[str, Any] = (
    {"driver_info": None}
    if "driver_info" in inspect.signature(AbstractConnection.__init__).parameters
    else {"lib_name": None, "lib_version": None}
)
#: How a script's error tells it before Redis 7; later it is the error's own code.
OOM = "-OOM command not allowed"
BACKOFF_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.4)


class Counters:
    """What a client did since it was made; safe to use from several threads."""

    def __init__(self) -> None:
        names = (
            "round_trips",
            "objects_written",
            "objects_overflowed",
            "slices_written",
            "slices_overflowed",
            "bytes_written",
            "bytes_read",
        )
        self._counts = dict.fromkeys(names, 0)
        self._lock = threading.Lock()

    def add(self, **amounts: int) -> None:
        """Count."""
        with self._lock:
            for name, amount in amounts.items():
                self._counts[name] += amount

    def snapshot(self) -> dict[str, int]:
        """Return all counts as they are now."""
        with self._lock:
            return dict(self._counts)


def pack_commands(commands: Sequence[Command]) -> list[bytes | memoryview]:
    r"""Encode commands as pieces to be sent one after the other; large arguments are views, uncopied.

    Examples
    --------
    >>> pack_commands([("GET", b"key")])
    [b'*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n']
    """
    pieces: list[bytes | memoryview] = []
    joined = bytearray()
    for command in commands:
        joined += b"*%d\r\n" % len(command)
        for argument in command:
            if isinstance(argument, int):
                argument = b"%d" % argument
            elif isinstance(argument, str):
                argument = argument.encode()
            # Bytes-like from here on. Views must count bytes, not items: see `objects.flat`.
            joined += b"$%d\r\n" % len(argument)
            if len(argument) > JOIN_BYTES_MAX:
                pieces.append(bytes(joined))
                view = memoryview(argument)
                pieces += [view[start : start + PIECE_BYTES_MAX] for start in range(0, len(view), PIECE_BYTES_MAX)]
                joined = bytearray(b"\r\n")
            else:
                joined += argument
                joined += b"\r\n"
            if len(joined) > 4 * JOIN_BYTES_MAX:
                pieces.append(bytes(joined))
                joined = bytearray()
    if joined:
        pieces.append(bytes(joined))
    return pieces


class Endpoint:
    """A pool of connections to one server.

    Parameters
    ----------
    role
        How messages name this server: ``metadata`` or ``shard N``.
    url, config
        Where it is, and how patient to be.
    counters
        Where round trips are counted.
    is_gone
        Tells, of a server that cannot be reached, whether it was given up: then it is not tried again.
    """

    def __init__(
        self,
        role: str,
        url: str,
        config: StoreConfig,
        counters: Counters,
        is_gone: Callable[[], bool] = lambda: False,
    ) -> None:
        self.role = role
        parts = urlsplit(url)
        # Say where, never who: user information stays out of messages.
        self.address = parts.path if parts.scheme == "unix" else parts.netloc.rpartition("@")[2]
        metadata = role == "metadata" and config.shards
        self._limit_setting = (
            "serverless.storage.metadata-max-memory" if metadata else "storage_max_memory= of the cluster"
        )
        self._retry_seconds = config.retry_seconds
        self._counters = counters
        self._is_gone = is_gone
        self._closed = False
        options: dict[str, Any] = {
            "password": config.password,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),  # retried here, where the bound is known
            "socket_timeout": config.wait_seconds,
            "socket_read_size": READ_BYTES,
            **NAMELESS,
        }
        if parts.scheme != "unix":
            options |= {"socket_connect_timeout": config.wait_seconds, "socket_keepalive": True}
            if hasattr(socket, "TCP_KEEPIDLE"):  # Linux: notice a vanished host within half a minute
                options["socket_keepalive_options"] = {
                    socket.TCP_KEEPIDLE: 10,
                    socket.TCP_KEEPINTVL: 5,
                    socket.TCP_KEEPCNT: 3,
                }
        if parts.scheme == "rediss" and config.ca_file:
            options["ssl_ca_certs"] = config.ca_file
        self._pool = redis.ConnectionPool.from_url(url, **options)
        self._spares: deque[Any] = deque()  # connections for `begin`, which must not wait for one

    def __repr__(self) -> str:
        return f"<Endpoint {self.role} at {self.address}>"

    def call(self, *commands: Command) -> list[Any]:
        """Send commands together and return their replies: one round trip.

        A reply may be an error (a `ResponseError` in its place), except "out of memory", which raises.

        Raises
        ------
        StoreUnavailable
            When no reply came, although it was tried again for `retry_seconds`.
        StoreFull
            When the server refuses a write for lack of memory.
        """
        deadline = time.monotonic() + self._retry_seconds
        attempt = 0
        while True:
            try:
                replies = self._exchange(commands)
                break
            except Exception as error:
                # Whatever went wrong: connections that were closed under a caller fail in more than one way.
                if self._closed:
                    raise StoreUnavailable(
                        f"the connection to the {self.role} server was closed by this side"
                    ) from None
                failure = error
            if isinstance(failure, AuthenticationError):
                raise StoreUnavailable(f"the {self.role} server at {self.address} refuses the password")
            if not isinstance(failure, (RedisConnectionError, RedisTimeoutError, OSError)):
                raise failure
            if self._is_gone():
                raise StoreUnavailable(f"the {self.role} server at {self.address} was given up")
            pause = BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)] * (0.5 + random.random())
            if time.monotonic() + pause > deadline:
                raise StoreUnavailable(f"the {self.role} server at {self.address} cannot be reached: {failure}")
            time.sleep(pause)
            attempt += 1
        self._refuse_full(replies)
        return replies

    def begin(self, *commands: Command) -> Callable[[], list[Any]]:
        """Send commands now, if that can be done without waiting; return what waits for the replies, as `call` does.

        So an event loop can have the server at work before it has found a thread that waits.
        """
        pieces = pack_commands(commands)
        connection = self._begin(pieces)

        def replies() -> list[Any]:
            if connection is None:
                found = self.call(*commands)
                if not self._spares:  # for the next time
                    self._spares.append(self._pool.get_connection())
                return found
            try:
                found = [_read(connection) for _ in commands]
            except BaseException as error:
                self._drop(connection)
                if not isinstance(error, Exception):
                    raise
                return self.call(*commands)
            self._spares.append(connection)
            self._refuse_full(found)
            return found

        return replies

    def _begin(self, pieces: list[bytes | memoryview]) -> Any:
        if sum(map(len, pieces)) > BEGIN_BYTES_MAX:
            return None
        try:
            connection = self._spares.popleft()
        except IndexError:
            return None
        try:
            connection.send_packed_command(pieces, check_health=False)
        except Exception:
            self._drop(connection)
            return None
        self._counters.add(round_trips=1)
        return connection

    def _drop(self, connection: Any) -> None:
        connection.disconnect()
        self._pool.release(connection)

    def _refuse_full(self, replies: Sequence[Any]) -> None:
        for reply in replies:
            if isinstance(reply, OutOfMemoryError) or (isinstance(reply, ResponseError) and OOM in str(reply)):
                raise StoreFull(
                    f"the {self.role} server at {self.address} is full (limit: {self._memory_limit()}). Let go of "
                    f"futures that are not needed any more, or raise {self._limit_setting}"
                )

    def ask(self, *commands: Command) -> list[Any]:
        """Like `call`, but any error reply raises `StoreUnavailable`."""
        replies = self.call(*commands)
        self._refuse_errors(replies)
        return replies

    def transaction(self, commands: Sequence[Command]) -> None:
        """Send commands that take effect together or not at all: one round trip."""
        *_, results = self.ask(("MULTI",), *commands, ("EXEC",))
        self._refuse_errors(results)

    def script(self, sha: str, source: str, key: str, *arguments: Argument) -> Any:
        """Run a script by its digest, or by its source when the server does not have it (yet, or any more)."""
        (reply,) = self.call(("EVALSHA", sha, 1, key, *arguments))
        if isinstance(reply, NoScriptError):
            (reply,) = self.call(("EVAL", source, 1, key, *arguments))
        self._refuse_errors([reply])
        return reply

    def begin_script(self, sha: str, source: str, key: str, *arguments: Argument) -> Callable[[], Any]:
        """Do as `script`, in two parts as `begin`."""
        replies = self.begin(("EVALSHA", sha, 1, key, *arguments))

        def reply() -> Any:
            (found,) = replies()
            if isinstance(found, NoScriptError):
                return self.script(sha, source, key, *arguments)
            self._refuse_errors([found])
            return found

        return reply

    def info(self, section: str) -> dict[str, str]:
        """Return one section of the server's INFO."""
        (reply,) = self.ask(("INFO", section))
        pairs = (line.partition(":") for line in reply.decode().splitlines())
        return {name: value for name, colon, value in pairs if colon}

    def close(self) -> None:
        """Close all connections, those in use too: whoever waits for a reply hears `StoreUnavailable`."""
        self._closed = True
        self._pool.disconnect()

    def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        if self._closed:
            raise RedisConnectionError("closed")
        self._counters.add(round_trips=1)
        connection: Any = self._pool.get_connection()
        try:
            connection.send_packed_command(pack_commands(commands))
            return [_read(connection) for _ in commands]
        except BaseException:
            # Replies that were not read would answer the next caller: the connection is not to be used again.
            connection.disconnect()
            raise
        finally:
            self._pool.release(connection)

    def _refuse_errors(self, replies: Sequence[Any]) -> None:
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise StoreUnavailable(f"the {self.role} server at {self.address} refused a step: {reply}")

    def _memory_limit(self) -> str:
        try:
            return f"{int(self.info('memory')['maxmemory']):,} bytes"
        except (StoreUnavailable, KeyError, ValueError):
            return "unknown"


def _read(connection: Any) -> Any:
    try:
        return connection.read_response()
    except RedisConnectionError:
        raise
    except ResponseError as error:
        return error
    except RedisError as error:  # garbage on the wire: as good as no connection
        raise RedisConnectionError(str(error)) from error
