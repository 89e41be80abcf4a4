"""Counts what executors run, from outside: by Dask's own interface for plugins, into a file that survives them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from distributed.diagnostics.plugin import WorkerPlugin


class Counting(WorkerPlugin):
    """Writes a line for each task that begins.

    Parameters
    ----------
    path
        Of the file; all executors append to it.
    """

    name = "chaos-counting"

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: int | None = None

    def setup(self, worker: object) -> None:
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def transition(self, key: object, start: str, finish: str, **_: object) -> None:
        if finish == "executing" and self._file is not None:
            os.write(self._file, f"{key}\n".encode())  # one write: it is whole, or not there


def runs(path: str) -> Counter[str]:
    """Return how often each key began to run."""
    return Counter(Path(path).read_text().splitlines()) if os.path.exists(path) else Counter()
