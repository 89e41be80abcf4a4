"""Executors that run several tasks at the same time."""

import os
import sys
import threading

import dask.array as da
import numpy as np
import pytest
from distributed import Client, get_worker, worker_client

from dask_serverless import ServerlessCluster
from dask_serverless.errors import ExecutorKilled
from tests.waiting import until

THREADS = 4


@pytest.fixture(scope="module")
def client():
    with (
        ServerlessCluster(n_workers=1, threads_per_worker=THREADS, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def meet(number):
    """Return only when as many tasks run in this process."""
    barrier = sys.__dict__.setdefault("_test_barrier", threading.Barrier(THREADS))
    barrier.wait(timeout=60)
    return number, threading.get_ident()


def test_as_many_tasks_run_at_the_same_time_in_one_executor(client):
    results = client.gather(client.map(meet, range(2 * THREADS), pure=False))
    assert [number for number, _ in results] == list(range(2 * THREADS))
    assert len({thread for _, thread in results}) == THREADS


def test_the_threads_are_shown_whatever_the_size(client):
    assert list(client.nthreads().values()) == [THREADS]
    client.cluster.scale(2)
    until(lambda: list(client.nthreads().values()) == [2 * THREADS], "there is a place more")
    client.cluster.scale(1)
    until(lambda: list(client.nthreads().values()) == [THREADS], "it is gone")


def test_graphs_have_the_values_they_have_elsewhere(client):
    x = da.random.RandomState(1).random_sample((400, 400), chunks=(100, 100))
    assert np.allclose(client.compute((x @ x.T).sum(axis=0), sync=True), np.asarray((x @ x.T).sum(axis=0)))


def key_and_more(number):
    key = get_worker().get_current_task()
    with worker_client() as client:  # all of them wait at the same time
        return key, client.submit(lambda n: n + 1, number).result()


def test_every_task_knows_its_own_key_and_may_be_a_client(client):
    futures = client.map(key_and_more, range(8), pure=False)
    assert client.gather(futures) == [(future.key, number + 1) for number, future in enumerate(futures)]


def fail(number):
    raise ValueError(f"number {number}")


def test_errors_are_those_of_their_tasks(client):
    futures = client.map(fail, range(8), pure=False)
    assert [str(future.exception(timeout=60)) for future in futures] == [f"number {number}" for number in range(8)]


def poison(number):
    if number == 5:
        os._exit(3)
    return number


def test_the_task_that_kills_is_named_though_others_ran_beside_it(client):
    futures = client.map(poison, range(12), pure=False)
    others = [future for number, future in enumerate(futures) if number != 5]
    assert client.gather(others) == [number for number in range(12) if number != 5]
    error = futures[5].exception(timeout=120)
    assert isinstance(error, ExecutorKilled) and futures[5].key in str(error)
