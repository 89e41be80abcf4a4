"""What is computed: the list of all workloads, and what is to be known of one.

A workload's `build` makes the graph of one turn and returns the call that computes its answer. Building a graph is
Dask's work and the same for all, so it is not timed; everything from handing it over to holding the answer is. Each
turn has its own data (or keys), so that no contender finds yesterday's answer.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.contenders import Contender

Size = Mapping[str, Any]
#: Of a contender, a turn and the size (as keyword arguments): makes the graph, returns what is timed.
Build = Callable[..., Callable[[], Any]]
SUBJECTS = ("graphs", "arrays", "learning", "frames", "futures")
#: Those that take any Dask graph; the others take what has been written for them.
DASK = ("sync", "local", "threads", "serverless", "serverless-threads", "ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A program, its sizes, and how its answer is checked.

    Parameters
    ----------
    title
        One line, with the names of the size in braces.
    full, quick, ablated
        The size that is worth measuring, the one that shows that it runs, and what is smaller in an ablation, where ten
        clusters are open at once, some of which store every value.
    build
        Makes the graph of a turn.
    tasks
        How many tasks a size has, before Dask's own optimisation.
    holds
        Whether an answer is right, by what is known of it without computing it; None: the synchronous scheduler tells.
    known
        What `holds` looks at, in words.
    others
        The same program for contenders that do not take Dask graphs.
    without
        Contenders that do not take part, each with the reason.
    settings
        Dask's settings for it, the same for all contenders.
    """

    name: str
    title: str
    full: Size
    quick: Size
    ablated: Size = field(default_factory=dict)
    build: Build
    tasks: Callable[[Size], int]
    holds: Callable[[Size, Any], bool] | None = None
    known: str = ""
    others: Mapping[str, Build] = field(default_factory=dict)
    without: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def size(self, quick: bool, ablation: bool = False) -> Size:
        if quick:
            return self.quick
        return {**self.full, **self.ablated} if ablation else self.full

    def heading(self, size: Size) -> str:
        return self.title.format(**size)

    def refusal(self, contender: str) -> str | None:
        """Return why a contender does not take part, or None."""
        if contender in self.without:
            return self.without[contender]
        if contender in DASK or contender in self.others:
            return None
        return "it takes no Dask graphs, and this is not a program for it"

    def prepare(self, contender: Contender, turn: int, size: Size) -> Callable[[], Any]:
        return self.others.get(contender.name, self.build)(contender, turn, **size)


def load(subjects: tuple[str, ...] = SUBJECTS) -> dict[str, Workload]:
    """Return all workloads by name. (Their modules import Dask: not before somebody wants to compute.)"""
    modules = [importlib.import_module(f"benchmarks.{subject}") for subject in subjects]
    return {workload.name: workload for module in modules for workload in module.WORKLOADS}
