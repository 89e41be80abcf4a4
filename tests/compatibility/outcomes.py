"""What a program did, and whether two outcomes are the same."""

from __future__ import annotations

import contextlib
import inspect
import re
import tempfile
import threading
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from distributed import Client

from tests.compatibility.programs import Program

#: A program that takes longer hangs.
SECONDS_MAX = 40
#: One that is known to differ, and may hang.
DIFFERS_SECONDS_MAX = 10

#: Warnings that are not the program's: another server has Dask's port; the scheduler (it is in this process) hears of a
#: forgotten key from the client of a worker, or executor, that still has garbage of an earlier program.
_OF_OTHERS = re.compile(r"Port 8787 is already|Client '\w+-(worker|executor)-\S+' desires key .* but key is unknown")

_SCRUB = (
    (re.compile(r"(tcp|tls|inproc|ucx)://[^\s'\",)>\]]+"), "<address>"),
    (re.compile(r"0x[0-9a-f]+"), "<id>"),
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "<uuid>"),
    (re.compile(r"[0-9a-f]{32}"), "<token>"),
    (re.compile(re.escape(tempfile.gettempdir()) + r"/[^\s'\")]+"), "<file>"),
    (re.compile(r"\b\d+(\.\d+)? ?(ms|us|s|seconds)\b"), "<time>"),
)


@dataclass
class Outcome:
    """What one run of a program showed its user."""

    value: Any = None
    error: BaseException | None = None
    warnings: set[tuple[str, str]] = field(default_factory=set)
    hung: bool = False
    directory: str = ""

    def scrub(self, text: str) -> str:
        """Take out of a text what differs between any two runs."""
        text = text.replace(self.directory, "<directory>")
        for pattern, name in _SCRUB:
            text = pattern.sub(name, text)
        return text

    def describe(self) -> str:
        """Tell the outcome to whoever reads a failure."""
        if self.hung:
            return "hangs"
        lines = [f"warnings {sorted(self.warnings)}"] if self.warnings else []
        if self.error is not None:
            frames = traceback.extract_tb(self.error.__traceback__)[-3:]
            where = ", ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames)
            lines.append(f"raises {type(self.error).__qualname__}: {str(self.error)[:500]} (in {where})")
        else:
            lines.append(f"returns {repr(self.value)[:1000]}")
        return "\n".join(lines)


def run(program: Program, cluster: Any, seconds_max: float) -> Outcome:
    """Run a program with a client of its own, in a thread, so that it can hang."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        outcome.directory = directory
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        client = Client(cluster)
        offered = {"client": client, "cluster": cluster, "path": Path(directory)}
        arguments = {name: offered[name] for name in inspect.signature(program.function).parameters}

        def work() -> None:
            try:
                outcome.value = program.function(**arguments)
            except BaseException as error:
                outcome.error = error

        thread = threading.Thread(target=work, name=program.name, daemon=True)
        thread.start()
        thread.join(seconds_max)
        if thread.is_alive():
            outcome = Outcome(hung=True, directory=directory)
        client.close(timeout=5)
        thread.join(1)
    outcome.warnings = {
        (each.category.__name__, outcome.scrub(str(each.message)))
        for each in caught
        if not issubclass(each.category, ResourceWarning) and not _OF_OTHERS.match(str(each.message))
    }
    return outcome


def mistake(program: Program, expected: Outcome) -> str | None:
    """Return in words why what a program does under LocalCluster proves nothing; None if it does prove something."""
    if expected.hung:
        return "it hangs under LocalCluster"
    if program.raises is None and expected.error is not None:
        return "it raises under LocalCluster, and is not registered as raising"
    if program.raises is not None and type(expected.error) is not program.raises:
        return f"it is registered as raising {program.raises.__name__}, and does not under LocalCluster"
    return None


def difference(ours: Outcome, theirs: Outcome, rtol: float) -> str | None:
    """Return in words how two outcomes differ; None if they do not."""
    if ours.hung or theirs.hung:
        return None if ours.hung and theirs.hung else "one of them hangs"
    if (ours.error is None) != (theirs.error is None):
        return "one of them raises"
    if ours.error is not None and theirs.error is not None:
        if type(ours.error) is not type(theirs.error):
            return f"exception type: {type(ours.error)} is not {type(theirs.error)}"
        mine, other = ours.scrub(str(ours.error)), theirs.scrub(str(theirs.error))
        if mine != other:
            return f"exception message: {mine!r} is not {other!r}"
        mine, other = _raised_in(ours.error), _raised_in(theirs.error)
        if mine != other:
            return f"innermost frame of the traceback: {mine} is not {other}"
    else:
        try:
            same(ours.value, theirs.value, rtol, "result")
        except AssertionError as error:
            return str(error)
    if ours.warnings != theirs.warnings:
        return f"warnings: {sorted(ours.warnings)} are not {sorted(theirs.warnings)}"
    return None


def _raised_in(error: BaseException) -> str | None:
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1].name if frames else None


def same(ours: Any, theirs: Any, rtol: float, where: str) -> None:
    """Assert that two values are equal: floats closely, everything else exactly, with its type."""
    assert type(ours) is type(theirs), f"{where}: {type(ours)} is not {type(theirs)}: {ours!r}, {theirs!r}"
    if isinstance(theirs, np.ndarray) and theirs.dtype != object:
        assert ours.dtype == theirs.dtype, f"{where}: {ours.dtype} is not {theirs.dtype}"
        if isinstance(theirs, np.ma.MaskedArray):
            np.testing.assert_array_equal(np.ma.getmaskarray(ours), np.ma.getmaskarray(theirs), where)
            ours, theirs = ours.filled(), theirs.filled()
        if theirs.dtype.kind in "fc":
            np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol, err_msg=where)
        else:
            np.testing.assert_array_equal(ours, theirs, where)
    elif isinstance(theirs, pd.DataFrame):
        pd.testing.assert_frame_equal(ours, theirs, rtol=rtol, obj=where)
    elif isinstance(theirs, pd.Series):
        pd.testing.assert_series_equal(ours, theirs, rtol=rtol, obj=where)
    elif isinstance(theirs, pd.Index):
        pd.testing.assert_index_equal(ours, theirs, obj=where)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs), f"{where}: keys {list(ours)} are not {list(theirs)}"
        for key in theirs:
            same(ours[key], theirs[key], rtol, f"{where}[{key!r}]")
    elif isinstance(theirs, (list, tuple)) or (isinstance(theirs, np.ndarray) and theirs.dtype == object):
        assert len(ours) == len(theirs), f"{where}: {ours!r} is not {theirs!r}"
        for n, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            same(mine, other, rtol, f"{where}[{n}]")
    elif isinstance(theirs, (float, complex, np.floating, np.complexfloating)):
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol, err_msg=where)
    elif hasattr(theirs, "toarray"):
        same(ours.toarray(), theirs.toarray(), rtol, where)
    elif isinstance(theirs, BaseException):
        assert str(ours) == str(theirs), f"{where}: {ours!r} is not {theirs!r}"
    else:
        assert ours is theirs or ours == theirs or (theirs != theirs and ours != ours), (
            f"{where}: {ours!r} is not {theirs!r}"
        )
