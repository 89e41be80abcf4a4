"""The page of the docs is what the programs prove, and has a row for everything that is public."""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path

import distributed
import pytest

import dask_serverless  # noqa: F401  it must change nothing of what is looked at here
from tests.compatibility import surface, table
from tests.compatibility.programs import load

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
#: More than these would not be a replacement.
UNSUPPORTED_MAX = 5


def test_the_page_is_up_to_date():
    fresh = "make it again: python -m tests.compatibility.table > docs/compatibility.md"
    assert PAGE.read_text() == table.render(), fresh


def test_every_public_name_has_a_program_or_stands_beside():
    proven = set().union(*(surface.covered(program) for program in load()))
    assert set(surface.names()) - proven - set(surface.BESIDE) == set()


def test_what_stands_beside_is_dasks_own():
    for name in surface.BESIDE:
        found = getattr(distributed, name)
        origin = getattr(found, "__module__", None) or found.__name__
        assert origin.partition(".")[0] in ("distributed", "dask"), f"distributed.{name} is {origin}'s"


def test_little_is_not_supported():
    assert len({program.unsupported for program in load() if program.unsupported}) <= UNSUPPORTED_MAX


@pytest.mark.parametrize("program", [each for each in load() if each.covers], ids=lambda program: program.name)
def test_what_a_program_says_it_covers_is_in_its_source(program):
    """A claim must be a public name, and its last part must stand in the program or in a helper it calls."""
    assert set(program.covers) <= set(surface.names())
    module = ast.parse(inspect.getsource(inspect.getmodule(program.function)))
    written = {
        getattr(node, "attr", None) or getattr(node, "id", None) or getattr(node, "name", None)
        for node in ast.walk(module)
    }
    own = ast.parse(textwrap.dedent(inspect.getsource(program.function)))
    written_here = {
        getattr(node, "attr", None) or getattr(node, "id", None) or getattr(node, "name", None)
        for node in ast.walk(own)
    }
    for name in program.covers:
        kind, _, method = name.partition(".")
        if method:
            # Methods are asked for here; `await future` is `Future.result`.
            assert method in written_here | {"result", "exception", "traceback", "transition", "start"}, name
        else:
            assert kind in written or kind in ("Actor", "KilledWorker", "LocalCluster", "ClientExecutor"), name


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(client):\n    return client.submit(abs, 1).result()", {"Client.submit", "Future.result"}),
        ("def f(client):\n    x = client.scatter(1)\n    return x.done()", {"Client.scatter", "Future.done"}),
        ("def f(cluster):\n    return cluster.get_client().ncores()", {"LocalCluster.get_client", "Client.ncores"}),
        ("def f(other):\n    return other.submit(1)", set()),
    ],
)
def test_a_source_is_read_for_the_names_it_mentions(source, expected):
    reader = surface._Reader({"client": "Client", "cluster": "LocalCluster"})
    assert reader.read(ast.parse(source)) == expected
