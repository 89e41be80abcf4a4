"""Executors that linger, through a Dask client: who is given work without an invocation, and what if they die."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import dask
import pytest
from distributed import Client
from distributed.scheduler import KilledWorker

from dask_serverless import ServerlessCluster
from tests.waiting import until


@pytest.fixture(scope="module")
def lingering():
    """A cluster of one executor that lingers for as long as it may."""
    with (
        dask.config.set({"serverless.executor.linger": "2 s"}),
        ServerlessCluster(n_workers=1, dashboard_address=None) as cluster,
    ):
        yield cluster


@pytest.fixture
def client(lingering):
    with Client(lingering) as client:
        yield client


def pid(*anything):
    return os.getpid()


def counts(cluster):
    stats = cluster.stats()
    return stats["invocations"], stats["mails"]


def test_the_next_task_runs_where_the_last_one_did_without_an_invocation(lingering, client):
    first = client.submit(pid, pure=False).result()
    invocations, mails = counts(lingering)
    assert [client.submit(pid, number, pure=False).result() for number in range(3)] == [first] * 3
    assert counts(lingering) == (invocations, mails + 3)


def test_what_a_task_prints_or_raises_by_mail_is_told_as_ever(lingering, client):
    client.submit(pid, pure=False).result()
    with pytest.raises(ZeroDivisionError):
        client.submit(lambda: 1 / 0, pure=False).result()
    assert client.submit(sum, [1, 2]).result() == 3


def test_without_lingering_every_task_is_an_invocation():
    with (
        dask.config.set({"serverless.executor.linger": 0}),
        ServerlessCluster(n_workers=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        for number in range(3):
            assert client.submit(pid, number, pure=False).result()
        assert counts(cluster) == (3, 0)


def test_who_dies_while_it_lingers_is_replaced(lingering, client):
    """1. It lingers; 2. it is killed, and nobody is told; 3. mail is sent to it, and taken back."""
    first = client.submit(pid, pure=False).result()
    _, mails = counts(lingering)
    os.kill(first, signal.SIGSTOP)  # it takes no mail, and cannot leave
    try:
        second = client.submit(pid, "again", pure=False)
        until(lambda: counts(lingering)[1] > mails)
    finally:
        os.kill(first, signal.SIGKILL)
    assert second.result(timeout=30) != first


def test_a_task_that_dies_and_came_by_mail_is_named(lingering, client):
    client.submit(pid, pure=False).result()
    _, mails = counts(lingering)
    with pytest.raises(KilledWorker, match="fatal"):
        client.submit(os._exit, 1, key="fatal").result(timeout=30)
    assert counts(lingering)[1] == mails + 1
    assert client.submit(pid, pure=False).result(timeout=30)


def test_restarting_ends_who_lingers(lingering, client):
    first = client.submit(pid, pure=False).result()
    client.restart()
    assert client.submit(pid, pure=False).result(timeout=30) != first


def test_a_task_with_more_memory_does_not_wait_for_who_lingers(lingering, client):
    """There is one place: who lingers there is sent away."""
    client.submit(pid, pure=False).result()
    with dask.annotate(memory="4 GiB"):
        large = client.submit(pid, pure=False)
    assert large.result(timeout=30)
    assert client.submit(pid, pure=False).result(timeout=30)


def both_there(directory, number):
    Path(directory, str(os.getpid())).touch()
    return until(lambda: len(os.listdir(directory)) > 1) and os.getpid()


def slow(number, root):
    threading.Event().wait(0.05)  # worth giving away
    return os.getpid()


def test_an_executor_that_delegates_sends_mail(tmp_path):
    """Two linger; one is given a graph that widens, and gives a share of it to the other."""
    with (
        dask.config.set({"serverless.executor.linger": "2 s"}),
        ServerlessCluster(n_workers=2, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        warm = [client.submit(both_there, tmp_path, number) for number in range(2)]
        both = set(client.gather(warm))
        assert len(both) == 2
        invocations, mails = counts(cluster)
        root = dask.delayed(pid)()
        found = client.compute(dask.delayed(list)([dask.delayed(slow)(number, root) for number in range(40)])).result()
        assert set(found) == both
        until(lambda: counts(cluster) == (invocations, mails + 2))
