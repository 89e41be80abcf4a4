"""Values that stay where they are made: answers are right, memory is bounded, and little travels."""

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client

from dask_serverless import ServerlessCluster
from tests.waiting import until

MIB = 2**20


def small_cluster(memory="320 MiB"):
    return ServerlessCluster(n_workers=2, memory_limit=memory, dashboard_address=None)


@pytest.fixture(scope="module")
def squeezed():
    """A cluster whose executors have little memory beside the interpreter and NumPy."""
    with small_cluster() as cluster, Client(cluster) as client:
        yield cluster, client


def matrix(rows, columns, chunks, seed):
    return da.random.RandomState(seed).random_sample((rows, columns), chunks=chunks)


def test_what_is_held_never_costs_an_executor_its_memory(squeezed):
    """Tall factors of 320 MiB are held for the last step, by executors that may keep 80 MiB each."""
    cluster, client = squeezed
    tall = matrix(640_000, 64, (20_000, 64), 1)
    u, s, v = da.linalg.svd(tall)
    error = abs(u @ da.diag(s) @ v - tall).max()
    assert client.compute(error, sync=True) < 1e-6
    assert cluster.stats()["executors_lost"] == 0


def test_a_product_of_matrices_larger_than_an_executor(squeezed):
    cluster, client = squeezed
    a, b = matrix(4000, 4000, (1000, 1000), 2), matrix(4000, 4000, (1000, 1000), 3)
    ones = np.ones(4000)
    # (a @ b) @ 1 is a @ (b @ 1), which needs no large product
    product, told = dask.compute((a @ b) @ ones, a @ (b @ ones), scheduler=client)
    np.testing.assert_allclose(product, told)
    assert cluster.stats()["executors_lost"] == 0


def test_what_is_cached_never_costs_an_executor_its_memory(squeezed):
    """Persisted data of 240 MiB, read again and again by executors that may cache 160 MiB each, less what they use."""
    cluster, client = squeezed
    data = client.persist(matrix(480_000, 64, (10_000, 64), 4))
    sums = [client.compute(data[:, column].sum(), sync=True) for column in range(4)]
    np.testing.assert_allclose(sums, np.asarray(client.compute(data[:, :4].sum(axis=0), sync=True)))
    assert cluster.stats()["executors_lost"] == 0


def grow(pieces):
    """Take 32 MiB, and again, which nobody could know."""
    return len([np.ones(4 * MIB) for _ in range(pieces)])


def test_what_is_cached_makes_room_for_what_a_task_needs():
    """Executors of 768 MiB, which have cached 240 MiB or more, run a task that needs 512."""
    with small_cluster("768 MiB") as cluster, Client(cluster) as client:
        data = client.persist(matrix(1_000_000, 64, (20_000, 64), 6))
        before = client.compute(data.sum(), sync=True)
        assert client.compute(data.sum(), sync=True) == before
        grown = client.map(grow, [16] * 4, pure=False)  # 512 MiB
        assert client.gather(grown) == [16] * 4
        assert client.compute(data.sum(), sync=True) == before
        stats = cluster.stats()
        assert stats["executors_lost"] == 0, stats


@pytest.mark.parametrize("switch", ["hold", "group", "split", "cache", "prefetch", "compress", "inline", "locality"])
def test_every_decision_may_be_switched_off(switch):
    with (
        dask.config.set({f"serverless.policy.{switch}": False}),
        small_cluster("1 GiB") as cluster,
        Client(cluster) as client,
    ):
        tall = matrix(40_000, 20, (5_000, 20), 5)
        u, s, v = da.linalg.svd(tall)
        assert client.compute(abs(u @ da.diag(s) @ v - tall).max(), sync=True) < 1e-6
        assert client.gather(client.map(lambda n: n + 1, range(20))) == list(range(1, 21))


def test_without_locality_every_value_is_stored_and_read():
    def moved(locality):
        switches = {"serverless.policy.locality": locality, "serverless.policy.cache": locality}
        with dask.config.set(switches), small_cluster("1 GiB") as cluster, Client(cluster) as client:
            rows = matrix(200_000, 32, (10_000, 32), 6)
            _, r = da.linalg.tsqr(rows)
            client.compute(r, sync=True, optimize_graph=False)  # else Dask fuses more or less of it, by chance
            stats = cluster.stats()
            return stats["bytes_written"], stats["bytes_read"]

    written, read = moved(True)
    written_without, read_without = moved(False)
    assert written_without > 200_000 * 32 * 8 > 50 * written
    assert read_without > 200_000 * 32 * 8 > 50 * read


def test_an_iteration_reads_its_data_where_it_was_made():
    """Ten passes over persisted data: executors that linger still have it."""
    with (
        dask.config.set({"serverless.executor.linger": "2 s"}),
        small_cluster("1 GiB") as cluster,
        Client(cluster) as client,
    ):
        data = client.persist(matrix(160_000, 64, (10_000, 64), 7))
        expected = client.compute(data.sum(axis=0), sync=True)
        before = cluster.stats()["bytes_read"]
        for _ in range(10):
            np.testing.assert_allclose(client.compute(data.sum(axis=0), sync=True), expected)
        assert cluster.stats()["bytes_read"] - before < 0.5 * 10 * data.nbytes


def test_what_is_asked_for_before_its_data_is_there_begins_where_that_is_made():
    """What follows `persist` in the next line waits for its executors to end, though another place is free first."""
    with (
        dask.config.set({"serverless.executor.linger": "2 s", "serverless.storage.bytes-per-second": "4 MB"}),
        small_cluster("1 GiB") as cluster,
        Client(cluster) as client,
    ):
        data = client.persist(matrix(400_000, 64, (20_000, 64), 8))
        until(lambda: cluster.stats()["executors"] == 2)
        weights = np.linspace(0.5, 1.5, 64)
        projected = client.persist(data @ weights)
        found = client.compute((data.T @ (projected - 1.0)).sum(), sync=True)
        assert cluster.decisions(projected).counts.get("wait", 0) >= 1
        rows = np.asarray(client.compute(data, sync=True))
        np.testing.assert_allclose(found, (rows.T @ (rows @ weights - 1.0)).sum())
