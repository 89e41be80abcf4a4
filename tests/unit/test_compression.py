"""Compression: only where a sample says that it pays, and never to be seen."""

from __future__ import annotations

import pickle

import lz4.block
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambda_worker import compression
from lambda_worker.compression import FRAME_BYTES_MIN, Compressor, expand, expand_blob, put_together, take_apart
from lambda_worker.core.policy import Policy
from lambda_worker.core.wire import Ref, frames_nbytes
from lambda_worker.values import frames_to_value, value_to_frames
from lambda_worker.world import World

FAR, NEAR = Policy(bytes_per_second=50e6), Policy(bytes_per_second=1e9)
RANDOM = np.random.default_rng(0)


def clock(seconds_per_sample):
    """A clock for which each sample takes so long to compress."""
    times = iter(range(1_000_000))
    return lambda: next(times) * seconds_per_sample


def compressor(policy=FAR, seconds_per_sample=30e-6):
    return Compressor(policy, clock(seconds_per_sample))


VALUES = [
    np.zeros(100_000),
    RANDOM.integers(0, 50, 100_000),
    np.asfortranarray(np.ones((300, 300))),
    "a line of a log, and another\n" * 10_000,
    {"a": np.zeros(50_000), "b": [np.arange(10), "x" * 50_000], "c": b"y" * 50_000},
]


@pytest.mark.parametrize("value", VALUES)
def test_what_is_compressible_becomes_smaller_and_is_the_same_again(value):
    frames = value_to_frames(value)
    lean = compressor().shrink(frames)
    assert frames_nbytes(lean) < frames_nbytes(frames) * 0.6
    assert [bytes(frame) for frame in expand(lean)] == [bytes(frame) for frame in frames]
    assert pickle.dumps(frames_to_value(lean)) == pickle.dumps(frames_to_value(frames))


def test_arrays_are_writeable_if_they_were():
    fixed = np.zeros(50_000)
    fixed.flags.writeable = False
    one, other = frames_to_value(compressor().shrink(value_to_frames([np.zeros(50_000), fixed])))
    assert one.flags.writeable and not other.flags.writeable


@pytest.mark.parametrize("policy", [FAR, NEAR])
@pytest.mark.parametrize(
    "value", [RANDOM.random(100_000), RANDOM.bytes(800_000), np.zeros(FRAME_BYTES_MIN // 16), None]
)
def test_what_looks_random_or_is_small_stays_as_it_is(value, policy):
    frames = value_to_frames(value)
    assert compressor(policy).shrink(frames) == frames


SMOOTH = RANDOM.normal(size=100_000).cumsum()


@pytest.mark.parametrize("value", [SMOOTH, SMOOTH.astype("f4"), 10**18 + SMOOTH.astype("i8") * 1_000])
def test_numbers_near_each_other_are_taken_apart(value):
    """As they are, hardly anything repeats in them: only their signs and exponents are alike."""
    frames = value_to_frames(value)
    lean = compressor(seconds_per_sample=5e-6).shrink(frames)
    assert frames_nbytes(lean) < frames_nbytes(frames) * 0.85
    assert [bytes(frame) for frame in expand(lean)] == [bytes(frame) for frame in frames]
    # Taking apart and putting together costs time, too.
    assert compressor(seconds_per_sample=1e-3).shrink(frames) == frames


def test_what_repeats_as_it_is_stays_together():
    frames = value_to_frames(np.round(RANDOM.random(100_000) * 100, 2))
    lean = compressor(seconds_per_sample=5e-6).shrink(frames)
    apart = len(lz4.block.compress(take_apart(frames[2])))
    assert frames_nbytes(lean) < frames_nbytes(frames) * 0.65 < apart * 0.75


@given(st.binary(max_size=200), st.integers(1, 40))
def test_what_is_taken_apart_is_put_together(data, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "SHUFFLED_BYTES", size)
        apart = take_apart(data)
        assert sorted(apart) == sorted(data)
        put_together(apart)
    assert apart == data


def test_what_takes_longer_than_it_saves_stays_as_it_is():
    frames = value_to_frames(RANDOM.integers(0, 50, 100_000))
    assert compressor(NEAR).shrink(frames) == frames
    assert compressor(FAR, seconds_per_sample=1e-3).shrink(frames) == frames


def test_a_slow_way_to_the_store_is_found_out_by_using_it():
    """As configured it is fast; then ten megabytes take a second, each way."""
    frames = value_to_frames(RANDOM.integers(0, 50, 100_000))
    now = [0.0]

    class Store:
        def put(self, objects):
            now[0] += 1.0
            return [Ref(name, 0, frames_nbytes(each)) for name, each in objects]

        def get(self, refs):
            now[0] += 1.0
            return [[bytes(ref.nbytes)] for ref in refs]

    def sandbox():
        world = World(Store(), None, b"secret", NEAR, lambda: now[0], None)
        world.compressor = Compressor(NEAR, clock(30e-6), world.speed)
        assert world.compressor.shrink(frames) == frames
        return world

    reads, writes = sandbox(), sandbox()
    writes.put([("value", [bytes(10_000_000)])])
    reads.get([Ref("value", 0, 10_000_000)])
    for world in (reads, writes):
        assert frames_nbytes(world.compressor.shrink(frames)) < frames_nbytes(frames) * 0.6


def test_only_the_frames_that_pay_are_compressed():
    value = [np.zeros(100_000), RANDOM.random(100_000)]
    frames = value_to_frames(value)
    lean = compressor().shrink(frames)
    assert frames_nbytes(lean[2:3]) < 10_000 and lean[3] is frames[3]
    assert all((a == b).all() for a, b in zip(frames_to_value(lean), value, strict=True))


@given(st.lists(st.integers(0, 3), max_size=5), st.integers(0, 40_000))
def test_whatever_it_is_made_of(kinds, size):
    kind = [np.zeros(size), RANDOM.random(size), np.arange(size), RANDOM.bytes(size)]
    value = [kind[each] for each in kinds]
    frames = value_to_frames(value)
    lean = compressor(seconds_per_sample=1e-6).shrink(frames)
    assert [bytes(each) for each in expand(lean)] == [bytes(each) for each in frames]


@pytest.mark.parametrize("value", ["x" * 100_000, RANDOM.bytes(100_000), 1])
def test_blobs(value):
    blob = pickle.dumps(value)
    lean = compressor().shrink_blob(blob)
    assert (len(lean) < len(blob)) == isinstance(value, str)
    assert expand_blob(lean) == blob
