"""``dask.annotate(memory=..., timeout=...)``: single tasks with more memory or more time than the cluster's default."""

from __future__ import annotations

import os
import time

import dask
import dask.array as da
import dask.config
import numpy as np
import pytest
from dask import delayed

from dask_serverless import ServerlessCluster
from lambda_worker.core.errors import BadAnnotation, ExecutorLost
from tests.waiting import until

SECONDS_MAX = 60.0
MIB = 2**20


@pytest.fixture(scope="module", params=[1, 2], ids=["one place", "two places"])
def cluster(request):
    """A small default class, and with it 256 MiB for longer, 1 GiB and 2 GiB."""
    with (
        dask.config.set({"serverless.lambda.memory-classes": ["1 GiB", "2 GiB"]}),
        ServerlessCluster(n_workers=request.param, memory_limit="256 MiB", timeout="3 s", dashboard_address=None) as it,
    ):
        yield it


def memory_mb(*values):
    return int(os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", 0))


def fill(mebibytes):
    held = [bytearray(os.urandom(4096)) * 256 for _ in range(mebibytes)]
    until_killed = time.monotonic() + 1.0  # the limit is looked at many times a second
    while time.monotonic() < until_killed:
        time.sleep(0.05)
    return len(held)


def sleep(seconds):
    time.sleep(seconds)
    return seconds


@pytest.mark.fault(13)
def test_a_task_that_runs_out_of_memory_gets_more_once(client, cluster):
    before = cluster.stats()["executors_lost"]
    assert client.submit(fill, 400, pure=False).result(timeout=SECONDS_MAX) == 400
    assert cluster.stats()["executors_lost"] == before + 1
    with dask.annotate(memory="1 GiB"):  # who says so beforehand loses no time
        assert client.submit(fill, 400, pure=False).result(timeout=SECONDS_MAX) == 400
    assert cluster.stats()["executors_lost"] == before + 1


@pytest.mark.fault(13)
def test_a_task_that_needs_still_more_memory_says_so(client):
    with pytest.raises(ExecutorLost, match=r"(?i)died 2 times.*memory.*dask.annotate\(memory='2 GiB'\)"):
        client.submit(fill, 1_200, pure=False).result(timeout=SECONDS_MAX)


@pytest.mark.fault(11)
def test_a_task_that_needs_more_time_says_so(client):
    with pytest.raises(ExecutorLost, match=r"timed out after 3\.00 seconds.*dask.annotate\(timeout="):
        client.submit(sleep, 5, pure=False).result(timeout=SECONDS_MAX)
    with dask.annotate(timeout="1 minute"):
        assert client.submit(sleep, 4, pure=False).result(timeout=SECONDS_MAX) == 4
        # For time alone nobody pays for memory.
        assert client.submit(memory_mb, pure=False).result(timeout=SECONDS_MAX) == 256


def test_small_large_small_and_back(client):
    a = delayed(memory_mb, pure=False)()
    with dask.annotate(memory="2 GiB"):
        b = delayed(memory_mb, pure=False)(a)
    c = delayed(memory_mb, pure=False)(b)
    assert dask.compute(a, b, c) == (256, 2048, 2048)
    # Job by job, each begins anew.
    first = client.submit(memory_mb, pure=False)
    with dask.annotate(memory="2 GiB"):
        second = client.submit(memory_mb, first, pure=False)
    third = client.submit(memory_mb, second, pure=False)
    assert client.gather([first, second, third]) == [256, 2048, 256]


def test_a_wide_graph_of_every_class(client):
    asked = [None, "512 MiB", "2 GiB"]
    parts = []
    for number in range(30):
        with dask.annotate(memory=asked[number % 3]):
            parts.append(delayed(memory_mb, pure=False)(delayed(sleep)(0)))
    with dask.annotate(memory="1 GiB"):
        total = delayed(lambda *found: (memory_mb(), *found))(*parts)
    met, *found = total.compute()
    assert met >= 1024
    assert all(mine >= least for mine, least in zip(found, [256, 1024, 2048] * 10, strict=True))


def test_layers_of_collections(client):
    with dask.annotate(memory="1 GiB"):
        x = da.ones(4, chunks=1).map_blocks(lambda block: block * memory_mb(), dtype=float)
    assert x.max().compute() >= 1024
    assert x.min().compute() >= 1024
    y = da.ones(4, chunks=1).map_blocks(lambda block: block * memory_mb(), dtype=float)
    assert y.max().compute() == 256
    with dask.annotate(memory="2 GiB"):
        np.testing.assert_array_equal(client.compute(y).result(timeout=SECONDS_MAX), [2048] * 4)


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        ({"memory": "3 GiB"}, "memory='3 GiB' of task 'bad' is more than .*2.00 GiB.*serverless=False"),
        ({"memory": -1}, "memory=-1 of task 'bad' must be a size"),
        ({"memory": "a lot"}, "memory='a lot' of task 'bad' must be a size"),
        ({"timeout": "16 minutes"}, "timeout='16 minutes' of task 'bad' is longer than .*15 minutes"),
        ({"timeout": "later"}, "timeout='later' of task 'bad' must be a time"),
    ],
)
def test_bad_values_are_refused(client, annotation, said):
    with dask.annotate(**annotation):
        bad = client.submit(memory_mb, key="bad", pure=False)
        with pytest.raises(BadAnnotation, match=said):
            bad.result(timeout=SECONDS_MAX)
    assert client.submit(memory_mb, pure=False).result(timeout=SECONDS_MAX) == 256


def test_a_task_of_a_dask_worker_may_ask_for_anything(client):
    with dask.annotate(memory="100 GiB", timeout="1 day", serverless=False):
        assert client.submit(memory_mb, pure=False).result(timeout=SECONDS_MAX) == 0


def test_every_class_is_billed_by_its_own_memory(cluster, client):
    def billed(**annotation):
        before = cluster.stats()["gb_seconds"]
        with dask.annotate(**annotation):
            client.submit(sleep, 0.5, pure=False).result(timeout=SECONDS_MAX)
        # The sandbox's answer is billed a moment after the result has arrived.
        return until(lambda: cluster.stats()["gb_seconds"] - before)

    assert billed() < 1.0 <= billed(memory="2 GiB")
