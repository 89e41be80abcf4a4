"""What a proxy makes of what its predecessor has noted: events that bring the ledger to where that one was. Pure.

Rules kept here:

* A key whose value is stored has it, and nothing of it is run again.
* A job that has keys pending goes on, with whoever works on it; starts that nobody was given are launched.
* What cannot go on is left out: values that are lost, errors, and what waits for a value that died with the
  predecessor's process (scattered data did not, if there is an overflow). Whoever asks for such a key has it computed
  anew.
* A key that several jobs have made is the last one's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Protocol

from dask_serverless.job_events import Done, Erred, Event, Key, Result, Submitted
from dask_serverless.plan.graph import Graph
from lambda_worker.core.wire import Location, Ref


class Plan(Protocol):
    """What there is to know of a planned graph; see `dask_serverless.dask_graph.JobPlan`."""

    @property
    def graph(self) -> Graph:
        """The numbered graph."""

    @property
    def visible(self) -> Mapping[Key, int]:
        """The number of each key that was asked for."""

    @property
    def externals(self) -> Mapping[Key, int]:
        """The number of each key that is made elsewhere."""

    @property
    def pointers(self) -> Mapping[Key, Key]:
        """Keys that stand for others."""


@dataclass(slots=True)
class Past:
    """What is known of a job that another proxy has begun.

    Parameters
    ----------
    job, plan
        Its name and its graph.
    executors
        Those that have a record now.
    given
        The starts that executors have been given, with the values of those that were made elsewhere.
    said
        Of what they have said, values and errors, in order.
    missing
        Stored values that are no longer there.
    recipients
        Of executors that came by mail, to whom it was sent.
    """

    job: str
    plan: Plan
    executors: Sequence[str] = ()
    given: dict[int, Location | None] = field(default_factory=dict)
    said: list[Any] = field(default_factory=list)
    missing: Set[Ref] = frozenset()
    recipients: dict[str, str] = field(default_factory=dict)

    def results(self) -> dict[int, Result]:
        """Return the value of each task, as it was said first."""
        found: dict[int, Result] = {}
        for event in self.said:
            for result in event.results if isinstance(event, Done) else ():
                found.setdefault(result.task, result)
        return found

    def refs(self) -> list[Ref]:
        """Return where values are stored."""
        locations = [*(result.location for result in self.results().values()), *self.given.values()]
        return [each for each in locations if isinstance(each, Ref)]

    def erred(self) -> set[int]:
        """Return the tasks that have no value and never will: those that have erred, and what depends on them."""
        tasks = {event.task for event in self.said if isinstance(event, Erred)}
        for task in list(tasks):
            tasks.update(self.plan.graph.descendants(task))
        return tasks


def resume(pasts: Sequence[Past], there: Collection[Key] = ()) -> list[Event]:
    """Return what a ledger is to be told, in order. What is `there` was made elsewhere, and has its value.

    Examples
    --------
    Of two keys, one has its value; the executor is at work on the other one:

    >>> from dask_serverless.plan import number
    >>> from types import SimpleNamespace
    >>> graph, keys = number({"x": (), "y": ("x",)}, ["x", "y"])
    >>> plan = SimpleNamespace(graph=graph, visible={"x": 0, "y": 1}, externals={}, pointers={})
    >>> done = Done("j1", [Result(0, b"1", 1, b"", "int", 0.0, 0.0)])
    >>> submitted, heard = resume([Past("j1", plan, ["1-0"], {0: None}, [done])])
    >>> dict(submitted.visible), submitted.given, submitted.executors, heard == done
    ({'x': 0, 'y': 1}, {0: None}, ['1-0'], True)
    """
    last = {key: past.job for past in pasts for key in past.plan.visible}
    known: set[Key] = set(there)  # keys that have a value, or will have one
    events: list[Event] = []
    for past in pasts:
        plan = past.plan
        results, erred = past.results(), past.erred()
        there = {task: each for task, each in results.items() if each.location not in past.missing}
        waits = {key for key, task in plan.externals.items() if task not in past.given}
        goes_on = waits <= known and not any(where in past.missing for where in past.given.values())
        visible = {
            key: task
            for key, task in plan.visible.items()
            if last[key] == past.job and (task in there or (goes_on and task not in results and task not in erred))
        }
        known.update(visible)
        pointers = {key: target for key, target in plan.pointers.items() if target in known}
        known.update(pointers)
        pending = goes_on and any(task not in there for task in visible.values())
        given = past.given if pending else dict.fromkeys(plan.graph.starts)
        events.append(
            Submitted(past.job, plan.graph, visible, plan.externals, pointers, given=given, executors=past.executors)
        )
        if values := [result for task, result in there.items() if task in visible.values()]:
            events.append(Done(past.job, values))
    return events
