"""Keys that are held under names of our own, as variables and queues hold theirs: what somebody wants is kept.

Rules kept here:

* A holder is a client of the scheduler that nobody listens for. It holds keys until it is dropped.
* One that waits for somebody to *ask* for its keys gives each up as soon as a client wants it: from then on that one
  holds it, and may cancel it. What nobody asks for in time is let go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any, Protocol

from distributed import Scheduler
from distributed.scheduler import ClientState


class Timer(Protocol):
    """What comes of `asyncio.AbstractEventLoop.call_later`."""

    def cancel(self) -> None:
        """Do not call."""


def _later(seconds: float, call: Callable[[str], None], name: str) -> Timer:
    return asyncio.get_running_loop().call_later(seconds, call, name)


class Holders:
    """The holders in one scheduler.

    Parameters
    ----------
    scheduler
        Whose keys they hold.
    later
        Calls a function after some seconds, unless it is cancelled before.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> Holders(SimpleNamespace(clients={}))
    <Holders: none waits for clients>
    """

    def __init__(self, scheduler: Scheduler, later: Callable[..., Timer] = _later) -> None:
        self._scheduler = scheduler
        self._later = later
        self._ends: dict[str, Timer] = {}  # of those that wait for clients

    def __repr__(self) -> str:
        return f"<Holders: {', '.join(self._ends) or 'none waits'}{' wait' if self._ends else ''} for clients>"

    def hold(self, keys: Collection[Any], holder: str) -> None:
        """Keep keys alive under a name of our own."""
        found = [ts for key in keys if (ts := self._scheduler.tasks.get(key)) is not None]
        if not found:
            return
        # Not by `client_desires_keys`: it tells everybody who wants a key, also whose connection has just ended.
        mine = self._scheduler.clients.setdefault(holder, ClientState(holder))
        for ts in found:
            ts.who_wants = ts.who_wants or set()
            ts.who_wants.add(mine)
            mine.wants_what.add(ts)

    def wait_for_clients(self, holder: str, seconds: float) -> None:
        """From now on give up each key that a client asks for, and all of them after a while."""
        self._ends[holder] = self._later(seconds, self.drop, holder)

    def drop(self, holder: str) -> None:
        """Let go what is kept alive under a name of our own."""
        if (end := self._ends.pop(holder, None)) is not None:
            end.cancel()
        held = self._scheduler.clients.get(holder)
        if held is not None:
            self._scheduler.client_releases_keys([ts.key for ts in held.wants_what], holder)
            del self._scheduler.clients[holder]

    def hand_over(self, keys: Collection[Any]) -> None:
        """A client holds these keys now: nobody has to wait for one that asks for them."""
        for holder in list(self._ends):
            held = self._scheduler.clients.get(holder)
            if held is None:
                continue
            mine = [ts.key for key in keys if (ts := self._scheduler.tasks.get(key)) in held.wants_what]
            if mine:
                self._scheduler.client_releases_keys(mine, holder)
            if not held.wants_what:  # also after a restart, which takes everybody's keys
                self.drop(holder)

    def close(self) -> None:
        """Wait no longer."""
        for end in self._ends.values():
            end.cancel()
        self._ends.clear()
