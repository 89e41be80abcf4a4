"""Each program does the same under `LocalCluster` and under `ServerlessCluster`: result, error, warnings.

What does not is registered with ``@program(differs="how, and why")``. It stays in the suite, and fails it
on the day it starts to agree, so that the mark goes away with the difference.
"""

from __future__ import annotations

import pytest
from distributed import Client

from tests.compatibility import outcomes
from tests.compatibility.programs import load


@pytest.mark.timeout(150)
@pytest.mark.parametrize("program", load(), ids=lambda program: program.name)
def test_program(program, clusters):
    ours, theirs = clusters
    expected = outcomes.run(program, theirs, outcomes.SECONDS_MAX)
    if mistake := outcomes.mistake(program, expected):
        pytest.fail(f"{program.name} is no program: {mistake}\n--- LocalCluster {expected.describe()}", pytrace=False)
    may_differ = program.differs or program.unsupported
    found = outcomes.run(program, ours, outcomes.DIFFERS_SECONDS_MAX if may_differ else outcomes.SECONDS_MAX)
    difference = outcomes.difference(found, expected, program.rtol)
    if found.hung and not program.own_cluster:
        with Client(ours, set_as_default=False) as client:
            assert client.submit(sum, [1, 2], pure=False).result(timeout=10) == 3, "it took the cluster with it"
    if may_differ:
        assert difference, f"{program.name} agrees now: remove its mark ({may_differ})"
    elif difference:
        pytest.fail(
            f"{program.name}: {difference}\n--- LocalCluster {expected.describe()}\n"
            f"--- ServerlessCluster {found.describe()}",
            pytrace=False,
        )
    if program.unsupported:
        assert found.error is not None, f"{program.name} must say that it is not supported: {found.describe()}"
