"""The programs a newcomer runs first do run: the example and the benchmark, at small sizes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_predicts_and_says_what_it_used():
    text = run("examples/parallel_svc.py", "--samples", "8000", "--chunks", "8")
    assert "8 of 8 chunks" in text
    for line in ("Class counts:", "Equal:", "Invocations:", "Executors:", "On Lambda it would cost: $"):
        assert line in text


def test_the_benchmark_compares_three_contenders():
    text = run("benchmarks/throughput.py", "--quick")
    for row in ("tree reduction of 64 leaves", "client.map of 100 tasks", "SVC, 2,000 samples"):
        assert text.count(f"| {row} |") == 2
