"""Fixtures of fleets: a storage tier for the tests of a module, and fleets that end with their test."""

from __future__ import annotations

import pytest

from tests.process.fleet import GATES, RAN, Fleet, start_tier


@pytest.fixture(scope="module")
def tier():
    with start_tier(shards=2, maxmemory_bytes=2**30) as tier:
        yield tier


@pytest.fixture
def make_fleet(tier):
    RAN.clear()
    fleets = []

    def make(tier=tier, **options):
        fleets.append(Fleet(tier, **options))
        return fleets[-1]

    yield make
    for gate in GATES.values():
        gate.set()
    for fleet in fleets:
        fleet.close()


@pytest.fixture
def fleet(make_fleet):
    return make_fleet()
