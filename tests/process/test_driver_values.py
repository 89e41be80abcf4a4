"""The driver, and values that cannot be stored or sent, or inputs that are not what was written."""

from __future__ import annotations

import os
import pickle
import signal
import threading

import numpy as np
import pytest
from dask._expr import LLGExpr

from dask_serverless.dask_graph import materialise
from lambda_worker.core.errors import (
    StoreFull,
    StoreUnavailable,
    Tampered,
    UnpicklableResult,
    ValueTooLarge,
)
from lambda_worker.core.policy import Policy
from lambda_worker.core.wire import pack, pack_inline, seal_frames
from lambda_worker.values import frames_to_value, value_to_frames
from tests.process.fleet import (
    MEETINGS,
    RAN,
    SECRET,
    TIERS,
    Bomb,
    a_lock,
    add,
    add_late,
    gate,
    huge,
    intruder,
    is_lock,
    meet,
    squeeze,
    start_tier,
    wait_for,
)
from tests.waiting import until


@pytest.fixture
def small_fleet(make_fleet):
    """A fleet whose only shard, and whose metadata server, tasks can fill (`squeeze`)."""
    with start_tier(shards=1, maxmemory_bytes=2**26) as tier:
        TIERS["small"] = tier
        fleet = make_fleet(tier=tier)
        yield fleet
        fleet.close()


# --- values that cannot be


@pytest.mark.fault(16)
def test_a_result_that_cannot_be_pickled_errs_by_name_and_spares_the_rest(fleet):
    outcome = fleet.compute({"lock": (a_lock,), "fine": (add, 1)}, ["lock", "fine"])
    assert isinstance(outcome.errors["lock"], UnpicklableResult)
    assert "'lock'" in str(outcome.errors["lock"]) and "_thread.lock" in str(outcome.errors["lock"])
    assert outcome.values == {"fine": 1}


def test_a_value_that_cannot_be_pickled_may_be_used_where_it_was_made(fleet):
    outcome = fleet.compute({"lock": (a_lock,), "yes": (is_lock, "lock")}, ["yes"])
    assert outcome.values == {"yes": True} and not outcome.errors


def test_a_value_that_cannot_be_pickled_cannot_reach_another_executor(fleet):
    MEETINGS["both"] = threading.Barrier(2)
    tasks = {
        "one": (meet, "both", 1),
        "other": (meet, "both", 2),
        "lock": (a_lock, "one"),
        "end": (add, 0, "lock", "other"),
    }
    outcome = fleet.compute(tasks, ["end"], groups=2)
    assert isinstance(outcome.errors["lock"], UnpicklableResult) and not outcome.where


def test_a_value_that_is_too_large_names_task_size_and_limit(make_fleet):
    fleet = make_fleet(object_bytes_max=1_000_000)
    outcome = fleet.compute({"huge": (bytes, 2_000_000), "fine": (bytes, 200_000)}, ["huge", "fine"])
    text = str(outcome.errors["huge"])
    assert isinstance(outcome.errors["huge"], ValueTooLarge)
    assert "'huge'" in text and "2,000," in text and "1,000,000" in text
    assert len(outcome.value("fine")) == 200_000


@pytest.mark.fault(20)
def test_a_full_store_names_task_and_limit(make_fleet):
    with start_tier(shards=1, maxmemory_bytes=12 * 2**20) as small:
        fleet = make_fleet(tier=small)
        outcome = fleet.compute({"huge": (bytes, 40_000_000), "fine": (add, 1)}, ["huge", "fine"])
        assert isinstance(outcome.errors["huge"], StoreFull)
        assert "'huge'" in str(outcome.errors["huge"]) and "limit" in str(outcome.errors["huge"])
        assert outcome.values == {"fine": 1}
        fleet.close()


@pytest.mark.fault(20)
@pytest.mark.parametrize("groups", [1, 2])
def test_small_values_go_through_shards_where_fan_ins_have_no_room_for_them(small_fleet, groups):
    tasks = {f"a{n}": (add, n) for n in range(40)} | {"full": (squeeze, "small", 0.9)}
    tasks |= {f"c{n}": (add, 1, f"a{n}", "full") for n in range(40)}
    outcome = small_fleet.compute(tasks, [f"c{n}" for n in range(40)], groups=groups)
    assert outcome.values == {f"c{n}": n + 1 for n in range(40)} and set(outcome.reasons.values()) == {""}
    assert sorted(outcome.retired) == sorted(outcome.reasons)
    assert groups == 1 or outcome.counts["objects_written"] > 0


@pytest.mark.fault(20)
def test_a_small_value_of_another_job_goes_through_shards_under_a_name_of_this_one(small_fleet):
    """So it goes when this job is over: nobody looks for it in the other one."""
    elsewhere = "other/7/a/1"
    x = pack_inline(elsewhere, seal_frames(SECRET, elsewhere, value_to_frames(5)))
    tasks = {"y": (add, 2)} | {f"c{n}": (add, 1, "x", "y") for n in range(40)}
    graph = materialise(LLGExpr({**tasks, "x": 0}), set(tasks)).tasks
    del graph["x"]
    children = list(tasks)[1:]
    job, plan, assignments = small_fleet.begin(graph, children, groups=2, given={"x": x}, known={"x"})
    squeeze("small", 0.9)
    small_fleet.invoke(assignments)
    outcome = small_fleet.outcome(job, plan)
    assert outcome.values == dict.fromkeys(children, 8) and outcome.counts["objects_written"] > 0
    stored = [key.decode() for key in intruder(small_fleet, small_fleet.config.shards[0]).scan_iter("*object*")]
    assert stored and all(f"{{{job}}}" in key for key in stored), stored


@pytest.mark.fault(20)
def test_where_not_even_references_find_room_the_child_is_named_and_executors_end(small_fleet):
    MEETINGS["both"] = threading.Barrier(2)
    tasks = {"a": (meet, "both", 1), "b": (meet, "both", 2)}
    tasks |= {"full": (squeeze, "small", 0.1, "a"), "c": (add, 3, "full", "b"), "fine": (add, 4, "b")}
    outcome = small_fleet.compute(tasks, ["c", "fine"], groups=2)
    assert outcome.values == {"fine": 6} and isinstance(outcome.errors["c"], StoreFull)
    said = str(outcome.errors["c"])
    assert (
        said.startswith("the value of task ")
        and "cannot reach its children" in said
        and "metadata-max-memory" in said
        and "limit: " in said
    ), said
    assert set(outcome.reasons.values()) == {""} and sorted(outcome.retired) == sorted(outcome.reasons)


@pytest.mark.fault(18, 28)
def test_a_store_that_dies_ends_the_executor_with_a_typed_error_soon(make_fleet):
    with start_tier(shards=1, maxmemory_bytes=2**26, restarts_max=0) as mortal:
        fleet = make_fleet(tier=mortal, retry_seconds=0.2)
        opened = gate("dying")
        job, plan, assignments = fleet.begin({"x": (wait_for, "dying")}, ["x"])
        fleet.invoke(assignments)
        until(lambda: "dying" in RAN, "the task runs")
        for pid in mortal.pids.values():
            os.kill(pid, signal.SIGKILL)
        opened.set()
        fleet.join()
        (end,) = fleet.ends.values()
        assert isinstance(end, StoreUnavailable)
        fleet.close()


# --- inputs that are not what was written


def raw_shards(fleet):
    return [intruder(fleet, url) for url in fleet.config.shards]


def objects_in(fleet):
    for shard in raw_shards(fleet):
        for key in shard.scan_iter(match=f"{fleet.config.cluster}:*object:*"):
            yield shard, key


def flip_a_byte(fleet, ref, path):
    for shard, key in objects_in(fleet):
        last = shard.llen(key) - 1
        frame = bytearray(shard.lindex(key, last))
        frame[len(frame) // 2] ^= 1
        shard.lset(key, last, bytes(frame))


def put_a_bomb(fleet, ref, path):
    (frames,) = fleet.store.get([ref])
    bomb = value_to_frames(Bomb(path))[1]
    for shard, key in objects_in(fleet):  # of the same size, so that only the tag can tell
        sizes = [len(frame) for frame in frames]
        bomb = bomb + bytes(sum(sizes) - sizes[0] - sizes[1] - len(bomb))
        shard.delete(key)
        shard.rpush(key, bytes(frames[0]), pack([]), bomb)


def put_another_sealed_value(fleet, ref, path):
    fleet.keep(bytes(100_000), "exports/2")
    (other,) = [(shard, key) for shard, key in objects_in(fleet) if b"exports/2" in key]
    frames = other[0].lrange(other[1], 0, -1)
    for shard, key in objects_in(fleet):
        if b"exports/1" in key:
            shard.delete(key)
            shard.rpush(key, *frames)


def remove(fleet, ref, path):
    fleet.store.free([ref])


@pytest.mark.fault(31)
@pytest.mark.parametrize("children", [1, 5])
@pytest.mark.parametrize("intrude", [flip_a_byte, put_a_bomb, put_another_sealed_value, remove])
def test_a_stored_input_that_is_not_what_was_written(fleet, tmp_path, intrude, children):
    """No task that needs it is run, nothing was unpickled, others go on; the proxy, who has its maker, hears of it."""
    path = tmp_path / "unpickled"
    where = fleet.keep(bytes(100_000))
    intrude(fleet, where, path)
    tasks = {f"t{n}": (len, "x") for n in range(children)}
    graph = materialise(LLGExpr({**tasks, "fine": (add, 1), "x": 0}), {*tasks, "fine"}).tasks
    del graph["x"]
    outcome = fleet.compute(graph, [*tasks, "fine"], given={"x": where}, known={"x"})
    assert outcome.lost == {"x"}
    assert not outcome.errors
    assert outcome.values == {"fine": 1}
    assert not path.exists(), "it was unpickled"


def test_a_good_input_beside_a_lost_one_is_still_good(make_fleet):
    """What was not read because its neighbour was lost is not lost for others."""
    fleet = make_fleet(policy=Policy(ceiling=4, fetch_ahead=1))
    lost, good = fleet.keep(bytes(100_000), "exports/lost"), fleet.keep(bytes(200_000), "exports/good")
    fleet.store.free([lost])
    tasks = {"both": (max, "lost", "good"), **{f"t{n}": (len, "good") for n in range(4)}}
    graph = materialise(LLGExpr({**tasks, "lost": 0, "good": 0}), set(tasks)).tasks
    del graph["lost"], graph["good"]
    outcome = fleet.compute(graph, tasks, given={"lost": lost, "good": good}, known={"lost", "good"})
    assert outcome.lost == {"lost"}
    assert outcome.values == {f"t{n}": 200_000 for n in range(4)}


def test_a_value_that_travelled_compressed_counts_with_its_size_in_memory(make_fleet):
    """Otherwise an executor keeps far more than its bound."""
    fleet = make_fleet(policy=Policy(ceiling=2, bytes_per_second=1e6))
    frames = fleet.world().compressor.shrink(value_to_frames(np.zeros(1_000_000)))
    (ref,) = fleet.store.put([("exports/zeros", seal_frames(SECRET, "exports/zeros", frames))])
    assert ref.nbytes < 100_000
    graph = materialise(LLGExpr({"t": (np.sum, "x"), "x": 0}), {"t"}).tasks
    del graph["x"]
    assert fleet.compute(graph, ["t"], given={"x": ref}, known={"x"}).values == {"t": 0.0}
    (driver,) = fleet.drivers.values()
    assert driver.world.cache.nbytes >= 8_000_000


@pytest.mark.fault(23)
@pytest.mark.parametrize("shards", [[0, 1], [0], [1]])
def test_values_that_a_shard_has_lost_are_made_again_by_who_needs_them(make_fleet, shards):
    """Two executors meet; what the first has written is gone when the second comes to read it."""
    fleet = make_fleet(policy=Policy(ceiling=2, hold=False))
    opened = gate("g")
    tasks = {f"a{n}": (huge, n) for n in range(8)}
    tasks |= {f"b{n}": (huge, 10, f"a{n}") for n in range(8)}
    tasks |= {"late": (wait_for, "g"), "sum": (add_late, "late", *[f"b{n}" for n in range(8)])}
    job, plan, assignments = fleet.begin(tasks, ["sum"], groups=2)
    fleet.invoke(assignments)
    try:
        until(lambda: fleet.ends, "one of them has written what it has, and left")
        stored = [key for shard, key in objects_in(fleet)]
        for number in shards:
            raw_shards(fleet)[number].flushall()
        lost = len(stored) - len(list(objects_in(fleet)))
    finally:
        opened.set()
    outcome = fleet.outcome(job, plan)
    assert outcome.values == {"sum": sum(10 + n for n in range(8))}
    assert not outcome.errors and not outcome.lost
    # Each of them has one parent, which nobody had written.
    assert lost and outcome.counts["tasks_remade"] == 2 * lost
    assert outcome.counts["tasks_run"] == len(plan.keys) + 2 * lost


@pytest.mark.fault(42)
def test_an_inline_input_with_a_wrong_tag_is_not_unpickled(fleet, tmp_path):
    path = tmp_path / "unpickled"
    forged = pack_inline("exports/1", seal_frames(b"not the secret", "exports/1", value_to_frames(Bomb(path))))
    graph = materialise(LLGExpr({"t": (len, "x"), "x": 0}), {"t"}).tasks
    del graph["x"]
    outcome = fleet.compute(graph, ["t"], given={"x": forged}, known={"x"})
    assert isinstance(outcome.errors["t"], Tampered) and "'t'" in str(outcome.errors["t"])
    assert not path.exists()


def test_the_bomb_would_go_off(tmp_path):
    """Else the tests above show nothing."""
    frames_to_value(value_to_frames(Bomb(tmp_path / "unpickled")))
    assert (tmp_path / "unpickled").exists()


@pytest.mark.fault(31, 42)
def test_a_segment_that_was_tampered_with_is_not_unpickled_but_asked_for_again(fleet, tmp_path):
    path = tmp_path / "unpickled"
    job, plan, assignments = fleet.begin({"x": (add, 1)}, ["x"], payload_bytes_max=0)
    assert not assignments[0].segments, "it is read from the store"
    for shard in raw_shards(fleet):
        for key in shard.scan_iter(match=f"{fleet.config.cluster}:*segments"):
            good = shard.hget(key, "0")
            shard.hset(key, "0", bytes(32) + pack([b"", pickle.dumps([Bomb(path)])]))
    fleet.invoke(assignments)
    asked = until(lambda: [each for each in fleet.store.listen(0.1) if b"lacking" in each[-1]])
    assert [each[0] for each in asked] == [job]
    fleet.store.open_job(job, {0: good})
    fleet.join()
    assert list(fleet.ends.values()) == [""]
    assert not path.exists()


@pytest.mark.fault(27)
@pytest.mark.parametrize("end", ["cancel", "close_job"])
def test_an_executor_does_not_wait_for_the_segments_of_a_job_that_is_over(fleet, end):
    job, _, assignments = fleet.begin({"x": (add, 1)}, ["x"], payload_bytes_max=0)
    fleet.store.close_job(job, []) if end == "close_job" else fleet.store.cancel(job)
    for shard in raw_shards(fleet):
        for key in shard.scan_iter(match=f"{fleet.config.cluster}:*segments"):
            shard.delete(key)
    fleet.invoke(assignments)
    fleet.join()  # long before what is lost is given up
    assert list(fleet.ends.values()) == [{"cancel": "cancelled", "close_job": "fenced"}[end]]
