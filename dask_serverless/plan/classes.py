"""Function classes: which kinds of Lambda function a cluster has, and which one a task needs.

Memory and timeout belong to a function's configuration, not to an invocation. So a cluster has several
functions with the same code, its *classes*. They are in ascending order: each has at least the memory and
the timeout of the one before. The first is the default class.

Whoever wants to run a task again with more (after it ran out of memory or time) takes the next number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True, slots=True)
class FunctionClass:
    """A Lambda function's name and configuration."""

    name: str
    memory_bytes: int
    timeout_seconds: float


def make_classes(
    name: str, memory_bytes: int, timeout_seconds: float, larger: Iterable[int], larger_timeout_seconds: float
) -> tuple[FunctionClass, ...]:
    """List a cluster's classes, the default one first.

    Parameters
    ----------
    name, memory_bytes, timeout_seconds
        The default class.
    larger
        Memory of the other classes; what is not above the default is left out.
    larger_timeout_seconds
        Their timeout. If it is longer than the default one, there is a class with the default memory and
        this timeout, so that nobody pays for memory who only needs time.

    Examples
    --------
    >>> for each in make_classes("dask", 2048 * MIB, 60, [1024 * MIB, 4096 * MIB], 900):
    ...     print(each.name, each.memory_bytes // MIB, each.timeout_seconds)
    dask 2048 60
    dask-2048mb 2048 900
    dask-4096mb 4096 900
    """
    timeout_seconds_max = max(timeout_seconds, larger_timeout_seconds)
    memories = sorted({memory for memory in larger if memory // MIB > memory_bytes // MIB})  # as Lambda counts
    if timeout_seconds_max > timeout_seconds:
        memories.insert(0, memory_bytes)
    return (
        FunctionClass(name, memory_bytes, timeout_seconds),
        *(FunctionClass(f"{name}-{memory // MIB}mb", memory, timeout_seconds_max) for memory in memories),
    )


def smallest_class(classes: Sequence[FunctionClass], memory_bytes: float = 0, timeout_seconds: float = 0) -> int | None:
    """Return the number of the first class that has so much memory and time; None if there is none.

    Examples
    --------
    >>> classes = make_classes("dask", 2048 * MIB, 60, [4096 * MIB], 900)
    >>> smallest_class(classes, memory_bytes=128 * MIB), smallest_class(classes, timeout_seconds=61)
    (0, 1)
    >>> smallest_class(classes, 3 * 1024 * MIB, 10), smallest_class(classes, 5 * 1024 * MIB)
    (2, None)
    """
    for number, each in enumerate(classes):
        if memory_bytes <= each.memory_bytes and timeout_seconds <= each.timeout_seconds:
            return number
    return None
