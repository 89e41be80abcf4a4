"""The storage tier with an overflow: what finds no room on the servers, and what outlives them."""

import pytest
import redis

from fargate_storage.client import RedisStore
from fargate_storage.client.overflow import OVERFLOW
from fargate_storage.service import LocalTier
from lambda_worker.core.errors import StoreFull, ValueLost
from tests.contract.stories import opened, stuff
from tests.waiting import until

MIB = 2**20


@pytest.fixture(scope="module")
def small_tier():
    """Two shards, which are full soon; every test has a cluster of its own."""
    with LocalTier(shards=2, maxmemory_bytes=24 * MIB) as tier:
        yield tier


@pytest.fixture
def make_store(small_tier, tmp_path, request):
    stores = []

    def make(**options):
        place = {"overflow": (tmp_path / "overflow").as_uri(), "overflow_bytes_max": 100 * MIB} | options
        stores.append(RedisStore(small_tier.config(request.node.name, **place)))
        return stores[-1]

    yield make
    flush(small_tier)
    for store in stores:
        store.close()


@pytest.fixture
def make_tier_of_three(request):
    with LocalTier(shards=3, maxmemory_bytes=300 * MIB) as tier:
        stores = []

        def make():
            stores.append(RedisStore(tier.config(request.node.name, stripe_bytes=1_000)))
            return stores[-1]

        yield make
        for store in stores:
            store.close()


@pytest.fixture
def store(make_store):
    return make_store()


def flush(tier):
    """The shards lose what they have."""
    config = tier.config("")
    for url in config.shards:
        redis.Redis.from_url(url, password=config.password).flushall()


def fill(store, many=40):
    """Write more than the shards hold."""
    return store.put([(f"job/{number}/a/1", [b"tag", bytes([number]) * MIB]) for number in range(many)])


def there(store, refs):
    return [[bytes(frame) for frame in frames] for frames in store.get(refs)]


@pytest.mark.fault(20)
def test_what_finds_no_room_on_a_shard_is_read_like_anything_else(store, make_store):
    refs = [ref for number in range(4) for ref in store.put([(f"job/{number}/b/1", [b"tag", b"%d" % number])])]
    refs += [ref for number in range(40) for ref in store.put([(f"job/{number}/a/1", [b"tag", bytes([number]) * MIB])])]
    on_disk = [ref for ref in refs if ref.overflowed]
    assert 10 < len(on_disk) < 40 and not any(ref in on_disk for ref in refs[:4])
    assert store.counters()["objects_overflowed"] == len(on_disk) and store.counters()["objects_written"] == len(refs)
    expected = [[b"tag", b"%d" % number] for number in range(4)]
    expected += [[b"tag", bytes([number]) * MIB] for number in range(40)]
    assert there(make_store(), refs) == expected
    assert store.missing(refs) == []
    store.touch(refs)
    assert store.put([("job/39/a/1", expected[-1])]) == [refs[-1]]
    assert store.usage()["overflow_bytes"] > len(on_disk) * MIB
    store.free(refs)
    assert store.missing(refs) == refs and store.usage()["overflow_bytes"] == 0
    with pytest.raises(ValueLost, match=rf"'{on_disk[0].name}' \(1,048,579 bytes\) is not in the overflow"):
        store.get(on_disk)


def spoil(overflow, ref):
    """Bits of a file change, its size does not."""
    job, _, rest = ref.name.partition("/")
    path = overflow / "values" / f"={job}" / f"={rest.replace('/', '%2F')}"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


@pytest.mark.fault(20, 31)
def test_what_is_written_again_is_where_its_ref_says(make_store, small_tier, tmp_path):
    """On its shard or in the overflow, whatever has room by now, and instead of what was spoiled."""
    store = make_store(stripe_bytes=MIB)
    frames = [b"tag", bytes(range(250)) * 10_000]
    (on_shards,) = store.put([("job/1/a/1", frames)])
    store.free([on_shards])
    stuff(small_tier)
    (beside,) = store.put([("job/2/a/1", frames)])
    assert on_shards.stripes > 1 and beside.overflowed
    store.put_again([(on_shards, frames)])
    assert there(make_store(stripe_bytes=MIB), [on_shards, beside]) == [frames, frames]
    assert store.missing([on_shards]) == []

    flush(small_tier)  # there is room now
    for lose in (store.free, lambda refs: spoil(tmp_path / "overflow", *refs)):
        lose([beside])
        with pytest.raises((ValueLost, AssertionError)):
            assert there(store, [beside]) == [frames]
        for _ in range(2):
            store.put_again([(beside, frames), (on_shards, frames)])
            assert there(make_store(stripe_bytes=MIB), [beside, on_shards]) == [frames, frames]

    store.free([beside, on_shards])
    assert store.missing([beside, on_shards]) == [beside, on_shards]


@pytest.mark.fault(17)
def test_what_is_written_again_without_a_shard_is_where_its_ref_says(make_tier_of_three):
    """Its stripes begin at a shard that was given up."""
    frames = [b"tag", bytes(range(250)) * 40]
    store, another = make_tier_of_three(), make_tier_of_three()
    names = [f"job/{number}/a/1" for number in range(50)]
    refs = store.put([(name, frames) for name in names])
    for each in (store, another):
        each.shard_map.learn([0])
    store.put_again([(ref, frames) for ref in refs])
    assert there(another, refs) == [frames] * 50


@pytest.mark.fault(20)
def test_several_at_once_go_where_there_is_room(store):
    refs = fill(store)
    assert {ref.shard for ref in refs} == {OVERFLOW}
    assert there(store, refs) == [[b"tag", bytes([number]) * MIB] for number in range(40)]


@pytest.mark.fault(20)
def test_a_job_that_is_closed_leaves_nothing_in_the_overflow(store):
    opened(store, "a")
    refs = fill(store)
    store.close_job("job", keep=refs[:1])
    assert store.missing(refs) == refs[1:]
    store.close_job("job", keep=[])
    assert store.usage()["overflow_bytes"] == 0


@pytest.mark.fault(20)
def test_pieces_of_a_graph_find_room_too(store, small_tier):
    fill(store)
    stuff(small_tier)  # what values have left is less than a piece
    numbers = range(20)
    store.open_job("job", {number: bytes([number]) * 100_000 for number in numbers})
    assert store.load("job", list(numbers)) == [bytes([number]) * 100_000 for number in numbers]
    assert store.usage()["overflow_bytes"] > 40 * MIB + 100_000
    store.close_job("job", keep=[])
    assert store.usage()["overflow_bytes"] == 0
    with pytest.raises(ValueLost):
        store.load("job", [0])


@pytest.mark.fault(35)
def test_what_is_too_large_for_a_shard_goes_to_the_overflow(make_store):
    store = make_store(object_bytes_max=MIB)
    refs = store.put([("job/1/a/1", [b"tag"]), ("job/2/a/1", [b"tag", *[bytes(MIB)] * 3])])
    assert [ref.overflowed for ref in refs] == [False, True]
    assert there(store, refs) == [[b"tag"], [b"tag", *[bytes(MIB)] * 3]]


@pytest.mark.fault(20, 46)
def test_when_the_overflow_is_full_too_it_says_where_and_how_much(make_store, tmp_path):
    store = make_store(overflow_bytes_max=5 * MIB)
    with pytest.raises(StoreFull, match=rf"overflow at {tmp_path}/overflow is full: 4,194,.* of 5,242,880 bytes"):
        fill(store)
    opened(store, "a")
    store.close_job("job", keep=[])
    assert store.usage()["overflow_bytes"] == 0
    assert len(fill(store, 3)) == 3


@pytest.mark.fault(20, 46)
def test_what_fits_on_a_shard_does_not_fail_because_something_larger_did_not(make_store, small_tier):
    """The overflow is full, and a shard has just refused: a large value, or several at once."""
    store = make_store(overflow_bytes_max=MIB)
    stuff(small_tier)
    with pytest.raises(StoreFull, match="overflow at"):
        fill(store, 3)
    flush(small_tier)  # within the second for which shards are not asked
    refs = store.put([("job/1/b/1", [b"tag", bytes(MIB)]), ("job/2/b/1", [b"tag", bytes(MIB)])])
    assert there(store, refs) == [[b"tag", bytes(MIB)]] * 2 and OVERFLOW not in {ref.shard for ref in refs}


@pytest.mark.fault(20)
def test_without_an_overflow_it_says_that_there_could_be_one(make_store):
    with pytest.raises(StoreFull, match=r"shard \d server .* is full .*serverless\.storage\.overflow\)"):
        fill(make_store(overflow=None))


@pytest.mark.fault(17, 24)
@pytest.mark.parametrize("nbytes", [100, 5 * MIB])
def test_what_is_kept_outlives_its_shards(make_store, small_tier, nbytes):
    """A copy of what is stored already, in stripes or not, and what was never on a shard."""
    store = make_store(stripe_bytes=2 * MIB)
    frames = [b"tag", bytes(range(250)) * (nbytes // 250), b"end"]
    (copied, lost) = store.put([("job/1/a/1", frames), ("job/2/a/1", frames)])
    (alone,) = store.keep([("exports/1", frames)])
    store.keep([("job/1/a/1", store.get([copied])[0])])
    assert not copied.overflowed and alone.overflowed
    flush(small_tier)
    assert store.missing([copied, lost, alone]) == [lost]
    assert there(make_store(stripe_bytes=2 * MIB), [copied, alone]) == [frames, frames]
    with pytest.raises(ValueLost, match="'job/2/a/1'"):
        store.get([copied, lost])
    store.free([copied, alone])
    assert store.missing([copied, alone]) == [copied, alone] and store.usage()["overflow_bytes"] == 0


# Slices of shuffles


def slices(source, targets, nbytes=100_000):
    """What an input partition has for some output partitions; each slice tells which it is."""
    return {target: [b"tag", b"%d for %d" % (source, target), bytes([source]) * nbytes] for target in targets}


def put_again_overflows(store):
    before = store.counters()["slices_overflowed"]
    store.put_slices("job", "s", 0, slices(4, [0]))
    return store.counters()["slices_overflowed"] > before


def read_slices(store, target, nbytes=10 * MIB):
    found = store.get_slices("job", "s", target, nbytes)
    return {source: [bytes(frame) for frame in frames] for source, frames in found.items()}


@pytest.mark.fault(20)
def test_slices_that_find_no_room_are_read_with_those_that_did(store, make_store):
    opened(store)
    for source in range(40):  # 40 MiB
        store.put_slices("job", "s", source, slices(source, range(10)))
    counters = store.counters()
    assert 100 < counters["slices_overflowed"] < 400 == counters["slices_written"]
    assert store.usage()["overflow_bytes"] > counters["slices_overflowed"] * 100_000
    for target in range(10):
        assert read_slices(make_store(), target) == {source: slices(source, [target])[target] for source in range(40)}
    store.close_job("job", keep=[])
    assert store.usage()["overflow_bytes"] == 0 and read_slices(store, 3) == {}


@pytest.mark.fault(20, 23)
def test_of_two_versions_of_a_slice_the_newer_one_is_read(store, small_tier):
    """Written beside the shards or on them, whatever had room, by a task that does not repeat itself."""
    opened(store)
    store.put_slices("job", "s", 0, slices(0, range(4)))
    stuff(small_tier)
    for version in (slices(1, range(4), 50_000), slices(2, range(4))):
        store.put_slices("job", "s", 0, version)
        assert [read_slices(store, target) for target in range(4)] == [{0: version[target]} for target in range(4)]
    # It cuts elsewhere; what nobody has written again stays.
    store.put_slices("job", "s", 0, slices(3, [1]))
    store.put_slices("job", "s", 0, slices(3, range(3, 9)))
    latest = slices(2, range(4)) | slices(3, [1, *range(3, 9)])
    assert [read_slices(store, target) for target in range(9)] == [{0: latest[target]} for target in range(9)]
    flush(small_tier)
    until(lambda: not put_again_overflows(store), "shards are asked again")
    assert [read_slices(store, target) for target in range(2)] == [{0: slices(4, [0])[0]}, {0: latest[1]}]


@pytest.mark.fault(17, 20)
def test_slices_beside_the_shards_outlive_them_and_are_missed_when_they_are_spoiled(store, small_tier, tmp_path):
    opened(store)
    stuff(small_tier)
    store.put_slices("job", "s", 0, slices(0, range(4)))
    flush(small_tier)
    assert read_slices(store, 2) == {0: slices(0, [2])[2]}
    (file,) = (path for path in (tmp_path / "overflow" / "values").rglob("*") if path.is_file())
    whole = file.read_bytes()
    for spoiled in (whole[:-1], whole[:40] + b"?" * 100 + whole[140:], b""):
        file.write_bytes(spoiled)
        assert read_slices(store, 2) != {0: slices(0, [2])[2]}, "the tags that were written tell"
        store.put_slices("job", "s", 0, slices(0, range(4)))
        assert read_slices(store, 2) == {0: slices(0, [2])[2]}


@pytest.mark.fault(20, 46)
def test_slices_for_which_the_overflow_has_no_room_say_so(make_store, small_tier, tmp_path):
    store = make_store(overflow_bytes_max=MIB)
    opened(store)
    stuff(small_tier)
    with pytest.raises(StoreFull, match=rf"overflow at {tmp_path}/overflow is full: 0 of 1,048,576 bytes"):
        store.put_slices("job", "s", 0, slices(0, range(20)))
    flush(small_tier)  # within the second for which shards are not asked
    store.put_slices("job", "s", 0, slices(0, range(20)))
    assert read_slices(store, 7) == {0: slices(0, [7])[7]} and store.usage()["overflow_bytes"] == 0
    with pytest.raises(StoreFull, match=r"is full .*serverless\.storage\.overflow\)"):
        for source in range(40):
            make_store(overflow=None).put_slices("job", "s", source, slices(source, range(20)))


@pytest.mark.fault(20)
def test_what_is_written_again_in_vain_is_still_there_as_before(make_store, small_tier):
    store = make_store(overflow_bytes_max=MIB)
    pieces = {number: bytes([number]) * 100_000 for number in range(20)}
    store.open_job("job", pieces)
    store.put_slices("job", "s", 0, slices(0, range(20)))
    stuff(small_tier)
    with pytest.raises(StoreFull):
        store.open_job("job", pieces)
    with pytest.raises(StoreFull):
        store.put_slices("job", "s", 0, slices(0, range(20)))
    assert store.load("job", list(pieces)) == list(pieces.values())
    assert read_slices(store, 7) == {0: slices(0, [7])[7]}


@pytest.mark.fault(20)
def test_slices_that_find_no_room_beside_others_leave_those_there(make_store, small_tier):
    store = make_store(overflow_bytes_max=MIB)
    opened(store)
    stuff(small_tier)
    store.put_slices("job", "s", 0, {target: [b"tag", b"x" * 200_000] for target in range(3)})
    with pytest.raises(StoreFull):  # put together with what is there
        store.put_slices("job", "s", 0, {target: [b"tag", b"y" * 600_000] for target in (0, 2)})
    assert read_slices(store, 1) == {0: [b"tag", b"x" * 200_000]}


@pytest.mark.fault(20, 35)
def test_a_slice_that_is_too_large_for_a_shard_goes_to_the_overflow(make_store):
    store = make_store(object_bytes_max=1_000)
    opened(store)
    store.put_slices("job", "s", 0, slices(0, [1, 2]))
    assert read_slices(store, 2) == {0: slices(0, [2])[2]} and store.counters()["slices_overflowed"] == 2


@pytest.mark.fault(20)
def test_slices_that_come_too_late_do_not_stay_in_the_overflow(store, small_tier):
    opened(store)
    stuff(small_tier)
    store.close_job("job", [])
    store.put_slices("job", "s", 0, slices(0, range(4)))
    assert store.usage()["overflow_bytes"] == 0
