"""Where there is room for what is written in bulk: on the shards or, where these have none, in the overflow.

Rules kept here:

* What is written beside the shards is not on them any more: of two versions of one thing, the one that a shard has is
  the newer one. So readers look at the shards, and into the overflow only for what is missing there.
* A shard that has said that it is full is not sent anything for a moment, unless the overflow is full, too: what was
  asked for then may have been larger.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from fargate_storage.client.overflow import Overflow
from fargate_storage.client.stripes import flat
from lambda_worker.core.errors import StoreFull
from lambda_worker.core.wire import Frames

#: After a shard has said that it is full, it is not sent anything for so long: it would cross the network in vain.
FULL_SECONDS = 1.0
_OVERFLOW_HINT = "or have values overflow to a disk (serverless.storage.overflow)"

R = TypeVar("R")


class Room:
    """Finds room. Safe to use from several threads.

    Parameters
    ----------
    overflow
        What is beside the shards; None: nothing.
    """

    def __init__(self, overflow: Overflow | None) -> None:
        self.overflow = overflow
        self._full_until = float("-inf")

    def find(
        self,
        on_shards: Callable[[], R],
        beside: Callable[[], R],
        remove: Callable[[], object],
        *,
        is_new: bool = False,
    ) -> R:
        """Write something where there is room; return what the one that has done so returns.

        Parameters
        ----------
        on_shards, beside
            Write all of it, there or in the overflow; they raise `StoreFull`, maybe after a part.
        remove
            Removes it from the shards.
        is_new
            Whether nobody has written anything under these names before. Only then a part that was written is removed
            if there is no room for all: it might have been there, whole, from an earlier time.
        """
        if self.overflow is None:
            try:
                return on_shards()
            except StoreFull as error:
                raise StoreFull(f"{error}, {_OVERFLOW_HINT}") from None
        if time.monotonic() >= self._full_until:
            try:
                return on_shards()
            except StoreFull:
                self._full_until = time.monotonic() + FULL_SECONDS
        try:
            found = beside()
        except StoreFull as error:
            try:
                return on_shards()
            except StoreFull:
                if is_new:
                    remove()
                raise error from None
        remove()
        return found

    def replace(self, name: str, frames: Frames) -> bool:
        """Have something in the overflow, instead of anything else under its name; tell whether it was not there."""
        assert self.overflow is not None
        before = self.overflow.read(name)
        if before == [flat(frame) for frame in frames]:
            return False
        # The first complete write stays, so what is spoiled goes first. What is good stays: it may be being read.
        self.overflow.delete([name])
        try:
            self.overflow.write(name, frames)
        except StoreFull:
            if before is not None:  # there was room for it
                self.overflow.write(name, before)
            raise
        return True
