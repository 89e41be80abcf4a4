"""Compare this package with Dask's own schedulers, all in one run.

Absolute times on shared machines mislead, so the three contenders take turns (`--repeat` times) and
the table gives medians and their ratios. Building a graph is Dask's work and the same for all, so
it is done before the clock starts; everything from handing it over to holding the value is timed.
Nothing here asserts a time.

    python benchmarks/throughput.py [--repeat 3] [--quick] [--samples 800000] [--only tree chain map svc wide]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import add
from typing import Any

import dask
import dask_ml.datasets
import sklearn.datasets
from dask_ml.wrappers import ParallelPostFit
from distributed import Client, LocalCluster
from sklearn.svm import SVC

from dask_serverless import ServerlessCluster

WORKERS = 2
NAP_SECONDS = 0.1
PROGRAMS = ("tree", "chain", "map", "svc", "wide")
COUNTERS = ("tasks_run", "invocations", "executors", "objects_written", "bytes_written", "bytes_read", "round_trips")
#: Builds the graph of one turn and returns what is timed: the call that computes its value. The
#: client is None for the synchronous scheduler.
Program = Callable[[Client | None, int], Callable[[], Any]]


def leaf(number: int) -> int:
    return number


def increment(number: int) -> int:
    return number + 1


def compute(client: Client | None, collection: Any) -> Any:
    if client is None:
        return collection.compute(scheduler="sync")
    return client.compute(collection, sync=True)


def tree(leaves: int) -> Program:
    """Return a program that adds `leaves` numbers pairwise: 2 * leaves - 1 delayed tasks."""

    def build(client: Client | None, turn: int) -> Callable[[], Any]:
        level = [dask.delayed(leaf, pure=False)(number) for number in range(leaves)]
        while len(level) > 1:
            level = [dask.delayed(add, pure=False)(*level[i : i + 2]) for i in range(0, len(level), 2)]
        return lambda: compute(client, level[0])

    return build


def small_tasks(count: int) -> Program:
    """Return a program that maps a small function over `count` numbers and gathers the results."""

    def build(client: Client | None, turn: int) -> Callable[[], Any]:
        if client is None:
            task = dask.delayed(increment, pure=False)
            tasks = [task(number) for number in range(count)]
            return lambda: sum(dask.compute(*tasks, scheduler="sync"))
        return lambda: sum(client.gather(client.map(increment, range(count), pure=False)))

    return build


def chain(length: int) -> Program:
    """Return a program of `length` tasks in a row, which leave nothing to distribute."""

    def build(client: Client | None, turn: int) -> Callable[[], Any]:
        names = [f"link-{turn}-{number}" for number in range(length)]
        graph: dict[str, Any] = {names[0]: (leaf, 0)}
        graph.update((name, (increment, above)) for above, name in zip(names, names[1:], strict=False))
        get = dask.get if client is None else client.get
        return lambda: get(graph, names[-1])

    return build


def nap(number: int) -> int:
    time.sleep(NAP_SECONDS)
    return number


def wide(executors: int, naps: int, repeat: int) -> str:
    """Let `executors` sandboxes sleep at the same time; return a table of times against the ideal."""
    ideal = naps * NAP_SECONDS / executors
    rows = []
    with ServerlessCluster(n_workers=executors) as cluster, Client(cluster) as client:
        for turn in range(repeat + 2):
            begun = time.perf_counter()
            client.gather(client.map(nap, range(naps), pure=False))
            seconds = time.perf_counter() - begun
            what = ("cold", "warming up")[turn] if turn < 2 else f"warm, turn {turn - 1}"
            rows.append([what, f"{ideal:.2f}", f"{seconds:.2f}", f"{seconds / ideal:.2f}"])
    title = f"{naps:,} tasks of {NAP_SECONDS} s sleep on {executors} sandboxes"
    return table([title, "ideal s", "s", "times the ideal"], rows)


def svc(samples: int, chunks: int) -> Program:
    """Return the program of examples/parallel_svc.py; each turn predicts other samples."""
    X, y = sklearn.datasets.make_classification(n_samples=1_000, random_state=0)
    clf = ParallelPostFit(SVC(gamma="scale")).fit(X, y)

    def build(client: Client | None, turn: int) -> Callable[[], Any]:
        X, _ = dask_ml.datasets.make_classification(
            n_samples=samples, random_state=samples + turn, chunks=-(-samples // chunks)
        )
        prediction = clf.predict(X)
        return lambda: int(compute(client, prediction).sum())

    return build


@dataclass
class Row:
    """What one program took, by contender."""

    title: str
    tasks: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    counters: list[Mapping[str, float]] = field(default_factory=list)

    def median(self, contender: str) -> float:
        return statistics.median(self.seconds[contender])


def measure(row: Row, program: Program, contenders: Mapping[str, Client | None], cluster: Any, repeat: int) -> None:
    """Let the contenders take turns, and check that they all find the same value."""
    for turn in range(repeat):
        values = {}
        for name, client in contenders.items():
            run = program(client, turn)
            before = cluster.stats()
            begun = time.perf_counter()
            values[name] = run()
            row.seconds.setdefault(name, []).append(time.perf_counter() - begun)
            print(f"{row.title}, turn {turn + 1}, {name}: {row.seconds[name][-1]:.3f} s", file=sys.stderr, flush=True)
            if name == "serverless":
                after = cluster.stats()
                row.counters.append({key: after[key] - before[key] for key in after})
        if len(set(values.values())) != 1:
            raise SystemExit(f"error: {row.title}: the contenders disagree: {values}")


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table; all columns but the first are numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows])


def report(rows: list[Row]) -> str:
    """Return the two tables: times with their ratios, and what ours did."""
    header = ["median of the turns", "tasks", "sync s", "local s", "serverless s", "serverless tasks/s"]
    header += ["local / serverless", "serverless / sync"]
    times = []
    for row in rows:
        sync, local, ours = (row.median(name) for name in ("sync", "local", "serverless"))
        figures = [f"{sync:.3f}", f"{local:.3f}", f"{ours:.3f}", f"{row.tasks / ours:,.0f}"]
        times.append([row.title, f"{row.tasks:,}", *figures, f"{local / ours:.2f}", f"{ours / sync:.2f}"])
    did = [
        [row.title, *(f"{statistics.median(counts[key] for counts in row.counters):,.0f}" for key in COUNTERS)]
        for row in rows
    ]
    return (
        table(header, times) + "\n\n" + table(["serverless, per turn", *(c.replace("_", " ") for c in COUNTERS)], did)
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, help="turns of each contender (default: 3)")
    parser.add_argument("--samples", type=int, default=800_000, help="size of the SVC program (default: 800000)")
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument("--quick", action="store_true", help="small sizes and one turn: does it run at all?")
    options = parser.parse_args(arguments)
    if options.repeat < 1 or options.samples < 1:
        parser.error("--repeat and --samples must be 1 or more")
    leaves, count, samples, executors, repeat = 4_096, 10_000, options.samples, 200, options.repeat
    if options.quick:
        leaves, count, samples, executors, repeat = 64, 100, min(samples, 2_000), 10, 1
    chunks = min(20, samples)

    programs: dict[str, tuple[Row, Program]] = {
        "tree": (Row(f"tree reduction of {leaves:,} leaves", 2 * leaves - 1), tree(leaves)),
        "chain": (Row(f"chain of {count:,} tasks", count), chain(count)),
        "map": (Row(f"client.map of {count:,} tasks", count), small_tasks(count)),
        "svc": (Row(f"SVC, {samples:,} samples", 2 * -(-samples // -(-samples // chunks))), svc(samples, chunks)),
    }
    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0") as local_cluster,
        Client(local_cluster, set_as_default=False) as local,
        ServerlessCluster(n_workers=WORKERS) as serverless_cluster,
        Client(serverless_cluster, set_as_default=False) as serverless,
    ):
        contenders: dict[str, Client | None] = {"sync": None, "local": local, "serverless": serverless}
        warm_up = tree(2 * WORKERS)
        for client in contenders.values():
            warm_up(client, 0)()
        rows = []
        for name in (each for each in options.only if each in programs):
            row, program = programs[name]
            measure(row, program, contenders, serverless_cluster, repeat)
            rows.append(row)
    print(f"`sync` is the synchronous scheduler, `local` is LocalCluster(n_workers={WORKERS}, threads_per_worker=1),")
    print(f"`serverless` is ServerlessCluster(n_workers={WORKERS}); {repeat} turn(s) each, interleaved.\n")
    if rows:
        print(report(rows))
    if "wide" in options.only:
        print("\n" + wide(executors, 10 * executors, repeat))
    return 0


if __name__ == "__main__":
    sys.exit(main())
