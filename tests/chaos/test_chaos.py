"""A minute of trouble on real processes, twice a second: every computation ends right. Ten of them: `make chaos`."""

from __future__ import annotations

import secrets

import pytest

from tests.chaos import harness

SECONDS = 25.0
#: At a kill every half second, as promised.
RUNS_PER_TASK_MAX = 1.5


@pytest.fixture
def seed():
    return secrets.randbelow(1_000_000)


@pytest.mark.fault(2)
def test_answers_are_right_while_a_sandbox_is_killed_every_half_second(seed):
    report = harness.run(SECONDS, seed, kinds=(), skewed=False)
    print(report)
    assert not report.wrong, report
    assert set(report.rounds) == set(harness.WORKLOADS), report
    assert report.happened["kill"] >= SECONDS, report
    assert report.waste <= RUNS_PER_TASK_MAX, report


@pytest.mark.fault(2, 6, 7, 9, 10, 17, 21, 22, 28, 29, 30, 31)
def test_answers_are_right_whatever_else_goes_wrong(seed):
    kinds = [kind for kind in harness.KINDS if kind != "full"]  # which would be told, and have a test of its own
    report = harness.run(SECONDS, seed, kinds, always=())
    print(report)
    assert not report.wrong and not report.refused, report
    assert set(report.rounds) == set(harness.WORKLOADS), report
    assert len(report.happened) > len(kinds) // 2, report
