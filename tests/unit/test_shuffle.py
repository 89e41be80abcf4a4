"""Cutting partitions into slices and joining them: what comes out is what Dask's own plugin gives, row by row."""

from __future__ import annotations

import pickle
from collections import defaultdict
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from distributed.shuffle._exceptions import P2PConsistencyError, P2POutOfDiskError
from distributed.shuffle._rechunk import ArrayRechunkSpec
from distributed.shuffle._shuffle import DataFrameShuffleSpec
from hypothesis import given, settings
from hypothesis import strategies as st

from lambda_worker import shuffle
from lambda_worker.core.errors import ProtocolError, StoreFull, ValueLost
from lambda_worker.core.wire import unpack
from lambda_worker.shuffle import NoRoomForSlices, SlicesLost, slice_name
from lambda_worker.task_runner import describe_error


def frame_spec(meta, parts_out, column="_partitions", drop_column=True):
    npartitions = parts_out if isinstance(parts_out, int) else max(parts_out) + 1
    return DataFrameShuffleSpec("0a1b", True, npartitions, column, meta, parts_out, drop_column)


def moved(spec, parts):
    """Split all partitions, and return what is joined, by output partition."""
    kind = shuffle._shuffle(spec)
    slices = defaultdict(list)
    for partition, data in parts.items():
        for target, frames in kind.split(data, partition):
            assert 0 <= target < kind.targets
            slices[target].append((kind.source(partition), [bytes(frame) for frame in frames]))
    return {
        partition: kind.join(sorted(slices[kind.target(partition)]))  # as read from the store: by source
        for partition in spec.output_partitions
    }


def frame(targets):
    rows = len(targets)
    return pd.DataFrame(
        {
            "_partitions": targets,
            "text": pd.array([f"row {row}" for row in range(rows)], dtype="string[pyarrow]"),
            "kind": pd.Categorical(["a", "b"] * (rows // 2) + ["a"] * (rows % 2), categories=["a", "b", "c"]),
            "when": pd.date_range("2000", periods=rows, tz="Europe/Rome"),
            "number": pd.array([None if row % 3 else row for row in range(rows)], dtype="Int32"),
        },
        index=pd.Index(np.arange(rows) * 0.5, name="at"),
    )


@settings(max_examples=50, deadline=None)
@given(parts=st.lists(st.lists(st.integers(0, 5), max_size=12), min_size=1, max_size=5), drop=st.booleans())
def test_every_row_goes_where_its_column_says_and_keeps_its_order(parts, drop):
    frames = {number: frame(np.array(targets, dtype="i8")) for number, targets in enumerate(parts)}
    meta = frames[0].iloc[:0]
    whole = pd.concat(frames.values())
    for target, found in moved(frame_spec(meta, 6, drop_column=drop), frames).items():
        expected = whole[whole._partitions == target]
        pd.testing.assert_frame_equal(found, expected.drop(columns="_partitions") if drop else expected)


@pytest.mark.parametrize(
    "column",
    [
        np.array([0, 7, 3, -1, 300, 7], dtype="i4"),
        np.array([0, 7, 3, np.nan, 2.5, 7]),
        pd.array([0, 7, 3, None, 1, 7], dtype="UInt8"),
        pd.Categorical([0, 7, 3, 1, 1, 7]),
    ],
    ids=["integers", "floats", "nullable", "categorical"],
)
def test_rows_for_partitions_that_nobody_wants_are_left_out(column):
    data = pd.DataFrame({"_partitions": column, "x": np.arange(6)})
    found = moved(frame_spec(data.iloc[:0], (7, 0, 5)), {0: data})
    assert {target: list(rows.x) for target, rows in found.items()} == {7: [1, 5], 0: [0], 5: []}
    assert list(found[5].columns) == ["x"]


def test_rows_that_were_numbered_for_fewer_partitions_are_refused():
    """Dask asks for this when it selects partitions of a merge; under `LocalCluster` an IndexError, too."""
    spec = replace(frame_spec(frame(np.arange(2)).iloc[:0], (0, 5)), npartitions=2)
    with pytest.raises(IndexError, match="no output partition 5, only 2"):
        next(shuffle._shuffle(spec).split(frame(np.arange(2)), 0))


def test_a_partition_with_other_columns_is_refused_as_dask_does():
    meta = pd.DataFrame({"_partitions": [0], "x": [1]}).iloc[:0]
    kind = shuffle._shuffle(frame_spec(meta, 2))
    with pytest.raises(TypeError, match="to be a DataFrame"):
        next(kind.split(np.arange(3), 0))
    with pytest.raises(ValueError, match="to match"):
        next(kind.split(meta.rename(columns={"x": "y"}), 0))


@settings(max_examples=50, deadline=None)
@given(data=st.data(), shape=st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_rechunked_arrays_are_the_same_arrays(data, shape):
    def chunks(length):
        cuts = sorted(data.draw(st.sets(st.integers(1, length))) | {length})
        return tuple(np.diff([0, *cuts]).tolist())

    old, new = tuple(map(chunks, shape)), tuple(map(chunks, shape))
    whole = np.arange(np.prod(shape), dtype="f4").reshape(shape)

    def cells(chunked):
        bounds = [np.cumsum((0, *axis)) for axis in chunked]
        for index in product(*(range(len(axis)) for axis in chunked)):
            yield index, whole[tuple(slice(b[i], b[i + 1]) for b, i in zip(bounds, index, strict=True))]

    found = moved(ArrayRechunkSpec("0a1b", True, new, old), dict(cells(old)))
    expected = dict(cells(new))
    assert found.keys() == expected.keys()
    for index, chunk in expected.items():
        np.testing.assert_array_equal(found[index], chunk)
        assert found[index].flags.writeable


def test_a_slice_of_an_array_is_sent_as_it_is_when_it_is_in_one_piece():
    whole = np.arange(10_000.0)
    kind = shuffle._shuffle(ArrayRechunkSpec("0a1b", True, ((5_000, 5_000),), ((10_000,),)))
    for target, (_, _, buffer) in kind.split(whole, (0,)):
        assert np.shares_memory(np.frombuffer(buffer), whole[5_000 * target : 5_000 * (target + 1)])


def test_masked_arrays_and_objects_are_rechunked_too():
    masked = np.ma.masked_greater(np.arange(8.0), 5)
    (found,) = moved(ArrayRechunkSpec("0a1b", True, ((8,),), ((4, 4),)), {(0,): masked[:4], (1,): masked[4:]}).values()
    assert found.mask.tolist() == masked.mask.tolist()
    objects = np.array([{"a": 1}, None, "x", 2], dtype=object)
    found = moved(ArrayRechunkSpec("0a1b", True, ((1, 3),), ((2, 2),)), {(0,): objects[:2], (1,): objects[2:]})
    assert [value for chunk in found.values() for value in chunk] == list(objects)


def test_names_tell_slices_apart():
    names = {slice_name(job, id, s, t) for job, id, s, t in product(("j", "k"), ("a", "b"), range(12), range(12))}
    assert len(names) == 2 * 2 * 12 * 12


@pytest.mark.parametrize(
    "kind, families",
    [(SlicesLost, (ValueLost, P2PConsistencyError)), (NoRoomForSlices, (StoreFull, P2POutOfDiskError))],
)
def test_errors_are_dasks_and_ours_and_reach_the_client(kind, families):
    exception, *_ = unpack(describe_error(kind("said")))
    error = pickle.loads(exception)
    assert type(error) is kind and str(error) == "said"
    assert all(isinstance(error, family) for family in families)


def test_what_stopped_a_shuffle_is_not_the_cause_of_what_it_is_the_cause_of(monkeypatch):
    """A circle of exceptions cannot be pickled, and the client would hear of it as text only."""
    lost = SlicesLost("said")

    def task(values):
        raise RuntimeError("P2P 0a1b failed during unpack phase") from lost

    plugins = {"shuffle": shuffle.Shuffles(None, b"secret", "job")}
    monkeypatch.setattr(shuffle, "get_worker", lambda: SimpleNamespace(plugins=plugins))
    with pytest.raises(SlicesLost) as found:
        shuffle.ShuffleTask(task, [])({})
    assert found.value is lost
    assert type(pickle.loads(unpack(describe_error(lost))[0])) is SlicesLost


def test_an_unknown_kind_of_shuffle_is_named():
    with pytest.raises(ProtocolError, match="unknown kind: object"):
        shuffle._shuffle(object())
