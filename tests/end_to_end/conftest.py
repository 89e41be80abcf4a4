"""One cluster for the programs that only want one; those that hurt it make their own."""

from __future__ import annotations

import pytest
from distributed import Client

from dask_serverless import ServerlessCluster


@pytest.fixture(scope="session")
def cluster():
    with ServerlessCluster(n_workers=2, dashboard_address=None) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        yield client
