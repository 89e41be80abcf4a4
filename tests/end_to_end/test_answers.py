"""Promise 1: what the synchronous scheduler answers is what executors answer."""

from __future__ import annotations

import operator

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from distributed import Client


def both(client, *collections, **keywords):
    """Compute with executors and with the synchronous scheduler."""
    ours = client.compute(collections, **keywords)
    return client.gather(ours), dask.compute(*collections, scheduler="sync")


def tree(leaves):
    level = [dask.delayed(n) for n in range(leaves)]
    add = dask.delayed(operator.add)
    while len(level) > 1:
        level = [add(level[n], level[n + 1]) for n in range(0, len(level), 2)]
    return level[0]


@pytest.mark.parametrize("leaves", [1024, 8192])
def test_tree_reduction(client, leaves):
    (ours,), (theirs,) = both(client, tree(leaves))
    assert ours == theirs == leaves * (leaves - 1) // 2


def test_svd_of_a_tall_array(client):
    x = da.random.default_rng(0).random((200_000, 100), chunks=(10_000, 100))
    (u, s, v), (u0, s0, v0) = both(client, *da.linalg.svd(x))
    np.testing.assert_allclose(s, s0, rtol=1e-12)
    np.testing.assert_allclose(v, v0, atol=1e-9)
    np.testing.assert_allclose(u, u0, atol=1e-9)


def test_svd_compressed(client):
    x = da.random.default_rng(0).random((10_000, 10_000), chunks=2000)
    u, s, v = da.linalg.svd_compressed(x, k=5, seed=1)
    (v, s), (v0, s0) = both(client, v, s)
    np.testing.assert_allclose(s, s0, rtol=1e-9)
    np.testing.assert_allclose(v[0], v0[0], atol=1e-9)


def test_gemm(client):
    rng = da.random.default_rng(0)
    a, b = rng.random((5000, 5000), chunks=1000), rng.random((5000, 5000), chunks=1000)
    (ours,), (theirs,) = both(client, a @ b)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_tsqr(client):
    x = da.random.default_rng(0).random((131_072, 32), chunks=(16_384, 32))
    (q, r), (q0, r0) = both(client, *da.linalg.tsqr(x))
    np.testing.assert_allclose(r, r0, atol=1e-9)
    np.testing.assert_allclose(q, q0, atol=1e-9)


def test_parallel_post_fit(client):
    import dask_ml.datasets
    import sklearn.datasets
    from dask_ml.wrappers import ParallelPostFit
    from sklearn.svm import SVC

    x, y = sklearn.datasets.make_classification(n_samples=1000, random_state=0)
    model = ParallelPostFit(SVC(gamma="scale")).fit(x, y)
    x, y = dask_ml.datasets.make_classification(n_samples=8000, random_state=0, chunks=400)
    (ours,), (theirs,) = both(client, model.predict(x))
    np.testing.assert_array_equal(ours, theirs)


def test_a_delayed_diamond(client):
    top = dask.delayed(list)((1, 2))
    left, right = dask.delayed(sum)(top), dask.delayed(max)(top)
    (ours,), (theirs,) = both(client, dask.delayed(divmod)(left, right))
    assert ours == theirs == (1, 1)


def test_a_dataframe_groupby(client):
    frame = dask.datasets.timeseries(end="2000-01-05", seed=0)
    (ours,), (theirs,) = both(client, frame.groupby("name").agg({"x": "mean", "y": "max", "id": "count"}))
    pd.testing.assert_frame_equal(ours.sort_index(), theirs.sort_index())


def test_a_bag(client):
    import dask.bag

    bag = dask.bag.from_sequence(range(1000), npartitions=13)
    (ours,), (theirs,) = both(client, bag.map(lambda n: n % 7).frequencies())
    assert sorted(ours) == sorted(theirs)


def test_a_graph_on_top_of_persisted_chunks(client):
    x = da.random.default_rng(0).random((2000, 2000), chunks=250)
    expected = (x + 1).sum().compute(scheduler="sync")
    kept = (x + 1).persist()
    assert kept.sum().compute() == pytest.approx(expected, rel=1e-12)
    again = kept.sum(axis=0).persist()
    del kept
    assert again.sum().compute() == pytest.approx(expected, rel=1e-12)


@pytest.mark.fault(47)
def test_two_clients_share_a_key(cluster):
    def slowly(path):
        with open(path, "a") as file:
            file.write("x")
        return len(path)

    import tempfile

    with tempfile.NamedTemporaryFile() as file, Client(cluster) as one, Client(cluster, set_as_default=False) as two:
        first = one.submit(slowly, file.name, key="shared")
        second = two.submit(slowly, file.name, key="shared")
        assert first.result() == second.result() == len(file.name)
        with open(file.name) as written:
            assert written.read() == "x", "computed once"


def test_a_linear_chain_is_one_invocation_and_no_round_trips_between_tasks(cluster, client):
    graph = {"link-0": 0, **{f"link-{n}": (lambda n: n + 1, f"link-{n - 1}") for n in range(1, 10_001)}}
    before = cluster.stats()
    assert client.get(graph, "link-10000") == 10_000
    after = cluster.stats()
    started = [stats["invocations"] + stats["mails"] for stats in (before, after)]
    assert started[1] - started[0] == 1
    assert after["round_trips"] - before["round_trips"] < 60, "those of the proxy, and one to read and to publish"
    assert after["tasks_run"] - before["tasks_run"] >= 10_000
