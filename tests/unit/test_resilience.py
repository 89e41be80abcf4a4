"""The page about faults is what the tests show, and no row of the fault table is passed over in silence."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.resilience import table
from tests.resilience.rows import ROWS

PAGE = Path(__file__).parents[2] / "docs" / "resilience.md"


def test_the_page_is_up_to_date():
    fresh = "make it again: python -m tests.resilience.table > docs/resilience.md"
    assert PAGE.read_text() == table.render(), fresh


def test_every_row_has_a_test_or_says_why_not():
    assert list(ROWS) == list(range(1, 49))
    shown = table.shown()
    silent = [number for number, row in ROWS.items() if number not in shown and not row.missing]
    assert silent == []


def test_what_is_promised_is_shown_and_what_is_shown_was_promised():
    assert {number for number, row in ROWS.items() if row.promise} == set(table.shown())


def test_marks_are_of_rows_that_there_are():
    assert set(table.shown()) <= set(ROWS)


def test_marks_are_read_from_decorators():
    source = "@pytest.mark.slow\n@pytest.mark.fault(3, 4)\nasync def test_it(): pass"
    (definition,) = ast.parse(source).body
    assert list(table.marks(definition.decorator_list)) == [3, 4]
