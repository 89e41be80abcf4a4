"""Where things are when shards are given up: the same for everybody, and found again."""

from __future__ import annotations

import random

import pytest

from fargate_storage.client.shard_map import ShardMap, while_shards_go
from lambda_worker.core.errors import StoreUnavailable

pytestmark = pytest.mark.fault(18)
NAMES = [f"job-{n}/value" for n in range(200)]


def map_without(*gone, count=5):
    shards = ShardMap(count)
    shards.learn(gone)
    return shards


def test_nothing_moves_while_nothing_is_lost():
    assert [map_without().server(shard, "x") for shard in (0, 4, 5, 7)] == [0, 4, 0, 2]


@pytest.mark.parametrize("seed", range(20))
def test_what_was_written_is_found_until_its_own_server_is_lost(seed):
    """Who wrote knew of fewer losses than who reads."""
    losses = random.Random(seed).sample(range(5), 4)
    for known in range(4):
        writer = map_without(*losses[:known])
        for name in NAMES:
            written = writer.by_name(name)
            for later in range(known, 5):
                if written not in losses[:later]:
                    reader = map_without(*losses[:later])
                    assert reader.by_name(name) == written
                    assert reader.server(written, name) == written


def test_what_a_lost_server_had_is_spread_over_those_that_are_left():
    shards = map_without(2)
    found = [shards.server(2, name) for name in NAMES]
    assert set(found) == {0, 1, 3, 4}
    assert max(map(found.count, set(found))) < len(NAMES) / 2


def test_the_last_server_is_not_given_up():
    closed = []
    shards = ShardMap(2, on_gone=closed.append)
    shards.learn([0, 1])
    assert (shards.left(), closed) == ([0, 1], [])
    shards.learn([1])
    shards.learn([0, 1])
    assert (shards.left(), closed) == ([0], [1])


def test_a_step_that_meets_a_lost_server_is_done_again_with_the_others():
    class Steps:
        shard_map = ShardMap(3, read=lambda: [1, 2])
        calls = 0

        @while_shards_go
        def step(self, shard):
            self.calls += 1
            server = self.shard_map.server(shard, "x")
            if server and self.shard_map.is_gone(server):
                raise StoreUnavailable("gone")
            return server

    steps = Steps()
    assert (steps.step(1), steps.calls) == (0, 2)


def test_a_server_that_is_only_away_is_not_asked_for_ever():
    class Steps:
        shard_map = ShardMap(3)
        calls = 0

        @while_shards_go
        def step(self):
            self.calls += 1
            raise StoreUnavailable("away")

    steps = Steps()
    with pytest.raises(StoreUnavailable, match="away"):
        steps.step()
    assert steps.calls == 1
