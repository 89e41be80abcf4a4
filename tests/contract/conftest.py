"""Adapters under test. A contract test asks for `store` (or `make_store`) and runs on every adapter listed here."""

import functools
import itertools
import os
import signal
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from dask_serverless.simulator.sim_store import SimStore
from dask_serverless.simulator.tier import Tier
from fargate_storage.client import RedisStore
from fargate_storage.service import LocalTier, ServerNotFound
from tests.contract.stories import stuff
from tests.waiting import until

_numbers = itertools.count()


@pytest.fixture(scope="session")
def tier():
    """Real servers, shared by all tests; every test has a cluster (a key prefix) of its own."""
    try:
        tier = LocalTier(shards=2, maxmemory_bytes=2 * 2**30).start()
    except ServerNotFound as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    yield tier
    tier.close()


@pytest.fixture
def make_redis_store(tier):
    """Make clients of one fresh cluster: each stands for a process of its own."""
    cluster = f"test-{next(_numbers)}"
    stores = []

    def make(**options):
        holder = options.pop("holder", "")
        stores.append(RedisStore(tier.config(cluster, **options), holder))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture(scope="session")
def full_tier(tier):
    """Servers that have no room for anything on the shards."""
    with LocalTier(shards=2, maxmemory_bytes=16 * 2**20) as tier:
        stuff(tier)
        yield tier


@pytest.fixture
def make_overflowing_store(full_tier, tmp_path):
    """Make clients of one fresh cluster, all of whose bulk data has to overflow."""
    cluster, place = f"test-{next(_numbers)}", (tmp_path / "overflow").as_uri()
    stores = []

    def make(**options):
        config = full_tier.config(cluster, overflow=place, overflow_bytes_max=2**30, **options)
        stores.append(RedisStore(config))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def make_sim_store():
    """Make clients of one fresh `Tier`."""
    return clients_of(Tier(time.monotonic))


@pytest.fixture
def make_overflowing_sim_store():
    """Make clients of one fresh `Tier`, whose shards have no room for anything."""
    return clients_of(Tier(time.monotonic, shard_bytes_max=0, overflow_bytes_max=2**30))


def clients_of(tier):
    """Return what makes clients. Threads may share them: a lock makes each call one step."""
    changed = threading.Condition(threading.RLock())

    class Locked(SimStore):
        def __getattribute__(self, name):
            found = super().__getattribute__(name)
            if name.startswith("_") or not callable(found):
                return found

            @functools.wraps(found)
            def call(*args, **options):
                with changed:
                    try:
                        return found(*args, **options)
                    finally:
                        changed.notify_all()

            return call

    return lambda **options: Locked(tier, wait=changed.wait_for, **options)


KINDS = {
    "redis": "make_redis_store",
    "simulated": "make_sim_store",
    "overflowing": "make_overflowing_store",
    "simulated-overflowing": "make_overflowing_sim_store",
}


@pytest.fixture(params=["redis", "simulated"])  # the others only for bulk data
def make_store(request):
    """Make clients of one fresh cluster, of every kind of store."""
    return request.getfixturevalue(KINDS[request.param])


@pytest.fixture
def leftovers():
    """Tell which keys a store's cluster has left at its servers."""

    def keys(store):
        if isinstance(store, SimStore):
            return store.tier.keys()
        config = store.config
        place = None if config.overflow is None else Path(urlsplit(config.overflow).path)
        files = [] if place is None else [path for path in (place / "values").rglob("*") if path.is_file()]
        servers = [redis.Redis.from_url(url, password=config.password) for url in (config.metadata, *config.shards)]
        return [*files, *(key for server in servers for key in server.scan_iter(f"{config.cluster}:*"))]

    return keys


@pytest.fixture
def forget():
    """Have the metadata server of a store's cluster forget everything of it, as if it had died."""

    def forget(store):
        if isinstance(store, SimStore):
            return store.tier.forget()
        server = redis.Redis.from_url(store.config.metadata, password=store.config.password)
        for key in server.scan_iter(f"{store.config.cluster}:*"):
            server.delete(key)

    return forget


@pytest.fixture
def fail_over(tier):
    """Return two steps: what the metadata server knows is saved; another one takes its place, which knows only that."""
    saved = {}

    def save(store):
        if isinstance(store, SimStore):
            saved[store.tier] = store.tier.save()
        else:
            redis.Redis.from_url(store.config.metadata, password=store.config.password).save()

    def fail_over(store):
        if isinstance(store, SimStore):
            return store.tier.fail_over(saved[store.tier])
        before = tier.pids["metadata"]
        os.kill(before, signal.SIGKILL)
        until(lambda: tier.pids["metadata"] != before, "another one has taken its place")
        store.ping()  # it tries until it is answered
        server = redis.Redis.from_url(store.config.metadata, password=store.config.password)
        assert server.info("persistence")["rdb_last_load_keys_loaded"], "it has read what was saved"
        (tier.directory / "dump.rdb").unlink()

    return save, fail_over


@pytest.fixture
def store(make_store):
    return make_store()
