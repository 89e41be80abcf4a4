"""What runs while things go wrong: other data in each round, and the answer that the synchronous scheduler gives."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask import delayed

LEAVES = 128
LEAF_SECONDS = 0.02
#: Above what travels inside messages, so that values go through the data servers.
LEAF_ITEMS = 12_000


def leaf(number: int) -> Any:
    """Make a value, slowly."""
    time.sleep(LEAF_SECONDS)
    return np.full(LEAF_ITEMS, float(number))


def tree(number: int, leaves: int = LEAVES) -> Any:
    """Return a tree reduction of some leaves, in pairs."""
    values = [delayed(leaf)(number + n, dask_key_name=f"leaf-{number}-{n}") for n in range(leaves)]
    level = 0
    while len(values) > 1:
        level += 1
        values = [
            delayed(np.add)(*values[n : n + 2], dask_key_name=f"sum-{number}-{level}-{n}")
            for n in range(0, len(values), 2)
        ]
    return values[0]


def svd(number: int) -> Any:
    """Return the singular values of a tall matrix."""
    x = da.random.default_rng(number).normal(size=(12_000, 60), chunks=(400, 60))
    return da.linalg.svd(x)[1]


def shuffle(number: int) -> Any:
    """Return sums by group of a frame that was shuffled."""
    rows = np.arange(60_000)
    frame = pd.DataFrame({"x": (rows * 7919) % 97, "y": rows + number})
    return dd.from_pandas(frame, npartitions=24).shuffle("x").groupby("x").y.sum()


WORKLOADS: dict[str, Callable[[int], Any]] = {"tree": tree, "svd": svd, "shuffle": shuffle}


def answer(collection: Any) -> Any:
    """Return what the synchronous scheduler says; a client that is there must not have a part in it."""
    with dask.config.set({"dataframe.shuffle.method": "tasks"}):
        return collection.compute(scheduler="sync")


def agree(found: Any, expected: Any) -> None:
    """Raise AssertionError unless two answers are the same."""
    if isinstance(expected, pd.Series):
        pd.testing.assert_series_equal(found.sort_index(), expected.sort_index())
    else:
        np.testing.assert_allclose(found, expected)
