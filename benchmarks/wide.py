"""Wide fan-outs: many naps on very many executors, against the ideal, with the CPU time of everybody.

A nap costs its executor nothing, so what is above the ideal (tasks * nap / executors) is ours: planning, starting
executors, fan-ins. `graph` is naps as delayed tasks that meet in one visible result, by fan-ins of `--fan-in`;
`map` is `client.map` of as many, where each future costs the client and the scheduler their own time. Each cluster
runs everything cold first, in sandboxes that are forked for it; then all executors nap at the same time, until there
are as many sandboxes as executors; and then it runs `--repeat` times warm. Nothing here asserts a time.

    python benchmarks/wide.py [--executors 500 1000] [--tasks 10000] [--nap 0.1 0.5] [--repeat 3] [--forms graph map]
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

from dask_serverless import ServerlessCluster

FORMS = ("graph", "map")
KINDS = ("this process", "Lambda service", "sandboxes", "storage")
COUNTERS = ("invocations", "mails", "executors", "sandboxes_cold", "round_trips", "bytes_written", "bytes_read")
WARM_UP_SECONDS = (4.0, 8.0, 16.0, 32.0)
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
#: What a nap returns: when it began, and in which process.
BEGUN = "<dI"


def nap(seconds: float, number: int) -> bytes:
    begun = time.time()
    time.sleep(seconds)
    return struct.pack(BEGUN, begun, os.getpid())


def join(*parts: bytes) -> bytes:
    return b"".join(parts)


# -- what runs ----------------------------------------------------------------------------------


def graph_of(client: Client, tasks: int, seconds: float, fan_in: int) -> Callable[[], bytes]:
    """Build a graph of naps with one visible result; return what is timed."""
    level = [dask.delayed(nap, pure=False)(seconds, number) for number in range(tasks)]
    while len(level) > 1:
        level = [dask.delayed(join, pure=False)(*level[i : i + fan_in]) for i in range(0, len(level), fan_in)]
    return lambda: client.compute(level[0], sync=True)  # type: ignore[no-any-return]


def map_of(client: Client, tasks: int, seconds: float, fan_in: int) -> Callable[[], bytes]:
    """Return the same naps as futures, each of them visible."""
    return lambda: b"".join(client.gather(client.map(nap, [seconds] * tasks, range(tasks), pure=False)))


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

    what: str
    ideal: float
    seconds: float
    cpu: dict[str, float]
    counted: dict[str, float]
    began: list[float]  # seconds after the start at which each executor began its first nap, ascending
    last_nap_ended: float
    done: int

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


def measure(what: str, ideal: float, seconds: float, machine: Machine, run: Callable[[], bytes], count: int) -> Turn:
    """Run one turn and return all about it."""
    cluster = machine.cluster
    before, cpu_before = cluster.stats(), machine.cpu()
    begun, began_at = time.perf_counter(), time.time()
    value = run()
    took = time.perf_counter() - begun
    cpu_after = machine.cpu()
    after = cluster.stats()
    naps = list(struct.iter_unpack(BEGUN, value))
    if len(naps) != count:
        raise SystemExit(f"error: {what}: {len(naps)} naps instead of {count}")
    first: dict[int, float] = {}
    for at, pid in naps:
        first[pid] = min(at, first.get(pid, at))
    return Turn(
        what,
        ideal,
        took,
        {kind: cpu_after[kind] - cpu_before[kind] for kind in KINDS},
        {name: after[name] - before[name] for name in after},
        sorted(at - began_at for at in first.values()),
        max(at for at, _ in naps) + seconds - began_at,
        len(naps),
    )


def warm_up(client: Client, machine: Machine, executors: int) -> None:
    """Have as many sandboxes as executors: none is free while all nap."""
    for seconds in WARM_UP_SECONDS:
        graph_of(client, executors, seconds, 32)()
        if len(machine.of_kind()["sandboxes"]) >= executors:
            return
    print(f"there are {len(machine.of_kind()['sandboxes'])} sandboxes for {executors} executors", file=sys.stderr)


def turns(options: argparse.Namespace, executors: int) -> Iterator[Turn]:
    """Yield the turns of one cluster: each form with each nap, the first of all cold."""
    builders = {"graph": graph_of, "map": map_of}
    with ServerlessCluster(n_workers=executors, dashboard_address=None) as cluster, Client(cluster) as client:
        machine = Machine(cluster)
        cold = True
        for form in options.forms:
            for seconds in options.nap:
                ideal = options.tasks * seconds / executors
                for turn in range(options.repeat + cold):
                    run = builders[form](client, options.tasks, seconds, options.fan_in)
                    name = f"{form}, {seconds} s on {executors:,}, " + ("cold" if cold else f"warm {turn}")
                    found = measure(name, ideal, seconds, machine, run, options.tasks)
                    print(
                        f"{name}: {found.seconds:.2f} s, {found.ratio:.2f} of the ideal,"
                        f" {sum(found.cpu.values()):.1f} s of CPU, load {os.getloadavg()[0]:.1f}",
                        file=sys.stderr,
                        flush=True,
                    )
                    yield found
                    if cold:
                        warm_up(client, machine, executors)
                        cold = False
                    time.sleep(options.pause)
        count, mib = machine.sandbox_mib()
        print(f"{count:,} sandboxes have {mib:,.0f} MiB together (proportional), {mib / count:.1f} each\n", flush=True)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table; all columns but the first are numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows])


def report(found: list[Turn]) -> str:
    """Return the tables: against the ideal with what it cost, and the time lines."""
    header = ["naps", "ideal s", "s", "ratio", *(f"CPU s: {kind}" for kind in KINDS)]
    header += [name.replace("_", " ") for name in COUNTERS]
    line = ["seconds after the start", "executors", "first began", "10%", "50%", "90%", "last began"]
    line += ["last nap ended", "result here"]
    medians: dict[str, list[float]] = {}
    for turn in found:
        medians.setdefault(turn.what.rstrip("0123456789 "), []).append(turn.ratio)
    summary = [[what, f"{statistics.median(ratios):.2f}", f"{len(ratios)}"] for what, ratios in medians.items()]
    parts = [
        table(header, [turn.row() for turn in found]),
        table(line, [turn.line() for turn in found]),
        table(["median ratio to the ideal", "ratio", "turns"], summary),
    ]
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--executors", type=int, nargs="+", default=[500, 1000])
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--nap", type=float, nargs="+", default=[0.1, 0.5], help="seconds of each task")
    parser.add_argument("--repeat", type=int, default=3, help="warm turns (default: 3)")
    parser.add_argument("--fan-in", type=int, default=32, help="naps, and then sums, that meet in one task")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["graph"])
    parser.add_argument(
        "--linger", default=None, help="serverless.executor.linger, such as 2s (default: as configured)"
    )
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between turns: nobody lingers any more")
    options = parser.parse_args(arguments)
    if min(*options.executors, options.tasks, options.repeat) < 1 or options.fan_in < 2 or min(options.nap) <= 0:
        parser.error("counts and naps must be positive, and --fan-in 2 or more")
    if options.linger is not None:
        dask.config.set({"serverless.executor.linger": options.linger})
    found = [turn for executors in options.executors for turn in turns(options, executors)]
    print(report(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
