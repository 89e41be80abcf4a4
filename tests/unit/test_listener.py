"""The listener's thread: how often it goes to the storage tier for news."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from dask_serverless import listener
from dask_serverless.listener import Listener


class Store:
    """Has an event whenever it is asked, at once or after a while; notes when it was asked."""

    def __init__(self, times, closing, wait):
        self.asked = []
        self._times = times
        self._closing = closing
        self._wait = wait

    def begin(self):
        return True

    def listen(self, seconds):
        self.asked.append(time.monotonic())
        if len(self.asked) >= self._times:
            self._closing.set()
        time.sleep(self._wait)
        return [("j1", f"e{len(self.asked)}", 1, b"")]


class Closing(threading.Event):
    """Notes how long was waited before each visit."""

    def __init__(self):
        super().__init__()
        self.pauses = []

    def wait(self, timeout=None):
        self.pauses.append(timeout)
        return super().wait(timeout)


@pytest.mark.parametrize("busy", [True, False])
async def test_who_finds_news_each_time_lets_more_of_them_come_together(busy):
    closing, heard = Closing(), []
    store = Store(8, closing, wait=0.0 if busy else 2 * listener.BUSY_SECONDS)
    ear = Listener(store, b"secret", closing, heard.extend, pytest.fail)
    ear.start()
    await asyncio.to_thread(ear.join)
    assert len(store.asked) == 8
    if busy:  # a slow machine may take one visit for a wait, and begin anew
        assert max(closing.pauses) > listener.BUSY_SECONDS
    else:
        assert set(closing.pauses) == {0.0}
    assert max(closing.pauses) <= listener.PAUSE_SECONDS_MAX
