"""Which shard has what, once some of a cluster's shards have been given up. They are known by their numbers.

Rules kept here:

* The metadata server has the map (`Keys.shard_map`). Whoever meets a shard that cannot be reached looks there; nobody
  asks while all goes well. So processes that started earlier learn of a change when it matters to them.
* A shard that was given up stays so: the map only grows, and its size is its version.
* What belongs to such a shard has another one, by its name alone. Among those that are left, everybody finds the same
  one; and what was written there is found still when more are given up, as long as its own is not.
* What was in it is not moved: nobody has it any more. Looked for elsewhere, it is missing, which is what a loss looks
  like everywhere else, and it is made again (decision 0024).
"""

from __future__ import annotations

import functools
import hashlib
import zlib
from collections.abc import Callable, Iterable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from lambda_worker.core.errors import StoreUnavailable

P = ParamSpec("P")
R = TypeVar("R")


class ShardMap:
    """The shards of a cluster, as far as this process knows.

    Parameters
    ----------
    count
        How many there are.
    read
        Returns those that were given up, from the metadata server.
    on_gone
        Called with each that turns out to have been.

    Examples
    --------
    >>> shard_map = ShardMap(3, read=lambda: [1])
    >>> shard_map.server(1, "job/1"), shard_map.is_gone(1), shard_map.server(1, "job/1") in (0, 2), shard_map
    (1, True, True, <ShardMap of 3, without 1>)
    """

    def __init__(
        self, count: int, read: Callable[[], Iterable[int]] = tuple, on_gone: Callable[[int], None] = lambda shard: None
    ) -> None:
        self.count = count
        self.gone: frozenset[int] = frozenset()
        self._read = read
        self._on_gone = on_gone

    def __repr__(self) -> str:
        without = f", without {', '.join(map(str, sorted(self.gone)))}" if self.gone else ""
        return f"<ShardMap of {self.count}{without}>"

    def server(self, shard: int, name: str) -> int:
        """Return which shard has something of that name that belongs to a shard."""
        shard %= self.count
        return shard if shard not in self.gone else min(self.left(), key=lambda each: _draw(each, name))

    def by_name(self, name: str) -> int:
        """Return which shard has something that belongs where its name says."""
        return self.server(zlib.crc32(name.encode()), name)

    def left(self) -> list[int]:
        """Return the shards that were not given up."""
        return [shard for shard in range(self.count) if shard not in self.gone]

    def is_gone(self, shard: int) -> bool:
        """Look at the metadata server whether a shard was given up.

        Raises
        ------
        StoreUnavailable
            That cannot be reached either.
        """
        if shard not in self.gone:
            self.learn(self._read())
        return shard in self.gone

    def learn(self, gone: Iterable[int]) -> None:
        """Hear which shards were given up."""
        news = frozenset(gone) - self.gone
        if not self.gone | news < frozenset(range(self.count)):  # the last one is never: its loss is everybody's end
            return
        self.gone |= news
        for shard in sorted(news):
            self._on_gone(shard)


def _draw(shard: int, name: str) -> tuple[bytes, int]:
    # The smallest of those that are left stays the smallest when others leave (rendezvous hashing). Not by a checksum:
    # they are linear, so that two shards' draws differ by the same for all names of one length.
    return hashlib.blake2b(f"{shard} {name}".encode(), digest_size=8).digest(), shard


class _HasMap(Protocol):
    @property
    def shard_map(self) -> ShardMap: ...


def while_shards_go(
    step: Callable[Concatenate[Any, P], R],
) -> Callable[Concatenate[Any, P], R]:
    """Have a step be done again, with the shards that are left, if one turns out to be gone in the middle of it.

    It may be repeated, as everything that is sent to the store.
    """

    @functools.wraps(step)
    def repeated(self: _HasMap, *args: P.args, **options: P.kwargs) -> R:
        while True:
            known = self.shard_map.gone
            try:
                return step(self, *args, **options)
            except StoreUnavailable:  # bound: the map can only lose as many shards as there are
                if self.shard_map.gone == known:
                    raise

    return repeated
