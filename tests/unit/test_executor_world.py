"""Executor cores in a small world that performs their instructions in every order: every value is right in the end."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dask_serverless.plan import number
from lambda_worker.core.policy import Policy
from tests.unit.executor_world import EAGER, LARGE, LEARNED, THREADS, World, ancestors, chain, dags, graph_of, tree


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
