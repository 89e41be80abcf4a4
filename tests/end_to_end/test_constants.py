"""Large objects in many tasks cross the storage tier once, and once more into each sandbox."""

from __future__ import annotations

import pickle

import dask
import dask.array as da
import numpy as np
import pytest
from dask_ml.wrappers import ParallelPostFit
from distributed import Client
from sklearn.datasets import make_classification
from sklearn.svm import SVC

from dask_serverless import ServerlessCluster
from tests.waiting import until

TASKS = 1_000
EXECUTORS = 2


def look_up(number, table):
    return int(table[number])


def spoil(number, table):
    table[0] += 1
    return int(table[0])


def nothing_under_way(cluster):
    until(lambda: cluster.stats()["tasks_under_way"] == 0, "jobs to be closed")


@pytest.fixture
def moved(cluster):
    """Return what crosses the storage tier during a call: bytes written, bytes read."""

    def measure(call):
        nothing_under_way(cluster)
        before = cluster.stats()
        call()
        nothing_under_way(cluster)
        after = cluster.stats()
        return [after[name] - before[name] for name in ("bytes_written", "bytes_read")]

    return measure


def by_map(client, table):
    return client.gather(client.map(look_up, range(TASKS), table=table, pure=False))


def by_argument(client, table):
    return client.gather(client.map(look_up, range(TASKS), [table] * TASKS, pure=False))


def by_delayed(client, table):
    return dask.compute(*[dask.delayed(look_up, pure=False)(n, table) for n in range(TASKS)], scheduler=client)


def by_closure(client, table):
    return client.gather(client.map(lambda n: look_up(n, table), range(TASKS), pure=False))


def by_submit(client, table):
    return [client.submit(look_up, n, table, pure=False).result(timeout=20) for n in range(10)]


@pytest.mark.parametrize("way", [by_map, by_argument, by_delayed, by_closure, by_submit])
def test_a_table_is_stored_once_and_found_by_later_jobs(client, moved, way):
    table = np.random.default_rng(list(map(ord, way.__name__))).integers(0, 9, 50_000)

    def run():
        assert list(way(client, table)) == table[: 10 if way is by_submit else TASKS].tolist()

    graph, _ = moved(lambda: way(client, np.arange(TASKS)[::-1]))  # what the same costs with a small table
    written, read = moved(run)
    assert table.nbytes < written < 2 * table.nbytes + 2 * graph
    assert read < EXECUTORS * table.nbytes + 2 * written - table.nbytes
    written, read = moved(run)
    assert written < 2 * graph + table.nbytes / 10, "the table is there"
    assert read < EXECUTORS * table.nbytes + 2 * written


def test_each_task_has_an_object_of_its_own(client):
    table = np.zeros(50_000)
    for _ in range(2):
        assert set(client.gather(client.map(spoil, range(20), [table] * 20, pure=False))) == {1}


@pytest.mark.fault(37)
def test_a_model_of_many_partitions(client, moved):
    samples, labels = make_classification(n_samples=6_000, random_state=0)
    model = ParallelPostFit(SVC(gamma="scale")).fit(samples, labels)
    nbytes = len(pickle.dumps(model.estimator))
    assert nbytes > 200_000
    data = da.from_array(samples, chunks=(6, -1))
    prediction = model.predict(data)
    assert prediction.npartitions == TASKS
    message = len(pickle.dumps(prediction.expr if hasattr(prediction, "expr") else prediction.dask))
    assert message < 2 * (nbytes + samples.nbytes)
    found = []
    written, read = moved(lambda: found.append(prediction.compute()))
    assert (found[0] == model.estimator.predict(samples)).all()
    assert written < 2 * (nbytes + samples.nbytes)
    assert read < 2 * EXECUTORS * (nbytes + samples.nbytes)


def test_where_the_tier_is_slow_values_are_compressed():
    table = np.zeros(1_000_000)
    with (
        dask.config.set({"serverless.storage.bytes-per-second": "1 MiB"}),
        ServerlessCluster(n_workers=2, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        ones = client.submit(np.ones, 1_000_000)
        total = client.submit(lambda one, other: float(one.sum() + other.sum()), ones, table)
        assert total.result(timeout=60) == 1_000_000
        result = ones.result()
        assert result.sum() == 1_000_000 and result.flags.writeable
        assert client.submit(len, client.scatter(table)).result(timeout=20) == 1_000_000
        assert cluster.stats()["bytes_written"] < table.nbytes / 10
