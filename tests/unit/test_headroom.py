"""Who looks after memory while tasks run, and what of the cache goes."""

import threading

import pytest

from lambda_worker import headroom
from lambda_worker.cache import Cache
from lambda_worker.headroom import CALM_SHARE, TIGHT_SHARE, Headroom
from tests.waiting import until

MEMORY = 1_000


@pytest.fixture
def resident(monkeypatch):
    found = [0]
    monkeypatch.setattr(headroom, "resident_bytes", lambda: found[0])
    return found


def make(*sizes):
    cache = Cache(MEMORY // 2)
    for number, size in enumerate(sizes):
        cache.put(str(number), number, size)
    return cache, Headroom(cache, MEMORY)


def watchers():
    return [each for each in threading.enumerate() if each.name == "executor-headroom"]


def test_nobody_looks_while_there_is_little_to_let_go_of(resident):
    resident[0] = MEMORY
    cache, room = make(int(MEMORY * CALM_SHARE))
    room.watch()
    assert not watchers() and cache.nbytes


def test_what_is_cached_goes_before_memory_is_short_and_no_more_than_it_takes(resident):
    cache, room = make(100, 100, 100, 100)
    room.look()
    assert cache.nbytes == 400
    resident[0] = int(MEMORY * TIGHT_SHARE) + 150
    room.look()
    assert "1" not in cache and "2" in cache  # those used longest ago
    resident[0] = 2 * MEMORY
    assert not room.look() and cache.nbytes == 0


def test_one_looks_at_a_time_as_long_as_something_is_at_work(resident):
    cache, room = make(400)
    room.watch()
    room.watch()
    assert len(watchers()) == 1
    resident[0] = int(MEMORY * TIGHT_SHARE) + 50
    until(lambda: cache.nbytes == 0, "what is cached has gone")
    until(lambda: not watchers(), "and nobody looks any more")


def test_nobody_looks_when_nothing_is_at_work(resident):
    cache, room = make(400)
    room.watch()
    room.rest()
    until(lambda: not watchers(), "nobody looks any more")
    room.watch()
    assert len(watchers()) == 1 and cache.nbytes == 400
    room.rest()
    until(lambda: not watchers(), "nobody looks any more")


def test_where_the_system_does_not_tell_little_is_cached(monkeypatch):
    def absent(*about, **more):
        raise FileNotFoundError

    assert headroom.cache_bytes_max(MEMORY) == MEMORY // 2
    monkeypatch.setattr(headroom, "open", absent, raising=False)
    assert headroom.resident_bytes() == 0
    assert headroom.cache_bytes_max(MEMORY) == MEMORY // 8
