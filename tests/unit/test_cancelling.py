"""Within a second after a job is over, nobody is invoked for it any more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dask_serverless.plan.graph import Graph
from dask_serverless.simulator.faults import NONE, Faults
from dask_serverless.simulator.simulation import Options, Simulation
from dask_serverless.simulator.workload import SimJob, SimTask, Workload
from lambda_worker.core.errors import InvocationRefused
from lambda_worker.core.schedule import Assignment
from lambda_worker.invoker import LambdaInvoker

CANCELLED_AT = 20.0


def work():
    """Many tasks, each of which is wanted: whoever has room runs more of them."""
    count = 400
    graph = Graph([[] for _ in range(count)], [[] for _ in range(count)], list(range(count)), frozenset(range(count)))
    tasks = {task: SimTask(seconds=1.0) for task in range(count)}
    visible = {f"key-{task}": task for task in range(count)}
    return Workload([SimJob("j1", graph, tasks, visible, released_at=CANCELLED_AT)])


@pytest.mark.fault(27)
@pytest.mark.parametrize("faults", [NONE, Faults(throttled=0.8), Faults(crash_per_second=0.5)], ids=repr)
@pytest.mark.parametrize("seed", range(5))
def test_a_second_after_a_cancel_nobody_is_invoked(seed, faults):
    options = replace(Options(), ceiling=8, linger_seconds=0.0)
    simulation = Simulation(seed, work(), faults, options)
    outcome = simulation.run()
    assert outcome.violation is None, outcome
    assert simulation.watch.requested["j1"] <= CANCELLED_AT + 1.0
    assert simulation.service.bill.seconds < options.ceiling * (CANCELLED_AT + options.lease_seconds)


@pytest.mark.fault(27)
def test_an_invocation_that_waits_for_its_turn_is_dropped_with_its_job():
    """1. It is throttled, or waits for others; 2. its job is cancelled; 3. its request never leaves."""
    invoker = LambdaInvoker("function", b"secret", "http://127.0.0.1:9", "us-east-1", credentials=("key", "secret"))
    invoker.is_wanted = lambda assignment: assignment.job != "cancelled"
    try:
        (refusal,) = invoker.invoke([Assignment("cancelled", "a", 1, [0])])
    finally:
        invoker.close()
    assert isinstance(refusal, InvocationRefused) and "its job is over" in str(refusal)
