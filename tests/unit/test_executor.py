"""The executor core: told events, it must say the right instructions; and a small world that
performs instructions of many executors in every order must end with every value right."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_serverless.plan import assign_starts, edges, number
from lambda_worker.core.events import (
    Answered,
    Began,
    Delegated,
    Halted,
    InputsFetched,
    Seceded,
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
    Run,
    WakeAfter,
)
from lambda_worker.core.policy import Policy
from lambda_worker.core.schedule import Assignment, Edges
from lambda_worker.core.verdicts import Claim, Standing, Verdict
from lambda_worker.core.wire import pack, unpack


def graph_of(parents, wanted, externals=()):
    graph, keys = number(parents, wanted, externals=externals)
    return graph, keys


class World:
    """Executors over one in-memory store; `random` chooses who moves next.

    Values are computed as the sum of the parents' values plus one, so that every task's value is
    known beforehand, and a value that was lost, mixed up or forgotten too early shows.
    """

    def __init__(self, graph, policy, seed, payload_segments=True, early=False):
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

    def start(self, groups, given=None):
        given = given or {}
        for n, group in enumerate(assign_starts(self.graph, groups)):
            mine = {t: pack(v) for t, v in given.items() if t in group.starts}
            inline = group.segments if self.inline else ()
            self.invoke(Assignment("job", str(n), 1, group.starts, mine, group.segments), inline)

    def invoke(self, assignment, inline=()):
        self.invocations += 1
        actor = Actor(self, Executor(assignment, self.policy), dict(assignment.given))
        self.actors.append(actor)
        actor.perform(actor.executor.handle(Began(self.now, {n: self.segments[n] for n in inline})))

    def run(self):
        steps = 0
        while True:
            movable = [actor for actor in self.actors if actor.todo]
            if not movable:
                break
            self.random.choice(movable).step()
            steps += 1
            assert steps < 200 * (len(self.graph) + 10), "does not end"
        assert all(actor.executor.finished for actor in self.actors)

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

    def perform(self, instructions):
        for instruction in instructions:
            if isinstance(instruction, Forget):
                for task in instruction.tasks:
                    self.values.pop(task, None)
                    self.located.pop(task, None)
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
            self.located[task] = pack(self.values[task])
        return self.located[task]

    def do(self, instruction):
        world = self.world
        world.now += 0.001
        match instruction:
            case Run(task, parents):
                world.runs[task] = world.runs.get(task, 0) + 1
                if world.fails.get(task, 0):
                    world.fails[task] -= 1
                    return TaskErred(task, world.now)
                self.values[task] = 1 + sum(self.values[p] for p in parents)
                return TaskDone(task, 0.001, world.now)
            case Fetch(task, values):
                world.round_trips += 1
                for parent, location in values.items():
                    self.values[parent] = unpack(location)
                    self.located[parent] = location
                return InputsFetched(task)
            case LoadSegments(numbers):
                world.round_trips += 1
                return SegmentsLoaded({n: world.segments[n] for n in numbers})
            case WakeAfter():
                return Woken(world.now)
            case Arrive():
                return self.arrive(instruction)
            case Delegate(assignments, inputs):
                granted = world.random.randint(0, len(assignments))
                for assignment, parents in list(zip(assignments, inputs, strict=True))[:granted]:
                    given = {p: self.location(p) for p in parents}
                    world.invoke(Assignment("job", assignment.executor, 1, assignment.starts, given, assignment.hint))
                return Delegated(granted, world.now)
            case Finish():
                return None
        raise AssertionError(instruction)

    def arrive(self, arrive):
        world, me = self.world, self.executor.assignment.executor
        world.round_trips += 1
        world.arrivals += len(arrive.arrivals)
        touched = {}
        for child, parent, parents in arrive.arrivals:
            world.fan_ins.setdefault(child, {}).setdefault(parent, self.location(parent))
            touched[child] = parents
        claims = []
        for child, parents in touched.items():
            fan_in = world.fan_ins[child]
            if len(fan_in) < parents:
                claims.append(Claim(child, Verdict.WAIT))
            elif world.owner.setdefault(child, me) == me:
                claims.append(Claim(child, Verdict.YOURS, dict(fan_in)))
                for parent, location in fan_in.items():
                    self.located.setdefault(parent, location)
            else:
                claims.append(Claim(child, Verdict.TAKEN))
        for task in arrive.results:
            world.results.setdefault(task, self.values[task])
        world.errors.update(arrive.errors)
        won = any(claim.verdict is Verdict.YOURS for claim in claims)
        return Answered(Standing.OK, claims, arrive.retire and not won, world.now)


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


@settings(max_examples=300, deadline=None)
@given(dags(), st.integers(1, 6), st.integers(0, 2**32), st.booleans(), st.integers(1, 9))
def test_any_graph_in_any_order_on_any_number_of_executors(dag, groups, seed, inline, ceiling):
    graph, _ = graph_of(*dag)
    world = World(
        graph,
        Policy(ceiling=ceiling, invoke_seconds=1e-4, share_seconds_min=0, full_seconds=0, refused_seconds=0.001),
        seed,
        inline,
    )
    world.start(groups)
    world.run()
    assert world.results == world.expected()
    assert all(count == 1 for count in world.runs.values()), "without faults every task runs once"
    assert len(world.runs) == len(graph)


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


def test_who_keeps_too_much_publishes_before_it_goes_on():
    edges = Edges(first=0, parents=[[]] * 4, children=[[]] * 4, visible=frozenset(range(4)))
    executor = Executor(Assignment("job", "e", 1, starts=[0, 1, 2, 3]), Policy(kept_bytes_max=100))
    assert executor.handle(Began(0.0, {0: edges})) == [Run(0, [])]
    # Below the bound, results wait for company while tasks run.
    assert executor.handle(TaskDone(0, 0.0, 0.0, nbytes=100))[0] == Run(1, [])
    # Above it, no task runs until they are written.
    assert executor.handle(TaskDone(1, 0.0, 0.0, nbytes=1)) == [Arrive([], [0, 1], [], retire=False)]
    assert executor.handle(Woken(0.0)) == []
    assert executor.handle(Answered(Standing.OK, (), False, 0.0)) == [Forget([0, 1]), Run(2, [])]
    assert executor.handle(TaskDone(2, 0.0, 0.0, nbytes=1))[0] == Run(3, [])


def test_what_publishing_cannot_free_stops_nobody():
    """A large value that is kept for tasks here: they must run."""
    edges = Edges(first=0, parents=[[], [0], [0]], children=[[1, 2], [], []], visible=frozenset({1, 2}))
    executor = Executor(Assignment("job", "e", 1, starts=[0]), Policy(kept_bytes_max=100))
    executor.handle(Began(0.0, {0: edges}))
    assert executor.handle(TaskDone(0, 0.0, 0.0, nbytes=1_000)) == [Run(1, [0])]
    assert executor.handle(TaskDone(1, 0.0, 0.0)) == [Arrive([], [1], [], retire=False)]
    assert executor.handle(Answered(Standing.OK, (), False, 0.0)) == [Forget([1]), Run(2, [0])]
