"""Where values go that find no room on the servers, or shall outlive them: the port, and how an adapter is found.

Four promises, which any place that can put, get, delete and list keeps (a directory, a bucket):

* A write is whole or nothing: who reads never sees a part of it, whatever the writer died of.
* The first complete write of a name stays. Names are unique to one write, so a second one would write the same.
* A read returns exactly the frames that were written, or says that they are missing.
* Deleting what is not there is no error.

What is kept here is sealed by whoever wrote it, as everything in the tier is: nothing of it is decoded here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol
from urllib.parse import unquote, urlsplit

from lambda_worker.core.wire import Frame, Frames

#: As the shard of a `Ref`: the value is in the overflow.
OVERFLOW = -1


class Overflow(Protocol):
    """Values by name, beside the servers. Safe to use from several threads and processes.

    The first part of a name (up to ``/``) is the job that it belongs to. Raises `StoreUnavailable` when the place
    cannot be used at all.
    """

    def write(self, name: str, frames: Frames) -> None:
        """Keep a value. Raises `StoreFull`, which says where, how much is used and allowed, and what to do."""
        ...

    def read(self, name: str, first: int = 0, count: int | None = None) -> list[Frame] | None:
        """Return a value's frames, or `count` of them from number `first` on; None: it is missing, or not as it was
        written. Renews its time to live."""
        ...

    def names(self, prefix: str) -> list[str]:
        """Name the values of one job whose names begin so. Of names above 100 bytes some may be left out."""
        ...

    def has(self, name: str) -> bool:
        """Tell whether there is a value, without reading it."""
        ...

    def touch(self, names: Iterable[str]) -> None:
        """Renew values' time to live. What nobody has used for that long may go when there is no room."""
        ...

    def delete(self, names: Iterable[str]) -> None:
        """Remove values."""
        ...

    def forget(self, job: str, keep: Collection[str]) -> None:
        """Remove all that belongs to a job, except some names."""
        ...

    def usage(self) -> int:
        """Return how many bytes are used now, of all that is kept here."""
        ...


def open_overflow(url: str, bytes_max: int, ttl_seconds: float) -> Overflow:
    """Return the adapter for a URL; nothing is opened before the first call.

    Examples
    --------
    >>> open_overflow("file:///var/tmp/overflow", 10**9, 86_400)
    <DirectoryOverflow at /var/tmp/overflow, at most 1,000,000,000 bytes>
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        from fargate_storage.client.directory import DirectoryOverflow

        return DirectoryOverflow(unquote(parts.path), bytes_max, ttl_seconds)
    raise ValueError(f"there is no overflow of the kind {parts.scheme!r}: a file:// URL is known")
