"""The life of keys across graphs and clients: what a name means now is what a task gets, nothing
that was let go stays, and nothing that is wanted is lost."""

from __future__ import annotations

import time
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, wait

from dask_serverless import ServerlessCluster
from tests.waiting import until


def inc(n):
    return n + 1


def large(n):
    return np.full(100_000, n)


def ledger(cluster):
    return cluster.scheduler.plugins["dask-serverless"].dispatcher.ledger


def test_released_results_leave_the_store(cluster, client):
    assert client.submit(inc, 1).result() == 2  # from now on there is an event stream
    until(lambda: not ledger(cluster).keys and not ledger(cluster).jobs)
    before = cluster.stats()["store_keys"]
    futures = client.map(large, range(20))
    wait(futures)
    assert cluster.stats()["store_keys"] >= before + 20
    del futures
    until(lambda: not ledger(cluster).keys and cluster.stats()["store_keys"] <= before)


@pytest.mark.fault(7)
def test_a_name_that_is_used_again_means_the_new_value(client):
    for value in (1, 2):
        (scattered,) = client.scatter({"k": value}).values()
        assert client.submit(inc, scattered, key=f"use-{value}").result() == value + 1
        del scattered
        until(lambda: not client.futures.get("k"))
        until(lambda: "k" not in client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks)))


@pytest.mark.fault(47)
def test_clients_that_submit_one_key_at_the_same_time_see_one_value(cluster):
    rng = np.random.default_rng
    with Client(cluster, set_as_default=False) as one, Client(cluster, set_as_default=False) as two:
        for turn in range(5):
            first = one.submit(lambda: rng().random(), key=f"both-{turn}", pure=False)
            second = two.submit(lambda: rng().random(), key=f"both-{turn}", pure=False)
            assert first.result() == second.result() == first.result()
    until(lambda: not ledger(cluster).jobs)


@pytest.mark.fault(23)
def test_a_lost_value_is_computed_again(cluster, client):
    futures = client.map(large, range(4), key="lost")
    wait(futures)
    entry = ledger(cluster).keys[futures[2].key]
    cluster.scheduler.plugins["dask-serverless"].backend.store.free([entry.result.location])
    assert [value[0] for value in client.gather(futures)] == [0, 1, 2, 3]


def test_a_graph_on_a_key_that_is_being_retried(client, tmp_path):
    marker = tmp_path / "fine"

    def fails_at_first(path):
        if not Path(path).exists():
            raise RuntimeError("not yet")
        return 1

    first = client.submit(fails_at_first, str(marker), key="first")
    second = client.submit(inc, first, key="second")
    with pytest.raises(RuntimeError, match="not yet"):
        second.result()
    marker.touch()
    second.retry()
    assert client.submit(inc, second).result(timeout=30) == 3


def test_many_keys_are_retried_together(client, tmp_path):
    marker = tmp_path / "fine"

    def fails_at_first(path, n):
        if not Path(path).exists():
            raise RuntimeError("not yet")
        return n

    futures = client.map(fails_at_first, [str(marker)] * 200, range(200))
    wait(futures)
    assert {future.status for future in futures} == {"error"}
    marker.touch()
    client.retry(futures)
    assert client.gather(futures) == list(range(200))


def test_restart_leaves_a_working_cluster(client):
    assert client.submit(inc, 1).result() == 2
    client.restart(timeout=30)
    assert client.submit(inc, 2).result(timeout=30) == 3


def test_an_annotation_that_raises_fails_its_graph_and_nothing_else(client):
    older = client.submit(inc, 1)
    with dask.annotate(priority=lambda key: 1 / 0):
        futures = client.map(inc, range(3))
    for future in futures:
        with pytest.raises(ZeroDivisionError):
            future.result(timeout=30)
    assert older.result(timeout=30) == 2


def test_inputs_that_do_not_fit_into_an_invocation_travel_by_reference(client):
    chunks = da.random.default_rng(0).random(200 * 5000, chunks=5000).persist()  # 40 kB each: inline
    expected = np.concatenate([np.asarray(block) for block in client.gather(client.compute(list(chunks.blocks)))])
    assert (chunks + 1).sum().compute() == pytest.approx((expected + 1).sum())
    scattered = client.scatter([np.full(5000, n) for n in range(200)])
    assert client.submit(lambda arrays: sum(a[0] for a in arrays), scattered).result() == sum(range(200))


@pytest.mark.fault(34)
def test_a_wide_fan_in_of_small_values_does_not_fill_the_metadata_server(client):
    x = da.ones((4_000, 3_000), chunks=(4, 3_000))  # 1,000 chunks of 96 kB, summed to 1,000 of 24 kB
    assert x.sum(axis=0).compute().sum() == 4_000 * 3_000


def test_scaling_down_and_up_in_the_middle_of_a_job():
    with ServerlessCluster(n_workers=4, dashboard_address=None) as cluster, Client(cluster) as client:
        futures = client.map(lambda n: time.sleep(0.05) or n, range(120), pure=False)
        wait(futures[:1])
        cluster.scale(1)
        assert client.gather(futures[:60]) == list(range(60))
        cluster.scale(6)
        assert client.gather(futures) == list(range(120))


def test_stubs_stay_away_from_ordinary_workers_and_pinned_tasks_meet_them():
    from distributed import Worker

    with ServerlessCluster(n_workers=2, dashboard_address=None) as cluster, Client(cluster) as client:

        async def join():
            return await Worker(cluster.scheduler_address, nthreads=2, name="beside", memory_limit=0)

        worker = cluster.sync(join)
        try:
            futures = client.map(inc, range(40))
            assert client.gather(futures) == list(range(1, 41))
            with dask.annotate(serverless=False):
                pinned = client.submit(inc, futures[0], key="pinned")
            assert pinned.result(timeout=30) == 2
            assert client.submit(inc, pinned).result(timeout=30) == 3
            there = client.submit(inc, futures[1], workers=["beside"], key="there")
            assert there.result(timeout=30) == 3
            assert list(client.who_has(there).values()) == [(worker.address,)]
            assert client.submit(inc, there).result(timeout=30) == 4
        finally:
            cluster.sync(worker.close)


def test_submit_and_release_at_once_is_quiet(cluster, client, caplog):
    for n in range(50):
        client.submit(inc, n, pure=False)
    assert client.submit(inc, 1, key="after").result() == 2
    until(lambda: not ledger(cluster).jobs)
    assert "stub" not in caplog.text


def test_actors_live_on_the_fleet_worker(client):
    class Counter:
        n = 0

        def add(self, by):
            self.n += by
            return self.n

    counter = client.submit(Counter, actor=True).result(timeout=30)
    assert counter.add(2).result() == 2
    assert counter.add(3).result() == 5
