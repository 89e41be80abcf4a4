"""What was cancelled is not begun any more, and costs nothing."""

from __future__ import annotations

import time

import dask
import pytest
from distributed import Client

from dask_serverless import ServerlessCluster
from tests.waiting import until

SECONDS_MAX = 60.0


def nap(number):
    time.sleep(0.05)
    return number


@pytest.mark.fault(27)
def test_after_a_cancel_nothing_is_invoked_any_more():
    """Each of many small jobs is an invocation of its own here. Probes count what there was between them."""
    options = {"serverless.executor.linger": 0}
    with (
        dask.config.set(options),
        ServerlessCluster(n_workers=2, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        futures = [client.submit(nap, number, pure=False) for number in range(300)]
        until(lambda: cluster.stats()["invocations"] >= 5, "work goes on", SECONDS_MAX)
        client.cancel(futures)
        until(lambda: not cluster._proxy.dispatcher.ledger.jobs, "all jobs are over")
        counts = []
        for probe in range(3):
            assert client.submit(nap, probe, pure=False).result(timeout=SECONDS_MAX) == probe
            counts.append(cluster.stats()["invocations"])
        assert counts[0] < 250
        assert [counts[1] - counts[0], counts[2] - counts[1]] == [1, 1], "the probes, and nothing else"
