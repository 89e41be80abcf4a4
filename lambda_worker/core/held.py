"""Large values held back from the store, because the task that needs them may yet run here. Pure.

An executor that made a large input of a fan-in need not write it at once: the other inputs may arrive
while it does something else, and then the fan-in runs here, with the value at hand. So it *asks* the
store from time to time instead of arriving: an ask wins the fan-in when all its other edges are there,
and leaves no trace otherwise. When waiting has cost as much as moving the value would (or memory gets short, or
the time of this executor is up), the values are let go: written, and arrived with, like any others.

Two executors that hold values for one fan-in would wait for each other. So only one may: the one at
*home* (see `Assignment.home`).

Source: delayed I/O, Wukong (SoCC'20) section 3.3. There a counter is incremented before the object is
written, so that a reader can find nothing; and both sides of a fan-in may wait until they time out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from lambda_worker.core.policy import Policy

#: (child, parent, in-degree of the child)
Edge: TypeAlias = tuple[int, int, int]


class Held:
    """Fan-ins whose parents here are held back.

    Parameters
    ----------
    policy
        The numbers decisions are made from.
    executors
        How many there are: all of them may be asking.

    Examples
    --------
    >>> held = Held(Policy())
    >>> held.hold([(7, 3, 2)], now=1.0), held.due(now=1.0)
    (None, True)
    >>> held.ask(now=1.0), held.due(now=1.0)
    ([(7, 3, 2)], False)
    >>> held.settle(7, now=1.0), len(held)
    ({3}, 0)
    """

    def __init__(self, policy: Policy, executors: int = 1) -> None:
        self._policy = policy
        self._executors = executors
        self._edges: dict[int, list[Edge]] = {}  # by child
        self._ask_at = 0.0
        self._pause = policy.ask_seconds_min
        self._stirred_at = 0.0

    def __len__(self) -> int:
        return len(self._edges)

    def __contains__(self, child: int) -> bool:
        return child in self._edges

    def hold(self, edges: Iterable[Edge], now: float) -> None:
        """Hold back the parents of these edges; the store is to be asked at once."""
        for edge in edges:
            self._edges.setdefault(edge[0], []).append(edge)
        self._hurry(now)

    def due(self, now: float) -> bool:
        """Tell whether it is time to ask again."""
        return bool(self._edges) and now >= self._ask_at

    def seconds_left(self, now: float) -> float:
        """Return how long it is until the next ask."""
        return max(0.0, self._ask_at - now)

    def ask(self, now: float) -> list[Edge]:
        """Hand out what the store is to be asked; the next time is later, more so every time."""
        self._ask_at = now + self._pause
        self._pause = min(2 * self._pause, self._policy.ask_pause_max(self._executors, self.waited(now)))
        return [edge for edges in self._edges.values() for edge in edges]

    def settle(self, child: int, now: float) -> set[int]:
        """Let go of a fan-in that the store has settled; return its parents that were held."""
        self._hurry(now)
        return {parent for _, parent, _ in self._edges.pop(child)}

    def children(self) -> Iterable[int]:
        """Return the fan-ins that are waited for."""
        return self._edges.keys()

    def parents(self) -> set[int]:
        """Return the values that are held."""
        return {parent for edges in self._edges.values() for _, parent, _ in edges}

    def release(self) -> list[Edge]:
        """Let go of everything: return the edges to arrive with."""
        edges = [edge for edges in self._edges.values() for edge in edges]
        self._edges.clear()
        return edges

    def release_some(self, excess: int, nbytes_of: Callable[[int], int]) -> list[Edge]:
        """Let go of values of `excess` bytes, those of the fan-ins that come last in the graph first."""
        let_go: list[Edge] = []
        for child in sorted(self._edges, reverse=True):
            if excess <= 0:
                break
            edges = self._edges.pop(child)
            excess -= sum(nbytes_of(parent) for _, parent, _ in edges)
            let_go += edges
        return let_go

    def waited(self, now: float) -> float:
        """Return for how long nothing has happened.

        Be it that there is nothing else to do here, or that one task takes long: then others who are idle
        shall have what is held here.
        """
        return now - self._stirred_at

    def stir(self, now: float) -> None:
        """Note that work goes on here: holding costs nothing meanwhile."""
        self._stirred_at = now

    def _hurry(self, now: float) -> None:
        self._stirred_at = now
        self._ask_at = 0.0
        self._pause = self._policy.ask_seconds_min
