"""How what is kept of runs is shown: Markdown tables and plots. Generated, so nobody writes a number by hand."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import plots
from benchmarks.ablation import ALL_ON
from benchmarks.results import SECTIONS
from benchmarks.targets import SHAPES, Kept, counted, fastest, ratio, seconds, targets
from dask_serverless.plan.price import Cost, Machine, Prices, price

MIB = 2**20
OURS = "serverless"
#: By entrant: the heading of its column, and what it is.
CONTENDERS = {
    "sync": ("sync", "Dask's synchronous scheduler, the floor"),
    "local": ("LC 2x1", "`LocalCluster(n_workers=2, threads_per_worker=1)`"),
    "threads": ("LC 1x2", "`LocalCluster(n_workers=1, threads_per_worker=2)`"),
    OURS: ("ours", "`ServerlessCluster(n_workers=2)`"),
    "serverless-threads": ("ours 1x2", "`ServerlessCluster(n_workers=1, threads_per_worker=2)`"),
    "ray": ("Ray", "Ray's scheduler for Dask graphs, `num_cpus=2`"),
    "lithops": ("Lithops", "Lithops, its localhost backend (version 1, the faster), 2 processes"),
    "cubed": ("cubed", "cubed, its executor on local processes, 2 of them"),
}
COUNTERS = (
    ("tasks_run", "tasks run"),
    ("invocations", "invocations"),
    ("mails", "mails"),
    ("executors", "executors"),
    ("round_trips", "round trips"),
    ("objects_written", "objects written"),
    ("slices_written", "slices written"),
    ("bytes_written", "MB written"),
    ("bytes_read", "MB read"),
)
#: One node of the storage tier, and a machine that would hold the LocalCluster: both on Fargate.
STORAGE = Machine(vcpus=4, gb=30)
LOCAL_MACHINE = Machine(vcpus=2, gb=4)
#: A difference that one would find between two runs of the same thing.
NOISE = 1.05


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are numbers.

    Examples
    --------
    >>> print(table(["what", "s"], [["tree", "1.0"]]))
    | what | s |
    | --- | ---: |
    | tree | 1.0 |
    """
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows])


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many figures that mean something; nothing for None.

    Examples
    --------
    >>> number(12345.6), number(1.2345), number(0.00012), number(0.0), number(None)
    ('12,346', '1.23', '0.00012', '0', '')
    """
    if value is None:
        return ""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{digits}g}"


def spread(over: Sequence[float], under: Sequence[float]) -> str:
    """Return the ratio of two medians, and how far it could be off when turns are taken one by one.

    Examples
    --------
    >>> spread([2.0, 4.0, 3.0], [1.0, 1.0, 1.5])
    '3 (1.33 to 4)'
    """
    if not over or not under:
        return ""
    middle = statistics.median(over) / statistics.median(under)
    return f"{number(middle)} ({number(min(over) / max(under))} to {number(max(over) / min(under))})"


def verdict(local: float | None, ours: float | None) -> str:
    """Say who won, and by how much.

    Examples
    --------
    >>> verdict(3.0, 1.0), verdict(1.0, 3.0), verdict(1.0, 1.01)
    ('won, 3x', '**lost, 3x**', 'even')
    """
    found = ratio(local, ours)
    if found is None:
        return ""
    if 1 / NOISE <= found <= NOISE:
        return "even"
    return f"won, {number(found)}x" if found > 1 else f"**lost, {number(1 / found)}x**"


def cost_of(result: Mapping[str, Any]) -> Cost | None:
    """Return what one turn of ours would cost on AWS, at list prices."""
    found, times = result.get("counted") or {}, result.get("seconds") or []
    if not found or not times:
        return None
    return price(
        gb_seconds=found["gb_seconds"],
        requests=found["invocations"],
        storage_seconds=statistics.median(times),
        storage=STORAGE,
    )


def of(result: Mapping[str, Any], entrant: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = result["entrants"].get(entrant, {})
    return found


def name_of(name: str, result: Mapping[str, Any]) -> str:
    return f"{name} (quick)" if result["quick"] else name


def full_only(kept: Kept) -> Kept:
    """Return what is kept without the results of quick sizes, which are nobody's victory."""
    full = {
        section: {name: result for name, result in kept[section].items() if not result["quick"]} for section in SECTIONS
    }
    return {**kept, **full}


# -- tables -------------------------------------------------------------------------------------


def targets_table(kept: Kept) -> str:
    rows = []
    for target in targets():
        found, said = target.verdict(kept)
        rows.append([target.text, f"{'at least' if target.at_least else 'at most'} {target.bound:g}", found, said])
    return table(["what must hold", "bound", "found", "verdict"], rows)


def times_table(kept: Kept) -> str:
    header = ["median seconds", *(heading for heading, _ in CONTENDERS.values())]
    header += [f"LC / ours, {shape} (range)" for shape in SHAPES]
    header += ["ours / sync", "the faster LC against the faster of ours"]
    rows = []
    for name, result in kept["workloads"].items():
        times = [number(seconds(kept, name, entrant)) or "–" for entrant in CONTENDERS]
        pairs = [
            spread(of(result, local).get("seconds", []), of(result, ours).get("seconds", []))
            for local, ours in SHAPES.values()
        ]
        floor = number(ratio(seconds(kept, name, OURS), seconds(kept, name, "sync")))
        rows.append([name_of(name, result), *times, *pairs, floor, verdict(*fastest(kept, name))])
    return table(header, rows)


def did_table(kept: Kept) -> str:
    rows = []
    for name, result in kept["workloads"].items():
        if (of(result, OURS).get("counted") or {}) == {}:
            continue
        cells = [counted(kept, name, OURS, key) for key, _ in COUNTERS]
        shown = [
            number(cell / 1e6 if cell is not None and key.startswith("bytes") else cell)
            for cell, (key, _) in zip(cells, COUNTERS, strict=True)
        ]
        rows.append([name_of(name, result), *shown])
    return table(["ours, per turn", *(heading for _, heading in COUNTERS)], rows)


def cost_table(kept: Kept) -> str:
    rows = []
    for name, result in kept["workloads"].items():
        cost = cost_of(of(result, OURS))
        if cost is None:
            continue
        local, _ = fastest(kept, name)
        theirs = None if local is None else LOCAL_MACHINE.cost(local, Prices())
        cells = (cost.compute, cost.requests, cost.storage, cost.total, theirs)
        rows.append([name_of(name, result), *("" if cell is None else f"{1e6 * cell:,.1f}" for cell in cells)])
    header = ["millionths of a USD per turn", "Lambda", "requests", "storage", "ours", "the faster LC"]
    return table(header, rows)


def memory_table(kept: Kept) -> str:
    rows = []
    for name, result in kept["workloads"].items():
        cells = []
        for entrant in ("local", OURS):
            memory = of(result, entrant).get("memory") or {}
            kinds = ("client", "largest worker", "workers", *(("storage", "services") if entrant == OURS else ()))
            cells += [number(memory[kind] / MIB) if kind in memory else "" for kind in kinds]
        rows.append([name_of(name, result), *cells])
    header = ["peak MiB (PSS)", "LC: client and scheduler", "LC: largest worker", "LC: workers"]
    header += ["ours: client and scheduler", "ours: largest executor", "ours: executors", "ours: storage"]
    return table([*header, "ours: Lambda service"], rows)


def about_table(kept: Kept) -> str:
    rows = []
    for name, result in kept["workloads"].items():
        run = kept["runs"][result["run"]]
        load = " to ".join(f"{each:.1f}" for each in result["load"])
        turns = len(of(result, OURS).get("seconds") or [])
        cells = [
            result["title"],
            f"{result['tasks']:,}",
            result["checked"],
            run["date"],
            run["commit"],
            load,
            str(turns),
        ]
        rows.append([name_of(name, result), *cells])
    header = ["workload", "what it is", "tasks", "answers are compared with", "when", "commit", "load", "turns"]
    return table(header, rows)


def ablation_tables(kept: Kept) -> Iterator[str]:
    for name, result in kept["ablation"].items():
        base = seconds(kept, name, ALL_ON, "ablation")
        rows = []
        for label, entrant in result["entrants"].items():
            found, times = entrant.get("counted") or {}, entrant.get("seconds") or []
            if not times:
                rows.append([label, f"– ({entrant['reason']})", *[""] * 7])
                continue
            cost = cost_of(entrant)
            memory = entrant.get("memory") or {}
            numbers = (statistics.median(times), ratio(statistics.median(times), base))
            numbers += (found["bytes_written"] / 1e6, found["bytes_read"] / 1e6)
            numbers += (found["round_trips"], found["invocations"], memory.get("largest worker", 0) / MIB)
            rows.append([label, *map(number, numbers), "" if cost is None else f"{1e6 * cost.total:,.1f}"])
        run = kept["runs"][result["run"]]
        header = [
            f"{name_of(name, result)}",
            "s",
            "times all on",
            "MB written",
            "MB read",
            "round trips",
            "invocations",
        ]
        header += ["largest executor MiB", "10^-6 USD"]
        yield f"{result['title']} ({run['date']}, {run['commit']}):\n\n{table(header, rows)}"


def factor_tables(kept: Kept) -> Iterator[str]:
    """Yield a table for each workload and cluster: what our engine would take in AWS without each of its parts."""
    columns = {"written": 1e9, "read": 1e9, "steps": 1, "invocations": 1, "lambda_dollars": 1}
    for name, result in kept["factors"].items():
        base = result["entrants"][ALL_ON]["seconds"]
        rows = [
            [label, number(each["seconds"]), number(each["seconds"] / base)]
            + [number(each[column] / unit) for column, unit in columns.items()]
            for label, each in result["entrants"].items()
        ]
        header = [name, "s", "times all on", "GB written", "GB read", "round trips", "invocations", "USD for Lambda"]
        yield f"{result['title']}:\n\n{table(header, rows)}"


def wide_tables(kept: Kept) -> Iterator[str]:
    """Yield two tables: naps on warm executors against the ideal, and from cold; both with their parts."""
    parts = ("first_began", "last_began", "last_nap_ended", "seconds", "cpu")
    header = ["ideal", "first nap", "last executor began", "last nap over", "result here", "CPU s", "times the ideal"]
    for section, heading in (("warm", "median of warm turns"), ("cold", "from cold")):
        rows = []
        for name, result in kept["wide"].items():
            if turns := result[section]:
                middle = [statistics.median(turn[part] for turn in turns) for part in parts]
                against = number(middle[parts.index("seconds")] / result["ideal"])
                rows.append([name, number(result["ideal"]), *map(number, middle), against, str(len(turns))])
        if rows:
            yield table([f"naps, {heading}: seconds after the start", *header, "turns"], rows)


def absences(kept: Kept) -> str:
    """Return who did not take part or stopped, and why, each reason once."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, result in kept["workloads"].items():
        for entrant, found in result["entrants"].items():
            if found["reason"]:
                reasons.setdefault((entrant, found["reason"]), []).append(name)
    return "\n".join(f"- **{who}**: {why} ({', '.join(names)})" for (who, why), names in reasons.items())


def machine_lines(kept: Kept) -> str:
    lines = []
    for run in kept["runs"].values():
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        size = f"{run['cores']} cores, {run['memory_gib']} GiB"
        lines.append(f"- {run['date']}, commit {run['commit']}: {size}; {run['system']}; {versions}")
    return "\n".join(dict.fromkeys(lines))


def in_short(kept: Kept) -> str:
    """Say where we won and where we lost, by name."""
    said = {name: verdict(*fastest(kept, name)) for name in kept["workloads"]}
    won = [name for name, text in said.items() if text.startswith("won")]
    lost = [f"{name} ({text.strip('*').removeprefix('lost, ')})" for name, text in said.items() if "lost" in text]
    even = [name for name, text in said.items() if text == "even"]
    if not said:
        return "There are only results of quick sizes, which show that it runs and nothing else."
    first = [
        "The faster of two `LocalCluster`s (two workers of one thread, one of two) against the faster of ours of the "
        f"same shapes: **won {len(won)}**, even {len(even)}, **lost {len(lost)}**."
    ]
    if lost:
        first.append(f"Lost: {', '.join(lost)}.")
    best: list[str] = []
    for name, result in kept["workloads"].items():
        _, ours = fastest(kept, name)
        left_out = {"sync", *(ours for _, ours in SHAPES.values())}
        others = {who: seconds(kept, name, who) for who in result["entrants"] if who not in left_out}
        faster = [
            who for who, found in others.items() if found is not None and ours is not None and found * NOISE < ours
        ]
        best += [f"{name} ({', '.join(CONTENDERS.get(who, (who,))[0] for who in faster)})"] if faster else []
    if best:
        first.append(f"Somebody other than the synchronous scheduler was faster than ours in: {', '.join(best)}.")
    return " ".join(first)


# -- all of it ----------------------------------------------------------------------------------


def page(kept: Kept, folder: str) -> str:
    """Return the whole page; `folder` is where the plots are, as links have it."""
    plotted = figures(kept)

    def image(text: str, name: str) -> str:
        return f"![{text}]({folder}/{name})"

    contenders = "\n".join(f"- **{heading}**: {what}" for heading, what in CONTENDERS.values())
    threads = {
        found["blas_threads"]
        for section in ("workloads", "ablation")
        for result in kept[section].values()
        for found in result["entrants"].values()
        if found["blas_threads"]
    }
    blas = f"{', '.join(map(str, sorted(threads)))} (asked of a task of each)" if threads else "not measured"
    parts = ["# Benchmarks", "Generated by `python -m benchmarks --write docs/benchmarks.md`: do not edit."]
    parts.append(
        "Everybody takes turns in one run, so ratios mean something and absolute times little. How it is measured: "
        "[benchmarks/README.md](../benchmarks/README.md)."
    )
    if kept["workloads"]:
        parts += [in_short(full_only(kept)), "## What must hold", targets_table(full_only(kept))]
        parts += ["## Who took part", contenders]
        parts += [f"BLAS threads of each worker: {blas}.", "## Times", times_table(kept)]
        parts += [image("Times relative to LocalCluster", name) for name in plotted if name == "times.svg"]
        parts += ["## What ours did", did_table(kept), "## What it would cost", cost_table(kept)]
        parts.append(
            "At list prices (x86, us-east-1): Lambda and requests as counted, storage as one Fargate task of 4 vCPUs "
            "and 30 GB for the seconds of the turn. `LocalCluster` is a Fargate task of 2 vCPUs and 4 GB for the "
            "seconds of the turn: it has no idle time, no start and no minimum of a minute in it, and neither has ours."
        )
        parts += ["## Memory", memory_table(kept), "## What was measured", about_table(kept)]
        parts += ["Who did not take part, or not to the end:", absences(kept) or "- nobody"]
    if kept["ablation"]:
        parts += ["## Ablation", "Our engine with one part switched off at a time, interleaved in one run."]
        parts += ablation_tables(kept)
        parts += [image("Times relative to all on", name) for name in plotted if name == "ablation.svg"]
        parts += [image("Bytes relative to all on", name) for name in plotted if name == "ablation-bytes.svg"]
    if kept["factors"]:
        parts += [
            "## Ablation in AWS, calculated",
            "The same in the simulator, which runs the same executors on the workloads of Wukong's evaluation and on "
            "look-ups in large tables ([how well it fits](simulation.md)); warm Lambdas of 3 GiB. *Without learned*: "
            "nothing is known of tasks from earlier jobs. Nothing here was measured.",
        ]
        parts += factor_tables(kept)
    if kept["wide"]:
        parts += [
            "## Wide fan-outs",
            "10,000 naps that meet in one result, on so many executors (*20 x 25*: 20 executors with 25 threads each, "
            "so that 500 nap at once), all of them on this machine.",
        ]
        parts += wide_tables(kept)
    parts += ["## Machine", machine_lines(kept)]
    return "\n\n".join(parts) + "\n"


def figures(kept: Kept) -> dict[str, str]:
    """Return the plots by file name; one that would be empty is not among them."""
    relative: dict[str, dict[str, float]] = {}
    for name, result in kept["workloads"].items():
        for who in result["entrants"]:
            found = ratio(seconds(kept, name, who), seconds(kept, name, "local"))
            _put(relative, name_of(name, result), CONTENDERS.get(who, (who,))[0], found)
    times: dict[str, dict[str, float]] = {}
    moved: dict[str, dict[str, float]] = {}
    for name, result in kept["ablation"].items():
        for label in result["entrants"]:
            base = seconds(kept, name, ALL_ON, "ablation")
            _put(times, name_of(name, result), label, ratio(seconds(kept, name, label, "ablation"), base))
            _put(moved, name_of(name, result), label, ratio(moved_by(kept, name, label), moved_by(kept, name, ALL_ON)))
    made = {
        "times.svg": ("Time, relative to LocalCluster 2x1 (left is faster)", relative),
        "ablation.svg": ("Time, relative to all on (right: the part pays)", times),
        "ablation-bytes.svg": ("Bytes through the store, relative to all on (right: the part pays)", moved),
    }
    return {name: plots.dots(title, "times", rows) for name, (title, rows) in made.items() if rows}


def _put(rows: dict[str, dict[str, float]], row: str, series: str, value: float | None) -> None:
    if value is not None:
        rows.setdefault(row, {})[series] = value


def moved_by(kept: Kept, workload: str, label: str) -> float | None:
    """Return the bytes that went through the store, either way."""
    found = [counted(kept, workload, label, name, "ablation") for name in ("bytes_written", "bytes_read")]
    return None if None in found else sum(each for each in found if each is not None)
