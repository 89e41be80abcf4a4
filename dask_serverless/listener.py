"""Hears what executors say. Nothing is believed before its seal was checked."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from dask_serverless.job_events import Delegating, Done, Erred, Result, Retired
from lambda_worker.core.errors import PlatformError, StoreForgot, Tampered
from lambda_worker.core.wire import events_name, location_from_wire, unpack, unseal
from lambda_worker.ports import JobStore

logger = logging.getLogger("dask_serverless.listener")

LISTEN_SECONDS = 1.0
#: The store is closed before the thread is waited for, which ends its call; one that hangs is a daemon.
JOIN_SECONDS_MAX = 10.0
#: A visit to the storage tier that is over so soon found events there. It costs as much as hundreds of them do, so the
#: next ones are given some time to come together,
BUSY_SECONDS = 0.002
PAUSE_SECONDS, PAUSE_SECONDS_MAX = 0.004, 0.008
#: as long as each visit then brings so many.
TOGETHER = 4


class Listener:
    """A thread that listens at the storage tier, and passes on what it hears on the event loop.

    Parameters
    ----------
    store
        Where executors publish events.
    secret
        What events are sealed with.
    closing
        Set when nobody wants to hear any more; closing the store wakes the thread up.
    hear
        Takes events, many at once, in the order of each executor.
    fail
        Takes the error when the storage tier is gone; nothing is heard after that.
    note
        Takes what was heard, still sealed, before the store forgets it.
    forget
        Is called when the metadata server has lost what it knew, and was begun with anew.
    known
        Whether it was begun with before this.
    """

    def __init__(
        self,
        store: JobStore,
        secret: bytes,
        closing: threading.Event,
        hear: Callable[[list[Any]], None],
        fail: Callable[[PlatformError], None],
        note: Callable[[list[tuple[str, str, int, bytes]]], None] = lambda heard: None,
        forget: Callable[[], None] = lambda: None,
        known: bool = False,
    ) -> None:
        self._store = store
        self._secret = secret
        self._closing = closing
        self._hear = hear
        self._fail = fail
        self._note = note
        self._forget = forget
        self._known = known
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to listen; to be called on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._listen, name="serverless-events", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the thread to end, if it has ever begun."""
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS_MAX)

    def _listen(self) -> None:
        begun = False
        pause = 0.0
        while not self._closing.wait(pause):
            try:
                if not begun:
                    begun = True
                    if not self._store.begin() and self._known:
                        self._on_loop(self._forget)
                    self._known = True
                began = time.monotonic()
                heard = self._store.listen(LISTEN_SECONDS)
                pause = next_pause(pause, time.monotonic() - began, len(heard))
                self._note(heard)
            except StoreForgot:  # another server stands in its place: begin with that one
                begun = False
                continue
            except PlatformError as error:
                self._on_loop(self._fail, error)
                return
            events = []
            for each in heard:
                try:
                    events += decode(self._secret, *each)
                except Exception:  # one bad event must not cost the others
                    logger.exception("an event of %s/%s could not be read", each[0], each[1])
            if events:
                self._on_loop(self._hear, events)

    def _on_loop(self, call: Callable[..., object], *args: Any) -> None:
        assert self._loop is not None
        if not self._closing.is_set():
            try:
                self._loop.call_soon_threadsafe(call, *args)
            except RuntimeError:  # the loop is closed: so are we
                self._closing.set()


def next_pause(pause: float, seconds: float, heard: int) -> float:
    """Decide how long to wait before the next visit.

    Parameters
    ----------
    pause
        How long was waited before the last one.
    seconds, heard
        How long that took, and how many events it brought.

    Examples
    --------
    Events came at once; then five of them while nobody was there, and then only one:

    >>> first = next_pause(0.0, seconds=0.001, heard=1)
    >>> first, next_pause(first, seconds=0.001, heard=5), next_pause(first, seconds=0.001, heard=1)
    (0.004, 0.008, 0.0)

    Who has to wait for an event does not miss the next one:

    >>> next_pause(0.0, seconds=0.1, heard=1)
    0.0
    """
    if seconds >= BUSY_SECONDS or (pause and heard < TOGETHER):
        return 0.0
    return min(2 * pause, PAUSE_SECONDS_MAX) or PAUSE_SECONDS


def decode(secret: bytes, job: str, executor: str, attempt: int, blob: bytes) -> list[Any]:
    """Turn what an executor published into events of the ledger, and tuples for what is not for it.

    Examples
    --------
    >>> decode(b"secret", "j1", "a", 1, b"")
    [Retired(job='j1', executor='a')]
    """
    if not blob:
        return [Retired(job, executor)]
    try:
        _, said = unpack(unseal(secret, events_name(job, executor, attempt), blob))
    except Tampered as error:
        logger.error("events of %s/%s were refused: %s", job, executor, error)
        return []
    events: list[Any] = []
    for kind, content in said:
        if kind == "done":
            events.append(Done(job, [Result(task, location_from_wire(where), *rest) for task, where, *rest in content]))
        elif kind == "erred":
            events.extend(Erred(job, task, error) for task, error in content)
        elif kind == "missing":
            events.extend(("missing", job, task, module) for task, module in content)
        elif kind == "delegating":
            events.append(Delegating(job, content))
        elif kind == "posted":
            events.append((kind, job, content))
        elif kind in ("seceded", "rejoined"):
            events.append((kind, job, executor))
        elif kind in ("count", "lacking"):
            events.append((kind, job, content))
        elif kind == "report":
            events.append((kind, job, executor, content))
        elif kind == "lost":
            events.append((kind, job, [(task, where and location_from_wire(where)) for task, where in content]))
        elif kind in ("stack", "sandbox"):
            events.append((kind, job, executor, *content))
        else:
            events.append((kind, content))
    return events
