"""Wide fan-outs: many naps at once on very many executors, against the ideal, with the CPU time of everybody.

A nap costs its executor nothing, so what is above the ideal (tasks * nap / how many nap at once) is ours: planning,
starting executors, fan-ins. The same naps are taken by executors of one thread, and by a few of 25.

`graph` is naps as delayed tasks that meet in one visible result, by fan-ins of `--fan-in`; `map` is `client.map` of as
many, where each future costs the client and the scheduler their own time. Each cluster runs everything cold first, in
sandboxes that are forked for it; then all executors nap at the same time, until there are as many sandboxes as
executors; and then it runs `--repeat` times warm. Nothing here asserts a time.

    python -m benchmarks.wide [--at-once 500 1000] [--threads 1 25] [--nap 0.1 0.5] [--repeat 3] [--forms graph map]
"""

from __future__ import annotations

import argparse
import os
import statistics
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
from distributed import Client

from benchmarks import command, results
from benchmarks.report import table
from benchmarks.tasks import BEGUN, dated_nap, join
from dask_serverless import ServerlessCluster

FORMS = ("graph", "map")
KINDS = ("this process", "Lambda service", "sandboxes", "storage")
COUNTERS = ("invocations", "mails", "executors", "sandboxes_cold", "round_trips", "bytes_written", "bytes_read")
WARM_UP_SECONDS = (4.0, 8.0, 16.0, 32.0)
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
TASKS = 10_000

# -- what runs ----------------------------------------------------------------------------------


def graph_of(client: Client, tasks: int, seconds: float, fan_in: int) -> Callable[[], bytes]:
    """Build a graph of naps with one visible result; return what is timed."""
    level = [dask.delayed(dated_nap, pure=False)(seconds, number) for number in range(tasks)]
    while len(level) > 1:
        level = [dask.delayed(join, pure=False)(*level[i : i + fan_in]) for i in range(0, len(level), fan_in)]
    return lambda: client.compute(level[0], sync=True)  # type: ignore[no-any-return]


def map_of(client: Client, tasks: int, seconds: float, fan_in: int) -> Callable[[], bytes]:
    """Return the same naps as futures, each of them visible."""
    return lambda: b"".join(client.gather(client.map(dated_nap, [seconds] * tasks, range(tasks), pure=False)))


# -- what it cost -------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of one process, in user and kernel mode (0: it is gone)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def proportional_mib(pid: int) -> float:
    """Return a process's memory, with its share of what it has in common with others."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


@dataclass(frozen=True, slots=True)
class Machine:
    """The processes of one cluster on this machine."""

    cluster: ServerlessCluster

    def of_kind(self) -> dict[str, list[int]]:
        """Return the processes by what they are. The process that sandboxes are forked from is the service's."""
        local = self.cluster._local
        service: Any = local.service
        tier: Any = local.tier
        zygotes = children(service.pid)
        return {
            "this process": [os.getpid()],
            "Lambda service": [service.pid, *zygotes],
            "sandboxes": [sandbox for zygote in zygotes for sandbox in children(zygote)],
            "storage": list(tier.pids.values()),
        }

    def cpu(self) -> dict[str, float]:
        return {kind: sum(map(cpu_seconds, pids)) for kind, pids in self.of_kind().items()}

    def sandbox_mib(self) -> tuple[int, float]:
        """Return how many sandboxes there are, and the proportional memory of all of them."""
        pids = self.of_kind()["sandboxes"]
        return len(pids), sum(map(proportional_mib, pids))


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn took."""

    form: str
    nap: float
    at_once: int
    threads: int
    number: int  # 0: the first one of all, cold
    ideal: float
    seconds: float
    cpu: dict[str, float]
    counted: dict[str, float]
    began: list[float]  # seconds after the start at which each executor began its first nap, ascending
    last_nap_ended: float

    @property
    def workload(self) -> str:
        """What is done, whether cold or warm."""
        form = "" if self.form == "graph" else f"{self.form}, "
        by = f"{self.at_once // self.threads:,} x {self.threads}" if self.threads > 1 else f"{self.at_once:,}"
        return f"{form}{self.nap} s on {by}"

    @property
    def what(self) -> str:
        return f"{self.workload}, {f'warm {self.number}' if self.number else 'cold'}"

    @property
    def ratio(self) -> float:
        return self.seconds / self.ideal

    def row(self) -> list[str]:
        cpu = [f"{self.cpu[kind]:.2f}" for kind in KINDS]
        counted = [f"{self.counted.get(name, 0):,.0f}" for name in COUNTERS]
        return [self.what, f"{self.ideal:.2f}", f"{self.seconds:.2f}", f"**{self.ratio:.2f}**", *cpu, *counted]

    def line(self) -> list[str]:
        """Return the time line: when executors began, when naps were over, when the result was here."""
        at = [self.began[min(len(self.began) - 1, int(len(self.began) * share))] for share in (0, 0.1, 0.5, 0.9, 1)]
        return [
            self.what,
            f"{len(self.began):,}",
            *(f"{each:.2f}" for each in (*at, self.last_nap_ended, self.seconds)),
        ]


def measure(machine: Machine, run: Callable[[], bytes], tasks: int, **what: Any) -> Turn:
    """Run one turn and return all about it."""
    cluster = machine.cluster
    before, cpu_before = cluster.stats(), machine.cpu()
    begun, began_at = time.perf_counter(), time.time()
    value = run()
    took = time.perf_counter() - begun
    cpu_after = machine.cpu()
    after = cluster.stats()
    naps = list(struct.iter_unpack(BEGUN, value))
    first: dict[int, float] = {}
    for at, pid in naps:
        first[pid] = min(at, first.get(pid, at))
    turn = Turn(
        **what,
        ideal=tasks * what["nap"] / what["at_once"],
        seconds=took,
        cpu={kind: cpu_after[kind] - cpu_before[kind] for kind in KINDS},
        counted={name: after[name] - before[name] for name in after},
        began=sorted(at - began_at for at in first.values()),
        last_nap_ended=max(at for at, _ in naps) + what["nap"] - began_at,
    )
    if len(naps) != tasks:
        raise SystemExit(f"error: {turn.what}: {len(naps)} naps instead of {tasks}")
    return turn


def warm_up(client: Client, machine: Machine, executors: int, threads: int) -> None:
    """Have as many sandboxes as executors: none is free while all nap."""
    for seconds in WARM_UP_SECONDS:
        graph_of(client, executors * threads, seconds, 32)()
        if len(machine.of_kind()["sandboxes"]) >= executors:
            return
    print(f"there are {len(machine.of_kind()['sandboxes'])} sandboxes for {executors} executors", file=sys.stderr)


def turns(options: argparse.Namespace, at_once: int, threads: int) -> Iterator[Turn]:
    """Yield the turns of one cluster: each form with each nap, the first of all cold."""
    builders = {"graph": graph_of, "map": map_of}
    size = {"n_workers": at_once // threads, "threads_per_worker": threads}
    with ServerlessCluster(**size, dashboard_address=None) as cluster, Client(cluster) as client:
        machine = Machine(cluster)
        cold = True
        for form in options.forms:
            for nap_seconds in options.nap:
                for number in range(0 if cold else 1, options.repeat + 1):
                    run = builders[form](client, options.tasks, nap_seconds, options.fan_in)
                    what = {"form": form, "nap": nap_seconds, "at_once": at_once, "threads": threads, "number": number}
                    found = measure(machine, run, options.tasks, **what)
                    print(
                        f"{found.what}: {found.seconds:.2f} s, {found.ratio:.2f} of the ideal,"
                        f" {sum(found.cpu.values()):.1f} s of CPU, load {os.getloadavg()[0]:.1f}",
                        file=sys.stderr,
                        flush=True,
                    )
                    yield found
                    if cold:
                        warm_up(client, machine, at_once // threads, threads)
                        cold = False
                    time.sleep(options.pause)
        count, mib = machine.sandbox_mib()
        print(f"{count:,} sandboxes have {mib:,.0f} MiB together (proportional), {mib / count:.1f} each\n", flush=True)


def report(found: list[Turn]) -> str:
    """Return the tables: against the ideal with what it cost, and the time lines."""
    header = ["naps", "ideal s", "s", "ratio", *(f"CPU s: {kind}" for kind in KINDS)]
    header += [name.replace("_", " ") for name in COUNTERS]
    line = ["seconds after the start", "executors", "first began", "10%", "50%", "90%", "last began"]
    line += ["last nap ended", "result here"]
    summary = [
        [name, f"{statistics.median(warm) / rows[0].ideal:.2f}", f"{len(warm)}"]
        for name, rows in by_workload(found).items()
        if (warm := [turn.seconds for turn in rows if turn.number])
    ]
    parts = [
        table(header, [turn.row() for turn in found]),
        table(line, [turn.line() for turn in found]),
        table(["median of warm turns against the ideal", "ratio", "turns"], summary),
    ]
    return "\n\n".join(parts)


def by_workload(found: list[Turn]) -> dict[str, list[Turn]]:
    grouped: dict[str, list[Turn]] = {}
    for turn in found:
        grouped.setdefault(turn.workload, []).append(turn)
    return grouped


def to_keep(found: list[Turn]) -> dict[str, dict[str, Any]]:
    """Return what is kept of the turns, by workload."""
    kept = {}
    for name, rows in by_workload(found).items():
        warm, cold = [turn for turn in rows if turn.number], [turn for turn in rows if not turn.number]
        kept[name] = {
            "nap": rows[0].nap,
            "at_once": rows[0].at_once,
            "threads": rows[0].threads,
            "ideal": rows[0].ideal,
            "warm": [when(turn) for turn in warm],
            "cold": [when(turn) for turn in cold],
            "quick": not warm,
        }
    return kept


def when(turn: Turn) -> dict[str, float]:
    """Return the parts of a turn: seconds after its start, and the CPU time of everybody."""
    return {
        "first_began": turn.began[0],
        "last_began": turn.began[-1],
        "last_nap_ended": turn.last_nap_ended,
        "seconds": turn.seconds,
        "cpu": sum(turn.cpu.values()),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--at-once", type=int, nargs="+", default=[500, 1000], help="how many nap at once")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 25], help="of each executor")
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--nap", type=float, nargs="+", default=[0.1, 0.5], help="seconds of each task")
    parser.add_argument("--repeat", type=int, default=3, help="warm turns (default: 3)")
    parser.add_argument("--fan-in", type=int, default=32, help="naps, and then sums, that meet in one task")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["graph"])
    parser.add_argument(
        "--linger", default=None, help="serverless.executor.linger, such as 2s (default: as configured)"
    )
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between turns: nobody lingers any more")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="merge into this page (docs/benchmarks.md)")
    options = parser.parse_args(arguments)
    if min(*options.at_once, *options.threads, options.tasks, options.repeat) < 1 or min(options.nap) <= 0:
        parser.error("counts and naps must be positive")
    if options.fan_in < 2:
        parser.error("--fan-in must be 2 or more")
    if options.write is not None and (options.tasks, options.linger) != (TASKS, None):
        parser.error(f"only what is about {TASKS:,} tasks and as configured goes into a page")
    if uneven := [(many, by) for many in options.at_once for by in options.threads if many % by]:
        parser.error(f"--at-once must be a multiple of --threads, and {uneven[0][0]} is none of {uneven[0][1]}")
    if options.linger is not None:
        dask.config.set({"serverless.executor.linger": options.linger})
    run = results.describe_run(options.repeat)
    found = [turn for at_once in options.at_once for by in options.threads for turn in turns(options, at_once, by)]
    print(report(found))
    if options.write is not None:
        kept = results.read(options.write.with_suffix("") / "results.json")
        command.write(options.write, results.merge(kept, "wide", to_keep(found), run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
