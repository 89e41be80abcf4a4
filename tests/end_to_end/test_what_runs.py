"""Looking at what runs, and at what has run: call stacks, processing, the task stream, dumps."""

from __future__ import annotations

import itertools
import time

import dask
import pytest
from dask import delayed
from distributed import Client, wait
from distributed.cluster_dump import DumpArtefact

from dask_serverless import ServerlessCluster
from tests.waiting import until


def nap(started, go):
    started.touch()
    while not go.exists():
        time.sleep(0.01)


@pytest.fixture
def napping(tmp_path):
    """A task that runs until the end of a test, below a key that was asked for; heartbeats twice a second."""
    with (
        dask.config.set({"serverless.executor.lease": "1500ms"}),
        ServerlessCluster(n_workers=2, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        napping = delayed(nap, pure=False)(tmp_path / "started", tmp_path / "go", dask_key_name="napping")
        future = client.compute(delayed(str)(napping, dask_key_name="end"))
        until((tmp_path / "started").exists, "the task runs")
        yield client, future
        (tmp_path / "go").touch()
        wait(future, timeout=20)
        until(lambda: not client.call_stack(), "what has ended is not shown")


def test_the_call_stack_of_a_task_that_runs_for_a_while(napping):
    client, future = napping
    (address,) = client.scheduler_info()["workers"]
    for asked in (None, [future]):
        # The first heartbeat may come while the executor is still importing what the task needs.
        until(lambda asked=asked: " in nap" in str(client.call_stack(asked)), "an executor says where it is")
        ((found, stacks),) = client.call_stack(asked).items()
        assert found == address and list(stacks) == ["napping"]
        assert " in nap" in stacks["napping"][0] and "lambda_worker" not in str(stacks)
    assert client.processing() == {address: ("end",)}


def test_the_task_stream_has_rows_and_errors(client):
    client.get_task_stream()
    fine = client.map(lambda n: time.sleep(0.05), range(8), pure=False)
    bad = client.submit(lambda: 1 / 0, pure=False)
    wait([*fine, bad], timeout=20)
    entries = client.get_task_stream()
    assert sorted(entry["status"] for entry in entries) == ["OK"] * 8 + ["error"]
    shown = sorted((e["thread"], each["start"], each["stop"]) for e in entries for each in e["startstops"])
    assert len(shown) == 9
    assert all(a[0] != b[0] or a[2] <= b[1] for a, b in itertools.pairwise(shown))


def test_the_scheduler_shows_the_users_annotations(client):
    with dask.annotate(priority=7, retries=2, note="mine"):
        noted = client.submit(sum, [1], key="noted")
    plain = client.submit(sum, [2], key="plain")
    wait([noted, plain], timeout=20)
    found = client.run_on_scheduler(
        lambda dask_scheduler: [dask_scheduler.tasks[key].annotations for key in ("noted", "plain")]
    )
    assert found == [{"priority": 7, "retries": 2, "note": "mine"}, None]


@pytest.mark.parametrize("form", ["yaml", "msgpack"])
def test_a_dump_of_the_cluster_has_no_secret_in_it(cluster, client, tmp_path, form):
    assert client.submit(sum, [1, 2], key="dumped").result(timeout=20) == 3
    client.dump_cluster_state(str(tmp_path / "dump"), format=form)
    (path,) = tmp_path.iterdir()
    text = repr(DumpArtefact.from_url(str(path)).dump) if form == "msgpack" else path.read_text()
    backend = cluster._local.backend
    assert "dumped" in text and backend.store_config.password
    secrets = [backend.secret.hex(), repr(backend.secret), backend.store_config.password]
    assert not [secret for secret in secrets if secret in text]
