"""The executor core: told events, it must say the right instructions; and a small world that
performs instructions of many executors in every order must end with every value right."""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dask_serverless.plan import Sharing, assign_starts, edges, number
from lambda_worker.core.delegation import Delegation
from lambda_worker.core.events import (
    Answered,
    Began,
    Delegated,
    Halted,
    InputsFetched,
    InputsLost,
    Located,
    Rescheduled,
    Seceded,
    SegmentsLoaded,
    TaskDone,
    TaskErred,
    Woken,
    WritingsMissed,
)
from lambda_worker.core.executor import Executor
from lambda_worker.core.instructions import (
    Arrive,
    Delegate,
    Fetch,
    Finish,
    Forget,
    GivePlace,
    LoadSegments,
    Locate,
    Run,
    TakePlace,
    WakeAfter,
)
from lambda_worker.core.lineage import REWRITES_MAX
from lambda_worker.core.parked import Parked
from lambda_worker.core.policy import Policy
from lambda_worker.core.schedule import Assignment, Edges, segment_of
from lambda_worker.core.segments import Segments
from lambda_worker.core.verdicts import Claim, Standing, Verdict
from lambda_worker.core.wire import Ref, pack, unpack


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


@settings(max_examples=300, deadline=None)
@given(dags(), st.integers(1, 6), st.integers(0, 2**32), st.booleans(), st.integers(1, 9), LARGE, THREADS, LEARNED)
def test_any_graph_in_any_order_on_any_number_of_executors(dag, groups, seed, inline, ceiling, large, threads, learned):
    graph, _ = graph_of(*dag)
    world = World(
        graph,
        replace(EAGER, ceiling=ceiling, threads=threads),
        seed,
        inline,
    )
    world.large = large
    world.learned = learned
    world.segments = {
        n: replace(each, prefixes=[number for task in range(len(each.parents)) for number in (task % 3, 1)])
        for n, each in world.segments.items()
    }
    world.start(groups)
    world.run()
    assert world.results == world.expected()
    assert all(count == 1 for count in world.runs.values()), "without faults every task runs once"
    assert len(world.runs) == len(graph)
    assert world.decided["began"] == world.invocations, "every executor has reported"
    assert 0 < world.observed <= len(graph)


@settings(max_examples=200, deadline=None)
@given(
    dags(),
    st.integers(1, 6),
    st.integers(0, 2**32),
    st.sampled_from(["hold", "group", "split", "prefetch", "locality"]),
)
def test_what_an_executor_may_not_do_changes_no_value(dag, groups, seed, switch):
    graph, _ = graph_of(*dag)
    policy = replace(EAGER, ceiling=4)
    world = World(graph, replace(policy, **{switch: False}), seed)
    world.large = 0.5
    world.start(groups)
    world.run()
    assert world.results == world.expected()
    assert set(world.runs.values()) == {1}


@settings(max_examples=500, deadline=None)
@given(
    dags(),
    st.integers(1, 6),
    st.integers(0, 2**32),
    st.integers(1, 9),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.003, 0.01]),
    LARGE,
    THREADS,
)
@example(  # who arrived at a fan-in that was taken runs all of its parents once more: that is no promise to run it
    dag=(
        {0: [], 1: [], 2: [0], 3: [0, 1], 4: [1, 2], 5: [2, 4], 6: [], 7: [0, 1, 5], 8: [], 9: [0, 7, 1], 10: [7]}
        | {11: [1], 15: [3, 6, 7, 8], 17: [5, 6, 7], 18: [11, 17], 21: [15, 9, 10]},
        {1, 3, 4, 5, 18, 21},
    ),
    groups=4,
    seed=109,
    ceiling=1,
    deaths=6,
    patience=0.01,
    large=0.5,
    threads=1,
)
def test_executors_that_die_anywhere_are_tried_again_and_nothing_is_lost(
    dag, groups, seed, ceiling, deaths, patience, large, threads
):
    graph, _ = graph_of(*dag)
    policy = replace(EAGER, ceiling=ceiling, threads=threads)
    world = World(graph, policy, seed)
    world.deaths = deaths
    world.patience = patience
    world.large = large
    world.start(groups)
    world.run()
    assert world.results == world.expected()
    assert sum(world.runs.values()) <= len(graph) * (1 + deaths)


def ancestors(graph, tasks):
    found = set(tasks)
    for task in sorted(range(len(graph)), reverse=True):
        if task in found:
            found.update(graph.parents[task])
    return found


@settings(max_examples=600, deadline=None)
@given(dags(), st.integers(1, 6), st.integers(0, 2**32), st.booleans(), st.sampled_from([1, 3, 1000]), LARGE, THREADS)
def test_values_that_are_lost_are_made_again_and_only_their_ancestors_run_again(
    dag, groups, seed, inline, losses, large, threads
):
    graph, _ = graph_of(*dag)
    world = World(graph, replace(EAGER, threads=threads), seed, inline)
    world.losses = losses
    world.large = large
    world.start(groups)
    world.run()
    assert world.results == world.expected()
    again = {task for task, runs in world.runs.items() if runs > 1}
    assert again <= ancestors(graph, world.lost)


@settings(max_examples=500, deadline=None)
@given(
    dags(),
    st.integers(1, 6),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.0005, 0.01]),
    st.integers(0, 8),
    st.sampled_from([math.inf, 0.05, 0.3]),
    st.sampled_from([1, 3]),
)
def test_values_are_lost_while_executors_die_leave_and_have_only_so_many_places(
    dag, groups, seed, patience, deaths, seconds_left, places
):
    graph, _ = graph_of(*dag, classes=dict.fromkeys(range(0, len(dag[0]), 5), 1))
    world = World(graph, EAGER, seed, places=max(places, groups))
    world.losses = 20
    world.large = 0.5
    world.deaths = deaths
    world.patience = patience
    world.seconds_left = seconds_left
    world.start(groups)
    world.run()
    assert world.results == world.expected()


@pytest.mark.parametrize("seed", range(5))
def test_values_are_lost_in_a_graph_of_many_segments_whose_bodies_were_let_go(seed):
    size = 1200
    parents = {task: [] if task < 300 else [task - 300, task - 1] for task in range(size)}
    graph, _ = graph_of(parents, {size - 1})
    world = World(graph, EAGER, seed, payload_segments=False)
    world.losses = 60
    world.start(5)
    world.run()
    assert world.results == world.expected()


def test_only_what_is_missing_on_the_way_to_a_lost_value_runs_again():
    # 0, 1 -> 2; 2, 3 -> 4. The value of 2 is lost; those of 0 and 1 can be read, says the store.
    edges = Edges(0, [[], [], [0, 1], [], [2, 3]], [[2], [2], [4], [4], []], fan_ins={2: 2, 4: 2}, visible={4})
    executor = Executor(Assignment("job", "e", 1, starts=[3]), Policy())
    executor.handle(Began(0.0, {0: edges}))
    executor.handle(TaskDone(3, 0.1, 0.1))
    claim = Claim(4, Verdict.YOURS, {2: b"two", 3: b"three"})
    assert executor.handle(Answered(Standing.OK, [claim], False, 0.2)) == [Fetch(4, {2: b"two"})]
    assert executor.handle(InputsLost(4, [2])) == [Locate(2)]
    assert executor.handle(Located(2, {0: b"zero", 1: b"one"})) == [Fetch(2, {0: b"zero", 1: b"one"})]
    assert executor.handle(InputsLost(2, [1])) == [Run(1, [])]
    assert executor.handle(TaskDone(1, 0.1, 0.3)) == [Run(2, [0, 1])]
    assert executor.handle(TaskDone(2, 0.1, 0.4)) == [Forget([0, 1], []), Run(4, [2, 3])]
    assert executor.handle(TaskDone(4, 0.1, 0.5))[-1] == Arrive([], [4], [], retire=True)
    assert executor.tasks_remade == 2


def test_what_the_parents_of_the_parents_wrote_is_written_again_a_few_times():
    """0, 1 (transfers) -> 2 (barrier) -> 3 (unpack)."""
    edges = Edges(0, [[], [], [0, 1], [2]], [[2], [2], [3], []], fan_ins={2: 2}, visible={3})
    executor = Executor(Assignment("job", "e", 1, starts=[0, 1]), Policy())
    executor.handle(Began(0.0, {0: edges}))
    for task in range(3):
        out = executor.handle(TaskDone(task, 0.1, 0.1))
    assert out[-1] == Run(3, [2])
    for _ in range(REWRITES_MAX):
        assert executor.handle(WritingsMissed(3, 0.2)) == [Run(0, [])]
        assert executor.handle(TaskDone(0, 0.1, 0.3)) == [Run(1, [])]
        assert executor.handle(TaskDone(1, 0.1, 0.4)) == [Run(2, [0, 1])]
        assert executor.handle(TaskDone(2, 0.1, 0.5)) == [Forget([0, 1], []), Run(3, [2])]
    assert executor.handle(WritingsMissed(3, 0.6))[-1] == Arrive([], [], [3], retire=True)


@settings(max_examples=300, deadline=None)
@given(dags(), st.integers(1, 6), st.integers(0, 2**32), st.booleans(), st.sampled_from([0.0005, 0.005, 0.02]), LARGE)
def test_executors_whose_time_is_up_leave_the_rest_to_a_successor(dag, groups, seed, inline, seconds_left, large):
    graph, _ = graph_of(*dag)
    policy = replace(EAGER, ceiling=4)
    world = World(graph, policy, seed, inline)
    world.seconds_left = seconds_left
    world.large = large
    world.start(groups)
    world.run()
    assert world.results == world.expected()
    assert set(world.runs.values()) == {1}


def test_who_is_given_work_by_a_later_attempt_does_not_run_what_that_has_claimed():
    """1. An attempt claims 2 and dies; 2. the next one gives 1 away, a parent of 2; 3. who got it promises 2."""
    edges = Edges(0, [[], [], [0, 1], []], [[2], [2], [], []], fan_ins={2: 2})
    again = Assignment("job", "e", 2, starts=[0, 1], claims={2: {0: b"x", 1: b"y"}}, patience=1.0)
    segments = Segments()
    segments.add(0, edges)
    delegation = Delegation(again, Policy(), segments, Parked())
    (delegate,) = delegation.offer([1, 0], size=1, upto=1)
    assert [(each.starts, each.without) for each in delegate.assignments] == [([1], (2,))]
    delegation.answered(granted=1, now=0.0)
    (delegate,) = delegation.offer([2, 0], size=1, upto=1)
    assert [(each.starts, each.without) for each in delegate.assignments] == [([2], ())]


def test_a_chain_longer_than_any_lambda_lives():
    graph, _ = graph_of(chain(1_000), {999})
    world = World(graph, Policy(ceiling=1), 0, payload_segments=False)
    world.seconds_left = 0.05  # some fifty tasks
    world.start(1)
    world.run()
    assert world.results == world.expected()
    assert set(world.runs.values()) == {1}
    assert 10 < world.invocations < 40


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("tasks", [3000, 700])
def test_a_graph_of_many_segments_that_do_not_travel_along(seed, tasks):
    chooser = random.Random(seed)
    parents = {
        t: sorted({chooser.randrange(max(0, t - 300), t) for _ in range(chooser.randrange(4))}) if t else []
        for t in range(tasks)
    }
    graph, _ = graph_of(parents, set(range(0, tasks, 7)) | {tasks - 1})
    world = World(
        graph,
        Policy(ceiling=20, invoke_seconds=1e-3, share_seconds_min=0, full_seconds=0),
        seed,
        payload_segments=False,
    )
    world.start(5)
    world.run()
    assert world.results == world.expected()
    assert set(world.runs.values()) == {1}


def test_a_value_made_elsewhere_takes_part_like_a_task_that_is_done():
    graph, keys = graph_of({"a": ("x", "b"), "b": (), "c": ("x",)}, {"a", "c"}, externals={"x"})
    x = keys.index("x")
    world = World(graph, Policy(), 0)
    world.start(2, given={x: 41})
    world.run()
    assert world.results == world.expected({x: 41})
    assert x not in world.runs


def chain(length):
    return {n: [n - 1] if n else [] for n in range(length)}


def test_a_chain_costs_no_round_trip_between_tasks():
    graph, _ = graph_of(chain(10_000), {9_999})
    world = World(graph, Policy(ceiling=8), 0)
    world.start(8)
    world.run()
    assert world.invocations == 1
    assert world.round_trips == 1, "one, to publish the result and retire"


def test_a_chain_longer_than_an_assignment_hints_at_reads_ahead():
    graph, _ = graph_of(chain(50_000), {49_999})
    world = World(graph, Policy(ceiling=8), 0, payload_segments=False)
    world.start(1)
    world.run()
    assert world.results == world.expected()
    assert world.round_trips < 50_000 / 256 + 10


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


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_tree_arrives_once_per_executor_boundary(groups):
    graph, _ = graph_of(*tree(1024))
    world = World(graph, Policy(ceiling=1), 0)
    world.start(groups)
    world.run()
    assert world.results == world.expected()
    assert world.arrivals <= 2 * (groups - 1)


def test_a_wide_fan_out_is_split_once_its_tasks_are_known_to_be_long():
    parents = {"s": (), **{n: ("s",) for n in range(1000)}}
    graph, _ = graph_of(parents, set(range(1000)))
    world = World(graph, Policy(ceiling=100, invoke_seconds=1e-4, share_seconds_min=0, full_seconds=0), 1)
    world.start(100)
    world.run()
    assert world.results == world.expected()
    assert world.invocations > 20


def test_an_error_ends_its_branch_and_nothing_else():
    graph, keys = graph_of({"a": (), "b": ("a",), "c": (), "d": ("b", "c"), "e": ("c",)}, {"d", "e"})
    world = World(graph, Policy(), 3)
    world.fails = {keys.index("b"): 1}
    world.start(2)
    world.run()
    assert world.errors == {keys.index("b")}
    assert set(world.results) == {keys.index("e")}


def test_a_task_is_tried_again_as_often_as_was_asked_for():
    graph, keys = number({"a": (), "b": ("a",)}, {"b"}, retries={"a": 2})
    world = World(graph, Policy(), 0)
    world.fails = {0: 2}
    world.start(1)
    world.run()
    assert world.results == world.expected()
    assert world.runs[0] == 3
    assert world.actors[0].executor.tasks_rerun == 2


def test_what_is_at_hand_is_used_first():
    """What has to be read comes meanwhile, and takes the room of what was used: of a scan something stays."""
    made = {f"c{n}": (f"g{n}",) for n in range(6)}
    graph, keys = graph_of(made, list(made), {f"g{n}" for n in range(6)})
    inputs = [keys.index(f"g{n}") for n in range(6)]
    given = {task: Ref(f"old/{task}/a/1", 0, 10**6) for task in inputs}
    executor = Executor(Assignment("job", "e", 1, inputs, given), Policy(fetch_ahead=6))
    cached = {keys.index("g2"): 10**6, keys.index("g5"): 10**6}
    out = executor.handle(Began(0.0, dict(enumerate(edges(graph))), math.inf, cached))
    fetched = [keys[each.task] for each in out if isinstance(each, Fetch)]
    assert fetched == ["c2", "c5", "c0", "c1", "c3", "c4"]


def test_the_bodies_of_a_segment_are_let_go_when_all_its_tasks_have_ended():
    graph, _ = graph_of(chain(600), {599})
    executor = Executor(Assignment("job", "e", 1, [0]), Policy())
    executor.handle(Began(0.0, dict(enumerate(edges(graph)))))
    let_go = {}
    for task in range(600):
        for instruction in executor.handle(TaskDone(task, 0.0, 0.0)):
            if isinstance(instruction, Forget):
                let_go.update((segment, task) for segment in instruction.segments)
    assert let_go == {0: 255, 1: 511}


def test_a_halt_ends_at_once():
    graph, _ = graph_of(chain(10), {9})
    executor = Executor(Assignment("job", "e", 1, [0]), Policy())
    executor.handle(Began(0.0, dict(enumerate(edges(graph)))))
    assert executor.handle(Halted(Standing.CANCELLED)) == [Finish("cancelled")]
    assert executor.handle(TaskDone(0, 0.1, 0.1)) == []


def test_results_of_quick_tasks_wait_for_the_alarm_while_others_run():
    graph, _ = graph_of({n: () for n in range(3)}, {0, 1, 2})
    executor = Executor(Assignment("job", "e", 1, [0, 1, 2]), Policy())
    executor.handle(Began(0.0, dict(enumerate(edges(graph)))))
    assert executor.handle(TaskDone(0, 0.0, 0.0)) == [Run(1, ()), WakeAfter(Policy().publish_seconds)]
    assert executor.handle(TaskDone(1, 0.0, 0.0)) == [Run(2, ())]
    assert executor.handle(Woken(0.01)) == [Arrive([], [0, 1], [], retire=False)]


def test_a_task_that_secedes_lets_the_others_go_elsewhere():
    graph, _ = graph_of({n: () for n in range(3)}, {0, 1, 2})
    executor = Executor(Assignment("job", "e", 1, [0, 1, 2]), Policy())
    executor.handle(Began(0.0, dict(enumerate(edges(graph)))))
    (offer,) = executor.handle(Seceded())
    assert [list(each.starts) for each in offer.assignments] == [[1, 2]]
    # There is no place for them yet: ask again while the task still waits.
    assert executor.handle(Delegated(0, 0.1)) == [WakeAfter(Policy().refused_seconds)]
    assert executor.handle(Woken(0.2))[-1].assignments[0].executor == "e.1.2"
    assert executor.handle(Delegated(1, 0.3)) == []
    assert executor.handle(TaskDone(0, 1.0, 1.0)) == [Arrive([], [0], [], retire=True)]


@settings(max_examples=400, deadline=None)
@given(
    dags(),
    st.dictionaries(st.integers(0, 39), st.integers(1, 3), max_size=12),
    st.integers(0, 2**32),
    st.booleans(),
    st.sampled_from([1, 2, 8]),
    st.booleans(),
)
@example(  # a claim asks for a value in the very answer that releases it
    dag=(
        {0: [], 1: [0], 2: [0], 3: [1], 4: [2, 0], 5: [0, 4], 6: [0, 5, 1], 9: [0, 1], 10: [0, 1, 2, 3], 11: [3]}
        | {12: [0, 5, 1, 9], 13: [], 16: [4, 5, 6], 22: [13, 16, 10], 23: [11, 22, 12]},
        {0, 23},
    ),
    classes={6: 1},
    seed=0,
    inline=False,
    places=2,
    sparse=False,
)
def test_every_task_of_any_class_runs_once_in_an_executor_that_it_fits(dag, classes, seed, inline, places, sparse):
    graph, _ = graph_of(*dag, classes=classes)
    world = World(graph, replace(EAGER, ceiling=places), seed, inline, places=places)
    world.start(1 if sparse else places)
    world.run()
    assert world.results == world.expected()
    assert set(world.runs) == set(range(len(graph)))
    assert set(world.runs.values()) == {1}


@pytest.mark.parametrize("places", [1, 2, 8])
@pytest.mark.parametrize("seed", range(6))
def test_classes_in_a_graph_of_many_segments(seed, places):
    chooser = random.Random(seed)
    tasks = 1500
    parents = {
        t: sorted({chooser.randrange(max(0, t - 300), t) for _ in range(chooser.randrange(4))}) if t else []
        for t in range(tasks)
    }
    classes = {t: chooser.choice([1, 2]) for t in range(tasks) if chooser.random() < 0.1}
    graph, _ = graph_of(parents, set(range(0, tasks, 7)) | {tasks - 1}, classes=classes)
    world = World(graph, replace(EAGER, ceiling=places), seed, payload_segments=False, places=places)
    world.start(places)
    world.run()
    assert world.results == world.expected()
    assert set(world.runs.values()) == {1}


def test_with_one_place_a_larger_executor_takes_it_and_keeps_what_comes_after():
    graph, _ = graph_of(chain(6), {5}, classes={2: 1})
    world = World(graph, Policy(ceiling=1), 0, places=1)
    world.start(1)
    world.run()
    assert world.results == world.expected()
    assert world.ran_in == {0: 0, 1: 0, 2: 1, 3: 1, 4: 1, 5: 1}
    assert world.invocations == 2
    assert world.round_trips == 4, "to give the place away, for the segment, for the input, to publish the result"


def test_a_fan_in_that_fits_none_of_its_parents_goes_to_an_executor_of_its_class():
    graph, keys = graph_of(*tree(8), classes={("sum", 3, 0): 2})
    for seed in range(20):
        world = World(graph, Policy(ceiling=4), seed, places=4)
        world.start(4)
        world.run()
        assert world.results == world.expected()
        assert [task for task, ran_in in world.ran_in.items() if ran_in == 2] == [keys.index(("sum", 3, 0))]


def test_what_does_not_fit_is_given_away_while_other_tasks_run():
    graph, _ = graph_of({"s": (), **{n: ("s",) for n in range(4)}}, set(range(4)), classes={2: 1, 3: 1})
    executor = Executor(Assignment("job", "e", 1, [0]), Policy(ceiling=8))
    executor.handle(Began(0.0, dict(enumerate(edges(graph)))))
    run, offer = executor.handle(TaskDone(0, 0.1, 0.1))
    assert run == Run(1, [0])
    assert [(each.starts, each.function_class) for each in offer.assignments] == [([3], 1), ([4], 1)]
    # There is room for one. The other is offered again although the running task is not done yet.
    (wake,) = executor.handle(Delegated(1, 0.1))
    assert wake == WakeAfter(Policy().refused_seconds)
    (again,) = executor.handle(Woken(0.3))
    assert [each.starts for each in again.assignments] == [[4]]
    assert executor.handle(Delegated(0, 0.3)) == [WakeAfter(Policy().refused_seconds)]
    # Nothing else is left: its place goes to a successor, in the step that publishes what was done.
    # What is to be published does not wait for that alarm.
    assert executor.handle(TaskDone(1, 0.1, 0.31)) == [Run(2, [0]), WakeAfter(Policy().publish_seconds)]
    (arrive,) = executor.handle(TaskDone(2, 0.1, 0.32))
    assert arrive.retire and arrive.successor.assignment.starts == [4]
    assert arrive.successor.assignment.function_class == 1
    assert arrive.successor.inputs == {4: [0]}


def test_a_larger_executor_gives_small_tasks_to_small_ones():
    graph, _ = graph_of({"s": (), **{n: ("s",) for n in range(100)}}, set(range(100)), classes={"s": 1, 99: 1})
    policy = replace(EAGER, ceiling=10)
    executor = Executor(Assignment("job", "e", 1, [0], function_class=1), policy)
    executor.handle(Began(0.0, dict(enumerate(edges(graph)))))
    offer, _ = executor.handle(TaskDone(0, 1.0, 1.0))
    assert [each.function_class for each in offer.assignments] == [1, *[0] * 8]


def test_the_default_class_costs_no_byte():
    plain = Assignment("job", "e", 1, [0])
    assert len(plain.to_bytes()) == len(Assignment("job", "e", 1, [0], function_class=0).to_bytes())
    assert len(unpack(plain.to_bytes())) == 10 and len(unpack(next(edges(graph_of(chain(3), {2})[0])).to_bytes())) == 6
    large = replace(plain, function_class=2)
    assert Assignment.from_bytes(large.to_bytes()) == replace(large, starts=[0], hint=[])


# --- tasks that ask to be run again


def rescheduler(parents, wanted, starts, segments=None, **options):
    graph, _ = graph_of(parents, wanted)
    executor = Executor(Assignment("job", "e", 1, starts, segments=segments or {}), Policy(**options))
    first = executor.handle(Began(0.0, dict(enumerate(edges(graph)))))
    return executor, first


def test_a_rescheduled_task_runs_again_behind_the_others():
    executor, first = rescheduler({"a": (), "b": (), "end": ("a", "b")}, {"end"}, [0, 1])
    assert first == [Run(0, ())]
    assert executor.handle(Rescheduled(0, 0.0)) == [WakeAfter(0.01), Run(1, ())]
    assert executor.handle(Woken(0.01)) == []
    assert executor.handle(TaskDone(1, 0.01, 0.02)) == [Run(0, ())]
    assert Run(2, [0, 1]) in executor.handle(TaskDone(0, 0.01, 0.03))
    assert executor.tasks_rerun == 1


def test_who_reschedules_for_ever_waits_longer_gives_its_place_and_moves():
    executor, said = rescheduler({"a": ()}, {"a"}, [0], {0: b"sealed"}, ceiling=2)
    now, waits, places = 0.0, [], []
    for _ in range(8):
        assert Run(0, ()) in said
        places += [type(each) for each in said if isinstance(each, TakePlace)]
        said = executor.handle(Rescheduled(0, now))
        (wake,) = [each for each in said if isinstance(each, WakeAfter)]
        places += [type(each) for each in said if isinstance(each, GivePlace)]
        waits.append(wake.seconds)
        assert executor.handle(Woken(now + wake.seconds / 2)) == [WakeAfter(pytest.approx(wake.seconds / 2))], "not yet"
        now += wake.seconds
        said = executor.handle(Woken(now))
    assert waits == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0]
    assert places == [GivePlace, TakePlace] * 3 + [GivePlace]
    (delegate,) = said
    assert isinstance(delegate, Delegate) and delegate.assignments[0].starts == [0]
    assert delegate.assignments[0].segments == {0: b"sealed"}, "which may be stored nowhere"
    assert executor.handle(Delegated(0, now))[0] == TakePlace(), "nobody had room: it runs here"
    executor.handle(Rescheduled(0, now))
    executor.handle(Woken(now + 1.0))
    assert executor.handle(Delegated(1, now + 1.0)) == [Arrive([], [], [], retire=True)]


def test_alarms_do_not_multiply():
    """One task is parked, and there is no room for another: each alarm that comes is followed by one at most."""
    graph, _ = graph_of({"a": (), "b": (), "end": ("b",)}, {"a", "end"}, classes={"end": 1})
    executor = Executor(Assignment("job", "e", 1, [0, 1]), Policy(ceiling=2))
    alarms, now = [], 0.0

    def tell(event):
        said = executor.handle(event)
        alarms.extend(now + each.seconds for each in said if isinstance(each, WakeAfter))
        for each in said:
            if isinstance(each, Delegate):
                tell(Delegated(0, now))

    tell(Began(now, dict(enumerate(edges(graph)))))
    for _ in range(8):  # until it waits for a second
        tell(Rescheduled(0, now))
        if 1 in executor._running:
            tell(TaskDone(1, 0.01, now))
        while 0 not in executor._running:
            now = alarms.pop(alarms.index(min(alarms)))
            tell(Woken(now))
            assert len(alarms) <= 4


def test_an_executor_that_is_halted_lets_its_parked_tasks_be():
    executor, _ = rescheduler({"a": ()}, {"a"}, [0])
    executor.handle(Rescheduled(0, 0.0))
    assert isinstance(executor.handle(Halted(Standing.CANCELLED))[0], Finish)
    assert executor.handle(Woken(1.0)) == []


def test_who_keeps_too_much_publishes_before_it_goes_on():
    edges = Edges(first=0, parents=[[]] * 4, children=[[]] * 4, visible=frozenset(range(4)))
    executor = Executor(Assignment("job", "e", 1, starts=[0, 1, 2, 3]), Policy(kept_bytes_max=100))
    assert executor.handle(Began(0.0, {0: edges})) == [Run(0, [])]
    # Below the bound, results wait for company while tasks run.
    assert executor.handle(TaskDone(0, 0.0, 0.0, nbytes=100))[0] == Run(1, [])
    # Above it, no task runs until they are written.
    assert executor.handle(TaskDone(1, 0.0, 0.0, nbytes=1)) == [Arrive([], [0, 1], [], retire=False)]
    assert executor.handle(Woken(0.0)) == []
    forget, run = executor.handle(Answered(Standing.OK, (), False, 0.0))
    assert (forget.tasks, run) == ([0, 1], Run(2, []))
    assert executor.handle(TaskDone(2, 0.0, 0.0, nbytes=1))[0] == Run(3, [])


def test_what_publishing_cannot_free_stops_nobody():
    """A large value that is kept for tasks here: they must run."""
    edges = Edges(first=0, parents=[[], [0], [0]], children=[[1, 2], [], []], visible=frozenset({1, 2}))
    executor = Executor(Assignment("job", "e", 1, starts=[0]), Policy(kept_bytes_max=100))
    executor.handle(Began(0.0, {0: edges}))
    assert executor.handle(TaskDone(0, 0.0, 0.0, nbytes=1_000)) == [Run(1, [0])]
    assert executor.handle(TaskDone(1, 0.0, 0.0)) == [Arrive([], [1], [], retire=False)]
    forget, run = executor.handle(Answered(Standing.OK, (), False, 0.0))
    assert (forget.tasks, run) == ([1], Run(2, [0]))
