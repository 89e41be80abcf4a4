"""An executor that straggles gets a backup; the first result counts, whoever has it."""

from __future__ import annotations

import os
import time

import dask
import pytest
from distributed import Client

from dask_serverless import ServerlessCluster
from tests.waiting import until

SECONDS_MAX = 60.0
#: Heartbeats come three times in a lease.
QUICK = {"serverless.policy.speculation": True, "serverless.executor.lease": "1.5 s"}


@pytest.fixture
def cluster():
    with dask.config.set(QUICK), ServerlessCluster(n_workers=2, dashboard_address=None) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        yield client


def straggle(directory, number):
    """Wait for a file, each run for its own; the run says by its value which one it is."""
    if directory is None:
        return number
    for run in ("first", "second", "third"):
        try:
            os.close(os.open(directory / run, os.O_CREAT | os.O_EXCL))
            break
        except FileExistsError:
            continue
    deadline = time.monotonic() + SECONDS_MAX
    while not (directory / f"{run}-may-end").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return run


def learn(client, cluster):
    client.gather(client.map(straggle, [None] * 100, range(100)))
    statistics = cluster._proxy.dispatcher.experience.statistics
    until(lambda: (known := statistics.of("straggle")) and known.tasks >= 3, "what such tasks take is known")


@pytest.mark.fault(38)
@pytest.mark.parametrize("winner", ["second", "first"])
def test_whoever_ends_first_wins(client, cluster, tmp_path, winner):
    learn(client, cluster)
    loser = "first" if winner == "second" else "second"
    future = client.submit(straggle, tmp_path, 0)
    following = client.submit(str.upper, future)
    until((tmp_path / "second").exists, "the backup runs the same task")
    (tmp_path / f"{winner}-may-end").touch()
    assert future.result(timeout=SECONDS_MAX) == winner
    (tmp_path / f"{loser}-may-end").touch()
    assert following.result(timeout=SECONDS_MAX) == winner.upper()
    assert cluster.stats()["executors_backed_up"] == 1
    until(lambda: not cluster._proxy.dispatcher.ledger.jobs, "nobody is waited for any more")
    assert future.result(timeout=SECONDS_MAX) == winner
    assert not (tmp_path / "third").exists()


def test_without_it_a_straggler_is_waited_for(tmp_path):
    with (
        dask.config.set({"serverless.executor.lease": "1.5 s"}),
        ServerlessCluster(n_workers=2, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        learn(client, cluster)
        future = client.submit(straggle, tmp_path, 0)
        until(lambda: any(client.call_stack().values()), "heartbeats tell of it")
        assert cluster._proxy.dispatcher.backups.enabled is False
        (tmp_path / "first-may-end").touch()
        assert future.result(timeout=SECONDS_MAX) == "first"
        assert cluster.stats()["executors_backed_up"] == 0
