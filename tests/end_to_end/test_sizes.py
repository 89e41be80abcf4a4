"""Much of everything: many tasks in one graph, many futures, values that are larger than a stripe."""

from __future__ import annotations

import numpy as np
import pytest
from distributed import Client, wait

from dask_serverless import ServerlessCluster
from tests.waiting import until

MIB = 2**20
TASKS = 100_000
FAN_IN = 16
#: What the proxy may hold of a task once its graph is under way or done: the message that brought it.
PROXY_BYTES_PER_TASK_MAX = 200


def increment(number):
    return number + 1


def total(values):
    return float(values.sum())


def allocate(nbytes):
    return np.ones(nbytes // 8)


def tree(leaves, name):
    """Return a graph that adds the numbers 1 .. leaves, and the key of the sum."""
    level = [f"{name}-leaf-{number}" for number in range(leaves)]
    graph = {key: (increment, number) for number, key in enumerate(level)}
    while len(level) > 1:
        parts = [level[first : first + FAN_IN] for first in range(0, len(level), FAN_IN)]
        level = [f"{name}-sum-{len(level)}-{number}" for number in range(len(parts))]
        graph.update((key, (sum, part)) for key, part in zip(level, parts, strict=True))
    return graph, level[0]


@pytest.mark.fault(34)
def test_a_giant_graph_is_held_as_its_message_only(cluster, client):
    graph, key = tree(TASKS * (FAN_IN - 1) // FAN_IN, "giant")
    before = cluster.stats()
    (future,) = client.get(graph, [key], sync=False)
    leaves = sum(1 for name in graph if "leaf" in name)
    assert future.result(timeout=600) == leaves * (leaves + 1) // 2
    after = cluster.stats()
    assert after["tasks_planned"] - before["tasks_planned"] == len(graph)
    assert after["tasks_run"] - before["tasks_run"] == len(graph)
    assert after["graphs_kept"] == before["graphs_kept"] + 1
    assert after["proxy_bytes"] - before["proxy_bytes"] < PROXY_BYTES_PER_TASK_MAX * len(graph)
    until(lambda: cluster.stats()["tasks_under_way"] == 0, "the job to be closed")
    del future
    until(lambda: cluster.stats()["graphs_kept"] == before["graphs_kept"], "the graph to be let go")
    until(lambda: cluster.stats()["proxy_bytes"] <= before["proxy_bytes"], "its bytes to be let go")


def test_a_large_graph_is_planned_again_from_its_message(cluster, client):
    graph, key = tree(2_000, "again")
    (future,) = client.get(graph, [key], sync=False)
    wait(future, timeout=300)

    async def lose(dask_scheduler):
        (address,) = (ws.address for ws in dask_scheduler.tasks[key].who_has)
        dask_scheduler.release_worker_data(key=key, worker=address, stimulus_id="lost-in-a-test")

    before = cluster.stats()
    client.run_on_scheduler(lose)
    assert future.result(timeout=300) == 2_000 * 2_001 // 2
    assert cluster.stats()["tasks_planned"] - before["tasks_planned"] == len(graph)


@pytest.mark.fault(36)
def test_many_small_results_are_gathered_without_passing_a_worker(cluster, client):
    before = cluster.stats()
    futures = client.map(increment, range(10_000), pure=False)
    assert client.gather(futures) == list(range(1, 10_001))
    after = cluster.stats()
    assert after["objects_written"] == before["objects_written"]  # they travel inside events
    assert after["tasks_run"] - before["tasks_run"] == 10_000


def test_gather_names_and_skips_keys_like_a_stock_scheduler(client):
    good = client.submit(increment, 1, pure=False)
    scattered = client.scatter({"here": 5})["here"]
    bad = client.submit(increment, None, pure=False)
    wait([good, bad], timeout=60)
    assert client.gather([good, scattered]) == [2, 5]
    assert client.gather([good, bad, scattered], errors="skip") == [2, 5]
    assert client.gather([good, scattered], direct=True) == [2, 5]


@pytest.fixture(scope="module")
def roomy():
    with ServerlessCluster(n_workers=2, memory_limit="4 GiB", dashboard_address=None) as cluster:
        yield cluster


@pytest.mark.fault(35)
def test_a_value_of_many_stripes_is_read_by_a_task_and_gathered(roomy):
    nbytes = 600 * MIB
    with Client(roomy) as client:
        future = client.submit(allocate, nbytes, pure=False)
        assert client.submit(total, future).result(timeout=300) == nbytes // 8
        value = future.result(timeout=300)
        assert value.nbytes == nbytes
        assert value.flags.writeable
        assert value[0] == value[-1] == 1.0


def test_a_large_scattered_value_is_read_by_a_task(roomy):
    nbytes = 200 * MIB
    with Client(roomy) as client:
        future = client.scatter(allocate(nbytes))
        assert client.submit(total, future).result(timeout=300) == nbytes // 8


@pytest.mark.fault(13)
def test_a_task_that_asks_for_too_much_memory_is_told_what_to_raise(client):
    future = client.submit(allocate, 64 * 2**30, pure=False)
    with pytest.raises(MemoryError) as caught:
        future.result(timeout=60)
    assert any("memory_limit" in note for note in caught.value.__notes__)
