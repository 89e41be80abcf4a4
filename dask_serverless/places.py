"""How many executors may live at once: pure bookkeeping for `dispatch`.

The ceiling is for executors that are at work. One whose task waits for others would keep them out, so it
does not count; neither does one that runs an urgent job, which does not stand in line.
"""

from __future__ import annotations


class Places:
    """The ceiling, and who does not count below it.

    Parameters
    ----------
    ceiling
        How many executors may be at work at once.

    Examples
    --------
    >>> places = Places(2)
    >>> places.note_seceded("j1", "a", True), places.count
    (True, 3)
    >>> places.ask("j2")  # its executor is not there yet
    >>> places.count, places.awaited
    (3, 1)
    >>> places.take("j2"), places.count, places.awaited
    (True, 4, 0)
    >>> places.forget("j1"), places.forget("j2"), places.count
    (True, True, 2)
    """

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self._seceded: set[tuple[str, str]] = set()  # executors whose task waits for others
        self._urgent: dict[str, bool] = {}  # jobs that go above the ceiling, and whether they have been admitted

    def __repr__(self) -> str:
        return f"<Places: {self.count}, {self.ceiling} of them below the ceiling>"

    @property
    def count(self) -> int:
        """How many executors may live.

        An urgent one makes a place when it is there. Before that, somebody else could take it.
        """
        return self.ceiling + len(self._seceded) + sum(self._urgent.values())

    @property
    def awaited(self) -> int:
        """How many urgent executors are on their way, and will need a place."""
        return len(self._urgent) - sum(self._urgent.values())

    def ask(self, job: str) -> None:
        """An urgent job is going to need a place."""
        self._urgent[job] = False

    def is_urgent(self, job: str) -> bool:
        """Tell whether a job goes above the ceiling."""
        return job in self._urgent

    def take(self, job: str) -> bool:
        """The executor of an urgent job is there; tell whether that changes anything."""
        if job not in self._urgent:
            return False
        self._urgent[job] = True
        return True

    def note_seceded(self, job: str, executor: str, seceded: bool) -> bool:
        """An executor's task waits for others, or goes on; tell whether that changes anything."""
        before = len(self._seceded)
        if seceded:
            self._seceded.add((job, executor))
        else:
            self._seceded.discard((job, executor))
        return len(self._seceded) != before

    def forget(self, job: str) -> bool:
        """A job is over, with all its executors; tell whether that changes anything."""
        gone = {each for each in self._seceded if each[0] == job}
        self._seceded -= gone
        return self._urgent.pop(job, None) is not None or bool(gone)
