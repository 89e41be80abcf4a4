"""Values on several shards when one of them fails; what does not fail is in ``tests/contract``."""

from __future__ import annotations

import threading

import pytest

from fargate_storage.client.config import StoreConfig
from fargate_storage.client.directory import DirectoryOverflow
from fargate_storage.client.endpoint import Counters
from fargate_storage.client.keys import Keys
from fargate_storage.client.objects import Objects
from lambda_worker.core.errors import StoreFull, StoreUnavailable

#: How long a shard waits for what must not happen.
NEVER_SECONDS = 0.3


class Shard:
    """Keeps the keys of what is written."""

    role = "shard"

    def __init__(self):
        self.keys = set()

    def transaction(self, commands):
        self.keys.update(command[1] for command in commands if command[0] == "RPUSH")

    def ask(self, *commands):
        for command in commands:
            if command[0] == "UNLINK":
                self.keys.difference_update(command[1:])
        return [1] * len(commands)


class FullShard(Shard):
    def transaction(self, commands):
        raise StoreFull("the shard 0 server is full")


class SlowShard(Shard):
    """Receives what is written only after anything else that is asked meanwhile."""

    def __init__(self):
        super().__init__()
        self.asked = threading.Event()

    def transaction(self, commands):
        self.asked.wait(NEVER_SECONDS)
        super().transaction(commands)

    def ask(self, *commands):
        answer = super().ask(*commands)
        self.asked.set()
        return answer


@pytest.fixture
def make_objects(tmp_path):
    made = []

    def make(*shards):
        config = StoreConfig("demo", "redis://localhost:1", stripe_bytes=10)
        overflow = DirectoryOverflow(str(tmp_path / "overflow"), 10**6)
        made.append(Objects(shards, Keys("demo"), config, Counters(), overflow=overflow))
        return made[-1], overflow

    yield make
    for each in made:
        each.close()


@pytest.mark.fault(20)
def test_what_is_still_being_written_when_a_shard_refuses_is_removed_as_well(make_objects):
    slow = SlowShard()
    objects, overflow = make_objects(FullShard(), slow)
    (ref,) = objects.put([("job/1/a/1", [b"tag", bytes(15)])])
    assert ref.overflowed and overflow.has(ref.name)
    objects._threads.shutdown()  # nothing is under way
    assert slow.keys == set()


class LostShard(Shard):
    def ask(self, *commands):
        raise StoreUnavailable("the shard 0 server cannot be reached")


@pytest.mark.fault(20)
def test_copies_are_removed_also_when_a_shard_cannot_be_reached(make_objects):
    objects, overflow = make_objects(LostShard())
    (ref,) = objects.put([("job/1/a/1", [b"tag"])])
    objects.keep([(ref.name, [b"tag"])])
    with pytest.raises(StoreUnavailable, match="shard 0"):
        objects.free([ref])
    assert not overflow.has(ref.name)
