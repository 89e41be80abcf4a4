"""Virtual time: a queue of what is going to happen, and processes that wait in it. Pure.

A process is a generator. What it yields is a *wait*: a function that is given how to go on, and calls it some time
later. So a driver or a dispatcher reads from top to bottom, and everything runs on one thread in a known order: by
time, and at the same time in the order in which things were asked for.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, TypeAlias

#: What a process goes on with: a value, or an error to be raised in it.
Resume: TypeAlias = Callable[[Any, BaseException | None], None]
Wait: TypeAlias = Callable[[Resume], None]
Body: TypeAlias = Generator[Wait, Any, Any]

#: How much of the story is kept for whoever has to understand a failure.
STORY_LINES_MAX = 4_000


class Trace:
    """The story of a run: a digest of all of it, and its last lines.

    Examples
    --------
    >>> trace = Trace()
    >>> trace.note(0.25, "a", "runs 3")
    >>> trace.lines[-1]
    '    0.250000 a: runs 3'
    >>> trace.digest == Trace().digest
    False
    """

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=STORY_LINES_MAX)
        self._hash = hashlib.blake2b(digest_size=8)

    def note(self, now: float, who: str, what: str) -> None:
        """Tell what happens now."""
        line = f"{now:12.6f} {who}: {what}"
        self.lines.append(line)
        self._hash.update(line.encode())

    @property
    def digest(self) -> str:
        """What two runs share only if they are the same."""
        return self._hash.hexdigest()


class Timeline:
    """A clock, and what is going to happen.

    Examples
    --------
    >>> timeline = Timeline()
    >>> said = []
    >>> def process():
    ...     yield timeline.sleep(2.0)
    ...     said.append(timeline.now)
    >>> timeline.spawn(process())
    >>> timeline.after(1.0, said.append, "first")
    >>> while timeline.step():
    ...     pass
    >>> said
    ['first', 2.0]
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.steps = 0
        self._queue: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._asked = 0

    def __repr__(self) -> str:
        return f"<Timeline {self.now:.3f} s, {len(self._queue)} waiting>"

    @property
    def next(self) -> float:
        """When something happens next; infinity: never."""
        return self._queue[0][0] if self._queue else float("inf")

    def after(self, seconds: float, call: Callable[..., object], *args: Any) -> None:
        """Have something happen after some seconds."""
        self._asked += 1
        heapq.heappush(self._queue, (self.now + max(0.0, seconds), self._asked, call, args))

    def step(self) -> bool:
        """Let the next thing happen; tell whether there was one."""
        if not self._queue:
            return False
        self.now, _, call, args = heapq.heappop(self._queue)
        self.steps += 1
        call(*args)
        return True

    # -- processes ------------------------------------------------------------------------------

    def sleep(self, seconds: float) -> Wait:
        """Wait for some seconds."""
        return lambda resume: self.after(seconds, resume, None, None)

    def spawn(self, body: Body, alive: Callable[[], bool] = lambda: True) -> None:
        """Run a process, for as long as who runs it is alive. It begins at once."""

        def resume(value: Any = None, error: BaseException | None = None) -> None:
            if not alive():
                body.close()
                return
            try:
                wait = body.send(value) if error is None else body.throw(error)
            except StopIteration:
                return
            wait(resume)

        resume()


class Signal:
    """Something that happens once; processes wait for it by yielding `wait`.

    Examples
    --------
    >>> signal, heard = Signal(), []
    >>> signal.wait(lambda value, error: heard.append(value))
    >>> signal.set("done")
    >>> signal.set("again")
    >>> heard
    ['done']
    """

    def __init__(self) -> None:
        self.happened = False
        self._outcome: tuple[Any, BaseException | None] = (None, None)
        self._waiting: list[Resume] = []

    def set(self, value: Any = None, error: BaseException | None = None) -> None:
        """Let it happen. Only the first time counts."""
        if self.happened:
            return
        self.happened = True
        self._outcome = (value, error)
        waiting, self._waiting = self._waiting, []
        for resume in waiting:
            resume(value, error)

    def wait(self, resume: Resume) -> None:
        """Go on when it has happened."""
        if self.happened:
            resume(*self._outcome)
        else:
            self._waiting.append(resume)
