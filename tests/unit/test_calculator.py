"""The simulator as a calculator: it reproduces what Wukong measured, and says what a workload of ours would take."""

from __future__ import annotations

from dataclasses import replace

import pytest
from click.testing import CliRunner

from benchmarks.anchors import FARGATE_NODES, cells
from benchmarks.calibration import table_of
from dask_serverless.command_line import serverless
from dask_serverless.simulator.calculator import predict
from dask_serverless.simulator.clusters import WUKONG_ZONE_PER_SECOND, ours, wukong
from dask_serverless.simulator.shapes import Shape, chains, experienced, gemm, svd2, tree, tsqr

MEASURED = {f"{cell.table} {cell.name}": cell for cell in cells()}
#: Cells to which nothing was fitted, and that take little to simulate.
PREDICTED = [
    "TR 100 ms",
    "SVD1 4.1M",
    "SVD2 25k",
    "GEMM 5k",
    "GEMM 7.5k",
    "GEMM 15k",
    "GEMM, one Redis 10k",
    "GEMM, one Redis 15k",
    "TSQR 131k",
    "TSQR 1.0M",
    "TSQR 4.2M",
]


@pytest.mark.parametrize("name", PREDICTED)
def test_wukong_takes_as_long_as_was_measured(name):
    """Within 30 %, which is what a prediction promises."""
    cell = MEASURED[name]
    assert not cell.fitted
    assert predict(cell.workload(), cell.cluster).seconds == pytest.approx(cell.seconds, rel=0.3)


@pytest.mark.parametrize("name", ["GEMM 5k", "GEMM 15k"])
def test_wukong_moves_as_many_bytes_as_was_measured(name):
    cell = MEASURED[name]
    predicted = predict(cell.workload(), cell.cluster)
    assert (predicted.bytes_read + predicted.input_bytes) / 1e9 == pytest.approx(cell.others["read"], rel=0.15)
    assert predicted.bytes_written / 1e9 == pytest.approx(cell.others["written"], rel=0.05)


def test_delayed_writing_is_what_saves_wukong_most():
    """Figure 23 on a smaller matrix. No child needs a large block alone, so clustering saves little here."""
    work = svd2(30_000)
    plain, clustering, delayed = (
        predict(work, wukong(5_000, clustering=with_clustering, delayed=with_delayed))
        for with_clustering, with_delayed in ((False, False), (True, False), (True, True))
    )
    assert plain.seconds >= clustering.seconds > 2 * delayed.seconds
    assert delayed.bytes_written < clustering.bytes_written / 10


def test_a_block_is_held_for_as_long_as_it_would_take_all_of_them_to_move_theirs():
    """All inputs come through 0.4 GB/s, for 18 s. Who gives its block up before has it go there and back as well."""
    work, cluster = experienced(svd2(30_000)), ours(60, zone_per_second=4e8)
    held = predict(work, cluster)
    unaware = replace(cluster.policy, tier_bytes_per_second=1e15)
    given_up = predict(work, replace(cluster, policy=unaware))
    assert given_up.seconds > 2.5 * held.seconds
    assert held.bytes_written < 0.2e9 < 3e9 < given_up.bytes_written
    assert held.lambda_seconds < 0.7 * given_up.lambda_seconds


@pytest.mark.parametrize("known", [True, False])
def test_a_block_is_not_held_for_what_takes_much_longer_than_to_move_it(known):
    """Of ten minutes that one task takes, the executors of 20 others are paid for a few seconds."""
    shape = Shape()
    shape.add("slow", seconds=600.0)
    wanted = [
        shape.add(("c", n), [shape.add(("x", n), seconds=1.0, nbytes=200_000_000), "slow"], seconds=1.0)
        for n in range(20)
    ]
    work = shape.workload(wanted)
    found = predict(experienced(work) if known else work, ours(100))
    assert found.seconds < 610
    assert found.lambda_seconds < 600 + 20 * (15 if known else 20)


@pytest.mark.parametrize("size", [5_000, 10_000, 15_000])
def test_products_that_are_won_together_are_shared_at_once(size):
    """Whose block comes last wins a row of products. Wukong invokes an executor for each, and so do we."""
    cell = MEASURED[f"GEMM {size // 1_000}k"]
    mine = predict(
        experienced(cell.workload()), ours(cell.executors, FARGATE_NODES, zone_per_second=WUKONG_ZONE_PER_SECOND)
    )
    assert mine.seconds < 0.7 * predict(cell.workload(), cell.cluster).seconds


def test_short_tasks_stay_together_where_that_is_known_to_be_faster():
    theirs, mine = predict(tree(1024, 0.0), wukong(512)), predict(experienced(tree(1024, 0.0)), ours(512))
    assert theirs.invocations == 512 and mine.invocations == 1
    assert mine.seconds < theirs.seconds / 3
    assert mine.cost.compute < theirs.cost.compute / 100
    assert mine.steps < 50


@pytest.mark.fault(39)
def test_more_sandboxes_than_are_warm_wait_for_the_ramp():
    cluster = ours(300, warm=0)
    cluster = replace(cluster, function=replace(cluster.function, ramp_count=200))
    cold = predict(chains(300, 1, 10.0), cluster)
    assert 14 < cold.seconds < 17, "200 at once, and 20 in each second after that"


def test_a_zone_moves_only_so_much():
    work = tsqr(64 * 16_384)  # reads 1.07 GB
    wide, narrow = (predict(work, ours(64, zone_per_second=bandwidth)) for bandwidth in (1e12, 1e8))
    assert narrow.seconds > 10.7 > 2 * wide.seconds
    assert narrow.input_bytes == wide.input_bytes == 64 * 16_384 * 128 * 8


def test_the_same_seed_predicts_the_same():
    assert predict(gemm(6_000, 2_000), ours(20), seed=3) == predict(gemm(6_000, 2_000), ours(20), seed=3)


def test_what_does_not_fit_is_in_bold():
    cell = MEASURED["TR 0 ms"]
    numbers = {"seconds": 2 * cell.seconds, "invocations": 1.0, "lambda_dollars": 0.1}
    found = table_of("TR", {"TR": {"0 ms": {"wukong": numbers, "ours": numbers}}})
    assert "**+100 %**" in found and "0 ms (fitted: step spread)" in found


@pytest.mark.parametrize("arguments", [["tree", "--size", "64"], ["gemm", "--size", "4000"], ["tsqr", "--as-wukong"]])
def test_a_prediction_in_numbers(arguments):
    done = CliRunner().invoke(serverless, ["predict", *arguments, "--executors", "32"])
    assert done.exit_code == 0, done.output
    assert "executors at once" in done.output and "$" in done.output
