"""A story of a ledger: what it was told, and what it said."""

from __future__ import annotations

from dask_serverless.job_events import (
    Done,
    Result,
    Submitted,
)
from dask_serverless.jobs import Ledger
from dask_serverless.plan import number
from lambda_worker.core.wire import Ref

ERROR = b"an encoded error"


def ref(job, task, writer="a"):
    return Ref(f"{job}/{task}/{writer}/1", 0, 100_000)


def result(job, task, writer="a", location=None):
    return Result(task, ref(job, task, writer) if location is None else location, 100_000, b"type", "int", 0.0, 1.0)


def submitted(job, parents, wanted, externals=(), pointers=None, also=None):
    """Plan a graph. `also` maps further keys to the wanted keys whose tasks they share."""
    graph, keys = number({key: tuple(needs) for key, needs in parents.items()}, list(wanted), externals=set(externals))
    numbers = {key: task for task, key in enumerate(keys)}
    visible = {key: numbers[key] for key in wanted}
    visible.update({key: numbers[target] for key, target in (also or {}).items()})
    used = {key: numbers[key] for key in externals if key in numbers}
    return Submitted(job, graph, visible, used, pointers or {})


def same(instructions, expected):
    """Compare where the order is not promised."""
    return sorted(map(repr, instructions)) == sorted(map(repr, expected))


class Story:
    """A ledger, told one event after the other."""

    def __init__(self):
        self.ledger = Ledger()
        self.numbers = {}

    def submit(self, job, parents, wanted, **options):
        event = submitted(job, parents, wanted, **options)
        self.numbers[job] = {**event.visible, **event.externals}
        return self.ledger.handle(event)

    def tell(self, *events):
        return [instruction for event in events for instruction in self.ledger.handle(event)]

    def done(self, job, *keys, writer="a"):
        return self.tell(Done(job, [result(job, self.numbers[job][key], writer) for key in keys]))

    def result(self, job, key, writer="a"):
        return result(job, self.numbers[job][key], writer)

    def ref(self, job, key, writer="a"):
        return ref(job, self.numbers[job][key], writer)
