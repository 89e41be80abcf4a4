"""Versions that differ: what cannot work is refused by name, at once; of the rest the scheduler warns."""

from __future__ import annotations

import warnings

import dask
import pytest
from distributed import Client, versions
from distributed.versions import VersionMismatchWarning

from dask_serverless import ServerlessCluster
from lambda_worker import payload
from lambda_worker.core.errors import EnvironmentMismatch

STOCK = versions.get_versions


@pytest.fixture
def says(monkeypatch):
    """Have clients of this process claim other versions of packages."""

    def say(**packages):
        def get_versions(*args, **options):
            found = STOCK(*args, **options)
            return {**found, "packages": {**found["packages"], **packages}}

        monkeypatch.setattr(versions, "get_versions", get_versions)

    return say


@pytest.mark.fault(32)
@pytest.mark.parametrize(("package", "version"), [("python", "3.9.1.final.0"), ("cloudpickle", "1.6.0")])
def test_a_client_whose_pickles_executors_cannot_read_is_refused(cluster, client, says, package, version):
    says(**{package: version})
    with pytest.raises(ImportError, match=f"(?i)the client has {package} {version[:3]}, this cluster"):
        Client(cluster, set_as_default=False)
    says()
    with Client(cluster, set_as_default=False) as welcome:
        assert welcome.submit(sum, [1, 2]).result(timeout=20) == 3
    assert client.submit(sum, [1, 2], pure=False).result(timeout=20) == 3


@pytest.mark.fault(32)
def test_of_other_packages_the_scheduler_warns(cluster, says):
    says(toolz="0.0.1")
    with pytest.warns(VersionMismatchWarning, match="toolz"), Client(cluster, set_as_default=False) as odd:
        assert odd.submit(sum, [1, 2]).result(timeout=20) == 3


def test_versions_that_agree_are_quiet(client):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = client.get_versions(check=True, packages=["redis"])
    (fleet,) = found["workers"].values()
    assert fleet["packages"] == found["client"]["packages"] and "redis" in fleet["packages"]


@pytest.mark.fault(32)
def test_an_executor_that_cannot_read_the_clusters_pickles_says_both_versions(monkeypatch):
    with (
        dask.config.set({"serverless.executor.linger": 0}),  # who lingers was asked when it was invoked
        ServerlessCluster(n_workers=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        with monkeypatch.context() as patch:
            patch.setattr(payload, "PICKLES", "Python 2.7, cloudpickle 0")
            future = client.submit(sum, [1, 2], pure=False)
            with pytest.raises(
                EnvironmentMismatch, match=r"pickles with Python 2\.7, .* has Python 3\.\d+, cloudpickle"
            ):
                future.result(timeout=20)
        assert client.submit(sum, [1, 2], pure=False).result(timeout=20) == 3
