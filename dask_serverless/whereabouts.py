"""Where values are at hand: in the sandbox that wrote them, as long as it lingers. Pure.

An executor that lingers has what it wrote lately in its cache. The next job that reads it, the next step of an
iteration for example, had better be sent there. Sandboxes stay, while the names under which they linger change with
each invocation: so executors say in which sandbox they were.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from lambda_worker.core.schedule import Assignment
from lambda_worker.core.wire import Ref

#: Executors and sandboxes that are remembered: the newest.
EXECUTORS_MAX = 10_000


class Whereabouts:
    """Knows in which sandboxes executors were, and where these take mail.

    Examples
    --------
    What executor b of job 2 wrote is in sandbox S, which lingers by now under the name of its last invocation:

    >>> whereabouts = Whereabouts()
    >>> whereabouts.retired("job-2", "b", "S", "job-1/a/1")
    >>> whereabouts.retired("job-3", "c", "S", "job-3/c/1")
    >>> given = {0: Ref("job-2/7/b/1", 0, 1_000), 1: Ref("job-1/3/z/1", 0, 10), 2: b"travels along"}
    >>> whereabouts.best(Assignment("job-4", "d", 1, starts=[0, 1, 2], given=given))
    'job-3/c/1'
    """

    def __init__(self) -> None:
        self._sandboxes: OrderedDict[tuple[str, str], str] = OrderedDict()  # of executors, by job and name
        self._mailboxes: OrderedDict[str, str] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Whereabouts of {len(self._sandboxes)} executors in {len(self._mailboxes)} sandboxes>"

    def retired(self, job: str, executor: str, sandbox: str, mailbox: str) -> None:
        """An executor has ended in a sandbox, which lingers now (under that name), or does not ("")."""
        _remember(self._sandboxes, (job, executor), sandbox)
        _remember(self._mailboxes, sandbox, mailbox)

    def best(self, assignment: Assignment) -> str:
        """Name the mailbox of who most likely has the most of what an assignment is given; "" if nobody has any."""
        nbytes: dict[str, int] = {}
        for location in assignment.given.values():
            if not isinstance(location, Ref):
                continue
            job, _, writer = location.name.partition("/")
            _, _, writer = writer.partition("/")  # its task
            executor, _, _ = writer.rpartition("/")  # its attempt
            if mailbox := self._mailboxes.get(self._sandboxes.get((job, executor), "")):
                nbytes[mailbox] = nbytes.get(mailbox, 0) + location.nbytes
        return max(nbytes, key=nbytes.__getitem__) if nbytes else ""


def _remember(known: OrderedDict[Any, str], name: Any, value: str) -> None:
    known[name] = value
    known.move_to_end(name)
    if len(known) > EXECUTORS_MAX:
        known.popitem(last=False)
