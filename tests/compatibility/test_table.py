"""The page of the docs is what the programs prove, and has a row for everything that is public."""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path

import dask
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
        if name == "config":
            assert found is dask.config.config
            continue
        origin = found.__name__ if inspect.ismodule(found) else found.__module__
        assert origin.partition(".")[0] in ("distributed", "dask"), f"distributed.{name} is {origin}'s"


def test_little_is_not_supported():
    assert len({program.unsupported for program in load() if program.unsupported}) <= UNSUPPORTED_MAX


def test_what_programs_say_they_cover_is_in_their_bodies():
    """A claim must be a public name; if it is a method's, the program's own body must have it."""
    for program in load():
        assert set(program.covers) <= set(surface.names()), program.name
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(program.function))).body
        body = "\n".join(ast.unparse(statement) for statement in definition.body)
        missing = [name for name in program.covers if "." in name and name.rpartition(".")[2] not in body]
        assert not missing, f"{program.name} says nothing of {missing}"


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
