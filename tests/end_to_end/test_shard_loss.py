"""A storage server dies with what it held; computations end right, and only what is needed runs again."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from dask import delayed
from distributed import Client, wait

from dask_serverless import ServerlessCluster
from tests.waiting import until

SECONDS_MAX = 60.0


@pytest.fixture(params=[1, 2], ids=["one shard", "two shards"])
def cluster(request):
    # Nothing at hand but what is stored: else warm executors have in memory what the shard has lost.
    options = {"serverless.storage.shards": request.param, "serverless.policy.cache": False}
    with dask.config.set(options), ServerlessCluster(n_workers=2, dashboard_address=None) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        yield client


def kill_a_shard(cluster, shard=0):
    """End one server with everything that it holds, and wait until it is back."""
    before = cluster.stats()["shards_lost"]
    os.kill(cluster._local.tier.pids[f"shard-{shard}"], signal.SIGKILL)
    until(lambda: cluster.stats()["shards_lost"] > before, "the cluster has noticed")


class Gate:
    """A file that tasks wait for: it opens at a moment that the test chooses."""

    def __init__(self, path):
        self.path = path

    def wait(self):
        deadline = time.monotonic() + SECONDS_MAX
        while not os.path.exists(self.path):
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)

    def open(self):
        with open(self.path, "w"):
            pass


def large(number, *values):
    return np.full(50_000, number + sum(float(value[0]) for value in values))


def behind(gate, number):
    gate.wait()
    return large(number)


def first(*values):
    return sum(float(value[0]) for value in values)


def sum_and_first(data, late):
    return int(data.sum() + late[0])


def total(*values):
    return sum(values)


def wait_with_the_last(part, gate):
    if part.y.max() == 99_999:
        gate.wait()
    return part


def tree(leaves):
    while len(leaves) > 1:
        leaves = [delayed(large)(1, *leaves[n : n + 4]) for n in range(0, len(leaves), 4)]
    return delayed(first)(leaves[0])


def tree_sum(leaves, value):
    """What `tree` returns for so many leaves of one value."""
    inner = 0
    while leaves > 1:
        leaves = -(-leaves // 4)
        inner += leaves
    return inner


@pytest.mark.fault(17)
def test_a_tree_of_large_values(cluster, client, tmp_path):
    """All but one leaf are done, and what they came to is stored, when the server dies."""
    gate = Gate(str(tmp_path / "open"))
    leaves = [delayed(large)(n) for n in range(63)] + [delayed(behind)(gate, 63)]
    written = cluster.stats()["objects_written"]
    future = client.compute(tree(leaves))
    until(lambda: cluster.stats()["objects_written"] > written, "an executor has written what it has")
    until(lambda: cluster.stats()["executors"] >= 1, "one of them has left")
    kill_a_shard(cluster)
    gate.open()
    assert future.result(timeout=SECONDS_MAX) == sum(range(64)) + tree_sum(64, 0)
    assert cluster.stats()["executors_lost"] == 0


@pytest.mark.fault(17)
def test_the_server_dies_again_and_again(cluster, client):
    x = da.random.default_rng(1).random((4000, 4000), chunks=(500, 500))
    y = (x @ x.T + x).sum(axis=0)
    expected = y.compute(scheduler="threads")
    future = client.compute(y)
    for death in range(3):
        until(lambda so_far=200 * death: cluster.stats()["tasks_run"] > so_far, "it goes on", SECONDS_MAX)
        kill_a_shard(cluster)
    np.testing.assert_allclose(future.result(timeout=SECONDS_MAX), expected)


def test_a_singular_value_decomposition(cluster, client):
    x = da.random.default_rng(1).random((40_000, 50), chunks=(2_000, 50))
    _, s, _ = da.linalg.svd(x)
    expected = s.compute(scheduler="threads")
    future = client.compute(s)
    until(lambda: cluster.stats()["invocations"] + cluster.stats()["mails"], "it has begun")
    kill_a_shard(cluster)
    np.testing.assert_allclose(future.result(timeout=SECONDS_MAX), expected)


@pytest.mark.fault(17)
def test_a_persisted_array_is_used_again(cluster, client):
    x = da.ones((2000, 2000), chunks=(500, 500)).persist()
    wait(x, timeout=SECONDS_MAX)
    assert x.sum().compute() == 2000 * 2000
    kill_a_shard(cluster)
    until(lambda: cluster.stats()["results_lost"], "the results are given up")
    assert (x + 1).sum().compute() == 2 * 2000 * 2000
    assert float(x[0, 0].compute()) == 1.0


@pytest.mark.fault(48)
def test_who_has_read_a_random_value_keeps_what_was_made_of_it(cluster, client):
    """A task that is not pure gives another value when it has to run again: old readers keep theirs, new ones agree."""
    x = client.submit(random_values, pure=False)
    early = client.submit(first, x)
    before = early.result(timeout=SECONDS_MAX)
    for shard in range(cluster.settings.storage_shards):
        kill_a_shard(cluster, shard)
    until(lambda: cluster.stats()["results_lost"], "the value is given up")
    late = client.submit(first, x, pure=False)
    after = late.result(timeout=SECONDS_MAX)
    assert after != before
    assert early.result(timeout=SECONDS_MAX) == before
    assert float(x.result(timeout=SECONDS_MAX)[0]) == after
    assert client.submit(first, x, pure=False).result(timeout=SECONDS_MAX) == after


def random_values():
    return np.full(50_000, random.SystemRandom().random())


def test_a_persisted_array_is_gathered(cluster, client):
    x = da.ones((2000, 2000), chunks=(500, 500)).persist()
    wait(x, timeout=SECONDS_MAX)
    kill_a_shard(cluster)
    assert np.array_equal(x.compute(), np.ones((2000, 2000)))
    assert not any(name.startswith("shard") for name in cluster._local.tier.poll())


def test_intermediates_made_of_a_persisted_array(cluster, client, tmp_path):
    """What executors have made of it is lost, along with a part of it, in the middle of a job."""
    gate = Gate(str(tmp_path / "open"))
    leaves = [delayed(large)(n).persist() for n in range(12)]
    wait(leaves, timeout=SECONDS_MAX)
    above = [delayed(large)(1, leaf) for leaf in leaves] + [delayed(behind)(gate, 0)]
    written = cluster.stats()["objects_written"]
    future = client.compute(delayed(first)(*above))
    until(lambda: cluster.stats()["objects_written"] > written, "an executor has written what it has")
    kill_a_shard(cluster)
    gate.open()
    assert future.result(timeout=SECONDS_MAX) == sum(range(12)) + 12


def test_intermediates_made_of_small_results(cluster, client, tmp_path):
    """What they were made of is not lost, but who makes them again was never told where it is."""
    gate = Gate(str(tmp_path / "open"))
    leaves = [delayed(int)(n).persist() for n in range(12)]
    wait(leaves, timeout=SECONDS_MAX)
    written = cluster.stats()["objects_written"]  # what executors wear may be stored, too
    above = [delayed(large)(leaf) for leaf in leaves] + [delayed(behind)(gate, 0)]
    future = client.compute(delayed(first)(*above))
    until(lambda: cluster.stats()["objects_written"] > written, "an executor has written what it has")
    planned = cluster.stats()["tasks_planned"]
    kill_a_shard(cluster)
    gate.open()
    assert future.result(timeout=SECONDS_MAX) == sum(range(12))
    assert cluster.stats()["tasks_remade"] > 0
    assert cluster.stats()["tasks_planned"] == planned, "no job began again"


def test_a_task_beside_the_executors_needs_what_is_lost(cluster, client):
    x = client.submit(large, 7)
    wait(x, timeout=SECONDS_MAX)
    kill_a_shard(cluster)
    with dask.annotate(serverless=False):
        beside = client.submit(first, x)
    assert beside.result(timeout=SECONDS_MAX) == 7


@pytest.mark.fault(17)
def test_a_shuffle(cluster, client, tmp_path):
    """What the transfers wrote is lost before the barrier is reached."""
    gate = Gate(str(tmp_path / "open"))
    frame = pd.DataFrame({"x": np.arange(100_000) % 97, "y": np.arange(100_000)})
    parts = dd.from_pandas(frame, npartitions=20).map_partitions(wait_with_the_last, gate, meta=frame)
    future = client.compute(parts.shuffle("x").groupby("x").y.sum())
    until(lambda: cluster.stats().get("slices_written"), "transfers have written")
    kill_a_shard(cluster)
    gate.open()
    found = future.result(timeout=SECONDS_MAX).sort_index()
    pd.testing.assert_series_equal(found, frame.groupby("x").y.sum())
    assert cluster.stats()["tasks_remade"] >= 20, "each shard had slices of every transfer"


@pytest.mark.fault(24)
def test_scattered_data_is_used_again(cluster, client):
    """The tier had a copy only."""
    data = np.arange(100_000)
    scattered = client.scatter(data)
    assert client.submit(np.sum, scattered).result(timeout=SECONDS_MAX) == data.sum()
    kill_a_shard(cluster)
    assert client.submit(np.max, scattered).result(timeout=SECONDS_MAX) == 99_999


@pytest.mark.fault(17)
def test_data_that_travels_in_the_graph(cluster, client, tmp_path):
    gate = Gate(str(tmp_path / "open"))
    data = np.arange(1_000_000)
    late, shared = delayed(behind)(gate, 1), delayed(data)
    written = cluster.stats()["objects_written"]
    future = client.compute(delayed(total)(*[delayed(sum_and_first)(shared, late) for _ in range(4)]))
    until(lambda: cluster.stats()["objects_written"] > written, "the data is stored")
    kill_a_shard(cluster)
    gate.open()
    assert future.result(timeout=SECONDS_MAX) == 4 * (data.sum() + 1)


@pytest.mark.fault(17)
def test_a_graph_whose_segments_are_lost_before_they_are_read(cluster, client, tmp_path):
    gate = Gate(str(tmp_path / "open"))
    chain = delayed(behind)(gate, 0)
    for _ in range(3_000):
        chain = delayed(np.add)(chain, 1, pure=False)
    future = client.compute(delayed(first)(chain))
    until(lambda: cluster.stats()["invocations"] + cluster.stats()["mails"], "it has begun")
    kill_a_shard(cluster)
    gate.open()
    assert future.result(timeout=SECONDS_MAX) == 3_000


@pytest.mark.fault(17)
def test_with_two_shards_only_what_was_on_one_of_them_is_made_again(tmp_path):
    options = {"serverless.storage.shards": 2, "serverless.policy.cache": False, "serverless.policy.hold": False}
    with (
        dask.config.set(options),
        ServerlessCluster(n_workers=2, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        x = [client.submit(large, n, key=f"x-{n}") for n in range(40)]
        wait(x, timeout=SECONDS_MAX)
        held = cluster._proxy.dispatcher.ledger.held()
        lost = sum(ref.shard == 1 for ref in held)
        assert 0 < lost < len(held) == 40
        before = cluster.stats()["tasks_run"]
        kill_a_shard(cluster, 1)
        assert client.submit(first, *x).result(timeout=SECONDS_MAX) == sum(range(40))
        until(lambda: cluster.stats()["tasks_run"] >= before + lost + 1, "all is counted")
        assert cluster.stats()["tasks_run"] == before + lost + 1
        assert cluster.stats()["results_lost"] == lost
