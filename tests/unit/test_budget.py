"""A cluster stops at its budget, and a job that does its work over and over is given up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dask_serverless.budget import EXECUTIONS_MORE, Budget
from dask_serverless.plan.graph import Graph
from dask_serverless.plan.price import Prices
from dask_serverless.simulator.faults import NONE, Faults
from dask_serverless.simulator.simulation import Options, Parts, Simulation
from dask_serverless.simulator.workload import SimJob, SimTask, Workload

PRICES = Prices(lambda_gb_second=1.0, lambda_request=0.5)


# Money


@pytest.mark.fault(40)
def test_more_than_the_budget_is_refused_by_name():
    budget = Budget(10.0, prices=PRICES)
    assert budget.judge(gb_seconds=8.0, requests=4) == "", "just that much may be spent"
    refusal = budget.judge(gb_seconds=8.0, requests=5)
    for said in ("10 USD", "spent 10 USD", "8 GB-seconds", "5 invocations", "set_budget", "serverless.budget.dollars"):
        assert said in refusal


def test_without_a_budget_nothing_is_refused_and_it_is_known_what_was_spent():
    budget = Budget(prices=PRICES)
    assert budget.judge(gb_seconds=1e9, requests=0) == ""
    assert budget.spent == 1e9


def test_a_budget_that_was_raised_is_not_exceeded():
    budget = Budget(1.0, prices=PRICES)
    assert budget.judge(2.0, 0)
    budget.dollars = 3.0
    assert not budget.judge(2.0, 0)


# Work that is done again


@pytest.mark.fault(40)
def test_deaths_alone_exceed_the_limit_of_a_job():
    budget = Budget(executions_per_task=2)
    budget.begin("j1", tasks=50)
    said = [budget.died("j1") for _ in range(2 * 50 + EXECUTIONS_MORE + 1)]
    assert not any(said[:-1])
    for word in ("j1", "50 tasks", "201 times", "201 died", "serverless.budget.executions-per-task"):
        assert word in said[-1]


def test_executors_that_run_nothing_exceed_it_as_well():
    budget = Budget(executions_per_task=1)
    budget.begin("j1", tasks=1)
    said = [budget.count("j1", {"executors": 1}) for _ in range(1 + EXECUTIONS_MORE + 1)]
    assert not any(said[:-1]) and said[-1]


def test_what_the_user_asked_for_is_not_done_again():
    budget = Budget(executions_per_task=1)
    budget.begin("j1", tasks=1)
    assert not budget.count("j1", {"tasks_run": 10_001, "tasks_rerun": 10_000, "executors": 1_000})


def test_a_job_that_is_over_is_not_judged():
    budget = Budget(executions_per_task=1)
    budget.begin("j1", tasks=1)
    budget.forget("j1")
    assert not any(budget.died("j1") for _ in range(1_000))
    assert not budget.count("j2", {"executors": 10**6})


# In a cluster under virtual time


def chains(count, length, seconds):
    """Return a workload: some chains, of each of which the last value is wanted."""
    size = count * length
    parents = [[task - 1] if task % length else [] for task in range(size)]
    children = [[task + 1] if (task + 1) % length else [] for task in range(size)]
    ends = range(length - 1, size, length)
    graph = Graph(parents, children, list(range(0, size, length)), frozenset(ends))
    tasks = {task: SimTask(seconds=seconds) for task in range(size)}
    return Workload([SimJob("j1", graph, tasks, {f"end-{task}": task for task in ends})])


EVERYTHING_DIES = Faults(crash_per_second=3.0)


@pytest.mark.fault(40)
@pytest.mark.parametrize("seed", range(5))
def test_where_everything_dies_a_job_is_given_up_within_its_executions(seed):
    """I5: even a supervisor that allows nearly everything does not try for ever."""
    options = replace(Options(), allowed_failures=10**6, safety_seconds=100_000.0, executions_per_task=3)
    simulation = Simulation(seed, chains(8, 5, seconds=20.0), EVERYTHING_DIES, options)
    outcome = simulation.run()
    assert outcome.violation is None, outcome
    assert any(line.startswith("error BudgetExceeded") for line in outcome.answers.values())
    limit = 3 * 8 * 5 + EXECUTIONS_MORE
    assert sum(simulation.watch.runs_of.values()) <= limit + simulation.options.ceiling


@pytest.mark.fault(40)
@pytest.mark.parametrize("faults", [NONE, EVERYTHING_DIES, Faults(throttled=0.6)], ids=["none", "deaths", "throttled"])
@pytest.mark.parametrize("seed", range(3))
def test_no_more_is_spent_than_the_budget_and_what_is_under_way(seed, faults):
    """I7. What is under way when the limit is passed runs to the end of its task: some seconds here."""
    options = replace(Options(), allowed_failures=10**6, budget_dollars=0.01, safety_seconds=100_000.0)
    simulation = Simulation(seed, chains(16, 50, seconds=3.0), faults, options)
    outcome = simulation.run()
    assert outcome.violation is None, outcome
    purse = simulation.proxy.purse
    if purse.exceeded_at is None:  # where everything dies, the job was given up before that
        assert purse.storms and faults is EVERYTHING_DIES
        return
    assert any(line.startswith("error BudgetExceeded") for line in outcome.answers.values())
    under_way = options.ceiling * 30.0 * 2.0
    assert purse.budget.cost(*purse._billed()) <= 0.01 + purse.budget.cost(under_way, 2 * options.ceiling)


def test_whoever_goes_on_after_the_budget_is_caught():
    """A planted bug: what was spent is looked at, and nothing follows from it."""
    from dask_serverless.simulator.proxy import Proxy

    class Spendthrift(Proxy):
        def __init__(self, simulation):
            super().__init__(simulation)
            self.purse._stop = lambda job: None

    work = chains(16, 50, seconds=3.0)
    work.jobs.append(replace(chains(8, 2, seconds=1.0).jobs[0], name="j2", visible={"late": 1}, at=600.0))
    options = replace(Options(), budget_dollars=0.001)
    outcome = Simulation(1, work, NONE, options, Parts(proxy=Spendthrift)).run()
    assert outcome.violation is not None and outcome.violation.invariant == "I7"
