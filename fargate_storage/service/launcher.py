"""Runs local servers for an owner, and sees to it that nothing is left when the owner is gone.

A program of its own (``python -I -S launcher.py``), because an owner that is killed cannot clean up. It reads one
line of JSON from its standard input (``directory``, ``owner``: a process id, ``remove``: further directories,
``servers``: for each ``command``, ``config``, ``environment``, ``restarts_max``), starts the servers, answers with one
line (``pids``, or ``error``), and waits. It stops them and removes the directories when its input ends, when its parent
is no longer the owner (a fork of the owner may hold the input open), or on SIGTERM. Should it be killed itself, the
kernel kills the servers (Linux: PR_SET_PDEATHSIG).
The input must not be inherited by others for the end to be noticed at once; the parent is checked once a second.

With a ``keep`` in the order it outlives the owner: it is the *keeper* of what another process may take over. The owner,
whoever that is, holds the lock on the file ``owner_lock`` while it lives; the keeper holds ``keeper_lock``. When nobody
has been the owner for ``seconds``, the keeper takes that place itself, so that nobody can begin to take over what goes,
and ends everything, with all that is to ``remove``. What it has to say it writes into a file, since its owner changes.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

CHECK_SECONDS = 1.0
MINUTE = 60.0
#: In the directory of the servers: what a keeper says.
SAID = "said.jsonl"
PR_SET_PDEATHSIG = 1


def _die_with_parent() -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    # Loaded here, not in the child: between fork and exec only the call itself is safe. The signal comes when the
    # *thread* that started the child ends, which is why a process with one thread does the starting.
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _start(server: dict[str, Any], directory: str, before_exec: Callable[[], None] | None) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        server["command"],
        stdin=subprocess.PIPE,  # the configuration holds the password: never on a command line or in a file
        stdout=subprocess.DEVNULL,
        stderr=open(server["log"], "ab"),  # what is said before the log file is opened
        cwd=directory,
        env=server["environment"],
        preexec_fn=before_exec,
        start_new_session=True,  # Ctrl-C in a terminal is for the owner
    )
    assert process.stdin
    try:
        process.stdin.write(server["config"].encode())
        process.stdin.close()
    except BrokenPipeError:
        pass  # it ended at once: the owner will find the reason in its log
    return process


class Keep:
    """Tells whether what is kept is still wanted.

    Parameters
    ----------
    owner_lock, keeper_lock
        Files whose locks tell who lives.
    seconds
        How long there may be no owner.
    remove
        Directories that go at the end.
    """

    def __init__(self, owner_lock: str, keeper_lock: str, seconds: float, remove: list[str]) -> None:
        self.remove = remove
        self._owner_lock = owner_lock
        self._owner = os.open(owner_lock, os.O_RDWR)
        self._keeper = os.open(keeper_lock, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.lockf(self._keeper, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(self._keeper, 0)
        os.pwrite(self._keeper, str(os.getpid()).encode(), 0)
        self._seconds = seconds
        self._alone_since: float | None = None

    def is_wanted(self) -> bool:
        """Look whether there is an owner, or may still come one."""
        try:
            same = os.stat(self._owner_lock).st_ino == os.fstat(self._owner).st_ino
        except OSError:  # somebody has cleaned up
            return False
        if not same:  # and somebody else has begun in the same place
            self.remove = []
            return False
        try:
            fcntl.lockf(self._owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._alone_since = None
            return True
        now = time.monotonic()
        if self._alone_since is None:
            self._alone_since = now
        if now - self._alone_since >= self._seconds:
            return False  # with the lock
        fcntl.lockf(self._owner, fcntl.LOCK_UN)
        return True


def main() -> None:
    """Run servers until nobody wants them."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    ended, wakes = os.pipe()  # readable when a child has ended
    os.set_blocking(ended, False)
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    line = sys.stdin.readline()  # bound: the owner's life
    if not line:
        return  # the owner ended, or thought better of it
    order = json.loads(line)
    servers: list[subprocess.Popen[bytes]] = []
    keep = Keep(**order["keep"]) if "keep" in order else None
    ears = [0, ended]

    def is_wanted() -> bool:
        return bool(os.getppid() == order["owner"]) if keep is None else keep.is_wanted()

    def say(said: dict[str, Any]) -> None:
        if keep is None:
            return print(json.dumps(said), flush=True)
        with open(os.path.join(order["directory"], SAID), "a") as file:
            file.write(json.dumps(said) + "\n")

    try:
        before_exec = _die_with_parent()
        try:
            for server in order["servers"]:
                servers.append(_start(server, order["directory"], before_exec))
        except OSError as error:
            print(json.dumps({"error": str(error)}), flush=True)
            return
        print(json.dumps({"pids": [server.pid for server in servers]}), flush=True)
        restarts: dict[int, list[float]] = {}
        given_up: set[int] = set()
        while is_wanted():
            readable, _, _ = select.select(ears, [], [], CHECK_SECONDS)
            if 0 in readable and not os.read(0, 1):
                if keep is None:
                    break
                ears.remove(0)
            if ended in readable:
                os.read(ended, 512)
            for number, server in enumerate(servers):
                if server.poll() is None or number in given_up:  # looked at, so that it does not stay as a zombie
                    continue
                said: dict[str, Any] = {"server": number, "status": server.returncode}
                now = time.monotonic()
                lately = restarts[number] = [then for then in restarts.get(number, ()) if now - then < MINUTE]
                if len(lately) < order["servers"][number]["restarts_max"]:
                    lately.append(now)
                    servers[number] = _start(order["servers"][number], order["directory"], before_exec)
                    said["pid"] = servers[number].pid
                else:
                    given_up.add(number)
                say(said)
    finally:
        for server in servers:
            server.kill()  # nothing of what it holds is to be saved
        for server in servers:
            server.wait()  # bound: it was killed
        for directory in (order["directory"], *order["remove"], *(keep.remove if keep is not None else ())):
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
