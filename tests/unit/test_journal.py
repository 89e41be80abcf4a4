"""What executors and the proxy note of their decisions: little, bounded, and adding up."""

from __future__ import annotations

import pytest

from dask_serverless.decisions import KEYS_MAX, DecisionLog, JobDecisions
from dask_serverless.decisions import SAMPLES_MAX as JOB_SAMPLES_MAX
from lambda_worker.core.journal import DECISIONS, SAMPLES_MAX, Journal


def test_a_decision_taken_a_million_times_leaves_twenty_samples():
    journal = Journal()
    for ready in range(2**20):
        journal.note("keep", ready=ready)
    counts, samples = journal.take()
    assert counts == {"keep": 2**20}
    assert [count for _, count, _ in samples] == [2**each for each in range(21)]


def test_samples_are_bounded_however_many_kinds_there_are():
    journal = Journal()
    for number in range(3 * SAMPLES_MAX):
        journal.note(f"kind {number}")
    counts, samples = journal.take()
    assert len(counts) == 3 * SAMPLES_MAX
    assert len(samples) == SAMPLES_MAX


def test_what_was_taken_is_not_told_again():
    journal = Journal()
    journal.note("hold", nbytes=5)
    assert journal and journal.take() == ({"hold": 1}, [("hold", 1, {"nbytes": 5})])
    assert not journal
    journal.note("hold", nbytes=7)
    assert journal.take() == ({"hold": 1}, [("hold", 1, {"nbytes": 7})])


def test_journals_of_many_executors_add_up_within_bounds():
    page = JobDecisions("j1", tasks=5)
    for number in range(50):
        page.take(f"e{number}", {"keep": 2, "split": 1}, [("keep", 1, {"ready": 3}), ("split", 1, {"shares": 2})])
    assert page.counts == {"keep": 100, "split": 50}
    assert len(page.samples) == 2 * JOB_SAMPLES_MAX
    text = str(page)
    assert text.startswith("job j1 of 5 tasks\n")
    assert DECISIONS["split"] in text
    assert f"... {JOB_SAMPLES_MAX - 3} more" in text


def test_a_kind_without_words_is_shown_too():
    page = JobDecisions("j1", tasks=1)
    page.take("e", {"unheard-of": 3}, [])
    assert "unheard-of" in str(page) and "3" in str(page)


def test_what_users_have_called_their_keys_does_not_become_html():
    page = JobDecisions("j1", tasks=1)
    page.take("e", {"store": 1}, [("store", 1, {"key": "<b>x</b>"})])
    assert "<b>" not in page._repr_html_()
    assert "&lt;b&gt;" in page._repr_html_()


def test_what_was_seen_of_a_prefix_is_the_mean_over_executors():
    page = JobDecisions("j1", tasks=4)
    page.observe("inc", 1, 1.0, 0.0)
    page.observe("inc", 3, 9.0, 40.0)
    assert page.observed == {"inc": (4.0, 2.5, 10.0)}


def test_the_last_jobs_are_remembered_and_found_by_any_of_their_keys():
    log = DecisionLog(jobs_max=3)
    with pytest.raises(KeyError, match="no job has been submitted yet"):
        log.last  # noqa: B018
    for number in range(10):
        log.begin(f"j{number}", 1, [f"k{number}", "shared"])
    assert log.last.job == "j9"
    assert log.find(["k7"]).job == "j7"
    assert log.find(["shared"]).job == "j9"
    assert log.get("j6") is None
    with pytest.raises(KeyError, match="'j6'.*'j7' ... 'j9'"):
        log.job("j6")
    with pytest.raises(KeyError, match="no job is remembered that made 'k6'"):
        log.find(["k6"])


def test_a_job_of_many_keys_is_remembered_by_some_of_them():
    log = DecisionLog()
    log.begin("j1", 1, range(10 * KEYS_MAX))
    assert log.find(range(10)).job == "j1"
    assert sum(map(len, log._keys.values())) == KEYS_MAX
