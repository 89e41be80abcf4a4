"""A minute of trouble on real processes, twice a second: every computation ends right. Ten of them: `make chaos`."""

from __future__ import annotations

import secrets

import pytest

from tests.chaos import harness

KILLING_SECONDS = 60.0
ALL_KINDS_SECONDS = 25.0
#: At a kill every half second, as promised, where that is not more often than so many times in a round. (Two quiet
#: cores: 6. Half as fast, and shared with others: 13, and 1.6 runs per task.)
RUNS_PER_TASK_MAX = 1.5
KILLS_PER_ROUND_MAX = 8.0
#: Where it is: 8 and 13 on that machine. (On quiet ones 6 to 10: who gets more done has more to lose.)
LOST_PER_KILL_MAX = 20.0


@pytest.fixture
def seed():
    return secrets.randbelow(1_000_000)


@pytest.mark.fault(2)
def test_answers_are_right_while_a_sandbox_is_killed_every_half_second(seed):
    report = harness.run(KILLING_SECONDS, seed, kinds=(), skewed=False)
    print(report)
    assert not report.wrong, report
    assert set(report.rounds) == set(harness.WORKLOADS), report
    assert report.happened["kill"] >= KILLING_SECONDS, report
    if report.kills_per_round <= KILLS_PER_ROUND_MAX:
        assert report.waste <= RUNS_PER_TASK_MAX, report
    else:
        assert report.lost_per_kill <= LOST_PER_KILL_MAX, report


@pytest.mark.fault(2, 6, 7, 9, 10, 17, 21, 22, 28, 29, 30, 31)
def test_answers_are_right_whatever_else_goes_wrong(seed):
    kinds = [kind for kind in harness.KINDS if kind != "full"]  # which would be told, and have a test of its own
    report = harness.run(ALL_KINDS_SECONDS, seed, kinds, always=())
    print(report)
    assert not report.wrong and not report.refused, report
    assert set(report.rounds) == set(harness.WORKLOADS), report
    assert len(report.happened) > len(kinds) // 2, report
