"""Tasks that raised `Reschedule`: each waits, a little longer every time, before it runs again. Pure.

Dask's scheduler hands such a task out again at once, for ever. Here that would be an executor that
spins, and on AWS one that is billed for spinning.
"""

from __future__ import annotations

#: The first wait. Doubled each time, up to `PARK_SECONDS_MAX`.
PARK_SECONDS = 0.01
PARK_SECONDS_MAX = 1.0
#: Shorter waits do not pay for telling the proxy that this executor's place is free meanwhile.
GIVE_PLACE_SECONDS = 0.1


class Parked:
    """Tasks to be run again, and when.

    Examples
    --------
    >>> parked = Parked()
    >>> parked.park(7, now=0.0), parked.due(now=0.0), parked.due(now=0.01)
    (0.01, [], [7])
    >>> parked.park(7, now=0.01)
    0.02
    """

    def __init__(self) -> None:
        self._moments: dict[int, float] = {}
        self._seconds: dict[int, float] = {}  # of each task's last wait

    def __len__(self) -> int:
        return len(self._moments)

    def park(self, task: int, now: float) -> float:
        """Take in a task; return how long it waits, in seconds."""
        seconds = self._seconds[task] = min(2 * self._seconds.get(task, PARK_SECONDS / 2), PARK_SECONDS_MAX)
        self._moments[task] = now + seconds
        return seconds

    def due(self, now: float) -> list[int]:
        """Let go, and return, the tasks whose moment has come."""
        due = [task for task, moment in self._moments.items() if moment <= now]
        for task in due:
            del self._moments[task]
        return due

    def is_patient(self, task: int) -> bool:
        """Tell whether a task has waited so often that it may be better off elsewhere."""
        return self._seconds.get(task, 0.0) >= PARK_SECONDS_MAX

    @property
    def for_long(self) -> bool:
        """Whether one of them waits long enough for others to use the time."""
        return any(self._seconds[task] >= GIVE_PLACE_SECONDS for task in self._moments)

    def seconds_left(self, now: float) -> float:
        """Return how long it is until the next task is due."""
        return max(0.0, min(self._moments.values()) - now)
