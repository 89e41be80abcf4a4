"""`Reschedule`: a task that asks to be run again is, and keeps nobody waiting meanwhile."""

from __future__ import annotations

import os

import pytest
from dask import delayed
from distributed import Client, Reschedule, wait

from dask_serverless import ServerlessCluster
from tests.waiting import until

SECONDS_MAX = 20


def again(path, times, value=0):
    """Ask to be run again until this has been called so many times."""
    with open(path, "a") as file:
        file.write("x")
    if os.path.getsize(path) < times:
        raise Reschedule
    return value


def wait_for_file(path):
    if not os.path.exists(path):
        raise Reschedule("not there yet")
    return "there"


def test_a_rescheduled_task_runs_again(client, tmp_path):
    path = tmp_path / "calls"
    assert client.submit(again, path, 4, value=7, pure=False).result(timeout=SECONDS_MAX) == 7
    assert path.read_text() == "xxxx"


def test_in_the_middle_of_a_graph_with_its_inputs(client, tmp_path):
    path = tmp_path / "calls"
    middle = delayed(again, pure=False)(path, 3, value=delayed(sum)([1, 2]))
    assert delayed(sum)([middle, middle, 1]).compute() == 7
    assert path.read_text() == "xxx"


def test_it_is_no_try_that_failed(client, tmp_path):
    path = tmp_path / "calls"

    def reschedule_then_fail():
        again(path, 3)
        raise LookupError("really")

    future = client.submit(reschedule_then_fail, retries=1, pure=False)
    with pytest.raises(LookupError, match="really"):
        future.result(timeout=SECONDS_MAX)
    assert path.read_text() == "xxxx", "twice rescheduled, failed, retried"


def test_with_a_single_place_others_run_in_between():
    """Each of the tasks waits for the last one, which would have no place if they kept theirs."""
    with ServerlessCluster(n_workers=1, dashboard_address=None) as cluster, Client(cluster) as client:
        path = os.path.join(cluster._local.directory, "made-by-the-last")
        waiting = [client.submit(wait_for_file, path, pure=False) for _ in range(3)]
        until(lambda: cluster.stats()["tasks_rerun"] >= 5, "they ask again")
        last = client.submit(lambda: open(path, "w").close(), pure=False)
        wait(last, timeout=SECONDS_MAX)
        assert client.gather(waiting) == ["there"] * 3


def test_one_that_reschedules_for_ever_can_be_cancelled(cluster, client, tmp_path):
    future = client.submit(wait_for_file, tmp_path / "never", pure=False)
    until(lambda: cluster.stats()["tasks_rerun"] >= 5, "it asks again")
    assert client.gather(client.map(abs, range(-10, 0), pure=False)) == list(range(10, 0, -1))
    assert future.status == "pending"
    future.cancel()
    dispatcher = cluster.scheduler.plugins["dask-serverless"].dispatcher
    until(lambda: not dispatcher.ledger.jobs, "nothing is left of it")
