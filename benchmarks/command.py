"""The command line: which workloads, whom with, and where the results go."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import ablation, contenders, measuring, report, results, workloads
from benchmarks.stage import Entrant
from dask_serverless.config import DEFAULTS

PARTS = ("compare", "ablation")


def write(page: Path, kept: dict[str, Any]) -> None:
    """Write the page, and beside it a folder of its name with the plots and what they are made of."""
    folder = page.with_suffix("")
    results.write(folder / "results.json", kept)
    page.write_text(report.page(kept, folder.name))
    for name, text in report.figures(kept).items():
        (folder / name).write_text(text)


def main(arguments: list[str] | None = None) -> int:
    there, who = workloads.load(), contenders.classes()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Compare this package with others, and with itself without its parts."
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, one turn: does it run at all?")
    parser.add_argument("--repeat", type=int, help="timed turns of each (default: 3; with --quick: 1)")
    parser.add_argument("--only", nargs="+", choices=there, metavar="WORKLOAD", help=f"some of: {', '.join(there)}")
    parser.add_argument("--on", nargs="+", choices=who, default=list(who), help="some of the contenders")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="some of the two parts")
    parser.add_argument("--switches", nargs="+", help="some of the ablation's switches (default: all there are)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="merge into this page (docs/benchmarks.md)")
    parser.add_argument("--report-only", action="store_true", help="measure nothing: write the page from what is kept")
    options = parser.parse_args(arguments)
    repeat = options.repeat if options.repeat is not None else 1 if options.quick else 3
    if repeat < 1:
        parser.error("--repeat must be 1 or more")
    if options.report_only and options.write is None:
        parser.error("--report-only needs --write")
    try:
        parts_off = ablation.entrants(DEFAULTS["serverless"], options.switches)
    except ablation.NoSuchSwitch as error:
        parser.error(str(error))

    everyone = [Entrant(name, name) for name in options.on]
    runs = {
        "compare": ("workloads", everyone, options.only or list(there)),
        "ablation": ("ablation", parts_off, [name for name in ablation.WORKLOADS if name in (options.only or there)]),
    }
    kept = results.read(options.write.with_suffix("") / "results.json") if options.write else results.read(None)
    run = results.describe_run(repeat)
    failed = []
    for part in () if options.report_only else options.parts:
        section, entrants, names = runs[part]
        before, found = kept, {}
        for name in names:
            workload = there[name]
            set_up = [replace(each, settings={**workload.settings, **each.settings}) for each in entrants]
            found[name] = measuring.measure(workload, set_up, workload.size(options.quick, part == "ablation"), repeat)
            ours = [found[name]["entrants"][each.label] for each in entrants if each.contender == report.OURS]
            failed += [f"{part}: {name}: {each['reason']}" for each in ours if each["reason"]]
            kept = results.merge(before, section, found, run)
            if options.write:
                write(options.write, kept)  # a run of hours may be stopped: what it has found so far is kept
    if options.write:
        write(options.write, kept)
    else:
        print(report.page(kept, "benchmarks"))
    for line in failed:
        print(f"error: ours did not finish: {line}", file=sys.stderr)
    return 1 if failed else 0
