"""A cluster under virtual time: no promise is broken by any of thousands of seeds, and bugs that are planted are found.

`SIMULATED_SEEDS` says how many seeds to run (2,000; 20,000 at night), `SIMULATED_FIRST` from where.
"""

from __future__ import annotations

import importlib
import math
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from click.testing import CliRunner

from dask_serverless.command_line import serverless
from dask_serverless.plan.graph import Graph
from dask_serverless.simulate import replay_line, simulate, simulate_many
from dask_serverless.simulator import faults, workload
from dask_serverless.simulator.driver import Driver
from dask_serverless.simulator.faults import NONE, Faults
from dask_serverless.simulator.invariants import Violated
from dask_serverless.simulator.proxy import Proxy
from dask_serverless.simulator.sim_store import SimStore
from dask_serverless.simulator.simulation import Parts, Simulation, draw_options
from dask_serverless.simulator.tier import FanIn
from dask_serverless.simulator.workload import SimJob, SimTask, Workload
from lambda_worker.core.verdicts import Standing
from lambda_worker.core.wire import Ref

SEEDS = int(os.environ.get("SIMULATED_SEEDS", "2000"))
FIRST = int(os.environ.get("SIMULATED_FIRST", "0"))


# Seeds


@pytest.mark.fault(2, 3, 4, 5, 6, 7, 9, 10, 17, 19, 22, 23, 28, 30)
@pytest.mark.timeout(3600)
def test_no_promise_is_broken_whatever_goes_wrong():
    failed = [
        f"{outcome}\n  {replay_line(outcome.seed)}"
        for outcome in simulate_many(range(FIRST, FIRST + SEEDS))
        if outcome.violation is not None
    ]
    assert not failed, f"{len(failed)} of {SEEDS} seeds:\n" + "\n".join(failed[:10])


def test_without_faults_every_key_has_its_value_and_every_task_runs_once():
    for seed in range(60):
        simulation = Simulation(seed, faults=NONE)
        outcome = simulation.run()
        assert outcome.violation is None, outcome
        plain = {
            (job.name, task)
            for job in simulation.workload.jobs
            for task, does in job.tasks.items()
            if does == SimTask(does.seconds, does.nbytes) and job.released_at == float("inf")
        }
        deaths = any(does.poison or does.memory for job in simulation.workload.jobs for does in job.tasks.values())
        if not deaths:
            assert {simulation.watch.runs_of.get(task, 0) for task in plain} <= {0, 1}


@pytest.mark.fault(3, 4, 5, 6, 7, 9, 10, 19, 22, 23, 28, 30, 38, 39)
def test_every_class_of_faults_happens_alone():
    """Each class alone must be survived as well, and must leave its mark: else it is no fault."""
    for name in faults.CLASSES:
        marks = Counter()
        for seed in range(12):
            simulation = Simulation(seed, faults=faults.draw(random.Random(seed), [name], share=1.0))
            outcome = simulation.run()
            assert outcome.faults.classes == [name]
            assert outcome.violation is None, f"{outcome}\n{replay_line(seed, [name], 1.0)}"
            marks[outcome.digest == Simulation(seed, faults=NONE).run().digest] += 1
        assert marks[False], f"{name} changed nothing"


def test_the_same_seed_tells_the_same_story_in_another_process():
    """Neither the hash seed of a process nor what ran in it before has a part in the story."""
    program = "from dask_serverless.simulate import simulate; print([simulate(seed).digest for seed in range(20, 30)])"
    here = [simulate(seed).digest for seed in range(20, 30)]
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
        )
        assert done.stdout.strip() == str(here)


def test_a_violation_travels_between_processes():
    import pickle

    found = pickle.loads(pickle.dumps(Violated("I1", "j1-3 is 4, not 5")))
    assert (found.invariant, str(found)) == ("I1", "I1: j1-3 is 4, not 5")


# Bugs that are planted


class CountingFanIn(FanIn):
    """How many arrivals there were, not which: an edge that is set twice counts twice."""

    def __init__(self, parents):
        super().__init__(parents)
        self.count = 0

    def set(self, parent, value):
        super().set(parent, value)
        self.count += 1

    def complete(self, held=frozenset()):
        return self.count + len(held) >= self.parents


class CounterInsteadOfEdges(SimStore):
    def _new_fan_in(self, parents):
        return CountingFanIn(parents)


class NoFencing(SimStore):
    def _enter(self, job, executor, attempt):
        state = self.tier.job(job)
        record = state.records.get(executor)
        if state.cancelled or not state.opened or record is None:
            return super()._enter(job, executor, attempt)
        record.attempt = max(record.attempt, attempt)
        return Standing.OK


class AnybodyHoldsAnAttempt(SimStore):
    """Invocations that Lambda delivers twice are not told apart."""

    def __init__(self, tier, *args, holder="", **options):
        super().__init__(tier, *args, **options)


class SignalBeforeData(Driver):
    """Values are written while others are told of them already."""

    def _put(self, shard, items, located, failed):
        for task, name, _ in items:
            located[task] = Ref(name, shard, self.values[task][1])
        self.sandbox.spawn(super()._put(shard, items, {}, {}))
        return
        yield


class NoSweep(Proxy):
    """Nobody looks for leases that have run out."""

    def _judge_silence(self, lapsed, since):
        pass


class KeepsNothing(Proxy):
    """A job is cleaned up before its results were let go."""

    def close_job(self, close):
        self.simulation.store.close_job(close.job, [])


class FailsWhatSeemsStalled(Proxy):
    """Who was given work by an executor that died before it said so is not looked for."""

    def _look_into(self, job, again):
        self.simulation.watch.stalled(job)
        return
        yield


class DoesNotListen(SimStore):
    """Nobody finds out that the metadata server has forgotten everything."""

    is_forgotten = False


class TrustsWhoStandsIn(SimStore):
    """Nobody finds out that another metadata server has taken the place of the one that was begun with."""

    @property
    def is_forgotten(self):
        return self._mark != (0, 0) and self.tier.mark != self._mark


class BeginsAgainUnderTheSameName(Proxy):
    """Who was at work before is not told from who is at work now."""

    def new_name(self, job):
        return job.name


class MakesWhatIsThere(Proxy):
    """What is finished is not given to those who begin again."""

    def there(self):
        return ()


PLANTED = {
    "counter instead of edge set": Parts(store=CounterInsteadOfEdges),
    "signal before data": Parts(driver=SignalBeforeData),
    "no fencing": Parts(store=NoFencing),
    "lost lease sweep": Parts(proxy=NoSweep),
    "garbage collection one step early": Parts(proxy=KeepsNothing),
    "doubled invocations not told apart": Parts(store=AnybodyHoldsAnAttempt),
}


@pytest.mark.parametrize("parts", PLANTED.values(), ids=PLANTED)
def test_a_planted_bug_is_caught_within_200_seeds(parts):
    catch(parts, 200)


def test_a_bug_that_there_was_is_caught_again():
    """A rare one: an executor must die between giving work away and saying so."""
    catch(Parts(proxy=FailsWhatSeemsStalled), 800, ["crash-at-step"], 1.0)


@pytest.mark.fault(22)
@pytest.mark.parametrize("parts", [Parts(store=DoesNotListen), Parts(proxy=BeginsAgainUnderTheSameName)], ids=repr)
def test_a_planted_bug_in_beginning_again_is_caught(parts):
    catch(parts, 200, ["metadata-lost"], 1.0)


@pytest.mark.fault(19)
def test_a_failover_that_nobody_notices_is_caught():
    catch(Parts(store=TrustsWhoStandsIn), 200, ["failover"], 1.0)


def catch(parts, seeds, *faults):
    for seed in range(seeds):
        outcome = simulate(seed, *faults, parts=parts)
        if outcome.violation is not None:
            assert simulate(seed, *faults).violation is None, "it is the planted one that was caught"
            return
    pytest.fail("not caught")


# Small stories


def chain(length, **does):
    """Return a workload: one chain, of which the last value is wanted."""
    parents = [[task - 1] if task else [] for task in range(length)]
    children = [[task + 1] if task + 1 < length else [] for task in range(length)]
    graph = Graph(parents, children, [0], frozenset({length - 1}))
    return Workload([SimJob("j1", graph, {task: SimTask(**does) for task in range(length)}, {"last": length - 1})])


def test_a_chain_takes_as_long_as_its_tasks_and_one_cold_start():
    simulation = Simulation(1, chain(10, seconds=2.0), NONE)
    outcome = simulation.run()
    assert outcome.answers == {"last": "a value"}
    assert 20 < outcome.seconds < 21
    assert simulation.service.bill.requests == 1


@pytest.mark.fault(12)
def test_a_chain_longer_than_any_lambda_lives_is_handed_on():
    simulation = Simulation(1, chain(60, seconds=30.0), NONE)
    outcome = simulation.run()
    assert outcome.violation is None and outcome.answers == {"last": "a value"}
    assert simulation.service.bill.requests > 1800 / simulation.options.function.timeout_seconds


@pytest.mark.fault(14)
def test_a_task_that_kills_is_blamed_and_nobody_else():
    work = chain(5, seconds=0.1)
    work.jobs[0].tasks[2].poison = True
    outcome = Simulation(1, work, NONE).run()
    assert outcome.violation is None
    assert outcome.answers == {"last": "error killed of j1/2"}


@pytest.mark.fault(1)
def test_silence_alone_brings_a_lost_invocation_back():
    outcome = Simulation(1, chain(3), Faults(invocation_lost=0.9, failure_lost=1.0)).run()
    assert outcome.violation is None
    assert outcome.answers in ({"last": "a value"}, {"last": "error lost of j1/-1"})


@pytest.mark.fault(20)
@pytest.mark.parametrize("beside", [0.0, math.inf])
def test_what_finds_no_room_on_the_shards_goes_beside_them(beside):
    refused = overflowed = 0
    for seed in range(30):
        options = replace(draw_options(random.Random(seed)), overflow_mebibytes=beside)
        simulation = Simulation(seed, faults=Faults(shard_mebibytes=1.0), options=options)
        outcome = simulation.run()
        assert outcome.violation is None, outcome
        refused += any("StoreFull" in answer for answer in outcome.answers.values())
        overflowed += sum(store.counters()["objects_overflowed"] for store in simulation.stores)
    assert (refused > 0, overflowed > 0) == (not beside, bool(beside))


@pytest.mark.fault(22)
def test_what_is_finished_when_all_is_forgotten_is_not_made_again():
    """Two of the values on the way are wanted as well: the chain goes on from the last of them that is there."""
    work = chain(60, seconds=1.0)
    job = work.jobs[0]
    job.visible |= {"first": 19, "second": 39}
    job.graph = replace(job.graph, visible=frozenset(job.visible.values()))
    for parts, at_most in ((None, 1), (Parts(proxy=MakesWhatIsThere), 2)):
        simulation = Simulation(1, work, Faults(metadata_lost_per_second=1e-9), parts=parts)
        simulation.timeline.after(30.0, simulation._forget)
        outcome = simulation.run()
        assert outcome.violation is None and set(outcome.answers.values()) == {"a value"}
        assert simulation.watch.metadata_lost == 1 and len(simulation.origins) == 2
        runs = Counter()
        for (_, task), times in simulation.watch.runs_of.items():
            runs[task] += times
        assert max(runs[task] for task in range(20)) == at_most


@pytest.mark.fault(22, 40)
def test_a_job_that_is_forgotten_too_often_fails_by_name():
    simulation = Simulation(1, chain(60, seconds=1.0), Faults(metadata_lost_per_second=0.5))
    outcome = simulation.run()
    assert outcome.violation is None
    assert outcome.answers["last"].startswith("error StoreForgot of j1r")
    assert simulation.watch.metadata_lost >= 6


def test_a_wrong_answer_would_be_noticed(monkeypatch):
    monkeypatch.setattr("dask_serverless.simulator.driver.combine", lambda job, task, values: 7)
    outcome = Simulation(1, chain(3), NONE).run()
    assert outcome.violation.invariant == "I1"


def test_what_is_drawn_does_not_depend_on_which_classes_are_on():
    alone = faults.draw(random.Random("1"), ["rollback"], share=1.0)
    among_all = faults.draw(random.Random("1"), share=1.0)
    assert alone.rollback_per_second == among_all.rollback_per_second


def test_workloads_are_graphs():
    for seed in range(100):
        for job in workload.draw(random.Random(seed)).jobs:
            graph = job.graph
            assert all(parent < task for task, row in enumerate(graph.parents) for parent in row)
            assert {(p, c) for c, row in enumerate(graph.parents) for p in row} == {
                (p, c) for p, row in enumerate(graph.children) for c in row
            }
            assert all(len(set(row)) == len(row) for row in graph.parents)
            assert set(graph.starts) == {task for task in (*job.tasks, *graph.externals) if not graph.parents[task]}


# On the command line


def run(*arguments):
    return CliRunner().invoke(serverless, arguments)


def test_a_seed_tells_its_story_and_how_to_hear_it_again():
    done = run("simulate", "--seed", "3")
    assert done.exit_code == 0
    assert "j1 is submitted" in done.output and "seed 3: ok" in done.output
    assert "replay: dask serverless simulate --seed 3 --commit" in done.output


def test_many_seeds_are_counted():
    done = run("simulate", "--seeds", "3", "--first", "5", "--faults", "crash,reply-lost", "--processes", "1")
    assert done.exit_code == 0
    assert "3 seeds from 5" in done.output and "0 failed" in done.output


def test_a_failure_ends_with_a_status_and_its_replay_line(monkeypatch):
    monkeypatch.setattr(
        "dask_serverless.simulate.Simulation",
        lambda seed, faults, parts: Simulation(seed, faults=faults, parts=PLANTED["counter instead of edge set"]),
    )
    done = run("simulate", "--seeds", "200", "--processes", "1")
    assert done.exit_code == 1
    assert "VIOLATED" in done.output and "replay: dask serverless simulate --seed" in done.output


def test_a_class_of_faults_that_there_is_none_of_is_named():
    done = run("simulate", "--faults", "crash,locusts")
    assert done.exit_code == 2
    assert "'locusts'" in done.output and "rollback" in done.output


def test_another_commit_is_pointed_out():
    assert "the failure was seen at 0123abc" in run("simulate", "--seed", "3", "--commit", "0123abc").output


def test_it_is_a_command_of_dask():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["dask_cli"]["serverless"].partition(":")
    assert getattr(importlib.import_module(module), name) is serverless


MODULES = [
    "faults",
    "lambda_service",
    "network",
    "sim_store",
    "simulation",
    "tier",
    "timeline",
    "workload",
]
