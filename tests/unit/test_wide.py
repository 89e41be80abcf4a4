"""Wide fan-outs, as arithmetic: who starts how many others, and how often they ask for more."""

from __future__ import annotations

from collections import deque

import pytest

from lambda_worker.core.events import Began, Delegated, TaskDone
from lambda_worker.core.executor import Executor
from lambda_worker.core.instructions import Delegate, Run
from lambda_worker.core.policy import Policy
from lambda_worker.core.schedule import Assignment, Edges

SECONDS = 0.6


@pytest.mark.parametrize("shares", [1, 2, 31, 32, 33, 1_000, 1_024, 1_025, 32**3])
def test_a_tree_of_invocations_has_a_leaf_for_every_share_and_no_wide_knot(shares):
    policy = Policy(ceiling=shares)
    leaves, levels = shares, 0
    while leaves > 1:
        count, room = policy.branches(leaves)
        assert 1 < count <= policy.branches_max
        assert count * (room + 1) >= leaves > count * room
        leaves, levels = room + 1, levels + 1
    assert levels <= 3


@pytest.mark.parametrize("ceiling", [8, 1_000])
def test_one_executor_with_many_long_tasks_is_a_thousand_soon_and_nobody_starts_them_alone(ceiling):
    tasks = 10 * ceiling
    edges = {
        number: Edges(first, [[]] * 256, [[]] * 256, visible=frozenset(range(first, first + 256)))
        for number, first in enumerate(range(0, tasks, 256))
    }
    policy = Policy(ceiling=ceiling)
    first = Assignment("job", "e", 1, starts=range(tasks), ceiling=ceiling, room=ceiling - 1)
    waiting = deque([(first, 0)])
    started, ran, levels = 1, 0, 0
    while waiting:
        assignment, level = waiting.popleft()
        levels = max(levels, level)
        executor = Executor(assignment, policy)
        now = 0.0
        todo = deque(executor.handle(Began(now, edges)))
        while todo:
            instruction = todo.popleft()
            if isinstance(instruction, Run):
                now += SECONDS
                ran += 1
                todo.extend(executor.handle(TaskDone(instruction.task, SECONDS, now)))
            elif isinstance(instruction, Delegate):
                assert len(instruction.assignments) <= policy.branches_max
                granted = instruction.assignments[: ceiling - started]
                started += len(granted)
                waiting.extend((each, level + 1) for each in granted)
                todo.extend(executor.handle(Delegated(len(granted), now)))
    assert ran == tasks
    assert started == ceiling
    assert levels <= 3


def test_a_wide_fleet_asks_for_more_no_more_often_than_a_small_one():
    rates = [ceiling / Policy(ceiling=ceiling).settle_seconds() for ceiling in (200, 500, 1_000, 5_000)]
    assert max(rates) <= Policy().full_executors


def asked(ceiling, settle=0.0, room=0):
    """Return when an executor with twenty long tasks, in a fleet that is full and stays so, asks for another one."""
    edges = Edges(0, [[]] * 20, [[]] * 20, visible=frozenset(range(20)))
    assignment = Assignment("job", "e", 1, range(20), ceiling=ceiling, settle=settle, room=room)
    executor = Executor(assignment, Policy(ceiling=ceiling))
    now, todo, times = 0.0, deque(executor.handle(Began(0.0, {0: edges}))), []
    while todo:
        instruction = todo.popleft()
        if isinstance(instruction, Delegate):
            times.append(now)
            todo.extend(executor.handle(Delegated(0, now)))
        if isinstance(instruction, Run):
            now += SECONDS
            todo.extend(executor.handle(TaskDone(instruction.task, SECONDS, now)))
    return times


def test_nobody_asks_for_more_before_all_have_begun_if_it_is_known_when_that_is():
    assert asked(ceiling=2)[0] < 2
    assert 4.0 <= asked(ceiling=2, settle=4.0)[0] < 5


def test_who_was_refused_in_a_wide_fleet_asks_as_seldom_as_at_its_begin_while_much_is_left():
    narrow, wide = asked(ceiling=2), asked(ceiling=500)
    settle = Policy(ceiling=500).settle_seconds()
    assert wide[0] >= settle and wide[1] - wide[0] >= settle
    assert 2 < len(wide) < len(narrow)  # towards the end there is not that much time


def test_who_knows_that_there_is_room_asks_again_soon_in_a_wide_fleet_too():
    wide = asked(ceiling=500, room=1)
    assert wide[1] - wide[0] < 1
