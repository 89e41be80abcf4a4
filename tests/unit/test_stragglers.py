"""Who takes much longer than others did gets a backup; whoever is first, first wins."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dask_serverless.plan.graph import Graph
from dask_serverless.simulator import faults
from dask_serverless.simulator.faults import Faults
from dask_serverless.simulator.shapes import experienced
from dask_serverless.simulator.simulation import Options, Simulation, _luck, draw_options
from dask_serverless.simulator.workload import SimJob, SimTask, Workload
from dask_serverless.statistics import Learned
from dask_serverless.stragglers import BACKUP, Stragglers

KNOWN = Learned(tasks=64, seconds=1.0, seconds_spread=0.2, nbytes=0.0, nbytes_spread=0.0)


def heard(*executors, seconds=10.0):
    stragglers = Stragglers()
    for executor in executors:
        stragglers.says("j1", executor, 7, 0.0)
        stragglers.says("j1", executor, 7, seconds)
    return stragglers


def overdue(stragglers, known=KNOWN, ceiling=8):
    return [executor for _, executor, _ in stragglers.overdue(lambda job, task: known, ceiling)]


def test_a_task_that_may_well_take_so_long_is_no_straggler():
    assert overdue(heard("1-0", seconds=4.7)) == []
    assert overdue(heard("1-0", seconds=4.9)) == ["1-0"], "three times what three standard deviations above the mean is"


def test_what_little_is_known_of_is_waited_for():
    assert overdue(heard("1-0"), known=None) == []
    assert overdue(heard("1-0"), known=replace(KNOWN, tasks=2)) == []


def test_short_tasks_are_not_worth_a_backup():
    assert overdue(heard("1-0", seconds=1.9), known=replace(KNOWN, seconds=0.01, seconds_spread=0.0)) == []


def test_who_has_gone_on_to_another_task_begins_anew():
    stragglers = heard("1-0")
    stragglers.says("j1", "1-0", 8, 10.0)
    stragglers.says("j1", "1-0", 8, 12.0)
    assert overdue(stragglers) == []


def test_the_slowest_comes_first_and_there_are_only_so_many():
    stragglers = heard("1-0", seconds=10.0)
    stragglers.says("j1", "1-1", 3, 0.0)
    stragglers.says("j1", "1-1", 3, 20.0)
    assert overdue(stragglers, ceiling=9) == ["1-1"]
    assert overdue(stragglers, ceiling=9) == [], "one backup is at work"
    stragglers.forget("j1", "1-1" + BACKUP)
    assert overdue(stragglers, ceiling=9) == ["1-0"], "it has ended"
    assert overdue(heard("1-0", "1-1", "1-2"), ceiling=20) == ["1-2", "1-1"]


def test_nobody_gets_two_backups_and_no_backup_gets_one():
    stragglers = heard("1-0")
    assert overdue(stragglers) == ["1-0"]
    stragglers.forget("j1", "1-0" + BACKUP)
    assert overdue(stragglers) == []
    assert overdue(heard("1-0" + BACKUP)) == []


def test_a_job_that_is_over_is_forgotten():
    stragglers = heard("1-0")
    assert overdue(stragglers) == ["1-0"]
    stragglers.forget("j1")
    assert repr(stragglers) == repr(Stragglers())
    assert vars(stragglers) == vars(Stragglers())


# In a cluster under virtual time

SLOW = Faults(slow_sandbox=0.15, slow_factor=20.0)


def wide(count, seconds):
    """Return a workload: many tasks, of which it is known how long they take, and one that needs them all."""
    parents = [[] for _ in range(count)] + [list(range(count))]
    children = [[count] for _ in range(count)] + [[]]
    graph = Graph(parents, children, list(range(count)), frozenset({count}))
    tasks = {task: SimTask(seconds=seconds) for task in range(count + 1)}
    return experienced(Workload([SimJob("j1", graph, tasks, {"sum": count})]))


@pytest.mark.fault(38)
def test_with_backups_stragglers_cost_less_time():
    with_backups, without = [], []
    backups = 0
    for seed in range(10):
        options = replace(Options(), ceiling=20, lease_seconds=3.0)
        options = replace(options, policy=replace(options.policy, ceiling=20))
        alone = Simulation(seed, wide(16, 2.0), SLOW, options).run()
        backed_up = Simulation(seed, wide(16, 2.0), SLOW, replace(options, speculation=True)).run()
        for outcome in (alone, backed_up):
            assert outcome.violation is None and outcome.answers == {"sum": "a value"}
        without.append(alone.seconds)
        with_backups.append(backed_up.seconds)
        backups += sum("backs up" in line for line in backed_up.story)
    assert backups >= 5
    assert max(without) > 40, "one that is 20 times slower is waited for"
    assert sum(with_backups) < 0.7 * sum(without)


@pytest.mark.fault(38)
def test_whatever_else_goes_wrong_nothing_is_accepted_twice():
    backups = 0
    for seed in range(150):
        options = replace(draw_options(_luck(seed, "options")), speculation=True, lease_seconds=3.0)
        drawn = replace(faults.draw(faults.luck_of(seed)), slow_sandbox=0.4, slow_factor=20.0)
        outcome = Simulation(seed, faults=drawn, options=options).run()
        assert outcome.violation is None, outcome
        backups += sum("backs up" in line for line in outcome.story)
    assert backups > 20
