"""The invocation governor: a burst, then a rate, that gives way to 429 and recovers."""

import random

import pytest

from dask_serverless.invoke.governor import Admission, Governor, Limits


def test_a_burst_then_a_rate():
    governor = Governor(Limits(rate_per_second_max=10, burst_max=3), now=0.0)

    assert governor.admit(5, now=0.0) == Admission(3, pytest.approx(0.1))
    assert governor.admit(2, now=0.1) == Admission(1, pytest.approx(0.1))
    assert governor.admit(1, now=0.2) == Admission(1, None)


def test_a_pause_saves_up_no_more_than_a_burst():
    governor = Governor(Limits(rate_per_second_max=10, burst_max=3), now=0.0)
    assert governor.admit(10, now=1_000.0).count == 3


def test_refusals_of_one_burst_halve_the_rate_once():
    governor = Governor(Limits(rate_per_second_max=100, decrease_seconds_min=1.0))
    governor.admit(10, now=0.0)

    for _ in range(5):
        governor.answered(now=0.1, throttled=True)
    assert governor.rate_per_second == 50
    governor.answered(now=1.2, throttled=True)
    assert governor.rate_per_second == 25


@pytest.mark.fault(9)
def test_the_saved_burst_does_not_follow_a_refusal():
    governor = Governor(Limits(rate_per_second_max=100, burst_max=100))
    governor.admit(1, now=0.0)
    governor.answered(now=0.0, throttled=True)
    assert governor.admit(50, now=0.0).count == 0


def test_the_rate_stays_within_its_bounds():
    governor = Governor(Limits(rate_per_second_max=8, rate_per_second_min=2, decrease_seconds_min=0.0))
    for second in range(10):
        governor.answered(now=float(second), throttled=True)
    assert governor.rate_per_second == 2
    for _ in range(1_000):
        governor.answered(now=10.0, throttled=False)
    assert governor.rate_per_second == 8


@pytest.mark.fault(9)
@pytest.mark.parametrize("seed", range(20))
def test_it_finds_the_rate_of_a_service_it_does_not_know(seed):
    # Given a service that takes 40 per second and refuses the rest
    luck = random.Random(seed)
    governor = Governor(Limits(rate_per_second_max=1_000, burst_max=50, increase=5.0))
    tokens, accepted, refused, now = 50.0, 0, 0, 0.0

    # When more is wanted than it takes, for 30 s
    while now < 30.0:
        admission = governor.admit(100, now)
        for _ in range(admission.count):
            throttled = tokens < 1
            tokens -= not throttled
            accepted += not throttled
            refused += throttled
            governor.answered(now, throttled)
        step = luck.uniform(0.005, 0.03)
        now += step
        tokens = min(50.0, tokens + 40 * step)

    # Then most of what it offers is used, and few requests are wasted
    assert accepted > 0.6 * 40 * 30
    assert refused < 0.3 * accepted


@pytest.mark.parametrize(
    "bad",
    [
        {"rate_per_second_min": 0},
        {"rate_per_second_max": 0.5},
        {"burst_max": 0},
        {"decrease_factor": 1.0},
    ],
)
def test_bad_limits_are_refused(bad):
    with pytest.raises(ValueError):
        Limits(**bad)
