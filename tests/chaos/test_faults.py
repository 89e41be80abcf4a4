"""One thing goes wrong with a real cluster, from outside: computations end right, or with an error that says why."""

from __future__ import annotations

import contextlib
import threading
import time

import dask
import numpy as np
import pytest
from dask import delayed
from distributed import Client, wait

from lambda_worker.core.errors import CredentialsRefused, StoreUnavailable
from tests.chaos.fault_proxy import DIRECTIONS
from tests.chaos.harness import SIDES, ChaosCluster
from tests.chaos.lambda_proxy import EXPIRED
from tests.chaos.workloads import agree, answer, svd, tree
from tests.waiting import until

SECONDS_MAX = 90.0
#: Short, so that who would be taken for dead is.
LEASE_SECONDS = 2.0
LEAVES, TASKS = 32, 63


@pytest.fixture(scope="module")
def module_cluster():
    options = {
        "serverless.executor.lease": LEASE_SECONDS,
        "serverless.policy.cache": False,  # what is read is read from the store
        "serverless.policy.compress": False,  # and is as large there as it is
        "serverless.executor.linger": "0 ms",  # every job is begun by an invocation
    }
    with dask.config.set(options), ChaosCluster(n_workers=3, dashboard_address=None) as cluster:
        yield cluster


@pytest.fixture
def cluster(module_cluster):
    yield module_cluster
    module_cluster.chaos.heal()


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        yield client


numbers = iter(range(1_000_000))


def large(number, *values):
    return np.full(50_000, number + sum(float(value[0]) for value in values))


def first(*values):
    return sum(float(value[0]) for value in values)


def fresh():
    """Return a tree reduction that nobody has computed."""
    return tree(1_000 * next(numbers), LEAVES)


def begun(cluster, before):
    until(lambda: cluster.stats()["tasks_run"] > before, "it goes on", SECONDS_MAX)


def lost(cluster):
    return cluster.stats()["executors_lost"]


def lines(cluster, sides=SIDES, server="shard-0"):
    return [cluster.chaos.lines[side, server] for side in sides]


@contextlib.contextmanager
def healed_after(cluster, seconds):
    timer = threading.Timer(seconds, cluster.chaos.heal)
    timer.start()
    yield
    timer.join()


# -- Lambda -------------------------------------------------------------------------------------


@pytest.mark.fault(9)
@pytest.mark.parametrize("chance, seconds", [(0.5, 3.0), (1.0, 3.0)], ids=["half of them", "all, for a while"])
def test_invocations_are_refused_and_no_task_is_blamed(cluster, client, chance, seconds):
    before = lost(cluster)
    cluster.chaos.lambdas.chances["throttled"] = chance
    x = fresh()
    with healed_after(cluster, seconds):
        agree(client.compute(x).result(timeout=SECONDS_MAX), answer(x))
    assert cluster.chaos.lambdas.happened["throttled"]
    assert lost(cluster) == before


@pytest.mark.fault(44)
def test_ended_credentials_fail_what_is_asked_for_by_name_until_there_are_new_ones(cluster, client):
    cluster.chaos.lambdas.chances[EXPIRED] = 1.0
    with pytest.raises(CredentialsRefused, match="Renew them"):
        client.compute(fresh()).result(timeout=SECONDS_MAX)
    assert 2 <= cluster.chaos.lambdas.happened[EXPIRED] <= 2 * 3, "nobody goes on asking"
    cluster.chaos.heal()
    x = fresh()
    agree(client.compute(x).result(timeout=SECONDS_MAX), answer(x))


@pytest.mark.fault(10)
@pytest.mark.parametrize("fault", ["broken", "failed"])
def test_nobody_knows_whether_an_invocation_was_accepted(cluster, client, fault):
    """It is made once more, and whichever comes second finds that out."""
    happened = cluster.chaos.lambdas.happened[fault]
    cluster.chaos.lambdas.chances[fault] = 1.0
    x = fresh()
    with healed_after(cluster, 1.5):
        agree(client.compute(x).result(timeout=SECONDS_MAX), answer(x))
    assert cluster.chaos.lambdas.happened[fault] > happened


@pytest.mark.fault(6)
def test_every_invocation_comes_twice(cluster, client):
    cluster.chaos.lambdas.chances["doubled"] = 1.0
    before = cluster.stats()["tasks_run"]
    for _ in range(3):
        x = fresh()
        agree(client.compute(x).result(timeout=SECONDS_MAX), answer(x))
    until(lambda: cluster.stats()["tasks_run"] >= before + 3 * TASKS, "all is counted")
    assert cluster.stats()["tasks_run"] == before + 3 * TASKS, "who came second ran nothing"


@pytest.mark.fault(7)
def test_invocations_come_late_and_in_another_order(cluster, client):
    cluster.chaos.lambdas.chances["late"] = 0.7
    for _ in range(3):
        x = fresh()
        agree(client.compute(x).result(timeout=SECONDS_MAX), answer(x))
    assert cluster.chaos.lambdas.happened["late"]


# -- the way to the storage tier ----------------------------------------------------------------


@pytest.mark.fault(28)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("side", SIDES)
def test_a_partition(cluster, client, side, direction):
    """Longer than a lease: executors are taken for dead, or end, and others go on."""
    x = fresh()
    before = cluster.stats()["tasks_run"]
    future = client.compute(x)
    if side == "executors":
        until(lambda: cluster.stats()["invocations"], "it has begun")
    for server in ("metadata", "shard-0"):
        cluster.chaos.lines[side, server].silence(direction)
    with healed_after(cluster, 2 * LEASE_SECONDS):
        agree(future.result(timeout=SECONDS_MAX), answer(x))
    begun(cluster, before)


@pytest.mark.fault(28)
def test_a_partition_that_lasts_longer_than_the_cluster_is_patient():
    """It would otherwise wait for ever: then all work fails by name, in bounded time."""
    with (
        dask.config.set({"serverless.storage.patience": "1 s"}),
        ChaosCluster(n_workers=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        assert cluster.chaos.backend.store.config.retry_seconds == 1.0
        x = fresh()
        cluster.chaos.lines["cluster", "metadata"].silence(*DIRECTIONS)
        with pytest.raises(StoreUnavailable, match="the metadata server at .* cannot be reached"):
            client.compute(x).result(timeout=SECONDS_MAX)


@pytest.mark.fault(29)
def test_a_slow_link_makes_nobody_look_dead(cluster, client):
    """100 ms and 1 MB/s: what is written and read takes longer than a lease lasts."""
    before = lost(cluster)
    for server in ("metadata", "shard-0"):
        for line in lines(cluster, server=server):
            line.delay_seconds, line.bytes_per_second = 0.1, 1e6
    values = [delayed(large)(n, pure=False) for n in range(6)]
    assert client.compute(delayed(first)(*values)).result(timeout=SECONDS_MAX) == sum(range(6))
    assert lost(cluster) == before


@pytest.mark.fault(31)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_bits_change_on_the_way(cluster, client, direction):
    spoiled = [line.spoiled for line in lines(cluster)]
    for x in (fresh(), svd(next(numbers))):
        for line in lines(cluster):
            line.spoil[direction] = 3
        agree(client.compute(x).result(timeout=SECONDS_MAX), answer(x))
    assert [line.spoiled for line in lines(cluster)] != spoiled


# -- storage servers ----------------------------------------------------------------------------


@contextlib.contextmanager
def configured(cluster, name, **settings):
    server = cluster.server(name)
    before = {key.replace("_", "-"): server.config_get(key.replace("_", "-")) for key in settings}
    for key, value in settings.items():
        server.config_set(key.replace("_", "-"), value)
    try:
        yield server
    finally:
        for values in before.values():
            for key, value in values.items():
                server.config_set(key, value)


@pytest.mark.fault(20)
def test_what_finds_no_room_on_a_server_goes_to_the_overflow_and_afterwards_all_is_well(cluster, client):
    with configured(cluster, "shard-0", maxmemory="20mb"):
        values = [client.submit(large, n, pure=False, key=f"large-{n}-{next(numbers)}") for n in range(100)]
        wait(values, timeout=SECONDS_MAX)
        assert {future.status for future in values} == {"finished"}
        assert cluster.stats()["objects_overflowed"] > 0
        assert client.submit(first, *values, pure=False).result(timeout=SECONDS_MAX) == sum(range(100))
        del values
    x = fresh()
    agree(client.compute(x).result(timeout=SECONDS_MAX), answer(x))


@pytest.mark.fault(21)
def test_a_server_that_evicts_loses_values_that_are_made_again(cluster, client):
    values = [client.submit(large, n, pure=False) for n in range(40)]
    wait(values, timeout=SECONDS_MAX)
    with configured(cluster, "shard-0", maxmemory_policy="allkeys-random", maxmemory="8mb") as server:
        until(lambda: server.info("stats")["evicted_keys"], "something was thrown away")
    assert client.submit(first, *values, pure=False).result(timeout=SECONDS_MAX) == sum(range(40))
    assert cluster.stats()["results_lost"] > 0


@pytest.mark.fault(45)
@pytest.mark.parametrize("server", ["metadata", "shard-0"])
def test_too_few_connections_for_a_while(cluster, client, server):
    """Those that there are go on; who wants another one waits, or ends and is tried again."""
    x = fresh()
    before = cluster.stats()["tasks_run"]
    future = client.compute(x)
    with configured(cluster, server) as admin:
        victims = [client["id"] for client in admin.client_list() if int(client["id"]) != admin.client_id()]
        others = [cluster.server(server) for _ in range(19)]
        for other in others:
            other.ping()
        with configured(cluster, server, maxclients=20):
            for victim in victims:
                admin.client_kill_filter(_id=victim)
            until(lambda: admin.info("stats")["rejected_connections"], "somebody was refused")
        for other in others:
            other.close()
    agree(future.result(timeout=SECONDS_MAX), answer(x))
    begun(cluster, before)


# -- clocks -------------------------------------------------------------------------------------


@pytest.mark.fault(30)
def test_sandboxes_with_other_clocks():
    """An hour early, or late: leases go by the store's clock, and what is written does not expire by theirs."""
    preload = [*dask.config.get("serverless.lambda.preload"), "tests.chaos.skewed_clock"]
    options = {"serverless.lambda.preload": preload, "serverless.executor.lease": LEASE_SECONDS}
    with (
        dask.config.set(options),
        ChaosCluster(n_workers=3, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        x = fresh()
        agree(client.compute(x).result(timeout=SECONDS_MAX), answer(x))
        told = client.gather(client.map(lambda n: time.sleep(1.25 * LEASE_SECONDS) or time.time(), range(3)))
        assert any(abs(each - time.time()) > 1800 for each in told), "one of three neighbours is skewed"
        assert cluster.stats()["executors_lost"] == 0
