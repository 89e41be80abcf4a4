"""The client of the storage tier behind a line that is cut, slow, silent or noisy."""

from __future__ import annotations

import random
import threading
import time

import pytest

from fargate_storage.client.redis_store import RedisStore
from fargate_storage.service.local import LocalTier
from lambda_worker.core.errors import StoreUnavailable
from lambda_worker.core.schedule import Assignment
from lambda_worker.ports import Arrival, Standing, Verdict
from tests.chaos.fault_proxy import DIRECTIONS, TO_CLIENT, TO_SERVER, FaultProxy, Loop
from tests.waiting import until

VALUE = bytes(range(256)) * 400


@pytest.fixture(scope="module")
def tier():
    with LocalTier() as tier:
        yield tier


@pytest.fixture(scope="module")
def loop():
    with Loop() as loop:
        yield loop


@pytest.fixture
def make_line(tier, loop, tmp_path):
    """Make a line to one of the servers, and a client that uses it."""
    made = []

    def make(server, **options):
        config = tier.config(f"lines-{tmp_path.name}-{len(made)}", **options)
        urls = dict(zip(tier.names, (config.metadata, *config.shards), strict=True))
        path = str(tier.directory / f"line-{tmp_path.name[-8:]}-{len(made)}.sock")
        line = FaultProxy(loop, path, urls[server].removeprefix("unix://"), random.Random(1))
        urls[server] = f"unix://{path}"
        metadata, *shards = urls.values()
        store = RedisStore(type(config)(**{**_fields(config), "metadata": metadata, "shards": tuple(shards)}))
        made.append((line, store))
        return line, store

    yield make
    for line, store in made:
        store.close()
        line.heal()
        line.close()


def _fields(config):
    return {name: getattr(config, name) for name in type(config).__dataclass_fields__}


def after(seconds, call):
    timer = threading.Timer(seconds, call)
    timer.start()
    return timer


def opened(store):
    store.open_job("job", {0: b"segment"})
    store.admit([Assignment("job", "a", 1, (0,)), Assignment("job", "b", 1, (1,))], None)


@pytest.mark.fault(28)
@pytest.mark.parametrize("directions", [(TO_SERVER,), (TO_CLIENT,), DIRECTIONS], ids=" and ".join)
def test_a_step_during_a_partition_is_made_once_and_heard_in_the_end(make_line, directions):
    """What was asked for before may be done late, and what is asked for again was done already: no difference."""
    line, store = make_line("metadata", wait_seconds=0.3, retry_seconds=10.0)
    opened(store)
    line.silence(*directions)
    timer = after(1.0, line.heal)
    first = store.arrive("job", "a", 1, [Arrival(7, 0, 2, b"one")], b"event one")
    timer.join()
    assert (first.standing, first.claims[0].verdict) == (Standing.OK, Verdict.WAIT)
    second = store.arrive("job", "b", 1, [Arrival(7, 1, 2, b"two")], b"event two")
    assert second.claims[0].verdict is Verdict.YOURS
    heard = until(lambda found=[]: found.extend(store.listen(0.1)) or (len(found) >= 2 and found))
    assert [each[-1] for each in heard] == [b"event one", b"event two"]


@pytest.mark.fault(28)
def test_a_partition_that_lasts_ends_in_an_error_that_names_the_server(make_line):
    line, store = make_line("metadata", wait_seconds=0.2, retry_seconds=0.5)
    opened(store)
    line.silence(*DIRECTIONS)
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable, match="the metadata server at .* cannot be reached"):
        store.beat([("job", "a", 1, -1)])
    assert time.monotonic() - begun < 10.0
    line.heal()
    assert store.beat([("job", "a", 1, -1)]) == [Standing.OK]


@pytest.mark.fault(28)
@pytest.mark.parametrize("server", ["metadata", "shard-0"])
def test_connections_that_are_cut_again_and_again(make_line, server):
    line, store = make_line(server, retry_seconds=10.0)
    opened(store)
    done = threading.Event()

    def cut():
        while not done.wait(0.01):
            line.cut()

    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        refs = [store.put([(f"job/0/a/{n}", [b"tag", VALUE])])[0] for n in range(20)]
        assert [bytes(frame) for (_, frame) in store.get(refs)] == [VALUE] * 20
        assert store.beat([("job", "a", 1, -1)]) == [Standing.OK]
        until(lambda: line.cuts, "connections were cut")
    finally:
        done.set()
        cutter.join()


@pytest.mark.fault(29)
def test_a_slow_link_takes_its_time_and_no_more_than_that(make_line):
    """A value that takes longer than one reply may take passes, because some of it arrives all the time."""
    line, store = make_line("shard-0", wait_seconds=1.5, retry_seconds=0.2)
    opened(store)
    line.bytes_per_second = 2e6
    (ref,) = store.put([("job/0/a/1", [b"tag", VALUE * 40])])
    ((_, found),) = store.get([ref])
    assert bytes(found) == VALUE * 40


@pytest.mark.fault(31)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_bit_that_changes_on_the_way_is_passed_on_by_the_line(make_line, direction):
    """What the store returns is not what was written: that is for the tag of the value to tell."""
    line, store = make_line("shard-0")
    opened(store)
    line.spoil[direction] = 1
    (ref,) = store.put([("job/0/a/1", [b"tag", VALUE])])
    ((_, found),) = store.get([ref])
    differing = [one ^ other for one, other in zip(bytes(found), VALUE, strict=True) if one != other]
    assert len(differing) == 1 and differing[0].bit_count() == 1
    assert line.spoiled == 1
