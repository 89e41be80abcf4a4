"""What a Dask collection would take in AWS."""

from __future__ import annotations

import dask
import dask.array as da
import pytest

from dask_serverless import predict


def inc(number):
    return number + 1


def job(count=64):
    return dask.delayed(sum)([dask.delayed(inc)(n, dask_key_name=f"inc-{n}") for n in range(count)])


def test_more_executors_take_less_time_up_to_the_longest_path():
    one, four, many = (predict(job(), seconds={"inc": 1.0, "sum": 0.5}, executors=n) for n in (1, 4, 1_000))
    assert one.seconds > 64.5 and 16.5 < four.seconds < 20 and 1.5 < many.seconds < 3
    assert (one.invocations, four.invocations, many.invocations) == (1, 4, 64)
    assert one.tasks == four.tasks == many.tasks == 65


def test_short_tasks_are_not_worth_many_executors():
    assert predict(job(), seconds=1e-4).invocations == 1


def test_large_values_travel_through_the_tier():
    small, large = (predict(job(), seconds=1.0, nbytes=each) for each in (100, 10_000_000))
    assert small.bytes_written < 100_000
    assert large.bytes_written >= 63 * 10_000_000
    assert large.seconds > small.seconds


def test_more_memory_costs_more():
    small, large = (predict(job(), seconds=1.0, memory_bytes=each * 2**30) for each in (1, 4))
    assert large.cost.compute == pytest.approx(4 * small.cost.compute)


def test_an_array_is_predicted_as_it_is_planned():
    array = da.ones((4_000, 4_000), chunks=1_000).sum()
    told = predict(array, seconds=0.5, nbytes=8_000)
    assert str(told).startswith("time: ") and f"for {told.tasks} tasks" in str(told)
    assert told.cost.total > 0


def test_what_is_not_known_is_asked_for_by_name():
    with pytest.raises(ValueError, match=r"'inc', 'sum'. Give seconds={'inc': ...}"):
        predict(job())
    with pytest.raises(ValueError, match=r"'sum'. Give seconds="):
        predict(job(), seconds={"inc": 1.0})


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"seconds": -1}, "seconds=-1 is no number"),
        ({"seconds": {"inc": "long", "sum": 1}}, "seconds='long' of 'inc'"),
        ({"seconds": 1, "nbytes": float("inf")}, "nbytes=inf"),
        ({"seconds": {"in": 1}}, "no tasks of key prefix 'in', but of these: inc, sum"),
        ({"seconds": 1, "executors": 0}, "executors=0"),
        ({"seconds": 1, "shards": 1.5}, "shards=1.5"),
        ({"seconds": 1, "memory_bytes": True}, "memory_bytes=True"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        predict(job(), **arguments)


def test_what_is_no_collection_or_no_cluster_is_refused():
    with pytest.raises(TypeError, match="7 is no Dask collection"):
        predict(7, seconds=1)
    with pytest.raises(TypeError, match="cluster=8 is no ServerlessCluster"):
        predict(job(), 8, seconds=1)


def test_a_graph_that_would_take_too_long_is_refused(monkeypatch):
    monkeypatch.setattr("dask_serverless.predicting.TASKS_MAX", 10)
    with pytest.raises(ValueError, match="the graph has 65 tasks"):
        predict(job(), seconds=1)
