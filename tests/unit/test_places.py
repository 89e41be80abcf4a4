"""Who counts below the ceiling, and who does not."""

from __future__ import annotations

from dask_serverless.places import Places


def test_what_is_said_twice_changes_nothing():
    places = Places(2)
    assert [places.note_seceded("j1", "a", True) for _ in range(2)] == [True, False]
    assert [places.note_seceded("j1", "a", False) for _ in range(2)] == [True, False]
    assert places.count == 2


def test_an_ordinary_job_takes_no_place_of_its_own():
    places = Places(2)
    assert not places.is_urgent("j1") and not places.take("j1") and not places.forget("j1")
    assert (places.count, places.awaited) == (2, 0)


def test_an_urgent_job_that_ends_before_it_is_there_leaves_nothing():
    places = Places(2)
    places.ask("j1")
    assert (places.count, places.awaited) == (2, 1)
    assert places.forget("j1") and not places.take("j1")
    assert (places.count, places.awaited) == (2, 0)
