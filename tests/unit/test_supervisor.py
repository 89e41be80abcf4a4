"""The supervisor: deaths in, verdicts out."""

from __future__ import annotations

import pickle

import pytest
from distributed.scheduler import KilledWorker
from hypothesis import given
from hypothesis import strategies as st

from dask_serverless.killed import ExecutorKilled
from dask_serverless.supervisor import (
    BACKOFF_SECONDS_MAX,
    BACKOFF_SECONDS_MIN,
    Blame,
    Cause,
    Death,
    GiveUp,
    Supervisor,
    TryAgain,
    silence_allowed,
)


def death(attempt, task=7, cause=Cause.CRASH, executor="e", job="job"):
    return Death(job, executor, attempt, task, cause)


def verdicts(supervisor, *deaths):
    return [verdict for each in deaths for verdict in supervisor.judge(each)]


@pytest.mark.fault(14)
def test_a_task_is_blamed_after_it_was_allowed_to_fail():
    supervisor = Supervisor(allowed_failures=3)
    found = verdicts(supervisor, *(death(attempt) for attempt in range(1, 5)))
    assert [type(each) for each in found] == [TryAgain, TryAgain, TryAgain, Blame, TryAgain]
    assert found[3] == Blame(7, 4)
    assert found[4].attempt == 5 and found[4].without == {7}


def test_the_task_is_to_blame_wherever_it_runs():
    supervisor = Supervisor(allowed_failures=1)
    verdicts(supervisor, death(1, executor="a"))
    assert verdicts(supervisor, death(1, executor="b"))[0] == Blame(7, 2)
    (again,) = verdicts(supervisor, death(1, task=8, executor="c"))
    assert again.without == {7}  # nobody runs it again


@pytest.mark.fault(14)
def test_innocent_tasks_are_not_blamed_together():
    supervisor = Supervisor(allowed_failures=1)
    found = verdicts(supervisor, *(death(attempt, task=attempt) for attempt in range(1, 50)))
    assert not any(isinstance(each, Blame | GiveUp) for each in found)


@pytest.mark.fault(11)
def test_a_timeout_is_tried_again_once():
    supervisor = Supervisor(allowed_failures=3)
    found = verdicts(supervisor, *(death(attempt, cause=Cause.TIMEOUT) for attempt in (1, 2)))
    assert [type(each) for each in found] == [TryAgain, Blame, TryAgain]
    assert type(Supervisor(allowed_failures=0).judge(death(1, cause=Cause.TIMEOUT))[0]) is Blame


@pytest.mark.fault(1)
def test_who_never_gets_to_a_task_is_given_up():
    supervisor = Supervisor(start_tries=3)
    found = verdicts(supervisor, *(death(attempt, task=-1) for attempt in (1, 2, 3)))
    assert [type(each) for each in found] == [TryAgain, TryAgain, GiveUp]


@pytest.mark.fault(40)
def test_a_task_that_kills_unseen_does_not_go_from_successor_to_successor_for_ever():
    """1. It kills an executor, and nobody knows that it was running; 2. the next attempt leaves it to a successor."""
    supervisor, executor, found = Supervisor(line_tries=10), "e", []
    while not any(isinstance(each, GiveUp) for each in found):
        assert len(found) < 20
        found += verdicts(supervisor, death(1, task=-1, executor=executor))
        executor += ".2.1"
    assert len(found) == 10


def test_others_are_not_of_the_same_line():
    supervisor = Supervisor(line_tries=10)
    found = verdicts(supervisor, *(death(1, task=-1, executor=f"e.1.{number}") for number in range(100)))
    assert not any(isinstance(each, GiveUp) for each in found)


@pytest.mark.fault(39)
def test_who_is_only_silent_may_be_late_and_is_waited_for_longer_each_time():
    """1. A cold start takes longer than a lease; 2. so does that of the next attempt: not for ever."""
    supervisor = Supervisor()
    found = verdicts(supervisor, *(death(attempt, task=-1, cause=Cause.SILENCE) for attempt in range(1, 6)))
    assert [type(each) for each in found] == [TryAgain] * 4 + [GiveUp]
    waits = [silence_allowed(attempt, False, lease_seconds=15, timeout_seconds=60) for attempt in range(1, 6)]
    assert waits == [0, 15, 45, 105, 225]


def test_a_start_that_succeeds_forgives_those_that_did_not():
    supervisor = Supervisor(start_tries=2, allowed_failures=5)
    found = verdicts(supervisor, death(1, task=-1), death(2, task=3), death(3, task=-1))
    assert [type(each) for each in found] == [TryAgain] * 3


@pytest.mark.fault(40)
def test_what_lambda_refuses_is_given_up_at_once():
    assert verdicts(Supervisor(), death(1, cause=Cause.REFUSED)) == [GiveUp(1)]


def test_reports_of_one_death_count_once_and_late_ones_not_at_all():
    supervisor = Supervisor()
    assert verdicts(supervisor, death(2))
    assert verdicts(supervisor, death(2, cause=Cause.SILENCE), death(1)) == []


def test_a_job_that_is_over_is_forgotten():
    supervisor = Supervisor(allowed_failures=0)
    verdicts(supervisor, death(1))
    supervisor.forget("job")
    supervisor.forget("job")
    assert repr(supervisor) == "<Supervisor: deaths in 0 jobs>"


@given(st.integers(1, 60), st.floats(0, 1, exclude_max=True))
def test_back_off_is_bounded(deaths, jitter):
    supervisor = Supervisor(allowed_failures=100, jitter=lambda: jitter)
    *_, last = verdicts(supervisor, *(death(attempt) for attempt in range(1, deaths + 1)))
    assert BACKOFF_SECONDS_MIN / 2 <= last.seconds <= 1.5 * BACKOFF_SECONDS_MAX


def test_the_error_is_caught_as_dasks_own_and_travels():
    error = ExecutorKilled("task 'inc-1' died 4 times", "inc-1", 4)
    with pytest.raises(KilledWorker):
        raise error
    again = pickle.loads(pickle.dumps(error))
    assert (again.task, again.deaths, again.allowed_failures, str(again)) == ("inc-1", 4, 3, str(error))
