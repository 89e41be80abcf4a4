"""The two clusters that every program runs on."""

from __future__ import annotations

import pytest
from distributed import LocalCluster

from dask_serverless import ServerlessCluster


def local_cluster():
    return LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)


def serverless_cluster():
    return ServerlessCluster(n_workers=2, dashboard_address=None)


@pytest.fixture(scope="session")
def theirs():
    with local_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def ours():
    with serverless_cluster() as cluster:
        yield cluster


@pytest.fixture
def clusters(request):
    """The clusters that everybody uses, as (ours, theirs), or new ones for a program that hurts them."""
    program = request.node.callspec.params["program"]
    if not program.own_cluster:
        yield request.getfixturevalue("ours"), request.getfixturevalue("theirs")
        return
    with local_cluster() as theirs, serverless_cluster() as ours:
        yield ours, theirs
