"""Values that are lost, and are made again here from what they were made of. Pure.

A value that somebody wrote may be gone when it is needed: its shard has died. Whoever misses it makes it again,
for itself: it runs the task anew, and before that, whatever is missing of *its* inputs, back to values that are
here or can be read, or to tasks without parents. Nothing else runs again, and nothing is arrived with again:
the store knows that these tasks are done. Others that miss the same value make it for themselves.

A value is **remade** by running its task. Who needs it **waits**: an ordinary task of this executor, or the
remaking of another value. Each value is remade once at a time, whoever waits for it.

It always ends: what was remade stays until those who wait have run, so each of them waits for each of its
inputs once; and parents have smaller numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

#: How often one executor makes one value again before the tasks that need it err.
REMAKES_MAX = 50
#: The same for what tasks have written beside their values: where they write something else every time, as tasks may
#: that draw random numbers, executors would undo each other's work for ever.
REWRITES_MAX = 3


class Lineage:
    """What is being remade, and who waits for it.

    Attributes
    ----------
    ready
        Tasks to be run again as soon as their inputs are here, the next one last.

    Examples
    --------
    Task 5 misses the values of 3 and 4, and to remake 4 that of 2 is missing:

    >>> lineage = Lineage()
    >>> lineage.wait(5, [3, 4])
    >>> lineage.ready, lineage.opens(4), lineage.opens(4)
    ([4, 3], True, False)
    >>> lineage.take(), lineage.take()
    (3, 4)
    >>> lineage.wait(4, [2])
    >>> lineage.made(3), lineage.made(2), lineage.ready
    ([], [], [2, 4])
    >>> lineage.made(4)
    [5]
    """

    def __init__(self) -> None:
        self.ready: list[int] = []
        self._remaking: dict[int, None] = {}
        self._opened: set[int] = set()  # of these: whose inputs are kept
        self._missing: dict[int, set[int]] = {}  # by who waits
        self._waiters: dict[int, dict[int, None]] = {}  # by value
        self._times: dict[int, int] = {}
        self._twice: set[int] = set()  # remade, while the task itself is due here, too
        self._locating: set[int] = set()
        self._anew: set[int] = set()  # to be remade with all their inputs
        self._parked: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._remaking or self._missing)

    def __contains__(self, task: int) -> bool:
        """Tell whether the value of a task is being remade."""
        return task in self._remaking

    def hopeless(self, values: Iterable[int], times_max: int = REMAKES_MAX) -> bool:
        """Tell whether one of these values has been remade too often."""
        return any(self._times.get(value, 0) >= times_max for value in values)

    def make_anew(self, values: Iterable[int]) -> None:
        """Note that values are to be remade with all their inputs, whether these are here or not."""
        self._anew.update(values)

    def is_anew(self, task: int) -> bool:
        """Tell, once, whether a task is to be run again with all its inputs."""
        anew = task in self._anew
        self._anew.discard(task)
        return anew

    def wait(self, task: int, values: Iterable[int], coming: Collection[int] = ()) -> None:
        """Note that a task misses values: they are remade, but for those that are `coming` here in any case."""
        missing = self._missing.setdefault(task, set())
        for value in sorted(values, reverse=True):  # the lowest number ends on top
            missing.add(value)
            self._waiters.setdefault(value, {})[task] = None
            # One that waits here itself, as a task of its own, is on its way, too.
            if value not in self._remaking and value not in coming and value not in self._missing:
                self._remaking[value] = None
                self._times[value] = self._times.get(value, 0) + 1
                self.ready.append(value)

    def take(self) -> int:
        """Take the next task to be run again."""
        return self.ready.pop()

    def opens(self, task: int) -> bool:
        """Tell whether this is the first look at what a task to be run again needs."""
        if task in self._opened:
            return False
        self._opened.add(task)
        return True

    def locate(self, task: int) -> None:
        """Put a task aside until it is known where its inputs are."""
        self._locating.add(task)

    def located(self, task: int) -> bool:
        """Go on with a task that was put aside; tell whether it was."""
        if task not in self._locating:
            return False
        self._locating.discard(task)
        self.ready.append(task)
        return True

    def park(self, task: int) -> None:
        """Note that a task that ran again is to run once more, later."""
        self._parked.add(task)

    def fold(self, tasks: Iterable[int]) -> list[int]:
        """Return those of these tasks, due here, that are not run again for their values: once is enough."""
        others = []
        for task in tasks:
            if task in self._parked:
                self._parked.discard(task)
                self.ready.append(task)
            elif task in self._remaking:
                self._twice.add(task)
            else:
                others.append(task)
        return others

    def ended(self, task: int) -> bool:
        """Note that a task that ran again has ended; tell whether it was also due here as a task of its own."""
        del self._remaking[task]
        for each in (self._opened, self._locating, self._parked):
            each.discard(task)
        due = task in self._twice
        self._twice.discard(task)
        return due

    def made(self, value: int) -> list[int]:
        """Note that a value is here; return the tasks of this executor that wait for nothing more."""
        if value in self._remaking:
            self.ended(value)
        going_on = []
        for task in self._waiters.pop(value, ()):
            missing = self._missing[task]
            missing.discard(value)
            if not missing:
                del self._missing[task]
                if task in self._remaking:
                    self.ready.append(task)
                else:
                    going_on.append(task)
        return going_on

    def give_up(self, value: int) -> tuple[list[int], list[int]]:
        """Note that a value cannot be remade.

        Returns the tasks of this executor that can therefore not be run, and the values that are not remade
        either although their inputs are kept.
        """
        tasks, opened = [], []
        stack = [value]
        while stack:
            lost = stack.pop()
            for task in self._waiters.pop(lost, ()):
                for other in self._missing.pop(task, ()):
                    if other != lost and other in self._waiters:
                        self._waiters[other].pop(task, None)
                stack.append(task)
                if task not in self._remaking:
                    tasks.append(task)
                    continue
                if task in self._opened:
                    opened.append(task)
                if self.ended(task):
                    tasks.append(task)
        return tasks, opened

    def abandon(self, busy: Collection[int]) -> tuple[list[int], list[int]]:
        """Remake nothing more, but for what is `busy` (running, or about to).

        Returns the tasks of this executor that waited, and the values whose inputs were kept to remake them.
        """
        tasks = [task for task in self._missing if task not in self._remaking]
        opened = []
        for task in [task for task in self._remaking if task not in busy]:
            if task in self._opened:
                opened.append(task)
            if self.ended(task):
                tasks.append(task)
        self.ready.clear()
        self._missing.clear()
        self._waiters.clear()
        return tasks, opened
