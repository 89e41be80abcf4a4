"""Adapters under test. A contract test asks for `store` (or `make_store`) and runs on every adapter listed here."""

import itertools
import os

import pytest

from fargate_storage.client import RedisStore
from fargate_storage.service import LocalTier, ServerNotFound

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
def make_store(tier):
    """Make clients of one fresh cluster: each stands for a process of its own."""
    cluster = f"test-{next(_numbers)}"
    stores = []

    def make(**options):
        stores.append(RedisStore(tier.config(cluster, **options)))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(make_store):
    return make_store()
