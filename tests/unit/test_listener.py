"""The listener's thread: how often it goes to the storage tier for news."""

from __future__ import annotations

import asyncio
import itertools
import threading

import pytest

from dask_serverless import listener
from dask_serverless.job_events import Retired
from dask_serverless.listener import PAUSE_SECONDS, PAUSE_SECONDS_MAX, Listener


class Store:
    """Has so many events at each visit."""

    def __init__(self, brings, closing):
        self._brings = iter(brings)
        self._closing = closing
        self._numbers = itertools.count()

    def begin(self):
        return True

    def listen(self, seconds):
        return [
            ("j1", f"e{next(self._numbers)}", 1, b"") for _ in range(next(self._brings, 0) or self._closing.set() or 0)
        ]


class Closing(threading.Event):
    """Notes how long was waited before each visit."""

    def __init__(self):
        super().__init__()
        self.pauses = []

    def wait(self, timeout=None):
        self.pauses.append(timeout)
        return super().wait(timeout)


async def visits(monkeypatch, brings, busy_seconds):
    """Return how long was waited before each visit, and who was heard of."""
    monkeypatch.setattr(listener, "BUSY_SECONDS", busy_seconds)
    closing, heard = Closing(), []
    ear = Listener(Store(brings, closing), b"secret", closing, heard.extend, pytest.fail)
    ear.start()
    await asyncio.to_thread(ear.join)
    await asyncio.sleep(0)  # what was heard is told on the loop
    return closing.pauses[: len(brings)], [event.executor for event in heard if isinstance(event, Retired)]


async def test_events_that_come_together_are_given_time_to(monkeypatch):
    pauses, heard = await visits(monkeypatch, [1, 5, 9, 9], busy_seconds=60.0)
    assert pauses == [0.0, PAUSE_SECONDS, PAUSE_SECONDS_MAX, PAUSE_SECONDS_MAX]
    assert heard == [f"e{number}" for number in range(24)]


async def test_events_that_come_one_by_one_are_not_waited_for_twice(monkeypatch):
    pauses, _ = await visits(monkeypatch, [1, 1, 1, 1], busy_seconds=60.0)
    assert pauses == [0.0, PAUSE_SECONDS, 0.0, PAUSE_SECONDS]


async def test_who_waits_for_events_does_not_pause(monkeypatch):
    pauses, _ = await visits(monkeypatch, [5, 5, 5], busy_seconds=0.0)
    assert pauses == [0.0, 0.0, 0.0]
