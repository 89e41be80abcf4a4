"""Compare the calculator with what was published, and write that into the documentation.

    python -m benchmarks.calibration --write docs/simulation.md                  # everything; some ten minutes
    python -m benchmarks.calibration --write docs/simulation.md --tables "TR;GEMM"  # these; others stay as they were
    python -m benchmarks.calibration --write docs/simulation.md --report-only     # compute nothing

What was computed is kept beside the page (``docs/simulation/results.json``); the page's generated part is between two
marks. Nothing here is measured on this machine: every number is either published or simulated.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import plots
from benchmarks.anchors import FARGATE_NODES, TABLES, Cell, cells
from benchmarks.report import number, table
from dask_serverless.simulator.calculator import Prediction, predict
from dask_serverless.simulator.clusters import WUKONG_ZONE_PER_SECOND, ours
from dask_serverless.simulator.shapes import experienced
from dask_serverless.simulator.simulation import Options
from dask_serverless.simulator.workload import Workload

BEGIN, END = "<!-- generated: calibration -->", "<!-- end of what is generated -->"
#: What fits.
WITHIN = 0.30
#: Latencies are drawn: means of so many runs; of large graphs of fewer.
SEEDS, LARGE_TASKS = 5, 2_500

Results = dict[str, dict[str, dict[str, Any]]]


def compute(cell: Cell) -> dict[str, Any]:
    """Simulate what was measured, as Wukong and as ours."""
    work = cell.workload()
    found: dict[str, Any] = {"wukong": _mean(work, cell.cluster), "date": time.strftime("%Y-%m-%d", time.gmtime())}
    if cell.with_ours:
        options = ours(cell.executors, FARGATE_NODES, zone_per_second=WUKONG_ZONE_PER_SECOND)
        found["ours"] = _mean(experienced(work), options)
    return found


def _mean(work: Workload, options: Options) -> dict[str, float]:
    count = sum(len(job.tasks) for job in work.jobs)
    runs = [_numbers(predict(work, options, seed=seed)) for seed in range(1 if count > LARGE_TASKS else SEEDS)]
    return {name: mean(each[name] for each in runs) for name in runs[0]}


def _numbers(found: Prediction) -> dict[str, float]:
    return {
        "seconds": found.seconds,
        "invocations": found.invocations,
        "read": (found.bytes_read + found.input_bytes) / 1e9,
        "written": found.bytes_written / 1e9,
        "steps": found.steps,
        "dollars": found.cost.total,
        "lambda_dollars": found.cost.compute + found.cost.requests,
    }


# -- tables -----------------------------------------------------------------------------------------


def off(predicted: float, measured: float) -> str:
    """Say how far a prediction is off; in bold if it does not fit.

    Examples
    --------
    >>> off(1.1, 1.0), off(2.0, 1.0)
    ('+10 %', '**+100 %**')
    """
    share = predicted / measured - 1
    text = f"{share:+.0%}".replace("%", " %")
    return text if abs(share) <= WITHIN else f"**{text}**"


def table_of(name: str, kept: Results) -> str:
    """Return one table, cell by cell: measured, predicted, ours."""
    rows = []
    for cell in (each for each in cells() if each.table == name and each.name in kept.get(name, {})):
        found = kept[name][cell.name]
        wukong, mine = found["wukong"], found.get("ours")
        label = f"{cell.name} (fitted: {cell.fitted})" if cell.fitted else cell.name
        row = [label, number(cell.seconds), number(wukong["seconds"]), off(wukong["seconds"], cell.seconds)]
        row.append(f"{number(mine['seconds'])}" if mine else "")
        row += [
            f"{wukong['invocations']:,.0f} / {mine['invocations']:,.0f}" if mine else f"{wukong['invocations']:,.0f}"
        ]
        row += [_pair(wukong, mine, "lambda_dollars", ".6f")]
        rows.append(row)
    header = [name, "Wukong, measured, s", "predicted", "off", "ours, predicted"]
    return table([*header, "invocations, Wukong / ours", "dollars for Lambda, Wukong / ours"], rows)


def _pair(wukong: dict[str, float], mine: dict[str, float] | None, what: str, form: str) -> str:
    return format(wukong[what], form) + (f" / {format(mine[what], form)}" if mine else "")


def others_table(kept: Results) -> str:
    """Return what else was measured: bytes and dollars."""
    units = {"read": "GB read", "written": "GB written", "dollars": "dollars"}
    rows = []
    for cell in cells():
        found = kept.get(cell.table, {}).get(cell.name)
        for what, measured in (cell.others or {}).items():
            if found is None:
                continue
            predicted, mine = found["wukong"][what], found.get("ours")
            row = [f"{cell.table} {cell.name}, {units[what]}", number(measured), number(predicted)]
            rows.append([*row, off(predicted, measured), number(mine[what]) if mine else ""])
    return table(["", "Wukong, measured", "predicted", "off", "ours, predicted"], rows)


def summary(kept: Results) -> str:
    """Return how many cells fit, table by table."""
    rows, fits, count = [], 0, 0
    for name in TABLES:
        errors = [
            kept[name][cell.name]["wukong"]["seconds"] / cell.seconds - 1
            for cell in cells()
            if cell.table == name and not cell.fitted and cell.name in kept.get(name, {})
        ]
        fitted = sum(bool(cell.fitted) for cell in cells() if cell.table == name)
        if errors:
            good = sum(abs(each) <= WITHIN for each in errors)
            fits, count = fits + good, count + len(errors)
            typical = sorted(map(abs, errors))[len(errors) // 2]
            rows.append([name, str(fitted), f"{good} of {len(errors)}", f"{typical:.0%}".replace("%", " %")])
    rows.append(["all", "", f"{fits} of {count}", ""])
    return table(["table", "cells fitted", "cells predicted within 30 %", "median error of these"], rows)


def page(kept: Results, folder: str) -> str:
    """Return what is generated."""
    dates = sorted({found["date"] for rows in kept.values() for found in rows.values()})
    parts = [summary(kept)]
    parts += [f"![Predicted against measured]({folder}/fit.svg)", f"![Ours against Wukong]({folder}/ours.svg)"]
    for name, title in TABLES.items():
        if name in kept:
            parts += [f"### {title}", table_of(name, kept)]
    parts += ["### Bytes and money", others_table(kept)]
    parts.append(f"Computed on {', '.join(dates)}.")
    return "\n\n".join(parts) + "\n"


def figures(kept: Results) -> dict[str, str]:
    """Return the plots by file name."""
    fit: dict[str, dict[str, float]] = {}
    mine: dict[str, dict[str, float]] = {}
    for cell in cells():
        found = kept.get(cell.table, {}).get(cell.name)
        if found is None:
            continue
        row = f"{cell.table} {cell.name}"
        kind = "fitted" if cell.fitted else "predicted"
        fit[row] = {kind: found["wukong"]["seconds"] / cell.seconds}
        if found.get("ours"):
            mine[row] = {"predicted": found["ours"]["seconds"] / found["wukong"]["seconds"]}
    return {
        "fit.svg": plots.dots("Wukong: predicted time, relative to what was measured", "times", fit),
        "ours.svg": plots.dots("Ours, relative to Wukong, both predicted (left is faster)", "times", mine),
    }


def write(path: Path, kept: Results) -> None:
    """Write the generated part of the page, its plots and what they are made of."""
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(kept, indent=1) + "\n")
    for name, text in figures(kept).items():
        (folder / name).write_text(text)
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n\n{page(kept, folder.name)}\n{END}{after}")


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", help=f"only these, with semicolons between: {', '.join(TABLES)}")
    parser.add_argument("--write", type=Path, metavar="PAGE", required=True, help="into this page (docs/simulation.md)")
    parser.add_argument("--report-only", action="store_true", help="compute nothing: write the page from what is kept")
    options = parser.parse_args()
    chosen = list(TABLES) if options.tables is None else [each.strip() for each in options.tables.split(";")]
    if strange := [each for each in chosen if each not in TABLES]:
        parser.error(f"there is no table {strange[0]!r}, but these: {'; '.join(TABLES)}")
    results = options.write.with_suffix("") / "results.json"
    kept: Results = json.loads(results.read_text()) if results.exists() else {}
    for cell in cells():
        if options.report_only or cell.table not in chosen:
            continue
        began = time.perf_counter()
        found = kept.setdefault(cell.table, {})[cell.name] = compute(cell)
        predicted = found["wukong"]["seconds"]
        said = (
            f"{cell.table} {cell.name}: {predicted:.3g} s, measured {cell.seconds:.3g} ({off(predicted, cell.seconds)})"
        )
        if "ours" in found:
            said += f"; ours {found['ours']['seconds']:.3g}"
        print(f"{said} [{time.perf_counter() - began:.1f} s]", flush=True)
        write(options.write, kept)
    write(options.write, kept)
    return 0


if __name__ == "__main__":
    sys.exit(main())
