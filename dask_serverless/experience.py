"""What a cluster has learned from the jobs that it ran, and what it decides by that when a job begins. Pure.

Here meet what is known of key prefixes (`statistics`), what each job's prefixes are, and the log of decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dask_serverless.beginnings import Beginnings
from dask_serverless.decisions import DecisionLog
from dask_serverless.plan.prefixes import Prefixes
from dask_serverless.plan.sharing import Estimate, Sharing, worth_starting
from dask_serverless.statistics import Expectation, Learned, Statistics
from lambda_worker.core.policy import TASK_SECONDS, Policy, first_groups

#: An executor of a job with fewer tasks has little to decide: it is not told what they are expected to take.
TOLD_TASKS_MIN = 16
#: Jobs whose executors may still have something to report, at most.
REPORTING_JOBS_MAX = 1_000

_EXECUTOR = Policy()  # what the proxy weighs as executors do, unless something else is said


class Experience:
    """What was learned, and the decisions of the jobs from which it was.

    Parameters
    ----------
    policy
        The numbers decisions are made from.

    Examples
    --------
    Nothing is known of the first job, so each of its tasks may be long. The second one is known to be short:

    >>> experience = Experience()
    >>> experience.begin("j1", Prefixes(["inc"], [64], [[]]))
    >>> experience.share_out("j1", starts=64, all_starts=64, places=8).groups
    8
    >>> experience.take("j1", "1-0", [{0: [64, 64e-5, 64e-10, 0, 0, 0]}, {"began": 1}, [], 0.1], now=5.0)
    >>> experience.log.begin("j2", tasks=64, keys=["key"])
    >>> experience.begin("j2", Prefixes(["inc"], [64], [[]]))
    >>> experience.share_out("j2", starts=64, all_starts=64, places=8).groups
    1
    >>> print(experience.log.last)
    job j2 of 64 tasks
    first       1  how many executors the job began with
                   proxy: executors=1, starts=64, places=8, seconds=0.00064, unknown_tasks=0, start_seconds=0
    """

    def __init__(self, policy: Policy = _EXECUTOR) -> None:
        self.policy = policy
        self.statistics = Statistics()
        self.beginnings = Beginnings()
        self.log = DecisionLog()
        self._prefixes: dict[str, Prefixes] = {}  # by job

    def __repr__(self) -> str:
        return f"<Experience: {self.statistics!r}, {self.log!r}>"

    def knows(self, job: str) -> bool:
        """Tell whether a job has been noted."""
        return job in self._prefixes

    def begin(self, job: str, prefixes: Prefixes) -> None:
        """Take in the prefixes of a job whose first executors are about to be started."""
        self._prefixes[job] = prefixes
        if len(self._prefixes) > REPORTING_JOBS_MAX:
            del self._prefixes[next(iter(self._prefixes))]

    def share_out(self, job: str, starts: int, all_starts: int, places: int) -> Sharing:
        """Decide with how many executors some or all of a job's starts begin, and how evenly they are shared out."""
        prefixes = self._prefixes.get(job)
        if prefixes is None:
            prefixes = Prefixes((), (), ())
        expected = self.statistics.expect(prefixes)
        start_seconds = self.beginnings.seconds
        sharing = share_expected(expected, prefixes, starts, all_starts, places, start_seconds, self.policy)
        page = self.log.get(job)
        if page is not None:
            numbers = {
                "executors": sharing.groups,
                "starts": starts,
                "places": places,
                "seconds": expected.seconds if expected.known else None,
                "unknown_tasks": expected.unknown_tasks,
                "start_seconds": self.beginnings.seconds,
            }
            page.take("", {"first": 1}, [("first", 1, numbers)])
        return sharing

    def note_wait(self, job: str, starts: int, nbytes: int, seconds: float) -> None:
        """Some of a job's starts begin to wait for whoever is at work where their inputs are.

        Parameters
        ----------
        starts, nbytes
            How many, and how large these inputs are.
        seconds
            How long they wait at most, once there is a place elsewhere.
        """
        page = self.log.get(job)
        if page is not None:
            page.take("", {"wait": 1}, [("wait", 1, {"starts": starts, "nbytes": nbytes, "seconds": seconds})])

    def expect(self, job: str, executors: Iterable[str]) -> None:
        """A job begins with these executors."""
        self.beginnings.expect(job, executors)

    def told(self, job: str) -> dict[int, tuple[float, float]]:
        """Return what executors are told of a job's prefixes: seconds and bytes, by number."""
        prefixes = self._prefixes.get(job)
        if prefixes is None or sum(prefixes.counts) < TOLD_TASKS_MIN:
            return {}
        known = self.statistics.expect(prefixes).known
        return {number: (each.seconds, each.nbytes) for number, each in known.items()}

    def expected(self, job: str, task: int) -> Learned | None:
        """Return what is known of tasks like this one; None if that is nothing."""
        prefixes = self._prefixes.get(job)
        return None if prefixes is None else self.statistics.of(prefixes.of(task))

    def take(
        self,
        job: str,
        executor: str,
        report: Sequence[Any],
        now: float,
        key_of: Callable[[str, int], Any] = lambda job, task: None,
    ) -> None:
        """Take in the report of an executor; a job that is not remembered any more has nothing to say."""
        observed, counts, samples, age = report
        self.beginnings.began(job, executor, None if age is None else now - age)
        prefixes, page = self._prefixes.get(job), self.log.get(job)
        if prefixes is None:
            return
        for number, sums in observed.items():
            name = prefixes.names[number]
            self.statistics.take(name, sums)
            if page is not None:
                page.observe(name, sums[0], sums[1], sums[3])
        if page is not None:
            named = [(decision, count, _with_key(numbers, job, key_of)) for decision, count, numbers in samples]
            page.take(executor, counts, named)


def share_expected(
    expected: Expectation,
    prefixes: Prefixes,
    starts: int,
    all_starts: int,
    places: int,
    start_seconds: float = 0.0,
    policy: Policy = _EXECUTOR,
) -> Sharing:
    """Decide with how many executors a job begins of which this is expected, and how evenly its starts are shared out.

    Parameters
    ----------
    expected, prefixes
        Of all tasks of the job.
    starts, all_starts
        How many start tasks there are now, and in the whole job.
    places
        How many executors there may be.
    start_seconds
        How long after one executor the next one begins.
    policy
        The numbers decisions are made from.

    Examples
    --------
    >>> prefixes = Prefixes(["inc"], [64], [[]])
    >>> share_expected(Expectation(unknown={"inc": 64}), prefixes, starts=64, all_starts=64, places=2)
    Sharing(groups=2, estimate=None, slack=0.0, lead=0.0, threads=1, fair=2)
    """
    if not expected.known or expected.seconds_max >= policy.share_seconds_min:
        executors = first_groups(starts, places)  # any of them may be long
    else:
        seconds, unknown = expected.work / max(1, all_starts), expected.unknown_tasks
        executors = first_groups(starts, places, seconds, unknown=unknown, request_seconds=policy.request_seconds)
    part = starts / max(1, all_starts)
    fair = min(executors, places * part)
    if executors == 1 or expected.unknown or not expected.known:
        return Sharing(executors, fair=fair)
    work = expected.work * part
    groups = worth_starting(executors, work / policy.threads, start_seconds)
    return Sharing(
        groups=groups,
        estimate=_estimate(expected, prefixes),
        slack=policy.travel_seconds(expected.nbytes / max(1, expected.tasks)),
        lead=start_seconds,
        threads=policy.threads,
        fair=min(groups, fair),
    )


def _estimate(expected: Expectation, prefixes: Prefixes) -> Estimate:
    """Say of each task what is expected of its prefix."""
    seconds, nbytes = [TASK_SECONDS] * len(prefixes.names), [0.0] * len(prefixes.names)
    for number, learned in expected.known.items():
        seconds[number] += learned.seconds
        nbytes[number] = learned.nbytes
    by_task = prefixes.of_each()
    return Estimate([seconds[number] for number in by_task], [nbytes[number] for number in by_task])


def _with_key(numbers: Mapping[str, Any], job: str, key_of: Callable[[str, int], Any]) -> Mapping[str, Any]:
    """Name a task by its key, which means something to the user."""
    if "task" not in numbers or (key := key_of(job, numbers["task"])) is None:
        return numbers
    return {"key": key, **{name: each for name, each in numbers.items() if name != "task"}}
