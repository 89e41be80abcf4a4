"""Runs local servers for an owner, and sees to it that nothing is left when the owner is gone.

A program of its own (``python -I -S launcher.py``), because an owner that is killed cannot clean up. It reads one
line of JSON from its standard input (``directory``, ``owner``: a process id, ``servers``: for each ``command``,
``config``, ``environment``), starts the servers, answers with one line (``pids``, or ``error``), and waits. It stops
them and removes the directory when its input ends, when its parent is no longer the owner (a fork of the owner may hold
the input open), or on SIGTERM. Should it be killed itself, the kernel kills the servers (Linux: PR_SET_PDEATHSIG).
The input must not be inherited by others for the end to be noticed at once; the parent is checked once a second.
"""

from __future__ import annotations

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


def main() -> None:
    """Run servers until the owner is gone."""
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
        while os.getppid() == order["owner"]:
            readable, _, _ = select.select([0, ended], [], [], CHECK_SECONDS)
            if 0 in readable and not os.read(0, 1):
                break
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
                print(json.dumps(said), flush=True)
    finally:
        for server in servers:
            server.kill()  # nothing of what it holds is to be saved
        for server in servers:
            server.wait()  # bound: it was killed
        shutil.rmtree(order["directory"], ignore_errors=True)


if __name__ == "__main__":
    main()
