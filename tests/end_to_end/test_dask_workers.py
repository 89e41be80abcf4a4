"""Ordinary Dask workers beside the fleet: who runs where, how values cross, and what happens when one dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time

import dask
import psutil
import pytest
from distributed import Client, Event, Nanny, get_worker, wait

from dask_serverless import ServerlessCluster
from tests.waiting import until

OPTIONS = {"n_workers": 2, "dashboard_address": None}
FLEET = "serverless"


@pytest.fixture(scope="module")
def cluster():
    with ServerlessCluster(**OPTIONS, dask_workers=2, dask_worker_options={"resources": {"GPU": 1}}) as cluster:
        yield cluster


def where():
    return get_worker().name


def is_executor(name):
    return name != FLEET and not str(name).startswith("dask-")


def pinned(client, function, *args, **kwargs):
    with dask.annotate(serverless=False):
        return client.submit(function, *args, pure=False, **kwargs)


def names_of(client):
    return sorted(each["name"] for each in client.scheduler_info(n_workers=-1)["workers"].values())


# --- where tasks run


def test_pinned_tasks_prefer_dask_workers_and_others_stay_with_executors(client):
    assert pinned(client, where).result(timeout=30).startswith("dask-")
    assert is_executor(client.submit(where, pure=False).result(timeout=30))


def test_many_pinned_tasks_are_spread_over_the_dask_workers(client):
    with dask.annotate(serverless=False):
        found = client.gather(client.map(lambda n: where(), range(40), pure=False))
    assert set(found) == {"dask-0", "dask-1"}


def test_by_name_of_the_worker(client):
    assert client.submit(where, workers=["dask-1"], pure=False).result(timeout=30) == "dask-1"
    assert client.submit(where, workers=[FLEET], pure=False).result(timeout=30) == FLEET
    loose = client.submit(where, workers=["nobody-has-this-name"], allow_other_workers=True, pure=False)
    assert loose.result(timeout=30) in ("dask-0", "dask-1", FLEET)


def test_by_host_the_fleet_worker_is_the_last_choice(client):
    assert client.submit(where, workers="127.0.0.1", pure=False).result(timeout=30).startswith("dask-")


def test_by_resource(client):
    futures = [client.submit(where, resources={"GPU": 1}, pure=False) for _ in range(4)]
    assert set(client.gather(futures)) <= {"dask-0", "dask-1"}


def test_a_resource_that_nobody_declares_is_waited_for(cluster, client):
    future = client.submit(where, resources={"unobtainium": 1}, pure=False)
    assert pinned(client, where).result(timeout=30)
    assert future.status == "pending"
    assert cluster.scheduler.tasks[future.key].state == "no-worker"
    client.cancel(future)


def test_dataframes_and_arrays_with_a_pinned_layer(client):
    da = pytest.importorskip("dask.array")
    with dask.annotate(serverless=False):
        first = da.ones((8, 8), chunks=4).map_blocks(lambda block: block + 1)
    assert (first * 2).sum().compute(optimize_graph=False) == 256


# --- values cross


def test_values_cross_both_ways(client):
    there = client.submit(list, range(5))  # made by an executor
    beside = pinned(client, lambda values: (where(), sum(values)), there)
    back = client.submit(lambda named: (where(), named), beside)
    executor, (name, total) = back.result(timeout=30)
    assert is_executor(executor) and name.startswith("dask-") and total == 10


def test_large_values_cross_both_ways(client):
    np = pytest.importorskip("numpy")
    there = client.submit(np.ones, 2_000_000)
    beside = pinned(client, lambda array: array * 2, there)
    back = client.submit(lambda array: (float(array.sum()), array.flags.writeable), beside)
    assert back.result(timeout=30) == (4_000_000.0, True)


def test_in_one_graph(client):
    inc = dask.delayed(lambda n: n + 1)
    with dask.annotate(serverless=False):
        beside = [inc(n) for n in range(4)]
    total = dask.delayed(sum)([inc(each) for each in beside])
    with dask.annotate(serverless=False):
        last = inc(total)
    assert last.compute(optimize_graph=False) == 15


def test_scattered_values_reach_executors_and_dask_workers(client):
    data = client.scatter({"x": 1}, broadcast=True)
    (spread,) = client.scatter([[1, 2, 3]])
    assert client.submit(lambda data, spread: data["x"] + sum(spread), data, spread).result(timeout=30) == 7
    assert pinned(client, lambda data, spread: data["x"] + sum(spread), data, spread).result(timeout=30) == 7


def test_classes_that_only_the_worker_can_make_pass_unopened(client):
    def make():
        class Local:
            value = 42

        return Local()

    assert client.submit(lambda each: each.value, pinned(client, make)).result(timeout=30) == 42


def test_errors_of_pinned_tasks_reach_the_tasks_after_them(client):
    def fail():
        raise KeyError("on a Dask worker")

    with pytest.raises(KeyError, match="on a Dask worker"):
        client.submit(lambda n: n, pinned(client, fail)).result(timeout=30)


def test_what_cannot_be_pickled_is_said_and_does_not_hang(client):
    import threading

    future = pinned(client, threading.Lock)
    wait(future, timeout=30)
    with pytest.raises(Exception, match="pickle"):
        client.submit(lambda lock: 1, future).result(timeout=30)


def test_tasks_on_dask_workers_may_be_clients(client):
    from distributed import get_client, worker_client

    def work():
        with worker_client() as client:
            return client.submit(where, pure=False).result()

    assert is_executor(pinned(client, work).result(timeout=30))
    assert pinned(client, lambda: get_client().scheduler.address).result(timeout=30) == client.scheduler.address


# --- the cluster says what it has


def test_the_cluster_knows_them(cluster, client):
    assert names_of(client) == ["dask-0", "dask-1", FLEET]
    assert set(cluster.workers) == {"dask-0", "dask-1", FLEET}
    assert isinstance(cluster.workers["dask-0"], Nanny)
    assert cluster.worker_spec["dask-0"] == {"cls": Nanny, "options": {"resources": {"GPU": 1}}}
    assert cluster.plan == cluster.requested == cluster.observed == {"dask-0", "dask-1", FLEET}
    client.wait_for_workers(4, timeout=10)
    cluster.wait_for_workers(4, timeout=10)
    assert "Dask workers" in cluster._repr_html_() and "Dask workers: 2" in cluster._scaling_status()
    assert len(cluster.get_logs()) >= 5
    assert set(client.run(lambda: 1).values()) == {1} and len(client.run(lambda: 1)) == 3


# --- they come and go


def processes():
    """Return the processes we have, but for the one that `multiprocessing` keeps until the end."""
    found = []
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended just now
            if each.status() != "zombie" and "multiprocessing.resource_tracker" not in " ".join(each.cmdline()):
                found.append(each)
    return found


def test_scaling_up_and_down_moves_what_they_hold():
    before = {each.pid for each in processes()}
    with ServerlessCluster(**OPTIONS) as cluster, Client(cluster) as client:
        assert pinned(client, where).result(timeout=30) == FLEET  # without any, the fleet worker does it
        assert cluster.scale(dask_workers=2) is None
        assert cluster.ceiling == 2
        client.wait_for_workers(4, timeout=60)
        futures = [client.submit(lambda n: n * 10, n, workers=["dask-0", "dask-1"], pure=False) for n in range(8)]
        wait(futures, timeout=30)
        cluster.scale(dask_workers=1)
        until(lambda: names_of(client) == ["dask-0", FLEET])
        assert client.gather(futures) == [n * 10 for n in range(8)]
        cluster.scale(3)  # the ceiling alone
        assert pinned(client, where).result(timeout=30) == "dask-0"
        cluster.scale(0, dask_workers=0)
        until(lambda: names_of(client) == [FLEET])
        assert client.gather(futures) == [n * 10 for n in range(8)]
        assert cluster.ceiling == 0
    until(lambda: {each.pid for each in processes()} <= before)


def test_who_asks_last_decides():
    with ServerlessCluster(**OPTIONS) as cluster, Client(cluster) as client:
        for count in (2, 0, 1):
            cluster.scale(dask_workers=count)
        until(lambda: names_of(client) == ["dask-0", FLEET])


def test_closing_while_they_start_leaves_nothing():
    before = {each.pid for each in processes()}
    cluster = ServerlessCluster(**OPTIONS)
    cluster.scale(dask_workers=2)
    until(lambda: len(cluster.workers) == 3)  # made, and not ready
    cluster.close()
    until(lambda: {each.pid for each in processes()} <= before)


async def test_scaling_before_the_start():
    cluster = ServerlessCluster(**OPTIONS, asynchronous=True)
    cluster.scale(5, dask_workers=1)
    async with cluster:
        await cluster.wait_for_workers(6, timeout=60)
        assert cluster.scheduler_info["workers"].keys() == cluster.scheduler.workers.keys()
        while cluster.scheduler.total_nthreads != 6:
            await asyncio.sleep(0.02)


def test_the_environment_of_tasks_is_theirs_too():
    options = {"env": {"MINE": "1"}}
    with ServerlessCluster(
        **OPTIONS, environment={"OURS": "2"}, dask_workers=1, dask_worker_options=options
    ) as cluster:
        with Client(cluster) as client:
            found = pinned(client, lambda: (os.environ.get("MINE"), os.environ.get("OURS")))
            assert found.result(timeout=30) == ("1", "2")


def test_a_killed_worker_comes_back_and_what_it_held_is_made_again():
    with ServerlessCluster(**OPTIONS, dask_workers=1) as cluster, Client(cluster) as client:
        pid = pinned(client, os.getpid).result(timeout=30)
        made = pinned(client, lambda: time.time())
        first = made.result(timeout=30)
        os.kill(pid, signal.SIGKILL)
        assert client.submit(lambda value: value, made).result(timeout=60) >= first
        until(lambda: names_of(client) == ["dask-0", FLEET])
        assert pinned(client, os.getpid).result(timeout=30) != pid


def test_a_worker_that_dies_while_executors_wait_for_what_it_makes():
    with ServerlessCluster(**OPTIONS, dask_workers=1) as cluster, Client(cluster) as client:
        pid = pinned(client, os.getpid).result(timeout=30)

        def slow():
            Event("go on").wait(30)
            return 7

        made = client.submit(slow, workers=["dask-0"], allow_other_workers=True, pure=False)
        used = client.submit(lambda value: value + 1, made)
        until(lambda: getattr(cluster.scheduler.tasks.get(made.key), "state", None) == "processing")
        os.kill(pid, signal.SIGKILL)
        Event("go on").set()
        assert used.result(timeout=60) == 8


def test_restarting_restarts_them():
    with ServerlessCluster(**OPTIONS, dask_workers=1) as cluster, Client(cluster) as client:
        pid = pinned(client, os.getpid).result(timeout=30)
        client.restart()
        assert pinned(client, os.getpid).result(timeout=60) != pid
        assert client.submit(sum, [1, 2]).result(timeout=30) == 3


def test_one_that_a_client_retires_does_not_come_back_by_itself():
    with ServerlessCluster(**OPTIONS, dask_workers=1) as cluster, Client(cluster) as client:
        (address,) = [
            address
            for address, each in client.scheduler_info(n_workers=-1)["workers"].items()
            if each["name"] == "dask-0"
        ]
        client.retire_workers([address])
        until(lambda: names_of(client) == [FLEET] and set(cluster.workers) == {FLEET})
        assert pinned(client, where).result(timeout=30) == FLEET
        cluster.scale(dask_workers=1)
        until(lambda: names_of(client) == ["dask-0", FLEET])


def test_dask_does_not_choose_the_fleet_worker_when_workers_shall_go():
    with ServerlessCluster(**OPTIONS, dask_workers=1) as cluster, Client(cluster):
        assert cluster.scheduler.workers_to_close(n=2, attribute="name") == ["dask-0"]


def test_resources_without_dask_workers_are_the_fleet_workers():
    with ServerlessCluster(**OPTIONS, resources={"GPU": 1}) as cluster, Client(cluster) as client:
        assert client.submit(where, resources={"GPU": 1}).result(timeout=30) == FLEET
        cluster.scale(dask_workers=1)
        client.wait_for_workers(3, timeout=60)
        assert client.submit(where, resources={"GPU": 1}, pure=False).result(timeout=30) == "dask-0"


def test_a_worker_that_cannot_start_fails_the_start_and_leaves_nothing(tmp_path):
    before = {each.pid for each in processes()}
    broken = {"preload": ["no_such_module_anywhere"]}
    with pytest.raises(RuntimeError, match="Cluster failed to start"):
        ServerlessCluster(**OPTIONS, dask_workers=1, dask_worker_options=broken)
    until(lambda: {each.pid for each in processes()} <= before)


async def test_asynchronously():
    async with ServerlessCluster(**OPTIONS, asynchronous=True, dask_workers=1) as cluster:
        async with Client(cluster, asynchronous=True) as client:
            assert await pinned(client, where) == "dask-0"
            await cluster.scale(dask_workers=0)
            await cluster.scale(1)
            assert cluster.ceiling == 1


def test_from_the_configuration():
    with dask.config.set({"serverless.dask-workers": {"count": 1, "threads": 3, "memory": "512 MiB"}}):
        with ServerlessCluster(**OPTIONS) as cluster, Client(cluster) as client:
            (info,) = [
                each for each in client.scheduler_info(n_workers=-1)["workers"].values() if each["name"] == "dask-0"
            ]
            assert (info["nthreads"], info["memory_limit"]) == (3, 512 * 2**20)
            assert pinned(client, where).result(timeout=30) == "dask-0"
            assert set(cluster.workers) == {FLEET, "dask-0"}


def test_inside_this_process_only():
    with ServerlessCluster(**OPTIONS, protocol="inproc", dask_workers=1) as cluster, Client(cluster) as client:
        assert cluster.scheduler_address.startswith("inproc://")
        there = client.submit(list, range(3))
        beside = pinned(client, lambda values: (where(), sum(values)), there)
        assert client.submit(lambda pair: pair, beside).result(timeout=30) == ("dask-0", 3)

        def nested():
            from distributed import worker_client

            with worker_client() as client:
                return client.submit(abs, -5).result()

        assert client.submit(nested).result(timeout=30) == 5
