"""What an executor is to publish, and what of it is on its way. Pure.

One publication is on its way at a time; the next one carries everything that came together meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lambda_worker.core.errors import ProtocolError
from lambda_worker.core.held import Edge
from lambda_worker.core.instructions import Arrive, Successor
from lambda_worker.core.journal import Report
from lambda_worker.core.observed import Sums


class Outbox:
    """Results, errors and arrivals that wait to be published.

    Attributes
    ----------
    results, errors
        Tasks: visible ones that are done, and erred ones.
    arrivals
        Edges to be told to the store.
    on_its_way
        The publication that is not answered yet.

    Examples
    --------
    >>> outbox = Outbox()
    >>> outbox.results.append(3)
    >>> outbox.send()
    Arrive(arrivals=[], results=[3], errors=[], retire=False, successor=None, asks=())
    >>> bool(outbox), outbox.answered().results, outbox.on_its_way
    (False, [3], None)
    """

    def __init__(self) -> None:
        self.results: list[int] = []
        self.errors: list[int] = []
        self.arrivals: list[Edge] = []
        self.on_its_way: Arrive | None = None

    def __bool__(self) -> bool:
        return bool(self.arrivals or self.results or self.errors)

    def send(
        self,
        retire: bool = False,
        successor: Successor | None = None,
        asks: Sequence[Edge] = (),
        observed: Mapping[int, Sums] = {},  # noqa: B006
        journal: Report = ({}, []),
    ) -> Arrive:
        """Publish everything that waits."""
        waiting = self.arrivals, self.results, self.errors
        self.on_its_way = Arrive(*waiting, retire, successor, asks, observed, journal)
        self.arrivals, self.results, self.errors = [], [], []
        return self.on_its_way

    def withdraw(self, child: int) -> set[int]:
        """Take back what waits to arrive at a child; return its parents."""
        if not self.arrivals:
            return set()
        parents = {parent for each, parent, _ in self.arrivals if each == child}
        self.arrivals = [edge for edge in self.arrivals if edge[0] != child]
        return parents

    def answered(self) -> Arrive:
        """Return the publication that the store has answered."""
        sent, self.on_its_way = self.on_its_way, None
        if sent is None:
            raise ProtocolError("an answer without a publication")
        return sent
