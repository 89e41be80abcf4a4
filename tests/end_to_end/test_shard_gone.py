"""A storage server is gone for good; the cluster goes on with those that are left, as long as there are any."""

from __future__ import annotations

import contextlib
import os
import signal

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from dask import delayed
from distributed import Client, wait

from dask_serverless import ServerlessCluster
from dask_serverless.errors import StoreUnavailable
from tests.end_to_end.test_shard_loss import Gate, behind, first, large, tree, tree_sum, wait_with_the_last
from tests.waiting import until

SECONDS_MAX = 60.0
pytestmark = pytest.mark.fault(18)


@pytest.fixture
def cluster():
    # Nothing at hand but what is stored: else warm executors have in memory what the shard has lost.
    options = {"serverless.storage.shards": 3, "serverless.policy.cache": False}
    with dask.config.set(options), ServerlessCluster(n_workers=2, dashboard_address=None) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        yield client


def end(cluster, shard):
    """Kill a server as often as it comes back, until it does so no more."""
    tier, name, killed = cluster._local.tier, f"shard-{shard}", set()

    def is_given_up():
        pid = tier.pids[name]
        if pid not in killed:
            killed.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return name in tier.poll()

    until(is_given_up, f"{name} has ended for good")


def end_and_notice(cluster, shard):
    end(cluster, shard)
    until(lambda: shard in cluster._proxy.backend.store.shard_map.gone, "the cluster goes on without it")


def test_a_job_under_way_ends_right_and_says_what_happened(cluster, client, tmp_path, caplog):
    """All but one leaf are done, and what they came to is stored. Executors began before the map changed."""
    gate = Gate(str(tmp_path / "open"))
    leaves = [delayed(large)(n) for n in range(63)] + [delayed(behind)(gate, 63)]
    written = cluster.stats()["objects_written"]
    future = client.compute(tree(leaves))
    until(lambda: cluster.stats()["objects_written"] > written, "an executor has written what it has")
    sandboxes = cluster.stats()["sandboxes_cold"]
    end_and_notice(cluster, 1)
    gate.open()
    assert future.result(timeout=SECONDS_MAX) == sum(range(64)) + tree_sum(64, 0)
    assert cluster.stats()["sandboxes_cold"] == sandboxes
    assert cluster.stats()["shards_lost"] >= 1
    assert "(shard-1) has ended for good. It goes on with the 2 that are left" in caplog.text


def test_what_is_there_is_made_again_and_what_is_new_goes_elsewhere(cluster, client, tmp_path):
    x = [client.submit(large, n, key=f"x-{n}") for n in range(40)]
    scattered = client.scatter(np.arange(100_000))
    wait(x, timeout=SECONDS_MAX)
    assert client.submit(np.sum, scattered).result(timeout=SECONDS_MAX) == sum(range(100_000))
    held = cluster._proxy.dispatcher.ledger.held()
    assert {ref.shard for ref in held} == {0, 1, 2}
    run = cluster.stats()["tasks_run"]
    end_and_notice(cluster, 0)
    assert client.submit(first, *x).result(timeout=SECONDS_MAX) == sum(range(40))
    assert {ref.shard for ref in cluster._proxy.dispatcher.ledger.held()} == {1, 2}
    until(lambda: cluster.stats()["tasks_run"] > run, "it is counted")
    assert cluster.stats()["tasks_run"] <= run + sum(ref.shard == 0 for ref in held) + 1, "only what was lost"
    assert client.submit(np.max, scattered).result(timeout=SECONDS_MAX) == 99_999
    frame = pd.DataFrame({"x": np.arange(10_000) % 97, "y": np.arange(10_000)})
    shuffled = dd.from_pandas(frame, npartitions=10).shuffle("x").groupby("x").y.sum()
    found = client.compute(shuffled).result(timeout=SECONDS_MAX).sort_index()
    pd.testing.assert_series_equal(found, frame.groupby("x").y.sum())


def test_a_shuffle_loses_a_server_before_its_barrier(cluster, client, tmp_path):
    gate = Gate(str(tmp_path / "open"))
    frame = pd.DataFrame({"x": np.arange(100_000) % 97, "y": np.arange(100_000)})
    parts = dd.from_pandas(frame, npartitions=20).map_partitions(wait_with_the_last, gate, meta=frame)
    future = client.compute(parts.shuffle("x").groupby("x").y.sum())
    until(lambda: cluster.stats().get("slices_written"), "transfers have written")
    end_and_notice(cluster, 2)
    gate.open()
    found = future.result(timeout=SECONDS_MAX).sort_index()
    pd.testing.assert_series_equal(found, frame.groupby("x").y.sum())


def test_one_after_the_other_until_none_is_left(cluster, client):
    x = client.submit(large, 7)
    assert first(x.result(timeout=SECONDS_MAX)) == 7
    for shard in (0, 2):
        end_and_notice(cluster, shard)
        assert client.submit(first, x, pure=False).result(timeout=SECONDS_MAX) == 7
    end(cluster, 1)
    with pytest.raises(StoreUnavailable, match="shard-1.* have ended.*start another"):
        client.submit(first, x, pure=False).result(timeout=SECONDS_MAX)
