"""Executors as a state machine: hypothesis says who moves next, who dies, and who gets a backup.

`test_executor_world` draws whole runs from a seed. Here every move is one choice, so what fails is shown as the few
moves it takes. What is new in it are backups: executors that do the work of others under names of their own.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from dask_serverless.stragglers import backup_of
from lambda_worker.core.schedule import Assignment
from tests.machines import RuleBasedStateMachine, run_machine
from tests.unit.executor_world import EAGER, World, dags, graph_of

DEATHS_MAX = 4
BACKUPS_MAX = 3


class ExecutorMachine(RuleBasedStateMachine):
    """Executors over one store, and somebody who tries again and backs up."""

    world = None
    deaths = backups = 0

    @initialize(
        dag=dags(),
        groups=st.integers(1, 4),
        seed=st.integers(0, 1_000),
        ceiling=st.sampled_from([1, 8]),
        large=st.sampled_from([0.0, 0.5]),
        threads=st.sampled_from([1, 2]),
    )
    def begin(self, dag, groups, seed, ceiling, large, threads):
        self.graph, _ = graph_of(*dag)
        policy = replace(EAGER, ceiling=ceiling, threads=threads, hold_bytes_min=0)
        self.world = World(self.graph, policy, seed)
        self.world.large = large
        self.right = self.world.expected()
        self.world.start(groups)

    @property
    def movable(self):
        return [actor for actor in self.world.actors if actor.todo]

    @property
    def alive(self):
        return [
            actor
            for actor in self.world.actors
            if not actor.dead and actor.executor.assignment.executor not in self.world.retired
        ]

    @precondition(lambda self: self.world is not None)
    @rule(who=st.integers(0, 99), what=st.integers(0, 9))
    def move(self, who, what):
        if not self.movable:
            return
        actor = self.movable[who % len(self.movable)]
        instruction = actor.todo[what % len(actor.todo)]
        del actor.todo[what % len(actor.todo)]
        event = actor.do(instruction)
        if event is not None:
            actor.perform(actor.executor.handle(event))

    @precondition(lambda self: self.world is not None and self.movable and self.deaths < DEATHS_MAX)
    @rule(who=st.integers(0, 99))
    def die(self, who):
        self.deaths += 1
        self.movable[who % len(self.movable)].die()

    @precondition(lambda self: self.world is not None and self.alive and self.backups < BACKUPS_MAX)
    @rule(who=st.integers(0, 99))
    def back_up(self, who):
        """As the proxy does: what the store says of who is alive is given to one more executor."""
        world, actor = self.world, self.alive[who % len(self.alive)]
        mine = actor.executor.assignment
        without = {*mine.without, *actor.gave}
        claims = {
            child: dict(world.fan_ins[child])
            for child, owner in world.owner.items()
            if owner == mine.executor and child not in world.held
        } | dict(mine.claims)
        had = Assignment(
            mine.job,
            f"{mine.executor}-{self.backups}",  # one may get several here
            mine.attempt,
            [task for task in mine.starts if task not in without],
            given=mine.given,
            hint=mine.hint,
            claims={child: values for child, values in claims.items() if child not in without},
            without=tuple(sorted(without)),
            redo=mine.redo,
            function_class=mine.function_class,
            home=mine.home,
        )
        self.backups += 1
        world.invoke(backup_of(had))

    @invariant()
    def what_is_known_is_right(self):
        if self.world is not None:
            assert self.world.results.items() <= self.right.items()

    def teardown(self):
        if self.world is None:
            return
        self.world.run()
        assert self.world.results == self.right, "nothing is lost, whatever happened"
        assert sum(self.world.runs.values()) <= len(self.graph) * (1 + self.deaths + self.backups)


@pytest.mark.fault(38)
def test_whoever_moves_dies_or_is_backed_up_every_value_is_right_and_there():
    run_machine(ExecutorMachine, examples=120, steps=60)
