"""A cluster stops when it has spent what it may, says so by name, and goes on when it may spend more."""

from __future__ import annotations

import time

import dask
import pytest
from distributed import Client, wait

from dask_serverless import ServerlessCluster
from lambda_worker.core.errors import BudgetExceeded, ServerlessError

SECONDS_MAX = 60.0
#: Some three seconds of two executors of 2 GiB.
TINY = 0.0002


def nap(number):
    time.sleep(0.05)
    return number


@pytest.mark.fault(40)
def test_a_cluster_stops_at_its_budget_and_goes_on_when_it_is_raised():
    with ServerlessCluster(n_workers=2, budget=TINY, dashboard_address=None) as cluster, Client(cluster) as client:
        futures = client.map(nap, range(2_000))
        wait(futures, timeout=SECONDS_MAX)
        failed = [future for future in futures if future.status == "error"]
        assert failed, "what had been done by then stays"
        error = failed[-1].exception(timeout=SECONDS_MAX)
        assert isinstance(error, BudgetExceeded) and isinstance(error, ServerlessError)
        for said in ("0.0002 USD", "set_budget", "serverless.budget.dollars"):
            assert said in str(error)

        before = cluster.stats()
        with pytest.raises(BudgetExceeded):
            client.submit(nap, 5_000).result(timeout=SECONDS_MAX)
        after = cluster.stats()
        assert after["invocations"] == before["invocations"], "nothing is started any more"
        assert TINY < after["dollars"] < 4 * TINY

        assert cluster.set_budget(1.0) >= TINY
        assert client.submit(nap, 5_001).result(timeout=SECONDS_MAX) == 5_001
        retried = failed[-1]
        retried.retry()
        assert retried.result(timeout=SECONDS_MAX) is not None


def test_a_budget_may_be_set_while_work_goes_on():
    with ServerlessCluster(n_workers=2, dashboard_address=None) as cluster, Client(cluster) as client:
        futures = client.map(nap, range(2_000))
        futures[0].result(timeout=SECONDS_MAX)
        spent = cluster.set_budget(1e-9)
        assert 0 < spent < 1
        with pytest.raises(BudgetExceeded, match="1e-09 USD"):
            client.gather(futures)
        cluster.set_budget(None)
        assert client.submit(nap, -1).result(timeout=SECONDS_MAX) == -1


@pytest.mark.parametrize("bad", [0, -1, "5", True, float("nan")])
def test_a_bad_budget_is_refused_before_anything_starts(bad):
    with pytest.raises(ValueError, match="budget="):
        ServerlessCluster(n_workers=1, budget=bad)


@pytest.mark.fault(40)
def test_a_job_whose_work_is_done_over_and_over_is_given_up(monkeypatch):
    monkeypatch.setattr("dask_serverless.budget.EXECUTIONS_MORE", 4)
    options = {"serverless.budget.executions-per-task": 1, "serverless.executor.allowed-failures": 10**6}
    with (
        dask.config.set(options),
        ServerlessCluster(n_workers=2, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        future = client.submit(die)
        with pytest.raises(BudgetExceeded, match="1 executions per task"):
            future.result(timeout=2 * SECONDS_MAX)
        assert cluster.stats()["executors_lost"] <= 8
        assert client.submit(nap, 1).result(timeout=SECONDS_MAX) == 1


def die():
    import os

    os._exit(3)
