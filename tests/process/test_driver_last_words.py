"""The driver and last words: who dies in a task has named it."""

from __future__ import annotations

import os

import pytest

from lambda_worker.last_words import LastWords, last_words
from tests.process.fleet import RAN, add, gate, leave, wait_for
from tests.waiting import until


def test_last_words_name_the_task_that_is_running_and_are_gone_at_the_end(make_fleet, tmp_path):
    fleet = make_fleet(last_words_directory=str(tmp_path))
    opened = gate("words")
    job, plan, assignments = fleet.begin({"a": (add, 1), "b": (wait_for, "words", "a")}, ["b"])
    fleet.invoke(assignments)
    until(lambda: "words" in RAN, "the task runs")
    (file,) = tmp_path.iterdir()
    assert file.name == f"{job}.{assignments[0].executor}"
    kept = file.read_bytes()
    opened.set()
    fleet.join()
    assert not file.exists()
    file.write_bytes(kept)
    assert last_words(str(tmp_path), file.name) == list(plan.keys).index("b")


@pytest.mark.fault(46)
def test_a_full_disk_costs_the_last_words_only(make_fleet, tmp_path):
    fleet = make_fleet(last_words_directory=str(tmp_path))
    job, plan, assignments = fleet.begin({"a": (add, 1), "b": (add, 1, "a")}, ["b"])
    for each in assignments:
        os.symlink("/dev/full", tmp_path / f"{job}.{each.executor}")
    fleet.invoke(assignments)
    assert fleet.outcome(job, plan).values == {"b": 2}


def test_last_words_of_one_sandbox_are_in_one_file_unless_somebody_took_it(tmp_path):
    words = LastWords(str(tmp_path), "sandbox")
    for executor in ("a", "b"):
        words.begin(executor)
        words.say(3)
        words.end()
    assert len(list(tmp_path.iterdir())) == 1
    words.begin("c")
    words.say(4)
    assert last_words(str(tmp_path), "c") == 4, "c failed, and its sandbox goes on"
    words.end()
    words.begin("d")
    assert last_words(str(tmp_path), "d") == -1


def test_last_words_outlive_who_died(make_fleet, tmp_path):
    fleet = make_fleet(last_words_directory=str(tmp_path))
    job, plan, assignments = fleet.begin({"a": (add, 1), "b": (leave, 1), "c": (add, 0, "a", "b")}, ["c"])
    fleet.invoke(assignments)
    fleet.join()
    said = last_words(str(tmp_path), f"{job}.{assignments[0].executor}")
    assert plan.keys[said] == "b"
