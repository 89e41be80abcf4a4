"""The key prefixes of a job, numbered: what tasks of one prefix have in common is worth learning.

Dask names a task after what it does, and adds what makes the name unique; what comes before that is the key's
*prefix* (`dask.utils.key_split`). Executors know tasks by number only, so they are told the number of each task's
prefix, in runs, since neighbours mostly have the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass

from lambda_worker.core.schedule import PREFIXES_MAX, SEGMENT_TASKS

#: Stands for all prefixes beyond the first ones of a job: nothing is learned of them.
OTHERS = ""


@dataclass(frozen=True, slots=True)
class Prefixes:
    """The key prefixes of one job.

    Parameters
    ----------
    names
        The prefixes by number.
    counts
        How many tasks that are to be run have each.
    runs
        For each segment, its `lambda_worker.core.schedule.Edges.prefixes`.
    """

    names: Sequence[str]
    counts: Sequence[int]
    runs: Sequence[Sequence[int]]

    def of_each(self) -> list[int]:
        """Return the prefix number of each task (and of some more, if the last segment is not full).

        Examples
        --------
        >>> Prefixes(["inc", "sum"], [2, 1], [[0, 2, 1, 1]]).of_each()
        [0, 0, 1]
        """
        found: list[int] = []
        for run in self.runs:
            for at in range(0, len(run), 2):
                found += [run[at]] * run[at + 1]
            if not run:
                found += [0] * SEGMENT_TASKS
        return found

    def of(self, task: int) -> str:
        """Return the prefix of a task.

        Examples
        --------
        >>> Prefixes(["inc", "sum"], [2, 1], [[0, 2, 1, 1]]).of(2)
        'sum'
        """
        return self.names[_at(self.runs[task // SEGMENT_TASKS], task % SEGMENT_TASKS)]


def number_prefixes(
    keys: Sequence[Hashable], split: Callable[[Hashable], str], externals: Collection[int] = ()
) -> Prefixes:
    """Number the prefixes of the tasks with these keys, in the order in which they are met.

    Splitting a key takes longer than running some tasks. So keys that differ only in what `dask.base.tokenize` or
    `uuid.uuid4` have added are split once.

    Parameters
    ----------
    keys
        The key of each task.
    split
        Returns the prefix of a key.
    externals
        Tasks that are not run.

    Examples
    --------
    >>> keys = [("inc-1a", 0), ("inc-1a", 1), "sum-2b", "sum-2c"]
    >>> number_prefixes(keys, lambda key: (key[0] if isinstance(key, tuple) else key).split("-")[0])
    Prefixes(names=['inc', 'sum'], counts=[2, 2], runs=[[0, 2, 1, 2]])
    """
    numbers: dict[str, int] = {}
    counts: list[int] = []
    runs: list[list[int]] = []
    by_head: dict[str, int] = {}  # what comes before the token
    last: Hashable = None
    number = 0
    for first in range(0, len(keys), SEGMENT_TASKS):
        run: list[int] = []
        before, since = -1, first
        for task, key in enumerate(keys[first : first + SEGMENT_TASKS], first):
            name = key[0] if type(key) is tuple else key
            if name is not last:
                last = name
                head = _head(name) if type(name) is str else ""
                known = by_head.get(head) if head else None
                if known is None:
                    prefix = split(name)
                    if prefix not in numbers and len(numbers) >= PREFIXES_MAX - 1:
                        prefix = OTHERS
                    known = numbers.setdefault(prefix, len(numbers))
                    if known == len(counts):
                        counts.append(0)
                    if head:
                        by_head[head] = known
                number = known
            if number != before:
                if task > since:
                    run += before, task - since
                    counts[before] += task - since
                before, since = number, task
        end = min(first + SEGMENT_TASKS, len(keys))
        run += before, end - since
        counts[before] += end - since
        runs.append([] if run[0] == 0 and len(run) == 2 else run)
    for external in externals:
        counts[_at(runs[external // SEGMENT_TASKS], external % SEGMENT_TASKS)] -= 1
    return Prefixes(list(numbers), counts, runs)


def _at(run: Sequence[int], place: int) -> int:
    """Return the prefix number of a task of a segment."""
    for at in range(0, len(run), 2):
        place -= run[at + 1]
        if place < 0:
            return run[at]
    return 0


def _head(name: str) -> str:
    """Return what comes before a token of 32 digits or one of 36 characters; "" if there is none."""
    return name[:-33] if name[-33:-32] == "-" else name[:-37] if name[-37:-36] == "-" else ""
