"""The programs a newcomer runs first do run: the example and the benchmark, at small sizes."""

from __future__ import annotations

import json
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


def test_the_benchmarks_compare_and_write_a_page(tmp_path):
    page = tmp_path / "benchmarks.md"
    on = ("--on", "sync", "serverless")
    command = ("-m", "benchmarks", "--quick", "--parts", "compare", "--only", "tree", *on, "--write", str(page))
    run(*command)
    text = page.read_text()
    assert "tree reduction of 256 leaves, no-ops | 511 | the synchronous scheduler's answer" in text
    kept = json.loads((tmp_path / "benchmarks" / "results.json").read_text())["workloads"]["tree"]["entrants"]
    assert kept["serverless"]["counted"]["tasks_run"] == 511 and kept["serverless"]["memory"]["storage"] > 0
    assert not kept["sync"]["reason"] and len(kept["sync"]["seconds"]) == 1
    assert (tmp_path / "benchmarks" / "times.svg").exists() is False  # nothing to be relative to
