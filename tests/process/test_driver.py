"""The driver against real storage servers: executors are threads here, and nothing else is pretended.

`Fleet` stands for Lambda: whatever is invoked, it runs a `Driver` for, in a world (connections, I/O
threads) of its own, as a sandbox has. It also stands for the proxy: it opens jobs and reads events.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path

import dask
import numpy as np
import pytest
import redis
from dask._expr import LLGExpr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dask_serverless.constant_pool import ConstantPool
from dask_serverless.dask_graph import materialise, plan_job
from dask_serverless.plan import Sharing, make_classes
from dask_serverless.preparation import prepare
from fargate_storage.client import RedisStore
from fargate_storage.service import LocalTier, ServerNotFound
from lambda_worker.beside import Beside
from lambda_worker.core.errors import (
    StoreFull,
    StoreUnavailable,
    Tampered,
    UnpicklableResult,
    ValueTooLarge,
)
from lambda_worker.core.policy import Policy
from lambda_worker.core.schedule import Assignment
from lambda_worker.core.wire import Ref, events_name, location_from_wire, pack, pack_inline, seal_frames, unpack, unseal
from lambda_worker.driver import Driver
from lambda_worker.last_words import LastWords, last_words
from lambda_worker.values import frames_to_value, value_to_frames
from lambda_worker.world import World
from tests.waiting import until

SECRET = b"s" * 32
END_SECONDS_MAX = 30.0
CLASSES = make_classes("f", 2 * 2**30, 900, [4 * 2**30, 8 * 2**30], 900)
_numbers = itertools.count()

#: What tasks did, for tests to look at: tasks run in this process.
RAN: list[object] = []
GATES: dict[str, threading.Event] = {}
MEETINGS: dict[str, threading.Barrier] = {}
TIERS: dict[str, LocalTier] = {}


@contextlib.contextmanager
def start_tier(**options):
    try:
        tier = LocalTier(**options).start()
    except ServerNotFound as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    with contextlib.closing(tier):
        yield tier


@pytest.fixture(scope="module")
def tier():
    with start_tier(shards=2, maxmemory_bytes=2**30) as tier:
        yield tier


@pytest.fixture
def make_fleet(tier):
    RAN.clear()
    fleets = []

    def make(tier=tier, **options):
        fleets.append(Fleet(tier, **options))
        return fleets[-1]

    yield make
    for gate in GATES.values():
        gate.set()
    for fleet in fleets:
        fleet.close()


@pytest.fixture
def fleet(make_fleet):
    return make_fleet()


@dataclasses.dataclass
class Outcome:
    """What a job's executors said until the last of them ended."""

    fleet: Fleet
    keys: list
    where: dict = dataclasses.field(default_factory=dict)
    errors: dict = dataclasses.field(default_factory=dict)
    tracebacks: dict = dataclasses.field(default_factory=dict)
    missing: dict = dataclasses.field(default_factory=dict)
    counts: dict = dataclasses.field(default_factory=dict)
    retired: list = dataclasses.field(default_factory=list)
    delegated: list = dataclasses.field(default_factory=list)
    reasons: dict = dataclasses.field(default_factory=dict)
    stacks: dict = dataclasses.field(default_factory=dict)
    reports: list = dataclasses.field(default_factory=list)
    lost: set = dataclasses.field(default_factory=set)

    def value(self, key):
        return self.fleet.world().open_location(self.where[key])

    @property
    def values(self):
        return {key: self.value(key) for key in self.where}


class Fleet:
    """Lambda and the proxy, for one cluster."""

    warm = True  # an invocation costs nothing more

    def __init__(self, tier, policy=None, lease_seconds=15.0, last_words_directory=None, **store_options):
        self.config = tier.config(f"driver-{next(_numbers)}", lease_seconds=lease_seconds, **store_options)
        self.policy = policy or Policy(ceiling=4)
        self.last_words_directory = last_words_directory
        self.worlds: list[World] = []
        self.threads: list[threading.Thread] = []
        self.drivers: dict[str, Driver] = {}
        self.ends: dict[str, object] = {}
        self.store = RedisStore(self.config)
        self._jobs = itertools.count()
        self._lock = threading.Lock()
        self._reader: World | None = None

    def new_world(self):
        world = World(
            store=RedisStore(self.config),
            invoker=self,
            secret=SECRET,
            policy=self.policy,
            clock=time.perf_counter,
            beside=Beside(),
            lease_seconds=self.config.lease_seconds,
            last_words=LastWords(self.last_words_directory, str(len(self.worlds)))
            if self.last_words_directory
            else None,
        )
        with self._lock:
            self.worlds.append(world)
        return world

    def world(self):
        if self._reader is None:
            self._reader = self.new_world()
        return self._reader

    def invoke(self, assignments):
        """Accept everything, as `Invoker.invoke`."""
        for assignment in assignments:
            world = self.new_world()
            # Through bytes and back, as it would travel.
            driver = Driver(world, Assignment.from_bytes(assignment.to_bytes()))
            thread = threading.Thread(target=self._run, args=(assignment, driver), daemon=True)
            with self._lock:
                self.drivers[assignment.executor] = driver
                self.threads.append(thread)
            thread.start()
        return [None] * len(assignments)

    def _run(self, assignment, driver):
        try:
            end = driver.run()
        except BaseException as error:
            end = error
        with self._lock:
            self.ends[assignment.executor, assignment.attempt] = end

    def begin(self, tasks, wanted, groups=1, given=None, known=(), retries=None, payload_bytes_max=2**18, memory=None):
        """Plan, store and start a job, as the proxy does; return its name, plan and assignments."""
        job = f"j{next(self._jobs)}"
        wanted = set(wanted)
        graph = materialise(LLGExpr(tasks), wanted).tasks if not known else dict(tasks)
        plan = plan_job(graph, wanted, known, {"retries": retries or {}, "memory": memory or {}}, classes=CLASSES)
        preparation = prepare(job, plan, SECRET, ConstantPool(self.store, SECRET, self.world().compressor))
        self.store.open_job(job, preparation.segments)
        given = {plan.externals[key]: location for key, location in (given or {}).items()}
        starts = [(task, given.get(task)) for task in plan.graph.starts]
        ceiling = self.policy.ceiling
        assignments = preparation.assignments(
            starts, sharing=Sharing(groups), ceiling=ceiling, live=0, payload_bytes_max=payload_bytes_max, serial=1
        )
        assert self.store.admit(assignments, ceiling) == len(assignments)
        self.store.set_ceiling(ceiling)
        return job, plan, assignments

    def compute(self, tasks, wanted, **options):
        """Run a job until its last executor has ended, and return what they said."""
        job, plan, assignments = self.begin(tasks, wanted, **options)
        self.invoke(assignments)
        return self.outcome(job, plan)

    def class_of(self, executor):
        return self.drivers[executor].assignment.function_class

    def join(self):
        until(lambda: not any(thread.is_alive() for thread in list(self.threads)), "executors end", END_SECONDS_MAX)

    def outcome(self, job, plan):
        self.join()
        outcome = Outcome(self, list(plan.keys))
        names = {}
        for key, task in plan.visible.items():
            names.setdefault(task, []).append(key)
        while heard := self.store.listen(0):
            for name, executor, attempt, blob in heard:
                assert name == job
                if not blob:
                    outcome.retired.append(executor)
                    continue
                _, said = unpack(unseal(SECRET, events_name(job, executor, attempt), blob))
                for kind, content in said:
                    self._note(outcome, kind, content, names)
        outcome.reasons = {executor: end for (executor, _), end in self.ends.items()}
        return outcome

    @staticmethod
    def _note(outcome, kind, content, names):
        if kind == "done":
            for task, where, *_ in content:
                for key in names[task]:
                    outcome.where[key] = location_from_wire(where)
        elif kind == "erred":
            for task, blob in content:
                exception, _, _, shown, *_ = unpack(blob)
                outcome.errors[outcome.keys[task]] = pickle.loads(exception)
                outcome.tracebacks[outcome.keys[task]] = shown
        elif kind == "missing":
            outcome.missing.update((outcome.keys[task], module) for task, module in content)
        elif kind == "count":
            for name, amount in content.items():
                outcome.counts[name] = outcome.counts.get(name, 0) + amount
        elif kind == "delegating":
            outcome.delegated += content
        elif kind == "invoke":  # as the proxy does for those who left it that
            outcome.fleet.invoke([Assignment.from_bytes(content)])
            outcome.fleet.join()
        elif kind == "report":
            outcome.reports.append(content)
        elif kind == "lost":
            outcome.lost.update(outcome.keys[task] for task, _ in content)
        elif kind == "stack":
            task, frames = content
            outcome.stacks[outcome.keys[task]] = frames
        else:
            raise AssertionError(f"nobody asked for {kind!r}")

    def keep(self, value, name="exports/1"):
        """Store a value made elsewhere."""
        (ref,) = self.store.put([(name, seal_frames(SECRET, name, value_to_frames(value)))])
        return ref

    def close(self):
        for world in self.worlds:
            world.beside.close()
            world.store.close()
        self.store.close()


# --- what tasks do


def add(number, *values):
    """Sum, whatever form the values have."""
    return number + sum(int(np.sum(value)) for value in values)


def wide(number, *values):
    """As `add`, but large."""
    array = np.zeros(2000, dtype="int64")
    array[0] = add(number, *values)
    return array


def huge(number, *values):
    """As `wide`, but too large to travel inside a message."""
    return np.pad(wide(number, *values), (0, 18_000))


def add_late(late, *values):
    return add(0, *values)


def ran(what, *values):
    RAN.append(what)
    return what


def meet(where, value):
    MEETINGS[where].wait(10)
    return value


def wait_for(gate, *values):
    RAN.append(gate)
    assert GATES[f"{gate}-open"].wait(20)
    return gate


def gate(name):
    """Make a task block until the returned event is set."""
    GATES[f"{name}-open"] = threading.Event()
    return GATES[f"{name}-open"]


def squeeze(tier, share, *values):
    """Have the metadata server find that it may use less than it does."""
    config = TIERS[tier].config("")
    server = redis.Redis.from_url(config.metadata, password=config.password)
    server.setrange("stuffing", 100_000_000, b"x")  # beside which connections and buffers are nothing
    server.config_set("maxmemory", round(server.info("memory")["used_memory"] * share))
    return sum(values)


def a_lock(*values):
    return threading.Lock()


def is_lock(value):
    return hasattr(value, "acquire")


def sleep_and_add(seconds, number):
    time.sleep(seconds)
    return number


def fail(message):
    raise LookupError(message)


def leave(status):
    raise SystemExit(status)


class Bomb:
    """Unpickling one creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


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
def test_small_values_go_through_shards_where_fan_ins_have_no_room_for_them(make_fleet, groups):
    with start_tier(shards=1, maxmemory_bytes=2**26) as small:
        fleet = make_fleet(tier=small)
        TIERS["small"] = small
        tasks = {f"a{n}": (add, n) for n in range(40)} | {"full": (squeeze, "small", 0.9)}
        tasks |= {f"c{n}": (add, 1, f"a{n}", "full") for n in range(40)}
        outcome = fleet.compute(tasks, [f"c{n}" for n in range(40)], groups=groups)
        assert outcome.values == {f"c{n}": n + 1 for n in range(40)} and set(outcome.reasons.values()) == {""}
        assert sorted(outcome.retired) == sorted(outcome.reasons)
        assert groups == 1 or outcome.counts["objects_written"] > 0
        fleet.close()


@pytest.mark.fault(20)
def test_a_small_value_of_another_job_goes_through_shards_under_a_name_of_this_one(make_fleet):
    """So it goes when this job is over: nobody looks for it in the other one."""
    with start_tier(shards=1, maxmemory_bytes=2**26) as small:
        fleet = make_fleet(tier=small)
        TIERS["small"] = small
        elsewhere = "other/7/a/1"
        x = pack_inline(elsewhere, seal_frames(SECRET, elsewhere, value_to_frames(5)))
        tasks = {"y": (add, 2)} | {f"c{n}": (add, 1, "x", "y") for n in range(40)}
        graph = materialise(LLGExpr({**tasks, "x": 0}), set(tasks)).tasks
        del graph["x"]
        children = list(tasks)[1:]
        job, plan, assignments = fleet.begin(graph, children, groups=2, given={"x": x}, known={"x"})
        squeeze("small", 0.9)
        fleet.invoke(assignments)
        outcome = fleet.outcome(job, plan)
        assert outcome.values == dict.fromkeys(children, 8) and outcome.counts["objects_written"] > 0
        stored = [key.decode() for key in intruder(fleet, fleet.config.shards[0]).scan_iter("*object*")]
        assert stored and all(f"{{{job}}}" in key for key in stored), stored
        fleet.close()


@pytest.mark.fault(20)
def test_where_not_even_references_find_room_the_child_is_named_and_executors_end(make_fleet):
    with start_tier(shards=1, maxmemory_bytes=2**26) as small:
        fleet = make_fleet(tier=small)
        TIERS["small"] = small
        MEETINGS["both"] = threading.Barrier(2)
        tasks = {"a": (meet, "both", 1), "b": (meet, "both", 2)}
        tasks |= {"full": (squeeze, "small", 0.1, "a"), "c": (add, 3, "full", "b"), "fine": (add, 4, "b")}
        outcome = fleet.compute(tasks, ["c", "fine"], groups=2)
        assert outcome.values == {"fine": 6} and isinstance(outcome.errors["c"], StoreFull)
        said = str(outcome.errors["c"])
        assert (
            said.startswith("the value of task ")
            and "cannot reach its children" in said
            and "metadata-max-memory" in said
            and "limit: " in said
        ), said
        assert set(outcome.reasons.values()) == {""} and sorted(outcome.retired) == sorted(outcome.reasons)
        fleet.close()


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


def intruder(fleet, url):
    """Connect to a server without any of our code."""
    return redis.Redis(unix_socket_path=url.removeprefix("unix://"), password=fleet.config.password)


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


# --- last words


def test_last_words_name_the_task_that_is_running_and_are_gone_at_the_end(make_fleet, tmp_path):
    fleet = make_fleet(last_words_directory=str(tmp_path))
    opened = gate("words")
    job, plan, assignments = fleet.begin({"a": (add, 1), "b": (wait_for, "words", "a")}, ["b"])
    fleet.invoke(assignments)
    until(lambda: "words" in RAN, "the task runs")
    (file,) = tmp_path.iterdir()
    assert file.name == f"{job}.{assignments[0].executor}"
    kept = file.read_bytes()
    opened.set()
    fleet.join()
    assert not file.exists()
    file.write_bytes(kept)
    assert last_words(str(tmp_path), file.name) == list(plan.keys).index("b")


@pytest.mark.fault(46)
def test_a_full_disk_costs_the_last_words_only(make_fleet, tmp_path):
    fleet = make_fleet(last_words_directory=str(tmp_path))
    job, plan, assignments = fleet.begin({"a": (add, 1), "b": (add, 1, "a")}, ["b"])
    for each in assignments:
        os.symlink("/dev/full", tmp_path / f"{job}.{each.executor}")
    fleet.invoke(assignments)
    assert fleet.outcome(job, plan).values == {"b": 2}


def test_last_words_of_one_sandbox_are_in_one_file_unless_somebody_took_it(tmp_path):
    words = LastWords(str(tmp_path), "sandbox")
    for executor in ("a", "b"):
        words.begin(executor)
        words.say(3)
        words.end()
    assert len(list(tmp_path.iterdir())) == 1
    words.begin("c")
    words.say(4)
    assert last_words(str(tmp_path), "c") == 4, "c failed, and its sandbox goes on"
    words.end()
    words.begin("d")
    assert last_words(str(tmp_path), "d") == -1


def test_last_words_outlive_who_died(make_fleet, tmp_path):
    fleet = make_fleet(last_words_directory=str(tmp_path))
    job, plan, assignments = fleet.begin({"a": (add, 1), "b": (leave, 1), "c": (add, 0, "a", "b")}, ["c"])
    fleet.invoke(assignments)
    fleet.join()
    said = last_words(str(tmp_path), f"{job}.{assignments[0].executor}")
    assert plan.keys[said] == "b"
