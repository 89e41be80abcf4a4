"""The executor core, told what tasks take: what it gives away by that, and what it reports."""

from __future__ import annotations

from lambda_worker.core.events import Answered, Began, Delegated, InputsFetched, TaskDone, Woken
from lambda_worker.core.executor import Executor
from lambda_worker.core.instructions import Arrive, Delegate, Fetch, Run
from lambda_worker.core.observed import REPORT_SECONDS
from lambda_worker.core.policy import Policy
from lambda_worker.core.schedule import Assignment, Edges
from lambda_worker.core.verdicts import Claim, Standing, Verdict

#: A task, behind it 20 of one prefix and 20 of another.
FAN_OUT = Edges(
    first=0,
    parents=[[]] + [[0]] * 40,
    children=[list(range(1, 41))] + [[]] * 40,
    visible=frozenset(range(1, 41)),
    prefixes=[0, 1, 1, 20, 2, 20],
)
KEEPS = Policy(ceiling=4)


def began(learned=(), edges=FAN_OUT, starts=(0,), policy=KEEPS):
    executor = Executor(Assignment("job", "e", 1, list(starts), room=1, learned=dict(learned)), policy)
    executor.handle(Began(0.0, {0: edges}))
    return executor


def of_kind(kind, instructions):
    return [each for each in instructions if isinstance(each, kind)]


def test_a_fan_out_to_tasks_of_which_nothing_is_known_is_kept_if_its_parent_was_short():
    executor = began()
    assert of_kind(Delegate, executor.handle(TaskDone(0, seconds=1e-5, now=0.1))) == []
    assert executor.journal.take()[0] == {"began": 1, "keep": 1}


def test_a_fan_out_to_tasks_that_are_known_to_be_long_is_split_at_once():
    executor = began({1: (1.0, 0.0), 2: (1e-5, 0.0)})
    (delegate,) = of_kind(Delegate, executor.handle(TaskDone(0, seconds=1e-5, now=0.1)))
    assert len(delegate.assignments) == 3
    counts, samples = executor.journal.take()
    assert counts["split"] == 1
    (split,) = [numbers for decision, _, numbers in samples if decision == "split"]
    assert split["ready"] == 40 and split["shares"] == 4
    assert 0.4 < split["seconds_per_task"] < 0.6


def test_one_long_prefix_among_short_ones_gives_nothing_away_if_none_of_its_tasks_are_ready():
    executor = began({0: (100.0, 0.0), 1: (1e-5, 0.0), 2: (1e-5, 0.0)})
    assert of_kind(Delegate, executor.handle(TaskDone(0, seconds=1e-5, now=0.1))) == []


def test_who_is_given_a_share_is_told_what_is_known_here():
    executor = began({1: (1.0, 0.0), 2: (1.0, 100.0)})
    (delegate,) = of_kind(Delegate, executor.handle(TaskDone(0, seconds=0.5, now=0.1, nbytes=70_000)))
    for assignment in delegate.assignments:
        assert assignment.learned == {0: (0.5, 70_000), 1: (1.0, 0.0), 2: (1.0, 100.0)}


def test_places_that_were_granted_and_refused_are_in_the_journal():
    executor = began({1: (1.0, 0.0), 2: (1.0, 0.0)})
    executor.handle(TaskDone(0, seconds=1e-5, now=0.1))
    executor.handle(Delegated(granted=1, now=0.2))
    counts, samples = executor.journal.take()
    assert (counts["delegated"], counts["refused"]) == (1, 1)
    numbers = {decision: numbers for decision, _, numbers in samples}
    assert numbers["delegated"] == {"executors": 1, "tasks": 10}
    assert numbers["refused"] == {"executors": 2, "tasks": 20}


def test_who_retires_reports_what_it_saw_and_decided():
    edges = Edges(0, [[], [0]], [[1], []], visible=frozenset({1}), prefixes=[0, 1, 1, 1])
    executor = began(edges=edges)
    executor.handle(TaskDone(0, seconds=0.1, now=0.1))
    (arrive,) = of_kind(Arrive, executor.handle(TaskDone(1, seconds=0.5, now=0.6, nbytes=100_000)))
    assert arrive.retire
    assert arrive.observed == {0: [1, 0.1, 0.1 * 0.1, 0, 0, 1], 1: [1, 0.5, 0.25, 100_000, 100_000**2, 0]}
    assert arrive.journal[0] == {"began": 1, "publish": 1}


def test_who_goes_on_reports_only_now_and_then():
    edges = Edges(0, [[]] * 4, [[]] * 4, visible=frozenset(range(4)))
    executor = began(edges=edges, starts=range(4), policy=Policy(share_seconds_min=100))
    executor.handle(TaskDone(0, seconds=1.0, now=1.0))
    (early,) = of_kind(Arrive, executor.handle(Woken(1.1)))
    assert (early.observed, early.journal) == ({}, ({}, []))
    executor.handle(Answered(Standing.OK, (), retired=False, now=1.2))
    executor.handle(TaskDone(1, seconds=REPORT_SECONDS, now=1.0 + REPORT_SECONDS))
    (late,) = of_kind(Arrive, executor.handle(Woken(1.1 + REPORT_SECONDS)))
    assert not late.retire
    assert late.observed[0][0] == 1
    assert late.journal[0]["publish"] == 2


def test_what_was_reported_is_not_reported_again_by_who_was_not_let_go():
    """It arrives and wants to retire, but wins the child."""
    edges = Edges(0, [[], [], [0, 1]], [[2], [2], []], fan_ins={2: 2}, visible=frozenset({2}))
    executor = began(edges=edges)
    (first,) = of_kind(Arrive, executor.handle(TaskDone(0, seconds=1.0, now=1.0)))
    assert first.retire and first.journal[0] == {"began": 1, "arrive": 1, "publish": 1}
    claim = Claim(2, Verdict.YOURS, {0: b"zero", 1: b"one"})
    (fetch,) = of_kind(Fetch, executor.handle(Answered(Standing.OK, [claim], retired=False, now=1.1)))
    (run,) = of_kind(Run, executor.handle(InputsFetched(fetch.task)))
    (second,) = of_kind(Arrive, executor.handle(TaskDone(run.task, seconds=2.0, now=3.0)))
    assert second.journal[0] == {"become": 1, "fetch": 1, "publish": 1}
    assert second.observed == {0: [1, 2.0, 4.0, 0, 0, 0]}
