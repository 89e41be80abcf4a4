"""What the scheduler and the fleet worker hand over: in order, never within a call, never all at once."""

from __future__ import annotations

import asyncio

from dask_serverless.short_cut import TURN_MESSAGES_MAX, Hatch, ShortCut


class Stream:
    """Stands for distributed's batched stream."""

    def __init__(self):
        self.sent = []
        self.gone = False

    def send(self, *messages):
        self.sent += messages

    def closed(self):
        return self.gone


def ask(key):
    return {"op": "compute-task", "key": key, "run_id": 1}


def test_what_is_handed_over_arrives_in_order_at_the_next_turn():
    async def story():
        taken = []
        hatch = Hatch(taken.append)
        for message in range(3):
            hatch.put(message)
        assert taken == []
        await asyncio.sleep(0)
        return taken

    assert asyncio.run(story()) == [0, 1, 2]


def test_who_answers_while_being_handed_something_is_heard_afterwards():
    async def story():
        taken = []

        def take(message):
            taken.append(("begun", message))
            if message < 2:
                hatch.put(message + 1)
            taken.append(("ended", message))

        hatch = Hatch(take)
        hatch.put(0)
        for _ in range(4):
            await asyncio.sleep(0)
        return taken

    assert asyncio.run(story()) == [(what, message) for message in range(3) for what in ("begun", "ended")]


def test_others_get_a_turn_between_many_messages():
    async def story():
        taken = []
        hatch = Hatch(taken.append)
        for message in range(2 * TURN_MESSAGES_MAX):
            hatch.put(message)
        await asyncio.sleep(0)
        assert len(taken) == TURN_MESSAGES_MAX
        await asyncio.sleep(0)
        return taken

    assert asyncio.run(story()) == list(range(2 * TURN_MESSAGES_MAX))


def test_a_message_that_cannot_be_handled_costs_no_other(caplog):
    async def story():
        taken = []

        def take(message):
            if message == 1:
                raise RuntimeError("a bug")
            taken.append(message)

        hatch = Hatch(take)
        for message in range(3):
            hatch.put(message)
        await asyncio.sleep(0)
        return taken

    assert asyncio.run(story()) == [0, 2]
    assert "a message could not be handled: 1" in caplog.text


def test_only_requests_for_stubs_take_the_short_cut():
    async def story():
        stream, taken = Stream(), []
        short_cut = ShortCut(stream, {"stub"}.__contains__, taken.append)
        others = [{"op": "free-keys", "keys": ["stub"]}, ask("pinned")]
        short_cut.send(others[0], ask("stub"), others[1])
        await asyncio.sleep(0)
        assert taken == [ask("stub")]
        assert stream.sent == others
        assert not short_cut.closed()  # whatever else is asked of a stream, the stream answers
        stream.gone = True
        short_cut.send(ask("stub"))
        return stream.sent

    assert asyncio.run(story())[-1] == ask("stub")
