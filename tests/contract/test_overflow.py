"""The promises of `fargate_storage.client.overflow.Overflow`, one by one, on every adapter there is."""

import errno
import fcntl
import multiprocessing
import os
import resource
import signal
import stat
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fargate_storage.client.directory import DirectoryOverflow
from fargate_storage.client.overflow import open_overflow
from lambda_worker.core.errors import StoreFull, StoreUnavailable

MIB = 2**20


@pytest.fixture(params=["directory"])
def make_overflow(request, tmp_path):
    """Make clients of one fresh place: each stands for a process of its own."""
    urls = {"directory": (tmp_path / "overflow").as_uri()}
    return lambda bytes_max=MIB, ttl_seconds=1000: open_overflow(urls[request.param], bytes_max, ttl_seconds)


@pytest.fixture
def overflow(make_overflow):
    return make_overflow()


def read(overflow, name):
    frames = overflow.read(name)
    return None if frames is None else [bytes(frame) for frame in frames]


# What any adapter promises


def test_what_was_written_is_read_by_others(make_overflow):
    make_overflow().write("job/1/a/1", [b"tag", memoryview(b"hello"), b"", bytearray(b"!")])
    assert read(make_overflow(), "job/1/a/1") == [b"tag", b"hello", b"", b"!"]
    assert make_overflow().has("job/1/a/1")


def test_frames_of_several_dimensions_are_their_bytes(overflow):
    overflow.write("job/1/a/1", [b"tag", memoryview(bytes(range(12))).cast("B", (3, 4))])
    assert read(overflow, "job/1/a/1") == [b"tag", bytes(range(12))]


def test_what_was_not_written_is_missing(overflow):
    assert overflow.read("job/1/a/1") is None
    assert not overflow.has("job/1/a/1")
    overflow.write("job/1/a/1", [b"tag"])
    assert overflow.read("job/1/a/10") is None and overflow.read("job/1") is None and overflow.read("job") is None


def test_some_of_the_frames_are_read_without_the_others(overflow):
    overflow.write("job/1/a/1", [b"tag", b"hello", b"", b"!"])
    found = [overflow.read("job/1/a/1", *part) for part in ((1,), (1, 1), (2, 5), (0, 0), (4, 1))]
    assert found == [[b"hello", b"", b"!"], [b"hello"], [b"", b"!"], [], []]


def test_names_are_told_by_how_they_begin(overflow):
    for name in ("job/s/1/0-7", "job/s/1/8-9", "job/s/10/0-9", "job/s%/1/0-9", "jo/s/1/0-7"):
        overflow.write(name, [b"tag"])
    assert sorted(overflow.names("job/s/1/")) == ["job/s/1/0-7", "job/s/1/8-9"]
    assert overflow.names("job/s%") == ["job/s%/1/0-9"]
    assert overflow.names("unknown/s") == [] and len(overflow.names("job/")) == 4


def test_the_first_complete_write_stays(overflow):
    overflow.write("job/1/a/1", [b"first"])
    overflow.write("job/1/a/1", [b"second"])
    assert read(overflow, "job/1/a/1") == [b"first"]


def test_deleting_is_repeated_without_harm(overflow):
    overflow.write("job/1/a/1", [b"tag"])
    for _ in range(2):
        overflow.delete(["job/1/a/1", "job/2/a/1"])
        assert overflow.read("job/1/a/1") is None and overflow.usage() == 0
    overflow.write("job/1/a/1", [b"again"])
    assert read(overflow, "job/1/a/1") == [b"again"]


def test_a_job_is_forgotten_but_for_what_is_kept(overflow):
    names = ["job/1/a/1", "job/2/a/1", "job-2/1/a/1", "jo/1/a/1"]
    for name in names:
        overflow.write(name, [name.encode()])
    for _ in range(2):
        overflow.forget("job", keep=["job/2/a/1", "job/3/a/1"])
        assert [name for name in names if overflow.has(name)] == names[1:]
    overflow.forget("unknown", keep=[])


@pytest.mark.fault(20)
def test_usage_is_known_and_what_is_too_much_is_refused(make_overflow):
    overflow = make_overflow(bytes_max=10_000)
    overflow.write("job/1/a/1", [bytes(6_000)])
    assert 6_000 <= overflow.usage() <= 6_100
    with pytest.raises(StoreFull, match=r"6,0\d\d of 10,000 bytes are used, and 5,0\d\d more .*overflow-max"):
        make_overflow(bytes_max=10_000).write("job/2/a/1", [bytes(5_000)])
    assert not overflow.has("job/2/a/1")
    overflow.delete(["job/1/a/1"])
    overflow.write("job/2/a/1", [bytes(5_000)])
    assert read(overflow, "job/2/a/1") == [bytes(5_000)]


def test_what_nobody_has_used_for_long_makes_room(make_overflow):
    overflow = make_overflow(bytes_max=10_000, ttl_seconds=0.05)
    overflow.write("job/1/a/1", [bytes(6_000)])
    deadline = time.monotonic() + 10
    while True:
        try:
            overflow.write("job/2/a/1", [bytes(6_000)])
            break
        except StoreFull:
            assert time.monotonic() < deadline
    assert not overflow.has("job/1/a/1") and overflow.has("job/2/a/1")


def test_what_is_used_does_not_expire(make_overflow):
    overflow = make_overflow(bytes_max=10_000)
    for name in ("job/1/a/1", "job/2/a/1"):
        overflow.write(name, [bytes(3_000)])
    overflow.touch(["job/1/a/1", "job/none"])
    with pytest.raises(StoreFull):
        overflow.write("job/3/a/1", [bytes(6_000)])
    assert overflow.has("job/1/a/1") and overflow.has("job/2/a/1")


NASTY = ["../../escape/x", "/etc/passwd", "a\0b/c", "..", ".", "", "x" * 1000 + "/" + "y" * 1000, "jöb/ä", "a/../../b"]


def test_no_name_leaves_the_place(overflow, tmp_path):
    for number, name in enumerate(NASTY):
        overflow.write(name, [b"%d" % number])
    assert [read(overflow, name) for name in NASTY] == [[b"%d" % number] for number in range(len(NASTY))]
    assert {each.name for each in tmp_path.iterdir()} <= {"overflow"}
    overflow.delete(NASTY)
    assert not any(overflow.has(name) for name in NASTY) and overflow.usage() == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(st.lists(st.binary(max_size=3_000), min_size=1, max_size=5), st.text(max_size=30))
def test_anything_comes_back_as_it_was(overflow, frames, name):
    overflow.write(name, frames)
    assert read(overflow, name) == frames
    overflow.delete([name])


def test_many_write_at_once_and_no_byte_is_lost_or_counted_twice(make_overflow):
    def work(number):
        overflow = make_overflow()
        for each in range(20):
            overflow.write(f"job/{each}", [bytes([each]) * 1_000])  # all of them the same
            overflow.write(f"job-{number}/{each}", [bytes(500)])
            assert read(overflow, f"job/{each}") == [bytes([each]) * 1_000]
            overflow.delete([f"job-{number}/{each}"])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    overflow = make_overflow()
    assert 20_000 <= overflow.usage() <= 20_000 + 20 * 100
    overflow.forget("job", keep=[])
    assert overflow.usage() == 0


def test_writing_again_is_using(make_overflow):
    overflow = make_overflow(bytes_max=10_000, ttl_seconds=1000)
    overflow.write("job/1/a/1", [bytes(3_000)])
    overflow.write("job/2/a/1", [bytes(3_000)])
    expire(overflow, "job/1/a/1")
    expire(overflow, "job/2/a/1")
    overflow.write("job/1/a/1", [bytes(3_000)])
    overflow.write("job/3/a/1", [bytes(6_000)])
    assert overflow.has("job/1/a/1") and not overflow.has("job/2/a/1")


# What only a directory can show


def expire(overflow, name):
    """Nobody has used it for very long."""
    job, _, rest = name.partition("/")
    os.utime(os.path.join(overflow.path, "values", f"={job}", "=" + rest.replace("/", "%2F")), (0, 0))


def test_whoever_counts_while_something_is_removed_or_written_counts_it_once(tmp_path, monkeypatch):
    """Between a file's end and its being taken back, another process counts: it waits for the lock."""
    overflow = DirectoryOverflow(str(tmp_path), MIB)
    for number in range(3):
        overflow.write(f"job/{number}", [bytes(1_000)])
    locked = []

    def others_may_count():
        locked.append(is_locked(tmp_path))

    for name in ("unlink", "rename"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, real=real: (others_may_count(), real(*args))[1])
    overflow.delete(["job/0", "job/1"])
    overflow.write("job/3", [bytes(1_000)])
    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(StoreFull, match=r"refuses 1,0\d\d bytes \(.*\): 2,0\d\d of 1,048,576"):
        overflow.write("job/4", [bytes(1_000)])
    assert list((tmp_path / "writing").iterdir()) == [] and not overflow.has("job/4")
    assert locked == [True] * 4
    assert overflow.usage() == sum(each.stat().st_size for each in (tmp_path / "values").rglob("=[0-9]*"))


def no_room(descriptor):
    """The disk hears of the bytes late."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def is_locked(path):
    """Another process looks."""
    process = multiprocessing.get_context("fork").Process(target=take, args=(path,))
    process.start()
    process.join(60)
    return bool(process.exitcode)


def take(path):
    try:
        fcntl.lockf(os.open(path / "used", os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os._exit(1)
    os._exit(0)


def test_an_error_does_not_end_the_lock_of_another_thread(tmp_path):
    overflow = DirectoryOverflow(str(tmp_path), MIB)
    overflow.write("job/1", [b"tag"])
    failing = threading.Thread(target=overflow._noted)
    with overflow._used():
        failing.start()
        failing.join(0.3)  # it waits
        assert is_locked(tmp_path)
    failing.join(60)
    assert not is_locked(tmp_path) and not failing.is_alive()


def test_what_is_being_written_counts_whole(tmp_path, monkeypatch):
    """Another one counts when the first byte of a large value is on the disk."""
    overflow, other = (DirectoryOverflow(str(tmp_path), 10_000) for _ in range(2))
    write = os.write

    def interrupted(descriptor, view):
        monkeypatch.setattr(os, "write", write)
        with pytest.raises(StoreFull):
            other.write("job/2", [bytes(5_000)])
        return write(descriptor, view)

    monkeypatch.setattr(os, "write", interrupted)
    overflow.write("job/1", [bytes(6_000)])
    assert 6_000 <= overflow.usage() <= 6_100 and not overflow.has("job/2")


def test_a_full_place_is_not_counted_for_each_refusal(tmp_path, monkeypatch):
    overflow = DirectoryOverflow(str(tmp_path), 10_000)
    overflow.write("job/1", [bytes(6_000)])
    counts = []
    count = DirectoryOverflow._count
    monkeypatch.setattr(DirectoryOverflow, "_count", lambda self: (counts.append(1), count(self))[1])
    monkeypatch.setattr(time, "monotonic", lambda: 1.0)
    for _ in range(5):
        with pytest.raises(StoreFull):
            overflow.write("job/2", [bytes(5_000)])
    assert len(counts) == 1
    overflow.delete(["job/1"])  # what is removed makes room at once
    overflow.write("job/2", [bytes(6_000)])
    expire(overflow, "job/2")
    monkeypatch.setattr(time, "monotonic", lambda: 2.0)  # what has expired, a little later
    overflow.write("job/3", [bytes(6_000)])
    assert len(counts) == 2 and not overflow.has("job/2")


def test_a_job_that_is_gone_leaves_no_directory(tmp_path):
    overflow = DirectoryOverflow(str(tmp_path), MIB)
    for number in range(2):
        overflow.write(f"job/{number}", [b"tag"])
    overflow.forget("job", keep=["job/1"])
    assert [each.name for each in (tmp_path / "values").iterdir()] == ["=job"]
    overflow.delete(["job/1"])
    assert list((tmp_path / "values").iterdir()) == []


STEPS = ("open", "flock", "ftruncate", "write", "fsync", "rename", "unlink", "pwrite")


def write_and_delete_until(step, number, path):
    """Die right after the n-th call of what a write and a deletion are made of; else end."""
    module, calls = (fcntl if step == "flock" else os), []
    real = getattr(module, step)

    def last(*args, **kwargs):
        result = real(*args, **kwargs)
        calls.append(1)
        if len(calls) == number:
            os._exit(9)
        return result

    setattr(module, step, last)
    overflow = DirectoryOverflow(str(path), MIB)
    overflow.write("job/3", [bytes(1_000)])
    overflow.delete(["job/1"])
    os._exit(0)


@pytest.mark.fault(3, 20)
@pytest.mark.parametrize("step", STEPS)
def test_whoever_is_killed_at_any_step_has_promised_enough(tmp_path, step):
    """What is noted as used is never less than what is there: else the bound would be passed, and nobody counted."""
    for number in range(1, 10):
        path = tmp_path / str(number)
        overflow = DirectoryOverflow(str(path), MIB)
        for each in range(3):
            overflow.write(f"job/{each}", [bytes(1_000)])
        context = multiprocessing.get_context("fork")
        writer = context.Process(target=write_and_delete_until, args=(step, number, path))
        writer.start()
        writer.join(60)
        there = {each.stat().st_ino: each.stat().st_size for each in path.rglob("*") if each.is_file()}
        assert overflow.usage() >= sum(there.values()) - (path / "used").stat().st_size
        tight = DirectoryOverflow(str(path), 4_200)
        for each in (1, 3):
            tight.delete([f"job/{each}"])
        tight.write("job/4", [bytes(2_000)])  # whose room is short
        assert list((path / "writing").iterdir()) == []
        assert tight.usage() == sum(each.stat().st_size for each in (path / "values").rglob("=[0-9]*"))
        if writer.exitcode == 0:
            break
        assert writer.exitcode == 9
    else:
        raise AssertionError(f"{step} is done without end")
    assert number > 1, f"{step} was never done"


def write_for_ever(path, number):
    overflow = DirectoryOverflow(str(path), 1000 * MIB)
    for each in range(10**9):
        overflow.write(f"job-{number}/{each}", [b"%d" % each, bytes([each % 251]) * MIB])
        overflow.delete([f"job-{number}/{each - 3}"])


@pytest.mark.fault(3, 20)
def test_who_is_killed_while_writing_leaves_nothing_that_counts(tmp_path):
    """Whole values or none; and what the dead have promised and begun is found when room is short."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_for_ever, args=(tmp_path / "overflow", number)) for number in range(2)]
    for writer in writers:
        writer.start()
    deadline = time.monotonic() + 60
    for number, writer in enumerate(writers):
        place = tmp_path / "overflow" / "values" / f"=job-{number}"
        while not list(place.glob("=[0-9][0-9]*")):  # the tenth, or a later one
            assert time.monotonic() < deadline and writer.is_alive()
        os.kill(writer.pid, signal.SIGKILL)
        writer.join(60)
    overflow = DirectoryOverflow(str(tmp_path / "overflow"), 1000 * MIB)
    found = [
        (number, each)
        for number in range(2)
        for each in range(2_000)
        if (frames := read(overflow, f"job-{number}/{each}")) is not None
        and frames == [b"%d" % each, bytes([each % 251]) * MIB]
    ]
    assert 4 <= len(found) <= 8
    tight = DirectoryOverflow(str(tmp_path / "overflow"), (len(found) + 1) * (MIB + 100))
    tight.write("job-3/1", [bytes(MIB)])
    assert list((tmp_path / "overflow" / "writing").iterdir()) == []
    assert tight.usage() == sum(each.stat().st_size for each in (tmp_path / "overflow" / "values").rglob("=[0-9]*"))


@pytest.mark.fault(46)
def test_a_disk_without_room_is_an_error_with_path_and_usage_and_leaves_nothing(tmp_path):
    overflow = DirectoryOverflow(str(tmp_path / "overflow"), 100 * MIB)
    overflow.write("job/1", [bytes(1_000)])
    with full_disk(MIB):
        with pytest.raises(
            StoreFull, match=rf"{tmp_path}/overflow refuses 2,[\d,]+ bytes \(.*\): 1,0\d\d of 104,857,600"
        ):
            overflow.write("job/2", [bytes(2_000_000)])
    assert list((tmp_path / "overflow" / "writing").iterdir()) == [] and not overflow.has("job/2")
    assert 1_000 <= overflow.usage() <= 1_100
    overflow.write("job/2", [bytes(2_000_000)])
    assert read(overflow, "job/2") == [bytes(2_000_000)]


@contextmanager
def full_disk(bytes_left=0):
    """The kernel refuses whatever a file grows beyond that."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.fault(46)
@pytest.mark.parametrize("spoil", [Path.unlink, lambda used: used.write_bytes(b"")])
def test_a_full_disk_where_not_even_the_count_fits(tmp_path, spoil):
    overflow = DirectoryOverflow(str(tmp_path), MIB)
    overflow.write("job/1", [bytes(1_000)])
    overflow.write("job/2", [bytes(1_000)])
    spoil(tmp_path / "used")
    with full_disk():
        assert 2_000 <= overflow.usage() <= 2_100
        with pytest.raises(
            StoreFull, match=rf"{tmp_path} refuses 1,0\d\d bytes .* an unknown number of 1,048,576 bytes"
        ):
            overflow.write("job/3", [bytes(1_000)])
        overflow.delete(["job/1"])
        assert 1_000 <= overflow.usage() <= 1_100
    assert list((tmp_path / "writing").iterdir()) == []
    overflow.write("job/3", [bytes(1_000)])
    assert 2_000 <= overflow.usage() <= 2_100 and read(overflow, "job/3") == [bytes(1_000)]


def test_a_place_that_cannot_be_used_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailable, match=f"the overflow at {tmp_path}/file cannot be used"):
        DirectoryOverflow(str(tmp_path / "file"), MIB).write("job/1", [b"tag"])


def test_nobody_else_may_look(tmp_path):
    DirectoryOverflow(str(tmp_path / "overflow"), MIB).write("job/1", [b"tag"])
    for path in [tmp_path / "overflow", *(tmp_path / "overflow").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.mark.fault(31)
@pytest.mark.parametrize(
    "spoil", [lambda b: b"", lambda b: b[:3], lambda b: b[:-1], lambda b: b + b"!", lambda b: b"x" + b[1:]]
)
def test_a_file_that_is_not_as_it_was_written_is_missing(tmp_path, spoil):
    overflow = DirectoryOverflow(str(tmp_path), MIB)
    overflow.write("job/1", [b"tag", b"hello"])
    path = tmp_path / "values" / "=job" / "=1"
    path.write_bytes(spoil(path.read_bytes()))
    assert overflow.read("job/1") is None


@pytest.mark.fault(31)
@given(st.binary(max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100)
def test_any_list_of_frames_that_is_none_is_missing(tmp_path, lengths):
    overflow = DirectoryOverflow(str(tmp_path), MIB)
    overflow.write("job/1", [b"tag"])
    blob = b"dsv1" + len(lengths).to_bytes(4, "big") + lengths + b"tag"
    (tmp_path / "values" / "=job" / "=1").write_bytes(blob)
    assert overflow.read("job/1") in (None, [b"tag"])
