"""The two clusters that every program runs on, and the rule that nothing of them is left behind."""

from __future__ import annotations

import concurrent.futures.thread
import faulthandler
import multiprocessing
import sys
import threading

import pytest
from distributed import LocalCluster

from dask_serverless import ServerlessCluster
from tests.waiting import until


def what_stays():
    """Return what keeps an interpreter from ending: threads and child processes that it waits for."""
    threads = [each for each in threading.enumerate() if not each.daemon and each is not threading.main_thread()]
    children = [each for each in multiprocessing.active_children() if not each.daemon]
    return [each for each in threads if not is_idle_in_a_pool(each)] + children


def is_idle_in_a_pool(thread):
    """Return whether a thread waits for work of a pool: an interpreter that ends wakes it, and it goes."""
    frame = sys._current_frames().get(thread.ident)
    return frame is not None and frame.f_code is concurrent.futures.thread._worker.__code__


def pytest_sessionfinish(session):
    """Say what would hang at exit, and where it is, instead of hanging."""
    try:
        until(lambda: not what_stays(), "all threads and processes end")
    except AssertionError as error:
        faulthandler.dump_traceback(all_threads=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.get_terminal_writer().line(f"\n{error}: {what_stays()}", red=True)


def local_cluster():
    return LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)


def serverless_cluster():
    return ServerlessCluster(n_workers=2, dashboard_address=None)


@pytest.fixture(scope="session")
def theirs():
    with local_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def ours():
    with serverless_cluster() as cluster:
        yield cluster


@pytest.fixture
def clusters(request):
    """The clusters that everybody uses, as (ours, theirs), or new ones for a program that hurts them."""
    program = request.node.callspec.params["program"]
    if not program.own_cluster:
        yield request.getfixturevalue("ours"), request.getfixturevalue("theirs")
        return
    with local_cluster() as theirs, serverless_cluster() as ours:
        yield ours, theirs
