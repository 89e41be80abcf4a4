"""The journal: which decisions were taken, how often, and samples with the numbers that led to them. Pure.

Every executor keeps one, and so does the proxy for what it decides. They are small: a counter for each kind of
decision, and the numbers of its first, second, fourth, eighth, ... time. So a decision that is taken a million times
leaves twenty samples, early and late ones. Journals are sent as they are emptied, and add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

#: Samples between two reports, at most.
SAMPLES_MAX = 100

#: Kinds of decisions, and what it means that one was taken. Others may be noted, too: they have no words here.
DECISIONS: Mapping[str, str] = {
    "first": "how many executors the job began with",
    "wait": "start tasks waited for whoever was at work where their inputs are",
    "began": "an executor began",
    "keep": "ready tasks stayed: giving them away would have cost more than it saved",
    "split": "ready tasks were offered to other executors",
    "delegated": "other executors were started with a share",
    "refused": "there was no place for other executors: their share stayed",
    "arrive": "an executor came to a fan-in that others share; whom it did not become, it left to the last one",
    "become": "an executor won a fan-in, and went on with the child",
    "group": "children stayed where their large input was",
    "hold": "a large output was kept, since its reader might still turn up there",
    "ask": "the store was asked whether others had come to where an output was held for",
    "flush": "an output that was held was written after all",
    "inline": "a value travelled inside a message",
    "store": "a value was written to the storage tier",
    "stripe": "a written value was cut into stripes, over the shards",
    "prefetch": "inputs were read while another task ran",
    "fetch": "inputs were read while nothing else could run",
    "publish": "arrivals and results were published together",
    "larger": "tasks were offered to executors of a larger function class",
    "hand-over": "an executor left what was left to a successor",
    "linger": "an executor offered to wait for mail when it retires",
}

#: What one journal has to say: how often each decision was taken, and samples (decision, which time, numbers).
Report: TypeAlias = tuple[dict[str, int], list[tuple[str, int, dict[str, Any]]]]


class Journal:
    """Counts decisions.

    Not for several threads at once: who notes from another thread than the executor's has a journal of its own.

    Examples
    --------
    >>> journal = Journal()
    >>> for ready in range(5):
    ...     journal.note("keep", ready=ready)
    >>> journal.count("inline", 3)
    >>> counts, samples = journal.take()
    >>> counts
    {'keep': 5, 'inline': 3}
    >>> samples
    [('keep', 1, {'ready': 0}), ('keep', 2, {'ready': 1}), ('keep', 4, {'ready': 3})]
    >>> journal.take()
    ({}, [])
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._samples: list[tuple[str, int, dict[str, Any]]] = []

    def __repr__(self) -> str:
        return f"<Journal {self._counts}>"

    def __bool__(self) -> bool:
        return bool(self._counts)

    def note(self, decision: str, **numbers: float | str | None) -> None:
        """Note one decision and the numbers that led to it; ``task`` may be among them."""
        count = self._counts[decision] = self._counts.get(decision, 0) + 1
        if not count & (count - 1) and len(self._samples) < SAMPLES_MAX:
            self._samples.append((decision, count, numbers))

    def count(self, decision: str, times: int = 1) -> None:
        """Note decisions that need no numbers."""
        self._counts[decision] = self._counts.get(decision, 0) + times

    def take(self) -> Report:
        """Hand out what was noted since this was last asked."""
        report = self._counts, self._samples
        self._counts, self._samples = {}, []
        return report
