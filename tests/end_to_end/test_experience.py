"""What a cluster learns from one computation, and does with it in the next; and what it tells the user of both."""

from __future__ import annotations

import itertools
import os
import signal

import dask
import dask.array as da
import pytest
from distributed import Client, wait

from dask_serverless import ServerlessCluster, explain, predict
from tests.waiting import until


@pytest.fixture(scope="module")
def cluster():
    """A cluster that has learned nothing yet when the first test begins; each test has prefixes of its own."""
    with ServerlessCluster(n_workers=2, dashboard_address=None) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        yield client


def die_once(marker):
    """End the process that runs this, the first time."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return 0
    os.kill(os.getpid(), signal.SIGKILL)


_numbers = itertools.count()


def inc(number):
    return number + 1


def blob(number):
    return bytes(200_000)


def job(prefix, starts=64):
    """A sum of `starts` tasks of one prefix, with new keys each time."""
    number = next(_numbers)
    starts = [dask.delayed(inc)(n, dask_key_name=f"{prefix}-{number}-{n}") for n in range(starts)]
    return dask.delayed(sum)(starts, dask_key_name=f"{prefix}-total-{number}")


def statistics(cluster):
    return cluster._proxy.dispatcher.experience.statistics


def teach(cluster, seconds):
    for prefix, each in seconds.items():
        statistics(cluster).take(prefix, [1000, 1000 * each, 1000 * each * each, 0, 0, 0])


def first(cluster):
    (sample,) = [sample for sample in cluster.decisions().samples if sample.decision == "first"]
    return sample.numbers


def test_a_cluster_that_has_done_nothing_says_so(cluster):
    with pytest.raises(KeyError, match="no job has been submitted yet"):
        cluster.decisions()


def test_the_second_run_of_a_job_goes_by_what_was_learned_in_the_first(cluster, client):
    assert job("again").compute() == 2080
    assert first(cluster) == {
        "executors": 2,
        "starts": 64,
        "places": 2,
        "seconds": None,
        "unknown_tasks": 65,
        "start_seconds": 0,
    }
    until(lambda: cluster.decisions().counts.get("began") == 2, "both executors report")
    assert statistics(cluster).of("again").tasks >= 32
    assert job("again").compute() == 2080
    assert first(cluster)["seconds"] > 0


def test_a_job_known_to_be_tiny_begins_with_one_executor_and_one_known_to_be_long_with_all(cluster, client):
    teach(cluster, {"known": 1e-6, "known-total": 1e-6})
    assert job("known").compute() == 2080
    assert first(cluster)["executors"] == 1
    teach(cluster, {"known": 10.0})
    assert job("known").compute() == 2080
    assert first(cluster)["executors"] == 2
    until(lambda: cluster.decisions().counts.get("began") == 2, "both executors report")


def test_what_was_decided_is_found_by_future_by_collection_and_by_name(cluster, client):
    collection = job("found", 8)
    collection.compute()
    mapped = client.map(inc, range(100, 110))
    client.gather(mapped)
    found = cluster.decisions(mapped[3])
    assert found.tasks == 10
    assert {found.job} == {each.job for each in map(cluster.decisions, (mapped, None, found.job))}
    assert cluster.decisions(collection).tasks == 9
    array = da.ones(100, chunks=10).persist()
    wait(array)
    assert cluster.decisions(array).tasks == 10
    with pytest.raises(KeyError, match="no job is remembered that made 'never'"):
        cluster.decisions(dask.delayed(1, name="never"))
    with pytest.raises(KeyError, match="nothing is remembered of job 'j999'"):
        cluster.decisions("j999")


def test_large_values_are_learned_and_decisions_name_tasks_by_key(cluster, client):
    total = dask.delayed(len)([dask.delayed(blob)(number, dask_key_name=f"blob-{number}") for number in range(8)])
    assert explain(total, cluster).unsized >= 8
    assert total.compute() == 8
    decisions = until(lambda: (found := cluster.decisions()).counts.get("began") == 2 and found, "both report")
    assert decisions.counts["store"] >= 4  # those that did not stay with whoever became the runner of the last task
    stored = [sample.numbers for sample in decisions.samples if sample.decision == "store"]
    assert {numbers["key"] for numbers in stored} <= {f"blob-{number}" for number in range(8)}
    assert all(numbers["nbytes"] >= 200_000 for numbers in stored)
    assert decisions.counts["become"] == 1
    assert statistics(cluster).of("blob").nbytes >= 200_000
    assert "store" in str(decisions)


def test_an_executor_that_dies_takes_only_its_own_report_along(cluster, client, tmp_path):
    parts = [dask.delayed(inc)(number, dask_key_name=f"lives-{number}") for number in range(64)]
    parts.append(dask.delayed(die_once)(str(tmp_path / "marker"), dask_key_name="dies-1"))
    assert dask.delayed(sum)(parts).compute() == 2080
    until(lambda: cluster.decisions().counts.get("began", 0) >= 2, "executors report")
    assert statistics(cluster).of("lives")
    lost = cluster.stats()["executors_lost"]
    assert job("lives").compute() == 2080
    assert cluster.stats()["executors_lost"] == lost


def test_what_the_cluster_does_for_itself_is_no_job_of_the_user(cluster, client):
    client.submit(inc, 1).result()
    before = cluster.decisions().job
    client.run(inc, 1)
    assert cluster.decisions().job == before


def test_explain_tells_what_the_current_cluster_has_learned_and_runs_nothing(cluster, client):
    teach(cluster, {"told": 2.0, "told-total": 1.0})
    before = cluster.stats()["tasks_planned"]
    told = explain(job("told"))
    assert (told.executors, told.places, told.seconds, told.critical_seconds) == (2, 2, 129.0, 3.0)
    assert str(told) == str(cluster.explain(job("told"))) == str(explain(job("told"), cluster))
    assert cluster.stats()["tasks_planned"] == before


def test_explain_counts_on_what_is_there_already(cluster, client):
    parts = client.persist([dask.delayed(inc)(number) for number in range(10)])
    told = explain(dask.delayed(sum)(parts))
    assert (told.shape.tasks, told.shape.externals) == (11, 10)


def test_a_prediction_goes_by_what_was_learned_and_by_what_is_there(cluster, client):
    teach(cluster, {"foretold": 2.0, "foretold-total": 1.0})
    told = predict(job("foretold"), executors=8)
    assert told.seconds > 64 * 2.0 / 8 + 1.0
    assert predict(job("foretold"), seconds={"foretold": 0.1}, executors=8).seconds < told.seconds / 2
    parts = client.persist([dask.delayed(inc)(number) for number in range(10)])
    wait(parts)
    total = dask.delayed(sum)(parts, dask_key_name="of-ten-1")
    assert predict(total, seconds=1.0).seconds < 2.0
    assert total.compute() == 55


async def test_an_asynchronous_cluster_is_asked_with_await():
    async with (
        ServerlessCluster(n_workers=1, dashboard_address=None, asynchronous=True) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        assert (await cluster.explain(job("asked", 4))).shape.tasks == 5
        await client.submit(inc, 1)
        assert (await cluster.decisions()).tasks == 1
