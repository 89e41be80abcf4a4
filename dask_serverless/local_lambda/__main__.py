"""The service's process: ``python -m dask_serverless.local_lambda``, started by `LocalLambda` only.

A line of JSON on standard input brings the settings (never the command line, which everyone can
read); one on standard output says ``{"ready": ...}`` or ``{"failed": text}``. It ends when it is told
``close``, when standard input ends, or when its owner dies. The owner is also watched by process
descriptor because a child that the owner forked may hold the other end of our input open, and not by
PR_SET_PDEATHSIG because that signal comes when the *thread* that started us ends.

If it is told of a ``keeper``, it ends with that process instead, or by ``/local/close``: who started it may die, and
another owner take over.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
from typing import Any

from dask_serverless.local_lambda.config import FunctionConfig, LocalLambdaError
from dask_serverless.local_lambda.service import Service

OWNER_POLL_SECONDS = 0.5
#: Beside one connection for each sandbox: those of who invokes, and what every process has.
OTHER_FILES = 256


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def raise_file_limit(concurrency: int) -> None:
    """A sandbox is a connection; a thousand of them are above the usual soft limit of 1024.

    Raises
    ------
    LocalLambdaError
        When this machine does not allow as many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= allowed < concurrency + OTHER_FILES:  # below zero: no limit
        raise LocalLambdaError(
            f"{concurrency} executors need {concurrency + OTHER_FILES} open files in one process, and this machine "
            f"allows {allowed}: raise the limit (ulimit -Hn), or lower n_workers="
        )


async def _watch_owner(owner: int, service: Service) -> None:
    """Stop the service when the process `owner` is gone."""
    loop = asyncio.get_running_loop()
    try:
        descriptor = os.pidfd_open(owner)
    except ProcessLookupError:
        return service.stop("the owner is gone")
    except (AttributeError, OSError):  # not Linux, or a very old one
        while True:
            await asyncio.sleep(OWNER_POLL_SECONDS)
            try:
                os.kill(owner, 0)
            except ProcessLookupError:
                return service.stop("the owner is gone")
    gone = asyncio.Event()
    loop.add_reader(descriptor, gone.set)
    try:
        await gone.wait()  # bound: the owner's life
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    service.stop("the owner is gone")


async def _watch_input(reader: asyncio.StreamReader, service: Service) -> None:
    """Stop the service when the owner says so, or hangs up."""
    await reader.readline()  # bound: the owner's life
    service.stop("closed by the owner")


async def main() -> int:
    """Run the service until its owner wants it no more."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=16 * 1024 * 1024)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    line = await reader.readline()  # bound: the owner's life
    if not line:
        return 1
    settings = json.loads(line)
    try:
        raise_file_limit(settings["function"]["concurrency"])
    except LocalLambdaError as error:
        _say({"failed": str(error)})
        return 1
    service = Service(FunctionConfig.from_json(settings["function"]), settings["token"])
    loop.add_signal_handler(signal.SIGTERM, service.stop, "terminated")
    keeper = settings["keeper"]
    watchers = [asyncio.create_task(_watch_owner(settings["owner"] if keeper is None else keeper, service))]
    if keeper is None:
        watchers.append(asyncio.create_task(_watch_input(reader, service)))
    starting = asyncio.create_task(_start(service))
    watchers.append(starting)
    try:
        await service.stopped.wait()  # bound: the owner's life
    finally:
        for watcher in watchers:
            watcher.cancel()
        await service.close()
    print(f"local Lambda: stopped, {service.stop_reason}", file=sys.stderr)
    return 0


async def _start(service: Service) -> None:
    try:
        await service.start()
    except LocalLambdaError as error:
        _say({"failed": str(error)})
        service.stop("it could not start")
    except Exception as error:
        _say({"failed": f"The local Lambda service could not start: {error!r}"})
        service.stop("it could not start")
        raise
    else:
        zygote = service.zygote
        _say(
            {
                "ready": {
                    "address": service.address,
                    "zygote": zygote.pid,
                    "preload_failures": zygote.preload_failures,
                    "threads": zygote.threads,
                }
            }
        )


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
