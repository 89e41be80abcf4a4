"""A contender in a process of its own: opened there, asked for turns over a pipe, and ended with all it has started.

So nobody's defaults, clients or patches meet another's, memory is that of one process tree, and one that hangs or
dies is given up by name while the others go on.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.workloads import Size

OPEN_SECONDS_MAX = 120.0
CLOSE_SECONDS_MAX = 30.0
LOG_CHARACTERS = 600
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Entrant:
    """Who takes part, under which label, and with which of Dask's settings."""

    label: str
    contender: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn found, took, and counted."""

    answer: Any
    seconds: float
    counted: Mapping[str, float]


class GivenUp(Exception):
    """Says why an entrant does not go on."""


def first_line(text: str) -> str:
    r"""Return the first line that says something, without colours.

    Examples
    --------
    >>> first_line("\n  \x1b[36mray::add()\x1b[39m (pid=1)\n  at ...")
    'ray::add() (pid=1)'
    """
    lines = [line.strip() for line in COLOUR.sub("", text).splitlines()]
    return next(filter(None, lines), "")[:LOG_CHARACTERS]


def serve(connection: Any, log: str, entrant: Entrant, workload: str, size: Size) -> None:
    """Open the contender and perform turns until told to stop. Runs in the stage's process."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    try:
        from benchmarks.contenders import Absent, make
        from benchmarks.tasks import blas_threads
        from benchmarks.workloads import load

        program = load()[workload]
        try:
            with make(entrant.contender, entrant.settings) as contender:
                connection.send(("ready", contender.probe(blas_threads)))
                while (turn := connection.recv()) is not None:
                    run = program.prepare(contender, turn, size)
                    before = contender.counters()
                    begun = time.perf_counter()
                    answer = run()
                    seconds = time.perf_counter() - begun
                    after = contender.counters()
                    counted = {name: after[name] - before.get(name, 0) for name in after}
                    connection.send(("turn", Turn(answer, seconds, counted)))
                    del run
        except Absent as absent:
            connection.send(("failed", str(absent)))
    except EOFError:
        pass  # the other side has gone
    except BaseException as error:
        traceback.print_exc()
        connection.send(("failed", f"{type(error).__name__}: {first_line(str(error))}"))


class Stage:
    """The process of one entrant, seen from outside.

    Parameters
    ----------
    entrant
        Who.
    workload
        Its name.
    size
        Its size.
    """

    def __init__(self, entrant: Entrant, workload: str, size: Size) -> None:
        self.entrant = entrant
        self.blas_threads: int | None = None
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        handle, name = tempfile.mkstemp(prefix=f"bench-{entrant.contender}-", suffix=".log")
        os.close(handle)
        self._log = Path(name)
        self._process = context.Process(target=serve, args=(theirs, name, entrant, workload, dict(size)))
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None
        return pid

    def ready(self) -> None:
        """Wait until the contender is open; raise `GivenUp` if it will not be."""
        self.blas_threads = self._receive("ready", OPEN_SECONDS_MAX, "did not open")

    def turn(self, number: int, seconds_max: float) -> Turn:
        """Perform one turn; raise `GivenUp` if it fails or takes too long."""
        self._ours.send(number)
        found = self._receive("turn", seconds_max, "did not finish")
        assert isinstance(found, Turn)
        return found

    def _receive(self, wanted: str, seconds_max: float, what: str) -> Any:
        try:
            if not self._ours.poll(seconds_max):
                raise GivenUp(f"{what} within {seconds_max:.0f} s")
            kind, found = self._ours.recv()
        except (EOFError, OSError):
            raise GivenUp(f"its process has ended: {self._last_words()}") from None
        if kind != wanted:
            raise GivenUp(str(found))
        return found

    def _last_words(self) -> str:
        text = self._log.read_text(errors="replace")[-LOG_CHARACTERS:]
        return " ".join(text.split()) or "it said nothing"

    def close(self) -> None:
        """End the contender, by force if it does not end by itself, and all it has started."""
        started = []
        try:
            started = psutil.Process(self.pid).children(recursive=True)
            self._ours.send(None)
        except (OSError, psutil.Error):
            pass  # it has ended
        self._process.join(CLOSE_SECONDS_MAX)
        left = [each for each in started if each.is_running()]
        for each in left:
            try:
                each.kill()
            except psutil.Error:
                pass  # it has ended meanwhile
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._ours.close()
        self._log.unlink(missing_ok=True)
