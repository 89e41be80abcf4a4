"""What one executor has of its job: bodies, values, errors, and where each value is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lambda_worker.cache import Cache
from lambda_worker.core.errors import Tampered, ValueLost
from lambda_worker.core.instructions import Forget
from lambda_worker.core.wire import Location, Ref
from lambda_worker.task_runner import Bodies, Constants, describe_error, key_of, large_nbytes, refers_to_scheduler

_ABSENT = object()


class Belongings:
    """What an executor has at hand, by the numbers of tasks.

    Who runs tasks and who fetches inputs put things here before the executor hears of them; the publisher
    takes them from here. What is needed no longer is forgotten when the executor says so.

    Parameters
    ----------
    job
        Whose tasks these are.
    given
        Where the values are that the executor starts with.
    cache
        Takes in stored values when they are forgotten.
    constants
        Makes stored constants.
    """

    def __init__(self, job: str, given: Mapping[int, Location], cache: Cache, constants: Constants) -> None:
        self.job = job
        self._cache = cache
        self.bodies = Bodies(constants)
        self.values: dict[int, Any] = {}
        self.errors: dict[int, bytes] = {}
        self.unreadable: dict[int, Exception] = {}  # inputs, and why
        self.lost: dict[int, Ref] = {}  # inputs, and where they were
        self.missing: dict[int, str] = {}  # modules
        self.durations: dict[int, tuple[float, float]] = {}
        self.locations: dict[int, Location] = dict(given)

    def __repr__(self) -> str:
        return f"<Belongings of {self.job}: {len(self.values)} values>"

    def forget(self, forget: Forget) -> None:
        """Let go of what nobody here needs any more."""
        for task in forget.tasks:
            self._forget(task)
        for segment in forget.segments:
            self.bodies.forget(segment)

    def clear(self) -> None:
        """Let go of everything: the executor has ended."""
        for task in list(self.values):
            self._forget(task)

    def _forget(self, task: int) -> None:
        value = self.values.pop(task, _ABSENT)
        self.unreadable.pop(task, None)
        self.durations.pop(task, None)
        # Under the name of what was lost: others here may still be told that it is there.
        location = self.lost.pop(task, None) or self.locations.pop(task, None)
        self.locations.pop(task, None)
        if isinstance(location, Ref) and value is not _ABSENT and not refers_to_scheduler(value):
            self._cache.put(location.name, value, max(location.nbytes, large_nbytes(value)))  # it may be compressed

    def remade(self, task: int) -> None:
        """Note that a task has a value: if one was lost, this takes its place, for whoever is told of it from here."""
        if task in self.lost:
            self.unreadable.pop(task, None)
            self.locations.pop(task, None)

    def why_unreadable(self, inputs: Iterable[int]) -> Exception | None:
        """Return why one of these inputs can never be read; None if all are here.

        Each task that needs it errs, in its own name. An input that is here can have failed to be read all the same:
        another thread began to read it before it was made again, and heard only afterwards that it was lost.
        """
        if not self.unreadable:
            return None
        return next(
            (self.unreadable[each] for each in inputs if each in self.unreadable and each not in self.values), None
        )

    def is_external(self, task: int) -> bool:
        """Tell whether a task's value was made outside this job."""
        try:
            return self.bodies.get(task) is None
        except Exception:  # it cannot be unpickled: so there is one
            return False

    def key(self, task: int) -> Any:
        """Return the key of a task; something to say in its place if that cannot be told."""
        try:
            return key_of(self.bodies.get(task))
        except Exception:  # its body cannot be unpickled: the number has to do
            return f"#{task} of {self.job}"

    def error(self, task: int, error: BaseException) -> bytes:
        """Encode an exception as that of a task."""
        if isinstance(error, ValueLost | Tampered):
            error = type(error)(f"an input of task {self.key(task)!r} cannot be read: {error}")
        return describe_error(error, self.key(task), self.durations.get(task))
