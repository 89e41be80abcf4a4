"""Who looks after memory while tasks run, and what of the cache goes."""

import pytest

from lambda_worker import headroom
from lambda_worker.cache import Cache
from lambda_worker.headroom import CALM_SHARE, TIGHT_SHARE, Headroom

MEMORY = 1_000


class Alarm:
    """Calls when it is told that time has passed."""

    def __init__(self):
        self.calls = []

    def after(self, seconds, call):
        self.calls.append(call)

    def ring(self):
        calls, self.calls = self.calls, []
        for call in calls:
            call()


@pytest.fixture
def resident(monkeypatch):
    found = [0]
    monkeypatch.setattr(headroom, "resident_bytes", lambda: found[0])
    return found


def make(*sizes):
    cache, alarm = Cache(MEMORY // 2), Alarm()
    for number, size in enumerate(sizes):
        cache.put(str(number), number, size)
    return cache, alarm, Headroom(cache, MEMORY, alarm)


def test_nobody_looks_while_there_is_little_to_let_go_of(resident):
    resident[0] = MEMORY
    cache, alarm, room = make(int(MEMORY * CALM_SHARE))
    room.watch()
    assert not alarm.calls and cache.nbytes


def test_what_is_cached_goes_before_memory_is_short_and_no_more_than_it_takes(resident):
    cache, alarm, room = make(100, 100, 100, 100)
    room.watch()
    alarm.ring()
    assert cache.nbytes == 400
    resident[0] = int(MEMORY * TIGHT_SHARE) + 150
    alarm.ring()
    assert "1" not in cache and "2" in cache  # those used longest ago
    resident[0] = 2 * MEMORY
    alarm.ring()
    assert cache.nbytes == 0 and not alarm.calls


def test_one_looks_at_a_time_and_nobody_when_no_task_runs(resident):
    cache, alarm, room = make(400)
    room.watch()
    room.watch()
    assert len(alarm.calls) == 1
    room.rest()
    alarm.ring()
    assert not alarm.calls
    room.watch()
    assert len(alarm.calls) == 1


def test_where_the_system_does_not_tell_nothing_goes(monkeypatch):
    def absent(*about, **more):
        raise FileNotFoundError

    monkeypatch.setattr(headroom, "open", absent, raising=False)
    assert headroom.resident_bytes() == 0
