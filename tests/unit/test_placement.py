"""The fleet worker is the last choice for what does not name it."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from dask_serverless.placement import prefer_dask_workers


@dataclass(frozen=True)
class Worker:
    name: str


FLEET, ONE, OTHER = Worker("serverless"), Worker("dask-0"), Worker("dask-1")


class Scheduler:
    """Answers as the stock scheduler would."""

    def __init__(self, *workers):
        self.workers = {each.name: each for each in workers}
        self.running = set(workers)

    def valid_workers(self, ts):
        return ts.valid

    def decide_worker_non_rootish(self, ts):
        return "by restrictions"


@pytest.mark.parametrize(
    ("workers", "valid", "named", "expected"),
    [
        ((FLEET, ONE, OTHER), None, None, {ONE, OTHER}),
        ((FLEET, ONE, OTHER), {FLEET, ONE}, None, {ONE}),
        ((FLEET, ONE), {FLEET}, None, {FLEET}),  # a resource that only it declares
        ((FLEET, ONE), set(), None, set()),  # a resource that nobody declares
        ((FLEET, ONE), {FLEET}, {"serverless"}, {FLEET}),  # a stub
        ((FLEET, ONE), {FLEET, ONE}, {"serverless", "dask-0"}, {FLEET, ONE}),
        ((FLEET,), None, None, None),
        ((ONE, OTHER), None, None, {ONE, OTHER}),
    ],
)
def test_who_may_run_a_task(workers, valid, named, expected):
    scheduler = Scheduler(*workers)
    prefer_dask_workers(scheduler, "serverless")
    assert scheduler.valid_workers(SimpleNamespace(valid=valid, worker_restrictions=named)) == expected


def test_large_groups_of_tasks_are_placed_in_the_same_way():
    scheduler = Scheduler(FLEET, ONE)
    prefer_dask_workers(scheduler, "serverless")
    assert scheduler.decide_worker_rootish_queuing_disabled(object()) == "by restrictions"
