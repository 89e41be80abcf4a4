"""TLS everywhere: clients, scheduler, fleet worker, Dask workers, and tasks that are clients."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from distributed import Client, Lock, Variable, worker_client
from distributed.security import Security

from dask_serverless import ServerlessCluster
from dask_serverless.stock_scheduler import executors_tls


def by_files(place):
    """Make credentials in files, as an administrator would."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the program openssl")
    key, certificate = str(place / "key.pem"), str(place / "certificate.pem")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
    options = ("-x509", *curve, "-nodes", "-days", "2", "-subj", "/CN=test")
    subprocess.run([openssl, "req", *options, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    files = {
        f"tls_{role}_{part}": path
        for role in ("client", "scheduler", "worker")
        for part, path in (("key", key), ("cert", certificate))
    }
    return Security(require_encryption=True, tls_ca_file=certificate, **files)


@pytest.fixture(scope="module", params=["temporary", "files"])
def cluster(request, tmp_path_factory):
    security = True if request.param == "temporary" else by_files(tmp_path_factory.mktemp("tls"))
    with ServerlessCluster(n_workers=2, dashboard_address=None, dask_workers=1, security=security) as cluster:
        yield cluster


def test_every_address_is_encrypted(cluster, client):
    assert cluster.scheduler_address.startswith("tls://127.0.0.1")
    workers = client.scheduler_info(n_workers=-1)["workers"]
    assert len(workers) == 2 and all(address.startswith("tls://127.0.0.1") for address in workers)


def test_tasks_in_executors_and_on_dask_workers(client):
    import dask

    there = client.submit(sum, [1, 2])
    with dask.annotate(serverless=False):
        beside = client.submit(lambda n: n + 1, there)
    assert client.submit(lambda n: n * 10, beside).result(timeout=30) == 40


def test_tasks_that_are_clients(client):
    def work(n):
        with Lock("one at a time"):
            base = Variable("base").get()
        with worker_client() as client:
            return client.submit(abs, -n, pure=False).result() + base

    Variable("base").set(100)
    assert client.gather(client.map(work, range(3))) == [100, 101, 102]


def test_tasks_that_call_actors(client):
    class Counter:
        def __init__(self):
            self.n = 0

        def add(self):
            self.n += 1
            return self.n

    counter = client.submit(Counter, actor=True)
    assert client.submit(lambda counter: counter.add().result(), counter).result(timeout=30) == 1


@pytest.mark.fault(41)
def test_without_credentials_nobody_is_let_in(cluster):
    with pytest.raises((OSError, TimeoutError)):
        Client(cluster.scheduler_address.replace("tls://", "tcp://"), timeout="2s")
    with pytest.raises((OSError, TimeoutError)):
        Client(cluster.scheduler_address, security=Security.temporary(), timeout="2s")


def test_tasks_do_not_see_the_clusters_secrets(client):
    def look():
        return {name: value for name, value in os.environ.items() if "PRIVATE KEY" in value or "SECRET" in name}

    assert client.submit(look).result(timeout=30) == {}
    child = "import os; print([name for name in os.environ if 'SECRET' in name or 'TLS' in name])"
    run = client.submit(subprocess.check_output, ["python3", "-c", child])
    assert run.result(timeout=30).strip() == b"[]"


def test_executors_are_given_the_role_of_a_client_only(tmp_path):
    security = by_files(tmp_path)
    security.tls_worker_key = security.tls_scheduler_key = "/not/read"
    tls = executors_tls(security)
    assert set(tls) == {"require_encryption", "tls_ca_file", "tls_client_cert", "tls_client_key"}
    assert "PRIVATE KEY" in tls["tls_client_key"] and "BEGIN CERTIFICATE" in tls["tls_ca_file"]
    assert executors_tls(Security()) is None


def test_a_file_that_is_not_there_is_named_before_anything_starts():
    security = Security(require_encryption=True, tls_ca_file="/nowhere/ca.pem")
    with pytest.raises(ValueError, match="tls_ca_file='/nowhere/ca.pem' cannot be read"):
        ServerlessCluster(n_workers=1, dashboard_address=None, security=security)


def test_no_secret_in_what_can_be_read(cluster, client):
    security = cluster.security
    keys = [getattr(security, f"tls_{role}_key") for role in ("client", "scheduler", "worker")]
    shown = [repr(cluster), cluster._repr_html_(), repr(cluster._local), str(cluster.get_logs()), repr(security)]
    for text in shown:
        assert "PRIVATE KEY" not in text
        for key in keys:
            assert "\n" not in key or key not in text
