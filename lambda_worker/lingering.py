"""An executor that has nothing left to do lingers: for a moment, it can be given work without an invocation.

An invocation takes 3 ms on one machine and 10 to 20 ms in AWS, most of what a small task costs. So who retires waits
for *mail* at the storage tier: the assignment of another executor, which then runs here as if this
sandbox had been invoked with it, with a record, a lease and an attempt of its own.

Rules kept here:

* Results come first: an executor publishes, retires and begins to linger in one step of the store.
* Waiting is paid for, and it is paid from the time that Lambda gives the invocation. So the wait is short, and
  an invocation lingers only while it has nearly all of its time left: who comes by mail must not be cut short.
* Only the default class lingers: what larger ones cost by the second is more than what an invocation costs.
"""

from __future__ import annotations

from collections.abc import Callable

from lambda_worker.core.errors import StoreUnavailable
from lambda_worker.core.schedule import Assignment
from lambda_worker.payload import open_assignment, seal_assignment
from lambda_worker.ports import Lingering, Store

#: An invocation that has used more than this share of its time does not linger.
USED_SHARE_MAX = 0.05
#: Mail is kept twice for a moment, in the record and in the box. What is larger goes by invocation.
MAIL_BYTES_MAX = 64 * 1024


def mail_of(secret: bytes, assignment: Assignment) -> bytes:
    """Return what an executor that lingers is sent; empty if this assignment should be invoked.

    Examples
    --------
    >>> mail = mail_of(b"secret", Assignment("job", "a", 1, (0, 1)))
    >>> open_mail(b"secret", mail).starts
    [0, 1]
    >>> mail_of(b"secret", Assignment("job", "a", 1, (0, 1), function_class=1))
    b''
    """
    if assignment.function_class:
        return b""
    size = sum(map(len, assignment.segments.values())) + sum(
        len(each) for each in assignment.given.values() if isinstance(each, bytes)
    )
    return b"" if size > MAIL_BYTES_MAX else seal_assignment(secret, assignment)


def open_mail(secret: bytes, mail: bytes) -> Assignment:
    """Undo `mail_of`; raises `Tampered`.

    Who lingers was invoked by the same cluster: protocol and environment were compared then.
    """
    return open_assignment(secret, mail)


class Waiter:
    """One invocation that may linger.

    Parameters
    ----------
    invoked
        The assignment that it was invoked with, which names it.
    seconds
        How long it lingers each time; 0: not at all.
    seconds_left
        Tells how much of its time this invocation has left.

    Examples
    --------
    >>> clock = [900.0]
    >>> waiter = Waiter(Assignment("job", "a", 1, (0,)), 0.2, lambda: clock[0])
    >>> waiter.offer()
    Lingering(name='job/a/1', seconds=0.2)
    >>> clock[0] = 800.0
    >>> waiter.offer()
    Lingering(name='job/a/1', seconds=0.0)
    """

    def __init__(self, invoked: Assignment, seconds: float, seconds_left: Callable[[], float]) -> None:
        self.name = name_of(invoked)
        self._seconds = 0.0 if invoked.function_class else seconds
        self._seconds_left = seconds_left
        self._enough = seconds_left() * (1 - USED_SHARE_MAX)
        self.offered = False  #: whether the executor that ran last has retired, and lingers now

    def __repr__(self) -> str:
        return f"<Waiter {self.name}>"

    def offer(self) -> Lingering | None:
        """Return under which name and for how long this invocation lingers if it retires now."""
        if not self._seconds:
            return None
        young = self._seconds_left() - self._seconds >= self._enough
        return Lingering(self.name, self._seconds if young else 0.0)

    def wait(self, store: Store, secret: bytes) -> Assignment | None:
        """Linger, as has been offered; return what came by mail."""
        self.offered = False
        try:
            mail = store.take_mail(self.name, self._seconds)
        except StoreUnavailable:  # all was done here; whoever has sent mail finds out
            return None
        return open_mail(secret, mail) if mail else None


def name_of(invoked: Assignment) -> str:
    """Name the mailbox of an invocation."""
    return f"{invoked.job}/{invoked.executor}/{invoked.attempt}"
