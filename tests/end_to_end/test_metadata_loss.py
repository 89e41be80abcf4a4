"""The metadata server dies with all it knows: what was under way begins again and ends right, the rest stays."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import redis
from dask import delayed
from distributed import Client, wait, worker_client

from dask_serverless import ServerlessCluster
from lambda_worker.core.errors import StoreForgot, StoreUnavailable
from tests.end_to_end.test_shard_loss import Gate, first, large, tree, tree_sum
from tests.waiting import until

SECONDS_MAX = 60.0
#: Of the metadata server itself, whatever runs: its mark, the ceiling, the stream of events, who lingers, since when.
KEYS_OF_ITS_OWN = {"mark", "ceiling", "events", "lingering", "generation"}


def start(**options):
    options = {"serverless.executor.lease": "3 s", **options}
    with dask.config.set(options):
        return ServerlessCluster(n_workers=2, dashboard_address=None)


@pytest.fixture
def cluster():
    with start() as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        yield client


def kill(cluster, seen=True):
    """End the metadata server; if nothing else is said, wait until the cluster has noticed."""
    before = cluster.stats()["metadata_lost"]
    os.kill(cluster._local.tier.pids["metadata"], signal.SIGKILL)
    if seen:
        until(lambda: cluster.stats()["metadata_lost"] > before, "the cluster has noticed")


def server_of(cluster, name):
    """Connect to a storage server without any of our code."""
    tier = cluster._local.tier
    return redis.Redis(unix_socket_path=str(tier._socket(name)), password=tier._password)


def left(cluster):
    """Name what is in the store, but for what is always there.

    Constants stay for a while when nobody uses them; there is an outfit if this process has a configuration of its own.
    """
    found = []
    for name in cluster._local.tier.names:
        server = server_of(cluster, name)
        found += [key.decode() for key in server.scan_iter()]
    return [
        key
        for key in found
        if key.rpartition(":")[2] not in KEYS_OF_ITS_OWN
        and not {"{constants}", "{outfit}"}.intersection(key.split(":"))
    ]


def until_empty(cluster):
    until(lambda: not left(cluster), f"nothing is left of {left(cluster)}")


def slowly(path, number, *inputs):
    """Note that this has run, and return something large."""
    with open(path, "a") as file:
        file.write(f"{number}\n")
    time.sleep(0.02)
    return large(number, *inputs)


def runs(path):
    """Count how often each of these has run."""
    return Counter(Path(path).read_text().split() if os.path.exists(path) else ())


def gated_tree(path, gate):
    """Return a tree of 64 large values, the last of which waits for the gate."""
    return tree([delayed(slowly)(path, n) for n in range(63)] + [delayed(gated)(gate, 63)])


def begin_and_wait(began, gate):
    with open(began, "w"):
        pass
    gate.wait()
    return os.path.exists(began)


def test_what_is_submitted_while_executors_are_being_ended_is_not_ended_with_them(cluster, client, tmp_path):
    """It begins once they have ended, and no death is counted."""
    ending, go_on = threading.Event(), threading.Event()
    dispatcher = cluster._proxy.dispatcher
    end = dispatcher.end_executors

    async def end_slowly():
        ending.set()
        await dispatcher.call(go_on.wait, SECONDS_MAX)
        await end()

    dispatcher.end_executors = end_slowly
    kill(cluster)
    until(ending.is_set, "executors are about to be ended")
    began, gate = tmp_path / "began", Gate(str(tmp_path / "open"))
    future = client.submit(begin_and_wait, str(began), gate)
    until(lambda: dispatcher.ending._later or began.exists(), "the proxy has it")
    go_on.set()
    until(began.exists, "it has begun")
    gate.open()
    assert future.result(timeout=SECONDS_MAX)
    assert cluster.stats()["executors_lost"] == 0


@pytest.mark.fault(22)
@pytest.mark.parametrize("deaths", [1, 2])
def test_a_tree_of_large_values(cluster, client, tmp_path, deaths):
    path, gate = str(tmp_path / "runs"), Gate(str(tmp_path / "open"))
    future = client.compute(gated_tree(path, gate))
    for death in range(deaths):
        until(lambda n=death: runs(path).total() > 15 * (n + 1), "some tasks have run", SECONDS_MAX)
        kill(cluster)
    gate.open()
    assert future.result(timeout=SECONDS_MAX) == sum(range(64)) + tree_sum(64, 0)
    stats = cluster.stats()
    assert (stats["metadata_lost"], stats["jobs_begun_again"]) == (deaths, deaths)
    del future
    until_empty(cluster)


@pytest.mark.fault(22)
def test_a_metadata_server_that_is_emptied(cluster, client, tmp_path):
    """It lives, and forgets all: nobody's connection breaks."""
    path, gate = str(tmp_path / "runs"), Gate(str(tmp_path / "open"))
    future = client.compute(gated_tree(path, gate))
    until(lambda: runs(path).total() > 10, "some tasks have run", SECONDS_MAX)
    server_of(cluster, "metadata").flushall()
    until(lambda: cluster.stats()["metadata_lost"], "the cluster has noticed")
    gate.open()
    assert future.result(timeout=SECONDS_MAX) == sum(range(64)) + tree_sum(64, 0)
    assert cluster.stats()["metadata_lost"] == 1
    del future
    until_empty(cluster)


@pytest.mark.fault(19)
def test_another_metadata_server_that_has_forgotten_the_last_words(cluster, client, tmp_path):
    """As after a failover: it has the mark and the jobs, as they were some tasks ago."""
    path, gate = str(tmp_path / "runs"), Gate(str(tmp_path / "open"))
    future = client.compute(gated_tree(path, gate))
    until(lambda: runs(path).total() > 10, "some tasks have run", SECONDS_MAX)
    server = server_of(cluster, "metadata")
    server.save()
    before = runs(path).total()
    until(lambda: runs(path).total() > before + 10, "more tasks have run", SECONDS_MAX)
    kill(cluster)
    assert server.info("persistence")["rdb_last_load_keys_loaded"], "it has read what was saved"
    gate.open()
    assert future.result(timeout=SECONDS_MAX) == sum(range(64)) + tree_sum(64, 0)
    assert cluster.stats()["metadata_lost"] == 1
    del future
    until_empty(cluster)


@pytest.mark.fault(22)
def test_futures_of_a_map_that_are_done_are_not_run_again(cluster, client, tmp_path):
    path, gate = str(tmp_path / "runs"), Gate(str(tmp_path / "open"))
    futures = client.map(slowly, [path] * 40, range(40))
    wait(futures, timeout=SECONDS_MAX)
    late = [client.submit(after, path, gate, number, future) for number, future in enumerate(futures)]
    until(lambda: runs(path).total() > 40, "one of them has begun")
    kill(cluster)
    gate.open()
    assert client.submit(first, *late).result(timeout=SECONDS_MAX) == 3 * sum(range(40))
    assert [runs(path)[str(number)] for number in range(40)] == [1] * 40
    del late, futures
    until_empty(cluster)


def after(path, gate, number, value):
    with open(path, "a") as file:
        file.write(f"after-{number}\n")
    gate.wait()
    return large(2 * number, value)


@pytest.mark.fault(22)
def test_a_map_in_the_middle(cluster, client, tmp_path):
    """Some futures of one graph have values, others begin again."""
    path = str(tmp_path / "runs")
    futures = client.map(slowly, [path] * 200, range(200))
    until(lambda: sum(each.done() for each in futures) >= 20, "some are done", SECONDS_MAX)
    kill(cluster, seen=False)
    done = {number for number, each in enumerate(futures) if each.done()}
    assert client.submit(first, *futures).result(timeout=SECONDS_MAX) == sum(range(200))
    assert done and {runs(path)[str(number)] for number in done} == {1}
    assert max(runs(path).values()) <= 2
    assert cluster.stats()["executors_lost"] == 0, "nothing was sent to those who were being ended"
    futures.clear()
    until_empty(cluster)


@pytest.mark.fault(22)
def test_a_persisted_array_is_used_again(cluster, client):
    x = da.random.default_rng(1).random((2000, 2000), chunks=(500, 500)).persist()
    wait(x, timeout=SECONDS_MAX)
    before = float(x.sum().compute())
    ran = cluster.stats()["tasks_run"]
    kill(cluster)
    assert float(x.sum().compute()) == before
    until(lambda: cluster.stats()["tasks_run"] > ran, "it is counted")
    assert cluster.stats()["results_lost"] == 0
    y = (x @ x.T).sum()
    expected = float((np.asarray(x.compute()) @ np.asarray(x.compute()).T).sum())
    future = client.compute(y)
    kill(cluster)
    assert float(future.result(timeout=SECONDS_MAX)) == pytest.approx(expected)
    del x, y, future
    until_empty(cluster)


@pytest.mark.fault(22)
def test_a_job_that_waits_for_another_one(cluster, client, tmp_path):
    gate = Gate(str(tmp_path / "open"))
    x = client.submit(gated, gate, 7)
    y = client.submit(large, 1, x)
    z = client.submit(first, x, y)
    until(lambda: cluster.stats()["invocations"] + cluster.stats()["mails"], "it has begun")
    kill(cluster)
    gate.open()
    assert z.result(timeout=SECONDS_MAX) == 7 + 8
    assert first(y.result(timeout=SECONDS_MAX)) == 8


def gated(gate, number):
    gate.wait()
    return large(number)


@pytest.mark.fault(22)
def test_a_chain(cluster, client, tmp_path):
    path = str(tmp_path / "runs")
    value = delayed(large)(1)
    for _ in range(300):
        value = delayed(slowly)(path, 1, value)
    future = client.compute(delayed(first)(value))
    until(lambda: runs(path).total() > 50, "some tasks have run", SECONDS_MAX)
    kill(cluster)
    assert future.result(timeout=SECONDS_MAX) == 301


@pytest.mark.fault(22)
def test_a_shuffle(cluster, client, tmp_path):
    gate = Gate(str(tmp_path / "open"))
    frame = pd.DataFrame({"x": np.arange(100_000) % 97, "y": np.arange(100_000)})
    parts = dd.from_pandas(frame, npartitions=20).map_partitions(wait_with_the_last, gate, meta=frame)
    future = client.compute(parts.shuffle("x").groupby("x").y.sum())
    until(lambda: cluster.stats().get("slices_written"), "transfers have written")
    kill(cluster)
    gate.open()
    pd.testing.assert_series_equal(future.result(timeout=SECONDS_MAX).sort_index(), frame.groupby("x").y.sum())
    del future
    until_empty(cluster)


def wait_with_the_last(part, gate):
    if part.y.max() == 99_999:
        gate.wait()
    return part


@pytest.mark.fault(22)
def test_what_a_client_has_scattered(cluster, client, tmp_path):
    gate = Gate(str(tmp_path / "open"))
    data = client.scatter(np.arange(100_000))
    future = client.submit(sum_behind, gate, data)
    until(lambda: cluster.stats()["invocations"] + cluster.stats()["mails"], "it has begun")
    kill(cluster)
    gate.open()
    assert future.result(timeout=SECONDS_MAX) == np.arange(100_000).sum()


def sum_behind(gate, data):
    gate.wait()
    return int(data.sum())


@pytest.mark.fault(22)
def test_a_call_of_run_begins_again(cluster, client, tmp_path):
    path = tmp_path / "runs"
    found = []
    thread = threading.Thread(target=lambda: found.append(client.run(note_and_wait, str(path), str(tmp_path / "open"))))
    thread.start()
    until(path.exists, "it has begun")
    kill(cluster)
    Gate(str(tmp_path / "open")).open()
    thread.join(SECONDS_MAX)
    assert list(found[0].values()) == ["done"]


def note_and_wait(path, gate):
    Path(path).touch()
    Gate(gate).wait()
    return "done"


@pytest.mark.fault(22)
def test_tasks_that_are_clients(cluster, client, tmp_path):
    """Those that wait for others run again, and ask for the same again."""
    gate, path = Gate(str(tmp_path / "open")), tmp_path / "runs"
    futures = [client.submit(outer, gate, 10 * number, str(path)) for number in range(4)]
    until(lambda: path.exists() and len(cluster._proxy.dispatcher.ledger.jobs) > 4, "tasks have asked for others")
    kill(cluster)
    gate.open()
    assert client.gather(futures) == [3, 33, 63, 93]


def outer(gate, number, path):
    Path(path).touch()
    with worker_client() as client:
        return sum(client.gather([client.submit(inner, gate, number + more) for more in range(3)]))


def inner(gate, number):
    gate.wait()
    return number


@pytest.mark.fault(22, 40)
def test_again_and_again_while_something_is_computed(tmp_path):
    """More often than is allowed: it fails by name, and the cluster goes on."""
    gate = Gate(str(tmp_path / "open"))
    with start(**{"serverless.storage.allowed-failures": 1}) as cluster, Client(cluster) as client:
        kept = client.submit(large, 5)
        wait(kept, timeout=SECONDS_MAX)
        future = client.submit(gated, gate, 1)
        above = client.submit(first, future)
        for death in range(2):
            until(lambda n=death: cluster.stats()["jobs_begun_again"] >= n, "it has begun again")
            until(lambda: cluster._proxy.dispatcher.ledger.jobs, "it is under way")
            kill(cluster)
        for each in (future, above):
            with pytest.raises(StoreForgot, match="lost 2 times .*allowed-failures"):
                each.result(timeout=SECONDS_MAX)
        assert client.submit(first, kept).result(timeout=SECONDS_MAX) == 5


@pytest.mark.fault(18, 22, 40)
def test_again_and_again_within_a_minute(tmp_path):
    """More often than it is started again: the cluster says that it has ended."""
    gate = Gate(str(tmp_path / "open"))
    with start(**{"serverless.storage.allowed-failures": 100}) as cluster, Client(cluster) as client:
        future = client.submit(gated, gate, 1)
        tier = cluster._local.tier
        while not tier._given_up:
            pid = tier.pids["metadata"]
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: tier.pids["metadata"] != pid or tier._given_up, "it is started again, or given up")
        with pytest.raises(StoreUnavailable, match="metadata"):
            future.result(timeout=SECONDS_MAX)
