"""What an exception looks like at the client: as under LocalCluster, the user's frames and nothing of ours."""

from __future__ import annotations

import asyncio
import traceback

import pytest
from dask import delayed

SECONDS_MAX = 20


def frames(future):
    return [frame.name for frame in traceback.extract_tb(future.traceback(timeout=SECONDS_MAX))]


def boom():
    raise LookupError("boom")


def outer():
    boom()


async def outer_async():
    await asyncio.sleep(0)
    boom()


def test_frames_begin_at_the_users(client):
    assert frames(client.submit(outer, pure=False)) == ["outer", "boom"]
    assert frames(client.compute(delayed(outer, pure=False)())) == ["outer", "boom"]
    assert frames(client.submit(outer_async, pure=False)) == ["outer_async", "boom"]


def test_a_builtin_has_no_frames_of_its_own_nor_of_ours(client):
    future = client.submit(int, "no number", pure=False)
    assert future.traceback(timeout=SECONDS_MAX) is None
    with pytest.raises(ValueError, match="no number") as caught:
        future.result(timeout=SECONDS_MAX)
    assert not [
        frame for frame in traceback.extract_tb(caught.value.__traceback__) if "lambda_worker" in frame.filename
    ]


def test_what_led_to_an_exception_comes_with_it(client):
    def chained():
        try:
            boom()
        except LookupError as error:
            error.add_note("noted")
            raise ValueError("at last") from error

    error = client.submit(chained, pure=False).exception(timeout=SECONDS_MAX)
    assert isinstance(error, ValueError) and isinstance(error.__cause__, LookupError)
    assert error.__cause__.__notes__ == ["noted"]
    assert [frame.name for frame in traceback.extract_tb(error.__cause__.__traceback__)] == ["chained", "boom"]


def test_a_group_keeps_its_members(client):
    def several():
        raise ExceptionGroup("several", [ValueError(1), LookupError(2)])

    error = client.submit(several, pure=False).exception(timeout=SECONDS_MAX)
    assert [repr(each) for each in error.exceptions] == ["ValueError(1)", "LookupError(2)"]


def test_endless_recursion_is_heard_of(client):
    """Under LocalCluster the client never is: its own unpickling of such a traceback goes too deep."""

    def recurse(depth):
        return recurse(depth + 1)

    with pytest.raises(RecursionError):
        client.submit(recurse, 0, pure=False).result(timeout=SECONDS_MAX)


def test_a_very_long_message_is_cut(client):
    def shout():
        raise ValueError("x" * 5_000_000)

    error = client.submit(shout, pure=False).exception(timeout=SECONDS_MAX)
    assert isinstance(error, ValueError) and 10_000 < len(str(error)) < 11_000


@pytest.mark.fault(15)
def test_an_exception_whose_pickling_fails_is_told_in_words(client):
    class Stubborn(Exception):
        def __reduce__(self):
            raise RuntimeError("I stay")

    def raise_it():
        raise Stubborn("hello")

    with pytest.raises(Exception, match=r"Stubborn\('hello'\)"):
        client.submit(raise_it, pure=False).result(timeout=SECONDS_MAX)
