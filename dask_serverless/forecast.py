"""What will happen to a graph, as far as it can be said before it runs. Pure.

The shape of the graph is known (`plan.explain`). How long its tasks take and how large their values are is known of
the key prefixes that have run in this cluster before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from dask_serverless.experience import share_expected
from dask_serverless.plan.explain import Explanation, count_of, explain
from dask_serverless.plan.graph import Graph
from dask_serverless.plan.homes import SHARED
from dask_serverless.plan.partition import Group, assign_by_class, owners
from dask_serverless.plan.prefixes import Prefixes
from dask_serverless.statistics import Expectation, Learned
from lambda_worker.core.policy import INVOKE_SECONDS, Policy

#: Prefixes that are printed.
_PRINTED = 20

_POLICY = Policy()


@dataclass(frozen=True, slots=True)
class Terms:
    """What a cluster offers.

    Parameters
    ----------
    places
        Executors that may run at once.
    inline_bytes_max
        Values up to this size travel inside messages.
    classes
        What its functions are called, by class: memory and time.
    threads
        Tasks that an executor runs at the same time.
    """

    places: int
    inline_bytes_max: int = _POLICY.inline_bytes_max
    classes: Sequence[str] = ()
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a cluster would do with a graph. Printed, it is for people; the fields are for programs.

    Parameters
    ----------
    shape
        Of the graph: tasks, edges, starts, fan-ins, groups.
    places
        Executors that may run at once.
    executors
        How many the job begins with.
    why
        Why so many.
    prefixes
        Name, tasks and what is known of each key prefix (None: it has not run here yet).
    tasks_by_class
        How many tasks need each function class.
    seconds
        What all known tasks take together; None if none is known.
    critical_seconds
        What those on the longest path take: no number of executors makes it shorter. None, likewise.
    expected_seconds
        How long the computation would take; None as long as the time of any task is unknown.
    nbytes
        Bytes of all large values (64 KiB and more) that are expected; None if no prefix is known.
    inlined, stored, unsized
        How many values must travel between executors or to the user from the groups it begins with: inside
        messages, through the storage tier, or not known yet.
    constants
        Large values in the graph, which are stored once.
    on_dask_workers
        Tasks that need an ordinary Dask worker, which are not part of this.
    """

    shape: Explanation
    places: int
    executors: int
    why: str
    prefixes: Sequence[tuple[str, int, Learned | None]]
    tasks_by_class: Mapping[str, int]
    seconds: float | None
    critical_seconds: float | None
    expected_seconds: float | None
    nbytes: float | None
    inlined: int
    stored: int
    unsized: int
    constants: int = 0
    on_dask_workers: int = 0

    def __str__(self) -> str:
        lines = [str(self.shape)]
        if len(self.tasks_by_class) > 1:
            lines.append(
                "function classes: " + ", ".join(f"{name}: {tasks}" for name, tasks in self.tasks_by_class.items())
            )
        lines.append(
            f"{count_of(self.executors, 'invocation')} to begin with, of {count_of(self.places, 'place')}: {self.why}"
        )
        if self.executors < self.places and self.shape.tasks > 1:
            lines.append("executors start others while they run, where their ready tasks are worth it")
        travel = self.inlined + self.stored + self.unsized
        if travel:
            lines.append(
                f"{count_of(travel, 'value')} must travel from there: {self.inlined} inside messages, {self.stored} "
                f"through the storage tier, {self.unsized} of a size that is not known yet"
            )
        if self.constants:
            lines.append(f"{count_of(self.constants, 'large constant')} in the graph, stored once")
        if self.on_dask_workers:
            lines.append(f"{count_of(self.on_dask_workers, 'task')} on Dask workers")
        lines.append(self._time())
        if self.nbytes:
            lines.append(f"bytes in large values: {_bytes(self.nbytes)} expected")
        lines += [f"  {_row(*each)}" for each in self.prefixes[:_PRINTED]]
        if len(self.prefixes) > _PRINTED:
            lines.append(f"  ... and {len(self.prefixes) - _PRINTED} more prefixes")
        return "\n".join(lines)

    def _time(self) -> str:
        if self.seconds is None or self.critical_seconds is None:
            return "time: not known yet"
        total = f"tasks take {_seconds(self.seconds)} together, {_seconds(self.critical_seconds)} on the critical path"
        if self.expected_seconds is None:
            return f"time: not known yet; those that are known: {total}"
        return f"time: about {_seconds(self.expected_seconds)} expected; {total}"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td style='text-align: left'><code>{escape(name) or '(others)'}</code></td><td>{tasks}</td>"
            + (
                "<td colspan='2' style='text-align: left'>not known yet</td>"
                if learned is None
                else f"<td>{_seconds(learned.seconds)}</td><td>{_bytes(learned.nbytes)}</td>"
            )
            + "</tr>"
            for name, tasks, learned in self.prefixes
        )
        text = escape(str(self).split("\n  ")[0])
        head = "<tr><th>key prefix</th><th>tasks</th><th>time of each</th><th>bytes of each</th></tr>"
        return f"<pre>{text}</pre><table>{head}{rows}</table>"


def forecast(
    graph: Graph, prefixes: Prefixes, expected: Expectation, terms: Terms, constants: int = 0, on_dask_workers: int = 0
) -> Forecast:
    """Say what would happen to a graph.

    Examples
    --------
    >>> from dask_serverless.plan import number
    >>> graph, _ = number({"a": (), "b": (), "c": ("a", "b")}, ["c"])
    >>> prefixes = Prefixes(["a", "b", "c"], [1, 1, 1], [[0, 1, 1, 1, 2, 1]])
    >>> known = {number: Learned(1, 2.0, 0.0, 0.0, 0.0) for number in range(3)}
    >>> told = forecast(graph, prefixes, Expectation(6.0, 0.0, 2.0, known), Terms(places=2))
    >>> print(told)
    3 tasks and 2 edges in 1 segment
    2 starts (0 given from elsewhere), 1 visible key
    1 fan-in (widest 2), 0 fan-outs (widest 1)
    critical path: 2 tasks, so at most 1.5 times faster than one after the other (if all tasks take as long)
    2 groups to begin with, of 1 to 1 tasks (median 1); 1 task beyond them
    2 invocations to begin with, of 2 places: all tasks take about 6 s together, which is worth all places
    3 values must travel from there: 3 inside messages, 0 through the storage tier, 0 of a size that is not known yet
    time: about 4.01 s expected; tasks take 6 s together, 4 s on the critical path
      a: 1 task, 2 s and less than 64 KiB each (learned from 1)
      b: 1 task, 2 s and less than 64 KiB each (learned from 1)
      c: 1 task, 2 s and less than 64 KiB each (learned from 1)
    """
    places = max(1, terms.places)
    starts = len(graph.starts)
    sharing = share_expected(expected, prefixes, starts, starts, places, policy=Policy(threads=terms.threads))
    groups = [group for _, group in assign_by_class(graph, sharing)] if starts else []
    by_task = prefixes.of_each()
    inlined, stored, unsized = _travelling(graph, groups, by_task, expected, terms)
    nothing_known = not expected.known
    critical = None if nothing_known else _critical_seconds(graph, by_task, expected)
    expected_seconds = None
    if critical is not None and not expected.unknown:
        parallel = max(len(groups), min(places, int(expected.work / _POLICY.share_seconds_min)), 1)
        expected_seconds = max(critical, expected.work / parallel / terms.threads) + INVOKE_SECONDS
    counted: dict[int, int] = {}
    for task in range(len(graph)):
        if task not in graph.externals:
            needs = graph.classes.get(task, 0)
            counted[needs] = counted.get(needs, 0) + 1
    return Forecast(
        shape=explain(graph, groups),
        places=places,
        executors=len(groups),
        why=_why(expected, len(groups), starts, places),
        prefixes=[
            (name, tasks, expected.known.get(number))
            for number, (name, tasks) in enumerate(zip(prefixes.names, prefixes.counts, strict=True))
            if tasks
        ],
        tasks_by_class={
            terms.classes[needs] if needs < len(terms.classes) else f"class {needs}": tasks
            for needs, tasks in sorted(counted.items())
        },
        seconds=None if nothing_known else expected.seconds,
        critical_seconds=critical,
        expected_seconds=expected_seconds,
        nbytes=None if nothing_known else expected.nbytes,
        inlined=inlined,
        stored=stored,
        unsized=unsized,
        constants=constants,
        on_dask_workers=on_dask_workers,
    )


def _why(expected: Expectation, executors: int, starts: int, places: int) -> str:
    if not starts:
        return "there is nothing to run"
    if starts == 1:
        return "there is one start"
    known = f"all tasks take about {_seconds(expected.seconds)} together"
    if expected.unknown:
        names = list(expected.unknown)
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        known = f"nothing is known yet of {count_of(expected.unknown_tasks, 'task')} ({shown}), which may be long"
        if expected.known:
            known += f"; the others take about {_seconds(expected.seconds)} together"
    if executors >= min(starts, places):
        limit = "places" if places <= starts else "starts"
        return known if expected.unknown else f"{known}, which is worth all {limit}"
    return f"{known}, not worth more"


def _travelling(
    graph: Graph, groups: Sequence[Group], by_task: Sequence[int], expected: Expectation, terms: Terms
) -> tuple[int, int, int]:
    """Count the values that must leave their group: inlined, stored, of unknown size."""
    policy = Policy(inline_bytes_max=terms.inline_bytes_max)
    owner = owners(graph, [group.starts for group in groups])
    inlined = stored = unsized = 0
    for task, children in enumerate(graph.children):
        if task in graph.externals:
            continue
        mine = owner[task]
        away = [child for child in children if mine != SHARED and owner[child] != mine]
        if not away and task not in graph.visible:
            continue
        learned = expected.known.get(by_task[task])
        if learned is None:
            unsized += 1
        elif policy.inline(int(learned.nbytes), max([len(graph.parents[child]) for child in away], default=1)):
            inlined += 1
        else:
            stored += 1
    return inlined, stored, unsized


def _critical_seconds(graph: Graph, by_task: Sequence[int], expected: Expectation) -> float:
    """Return what the known tasks on the longest path take together."""
    seconds = {number: learned.seconds for number, learned in expected.known.items()}
    ends: list[float] = []
    for task, row in enumerate(graph.parents):
        mine = 0.0 if task in graph.externals else seconds.get(by_task[task], 0.0)
        ends.append(mine + max([ends[parent] for parent in row], default=0.0))
    return max(ends, default=0.0)


def _row(name: str, tasks: int, learned: Learned | None) -> str:
    what = f"{name or '(others)'}: {count_of(tasks, 'task')}"
    if learned is None:
        return f"{what}, not known yet"
    size = _bytes(learned.nbytes) if learned.nbytes else "less than 64 KiB"
    return f"{what}, {_seconds(learned.seconds)} and {size} each (learned from {learned.tasks:.0f})"


def _seconds(seconds: float) -> str:
    if seconds >= 1 or not seconds:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def _bytes(nbytes: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes:.0f} B"
