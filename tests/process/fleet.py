"""A fleet of executors against real storage servers: they are threads here, and nothing else is pretended.

`Fleet` stands for Lambda: whatever is invoked, it runs a `Driver` for, in a world (connections, I/O
threads) of its own, as a sandbox has. It also stands for the proxy: it opens jobs and reads events.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import redis
from dask._expr import LLGExpr

from dask_serverless.constant_pool import ConstantPool
from dask_serverless.dask_graph import materialise, plan_job
from dask_serverless.plan import Sharing, make_classes
from dask_serverless.preparation import prepare
from fargate_storage.client import RedisStore
from fargate_storage.service import LocalTier, ServerNotFound
from lambda_worker.beside import Beside
from lambda_worker.core.policy import Policy
from lambda_worker.core.schedule import Assignment
from lambda_worker.core.wire import events_name, location_from_wire, seal_frames, unpack, unseal
from lambda_worker.driver import Driver
from lambda_worker.last_words import LastWords
from lambda_worker.values import value_to_frames
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


def intruder(fleet, url):
    """Connect to a server without any of our code."""
    return redis.Redis(unix_socket_path=url.removeprefix("unix://"), password=fleet.config.password)


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
