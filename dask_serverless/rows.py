"""Where the dashboard's task stream shows a task: rows, as many as executors may run at once. Pure.

A Dask worker's tasks have the thread they ran in. Executors come and go by the thousand, and a row for
each would be unreadable: so tasks that did not overlap share one.
"""

from __future__ import annotations


class Rows:
    """Give intervals of time to rows, so that those in one row do not overlap.

    Parameters
    ----------
    count_max
        How many rows there are. When all are taken (results come late, the ceiling was raised), the
        one that has been free for longest is given.

    Examples
    --------
    >>> rows = Rows(2)
    >>> rows.take(0.0, 1.0), rows.take(0.5, 2.0), rows.take(1.0, 3.0)
    (1, 2, 1)
    """

    def __init__(self, count_max: int) -> None:
        self._count_max = max(1, count_max)
        self._stops: list[float] = []

    def take(self, started: float, stopped: float) -> int:
        """Return the number of the row, from 1, that shows what ran in this interval."""
        stops = self._stops
        row = next((row for row, stop in enumerate(stops) if stop <= started), len(stops))
        if row == self._count_max:
            row = stops.index(min(stops))
        if row == len(stops):
            stops.append(stopped)
        stops[row] = max(stops[row], stopped)
        return row + 1
