"""Values and constants that were at hand lately: reading them again costs nothing while they stay.

What is stored never changes under its name, so what is kept here under that name stays right: for the
next task, and, in a warm sandbox, for the next job.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Cache:
    """Values by the names under which they are stored; the one used longest ago leaves first.

    Parameters
    ----------
    bytes_max
        Size of all values, at most, and of what else is `beside` them. Larger ones are not kept at all.

    Examples
    --------
    >>> cache = Cache(bytes_max=100)
    >>> cache.put("a", "first", 60), cache.put("b", "second", 30)
    (None, None)
    >>> cache.get("a"), cache.put("c", "third", 30)
    ('first', None)
    >>> cache.get("b"), "a" in cache, cache.nbytes
    (None, True, 90)
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.nbytes = 0
        self._beside = 0
        self._coming = 0
        self._values: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()  # tasks and input run on different threads

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def nbytes_of(self, name: str) -> int:
        """Return the size of a value; 0: it is not here."""
        found = self._values.get(name)
        return 0 if found is None else found[1]

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value, or `default`."""
        with self._lock:
            found = self._values.get(name)
            if found is None:
                return default
            self._values.move_to_end(name)
            return found[0]

    def take(self, name: str, default: Any = None) -> Any:
        """Return a value that is counted elsewhere from now on, or `default`."""
        with self._lock:
            found = self._values.pop(name, None)
            if found is None:
                return default
            self.nbytes -= found[1]
            return found[0]

    def put(self, name: str, value: Any, nbytes: int) -> None:
        """Keep a value for as long as there is room."""
        with self._lock:
            if name in self._values:
                self._values.move_to_end(name)
                return
            if nbytes > self.bytes_max:
                return
            self._values[name] = (value, nbytes)
            self.nbytes += nbytes
            self._shrink(self._room)

    def make_room(self, nbytes: int) -> None:
        """So much else is in memory now, beside what is kept here.

        Examples
        --------
        >>> cache = Cache(bytes_max=100)
        >>> cache.put("a", "first", 60), cache.make_room(30), "a" in cache
        (None, None, True)
        >>> cache.make_room(50), "a" in cache
        (None, False)
        """
        if nbytes != self._beside:
            with self._lock:
                self._beside = nbytes
                self._shrink(self._room)

    @contextmanager
    def expecting(self, nbytes: int) -> Iterator[None]:
        """So much is being read, and nobody knows of it yet."""
        with self._lock:
            self._coming += nbytes
            self._shrink(self._room)
        try:
            yield
        finally:
            with self._lock:
                self._coming -= nbytes

    def shrink(self, nbytes: int) -> None:
        """Keep only so much of what is kept now."""
        with self._lock:
            self._shrink(nbytes)

    @property
    def _room(self) -> int:
        return self.bytes_max - self._beside - self._coming

    def _shrink(self, nbytes: int) -> None:
        while self._values and self.nbytes > nbytes:
            _, (_, size) = self._values.popitem(last=False)
            self.nbytes -= size
