"""Where the dashboard's task stream shows a task: rows, about as many as executors ran at once. Pure.

A Dask worker's tasks have the thread they ran in. Executors come and go by the thousand, and a row for
each would be unreadable: so tasks that did not overlap share one. Some results come late, when the row
that was free in their time shows another task already: they get a row more, so that no task hides another.
"""

from __future__ import annotations


class Rows:
    """Give intervals of time to rows, so that those in one row do not overlap.

    Examples
    --------
    >>> rows = Rows()
    >>> rows.take(0.0, 1.0), rows.take(0.5, 2.0), rows.take(1.0, 3.0)
    (1, 2, 1)
    """

    def __init__(self) -> None:
        self._stops: list[float] = []

    def take(self, started: float, stopped: float) -> int:
        """Return the number of the row, from 1, that shows what ran in this interval."""
        stops = self._stops
        row = next((row for row, stop in enumerate(stops) if stop <= started), len(stops))
        stops[row : row + 1] = [stopped]
        return row + 1
