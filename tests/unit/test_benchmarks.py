"""What the benchmarks say is computed: ratios, verdicts, cost, tables, plots, what is kept. Nothing is measured."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from benchmarks import ablation, factors, measuring, plots, report, results, targets, wide, workloads
from dask_serverless.config import DEFAULTS
from dask_serverless.plan.price import Machine, Prices, price
from dask_serverless.simulator.clusters import ours
from dask_serverless.simulator.shapes import svd2

NOTHING: dict[str, Any] = {"seconds": [], "counted": {}, "memory": {}, "blas_threads": None, "reason": ""}
COUNTED = {
    "gb_seconds": 2.0,
    "invocations": 5,
    "executors": 5,
    "tasks_run": 8191,
    "round_trips": 7,
    "objects_written": 1,
    "slices_written": 0,
    "bytes_written": 2_000_000,
    "bytes_read": 1_000_000,
}


def took(*seconds: float, **more: Any) -> dict[str, Any]:
    return {**NOTHING, "seconds": list(seconds), "blas_threads": 1, **more}


def workload(name: str, quick: bool = False, **entrants: dict[str, Any]) -> dict[str, Any]:
    about = {"title": name, "size": {}, "tasks": 8191, "quick": quick, "load": [0.1, 0.2], "checked": "one another"}
    return {**about, "entrants": entrants}


@pytest.fixture
def run():
    return results.describe_run(repeat=3)


@pytest.fixture
def kept(run):
    found = {
        "tree": workload(
            "tree of no-ops",
            sync=took(0.5),
            local=took(30.0, 60.0, 45.0),
            threads=took(40.0),
            serverless=took(1.0, 1.2, 0.8, counted=COUNTED),
            ray=took(reason="ray cannot be imported"),
        ),
        "gemm": workload("GEMM", local=took(1.0), threads=took(2.0), serverless=took(3.0, counted=COUNTED)),
        "svc": workload("SVC", threads=took(2.0), **{"serverless-threads": took(1.0)}),
    }
    off = {**COUNTED, "bytes_written": 8_000_000, "bytes_read": 4_000_000}
    without = {
        "gemm": workload("GEMM", **{"all on": took(1.0, counted=COUNTED), "no locality": took(4.0, counted=off)}),
    }
    return results.merge(results.merge(results.EMPTY, "workloads", found, run), "ablation", without, run)


def test_a_cost_is_the_sum_of_what_is_paid_for():
    cost = price(gb_seconds=1_000, requests=1_000_000, storage_seconds=3_600, storage=Machine(vcpus=4, gb=30))
    assert cost.compute == pytest.approx(0.0166667)
    assert cost.requests == pytest.approx(0.2)
    assert cost.storage == pytest.approx(0.295, rel=0.01)
    assert cost.total == cost.compute + cost.requests + cost.storage
    assert price(gb_seconds=0, requests=0).total == 0
    assert price(gb_seconds=1, requests=1, prices=Prices(lambda_gb_second=2, lambda_request=3)).total == 5


def test_prices_are_those_of_the_configuration():
    section = DEFAULTS["serverless"]["lambda"]
    assert Prices().lambda_gb_second == section["price-gb-second"]
    assert Prices().lambda_request == section["price-request"]


def test_targets_are_met_missed_or_not_measured(kept):
    verdicts = {target.text: target.verdict(kept) for target in targets.targets()}
    assert verdicts["tree of no-ops: LocalCluster's time (2 x 1) / ours"] == ("45", "met")
    assert verdicts["tree of no-ops: ours / the synchronous scheduler's"] == ("2", "met")
    assert verdicts["gemm: LocalCluster's time / ours, both 2x1"] == ("0.3333", "**missed**")
    assert verdicts["svc: LocalCluster's time / ours, both 1x2"] == ("2", "met")
    assert verdicts["gemm: bytes written and read / without locality"] == ("0.25", "met")
    assert verdicts["tsqr: bytes written / without locality"] == ("", "not measured")


def test_losses_and_absences_are_named(kept):
    page = report.page(kept, "figures")
    assert "**won 2**, even 0, **lost 1**. Lost: gemm (3x)." in page
    assert "ray cannot be imported (tree)" in page
    assert "| tree | 0.5 | 45 | 40 | 1 | – | – | – | – | 45 (25 to 75) |  | 2 | won, 40x |" in page
    assert "| gemm | – | 1 | 2 | 3 |" in page


def test_quick_results_are_nobodys_victory(run):
    found = {"tree": workload("tree", quick=True, local=took(40.0), serverless=took(1.0, counted=COUNTED))}
    page = report.page(results.merge(results.EMPTY, "workloads", found, run), "figures")
    assert "There are only results of quick sizes" in page and "| tree (quick) |" in page
    assert " met |" not in page and "missed" not in page


def test_every_table_is_a_table(kept):
    tables = [part for part in report.page(kept, "figures").split("\n\n") if part.startswith("| ")]
    assert len(tables) == 7
    for table in tables:
        header, rule, *rows = table.splitlines()
        assert rule.startswith("| --- | ---: |") and rows
        assert {line.count("|") for line in (rule, *rows)} == {header.count("|")}, header


def test_plots_are_well_formed(kept):
    figures = report.figures(kept)
    assert sorted(figures) == ["ablation-bytes.svg", "ablation.svg", "times.svg"]
    for text in figures.values():
        root = ElementTree.fromstring(text)
        assert root.findall("{*}circle")
    assert ElementTree.fromstring(plots.dots("<nothing> & nobody", "axis", {})).tag.endswith("svg")


def test_an_empty_page_can_be_written(run):
    assert "## Machine" in report.page(results.merge(results.EMPTY, "workloads", {}, run), "figures")


def test_what_is_kept_survives_a_file(tmp_path, kept):
    results.write(tmp_path / "new" / "results.json", kept)
    assert results.read(tmp_path / "new" / "results.json") == json.loads(json.dumps(kept))
    assert results.read(tmp_path / "none.json") == results.EMPTY


def test_runs_that_nothing_is_from_are_forgotten(run):
    once = results.merge(results.EMPTY, "workloads", {"tree": workload("tree")}, run)
    twice = results.merge(once, "workloads", {"tree": workload("tree")}, run)
    assert list(once["runs"]) == ["1"] and list(twice["runs"]) == ["2"]


def turn(number: int, seconds: float, threads: int = 1) -> wide.Turn:
    """A turn of naps of which two thousand are over in each ideal second."""
    return wide.Turn(
        form="graph",
        nap=0.5,
        at_once=1_000,
        threads=threads,
        number=number,
        ideal=5.0,
        seconds=seconds,
        cpu=dict.fromkeys(wide.KINDS, 1.0),
        counted={},
        began=[0.25, 0.5],
        last_nap_ended=seconds - 0.125,
    )


def test_naps_are_compared_with_the_ideal_and_shown_with_their_parts(run):
    turns = [turn(0, 8.0), turn(1, 6.0), turn(2, 5.5), turn(3, 7.0), turn(1, 5.5, threads=25)]
    kept = results.merge(results.EMPTY, "wide", wide.to_keep(turns), run)
    kept = json.loads(json.dumps(kept))
    verdicts = {target.text: target.verdict(kept) for target in targets.targets() if "naps" in target.text}
    assert len(verdicts) == 8
    assert verdicts["10,000 naps of 0.5 s on 1,000 executors, warm: time / ideal"] == ("1.2", "**missed**")
    assert verdicts["10,000 naps of 0.5 s on 40 executors of 25 threads, warm: time / ideal"] == ("1.1", "met")
    assert verdicts["10,000 naps of 0.1 s on 500 executors, warm: time / ideal"] == ("", "not measured")
    warm, cold = report.wide_tables(kept)
    assert "| 0.5 s on 1,000 | 5 | 0.25 | 0.5 | 5.88 | 6 | 4 | 1.2 | 3 |" in warm
    assert "| 0.5 s on 40 x 25 | 5 | 0.25 | 0.5 | 5.38 | 5.5 | 4 | 1.1 | 1 |" in warm
    assert "| 0.5 s on 1,000 | 5 | 0.25 | 0.5 | 7.88 | 8 | 4 | 1.6 | 1 |" in cold and "x 25" not in cold
    assert "## Wide fan-outs" in report.page(kept, "figures")


def test_what_a_part_is_worth_in_aws_is_calculated_and_shown(run):
    """Blocks of 200 MB that meet small values at fan-ins: who does not hold them back has to write them."""
    found = factors.compute(lambda: svd2(10_000), executors=8, shards=1, seeds=1)
    parts = [f"without {name}" for name in (*factors.PARTS, factors.LEARNED)]
    assert list(found) == ["all on", *parts, "all off", "no locality"]
    assert found["without hold"]["written"] > 2 * found["all on"]["written"]
    assert found["without hold"]["seconds"] > 2 * found["all on"]["seconds"]
    result = {"title": "SVD2", "entrants": found, "quick": False}
    kept = results.merge(results.EMPTY, "factors", {"svd2 on 8": result}, run)
    kept = json.loads(json.dumps(kept))
    (shown,) = report.factor_tables(kept)
    assert shown.startswith("SVD2:") and "| all on |" in shown and "| no locality |" in shown
    assert shown in report.page(kept, "figures")


@pytest.mark.parametrize("part", factors.PARTS)
def test_every_part_can_be_switched_off_in_the_calculator(part):
    options = ours(8)
    assert factors.PARTS[part](options) != options


def test_naps_that_cannot_be_shared_out_evenly_are_refused(capsys):
    with pytest.raises(SystemExit):
        wide.main(["--at-once", "105", "--threads", "10"])
    assert "--at-once must be a multiple of --threads, and 105 is none of 10" in capsys.readouterr().err


def test_switches_are_those_of_the_installed_version():
    policy = {"group": True, "locality": True, "hold-seconds-max": 2.0}
    section = {"policy": policy, "executor": {"linger": "200 ms", "lease": "15 s"}}
    found = {each.label: dict(each.settings) for each in ablation.entrants(section)}
    as_written = {"optimization.fuse.active": False}
    off = {**as_written, "serverless.policy.group": False, "serverless.executor.linger": 0}
    assert found == {
        "all on": as_written,
        "without group": {**as_written, "serverless.policy.group": False},
        "without linger": {**as_written, "serverless.executor.linger": 0},
        "all off": off,
        "no locality": {**off, "serverless.policy.locality": False},
    }
    some = [each.label for each in ablation.entrants(section, ["group"])]
    assert some == ["all on", "without group"]


def test_a_switch_that_is_not_there_is_named():
    with pytest.raises(ablation.NoSuchSwitch, match=r"no switch 'teleport' \(serverless.policy.teleport\); it has: .*"):
        ablation.entrants(DEFAULTS["serverless"], ["teleport"])


def test_this_version_has_switches():
    assert "linger" in ablation.switches(DEFAULTS["serverless"])


def test_the_ablation_knows_its_workloads():
    assert set(ablation.WORKLOADS) <= set(workloads.load())


def test_every_workload_can_be_checked_and_has_a_heading():
    there = workloads.load()
    for each in there.values():
        assert each.heading(each.size(quick=True)) != each.heading(each.size(quick=False))
        assert each.heading(each.size(quick=False, ablation=True))
        assert each.tasks(each.full) >= each.tasks(each.quick) > 0
        assert each.holds is None or each.known
        assert each.holds is not None or each.refusal("sync") is None
        assert each.refusal("serverless") is None


@pytest.mark.parametrize(
    "answer, reference, own_data, said",
    [
        (120, 120, False, ""),
        (121, None, False, "wrong answer: 121 contradicts what is known (the sum of the numbers)"),
        (120, 119, False, "wrong answer: 120, but the reference has 119"),
        (120, 119, True, ""),
    ],
)
def test_answers_are_checked(answer, reference, own_data, said):
    program = workloads.Workload(
        name="sum",
        title="sum of {numbers}",
        full={"numbers": 16},
        quick={"numbers": 4},
        build=lambda contender, turn, numbers: lambda: sum(range(numbers)),
        tasks=lambda size: 1,
        holds=lambda size, found: found == sum(range(size["numbers"])),
        known="the sum of the numbers",
    )
    assert measuring.wrong(program, program.size(quick=False), own_data, answer, reference) == said
