"""Constants: stored once for all jobs of a cluster, kept as bytes in a sandbox."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_serverless.constant_pool import ConstantPool
from lambda_worker.cache import Cache
from lambda_worker.compression import Compressor
from lambda_worker.constants import Constants
from lambda_worker.core.errors import StoreFull, Tampered
from lambda_worker.core.policy import Policy
from lambda_worker.core.wire import Ref, frames_nbytes, seal_frames
from lambda_worker.restoring import Restored
from lambda_worker.values import value_to_frames

SECRET = b"the cluster's secret"
COMPRESSOR = Compressor(Policy(), time.perf_counter)


class Shelf:
    """What the storage tier is to constants."""

    def __init__(self, nbytes_max=2**40):
        self.objects = {}
        self.touched = []
        self.reads = 0
        self.nbytes_max = nbytes_max

    @property
    def nbytes(self):
        return sum(frames_nbytes(frames) for frames in self.objects.values())

    def put(self, objects):
        for name, frames in objects:
            if self.nbytes + frames_nbytes(frames) > self.nbytes_max:
                raise StoreFull("full")
            assert name not in self.objects, "a name is unique to one write"
            self.objects[name] = [bytearray(frame) for frame in frames]
        return [Ref(name, 0, frames_nbytes(frames)) for name, frames in objects]

    def put_again(self, objects):
        for ref, frames in objects:
            assert frames_nbytes(frames) == ref.nbytes
            self.objects[ref.name] = [bytearray(frame) for frame in frames]

    def get(self, refs):
        self.reads += len(refs)
        return [self.objects[ref.name] for ref in refs]

    def free(self, refs):
        for ref in refs:
            del self.objects[ref.name]

    def touch(self, refs):
        self.touched = [ref.name for ref in refs]
        assert self.objects.keys() >= set(self.touched)


@pytest.fixture
def shelf():
    return Shelf()


def test_the_same_content_is_stored_once_for_all_jobs(shelf):
    pool = ConstantPool(shelf, SECRET, COMPRESSOR)
    refs = {pool.keep(job, np.arange(1000)) for job in ("j1", "j2", "j2")}
    assert len(refs) == len(shelf.objects) == 1
    assert pool.keep("j2", np.arange(1000.0)) not in refs
    assert Constants(shelf, SECRET, Cache(10_000_000)).value(refs.pop()).sum() == 499_500


def test_what_a_job_uses_is_not_freed_by_another(shelf):
    pool = ConstantPool(shelf, SECRET, COMPRESSOR, idle_bytes_max=0)
    ref = pool.keep("j1", b"x" * 1000)
    pool.keep("j2", b"x" * 1000)
    pool.release("j2")
    pool.release("j2")
    assert ref.name in shelf.objects
    pool.release("j1")
    assert not shelf.objects


def test_what_is_idle_stays_for_the_next_job_the_youngest_longest(shelf):
    pool = ConstantPool(shelf, SECRET, COMPRESSOR, idle_bytes_max=2500)
    refs = [pool.keep(f"j{n}", bytes([n]) * 1000) for n in range(3)]
    for job in ("j1", "j0", "j2"):
        pool.release(job)
    assert shelf.objects.keys() == {refs[0].name, refs[2].name}
    assert pool.keep("again", bytes([2]) * 1000) == refs[2]


def test_what_comes_back_has_another_name(shelf):
    """1. A removal is on its way; 2. the content is stored again; 3. the removal arrives."""
    pool = ConstantPool(shelf, SECRET, COMPRESSOR, idle_bytes_max=0)
    first = pool.keep("j1", b"x" * 1000)
    pool.release("j1")
    assert pool.keep("j2", b"x" * 1000) != first


def test_what_is_idle_goes_when_there_is_no_room():
    shelf = Shelf(nbytes_max=2500)
    pool = ConstantPool(shelf, SECRET, COMPRESSOR)
    pool.keep("j1", b"1" * 1000)
    pool.keep("j2", b"2" * 1000)
    pool.release("j1")
    ref = pool.keep("j3", b"3" * 1000)
    assert ref.name in shelf.objects and len(shelf.objects) == 2
    with pytest.raises(StoreFull):
        pool.keep("j4", b"4" * 1000)


def test_what_is_used_is_kept_alive_and_what_was_idle_for_long_goes(shelf):
    pool = ConstantPool(shelf, SECRET, COMPRESSOR)
    used, idle = pool.keep("j1", b"1" * 1000), pool.keep("j2", b"2" * 1000)
    pool.release("j2")
    pool.keep_alive()
    assert shelf.touched == [used.name] and idle.name in shelf.objects
    assert pool.keep("j3", b"2" * 1000) == idle  # came back between two rounds
    pool.keep_alive()
    pool.release("j3")
    pool.keep_alive()
    assert idle.name in shelf.objects
    pool.keep_alive()
    assert shelf.objects.keys() == {used.name}


STEPS = st.one_of(
    st.tuples(st.just("keep"), st.integers(0, 3), st.integers(0, 4)),
    st.tuples(st.just("release"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("keep_alive"), st.just(0), st.just(0)),
)


@given(st.lists(STEPS, max_size=40), st.sampled_from([0, 1500, 10_000]))
def test_whatever_happens_what_a_job_was_given_is_there(steps, idle_bytes_max):
    shelf = Shelf()
    pool = ConstantPool(shelf, SECRET, COMPRESSOR, idle_bytes_max)
    held = {}
    for step, job, content in steps:
        if step == "keep":
            held.setdefault(job, {})[content] = pool.keep(str(job), bytes([content]) * 1000)
        elif step == "release":
            pool.release(str(job))
            held.pop(job, None)
        else:
            pool.keep_alive()
        names = {ref.name for refs in held.values() for ref in refs.values()}
        assert shelf.objects.keys() >= names
        assert all(len({refs[c] for refs in held.values() if c in refs}) <= 1 for c in range(5))
        idle = sum(frames_nbytes(frames) for name, frames in shelf.objects.items() if name not in names)
        assert idle <= idle_bytes_max
    for job in list(held):
        pool.release(str(job))
    pool.keep_alive()
    pool.keep_alive()
    assert not shelf.objects


def stored(shelf, name, value):
    return shelf.put([(name, seal_frames(SECRET, name, value_to_frames(value)))])[0]


def test_a_sandbox_reads_a_constant_once_and_makes_a_new_object_each_time(shelf):
    constants = Constants(shelf, SECRET, Cache(10_000_000))
    ref = stored(shelf, "constants/a/1", np.zeros(1000))
    for _ in range(3):
        array = constants.value(ref)
        assert array.sum() == 0
        array += 1
    assert shelf.reads == 1


def test_a_sandbox_keeps_what_was_used_last(shelf):
    refs = [stored(shelf, f"constants/{n}/1", bytes(1000)) for n in range(3)]
    constants = Constants(shelf, SECRET, Cache(2200))
    for n in (0, 1, 0, 2, 0):
        constants.value(refs[n])
    assert shelf.reads == 3
    constants.value(refs[1])
    assert shelf.reads == 4


def test_a_constant_is_compressed_where_that_pays(shelf):
    pool = ConstantPool(shelf, SECRET, Compressor(Policy(bytes_per_second=1e6), lambda: 0.0))
    ref = pool.keep("j1", np.zeros(100_000))
    assert ref.nbytes < 10_000
    constants = Constants(shelf, SECRET, Cache(10_000_000))
    for _ in range(2):
        array = constants.value(ref)
        assert array.sum() == 0 and array.flags.writeable
        array += 1


def test_what_is_too_large_to_be_kept_displaces_nothing(shelf):
    small, large = stored(shelf, "constants/s/1", bytes(1000)), stored(shelf, "constants/l/1", bytes(5000))
    constants = Constants(shelf, SECRET, Cache(2200))
    for ref in (small, large, small, large):
        assert len(constants.value(ref)) in (1000, 5000)
    assert shelf.reads == 3


@pytest.mark.fault(42)
def test_a_constant_under_another_name_is_not_unpickled(shelf):
    one, other = stored(shelf, "constants/one/1", 1), stored(shelf, "constants/other/1", 2)
    shelf.objects[one.name] = shelf.objects[other.name]
    with pytest.raises(Tampered, match="constants/one/1"):
        Constants(shelf, SECRET, Cache(10_000_000)).value(one)


@pytest.mark.fault(31)
def test_a_constant_that_is_spoiled_is_written_again(shelf):
    """It is there: that it is not what was written only its reader finds out, who says so."""
    pool = ConstantPool(shelf, SECRET, COMPRESSOR)
    ref = pool.keep("j1", "content")
    good = shelf.objects[ref.name]
    shelf.objects[ref.name] = [bytes(32), *good[1:]]

    def restore(name):
        pool.doubt(name)
        assert pool.lacks("j1")
        assert pool.keep("j1", "content") == ref

    read = Restored(Constants(shelf, SECRET, Cache(10_000)), restore)
    assert read.value(ref) == "content"
    assert not pool.lacks("j1")
