"""What becomes of jobs when the metadata server has forgotten them: pure, what is pending in, verdicts out.

The store knows no job any more: who is at work in one is fenced at the next step, and nobody is told which tasks are
done. The ledger still knows which keys have values, and where. So each job begins again under another name, as far as
its keys are pending, and takes what is finished as given. A key that this happens to too often is given up: a server
that dies faster than a job ends would have it computed for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from dask_serverless.job_events import Key


@dataclass(frozen=True, slots=True)
class BeginAgain:
    """Have a job's pending keys planned and computed anew, as another job."""

    job: str
    keys: Sequence[Key]


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Fail a job: so often was the metadata server lost while one of its keys was pending."""

    job: str
    times: int


Verdict: TypeAlias = BeginAgain | GiveUp


class Oblivion:
    """Counts how often the metadata server has forgotten what was pending.

    Parameters
    ----------
    allowed_failures
        How often that may happen to a key.

    Examples
    --------
    >>> oblivion = Oblivion(allowed_failures=1)
    >>> oblivion.judge({"j1": ["x"], "j2": ["y"]})
    [BeginAgain(job='j2', keys=['y']), BeginAgain(job='j1', keys=['x'])]
    >>> oblivion.judge({"j3": ["x"], "j4": ["z"]})
    [BeginAgain(job='j4', keys=['z']), GiveUp(job='j3', times=2)]
    """

    def __init__(self, allowed_failures: int) -> None:
        self.allowed_failures = allowed_failures
        self._times: dict[Key, int] = {}

    def __repr__(self) -> str:
        return f"<Oblivion: {len(self._times)} keys were forgotten while they were pending>"

    def judge(self, pending: Mapping[str, Sequence[Key]]) -> list[Verdict]:
        """Decide what becomes of the jobs under way, given the pending keys of each, oldest job first.

        The newest job comes first: who waits for a key lets go of it before it is let go itself.
        """
        # Only what was pending at the last time as well counts on: of all others nothing is remembered.
        self._times = {key: self._times.get(key, 0) + 1 for keys in pending.values() for key in keys}
        verdicts: list[Verdict] = []
        for job, keys in reversed([*pending.items()]):
            times = max((self._times[key] for key in keys), default=0)
            verdicts.append(GiveUp(job, times) if times > self.allowed_failures else BeginAgain(job, list(keys)))
        return verdicts
