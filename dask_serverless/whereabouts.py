"""Where values are at hand: in the sandbox that wrote them, as long as it lingers. Pure.

An executor that lingers has what it wrote lately in its cache. The next job that reads it, the next step of an
iteration for example, had better be sent there.
"""

from __future__ import annotations

from collections import OrderedDict

from lambda_worker.core.schedule import Assignment
from lambda_worker.core.wire import Ref

#: Executors that came by mail and are remembered: the newest.
EXECUTORS_MAX = 10_000


class Whereabouts:
    """Knows under which name the sandbox of an executor lingers.

    Examples
    --------
    Executor b of job 2 was sent to the sandbox that was invoked for a of job 1. What b wrote is there:

    >>> whereabouts = Whereabouts()
    >>> whereabouts.came("job-1/a/1", "job-2", "b")
    >>> given = {0: Ref("job-2/7/b/1", 0, 1_000), 1: Ref("job-1/3/c/1", 0, 10), 2: b"travels along"}
    >>> whereabouts.best(Assignment("job-3", "d", 1, starts=[0, 1, 2], given=given))
    'job-1/a/1'
    """

    def __init__(self) -> None:
        self._mailboxes: OrderedDict[tuple[str, str], str] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Whereabouts of {len(self._mailboxes)} executors>"

    def came(self, recipient: str, job: str, executor: str) -> None:
        """An executor came by mail to who lingered under this name."""
        self._mailboxes[job, executor] = recipient
        if len(self._mailboxes) > EXECUTORS_MAX:
            self._mailboxes.popitem(last=False)

    def best(self, assignment: Assignment) -> str:
        """Name who most likely has the most of what an assignment is given; "" if nobody has any of it."""
        nbytes: dict[str, int] = {}
        for location in assignment.given.values():
            if not isinstance(location, Ref):
                continue
            job, _, writer = location.name.partition("/")
            _, _, writer = writer.partition("/")  # its task
            executor, _, _ = writer.rpartition("/")  # its attempt
            if executor:
                # Who did not come by mail was invoked, and lingers under its own name.
                name = self._mailboxes.get((job, executor), f"{job}/{writer}")
                nbytes[name] = nbytes.get(name, 0) + location.nbytes
        return max(nbytes, key=nbytes.__getitem__) if nbytes else ""
