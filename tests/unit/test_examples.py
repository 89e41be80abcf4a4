"""Examples in docstrings run, wherever they are."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("lambda_worker", "fargate_storage", "dask_serverless", "benchmarks")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    """Some are skipped by a mark of their own: those that need a cluster."""
    assert doctest.testmod(importlib.import_module(module)).failed == 0
