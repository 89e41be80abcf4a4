"""The Lambda entry point: opens an invocation, runs its assignments, says what became of them.

Everything it knows of the outside comes in environment variables of the function:

=================================  ==============================================================
``DASK_SERVERLESS_STORE``          where the storage tier is (`StoreConfig.to_json`)
``DASK_SERVERLESS_SECRET``         the cluster's secret, hexadecimal
``DASK_SERVERLESS_FUNCTION``       name of the function of the default class, for invoking others
``DASK_SERVERLESS_ENDPOINT``       where Lambda is, if not at AWS (set by the local service)
``DASK_SERVERLESS_SETTINGS``       JSON: inline_bytes_max, ceiling, lease_seconds, linger_seconds, ...
``DASK_SERVERLESS_LAST_WORDS``     a directory for `lambda_worker.last_words` (local only)
``DASK_SERVERLESS_TLS``            JSON: what tasks that are clients need to reach a scheduler with TLS
=================================  ==============================================================

Secrets among them are taken out of the process's environment before any task runs: neither a task
that shows its environment nor a program it starts has them.

What a sandbox needs more than once (connections, threads, constants) is made at its first
invocation, never at import: sandboxes are forked from a process that has imported this module.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from fargate_storage.client.config import StoreConfig
from fargate_storage.client.redis_store import RedisStore
from lambda_worker.beside import Beside
from lambda_worker.core.policy import Policy
from lambda_worker.driver import Driver
from lambda_worker.invoker import LambdaInvoker, is_loopback
from lambda_worker.last_words import LastWords
from lambda_worker.lingering import Waiter
from lambda_worker.parcels import unfold
from lambda_worker.payload import assignments_of
from lambda_worker.world import World

#: Variables that nobody but `make_world` needs, and tasks must not see.
SECRETS = ("DASK_SERVERLESS_SECRET", "DASK_SERVERLESS_STORE", "DASK_SERVERLESS_TLS")


def make_world(environment: Mapping[str, str]) -> World:
    """Connect a sandbox to its cluster, from the function's environment."""
    settings = json.loads(environment.get("DASK_SERVERLESS_SETTINGS", "{}"))
    secret = bytes.fromhex(environment["DASK_SERVERLESS_SECRET"])
    memory = int(environment.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", 1024)) * 2**20
    policy = Policy(
        ceiling=settings.get("ceiling", 1),
        inline_bytes_max=settings.get("inline_bytes_max", 65536),
        bytes_per_second=settings.get("bytes_per_second", 2**30),
        tier_bytes_per_second=settings.get("tier_bytes_per_second", math.inf),
        request_seconds=settings.get("request_gb_seconds", 0.0) * 2**30 / memory,
        # A quarter: a task needs room for its inputs and its own work, too.
        kept_bytes_max=memory // 4,
        **settings.get("policy", {}),
    )
    words_directory = environment.get("DASK_SERVERLESS_LAST_WORDS")
    # Another endpoint than AWS's own: the local service, or an emulator such as LocalStack.
    endpoint_url = environment.get("DASK_SERVERLESS_ENDPOINT") or environment.get("AWS_ENDPOINT_URL")
    # Not the stream's name itself: locally, who knows that may speak to Lambda as this sandbox.
    name = hashlib.sha256(environment.get("AWS_LAMBDA_LOG_STREAM_NAME", "").encode()).hexdigest()[:12]
    return World(
        store=RedisStore(StoreConfig.from_json(environment["DASK_SERVERLESS_STORE"]), holder=name),
        invoker=LambdaInvoker(
            environment["DASK_SERVERLESS_FUNCTION"],
            secret,
            endpoint_url,
            # Whose credentials it is does not matter to this machine's own endpoint; looking for them takes time.
            credentials=("dask-serverless", "dask-serverless") if is_loopback(endpoint_url) else None,
            larger_functions=settings.get("larger_functions", ()),
        ),
        secret=secret,
        policy=policy,
        clock=time.perf_counter,
        beside=Beside(),
        wall_offset=time.time() - time.perf_counter(),
        lease_seconds=settings.get("lease_seconds", 15.0),
        linger_seconds=settings.get("linger_seconds", 0.0),
        payload_bytes_max=settings.get("payload_bytes_max", 256 * 1024),
        last_words=LastWords(words_directory, name) if words_directory else None,
        name=name,
        memory_bytes=memory,
        caches=settings.get("cache", True),
        tls=json.loads(environment.get("DASK_SERVERLESS_TLS", "null")),
    )


@functools.cache
def _world() -> World:
    world = make_world(os.environ)
    for name in SECRETS:  # not for what tasks print, nor for the programs that they start
        os.environ.pop(name, None)
    return world


@functools.cache
def _output() -> tuple[int, int]:
    return os.dup(1), os.dup(2)


def mend_output() -> None:
    """Give back what a task has closed: the next task, and the log, want to write to it."""
    for name, number, copy in zip(("stdout", "stderr"), (1, 2), _output(), strict=True):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(copy, number)
        stream = getattr(sys, name)
        if stream is None or stream.closed:
            raw = open(number, "wb", buffering=0, closefd=False)
            setattr(sys, name, io.TextIOWrapper(raw, "utf-8", "backslashreplace", write_through=True))


def handler(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Run the assignments of one invocation, one after the other, and then what comes by mail.

    Returns
    -------
    dict
        For each executor, why it ended ("" when everything was done).
    """

    def seconds_left() -> float:
        return float(context.get_remaining_time_in_millis()) / 1000

    world = _world()
    assignments = assignments_of(world.secret, event)
    waiter = Waiter(assignments[-1], world.linger_seconds, seconds_left)
    ended = {}
    while assignments:
        assignment = assignments.pop(0)
        mend_output()
        unfolded = unfold(assignment, world.store, world.secret)
        # The last one lingers for all.
        ended[assignment.executor] = Driver(world, unfolded, seconds_left(), None if assignments else waiter).run()
        if waiter.offered and (came := waiter.wait(world.store, world.secret)) is not None:
            assignments.append(came)
    return ended
