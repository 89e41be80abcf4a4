"""The process that sandboxes are forked from: heavy imports done once, then one small loop.

Run by path, never with ``-m``: that would import `dask_serverless` itself, and with it the scheduler,
into every sandbox. Rules: one thread; nothing is imported after "ready"; no file is open but the
socket to the service and the log; whatever ends the service ends everything here.

Messages are lines of JSON over a socket pair. From the service: the settings, then ``{"start": name, "function": n,
"crowded": bool}`` and ``{"kill": name}``, at last ``{"close": true}``; the end of the stream without it means that
the service was killed, and its files are removed here. To the service: ``{"ready": {...}}`` or
``{"failed": text}``, then ``{"started": name, "pid": pid}`` and ``{"died": name, "status": status}``
(minus the signal, as `subprocess` has it), or ``{"died": name, "why": text}`` for a fork that failed.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

#: A thousand sandboxes on two busy cores took 2.5 s.
CLOSE_SECONDS_MAX = 5.0
#: Of one size class; there are thousands of free blocks where a few thousand modules are loaded.
FILLED_BLOCKS_MAX = 1_000_000


def _load_beside(name: str) -> ModuleType:
    """Import a module of this directory without its package (see above)."""
    spec = importlib.util.spec_from_file_location(f"_zygote_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def preload(handler: str, modules: list[str], c_client: str) -> dict[str, str]:
    """Import everything that sandboxes will need; return what could not be, and why.

    Only the handler must succeed: its failure is raised.
    """
    sys.modules[c_client] = None  # type: ignore[assignment]  # awslambdaric takes its absence; see `sandbox`
    importlib.import_module("awslambdaric.bootstrap")
    failures = {}
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}"
    module, _, function = handler.rpartition(".")
    getattr(importlib.import_module(module.replace("/", ".")), function)
    # Loaded late by awslambdaric and http.client; each sandbox would do it again.
    for late in ("http.client", "encodings.idna"):
        importlib.import_module(late)
    return failures


def _data_bytes() -> int:
    """Return how much writable address space this process has (what RLIMIT_DATA counts)."""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0


def fill_holes() -> list[Any]:
    """Take all memory that is free between the objects of this process; return what takes it, to be kept.

    Each page that a sandbox writes to becomes its own. What it allocates would go where a few bytes are free, in
    thousands of pages that are full of what all sandboxes share; so it goes to pages that are new.
    """
    with tempfile.TemporaryFile() as said:
        stderr = os.dup(2)
        try:
            sys.stderr.flush()
            os.dup2(said.fileno(), 2)
            sys._debugmallocstats()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        said.seek(0)
        lines = said.read().decode(errors="replace").splitlines()
    filling: list[Any] = []
    for line in lines:
        fields = line.split()
        # Size class, size, pools, blocks in use, blocks free.
        if len(fields) == 5 and all(field.isdigit() for field in fields):
            size, free = int(fields[1]), int(fields[4])
            content = size - sys.getsizeof(b"")
            if content > 0 and free <= FILLED_BLOCKS_MAX:
                filling += [bytes(content) for _ in range(free)]
    return filling


def _threads() -> int:
    """Return the number of this process's threads (0: unknown)."""
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/task"))
    return 0


class Zygote:
    """The loop: kills before forks, one fork at a time, so that a kill never waits behind a burst of starts."""

    def __init__(self, link: socket.socket, settings: dict[str, Any], sandbox: ModuleType) -> None:
        self.link = link
        self.settings = settings
        self.sandbox = sandbox
        self.pid = os.getpid()
        # The function of each sandbox that is to be started, and whether it is one of very many, by name.
        self.starts: dict[str, tuple[int, bool]] = {}
        self.names: dict[int, str] = {}  # by pid
        self.pids: dict[str, int] = {}  # by name
        self.partial = b""
        self.outgoing: list[dict[str, Any]] = []
        self.stopping = False
        self.told_to_close = False
        self.wakeup, self.wakeup_write = os.pipe()
        os.set_blocking(self.wakeup, False)
        os.set_blocking(self.wakeup_write, False)

    def run(self) -> None:
        """Serve until the service closes the link."""
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only so that the wakeup descriptor is written
        signal.set_wakeup_fd(self.wakeup_write, warn_on_full_buffer=False)
        poller = select.poll()
        poller.register(self.link, select.POLLIN)
        poller.register(self.wakeup, select.POLLIN)
        while not self.stopping:
            for descriptor, _ in poller.poll(0 if self.starts else None):
                if descriptor == self.wakeup:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self.wakeup, 4096)
                elif not self._read_commands():
                    return
            self._reap()
            if self.starts:
                name = next(iter(self.starts))
                self._fork(name, *self.starts.pop(name))
            self._send()

    def stop(self, *_: object) -> None:
        """Have the loop end; a signal handler. Raising from here could cut `close` short."""
        self.stopping = True

    def _read_commands(self) -> bool:
        data = self.link.recv(65536)
        if not data:
            return False
        *lines, self.partial = (self.partial + data).split(b"\n")
        for line in lines:
            command = json.loads(line)
            if "close" in command:
                self.told_to_close = True
                return False
            if "start" in command:
                self.starts[command["start"]] = (command["function"], command["crowded"])
            elif command["kill"] in self.pids:
                self._kill_group(self.pids[command["kill"]])
            elif command["kill"] in self.starts:
                del self.starts[command["kill"]]
                self.outgoing.append({"died": command["kill"], "why": "killed before it was started"})
        return True

    def _fork(self, name: str, function: int, crowded: bool) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            self.outgoing.append({"died": name, "why": f"no process for a sandbox: {error}"})
            return
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, signal.SIG_DFL)
                self.link.close()
                os.close(self.wakeup)
                os.close(self.wakeup_write)
                if crowded:
                    self.sandbox.take_turns()
                self.sandbox.become(name, self.settings, self.settings["functions"][function], self.pid)
            finally:
                os._exit(1)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # both sides do it: whoever is first, a kill of the group finds it
        self.names[pid] = name
        self.pids[name] = pid
        self.outgoing.append({"started": name, "pid": pid})

    def _kill_group(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)

    def _reap(self) -> None:
        while True:
            dead = -1  # any; macOS has no way to look first
            try:
                if hasattr(os, "waitid"):
                    # What the function itself started dies too, before the zombie is waited for: until then
                    # its number cannot be reused.
                    zombie = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                    if zombie is None:
                        return
                    dead = zombie.si_pid
                    self._kill_group(dead)
                pid, status = os.waitpid(dead, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            name = self.names.pop(pid, None)
            if name is not None:
                del self.pids[name]
                self.outgoing.append({"died": name, "status": os.waitstatus_to_exitcode(status)})

    def _send(self) -> None:
        if self.outgoing:
            data = b"".join(json.dumps(message).encode() + b"\n" for message in self.outgoing)
            self.outgoing.clear()
            with contextlib.suppress(OSError):  # the end of the link is noticed by reading
                self.link.sendall(data)

    def close(self) -> None:
        """Kill everything that descends from here and wait until it is gone."""
        deadline = time.monotonic() + CLOSE_SECONDS_MAX
        while time.monotonic() < deadline:
            for pid in self.names:
                self._kill_group(pid)
            for pid in self._children():  # orphans too, even those that left their sandbox's group: they are ours now
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._reap()
            if not self.names and not self._children():
                return
            select.select([self.wakeup], [], [], 0.05)
            with contextlib.suppress(BlockingIOError):
                os.read(self.wakeup, 4096)

    def _children(self) -> list[int]:
        with contextlib.suppress(OSError), open(f"/proc/self/task/{self.pid}/children") as file:
            return [int(pid) for pid in file.read().split()]
        return []

    def lost_service(self) -> bool:
        """Whether the service has ended without saying so."""
        if self.told_to_close:
            return False
        # Not os.getppid(): a dying process closes its files before its children are given to another parent.
        with contextlib.suppress(OSError):
            while self.link.recv(65536, socket.MSG_DONTWAIT):
                pass
            return True
        return False


def main(descriptor: int) -> None:
    """Preload as told through the link, then serve."""
    sandbox = _load_beside("sandbox")
    link = socket.socket(fileno=descriptor)
    link.set_inheritable(False)
    received = b""
    while not received.endswith(b"\n"):
        data = link.recv(65536)
        if not data:
            return
        received += data
    settings = json.loads(received)
    sandbox.die_with_parent(settings["parent"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the user's process, which will tell us
    # Run by path, this directory leads sys.path; its module names are nobody else's business.
    here = str(Path(__file__).parent)
    sys.path[:] = [
        *settings["python_path"],
        *(entry for entry in sys.path if entry != here),
        *settings["python_path_last"],
    ]
    gc.disable()
    try:
        failures = preload(settings["handler"], settings["preload"], sandbox.C_CLIENT)
    except BaseException:
        link.sendall(json.dumps({"failed": traceback.format_exc()}).encode() + b"\n")
        return
    for function in settings["functions"]:
        function["data_bytes_max"] = _data_bytes() + function["data_bytes_above"]
    gc.collect()
    filling = fill_holes()
    gc.freeze()
    link.sendall(json.dumps({"ready": {"preload_failures": failures, "threads": _threads()}}).encode() + b"\n")
    # From here on the loop sees the service's end itself, and can end the sandboxes' own children too, which
    # the kernel's signal would orphan: ask for a signal that lets it.
    sandbox.adopt_orphans()
    zygote = Zygote(link, settings, sandbox)
    signal.signal(signal.SIGTERM, zygote.stop)
    sandbox.die_with_parent(settings["parent"], signal.SIGTERM)
    try:
        zygote.run()
    finally:
        del filling
        zygote.close()
        if zygote.lost_service():
            shutil.rmtree(settings["root"], ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
