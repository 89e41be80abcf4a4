"""Rows of the task stream: what overlaps is shown beside each other, what does not shares a row."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from dask_serverless.rows import Rows

INTERVALS = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 5)).map(lambda pair: (pair[0], sum(pair))))


@given(INTERVALS)
def test_intervals_of_one_row_do_not_overlap(intervals):
    rows, shown = Rows(), {}
    for started, stopped in sorted(intervals):
        shown.setdefault(rows.take(started, stopped), []).append((started, stopped))
    for row in shown.values():
        assert all(before[1] <= after[0] for before, after in zip(row, row[1:], strict=False))
    at_once = max((sum(a <= t < b for a, b in intervals) for t, _ in intervals), default=0)
    assert len(shown) == at_once


@given(INTERVALS)
def test_nor_do_they_when_results_come_late(intervals):
    rows, shown = Rows(), {}
    for interval in intervals:
        shown.setdefault(rows.take(*interval), []).append(interval)
    for row in map(sorted, shown.values()):
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(row))
