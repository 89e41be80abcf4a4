"""What was decided in a job, by the proxy and by all of its executors: why it was fast or slow. Pure.

Executors send their journals (`lambda_worker.core.journal`) when they retire; here they add up, job by job. The log
remembers a bounded number of jobs, and of each decision a bounded number of samples.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from lambda_worker.core.journal import DECISIONS

#: Jobs whose decisions are remembered, at most.
JOBS_MAX = 100
#: Samples of one kind of decision in one job, at most.
SAMPLES_MAX = 20
#: Keys of a job by which it is found, at most.
KEYS_MAX = 1_000
#: Samples of one kind that are printed.
_PRINTED = 3


@dataclass(frozen=True, slots=True)
class Sample:
    """One decision, and the numbers that led to it.

    Parameters
    ----------
    decision
        Its kind: one of `lambda_worker.core.journal.DECISIONS`, mostly.
    executor
        Who took it; "" is the proxy.
    count
        The how-manieth of its kind this was in its executor's report.
    numbers
        What led to it.
    """

    decision: str
    executor: str
    count: int
    numbers: Mapping[str, Any]

    def __str__(self) -> str:
        numbers = ", ".join(f"{name}={_shown(each)}" for name, each in self.numbers.items())
        return f"{self.executor or 'proxy'}: {numbers}"


@dataclass(slots=True)
class JobDecisions:
    """What was decided in one job; printed, it answers "why was it slow?".

    Parameters
    ----------
    job
        Its name.
    tasks
        How many tasks it has.
    counts
        How often each kind of decision was taken.
    samples
        Some of the decisions, with the numbers that led to them.
    observed
        By key prefix, what executors saw of tasks: how many, mean seconds, mean bytes (values below 64 KiB
        count as 0). Of short tasks only some are looked at, each of which counts for several.

    Examples
    --------
    >>> decisions = JobDecisions("j1", tasks=2)
    >>> decisions.take("1-0", {"keep": 9}, [("keep", 1, {"ready": 8, "seconds_per_task": 1e-5})])
    >>> print(decisions)
    job j1 of 2 tasks
    keep        9  ready tasks stayed: giving them away would have cost more than it saved
                   1-0: ready=8, seconds_per_task=1e-05
    """

    job: str
    tasks: int
    counts: dict[str, int] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    observed: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    _sampled: dict[str, int] = field(default_factory=dict, repr=False)

    def take(
        self, executor: str, counts: Mapping[str, int], samples: Iterable[tuple[str, int, Mapping[str, Any]]]
    ) -> None:
        """Add what one journal says."""
        for decision, count in counts.items():
            self.counts[decision] = self.counts.get(decision, 0) + count
        for decision, count, numbers in samples:
            sampled = self._sampled.get(decision, 0)
            if sampled < SAMPLES_MAX:
                self._sampled[decision] = sampled + 1
                self.samples.append(Sample(decision, executor, count, numbers))

    def observe(self, prefix: str, tasks: float, seconds: float, nbytes: float) -> None:
        """Add what one executor saw of the tasks of a prefix: how many, and the sums of all."""
        before, mean_seconds, mean_nbytes = self.observed.get(prefix, (0.0, 0.0, 0.0))
        total = before + tasks
        self.observed[prefix] = (
            total,
            (before * mean_seconds + seconds) / total,
            (before * mean_nbytes + nbytes) / total,
        )

    def copy(self) -> JobDecisions:
        """Return what is known by now, which does not change any more."""
        return JobDecisions(
            self.job, self.tasks, dict(self.counts), list(self.samples), dict(self.observed), dict(self._sampled)
        )

    def __str__(self) -> str:
        lines = [f"job {self.job} of {self.tasks} task{'s' if self.tasks != 1 else ''}"]
        known = [decision for decision in DECISIONS if decision in self.counts]
        for decision in [*known, *(each for each in self.counts if each not in DECISIONS)]:
            lines.append(f"{decision:<9}{self.counts[decision]:>4}  {DECISIONS.get(decision, '')}".rstrip())
            mine = [sample for sample in self.samples if sample.decision == decision]
            lines += [f"{'':15}{sample}" for sample in mine[:_PRINTED]]
            if len(mine) > _PRINTED:
                lines.append(f"{'':15}... {len(mine) - _PRINTED} more in .samples")
        for prefix, (tasks, seconds, nbytes) in self.observed.items():
            size = f", {nbytes / 2**20:.1f} MiB" if nbytes else ""
            lines.append(f"{prefix or '(other tasks)'}: {seconds:.3g} s{size} per task (seen: {tasks:.0f})")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


class DecisionLog:
    """The decisions of the last jobs.

    Examples
    --------
    >>> log = DecisionLog(jobs_max=2)
    >>> for job in ["j1", "j2", "j3"]:
    ...     log.begin(job, tasks=1, keys=[f"key of {job}"])
    >>> log.last.job, log.find(["key of j2"]).job
    ('j3', 'j2')
    >>> log.job("j1")
    Traceback (most recent call last):
        ...
    KeyError: "nothing is remembered of job 'j1': of the last 2 jobs there are 'j2' ... 'j3'"
    """

    def __init__(self, jobs_max: int = JOBS_MAX) -> None:
        self.jobs_max = jobs_max
        self._jobs: dict[str, JobDecisions] = {}
        self._keys: dict[str, frozenset[Hashable]] = {}

    def __repr__(self) -> str:
        return f"<DecisionLog of {len(self._jobs)} jobs>"

    def begin(self, job: str, tasks: int, keys: Collection[Hashable]) -> None:
        """Open the page of a job."""
        self._jobs[job] = JobDecisions(job, tasks)
        self._keys[job] = frozenset(key for _, key in zip(range(KEYS_MAX), keys, strict=False))
        if len(self._jobs) > self.jobs_max:
            oldest = next(iter(self._jobs))
            del self._jobs[oldest], self._keys[oldest]

    def get(self, job: str) -> JobDecisions | None:
        """Return the page of a job, if there is one."""
        return self._jobs.get(job)

    @property
    def last(self) -> JobDecisions:
        """The page of the job that was submitted last."""
        if not self._jobs:
            raise KeyError("no job has been submitted yet")
        return self._jobs[next(reversed(self._jobs))]

    def job(self, name: str) -> JobDecisions:
        """Return the page of a job; raises `KeyError` if there is none."""
        found = self._jobs.get(name)
        if found is None:
            raise KeyError(f"nothing is remembered of job {name!r}: {self._remembered()}")
        return found

    def find(self, keys: Sequence[Hashable]) -> JobDecisions:
        """Return the page of the last job that made one of these keys; raises `KeyError` if there is none."""
        wanted = set(keys)
        for name in reversed(self._jobs):
            if not wanted.isdisjoint(self._keys[name]):
                return self._jobs[name]
        shown = ", ".join(map(repr, keys[:3])) or "no keys"
        raise KeyError(f"no job is remembered that made {shown}: {self._remembered()}")

    def _remembered(self) -> str:
        names = [repr(name) for name in self._jobs]
        return f"of the last {self.jobs_max} jobs there are {' ... '.join([names[0], names[-1]]) if names else 'none'}"


def _shown(number: Any) -> str:
    return f"{number:.3g}" if isinstance(number, float) else str(number)
