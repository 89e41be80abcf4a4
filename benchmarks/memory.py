"""The memory of a contender's processes, sampled: proportional (PSS), so that what processes share counts once."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

SAMPLE_SECONDS = 0.1
STORAGE = ("valkey-server", "redis-server")
#: What processes are: the one with client and scheduler (or whatever stands for them), what runs tasks, and the rest.
KINDS = ("client", "workers", "storage", "services")
#: Where Linux says for how long everybody has waited for memory, in microseconds.
PRESSURE = Path("/proc/pressure/memory")


def stalled_seconds(text: str | None = None) -> float:
    r"""Return for how long all processes have waited for memory since the machine began (0: it does not say).

    Examples
    --------
    >>> stalled_seconds("some avg10=0.0 total=9000000\nfull avg10=0.0 avg60=0.0 avg300=1.4 total=2500000\n")
    2.5
    """
    if text is None:
        try:
            text = PRESSURE.read_text()
        except OSError:
            return 0.0
    totals = [line.rpartition("total=")[2] for line in text.splitlines() if line.startswith("full")]
    return int(totals[0]) / 1e6 if totals else 0.0


def kind_of(command: str, parent: str, is_root: bool) -> str:
    """Return what a process is, by its command line and its parent's.

    Examples
    --------
    >>> kind_of("/usr/bin/valkey-server unixsocket:/tmp/x", "python -m benchmarks", False)
    'storage'
    >>> kind_of("python local_lambda/zygote.py 9", "python local_lambda/zygote.py 9", False)
    'workers'
    >>> kind_of("python local_lambda/zygote.py 9", "python -m dask_serverless.local_lambda", False)
    'services'
    """
    if is_root:
        return "client"
    if any(name in command for name in STORAGE):
        return "storage"
    if "zygote.py" in command:
        return "workers" if "zygote.py" in parent else "services"
    services = ("dask_serverless.local_lambda", "resource_tracker", "forkserver", "raylet", "gcs_server", "/ray/")
    if any(name in command for name in services) and not command.startswith("ray::"):
        return "services"
    return "workers"


def read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""  # it has ended


def proportional(pid: int) -> int:
    """Return a process's memory in bytes, with its share of what it has in common with others (0: it has ended)."""
    for line in read(pid, "smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def resident(pid: int) -> int:
    """Return a process's resident memory in bytes (0: it has ended)."""
    fields = read(pid, "statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if fields else 0


def tree(root: int) -> Iterator[tuple[int, str]]:
    """Yield a process and all its descendants, each with its kind."""
    found = [(root, "")]
    while found:
        pid, parent = found.pop()
        command = read(pid, "cmdline").replace("\0", " ").strip()
        yield pid, kind_of(command, parent, pid == root)
        for directory in Path(f"/proc/{pid}/task").glob("*"):
            found.extend((int(child), command) for child in read(pid, f"task/{directory.name}/children").split())


class Memory:
    """Peaks of a process tree while this is entered: of all of a kind together, and of the largest worker.

    Parameters
    ----------
    root
        The process with client and scheduler.
    """

    def __init__(self, root: int) -> None:
        self.peaks = dict.fromkeys((*KINDS, "largest worker"), 0)
        self._root = root
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            now = dict.fromkeys(self.peaks, 0)
            for pid, kind in tree(self._root):
                nbytes = proportional(pid)
                now[kind] += nbytes
                if kind == "workers":
                    now["largest worker"] = max(now["largest worker"], nbytes)
            self.peaks = {kind: max(peak, now[kind]) for kind, peak in self.peaks.items()}
            if self._ended.wait(SAMPLE_SECONDS):
                return
