"""`recreate_task_locally` and `recreate_error_locally`: the real task, here, with its real inputs."""

from __future__ import annotations

import os

import dask.array as da
import numpy as np
import pytest
from dask import delayed
from distributed import wait

HERE = os.getpid()


def inc(number):
    return number + 1


def where(*values):
    return os.getpid(), values


def divide(one, other):
    raise ZeroDivisionError(f"{one} by {other}, in {os.getpid()}")


def recreated(client, future):
    wait(future, timeout=20)
    with pytest.raises(ZeroDivisionError) as caught:
        client.recreate_error_locally(future)
    return str(caught.value)


def test_a_task_runs_here_with_the_values_of_its_inputs(client):
    far = client.submit(inc, 1, pure=False)
    future = client.submit(where, far, 5, pure=False)
    assert future.result(timeout=20) != (HERE, (2, 5))
    assert client.recreate_task_locally(future) == (HERE, (2, 5))


def test_the_task_that_erred_is_found_below_what_was_asked_for(client):
    inner = delayed(divide, pure=False)(delayed(inc)(1), delayed(inc)(-1))
    future = client.compute(delayed(inc)(delayed(inc)(inner)))
    assert recreated(client, future) == f"2 by 0, in {HERE}"


def test_and_in_the_graph_of_another_future(client):
    root = client.submit(divide, client.submit(inc, 0, pure=False), 3, pure=False)
    end = client.submit(inc, client.submit(inc, root))
    assert recreated(client, end) == f"1 by 3, in {HERE}"


def test_inputs_that_were_let_go_are_computed_again(client, tmp_path):
    def counted(number):
        with open(tmp_path / "calls", "a") as file:
            file.write("x")
        return number

    future = client.compute(delayed(where, pure=False)(delayed(counted, pure=False)(7)))
    wait(future, timeout=20)
    for _ in range(2):
        assert client.recreate_task_locally(future) == (HERE, (7,))
    assert (tmp_path / "calls").read_text() == "xxx"


def test_an_array_with_a_bad_block(client):
    def bad(block, block_info=None):
        if block_info[0]["chunk-location"] == (1,):
            divide(block.shape[0], 0)
        return block

    x = da.ones(10, chunks=5).map_blocks(bad, dtype=float)
    assert recreated(client, client.compute(x.sum())) == f"5 by 0, in {HERE}"
    good = client.compute(da.ones(10, chunks=5).sum())
    wait(good, timeout=20)
    assert client.recreate_task_locally(good) == 10


def test_large_inputs_and_scattered_ones(client):
    (table,) = client.scatter([np.arange(200_000)])
    other = client.submit(np.ones, 200_000, pure=False)
    future = client.submit(lambda table, other: int(table[-1] + other.sum()), table, other)
    assert future.result(timeout=20) == 399_999
    assert client.recreate_task_locally(future) == 399_999


def test_what_has_not_erred_is_refused_as_by_local_cluster(client):
    with pytest.raises(ValueError, match="No errored futures passed"):
        client.recreate_error_locally(client.submit(inc, 1, pure=False))


def test_nothing_stays(cluster, client):
    future = client.compute(delayed(where, pure=False)(delayed(inc)(7)))
    wait(future, timeout=20)
    client.recreate_task_locally(future)
    assert not [name for name in cluster.scheduler.clients if name.startswith("serverless-replay")]
