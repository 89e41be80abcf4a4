"""Peer-to-peer shuffles: what the synchronous scheduler answers, in the same order, and nothing left behind."""

from __future__ import annotations

import operator

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from dask._task_spec import Task, convert_legacy_graph
from distributed import Client, LocalCluster
from distributed.shuffle._core import P2PBarrierTask

from dask_serverless import ServerlessCluster
from tests.waiting import until

ROWS = 5_000


@pytest.fixture(scope="module")
def cluster():
    """A cluster of this file's own: what is in its store is of these shuffles, and nobody lingers there."""
    with (
        dask.config.set({"serverless.executor.linger": 0}),
        ServerlessCluster(n_workers=2, dashboard_address=None) as cluster,
    ):
        yield cluster


@pytest.fixture(scope="module", autouse=True)
def keys_at_first(cluster):
    """How many keys are in the store before anything was computed: what executors shall wear."""
    return cluster.stats()["store_keys"]


def pandas_frame():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "key": rng.integers(0, 50, ROWS),
            "other": rng.normal(size=ROWS),
            "text": rng.choice(["alpha", "beta", "gamma", "delta"], ROWS),
            "kind": pd.Categorical(rng.choice(["x", "y"], ROWS), categories=["x", "y", "z"]),
            "when": pd.Timestamp("2000-01-01") + pd.to_timedelta(rng.integers(0, 10**6, ROWS), unit="s"),
        },
    )


def frame(npartitions=8):
    return dd.from_pandas(pandas_frame(), npartitions=npartitions)


def small():
    return dd.from_pandas(pd.DataFrame({"key": range(0, 60, 2), "value": np.arange(30) * 10.0}), npartitions=3)


NUMBERS = np.arange(60 * 48.0).reshape(60, 48)


def array():
    return da.from_array(NUMBERS, chunks=(60, 6))


@pytest.fixture(autouse=True)
def small_chunks():
    """Else Dask would put the few kilobytes of `array` into one chunk before they are shuffled."""
    with dask.config.set({"array.chunk-size": "3 KiB"}):
        yield


#: Programs on frames, for a shuffle method.
FRAMES = {
    "shuffle": lambda how: frame().shuffle("key", shuffle_method=how),
    "shuffle on several columns": lambda how: frame().shuffle(["key", "text"], shuffle_method=how, npartitions=5),
    "shuffle on the index": lambda how: frame().shuffle(on_index=True, shuffle_method=how),
    "shuffle of a column that is fused away": lambda how: frame().assign(b=1).shuffle("key", shuffle_method=how)[["b"]],
    "one partition of many": lambda how: frame().shuffle("key", shuffle_method=how).partitions[[2]],
    "two shuffles": lambda how: (
        frame().shuffle("key", shuffle_method=how).assign(c=1).shuffle("text", shuffle_method=how)
    ),
    "merge": lambda how: frame().merge(small(), on="key", shuffle_method=how, broadcast=False),
    "merge outer": lambda how: frame().merge(small(), on="key", how="outer", shuffle_method=how, broadcast=False),
    "merge left on right index": lambda how: frame().merge(
        small().set_index("key"), left_on="key", right_index=True, how="left", shuffle_method=how, broadcast=False
    ),
    "merge with itself": lambda how: frame().merge(frame()[["key"]].drop_duplicates(), on="key", shuffle_method=how),
    "set_index": lambda how: frame().set_index("other", shuffle_method=how),
    "set_index with divisions": lambda how: frame().set_index("key", divisions=[0, 7, 40, 49], shuffle_method=how),
    "set_index of times": lambda how: frame().set_index("when", shuffle_method=how),
    "sort_values": lambda how: frame().sort_values(["key", "other"], shuffle_method=how),
    "sort_values descending": lambda how: frame().sort_values("other", ascending=False, shuffle_method=how),
    "groupby split_out": lambda how: frame().groupby("key").agg({"other": "sum"}, split_out=3, shuffle_method=how),
    "groupby apply": lambda how: frame().groupby("key").apply(lambda g: g.head(2), meta=pandas_frame().iloc[:0, 1:]),
    "groupby transform": lambda how: frame().groupby("text").other.transform("max", meta=("other", "f8")).to_frame(),
    "drop_duplicates": lambda how: frame()[["key", "text"]].drop_duplicates(split_out=3, shuffle_method=how),
    "nunique": lambda how: frame().groupby("text").key.nunique(split_out=2).to_frame(),
    "an empty frame": lambda how: frame().query("key > 1000").shuffle("key", shuffle_method=how),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames(client, name):
    ours = FRAMES[name]("p2p").compute()
    with dask.config.set({"dataframe.shuffle.method": "tasks"}):
        theirs = FRAMES[name]("tasks").compute(scheduler="sync")
    assert list(ours.columns) == list(theirs.columns)
    assert ours.index.name == theirs.index.name
    order = [*ours.columns]

    def sort(found):
        found = found.reset_index()
        return found.sort_values(list(found.columns), ignore_index=True)[[*order]]

    pd.testing.assert_frame_equal(sort(ours), sort(theirs), check_dtype="outer" not in name)


def test_rows_are_in_the_order_that_dask_promises(client):
    data = pandas_frame()
    found = client.gather(client.compute(frame().set_index("key", shuffle_method="p2p")))
    assert found.index.is_monotonic_increasing
    sorted_values = client.gather(client.compute(frame().sort_values("other", shuffle_method="p2p")))
    pd.testing.assert_series_equal(sorted_values.other, data.other.sort_values(), check_index=False)
    parts = dask.compute(*frame().shuffle("key", shuffle_method="p2p").to_delayed())
    assert len(parts) == 8
    for part in parts:
        assert part.index.is_monotonic_increasing, "by input partition, then as they were"
        assert list(part.dtypes) == list(frame().dtypes)


ARRAYS = {
    "rows to columns": (lambda x: x.rechunk((6, 48), method="p2p"), lambda x: x),
    "fused before and after": (lambda x: (x + 1).rechunk((10, 48), method="p2p") * 2, lambda x: (x + 1) * 2),
    "uneven": (lambda x: x.rechunk(((1, 59), (13, 35)), method="p2p"), lambda x: x),
    "many parts of their own": (lambda x: x.rechunk((20, 6)).rechunk((10, 12), method="p2p"), lambda x: x),
    "some chunks only": (lambda x: x.rechunk((6, 24), method="p2p")[:12], lambda x: x[:12]),
    "twice": (lambda x: x.rechunk((6, 48), method="p2p").rechunk((60, 6), method="p2p"), lambda x: x),
    "shuffled along an axis": (
        lambda x: x.rechunk((6, 48), method="p2p").shuffle([[5, 3, 1], [4], [2, 0]], axis=1),
        lambda x: x[:, [5, 3, 1, 4, 2, 0]],
    ),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(client, name):
    dasks, numpys = ARRAYS[name]
    np.testing.assert_array_equal(client.compute(dasks(array()), sync=True), numpys(NUMBERS))


def test_executors_move_the_data_and_leave_nothing_behind(cluster, client, keys_at_first):
    before = cluster.stats()
    found = frame().shuffle("key", shuffle_method="p2p").persist()
    assert len(found) == ROWS
    after = cluster.stats()
    assert after["slices_written"] - before["slices_written"] >= 50
    assert not any(isinstance(ts.run_spec, P2PBarrierTask) for ts in cluster.scheduler.tasks.values())
    shuffle_plugin = cluster.scheduler.extensions["shuffle"]
    assert not shuffle_plugin.active_shuffles
    del found
    until(lambda: cluster.stats()["store_keys"] <= keys_at_first + 1, "the store is empty (but for the ceiling)")


def test_a_cancelled_shuffle_leaves_nothing_behind(cluster, client, keys_at_first, tmp_path):
    def slowly(part):
        (tmp_path / str(part.index[0])).touch()
        until((tmp_path / "go on").exists)
        return part

    slow = frame().map_partitions(slowly, meta=frame()._meta)
    future = client.compute(slow.shuffle("key", shuffle_method="p2p").map_partitions(len))
    until(lambda: len(list(tmp_path.iterdir())) == 2, "a transfer of each executor has begun")
    future.cancel()
    until(lambda: future.key not in cluster.scheduler.tasks)
    (tmp_path / "go on").touch()
    assert client.submit(operator.add, 1, 2, pure=False).result() == 3, "executors are free again"
    until(lambda: cluster.stats()["store_keys"] <= keys_at_first + 1, "what came too late has gone, too")


def test_an_output_partition_that_is_needed_again_is_made_again(cluster, client):
    found = client.compute(frame().shuffle("key", shuffle_method="p2p").to_delayed())
    first = client.gather(found)
    key = found[3].key
    del found
    until(lambda: key not in cluster.scheduler.tasks)
    again = client.gather(client.compute(frame().shuffle("key", shuffle_method="p2p").to_delayed()))
    for one, other in zip(first, again, strict=True):
        pd.testing.assert_frame_equal(one, other)


def test_a_part_first_and_then_all(client):
    shuffled = frame().shuffle("key", shuffle_method="p2p")
    one = shuffled.partitions[2].persist()
    assert len(shuffled.compute()) == ROWS
    assert len(one) == len(shuffled.partitions[2].compute())
    rechunked = array().rechunk((6, 48), method="p2p")
    some = rechunked[:6].persist()
    np.testing.assert_array_equal(client.compute(rechunked, sync=True), NUMBERS)
    np.testing.assert_array_equal(client.compute(some, sync=True), NUMBERS[:6])


def test_tasks_of_a_shuffle_that_fail_late_are_run_again(client, tmp_path):
    """Each transfer and each unpack fails once, after it has done its work, and is run again."""

    def once_more(function):
        def run(*args):
            result = function(*args)
            mark = tmp_path / f"{function.__name__}-{args[-2] if 'unpack' in function.__name__ else args[-1]}"
            if not mark.exists():
                mark.touch()
                raise OSError("too late")
            return result

        return run

    rechunked = array().rechunk((6, 48), method="p2p")
    graph = {
        key: Task(key, once_more(task.func), *task.args)
        if getattr(getattr(task, "func", None), "__name__", "") in ("rechunk_transfer", "rechunk_unpack")
        else task
        for key, task in convert_legacy_graph(dict(rechunked.__dask_graph__())).items()
    }
    found = client.get(graph, rechunked.__dask_keys__(), retries=1)
    np.testing.assert_array_equal(np.block(found), NUMBERS)
    assert len(list(tmp_path.iterdir())) == 8 + 10


def test_a_shuffle_with_a_pinned_task_runs_on_dask_workers_as_a_whole(cluster, client):
    before = cluster.stats()["slices_written"]
    with dask.annotate(serverless=False):
        rechunked = array().rechunk((6, 48), method="p2p")
    np.testing.assert_array_equal(client.compute(rechunked, sync=True, optimize_graph=False), NUMBERS)
    assert cluster.stats()["slices_written"] == before
    # The same shuffle again, in executors now: what Dask workers know of it is of no use to them.
    kept = client.persist(rechunked, optimize_graph=False)
    np.testing.assert_array_equal(client.compute(array().rechunk((6, 48), method="p2p") + 1, sync=True), NUMBERS + 1)
    np.testing.assert_array_equal(client.compute(kept, sync=True), NUMBERS)


def broken(part):
    raise ValueError("no such thing")


def renamed(part):
    return part.rename(columns={"key": "lock"})


def outcome(error):
    """What a user sees of an error: type, message, and the cause."""
    return type(error), str(error).partition(" failed ")[2] or str(error)


@pytest.mark.parametrize(
    "program",
    [
        lambda: frame().map_partitions(broken, meta=frame()._meta).shuffle("key", shuffle_method="p2p"),
        lambda: frame().map_partitions(renamed, meta=frame()._meta).shuffle("text", shuffle_method="p2p"),
        lambda: frame().shuffle("key", shuffle_method="p2p").map_partitions(broken, meta=frame()._meta),
    ],
    ids=["before", "other columns", "after"],
)
def test_errors_are_those_of_local_cluster(client, local_client, program):
    with pytest.raises(Exception) as theirs:
        local_client.compute(program(), sync=True)
    with pytest.raises(Exception) as ours:
        client.compute(program(), sync=True)
    assert outcome(ours.value) == outcome(theirs.value)


@pytest.fixture(scope="module")
def local_client():
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        with Client(cluster, set_as_default=False) as client:
            yield client


# Larger than an executor

MIB = 2**20


@pytest.fixture(scope="module")
def small_executors():
    with ServerlessCluster(
        n_workers=2, dashboard_address=None, memory_limit="320 MiB", storage_max_memory="3 GiB"
    ) as cluster:
        yield cluster


def test_a_rechunk_of_a_multiple_of_an_executors_memory(small_executors):
    with Client(small_executors) as client:
        side = 10_240  # 800 MiB
        x = da.arange(side * side, chunks=side * side // 64, dtype="i8").reshape(side, side)
        weights = da.arange(side, dtype="i8", chunks=side)
        with dask.config.set({"array.chunk-size": "16 MiB"}):
            y = x.rechunk((side, side // 64), method="p2p")
        found = (y * weights).sum(axis=0)
        column = np.arange(side)
        expected = column * (column * side).sum() + column * column * side
        np.testing.assert_array_equal(client.compute(found, sync=True), expected)


def make_part(number, rows):
    rng = np.random.default_rng(number)
    return pd.DataFrame({"key": rng.permutation(rows) * 64 + number, "value": rng.random(rows), "x": 1.0})


def test_a_shuffle_of_a_multiple_of_an_executors_memory(small_executors):
    rows = 12 * MIB // 24
    frames = dd.from_map(make_part, range(64), rows=rows, meta=make_part(0, 1))  # 768 MiB

    def check(part):
        return pd.DataFrame({"rows": [len(part)], "keys": [part.key.nunique()], "sum": [int(part.key.sum())]})

    with Client(small_executors) as client:
        found = client.compute(
            frames.shuffle("key", shuffle_method="p2p").map_partitions(check, meta=check(make_part(0, 1))), sync=True
        )
    assert found.rows.sum() == found["keys"].sum() == 64 * rows
    assert found["sum"].sum() == (64 * rows) * (64 * rows - 1) // 2
    assert len(found) == 64 and found.rows.min() > 0


def test_a_collection_larger_than_all_executors_together_is_reduced(small_executors):
    with Client(small_executors) as client:
        kept = da.ones((90, MIB), chunks=(1, MIB)).persist()  # 720 MiB, in 2 * 320 MiB
        assert client.compute(kept.sum(), sync=True) == 90 * MIB
