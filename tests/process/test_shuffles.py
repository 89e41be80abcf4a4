"""An executor's part in shuffles, on real servers: repetition, loss, and a full storage tier."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from distributed.shuffle._rechunk import ArrayRechunkSpec
from distributed.shuffle._shuffle import DataFrameShuffleSpec

from fargate_storage.client import RedisStore
from fargate_storage.service import LocalTier
from lambda_worker.shuffle import NoRoomForSlices, Shuffles, SlicesLost

ID, JOB, SECRET = "0a1b", "job", b"secret"
META = pd.DataFrame({"_partitions": [0], "x": [1.0]}).iloc[:0]
FRAMES = DataFrameShuffleSpec(ID, True, 3, "_partitions", META, 3, True)


@pytest.fixture(scope="module")
def tier():
    with LocalTier(shards=2, maxmemory_bytes=64 * 2**20) as tier:
        yield tier


@pytest.fixture
def store(tier, request):
    store = RedisStore(tier.config(request.node.name))
    store.open_job(JOB, {})
    yield store
    store.close_job(JOB, [])
    store.close()


def shuffles(store, spec=FRAMES, job=JOB, secret=SECRET):
    """Stand for one executor."""
    found = Shuffles(store, secret, job)
    found.learn([spec])
    return found


def rows(*targets, start=0):
    return pd.DataFrame({"_partitions": list(targets), "x": np.arange(start, start + len(targets), dtype=float)})


def test_executors_exchange_partitions(store):
    ledgers = [
        shuffles(store).add_partition(rows(0, 2, 0), 0, ID),
        shuffles(store).add_partition(rows(2, start=3), 1, ID),
    ]
    total = shuffles(store).barrier(ID, ledgers)
    found = [shuffles(store).get_output_partition(ID, total, target) for target in range(3)]
    assert [list(part.x) for part in found] == [[0, 2], [], [1, 3]]
    assert all(list(part.columns) == ["x"] for part in found)


def test_whatever_is_run_again_changes_nothing(store):
    executor = shuffles(store)
    ledgers = [executor.add_partition(rows(0, 1, start=part), part, ID) for part in (0, 1, 0)]
    np.testing.assert_array_equal(ledgers[0], ledgers[2])
    total = executor.barrier(ID, ledgers[:2])
    keys = store.usage()["store_keys"]
    for _ in range(2):
        np.testing.assert_array_equal(executor.barrier(ID, ledgers[:2]), total)
        assert list(executor.get_output_partition(ID, total, 1).x) == [1, 2]
    assert store.usage()["store_keys"] == keys


def test_an_output_partition_that_gets_nothing_costs_no_round_trip(store):
    executor = shuffles(store)
    total = executor.barrier(ID, [executor.add_partition(rows(0), 0, ID)])
    before = store.counters()["round_trips"]
    assert executor.get_output_partition(ID, total, 1).empty
    assert store.counters()["round_trips"] == before


def test_a_transfer_that_does_not_repeat_itself_is_found_out(store):
    executor = shuffles(store)
    total = executor.barrier(ID, [executor.add_partition(rows(0, 0), 0, ID), executor.add_partition(rows(0, 1), 1, ID)])
    executor.add_partition(rows(1, 1), 0, ID)  # late, by who was thought lost, with other rows
    assert len(executor.get_output_partition(ID, total, 0)) == 3
    with pytest.raises(SlicesLost, match="of output partition 1 the storage tier has .* run twice"):
        executor.get_output_partition(ID, total, 1)


@pytest.mark.fault(23)
def test_lost_slices_are_an_error_and_no_empty_partition(store):
    executor = shuffles(store)
    total = executor.barrier(ID, [executor.add_partition(rows(0, 1), part, ID) for part in range(2)])
    store.close_job(JOB, [])
    with pytest.raises(SlicesLost, match="has 0 bytes in 0 slices, which is not what the transfers wrote"):
        executor.get_output_partition(ID, total, 0)


@pytest.mark.fault(31)
def test_slices_of_another_name_or_secret_are_not_decoded(store):
    executor = shuffles(store)
    total = executor.barrier(ID, [executor.add_partition(rows(0, 1), 0, ID)])
    slices = store.get_slices(JOB, ID, 0, 1_000)
    store.put_slices(JOB, ID, 5, {0: slices[0]})
    moved = total.copy()
    moved[1, 0] *= 2
    with pytest.raises(SlicesLost, match="job/shuffle/0a1b/0/5.*: not decoded"):
        executor.get_output_partition(ID, moved, 0)
    with pytest.raises(SlicesLost, match="not decoded"):
        shuffles(store, secret=b"other").get_output_partition(ID, total, 1)


@pytest.mark.fault(20)
def test_a_full_storage_tier_is_dasks_out_of_disk_and_says_what_to_do(store):
    spec = ArrayRechunkSpec(ID, True, ((2**20,) * 16,), ((2**24,),))
    executor = shuffles(store, spec)
    with pytest.raises(
        NoRoomForSlices,
        match=r"no room for .* bytes of input partition 0, .* is full .*storage_max_memory=.*storage\.overflow\)",
    ):
        executor.add_partition(np.ones(2**24), (0,), ID)


def test_arrays_of_several_executors(store):
    whole = np.arange(64.0).reshape(8, 8)
    spec = ArrayRechunkSpec(ID, True, ((5, 3), (8,)), ((8,), (3, 3, 2)))
    parts = np.split(whole, (3, 6), axis=1)
    ledgers = [shuffles(store, spec).add_partition(part, (0, number), ID) for number, part in enumerate(parts)]
    executor = shuffles(store, spec)
    total = executor.barrier(ID, ledgers)
    found = [executor.get_output_partition(ID, total, (number, 0)) for number in range(2)]
    np.testing.assert_array_equal(np.concatenate(found), whole)


@pytest.fixture
def overflowing(tier, request, tmp_path):
    place = {"overflow": (tmp_path / "overflow").as_uri(), "overflow_bytes_max": 2**30}
    store = RedisStore(tier.config(request.node.name, **place))
    store.open_job(JOB, {})
    yield store
    store.close_job(JOB, [])
    assert not store.usage()["overflow_bytes"]
    store.close()


@pytest.mark.fault(20)
def test_more_than_the_tier_holds_is_exchanged_through_the_overflow(overflowing):
    spec = ArrayRechunkSpec(ID, True, ((4,) * 4, (2**20,)), ((16,), (2**17,) * 8))
    parts = [np.random.default_rng(number).random((16, 2**17)) for number in range(8)]  # 128 MiB
    ledgers = [shuffles(overflowing, spec).add_partition(part, (0, number), ID) for number, part in enumerate(parts)]
    assert 0 < overflowing.counters()["slices_overflowed"] < overflowing.counters()["slices_written"]
    total = shuffles(overflowing, spec).barrier(ID, ledgers)
    for target in range(4):
        found = shuffles(overflowing, spec).get_output_partition(ID, total, (target, 0))
        np.testing.assert_array_equal(found, np.hstack([part[4 * target : 4 * target + 4] for part in parts]))


@pytest.mark.fault(20, 23)
def test_slices_that_the_overflow_has_lost_are_an_error_too_and_written_again(overflowing, tmp_path):
    spec = ArrayRechunkSpec(ID, True, ((4,) * 4, (2**20,)), ((16,), (2**17,) * 8))
    executor = shuffles(overflowing, spec)
    parts = [np.random.default_rng(number).random((16, 2**17)) for number in range(8)]  # 128 MiB
    ledgers = [executor.add_partition(part, (0, number), ID) for number, part in enumerate(parts)]
    total = executor.barrier(ID, ledgers)
    files = [path for path in (tmp_path / "overflow" / "values").rglob("*") if path.is_file()]
    for spoil in (lambda whole: bytes(len(whole)), lambda whole: whole[:-100] + bytes(100)):
        for file in files:
            file.write_bytes(spoil(file.read_bytes()))
        with pytest.raises(SlicesLost):
            for target in range(4):
                executor.get_output_partition(ID, total, (target, 0))
        for number, part in enumerate(parts):
            np.testing.assert_array_equal(executor.add_partition(part, (0, number), ID), ledgers[number])
        for target in range(4):
            found = executor.get_output_partition(ID, total, (target, 0))
            np.testing.assert_array_equal(found, np.hstack([part[4 * target : 4 * target + 4] for part in parts]))
