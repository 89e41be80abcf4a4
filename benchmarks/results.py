"""What is kept of runs: one JSON file with the newest result of every workload, each with the run that it is from.

A result replaces the one before of the same workload, except that a quick one never replaces a full one.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("dask", "distributed", "numpy", "pandas", "scikit-learn", "ray", "lithops", "cubed")
#: What there may be results of, each from a run.
SECTIONS = ("workloads", "ablation", "factors", "wide")
EMPTY: Mapping[str, Any] = {name: {} for name in ("runs", *SECTIONS)}


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """Return the commit that is measured, with a mark if files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def describe_run(repeat: int) -> dict[str, Any]:
    """Return when and where this run is."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {package: version(package) for package in PACKAGES},
        "repeat": repeat,
    }


def read(path: Path | None) -> dict[str, Any]:
    """Return what is kept so far; without a file, nothing."""
    kept = json.loads(path.read_text()) if path is not None and path.exists() else {}
    return {name: dict(kept.get(name, {})) for name in EMPTY}


def merge(kept: Mapping[str, Any], section: str, found: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept after a run: its results in the place of those before, and the runs that results are from.

    Examples
    --------
    >>> before = merge(EMPTY, "workloads", {"tree": {"quick": False}}, {"date": "Monday"})
    >>> after = merge(before, "workloads", {"tree": {"quick": True}, "map": {"quick": True}}, {"date": "Tuesday"})
    >>> {name: after["runs"][each["run"]]["date"] for name, each in after["workloads"].items()}
    {'tree': 'Monday', 'map': 'Tuesday'}
    """
    merged: dict[str, Any] = {name: dict(kept.get(name, {})) for name in EMPTY}
    name = str(1 + max(map(int, merged["runs"]), default=0))
    for workload, result in found.items():
        before = merged[section].get(workload)
        if before is None or before["quick"] or not result["quick"]:
            merged[section][workload] = {**result, "run": name}
    merged["runs"][name] = dict(run)
    used = {each["run"] for part in SECTIONS for each in merged[part].values()}
    merged["runs"] = {each: about for each, about in merged["runs"].items() if each in used}
    return merged


def write(path: Path, kept: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n")
