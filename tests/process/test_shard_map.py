"""A data server is gone for good; stores that were opened before learn of it when it matters to them."""

from __future__ import annotations

import os
import signal

import pytest
import redis

from fargate_storage.client.redis_store import RedisStore
from fargate_storage.service.local import LocalTier
from lambda_worker.core.errors import StoreUnavailable, ValueLost
from tests.waiting import until

pytestmark = pytest.mark.fault(18)
SHARDS = 3


@pytest.fixture
def tier():
    with LocalTier(shards=SHARDS, maxmemory_bytes=SHARDS * 64 * 2**20, restarts_max=0) as tier:
        yield tier


@pytest.fixture
def open_store(tier):
    stores = []

    def open_store(**options):
        stores.append(RedisStore(tier.config("demo", **{"retry_seconds": 0.3, "stripe_bytes": 1_000, **options})))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


def kill(tier, shard):
    os.kill(tier.pids[f"shard-{shard}"], signal.SIGKILL)
    until(lambda: f"shard-{shard}" in tier.poll(), "it has ended for good")


def values(first, count=30):
    """Half of them in one stripe, half of them in three."""
    return [(f"job/0/{n}", [b"tag", b"%d" % n * (10 if n % 2 else 1_200)]) for n in range(first, first + count)]


def frames(found):
    return [[bytes(frame) for frame in value] for value in found]


def test_who_opened_earlier_writes_and_reads_where_the_others_do(tier, open_store):
    proxy, earlier = open_store(retry_seconds=60.0), open_store()
    old = values(0)
    refs = proxy.put(old)
    assert frames(earlier.get(refs)) == [value for _, value in old]
    kill(tier, 1)
    proxy.give_up_shards([1])
    later = open_store()  # one that starts with what the cluster began with
    lost = proxy.missing(refs)
    assert lost == earlier.missing(refs) == later.missing(refs)
    assert 0 < len(lost) < len(refs)
    assert {ref.name for ref in refs if ref.stripes == 1 and ref.shard == 1} <= {ref.name for ref in lost}
    kept = [ref for ref in refs if ref not in lost]
    assert frames(earlier.get(kept)) == [value for ref, (_, value) in zip(refs, old, strict=True) if ref not in lost]
    with pytest.raises(ValueLost):
        later.get(lost[:1])
    new = values(100)
    for writer in (earlier, later):
        written = writer.put(new)
        assert 1 not in {ref.shard for ref in written}
        for reader in (proxy, earlier, later):
            assert frames(reader.get(written)) == [value for _, value in new]
    assert frames(earlier.get(proxy.put(old))) == [value for _, value in old], "what is made again is there"
    assert frames(earlier.get(refs)) == [value for _, value in old], "and found by who knows its old place only"
    proxy.touch(refs)
    proxy.free(refs)
    assert later.missing(refs) == refs
    assert proxy.usage()["store_bytes"] > 0
    proxy.ping()


def test_segments_and_slices_are_stored_again(tier, open_store):
    proxy, executor = open_store(), open_store()
    segments = {n: b"segment %d" % n for n in range(12)}
    proxy.open_job("job", segments)
    slices = {target: [b"tag", b"%d" % target] for target in range(12)}
    executor.put_slices("job", "s", 0, slices)
    kill(tier, 0)
    proxy.give_up_shards([0])
    with pytest.raises(ValueLost):
        executor.load("job", range(12))
    assert {} in [executor.get_slices("job", "s", target, 10) for target in range(12)]
    proxy.open_job("job", segments)
    assert executor.load("job", range(12)) == list(segments.values())
    executor.put_slices("job", "s", 0, slices)
    assert [proxy.get_slices("job", "s", target, 10) for target in range(12)] == [
        {0: frames} for frames in slices.values()
    ]
    proxy.close_job("job", [])
    with pytest.raises(ValueLost):
        executor.load("job", [1])


def test_one_after_the_other_until_one_is_left(tier, open_store):
    proxy, executor = open_store(), open_store()
    for shard in (2, 0):
        kill(tier, shard)
        proxy.give_up_shards([shard])
        refs = executor.put(values(10 * shard))
        assert frames(proxy.get(refs)) == [value for _, value in values(10 * shard)]
    assert {ref.shard for ref in refs} == {1}
    kill(tier, 1)
    with pytest.raises(StoreUnavailable, match="no storage server for values is left"):
        proxy.give_up_shards([1])
    with pytest.raises(StoreUnavailable, match="shard 1"):
        executor.get(refs)


def test_a_map_that_was_forgotten_is_said_again(tier, open_store):
    proxy = open_store()
    kill(tier, 1)
    proxy.give_up_shards([1])
    with redis.Redis.from_url(proxy.config.metadata, password=proxy.config.password) as metadata:
        assert metadata.ttl("demo:shard-map") > 0
        metadata.flushall()
    proxy.give_up_shards([1])
    assert 1 not in {ref.shard for ref in open_store().put(values(0))}


def test_a_server_that_nobody_has_given_up_is_an_error_as_before(tier, open_store):
    store = open_store()
    refs = store.put(values(0))
    kill(tier, 1)
    with pytest.raises(StoreUnavailable, match="the shard 1 server at .* cannot be reached"):
        store.get(refs)
