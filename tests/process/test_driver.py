"""The driver against real storage servers (see `tests.process.fleet`): values, users' errors, leases."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import threading
import time

import dask
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lambda_worker.core.errors import (
    UnpicklableResult,
)
from lambda_worker.core.policy import Policy
from lambda_worker.core.wire import Ref
from tests.process.fleet import (
    MEETINGS,
    RAN,
    a_lock,
    add,
    fail,
    gate,
    intruder,
    is_lock,
    leave,
    meet,
    ran,
    sleep_and_add,
    wait_for,
    wide,
)
from tests.waiting import until

# --- the same values


@st.composite
def graphs(draw):
    size = draw(st.integers(1, 30))
    tasks = {}
    for number in range(size):
        parents = draw(st.lists(st.integers(0, number - 1), max_size=4, unique=True)) if number else []
        function = draw(st.sampled_from([add, add, wide]))
        tasks[f"t{number}"] = (function, number, *[f"t{parent}" for parent in parents])
    wanted = draw(st.sets(st.sampled_from(sorted(tasks)), min_size=1, max_size=6))
    return tasks, sorted(wanted)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graphs(), st.integers(1, 4), st.booleans(), st.booleans())
def test_any_graph_has_the_values_that_dask_gets(make_fleet, graph, groups, inline, travel):
    tasks, wanted = graph
    fleet = make_fleet(policy=Policy(ceiling=groups, inline_bytes_max=65_536 if inline else 64))
    outcome = fleet.compute(tasks, wanted, groups=groups, payload_bytes_max=2**18 if travel else 0)
    assert set(outcome.reasons.values()) == {""}
    values = outcome.values
    assert sorted(values) == wanted
    for key, expected in zip(wanted, dask.get(tasks, wanted), strict=True):
        np.testing.assert_array_equal(values[key], expected)
    assert sorted(outcome.retired) == sorted(outcome.reasons), "every executor retires, once"
    fleet.close()


@pytest.mark.parametrize("seed", range(3))
def test_a_graph_of_several_segments_on_several_executors(make_fleet, seed):
    chooser = np.random.default_rng(seed)
    tasks = {}
    for number in range(900):
        parents = sorted({int(n) for n in chooser.integers(max(0, number - 40), number, size=2)}) if number > 8 else []
        tasks[f"t{number}"] = (add, 1, *[f"t{parent}" for parent in parents])
        if number > 200:  # sums would grow without end
            tasks[f"t{number}"] = (max, *[f"t{parent}" for parent in parents], number)
    wanted = ["t899", "t500", "t3"]
    fleet = make_fleet()
    outcome = fleet.compute(tasks, wanted, groups=4, payload_bytes_max=0)
    assert [outcome.value(key) for key in wanted] == list(dask.get(tasks, wanted))


def test_large_values_go_through_shards_and_small_ones_inline(fleet):
    outcome = fleet.compute({"small": (bytes, 10), "large": (bytes, 100_000)}, ["small", "large"])
    assert isinstance(outcome.where["small"], bytes)
    assert isinstance(outcome.where["large"], Ref) and outcome.where["large"].nbytes >= 100_000
    assert outcome.values == {"small": bytes(10), "large": bytes(100_000)}
    assert outcome.counts["objects_written"] == 1


def test_an_arrays_buffer_is_stored_as_it_is_and_comes_back_writeable(fleet):
    outcome = fleet.compute({"x": (np.arange, 50_000)}, ["x"])
    value = outcome.value("x")
    np.testing.assert_array_equal(value, np.arange(50_000))
    value[0] = 7


def test_a_value_that_stays_with_its_executor_is_not_written(fleet):
    outcome = fleet.compute({"large": (bytes, 1_000_000), "size": (len, "large")}, ["size"])
    assert outcome.value("size") == 1_000_000
    assert "objects_written" not in outcome.counts


def reported(outcome):
    """Add up what executors reported: decisions, and tasks, seconds and bytes by prefix."""
    counts, observed = {}, {}
    for sums_by_prefix, decisions, _, _ in outcome.reports:
        for decision, count in decisions.items():
            counts[decision] = counts.get(decision, 0) + count
        for number, (tasks, seconds, _, nbytes, *_) in sums_by_prefix.items():
            observed.setdefault(number, []).append((tasks, seconds, nbytes))
    return counts, observed


def test_executors_report_what_they_observed_and_decided_when_they_retire(fleet):
    MEETINGS["reports"] = threading.Barrier(2)
    tasks = {
        "meet-1": (meet, "reports", 1),
        "meet-2": (meet, "reports", 2),
        "bytes-1": (lambda number: bytes(100_000 * number), "meet-1"),
        "last": (lambda number, value: number + len(value), "meet-2", "bytes-1"),
    }
    outcome = fleet.compute(tasks, ["last"], groups=2)
    assert outcome.value("last") == 100_002
    counts, observed = reported(outcome)
    assert counts["began"] == 2
    assert counts["become"] == 1
    assert counts["inline"] + counts.get("store", 0) >= 2
    seen = [nbytes for sums in observed.values() for _, _, nbytes in sums if nbytes]
    assert all(nbytes >= 100_000 for nbytes in seen)
    words = {decision for _, _, samples, _ in outcome.reports for decision, _, _ in samples}
    assert {"become", "publish", "inline"} <= words


class LoadsSlowly:
    """It takes a hundred seconds to unpickle one, by the clock of the sandbox."""

    late = 0.0

    def __reduce__(self):
        return _loaded, ()

    def __call__(self):
        return 1


def _loaded():
    LoadsSlowly.late += 100.0
    return LoadsSlowly()


def test_what_it_takes_to_load_a_task_is_not_its_time(fleet, monkeypatch):
    new_world = fleet.new_world

    def late_world():
        world = new_world()
        world.clock = lambda: time.perf_counter() + LoadsSlowly.late
        return world

    monkeypatch.setattr(fleet, "new_world", late_world)
    outcome = fleet.compute({"x": (LoadsSlowly(),)}, ["x"])
    assert outcome.value("x") == 1
    assert LoadsSlowly.late >= 100.0
    ((_, seconds, _),) = reported(outcome)[1][0]
    assert seconds < 100.0


def test_two_executors_meet_at_a_fan_in_and_one_goes_on(fleet):
    MEETINGS["both"] = threading.Barrier(2)
    tasks = {
        "a": (meet, "both", 1),
        "b": (meet, "both", 2),
        "c": (add, 0, "a", "b"),
        "d": (ran, "d ran", "c"),
    }
    outcome = fleet.compute(tasks, ["c", "d"], groups=2)
    assert outcome.values == {"c": 3, "d": "d ran"}
    assert RAN == ["d ran"]
    assert outcome.counts["executors"] == 2 and outcome.counts["tasks_run"] == 4


def test_two_executors_meet_at_many_fan_ins(fleet):
    MEETINGS["both"] = threading.Barrier(2)
    tasks = {"a": (meet, "both", 1), "b": (meet, "both", 2)}
    tasks.update({f"c{n}": (wide, n, "a", "b") for n in range(50)})
    tasks["end"] = (add, 0, *[f"c{n}" for n in range(50)])
    outcome = fleet.compute(tasks, ["end"], groups=2)
    assert outcome.value("end") == sum(n + 3 for n in range(50))
    assert outcome.counts["tasks_run"] == 53


def test_a_wide_fan_out_is_shared_with_executors_that_were_invoked_for_it(make_fleet):
    fleet = make_fleet(policy=Policy(ceiling=4, share_seconds_min=0.02, invoke_seconds=0.001))
    tasks = {"s": (add, 1), **{f"t{n}": (sleep_and_add, 0.01, n) for n in range(100)}}
    tasks.update({f"u{n}": (add, 0, f"t{n}", "s") for n in range(100)})
    tasks["end"] = (add, 0, *[f"u{n}" for n in range(100)])
    outcome = fleet.compute(tasks, ["end"])
    assert not any(outcome.reasons.values()), outcome.reasons
    assert outcome.value("end") == sum(range(100)) + 100
    assert outcome.delegated and set(outcome.delegated) < set(outcome.retired)
    assert len(set(outcome.retired)) == outcome.counts["executors"] <= 1 + len(outcome.delegated)
    assert outcome.counts["invocations"] == len(outcome.delegated)
    assert outcome.counts["tasks_run"] == 202, "nothing ran twice"


def where(*values):
    """The names of the threads that ran the task and those before it: each executor has one."""
    return [*itertools.chain(*values), threading.current_thread().name]


@pytest.mark.parametrize("travel", [True, False], ids=["inline", "by reference"])
def test_with_one_place_a_task_that_does_not_fit_goes_on_in_a_successor(make_fleet, travel):
    fleet = make_fleet(policy=Policy(ceiling=1, inline_bytes_max=65_536 if travel else 16))
    tasks = {"a": (where,), "b": (where, "a"), "large": (where, "b"), "c": (where, "large"), "d": (where, "c")}
    outcome = fleet.compute(tasks, ["d"], memory={"large": "4 GiB"})
    ran = outcome.value("d")
    assert len(set(ran[:2])) == len(set(ran[2:])) == 1, "what comes after the large task fits as well"
    assert ran[1] != ran[2]
    assert outcome.reasons == {"1-0": "", "1-0.1.1": ""}
    assert [fleet.class_of(each) for each in outcome.reasons] == [0, 1]
    assert outcome.retired == ["1-0", "1-0.1.1"] and outcome.delegated == ["1-0.1.1"]


def test_a_fan_in_that_does_not_fit_whoever_wins_it(make_fleet):
    fleet = make_fleet(policy=Policy(ceiling=2))
    tasks = {"a": (sleep_and_add, 0.0, 1), "b": (sleep_and_add, 0.05, 2), "c": (add, 3, "a", "b"), "d": (add, 4, "c")}
    outcome = fleet.compute(tasks, ["c", "d"], groups=2, memory={"c": "8 GiB"})
    assert outcome.values == {"c": 6, "d": 10}
    assert sorted(fleet.class_of(each) for each in outcome.reasons) == [0, 0, 2]


def test_a_value_that_cannot_reach_its_larger_executor_is_an_error(make_fleet):
    fleet = make_fleet(policy=Policy(ceiling=1))
    tasks = {"lock": (a_lock,), "n": (add, 1), "large": (is_lock, "lock"), "fine": (add, 1, "n")}
    outcome = fleet.compute(tasks, ["large", "fine"], memory=dict.fromkeys(("large", "fine"), "4 GiB"))
    assert outcome.values == {"fine": 2}
    assert isinstance(outcome.errors["lock"], UnpicklableResult)
    assert set(outcome.reasons.values()) == {""}


@pytest.mark.fault(37)
def test_a_large_constant_is_read_once_per_sandbox(fleet):
    table = np.arange(100_000)
    tasks = {"table": table, **{f"t{n}": (add, n, "table") for n in range(20)}}
    outcome = fleet.compute(tasks, [f"t{n}" for n in range(20)])
    assert outcome.value("t3") == 3 + int(table.sum())
    assert outcome.counts["bytes_read"] < 2 * table.nbytes


# --- the user's errors


def test_a_users_exception_keeps_its_type_and_shows_the_users_frame_first(fleet):
    outcome = fleet.compute({"bad": (fail, "no such thing"), "end": (add, 0, "bad"), "fine": (add, 1)}, ["end", "fine"])
    assert set(outcome.errors) == {"bad"} and outcome.values == {"fine": 1}
    assert type(outcome.errors["bad"]) is LookupError and outcome.errors["bad"].args == ("no such thing",)
    assert "in fail" in outcome.tracebacks["bad"].splitlines()[0]


def test_a_task_is_tried_again_as_often_as_asked_for(fleet):
    outcome = fleet.compute({"bad": (fail, "again")}, ["bad"], retries={"bad": 2})
    assert outcome.counts["tasks_run"] == 3 and outcome.counts["tasks_rerun"] == 2
    assert set(outcome.errors) == {"bad"}


@pytest.mark.fault(33)
def test_a_module_that_is_not_here_is_named_with_the_task(fleet, tmp_path, monkeypatch):
    (tmp_path / "gone_by_then.py").write_text("def function():\n    return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import gone_by_then

    job, plan, assignments = fleet.begin({"needs": (gone_by_then.function,)}, ["needs"])
    monkeypatch.undo()
    del sys.modules["gone_by_then"]
    fleet.invoke(assignments)
    assert fleet.outcome(job, plan).missing == {"needs": "gone_by_then"}


def test_leaving_the_process_is_not_an_error_of_the_task(make_fleet, tmp_path):
    fleet = make_fleet(last_words_directory=str(tmp_path))
    outcome = fleet.compute({"x": (leave, 3)}, ["x"])
    (end,) = outcome.reasons.values()
    assert isinstance(end, SystemExit) and end.code == 3
    assert not outcome.errors and not outcome.retired, "its record stays, for the failure to find"


# --- leases


@pytest.mark.parametrize("how", ["fenced", "cancelled"])
def test_an_executor_that_is_halted_in_a_task_does_nothing_after_it(make_fleet, how):
    fleet = make_fleet(lease_seconds=0.3)
    opened = gate("halted")
    tasks = {"a": (wait_for, "halted"), "b": (ran, "b ran", "a"), "c": (ran, "c ran", "b")}
    job, plan, assignments = fleet.begin(tasks, ["b", "c"])
    fleet.invoke(assignments)
    until(lambda: "halted" in RAN, "the task runs")
    executor = assignments[0].executor
    fleet.store.drop(job, executor) if how == "fenced" else fleet.store.cancel(job)
    until(lambda: fleet.drivers[executor].executor.finished, "a beat hears of it")
    opened.set()
    outcome = fleet.outcome(job, plan)
    assert outcome.reasons == {executor: how}
    assert RAN == ["halted"] and not outcome.where and not outcome.errors


@pytest.mark.fault(7)
def test_a_newer_attempt_takes_over(make_fleet):
    fleet = make_fleet(lease_seconds=0.3)
    opened = gate("old")
    job, plan, (old,) = fleet.begin({"a": (wait_for, "old"), "b": (ran, "b ran", "a")}, ["b"])
    fleet.invoke([old])
    until(lambda: "old" in RAN, "the first attempt runs")
    new = dataclasses.replace(old, attempt=2)
    assert fleet.store.admit([new], 4) == 1
    first = fleet.drivers[old.executor]
    until(lambda: first.executor.finished, "the first attempt hears that it is fenced")
    opened.set()
    fleet.invoke([new])
    outcome = fleet.outcome(job, plan)
    assert fleet.ends == {(old.executor, 1): "fenced", (old.executor, 2): ""}
    assert outcome.values == {"b": "b ran"} and RAN.count("b ran") == 1


@pytest.mark.fault(29)
def test_a_long_task_keeps_its_lease(make_fleet):
    fleet = make_fleet(lease_seconds=0.5)
    job, plan, assignments = fleet.begin({"long": (sleep_and_add, 2.0, 1)}, ["long"])
    fleet.invoke(assignments)

    def ended():
        assert fleet.store.lapsed() == []
        return not fleet.threads[0].is_alive()

    until(ended, "the task ends")
    outcome = fleet.outcome(job, plan)
    assert outcome.values == {"long": 1}
    assert " in sleep_and_add" in outcome.stacks["long"][0], "at heartbeats it says where it is"


def test_who_falls_silent_lapses_and_the_last_beat_said_what_it_was_running(make_fleet):
    fleet = make_fleet(lease_seconds=0.4)
    opened = gate("silent")
    job, plan, assignments = fleet.begin({"a": (add, 1), "b": (wait_for, "silent", "a")}, ["b"])
    fleet.invoke(assignments)
    until(lambda: "silent" in RAN, "the task runs")
    executor = assignments[0].executor
    metadata = intruder(fleet, fleet.config.metadata)
    (record,) = metadata.scan_iter(match=f"{fleet.config.cluster}:*record:{executor}")
    until(lambda: metadata.hget(record, "running") == b"1", "a beat")
    fleet.drivers[executor].world.beside.close()  # as if the process had been stopped
    (lapsed,) = until(fleet.store.lapsed, "its lease runs out")
    assert (lapsed.job, lapsed.executor, lapsed.attempt, lapsed.running) == (job, executor, 1, 1)
    opened.set()
