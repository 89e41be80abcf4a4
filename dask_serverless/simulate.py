"""Runs many simulations, on all cores; and says how to see one of them again."""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

from dask_serverless._version import __version__
from dask_serverless.simulator import faults
from dask_serverless.simulator.simulation import Outcome, Parts, Simulation

#: Seeds that one process takes at once.
BATCH_SEEDS = 50


def check_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Return names of classes of faults, or say which of them there is none of.

    Examples
    --------
    >>> check_classes(["crash", "rollback"])
    ('crash', 'rollback')
    """
    found = tuple(names)
    for name in found:
        if name not in faults.CLASSES:
            raise ValueError(f"there are no faults of class {name!r}, but of these: {', '.join(faults.CLASSES)}")
    return found


def simulate(
    seed: int, among: Collection[str] | None = None, share: float | None = None, parts: Parts | None = None
) -> Outcome:
    """Run one simulation.

    Parameters
    ----------
    seed
        Draws everything.
    among
        Classes of faults that may happen (None: all of them).
    share
        The chance of each of them (None: as usual).
    parts
        What the run is made of.

    Examples
    --------
    >>> simulate(7, among=[]).faults
    Faults()
    """
    drawn = None
    if among is not None or share is not None:
        chosen = faults.CLASSES.keys() if among is None else check_classes(among)
        drawn = faults.draw(faults.luck_of(seed), chosen, faults.SHARE if share is None else share)
    return Simulation(seed, faults=drawn, parts=parts).run()


def simulate_many(
    seeds: Iterable[int], among: Collection[str] | None = None, share: float | None = None, processes: int | None = None
) -> Iterator[Outcome]:
    """Run simulations on several cores, and yield what came of them, in order. Stories come with failures only.

    Examples
    --------
    >>> [outcome.violation for outcome in simulate_many(range(4), processes=1)]
    [None, None, None, None]
    """
    todo = iter(seeds)
    batches = list(iter(lambda: list(islice(todo, BATCH_SEEDS)), []))
    count = min(processes or os.cpu_count() or 1, len(batches))
    if count <= 1:
        for batch in batches:
            yield from _batch(batch, among, share)
        return
    with ProcessPoolExecutor(count) as pool:
        running = [pool.submit(_batch, batch, among, share) for batch in batches]
        try:
            for each in running:
                yield from each.result()  # bound: each seed ends with its virtual time
        finally:
            for each in running:
                each.cancel()


def _batch(seeds: list[int], among: Collection[str] | None, share: float | None) -> list[Outcome]:
    gc.collect()  # a run is full of cycles: what the last ones left is not to pile up
    return [outcome if outcome.violation else outcome.brief() for outcome in (simulate(s, among, share) for s in seeds)]


def commit() -> str:
    """Name what is running: its commit if this is a checkout, else its version."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__


def replay_line(seed: int, among: Collection[str] | None = None, share: float | None = None) -> str:
    """Return the command that runs a simulation again.

    Examples
    --------
    >>> replay_line(7, ["crash"]).rpartition(" ")[0]
    'dask serverless simulate --seed 7 --faults crash --commit'
    """
    options = "" if among is None else f" --faults {','.join(among) or 'none'}"
    options += "" if share is None else f" --share {share:g}"
    return f"dask serverless simulate --seed {seed}{options} --commit {commit()}"
