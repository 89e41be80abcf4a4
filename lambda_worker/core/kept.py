"""The values that an executor needs: where those from elsewhere are, which are here, how many reasons keep each. Pure.

A value is kept once for every child that may still run here, and once while it waits to be published as a
result. When the last reason goes, it is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lambda_worker.core.wire import Location, Ref


class Kept:
    """Values and the reasons to keep them, by task number.

    Attributes
    ----------
    nbytes
        Size of the large values that are here.
    released
        Values to be forgotten: the last reason to keep them went.

    Examples
    --------
    >>> kept = Kept({0: b"elsewhere"})
    >>> kept.keep_all([0])
    >>> kept.made(1, nbytes=1_000_000)
    >>> kept.keep(1, reasons=2)
    >>> kept.missing([0, 1]), kept.nbytes
    ({0: b'elsewhere'}, 1000000)
    >>> kept.release(1)
    >>> kept.release_all([0, 1])
    >>> kept.take_released(), kept.nbytes
    ([0, 1], 0)
    """

    def __init__(self, located: Mapping[int, Location]) -> None:
        self.nbytes = 0
        self.released: list[int] = []
        self._located = dict(located)
        self._here: set[int] = set()
        self._lost: set[int] = set()  # neither here nor anywhere else
        self._reasons: dict[int, int] = {}  # more than zero each
        self._nbytes: dict[int, int] = {}
        self._cached: dict[int, int] = {}  # sizes of what is elsewhere, and in the sandbox as well

    def cached(self, sizes: Mapping[int, int]) -> None:
        """Note the sizes of values that the sandbox has from jobs before: reading them costs nothing here."""
        self._cached.update(sizes)

    def is_cached(self, task: int) -> bool:
        """Tell whether the sandbox has a value that is elsewhere as well."""
        return task in self._cached

    def made(self, task: int, nbytes: int) -> None:
        """Note that a value was made here, and its size if it is large."""
        self._cached.pop(task, None)
        self._here.add(task)
        self._lost.discard(task)
        if nbytes:
            self.nbytes += nbytes - self._nbytes.get(task, 0)
            self._nbytes[task] = nbytes

    def fetched(self, tasks: Iterable[int], sizes: Mapping[int, int] = {}) -> None:  # noqa: B006
        """Note that values from elsewhere are here, of these sizes, or of those that they have elsewhere."""
        for task in tasks:
            self._cached.pop(task, None)
            if task not in self._here:
                self._here.add(task)
                location = self._located.get(task)
                if isinstance(location, Ref):
                    nbytes = self._nbytes[task] = sizes.get(task, location.nbytes)
                    self.nbytes += nbytes

    def nbytes_of(self, tasks: Iterable[int]) -> int:
        """Return the size of those of these values that are here and large."""
        sizes = self._nbytes
        return sum(sizes.get(task, 0) for task in tasks) if sizes else 0

    def nbytes_near(self, tasks: Iterable[int]) -> int:
        """Return the size of those of these values that are large, and are here or cached."""
        cached = self._cached
        if not cached:
            return self.nbytes_of(tasks)
        return sum(self._nbytes.get(task) or cached.get(task, 0) for task in tasks)

    @property
    def has_large(self) -> bool:
        """Whether any large values are here or cached."""
        return bool(self.nbytes or self._cached)

    def locate(self, task: int, location: Location) -> None:
        """Note where a value is, unless it is here."""
        if task not in self._here:
            self._located[task] = location

    def lose(self, tasks: Iterable[int]) -> None:
        """Note that values are not where they were."""
        for task in tasks:
            self._cached.pop(task, None)
            if self._located.pop(task, None) is not None:
                self._lost.add(task)

    def renew(self, tasks: Iterable[int]) -> None:
        """Note that values are to be made again, even if they are here."""
        for task in tasks:
            self._here.discard(task)
            self._cached.pop(task, None)
            self._located.pop(task, None)
            self.nbytes -= self._nbytes.pop(task, 0)
            self._lost.add(task)

    def present(self, tasks: Iterable[int]) -> list[int]:
        """Return those values that are here."""
        return [task for task in tasks if task in self._here]

    def gone(self, tasks: Iterable[int]) -> list[int]:
        """Return those values that are neither here nor known to be anywhere else."""
        return [task for task in tasks if task not in self._here and task not in self._located]

    def missing(self, tasks: Iterable[int]) -> dict[int, Location]:
        """Return where those values are that are not here."""
        here = self._here
        return {task: self._located[task] for task in tasks if task not in here}

    def keep(self, task: int, reasons: int = 1) -> None:
        """Add reasons to keep a value; one that then has none at all goes."""
        reasons += self._reasons.get(task, 0)
        if reasons:
            self._reasons[task] = reasons
        else:
            self._drop(task)

    def keep_all(self, tasks: Iterable[int]) -> None:
        """Add a reason to keep each of these values."""
        for task in tasks:
            self.keep(task)

    def release(self, task: int) -> None:
        """Take away a reason to keep a value."""
        self.release_all((task,))

    def release_all(self, tasks: Iterable[int]) -> None:
        """Take away a reason to keep each of these values."""
        reasons = self._reasons
        for task in tasks:
            left = reasons.get(task, 0) - 1
            if left > 0:
                reasons[task] = left
            else:
                self._drop(task)

    def _drop(self, task: int) -> None:
        self._reasons.pop(task, None)
        self._cached.pop(task, None)
        self.nbytes -= self._nbytes.pop(task, 0)
        if self._located.pop(task, None) is not None or task in self._here or task in self._lost:
            self._here.discard(task)
            self._lost.discard(task)
            self.released.append(task)

    def take_released(self) -> list[int]:
        """Hand out what is to be forgotten.

        One that a claim asked for again, in the very answer that released it, is not.
        """
        released, self.released = self.released, []
        return [task for task in released if task not in self._reasons]
