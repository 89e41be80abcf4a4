"""The words in which the contract tests of stores tell their stories."""

import redis

from lambda_worker.core.schedule import Assignment
from lambda_worker.ports import Arrival


def record(executor, attempt=1, starts=(0,), job="job", **fields):
    return Assignment(job, executor, attempt, list(starts), hint=[], **fields)


def edge(child, parent, parents, value=b"value"):
    return Arrival(child, parent, parents, value)


def opened(store, *executors, job="job"):
    """Open a job with one record for each executor."""
    store.open_job(job, {0: b"segment"})
    assert store.admit([record(executor, job=job) for executor in executors], 1_000) == len(executors)


def verdicts(reply):
    return [(claim.child, claim.verdict) for claim in reply.claims]


def stuff(tier):
    """The shards have no room at all."""
    config = tier.config("")
    for url in config.shards:
        server = redis.Redis.from_url(url, password=config.password)
        try:
            while True:
                server.append("stuffing", bytes(100_000))
        except redis.exceptions.OutOfMemoryError:
            pass
