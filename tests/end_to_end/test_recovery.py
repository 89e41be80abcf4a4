"""Executors die; computations end with the right values, and only who is to blame fails."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time

import dask
import dask.array as da
import numpy as np
import psutil
import pytest
from dask import delayed
from distributed import Client, KilledWorker, wait

from dask_serverless import ServerlessCluster
from lambda_worker.core.errors import ExecutorLost
from tests.waiting import until

SECONDS_MAX = 60.0


@pytest.fixture(scope="module")
def cluster():
    with ServerlessCluster(n_workers=2, dashboard_address=None) as cluster:
        yield cluster


def die_once(marker, value):
    """End the process that runs this, the first time."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return value
    os.kill(os.getpid(), signal.SIGKILL)


def die(*_):
    os._exit(3)


def add(*values):
    return sum(values)


def slow_inc(value):
    time.sleep(0.01)
    return value + 1


def tree(leaves):
    while len(leaves) > 1:
        leaves = [delayed(add)(*leaves[n : n + 2]) for n in range(0, len(leaves), 2)]
    return leaves[0]


@pytest.mark.fault(2)
def test_a_task_whose_executor_dies_runs_again(client, tmp_path):
    assert client.submit(die_once, tmp_path / "marker", 5).result(timeout=SECONDS_MAX) == 5


@pytest.mark.fault(2)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_chain_goes_on(client, tmp_path, where):
    at = {"first": 0, "middle": 50, "last": 99}[where]
    value = delayed(0)
    for number in range(100):
        value = delayed(add)(value, 1)
        if number == at:
            value = delayed(die_once)(tmp_path / "marker", value)
    assert value.compute() == 100


@pytest.mark.fault(2)
def test_a_tree_goes_on(client, tmp_path):
    leaves = [delayed(slow_inc)(number) for number in range(128)]
    leaves += [delayed(die_once)(tmp_path / f"marker-{n}", 1000) for n in range(4)]
    assert tree(leaves).compute() == sum(range(1, 129)) + 4000


@pytest.mark.fault(2)
def test_results_that_were_told_before_the_death_stay(client, tmp_path):
    first = client.submit(slow_inc, 1)
    wait(first, timeout=SECONDS_MAX)
    second = client.submit(die_once, tmp_path / "marker", first)
    assert client.gather([first, second]) == [2, 2]


@pytest.mark.fault(14)
def test_one_that_always_kills_fails_by_name_and_the_others_go_on(client, cluster):
    before = cluster.stats()["executors_lost"]
    shared = delayed(slow_inc)(1)
    fine = [delayed(add)(shared, number) for number in range(200)]
    poison = delayed(die)(shared, dask_key_name="poison")
    total, failed, below = client.compute([delayed(add)(*fine), poison, delayed(add)(poison, 1)])
    assert total.result(timeout=SECONDS_MAX) == 2 * 200 + sum(range(200))
    for future in (failed, below):
        error = future.exception(timeout=SECONDS_MAX)
        assert isinstance(error, ExecutorLost) and isinstance(error, KilledWorker)
        assert "task 'poison' died 4 times" in str(error) and error.task == "poison"
    assert cluster.stats()["executors_lost"] == before + 4


@pytest.mark.fault(14)
def test_no_failure_may_be_allowed():
    with (
        dask.config.set({"serverless.executor.allowed-failures": 0}),
        ServerlessCluster(n_workers=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        with pytest.raises(ExecutorLost, match="'once' died: "):
            client.submit(die, key="once").result(timeout=SECONDS_MAX)
        assert client.submit(slow_inc, 1).result(timeout=SECONDS_MAX) == 2


def sandboxes():
    """Return the processes that run tasks."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            parent = process.parent()
            if parent is not None and any("zygote" in word for word in parent.cmdline()):
                found.append(process)
    return found


@contextlib.contextmanager
def killing(seconds, seed):
    """Kill one of the sandboxes, again and again."""
    done = threading.Event()
    killed = []

    def work():
        chooser = random.Random(seed)
        while not done.wait(seconds):
            alive = sandboxes()
            if alive:
                with contextlib.suppress(psutil.Error):
                    chooser.choice(alive).kill()
                    killed.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()


@pytest.mark.fault(2)
def test_answers_are_right_while_sandboxes_are_killed():
    """A kill every second. What runs is innocent, so many failures are allowed."""
    with (
        dask.config.set({"serverless.executor.allowed-failures": 50}),
        ServerlessCluster(n_workers=3, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        x = da.random.default_rng(1).normal(size=(2_000, 40), chunks=(200, 40))
        expected = np.linalg.svd(x.compute(scheduler="sync"), compute_uv=False)
        with killing(1.0, seed=1) as killed:
            for _ in range(3):
                leaves = [delayed(slow_inc, pure=False)(number) for number in range(150)]
                assert tree(leaves).compute() == sum(range(1, 151))
                np.testing.assert_allclose(da.linalg.svd(x)[1].compute(), expected)
        assert killed
        assert client.submit(slow_inc, 1, pure=False).result(timeout=SECONDS_MAX) == 2
        until(lambda: cluster.stats()["tasks_under_way"] == 0, "every job is over")
