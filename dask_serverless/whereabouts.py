"""Where values are at hand: in the sandbox that wrote them, as long as it lingers. Pure.

An executor that lingers has what it wrote lately in its cache. The next job that reads it, the next step of an
iteration for example, had better be sent there. Sandboxes stay, while the names under which they linger change with
each invocation: so executors say in which sandbox they were.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
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
        self._mailboxes: OrderedDict[str, str] = OrderedDict()  # of sandboxes that linger
        self._mails: dict[str, dict[str, str]] = {}  # by job, where its executors came by mail
        self._busy: dict[str, tuple[str, str]] = {}  # mailboxes, and which job's executor is at work there

    def __repr__(self) -> str:
        return f"<Whereabouts of {len(self._sandboxes)} executors in {len(self._mailboxes)} sandboxes>"

    def retired(self, job: str, executor: str, sandbox: str, mailbox: str) -> None:
        """An executor has ended in a sandbox, which lingers now (under that name), or does not ("")."""
        _remember(self._sandboxes, (job, executor), sandbox)
        _remember(self._mailboxes, sandbox, mailbox)

    def posted(self, mailbox: str, job: str, executor: str) -> None:
        """Who lingers there was sent an executor, and is at work until that ends."""
        self._mails.setdefault(job, {})[executor] = mailbox
        self._busy[mailbox] = (job, executor)

    def ended(self, job: str, executor: str | None = None) -> None:
        """An executor has ended, or all of a job's have."""
        mails = self._mails.get(job, {})
        for name in [*mails] if executor is None else [executor]:
            mailbox = mails.pop(name, "")
            if self._busy.get(mailbox) == (job, name):
                del self._busy[mailbox]
        if not mails:
            self._mails.pop(job, None)

    def died(self, mailbox: str) -> None:
        """Nobody takes mail there any more, and what was there is gone."""
        self._busy.pop(mailbox, None)
        for sandbox, name in self._mailboxes.items():
            if name == mailbox:
                self._mailboxes[sandbox] = ""

    def spot(self, value: Ref, is_live: Callable[[str, str], bool]) -> tuple[str, bool]:
        """Return where a value most likely is at hand ("": nowhere), and whether somebody is at work there.

        Parameters
        ----------
        value
            Where it is stored.
        is_live
            Tells whether an executor, of a job, may still be at work.
        """
        job, executor = _writer(value)
        sandbox = self._sandboxes.get((job, executor))
        if sandbox is None:  # its writer has not ended: it has no other name for us
            return (f"{job}/{executor}", True) if is_live(job, executor) else ("", False)
        mailbox = self._mailboxes.get(sandbox)
        return (sandbox, mailbox in self._busy) if mailbox else ("", False)

    def best(self, assignment: Assignment) -> str:
        """Name the mailbox of who most likely has the most of what an assignment is given; "" if nobody has any."""
        nbytes: dict[str, int] = {}
        for location in assignment.given.values():
            if not isinstance(location, Ref):
                continue
            if mailbox := self._mailboxes.get(self._sandboxes.get(_writer(location), "")):
                nbytes[mailbox] = nbytes.get(mailbox, 0) + location.nbytes
        return max(nbytes, key=nbytes.__getitem__) if nbytes else ""


def _writer(value: Ref) -> tuple[str, str]:
    """Name the job and the executor that wrote a value."""
    job, _, writer = value.name.partition("/")
    _, _, writer = writer.partition("/")  # its task
    executor, _, _ = writer.rpartition("/")  # its attempt
    return job, executor


def _remember(known: OrderedDict[Any, str], name: Any, value: str) -> None:
    known[name] = value
    known.move_to_end(name)
    if len(known) > EXECUTORS_MAX:
        known.popitem(last=False)
