"""A small world for executor cores: it performs the instructions of many of them, in any order, and lets them die."""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

from dask_serverless.plan import Sharing, assign_starts, edges, number
from lambda_worker.core.events import (
    Answered,
    Began,
    Delegated,
    InputsFetched,
    InputsLost,
    Located,
    SegmentsLoaded,
    TaskDone,
    TaskErred,
    Woken,
)
from lambda_worker.core.executor import Executor
from lambda_worker.core.instructions import (
    Arrive,
    Delegate,
    Fetch,
    Finish,
    Forget,
    LoadSegments,
    Locate,
    Run,
    WakeAfter,
)
from lambda_worker.core.policy import Policy
from lambda_worker.core.schedule import Assignment, segment_of
from lambda_worker.core.verdicts import Claim, Standing, Verdict
from lambda_worker.core.wire import pack, unpack


def graph_of(parents, wanted, externals=(), classes=None):
    graph, keys = number(parents, wanted, externals=externals, classes=classes)
    return graph, keys


class World:
    """Executors over one in-memory store; `random` chooses who moves next.

    Values are computed as the sum of the parents' values plus one, so that every task's value is
    known beforehand, and a value that was lost, mixed up or forgotten too early shows.
    """

    def __init__(self, graph, policy, seed, payload_segments=True, places=None):
        self.graph = graph
        self.segments = dict(enumerate(edges(graph)))
        self.policy = policy
        self.random = random.Random(seed)
        self.inline = payload_segments
        self.fan_ins: dict[int, dict[int, int]] = {}
        self.owner: dict[int, str] = {}
        self.results: dict[int, int] = {}
        self.errors: set[int] = set()
        self.runs: dict[int, int] = {}
        self.round_trips = 0
        self.arrivals = 0
        self.invocations = 0
        self.now = 0.0
        self.actors: list[Actor] = []
        self.fails: dict[int, int] = {}
        self.places = places  # how many may live; None: the store grants as it likes
        self.ran_in: dict[int, int] = {}  # the class of the executor that ran each task
        self.deaths = 0  # still to come
        self.patience = 0.0
        self.seconds_left = math.inf
        self.retired: set[str] = set()
        self.large = 0.0  # how many of the values are large
        self.held: set[int] = set()  # children won by asking
        self.stored: set[int] = set()  # tasks whose value somebody wrote
        self.learned: dict[int, tuple[float, float]] = {}  # what executors are told of key prefixes
        self.decided: dict[str, int] = {}
        self.observed = 0.0  # tasks
        self.serial = 0  # tells two writes of one value apart
        self.losses = 0  # still to come
        self.gone: set[bytes] = set()  # locations of values that are lost
        self.lost: set[int] = set()  # their tasks

    @property
    def live(self):
        return sum(not (actor.executor.finished or actor.dead) for actor in self.actors)

    def start(self, groups, given=None):
        given = given or {}
        for n, group in enumerate(assign_starts(self.graph, Sharing(groups))):
            mine = {t: pack([0, v]) for t, v in given.items() if t in group.starts}
            inline = group.segments if self.inline else ()
            needs = max(self.graph.classes.get(start, 0) for start in group.starts)
            assignment = Assignment(
                "job", str(n), 1, group.starts, mine, group.segments, function_class=needs, home=group.home
            )
            assignment = replace(assignment, learned=self.learned)
            self.invoke(assignment, inline)

    def invoke(self, assignment, inline=()):
        self.invocations += 1
        assignment = replace(Assignment.from_bytes(assignment.to_bytes()), segments={})
        located = {**assignment.given, **{p: v for values in assignment.claims.values() for p, v in values.items()}}
        actor = Actor(self, Executor(assignment, self.policy), located, bodies=set(inline))
        self.actors.append(actor)
        edges = {n: self.segments[n] for n in inline}
        cached = {task: 10**7 for task in assignment.given if self.random.random() < self.large}
        actor.perform(actor.executor.handle(Began(self.now, edges, self.now + self.seconds_left, cached)))

    def run(self):
        steps = 0
        begun = self.live
        while True:
            movable = [actor for actor in self.actors if actor.todo]
            if not movable:
                break
            actor = self.random.choice(movable)
            if self.deaths and self.random.random() < 0.2:
                self.deaths -= 1
                actor.die()
            else:
                actor.step()
            steps += 1
            assert self.places is None or self.live <= max(begun, self.places), "more live than there are places"
            assert steps < 200 * (len(self.graph) + 10), "does not end"
        assert all(actor.executor.finished or actor.dead for actor in self.actors)

    def expected(self, given=None):
        values: dict[int, int] = {}
        for task in range(len(self.graph)):
            values[task] = (given or {}).get(task, 1 + sum(values[p] for p in self.graph.parents[task]))
        return {task: values[task] for task in self.graph.visible}


@dataclass
class Actor:
    world: World
    executor: Executor
    located: dict[int, bytes]
    values: dict[int, int] = field(default_factory=dict)
    todo: deque = field(default_factory=deque)
    gave: set = field(default_factory=set)
    missed: set = field(default_factory=set)
    bodies: set = field(default_factory=set)
    dead: bool = False

    def die(self):
        """End in the middle. The record stays, with what was given to it, claimed and given away: it is tried again."""
        self.dead = True
        self.todo.clear()
        mine, world = self.executor.assignment, self.world
        if mine.executor in world.retired:
            return
        without = {*mine.without, *self.gave}
        for child in [child for child in world.held if world.owner[child] == mine.executor]:
            world.held.discard(child)  # what it holds has died with it
            del world.owner[child]
        claims = {
            child: dict(world.fan_ins[child])
            for child, owner in world.owner.items()
            if owner == mine.executor and child not in without
        }
        claims |= {child: values for child, values in mine.claims.items() if child not in without}
        starts = [task for task in mine.starts if task not in without]
        given_away = tuple(sorted(without))
        again = replace(mine, attempt=mine.attempt + 1, starts=starts, claims=claims, without=given_away)
        world.invoke(replace(again, patience=world.patience))

    def perform(self, instructions):
        for instruction in instructions:
            if isinstance(instruction, Forget):
                for task in instruction.tasks:
                    self.values.pop(task, None)
                    self.located.pop(task, None)
                    self.missed.discard(task)
                self.bodies.difference_update(instruction.segments)
            else:
                self.todo.append(instruction)

    def step(self):
        index = self.world.random.randrange(len(self.todo))
        instruction = self.todo[index]
        del self.todo[index]
        event = self.do(instruction)
        if event is not None:
            self.perform(self.executor.handle(event))

    def location(self, task):
        if task not in self.located:
            self.world.serial += 1
            self.located[task] = pack([self.world.serial, self.values[task]])
            self.world.stored.add(task)
        return self.located[task]

    def fetch(self, task, location):
        """Read a value; tell whether it was lost."""
        world = self.world
        if world.losses and location not in world.gone and world.random.random() < 0.3:
            world.losses -= 1
            world.gone.add(location)
            world.lost.add(task)
        self.located[task] = location
        if location in world.gone:
            self.missed.add(task)
            return True
        self.values[task] = unpack(location)[1]
        return False

    def do(self, instruction):
        world = self.world
        world.now += 0.001
        match instruction:
            case Run(task, parents):
                assert segment_of(task) in self.bodies, "a task whose body was let go"
                world.runs[task] = world.runs.get(task, 0) + 1
                mine = self.executor.assignment.function_class
                assert world.graph.classes.get(task, 0) <= mine, "a task in an executor that is too small for it"
                world.ran_in[task] = mine
                if world.fails.get(task, 0):
                    world.fails[task] -= 1
                    return TaskErred(task, world.now)
                self.values[task] = 1 + sum(self.values[p] for p in parents)
                if task in self.missed:
                    self.missed.discard(task)
                    del self.located[task]
                large = random.Random(task).random() < world.large
                return TaskDone(task, 0.001, world.now, 1_000_000 if large else 0)
            case Fetch(task, values):
                world.round_trips += 1
                lost = [parent for parent, location in values.items() if self.fetch(parent, location)]
                return InputsLost(task, lost) if lost else InputsFetched(task)
            case Locate(task):
                world.round_trips += 1
                return Located(task, dict(world.fan_ins.get(task, {})))
            case LoadSegments(numbers):
                world.round_trips += 1
                self.bodies.update(numbers)
                return SegmentsLoaded({n: world.segments[n] for n in numbers})
            case WakeAfter(seconds):
                world.now += seconds * world.random.random()
                return Woken(world.now)
            case Arrive():
                return self.arrive(instruction)
            case Delegate(assignments, inputs):
                room = len(assignments) if world.places is None else max(0, world.places - world.live)
                granted = world.random.randint(0, min(room, len(assignments)))
                for assignment, parents in list(zip(assignments, inputs, strict=True))[:granted]:
                    given = {p: self.location(p) for p in parents}
                    self.gave.update(assignment.starts)
                    world.invoke(replace(assignment, given=given))
                return Delegated(granted, world.now)
            case Finish():
                return None
        raise AssertionError(instruction)

    def arrive(self, arrive):
        world, me = self.world, self.executor.assignment.executor
        world.round_trips += 1
        world.arrivals += len(arrive.arrivals)
        for decision, count in arrive.journal[0].items():
            world.decided[decision] = world.decided.get(decision, 0) + count
        world.observed += sum(sums[0] for sums in arrive.observed.values())
        touched = {}
        for child, parent, parents in arrive.arrivals:
            world.fan_ins.setdefault(child, {}).setdefault(parent, self.location(parent))
            touched[child] = parents
        asked = {}
        for child, parent, parents in arrive.asks:
            assert child in asked or child not in touched, "either arrived at or asked for"
            asked.setdefault(child, set()).add(parent)
            touched[child] = parents
        claims = []
        for child, parents in touched.items():
            fan_in = world.fan_ins.get(child, {})
            if child not in world.owner and len(fan_in.keys() | asked.get(child, set())) < parents:
                claims.append(Claim(child, Verdict.WAIT))
                continue
            if child not in world.owner and not asked.get(child, set()) <= fan_in.keys():
                world.held.add(child)
            if world.owner.setdefault(child, me) == me:
                claims.append(Claim(child, Verdict.YOURS, dict(fan_in)))
                for parent, location in fan_in.items():
                    self.located.setdefault(parent, location)
            else:
                claims.append(Claim(child, Verdict.TAKEN))
        for task in arrive.results:
            world.results.setdefault(task, self.values[task])
        world.errors.update(arrive.errors)
        retired = arrive.retire and not any(claim.verdict is Verdict.YOURS for claim in claims)
        if retired:
            world.retired.add(me)
        answer = Answered(Standing.OK, claims, retired, world.now)
        if retired and arrive.successor is not None:
            inputs = {p for parents in arrive.successor.inputs.values() for p in parents}
            given = {p: self.location(p) for p in inputs}
            self.perform(self.executor.handle(answer))  # its place is free, and taken again in the same step
            world.invoke(replace(arrive.successor.assignment, given=given))
            return None
        return answer


@st.composite
def dags(draw):
    size = draw(st.integers(1, 40))
    parents = {}
    for task in range(size):
        count = draw(st.integers(0, min(task, 4)))
        parents[task] = (
            draw(st.lists(st.integers(max(0, task - 12), task - 1), min_size=count, max_size=count, unique=True))
            if task
            else []
        )
    wanted = draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=6)) | {size - 1}
    return parents, wanted


#: Shares everything at once, and asks again and again.
EAGER = Policy(invoke_seconds=1e-4, share_seconds_min=0, full_seconds=0, refused_seconds=0.001)


#: How many of the values are large enough to be held back.
LARGE = st.sampled_from([0.0, 0.5, 1.0])


#: How many tasks an executor runs at the same time.
THREADS = st.sampled_from([1, 1, 3])


#: Seconds and bytes to be expected of tasks, by key prefix.
LEARNED = st.dictionaries(st.integers(0, 2), st.tuples(st.sampled_from([0.0, 1e-5, 1.0, 1e3]), st.just(0.0)))


def ancestors(graph, tasks):
    found = set(tasks)
    for task in sorted(range(len(graph)), reverse=True):
        if task in found:
            found.update(graph.parents[task])
    return found


def chain(length):
    return {n: [n - 1] if n else [] for n in range(length)}


def tree(leaves):
    parents, level = {}, [("leaf", n) for n in range(leaves)]
    parents.update((leaf, []) for leaf in level)
    depth = 0
    while len(level) > 1:
        depth += 1
        above = [("sum", depth, n) for n in range(len(level) // 2)]
        for n, task in enumerate(above):
            parents[task] = [level[2 * n], level[2 * n + 1]]
        level = above
    return parents, {level[0]}
