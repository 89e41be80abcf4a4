"""Graphs of delayed tasks are read as they are, and come to the same as by Dask's own way."""

from __future__ import annotations

import pickle

import dask
import dask.array as da
import pytest
from dask import delayed
from dask.base import collections_to_expr
from dask.core import flatten

from dask_serverless.dask_graph import materialise
from dask_serverless.plain_layers import read_plain_layers


def add(*numbers):
    return sum(numbers)


def sent(*collections):
    """Return an expression as it arrives."""
    return pickle.loads(pickle.dumps(collections_to_expr(collections).optimize()))


def tree():
    leaves = [delayed(add, pure=False)(n) for n in range(8)]
    with dask.annotate(retries=2, memory="1 GiB"):
        sums = [delayed(add, pure=False)(*leaves[n : n + 2]) for n in range(0, 8, 2)]
    with dask.annotate(priority=len):
        return delayed(add, pure=False)(sums, *sums), sums[0]


@pytest.mark.parametrize("pick", [slice(None), slice(1), slice(1, 2)])
def test_tasks_and_annotations_are_those_that_dask_finds(pick):
    asked = tree()[pick]
    expr = sent(*asked)
    keys = list(flatten(expr.__dask_keys__()))
    assert read_plain_layers(expr) is not None
    ours = materialise(expr, keys)
    theirs = expr.__dask_graph__()
    assert ours.tasks.keys() == set(theirs)
    assert {key: task.dependencies for key, task in ours.tasks.items()} == {
        key: task.dependencies for key, task in theirs.items()
    }
    of_tasks = {
        name: {key: value for key, value in values.items() if key in theirs}
        for name, values in ours.annotations_by_type.items()
    }
    assert {name: values for name, values in of_tasks.items() if values} == expr.__dask_annotations__()


def test_other_graphs_are_left_to_dask():
    array = da.ones(10, chunks=2) + 1
    assert read_plain_layers(sent(array)) is None
    expr = sent(*tree())
    with dask.config.set({"optimization.fuse.delayed": True}):
        assert read_plain_layers(expr) is None
    with dask.config.set(delayed_optimize=lambda graph, keys: graph):
        expr = collections_to_expr(tree()).optimize()
        assert read_plain_layers(expr) is None
