"""What only real servers show of the Redis store: keys, times to live, round trips, stripes, connections, limits."""

import contextlib
import os
import threading
import time
from dataclasses import replace

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fargate_storage.client import RedisStore, StoreConfig
from fargate_storage.client.endpoint import PIECE_BYTES_MAX, pack_commands
from fargate_storage.client.keys import Keys
from fargate_storage.service import LocalTier
from lambda_worker.core.errors import StoreFull, StoreUnavailable, ValueLost
from lambda_worker.core.wire import Ref
from lambda_worker.ports import Lingering, Standing, Verdict
from tests.contract.stories import edge, opened, record, verdicts
from tests.waiting import until

OK, FENCED, CANCELLED = Standing.OK, Standing.FENCED, Standing.CANCELLED
WAIT, YOURS, TAKEN, DONE = Verdict.WAIT, Verdict.YOURS, Verdict.TAKEN, Verdict.DONE
MIB = 2**20


@pytest.fixture
def make_store(make_redis_store):
    return make_redis_store


def connections(store):
    """Return one raw connection to each server, to look behind the store."""
    config = store.config
    return [redis.Redis.from_url(url, password=config.password) for url in (config.metadata, *config.shards)]


def keys_of(store):
    """Return all keys of the store's cluster, with their time to live."""
    return {
        key.decode(): server.ttl(key)
        for server in connections(store)
        for key in server.scan_iter(f"{store.config.cluster}:*")
    }


def test_values_of_which_a_part_is_missing_are_named(make_store):
    store = make_store(stripe_bytes=100)
    (ref,) = store.put([("job/2/a/1", [bytes(32), bytes(1000)])])
    assert ref.stripes > 2 and store.missing([ref]) == []
    store.free([Ref(*ref[:3], stripes=1)])
    assert store.missing([ref]) == [ref]


@pytest.mark.fault(34)
def test_a_fan_in_of_100_000_edges_is_linear(store):
    opened(store, "a", "b")
    seconds = []
    for first in range(0, 100_000, 10_000):
        start = time.perf_counter()
        reply = store.arrive("job", "a", 1, [edge(100, p, 100_000) for p in range(first, first + 10_000)])
        seconds.append(time.perf_counter() - start)
    assert len(reply.claims[0].values) == 100_000
    # Edges that came last may not cost (much) more than those that came first; the last call also reads all values.
    assert min(seconds[5:9]) < 5 * max(seconds[:4])
    assert store.arrive("job", "a", 1, retire=True).retired


def test_close_job_leaves_no_key_but_kept_objects(make_store):
    store = make_store(stripe_bytes=1_000)
    opened(store, "a", "b")
    store.arrive("job", "a", 1, [edge(100, 1, 2), edge(101, 1, 1), edge(102, 1, 1)])
    store.delegate("job", "a", 1, [record("a.1")], 10)
    store.drop("job", "b")
    refs = store.put([(f"job/{i}/a/1", [b"tag", b"x" * 1_500]) for i in range(600)])
    others = store.put([("other/1/a/1", [b"tag"])])
    store.put_slices("job", "0a1b", 0, {target: [b"tag"] for target in range(700)})
    store.close_job("job", refs[:2])
    store.close_job("job", refs[:2])
    assert len(store.get(refs[:2] + others)) == 3
    for lost in refs[2:4]:
        with pytest.raises(ValueLost, match=lost.name):
            store.get([lost])
    keys = Keys(store.config.cluster)
    kept = {keys.of_object(ref.name, stripe) for ref in refs[:2] for stripe in range(2)}
    assert set(keys_of(store)) == kept | {keys.of_object("other/1/a/1"), keys.of_job("other", "objects")}
    assert store.beat([("job", "a", 1, -1)]) == [FENCED]
    store.free(refs[:2] + others)
    store.free(others)
    assert keys_of(store) == {}


@pytest.mark.fault(31)
def test_a_name_that_was_spoiled_keeps_nothing_else_from_being_removed(make_store, leftovers):
    store = make_store()
    opened(store)
    store.put([(f"job/{n}/a/1", [b"tag"]) for n in range(4)])
    keys = Keys(store.config.cluster)
    for server in connections(store)[1:]:
        server.sadd(keys.of_job("job", "objects"), b"job/\xae/a/1")
    store.close_job("job", [])
    assert leftovers(store) == []


def test_touch_renews_the_time_to_live_of_every_stripe(make_store):
    store = make_store(stripe_bytes=1_000, ttl_seconds=1_000)
    (ref,) = store.put([("job/1/a/1", [b"tag", b"x" * 2_500])])
    longer = make_store(stripe_bytes=1_000, ttl_seconds=100_000)
    assert ref.stripes == 3
    longer.touch([ref])
    lives = {key: ttl for key, ttl in keys_of(store).items() if "object" not in key.rpartition(":")[2]}
    assert [ttl for key, ttl in lives.items()] and all(ttl > 1_000 for ttl in lives.values())
    store.touch([Ref("job/9/a/1", 0, 1)])  # nothing there: nothing happens


def test_a_large_job_is_removed_in_steps(store):
    names = [f"e{i}" for i in range(2_500)]
    store.open_job("job", {})
    assert store.admit([record(name) for name in names], 5_000) == 2_500
    store.arrive("job", "e0", 1, [edge(child, 1, 2) for child in range(2_500)])
    before = store.counters()["round_trips"]
    store.cancel("job")
    store.close_job("job", [])
    assert keys_of(store) == {}
    assert store.counters()["round_trips"] - before < 20


def test_every_key_has_a_time_to_live(make_store):
    store = make_store(ttl_seconds=1_000, stripe_bytes=1_000)
    opened(store, "a", "b")
    store.arrive("job", "a", 1, [edge(100, 1, 2), edge(101, 1, 1)], b"events")
    store.delegate("job", "a", 1, [record("a.1")], 10)
    store.put([("job/1/a/1", [b"x" * 2_500])])
    opened(store, job="job-2")
    store.put_slices("job-2", "0a1b", 0, {target: [b"tag"] for target in range(10)})
    store.beat([("job", "b", 1, 1)])
    store.arrive("job", "b", 1, retire=True)
    store.arrive("job", "a.1", 1, [edge(102, 1, 1)], b"events")  # the last step makes keys, too
    keys = keys_of(store)
    assert len(keys) >= 15
    assert all(900 < ttl <= 1_000 for ttl in keys.values()), keys


def test_a_job_in_use_outlives_its_first_time_to_live(make_store):
    short, long = make_store(ttl_seconds=100), make_store(ttl_seconds=10_000)
    opened(short, "a")
    (ref,) = short.put([("job/1/a/1", [b"tag"])])
    short.arrive("job", "a", 1, [edge(101, 1, 1), edge(100, 1, 2)])
    long.beat([("job", "a", 1, -1)])
    long.load("job", [0])
    long.get([ref])
    old = {key for key, ttl in keys_of(short).items() if ttl <= 100}
    # Fan-ins are renewed by arrivals, and the list of objects by writes.
    assert {key.rpartition("}:")[2] for key in old} == {"fan-in:100", "fan-in:101", "objects"}


def test_listen_wakes_up_for_an_event_and_ends_without(make_store):
    writer, reader = make_store(), make_store(wait_seconds=0.4)
    opened(writer, "a")
    heard = []
    thread = threading.Thread(target=lambda: heard.extend(reader.listen(30)))
    thread.start()
    server = connections(reader)[0]
    until(lambda: any(client["cmd"] == "xread" and "b" in client["flags"] for client in server.client_list()))
    writer.arrive("job", "a", 1, events=b"news")
    thread.join(10)
    assert heard == [("job", "a", 1, b"news")]
    start = time.monotonic()
    assert reader.listen(0.3) == []  # longer than one wait at the server
    assert 0.3 <= time.monotonic() - start < 2


def test_closing_ends_a_listener_and_refuses_further_use(store):
    heard = []
    thread = threading.Thread(target=lambda: heard.append(store.listen(30)))
    thread.start()
    server = connections(store)[0]
    until(lambda: any(client["cmd"] == "xread" and "b" in client["flags"] for client in server.client_list()))
    store.close()
    thread.join(10)
    assert heard == [[]]
    with pytest.raises(StoreUnavailable, match="closed by this side"):
        store.beat([("job", "a", 1, -1)])
    store.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=8), stripe_bytes=st.integers(1, 30))
def test_stripes_give_back_what_was_cut(make_store, lengths, stripe_bytes):
    store = make_store(stripe_bytes=stripe_bytes)
    frames = [os.urandom(length) for length in lengths]
    refs = store.put([("job/1/a/1", frames), ("job/2/a/1", frames)])
    assert refs[0].stripes == max(1, -(-sum(lengths) // stripe_bytes))
    assert store.get(refs) == [frames, frames]
    store.close()


@pytest.mark.fault(35)
def test_a_value_of_100_mib(store):
    frames = [b"tag", bytes(50 * MIB), os.urandom(MIB) * 50]
    (ref,) = store.put([("job/1/a/1", frames)])
    assert ref.stripes == 2
    assert store.get([ref]) == [frames]
    store.free([ref])


@pytest.mark.fault(31)
def test_what_is_not_a_stored_value_counts_as_lost(make_store):
    store = make_store(stripe_bytes=1_000)
    for stripes, size in ((1, 10), (2, 1_500)):
        (ref,) = store.put([("job/1/a/1", [b"x" * size])])
        assert ref.stripes == stripes
        key = Keys(store.config.cluster).of_object(ref.name)
        server = connections(store)[1 + ref.shard]
        server.delete(key)
        server.set(key, b"a string")
        with pytest.raises(ValueLost):
            store.get([ref])
        server.delete(key)
        server.rpush(key, b"not lengths", b"x" * 1_000)
        with pytest.raises(ValueLost):
            store.get([ref])


@pytest.mark.fault(36)
def test_many_values_take_few_round_trips(store):
    before = store.counters()["round_trips"]
    refs = store.put([(f"job/{i}/a/1", [b"tag", b"body"]) for i in range(400)])
    store.get(refs)
    assert store.counters()["round_trips"] - before == 4  # two shards, there and back


def test_many_slices_take_one_round_trip_to_each_shard(store):
    opened(store)
    before = store.counters()
    store.put_slices("job", "0a1b", 0, {target: [b"tag", b"body"] for target in range(400)})
    after = store.counters()
    assert after["round_trips"] - before["round_trips"] == 3, "and one to ask whether the job is open"
    assert after["slices_written"] - before["slices_written"] == 400
    assert after["bytes_written"] - before["bytes_written"] == 400 * 7
    assert list(store.get_slices("job", "0a1b", 399, 7)) == [0]
    assert store.counters()["round_trips"] - after["round_trips"] == 1
    assert store.counters()["bytes_read"] - after["bytes_read"] == 7


def test_a_large_output_partition_is_read_in_bounded_steps(store, monkeypatch):
    opened(store)
    monkeypatch.setattr("fargate_storage.client.objects.BATCH_BYTES_MAX", 100_000)
    monkeypatch.setattr("fargate_storage.client.slices.BATCH_BYTES_MAX", 100_000)
    written = {source: [b"tag", os.urandom(30_000), b"%d" % source] for source in range(20)}
    for source, frames in written.items():
        store.put_slices("job", "0a1b", source, {5: frames})
    before = store.counters()["round_trips"]
    assert store.get_slices("job", "0a1b", 5, 20 * 30_000) == written
    assert store.counters()["round_trips"] - before == 2 + 7, "names, sizes, and three slices at a time"
    assert store.get_slices("job", "0a1b", 6, 20 * 30_000) == {}


def test_a_large_frame_is_cut_into_fields(store, monkeypatch):
    opened(store)
    monkeypatch.setattr("fargate_storage.client.slices.FIELD_BYTES_MAX", 30_000)
    frames = [b"tag", os.urandom(100_000), os.urandom(30_000), os.urandom(60_000)]
    store.put_slices("job", "0a1b", 3, {0: frames})
    assert store.get_slices("job", "0a1b", 0, 190_003) == {3: frames}


def test_slices_that_are_not_whole_are_lost(store):
    opened(store)
    store.put_slices("job", "0a1b", 3, {0: [b"tag", bytes(20_000)]})
    key = Keys(store.config.cluster).of_object("job/shuffle/0a1b/0")
    (server,) = [server for server in connections(store) if server.exists(key)]
    server.hdel(key, "3.1.0")
    with pytest.raises(ValueLost, match="'job/shuffle/0a1b/0' is not as it was written: frame 1"):
        store.get_slices("job", "0a1b", 0, 20_000)
    server.delete(key)
    server.set(key, b"a string")
    assert store.get_slices("job", "0a1b", 0, 20_000) == {}


@pytest.mark.fault(28)
def test_a_broken_connection_is_repaired_unseen(store):
    opened(store, "a")
    assert store.beat([("job", "a", 1, -1)]) == [OK]
    for server in connections(store):
        server.client_kill_filter(_type="normal", skipme=True)
    assert store.beat([("job", "a", 1, -1)]) == [OK]
    assert store.load("job", [0]) == [b"segment"]


def test_a_step_that_a_server_refuses_is_no_success(store):
    key = Keys(store.config.cluster).of_job("job", "objects")
    for server in connections(store)[1:]:
        server.set(key, b"not a set")
    with pytest.raises(StoreUnavailable, match="refused a step: WRONGTYPE"):
        store.put([("job/1/a/1", [b"tag"])])


def test_a_server_that_forgot_its_scripts_is_told_again(store):
    opened(store, "a")
    connections(store)[0].script_flush()
    assert store.beat([("job", "a", 1, -1)]) == [OK]


@pytest.mark.fault(29)
def test_large_values_are_sent_uncopied_in_pieces_that_pass_a_slow_link():
    value = bytes(3 * MIB)
    pieces = pack_commands([("RPUSH", "key", b"tag", value, b"end"), ("PING",)])
    assert max(map(len, pieces)) == PIECE_BYTES_MAX
    assert sum(isinstance(piece, memoryview) and piece.obj is value for piece in pieces) == 12
    head = b"*5\r\n$5\r\nRPUSH\r\n$3\r\nkey\r\n$3\r\ntag\r\n$3145728\r\n"
    assert b"".join(pieces) == head + value + b"\r\n$3\r\nend\r\n*1\r\n$4\r\nPING\r\n"


@pytest.mark.fault(28)
def test_a_blip_is_waited_for(tmp_path):
    with LocalTier() as tier:
        config = tier.config("test")
        path = config.metadata.removeprefix("unix://")
        hidden = str(tmp_path / "hidden")
        store = RedisStore(config)
        os.rename(path, hidden)  # nobody can connect
        timer = threading.Timer(0.3, os.rename, (hidden, path))
        timer.start()
        store.open_job("job", {})
        timer.join()
        store.close()


@pytest.mark.fault(18, 28)
def test_a_dead_server_is_named_in_bounded_time():
    with LocalTier(restarts_max=0) as tier:
        store = RedisStore(tier.config("test"))
        opened(store, "a")
        (ref,) = store.put([("job/1/a/1", [b"tag"])])
        assert tier.alive()
        os.kill(tier.pids["shard-0"], 9)
        assert until(tier.poll) == ["shard-0"]
        start = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"shard 0 server at .*shard-0\.sock cannot be reached") as error:
            store.get([ref])
        assert time.monotonic() - start < 5
        assert store.config.password not in str(error.value)
        assert store.beat([("job", "a", 1, -1)]) == [OK]  # the metadata server still answers
        with pytest.raises(StoreUnavailable):
            store.ping()
        store.close()


@pytest.mark.fault(28)
def test_a_silent_server_is_given_up_in_bounded_time():
    with LocalTier() as tier:
        store = RedisStore(tier.config("test", wait_seconds=0.3, retry_seconds=0.2))
        store.ping()
        os.kill(tier.pids["metadata"], 19)  # SIGSTOP: connections stay, answers do not come
        start = time.monotonic()
        with pytest.raises(StoreUnavailable, match="metadata server"):
            store.beat([("job", "a", 1, -1)])
        assert time.monotonic() - start < 3
        store.close()


@pytest.mark.fault(20)
def test_a_full_shard_says_so_and_names_its_limit():
    with LocalTier(maxmemory_bytes=8 * MIB) as tier:
        store = RedisStore(tier.config("test"))
        with pytest.raises(StoreFull, match=r"shard 0 server at .* is full \(limit: 8,388,608 bytes\)"):
            for number in range(20):
                store.put([(f"job/{number}/a/1", [b"tag", bytes(MIB)])])
        store.close()


@pytest.mark.fault(20)
def test_a_full_metadata_server_still_lets_executors_beat_retire_and_be_cancelled():
    with LocalTier(metadata_bytes=8 * MIB) as tier:
        store = RedisStore(tier.config("test"))
        opened(store, "a", "b")
        with pytest.raises(StoreFull, match="metadata server"):
            for number in range(2_000):
                store.arrive("job", "a", 1, [edge(100 + number, 1, 2, bytes(10_000))])
        with pytest.raises(StoreFull):
            for number in range(2_000):
                store.admit([record(f"c{number}", given={0: bytes(10_000)})], 5_000)
        assert store.beat([("job", "a", 1, 5)]) == [OK]
        assert store.arrive("job", "b", 1, retire=True).retired
        assert store.take_mail("b", 10.0) == b"", "who cannot linger leaves"
        store.cancel("job")
        store.close_job("job", [])
        opened(store, "d", job="next")
        store.close()


@pytest.mark.fault(20)
def test_a_full_metadata_server_takes_references_from_a_reserve_and_events_always():
    with LocalTier(metadata_bytes=8 * MIB) as tier:
        store = RedisStore(tier.config("test"))
        opened(store, "a", "b")
        with pytest.raises(StoreFull, match="limit: 8,388,608 bytes.*raise serverless.storage.metadata-max-memory"):
            for number in range(2_000):
                store.arrive("job", "a", 1, [edge(100 + number, 1, 2, bytes(10_000))])
        ref = Ref("job/1/a/1", 0, 100)
        assert verdicts(store.arrive("job", "b", 1, [edge(100, 2, 2, ref)], b"events")) == [(100, YOURS)]
        for first in range(10_000, 20_000, 100):
            store.arrive("job", "a", 1, [edge(first + number, 1, 2, ref) for number in range(100)])
        metadata = connections(store)[0]
        metadata.config_set("maxmemory", 0)
        metadata.setrange("stuffing", 100 * MIB, b"x")
        metadata.config_set("maxmemory", 8 * MIB)
        with pytest.raises(StoreFull):  # not even the last one of a fan-in
            store.arrive("job", "b", 1, [edge(10_000, 2, 2, ref)])
        reply = store.arrive("job", "b", 1, (), b"erred", retire=True, lingering=Lingering("b", 10.0))
        assert reply.retired and store.take_mail("b", 10.0) == b""
        assert [events for *_, events in store.listen(0)] == [b"events", b"erred", b""]
        store.close()


def test_config_travels_as_text_and_hides_the_password():
    config = StoreConfig("demo", "unix:///tmp/a", ("redis://h:1", "rediss://h:2"), "pass word", ttl_seconds=5)
    assert StoreConfig.from_json(config.to_json()) == config
    assert "pass word" not in repr(config)
    assert StoreConfig.from_json(config.to_json()[:-1] + ',"from_the_future":1}') == config
    with pytest.raises(ValueError):
        StoreConfig("demo", "redis://:secret@h:1")
    with pytest.raises(ValueError):
        replace(config, ttl_seconds=0)


# Admissions in two parts

LONG = 60.0
MAIL = b"mail"


def lingers(store, *names):
    """Open a job; an executor of each name retires, in this order, and lingers under it."""
    opened(store, *names)
    for name in names:
        assert store.arrive("job", name, 1, retire=True, lingering=Lingering(name, LONG)).retired


def test_an_admission_in_two_parts_says_what_it_says_in_one(store):
    """The first time there is no connection at hand, the second time there is."""
    lingers(store, "room", "roomy")
    for executor, recipient in (("b", "roomy"), ("c", "room"), ("d", "")):
        answer = store.begin_admit([record(executor)], [MAIL], None)
        assert answer() == [recipient]
        assert store.recall("job", executor) is not None


@pytest.mark.fault(28)
def test_an_admission_whose_connection_breaks_between_its_parts_is_repeated(store):
    lingers(store, "room", "roomy")
    store.begin_admit([record("b")], [MAIL], None)()  # leaves a connection at hand
    answer = store.begin_admit([record("c")], [MAIL], None)
    store._metadata._pool.disconnect()
    assert answer() == ["room"]
    assert store.take_mail("room", LONG) == MAIL


def test_an_admission_after_the_connection_broke_is_made_by_another(store):
    lingers(store)
    store.begin_admit([record("b")], [MAIL], None)()
    store._metadata._pool.disconnect()
    assert store.begin_admit([record("c")], [MAIL], None)() == [""]


def test_an_admission_after_the_end_says_so(store):
    lingers(store)
    store.close()
    with pytest.raises(StoreUnavailable):
        store.begin_admit([record("c")], [MAIL], None)()


@pytest.mark.fault(19)
def test_what_another_server_has_saved_is_removed_whatever_the_cluster_is_called(tier):
    """And nothing of another cluster on the same server."""
    with (
        contextlib.closing(RedisStore(tier.config("odd [1]*?\\"))) as store,
        contextlib.closing(RedisStore(tier.config("odd 1xy\\"))) as other,
    ):
        for each in (store, other):
            assert not each.begin()
            each.note({"a": b"note"})
        server, *_ = connections(store)
        server.set("odd [1]*?\\:mark", b"another-mark")
        assert not store.begin() and store.begin()
        assert store.noted() == {} and store.listen(0) == []
        assert other.noted() == {"a": b"note"} and other.begin()
