"""Which executors came by mail, and to whom: pure bookkeeping for `launcher`.

Lambda answers for an invocation, not for mail. If who was sent mail dies, what Lambda says of its
invocation is news of the executor that ran there last; if it was dead already, the mail is still in its
box after a moment, and is taken back.
"""

from __future__ import annotations


class Postings:
    """Mail that was sent to executors that linger, until who came by it has retired.

    Examples
    --------
    >>> postings = Postings()
    >>> postings.sent("job-1/a/1", "job-2", "b")
    >>> postings.to("job-1/a/1"), ("job-2", "b") in postings
    ([('job-2', 'b')], True)
    >>> postings.ended("job-2", "b")
    >>> postings.to("job-1/a/1")
    []
    """

    def __init__(self) -> None:
        self._recipients: dict[tuple[str, str], str] = {}

    def __repr__(self) -> str:
        return f"<Postings: {len(self._recipients)}>"

    def __contains__(self, executor: tuple[str, str]) -> bool:
        return executor in self._recipients

    def sent(self, recipient: str, job: str, executor: str) -> None:
        """An executor's assignment was sent to `recipient`."""
        self._recipients[job, executor] = recipient

    def ended(self, job: str, executor: str) -> None:
        """An executor has retired, is lost, or is invoked after all."""
        self._recipients.pop((job, executor), None)

    def forget(self, job: str) -> None:
        """A job is over, with all its executors."""
        for each in [each for each in self._recipients if each[0] == job]:
            del self._recipients[each]

    def to(self, recipient: str) -> list[tuple[str, str]]:
        """Return which executors came by mail to `recipient`, and may still be there."""
        return [each for each, name in self._recipients.items() if name == recipient]
