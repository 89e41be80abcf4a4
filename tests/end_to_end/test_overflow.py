"""More than the storage tier holds, and what outlives it: values go to a disk instead of being refused or lost."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import redis
from distributed import Client, wait
from distributed.shuffle._exceptions import P2POutOfDiskError

from dask_serverless import ServerlessCluster
from dask_serverless.errors import StoreFull
from tests.waiting import until

SECONDS_MAX = 60.0
MIB = 2**20


@pytest.fixture(autouse=True)
def values_take_the_room_that_they_take():
    """Where the way to the store is found to be slow, arrays of one number would become nothing."""
    with dask.config.set({"serverless.policy.compress": False}):
        yield


def make(**options):
    return ServerlessCluster(n_workers=2, dashboard_address=None, **options)


def large(number):
    return np.full(250_000, float(number))


def first(*values):
    return sum(float(value[0]) for value in values)


def noted_random(path):
    with open(path, "a") as file:
        file.write("x")
    return np.random.default_rng().random(250_000)  # which nothing makes smaller, however slow the machine is


def kill_the_shard(cluster):
    before = cluster.stats()["shards_lost"]
    os.kill(cluster._local.tier.pids["shard-0"], signal.SIGKILL)
    until(lambda: cluster.stats()["shards_lost"] > before, "the cluster has noticed")


@pytest.mark.fault(20)
def test_an_array_that_is_larger_than_the_storage_tier():
    with make(storage_max_memory="16 MiB") as cluster, Client(cluster) as client:
        x = da.random.default_rng(1).random((2_500, 2_000), chunks=(500, 500))  # 40 MB
        expected = (x @ x.T).sum(axis=0).compute(scheduler="threads")
        held = x.persist()
        wait(held, timeout=SECONDS_MAX)
        assert {future.status for future in client.futures_of(held)} == {"finished"}
        assert cluster.stats()["objects_overflowed"] > 0 and cluster.stats()["overflow_bytes"] > 16 * MIB
        np.testing.assert_allclose(client.compute((held @ held.T).sum(axis=0)).result(SECONDS_MAX), expected)
        assert cluster.stats()["executors_lost"] == 0
        del held
        until(lambda: not cluster.stats()["overflow_bytes"], "what nobody holds is removed")


ROWS = 2**17


def part(number):
    """Rows that take 3 MiB, whose keys all partitions have."""
    rng = np.random.default_rng(number)
    return pd.DataFrame({"key": rng.permutation(ROWS), "from": number, "value": rng.random(ROWS)})


def check(part):
    keys = part.groupby("key")["from"]
    said = {"rows": [len(part)], "keys": [keys.ngroups], "whole": [bool((keys.sum() == sum(range(16))).all())]}
    return pd.DataFrame(said | {"value": [part.value.sum()]})


def shuffled():
    frames = dd.from_map(part, range(16), meta=part(0).iloc[:0])  # 48 MiB
    meta = check(part(0)).iloc[:0]
    return frames.shuffle("key", npartitions=8, shuffle_method="p2p").map_partitions(check, meta=meta)


@pytest.mark.fault(20)
def test_a_shuffle_that_is_larger_than_the_storage_tier():
    with make(storage_max_memory="16 MiB") as cluster, Client(cluster) as client:
        found = client.compute(shuffled(), sync=True)
        assert found.rows.sum() == 16 * ROWS and found["keys"].sum() == ROWS and found.whole.all()
        np.testing.assert_allclose(found.value.sum(), sum(part(number).value.sum() for number in range(16)))
        stats = cluster.stats()
        assert 0 < stats["slices_overflowed"] < stats["slices_written"]
        assert not stats["executors_lost"] and not stats.get("tasks_remade")
        until(lambda: not cluster.stats()["overflow_bytes"], "what it moved is removed")


@pytest.mark.fault(20)
@pytest.mark.parametrize(
    "overflow, said",
    [
        ({"overflow": False}, r"limit: 16,777,216 bytes\).*storage_max_memory=.*serverless\.storage\.overflow\)"),
        ({"overflow-max": "8 MiB"}, r"overflow is full: .* of 8,388,608 bytes.*serverless\.storage\.overflow-max"),
    ],
    ids=["off", "full"],
)
def test_a_shuffle_without_room_names_task_and_limit_and_says_what_to_do(overflow, said):
    options = {f"serverless.storage.{name}": value for name, value in overflow.items()}
    with dask.config.set(options), make(storage_max_memory="16 MiB") as cluster, Client(cluster) as client:
        with pytest.raises(
            P2POutOfDiskError, match=rf"^task .*shuffle-transfer.*: P2P .*no room for .*{said}"
        ) as error:
            client.compute(shuffled(), sync=True)
        assert isinstance(error.value, StoreFull)
        until(lambda: client.submit(sum, [1, 2], pure=False).result(SECONDS_MAX) == 3, "others go on")


@pytest.mark.fault(17, 20, 23)
def test_slices_that_the_overflow_loses_are_made_again(tmp_path):
    options = {"serverless.storage.overflow-directory": str(tmp_path)}
    with dask.config.set(options), make(storage_max_memory="16 MiB") as cluster, Client(cluster) as client:
        lost = tmp_path / "lost"

        def lose(values):
            """After the first unpack."""
            if not lost.exists():
                for path in tmp_path.glob("*/overflow/values/*/=shuffle*"):
                    path.unlink()
                lost.touch()
            return values

        meta = check(part(0)).iloc[:0]
        found = client.compute(shuffled().map_partitions(lose, meta=meta), sync=True)
        assert found.rows.sum() == 16 * ROWS and found.whole.all()
        assert lost.exists() and cluster.stats().get("tasks_remade", 0) > 0


@pytest.mark.fault(20, 46)
def test_when_the_overflow_is_full_too_the_task_is_named_and_others_go_on(tmp_path):
    options = {"serverless.storage.overflow-max": "8 MiB", "serverless.storage.overflow-directory": str(tmp_path)}
    with dask.config.set(options), make(storage_max_memory="16 MiB") as cluster, Client(cluster) as client:
        values = [client.submit(large, n, key=f"large-{n}") for n in range(30)]
        wait(values, timeout=SECONDS_MAX)
        errors = {future.key: future.exception() for future in values if future.status == "error"}
        assert errors and all(isinstance(error, StoreFull) for error in errors.values())
        (place,) = tmp_path.iterdir()
        for key, error in errors.items():
            said = str(error)
            assert f"'{key}'" in said and f"{place}/overflow is full" in said and "of 8,388,608 bytes" in said, said
            assert "overflow-max" in said
        fine = [future for future in values if future.status == "finished"]
        assert len(fine) > 5
        assert client.submit(first, *fine).result(SECONDS_MAX) == sum(int(each.key[6:]) for each in fine)
        del values, fine
        until(lambda: not cluster.stats()["overflow_bytes"], "there is room again")
        assert client.submit(first, *[client.submit(large, n) for n in range(8)]).result(SECONDS_MAX) == 28
    assert not list(tmp_path.iterdir()), "nothing is left"


@pytest.mark.fault(20)
def test_without_an_overflow_a_full_tier_is_an_error_that_says_so():
    with (
        dask.config.set({"serverless.storage.overflow": False}),
        make(storage_max_memory="16 MiB") as cluster,
        Client(cluster) as client,
    ):
        values = [client.submit(large, n, key=f"large-{n}") for n in range(20)]
        wait(values, timeout=SECONDS_MAX)
        error = next(future.exception() for future in values if future.status == "error")
        assert isinstance(error, StoreFull) and "'large-" in str(error)
        assert "storage_max_memory=" in str(error) and "serverless.storage.overflow" in str(error)
        assert client.submit(sum, [1, 2]).result(SECONDS_MAX) == 3


@contextmanager
def full_of_small_values(go_on, **options):
    """A wide fan-out of which every small value waits at a fan-in, until a file is there; more than there is room."""

    def small(number):
        return os.urandom(50_000)

    def last():
        until(go_on.exists)

    def length(value, last):
        return len(value)

    with (
        dask.config.set({"serverless.storage.metadata-max-memory": "8 MiB"}),
        make(**options) as cluster,
        Client(cluster) as client,
    ):
        end = dask.delayed(last)(dask_key_name="last-of-all")
        values = [dask.delayed(small)(number, dask_key_name=f"small-{number}") for number in range(800)]  # 40 MB
        lengths = [dask.delayed(length)(value, end, dask_key_name=f"length-{n}") for n, value in enumerate(values)]
        yield cluster, client, client.compute(dask.delayed(sum)(lengths))


@pytest.mark.fault(20)
def test_a_wide_fan_out_of_more_small_values_than_the_metadata_server_holds(tmp_path):
    with full_of_small_values(tmp_path / "go on") as (cluster, client, total):
        # Those that find no room at fan-ins.
        until(lambda: cluster.stats()["objects_written"] > 50, "they are stored like large ones", SECONDS_MAX)
        (tmp_path / "go on").touch()
        assert total.result(SECONDS_MAX) == 800 * 50_000
        assert not cluster.stats()["executors_lost"]
        del total
        assert client.submit(sum, [1, 2]).result(SECONDS_MAX) == 3


@pytest.mark.fault(20)
def test_a_metadata_server_without_any_room_names_the_task_and_what_to_raise(tmp_path):
    with full_of_small_values(tmp_path / "go on") as (cluster, client, total):
        until(lambda: cluster.stats()["objects_written"] > 50, "fan-ins take no more values", SECONDS_MAX)
        config = cluster._proxy.backend.store_config
        server = redis.Redis.from_url(config.metadata, password=config.password)
        server.config_set("maxmemory", 0)
        server.setrange("stuffing", 100 * MIB, b"x")
        server.config_set("maxmemory", 8 * MIB)
        (tmp_path / "go on").touch()
        with pytest.raises(
            StoreFull, match=r"task '(small|last)-.* cannot reach .*metadata server.* full.*metadata-max"
        ):
            total.result(SECONDS_MAX)
        with pytest.raises(StoreFull, match=r"^task 'another' cannot be begun: .* full.*metadata-max-memory"):
            client.submit(sum, [1, 2], key="another").result(SECONDS_MAX)
        assert not cluster.stats()["executors_lost"]
        server.delete("stuffing")
        until(lambda: server.info("memory")["used_memory"] < 6 * MIB, "what has failed is cleaned up")
        assert client.submit(sum, [1, 2]).result(SECONDS_MAX) == 3, "others go on"


@pytest.mark.fault(35)
def test_a_value_above_the_limit_of_one_goes_to_the_overflow():
    with (
        dask.config.set({"serverless.storage.object-bytes-max": "1 MiB"}),
        make() as cluster,
        Client(cluster) as client,
    ):
        value = client.submit(large, 3)
        assert client.submit(first, value).result(SECONDS_MAX) == 3
        assert value.result(SECONDS_MAX)[-1] == 3
        assert cluster.stats()["objects_overflowed"] == 1


@pytest.mark.fault(24)
def test_published_results_outlive_their_shard_and_are_not_made_again(tmp_path):
    """Those that were there when they were published, and those that came later."""
    with dask.config.set({"serverless.policy.cache": False}), make() as cluster, Client(cluster) as client:
        early, plain = (client.submit(noted_random, str(tmp_path / name), key=name) for name in ("early", "plain"))
        wait([early, plain], timeout=SECONDS_MAX)
        late = client.submit(noted_random, str(tmp_path / "late"), key="late")
        client.publish_dataset(results=[early, late])
        before = [float(future.result(SECONDS_MAX)[0]) for future in (early, late)]
        until(lambda: cluster.stats()["overflow_bytes"] > 4_000_000, "both are copied")
        del early, late
        kill_the_shard(cluster)
        until(lambda: cluster.stats()["results_lost"] == 1, "what was not published is lost")
        found = client.get_dataset("results")
        assert [client.submit(first, each).result(SECONDS_MAX) for each in found] == before
        assert [float(each.result(SECONDS_MAX)[0]) for each in found] == before
        plain.result(SECONDS_MAX)
        ran = {path.name: path.read_text() for path in tmp_path.iterdir()}
        assert ran == {"early": "x", "late": "x", "plain": "xx"}
        client.unpublish_dataset("results")
        del found
        until(lambda: not cluster.stats()["overflow_bytes"], "nobody needs the copies any more")


@pytest.mark.fault(17, 24)
def test_scattered_data_outlives_a_shard(tmp_path):
    """In a persistent cluster it is in the overflow; executors read it there, before and after."""
    options = {"serverless.persistent.directory": str(tmp_path), "serverless.policy.cache": False}
    with dask.config.set(options), make(name="night", persistent=True) as cluster, Client(cluster) as client:
        data = client.scatter(large(7))
        assert cluster.stats()["overflow_bytes"] > 2_000_000  # when `scatter` returns
        assert client.submit(first, data, pure=False).result(SECONDS_MAX) == 7
        kill_the_shard(cluster)
        assert client.submit(first, data, pure=False).result(SECONDS_MAX) == 7
        assert cluster.stats()["results_lost"] == 0
        for number in (1, 2):
            client.scatter({"named": large(number)})
            until(lambda: "named" not in cluster.scheduler.tasks, "nobody has it")  # else the first value stays
        named = client.submit(first, client.scatter({"named": large(3)})["named"])
        assert named.result(SECONDS_MAX) == 3  # the last value under a name
        del data, named
        until(lambda: not cluster.stats()["overflow_bytes"], "it is removed")


def spoil(cluster):
    """Cut off what is in the overflow."""
    place = Path(urlsplit(cluster._proxy.backend.store_config.overflow).path)
    files = [path for path in (place / "values").rglob("*") if path.is_file()]
    assert files
    for path in files:
        os.truncate(path, 100)


@pytest.mark.fault(24)
def test_a_spoiled_copy_of_scattered_data_does_not_cost_the_data(tmp_path):
    """It is where it was: in this process, or in a Dask worker."""
    options = {"serverless.persistent.directory": str(tmp_path)}
    with (
        dask.config.set(options),
        make(name="night", persistent=True, dask_workers=1) as cluster,
        Client(cluster) as client,
    ):
        proxy = cluster._proxy
        here = client.scatter({"here": large(7)}, workers=["serverless"])["here"]
        there = client.scatter({"there": large(8)}, workers=["dask-0"])["there"]
        assert "here" in proxy.fleet.data and "there" not in proxy.fleet.data
        assert proxy.location("here") and proxy.location("there")
        spoil(cluster)
        assert here.result(SECONDS_MAX)[0] == 7 and there.result(SECONDS_MAX)[0] == 8
        assert here.result(SECONDS_MAX)[0] == 7, "and again"
