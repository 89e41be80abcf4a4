"""What the tasks of the workloads run: module-level functions, so that every contender pickles them by reference."""

from __future__ import annotations

import os
import struct
import time
from typing import Any

#: What a dated nap returns: when it began, and in which process.
BEGUN = "<dI"


def leaf(number: int) -> int:
    return number


def increment(number: int) -> int:
    return number + 1


def add(left: int, right: int) -> int:
    return left + right


def slow_add(left: int, right: int, seconds: float) -> int:
    time.sleep(seconds)
    return left + right


def total(*numbers: int) -> int:
    return sum(numbers)


def nap(number: int, seconds: float) -> int:
    time.sleep(seconds)
    return number


def dated_nap(seconds: float, number: int) -> bytes:
    begun = time.time()
    time.sleep(seconds)
    return struct.pack(BEGUN, begun, os.getpid())


def join(*parts: bytes) -> bytes:
    return b"".join(parts)


def blas_threads(_: Any = None) -> int:
    """Return how many threads BLAS would use here: the most of any library that is loaded (0: none is known)."""
    import numpy as np

    np.ones((2, 2)) @ np.ones((2, 2))
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return 0
    return max((int(each["num_threads"]) for each in threadpool_info()), default=0)


# -- frames -------------------------------------------------------------------------------------


def part(number: int, rows: int, keys: int, seed: int) -> Any:
    """Return one partition of a frame: two keys, five numbers, and a short text."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng([number, seed])
    first, second = rng.integers(0, keys, (2, rows))
    numbers = {f"number{i}": rng.random(rows) for i in range(5)}
    text = pd.array(np.char.add("text ", (first % 1_000).astype(str)), dtype="string[pyarrow]")
    return pd.DataFrame({"key": first, "other": second, **numbers, "text": text})


def figures(found: Any) -> Any:
    """Return what tells that the rows are there, the same for any order of them."""
    import pandas as pd

    return pd.DataFrame({"rows": [len(found)], "keys": [int(found.key.sum())], "other": [int(found.other.sum())]})
