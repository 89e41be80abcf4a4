"""Makes `docs/resilience.md` of the fault table and of the tests that are marked with its rows.

    python -m tests.resilience.table > docs/resilience.md

A test says with `@pytest.mark.fault(17)` that it shows what row 17 promises, or a module with `pytestmark`. Marks are
read from the sources; nothing is imported or run here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.resilience.rows import ROWS

TESTS = Path(__file__).parents[1]

HEAD = """\
# What goes wrong, and what happens then

This page is made of the tests that are marked with the rows of the fault table
([rows.py](../tests/resilience/rows.py)), by `python -m tests.resilience.table`. {shown} of {count} rows have a test.
Tests in `test_simulator` run thousands of seeds under virtual time ([how](simulation.md)); those in `chaos` hurt real
processes again and again ([how](decisions/0026-chaos-on-real-processes.md)); the others show one thing each.

| | What goes wrong | What is promised | Shown by |
|---|---|---|---|
"""

NOT_YET = """
## Not shown yet

Rows of which no test shows all, and why. Those without a promise above are not survived.

| | What goes wrong | What is missing |
|---|---|---|
"""


def marks(decorators: list[ast.expr]) -> Iterator[int]:
    """Return the rows that decorators name."""
    for each in decorators:
        if isinstance(each, ast.Call) and ast.unparse(each.func) == "pytest.mark.fault":
            yield from (ast.literal_eval(row) for row in each.args)


def names(assignment: ast.Assign) -> str:
    """Return what an assignment gives a value."""
    return ", ".join(map(ast.unparse, assignment.targets))


def shown() -> dict[int, list[tuple[str, str]]]:
    """Return, for each row that is marked, its tests: their file below `tests`, and their name."""
    found: dict[int, list[tuple[str, str]]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        file = path.relative_to(TESTS).as_posix()
        tree = ast.parse(path.read_text())
        all_of_it = [each.value for each in tree.body if isinstance(each, ast.Assign) and names(each) == "pytestmark"]
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
                for row in marks([*node.decorator_list, *all_of_it]):
                    found.setdefault(row, []).append((file, node.name))
    return found


def _tests(tests: list[tuple[str, str]]) -> str:
    by_file: dict[str, list[str]] = {}
    for file, name in tests:
        by_file.setdefault(file, []).append(f"`{name.removeprefix('test_')}`")
    return "; ".join(
        f"[{Path(file).stem.removeprefix('test_')}](../tests/{file}): {', '.join(names)}"
        for file, names in by_file.items()
    )


def render() -> str:
    """Return the page."""
    tests = shown()
    lines = [HEAD.format(shown=len(tests), count=len(ROWS)).rstrip("\n")]
    for number, row in ROWS.items():
        found = tests.get(number)
        promise = row.promise or "none yet"
        lines.append(f"| {number} | {row.fault} | {promise} | {_tests(found) if found else '**nothing yet**'} |")
    lines.append(NOT_YET.rstrip("\n"))
    lines += [f"| {number} | {row.fault} | {row.missing} |" for number, row in ROWS.items() if row.missing]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render(), end="")
