"""The service's side of the zygote: starting it, and the messages both ways (see `zygote`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dask_serverless.local_lambda.config import MEBIBYTE, FunctionConfig, LocalLambdaError

ZYGOTE = Path(__file__).with_name("zygote.py")

#: Where this package and `lambda_worker` were found; last on the sandboxes' path, in case it is only there.
PACKAGE_ROOT = str(Path(__file__).parents[2])

#: Read before numpy is loaded, so they must be in the zygote's environment. A sandbox is one of many on
#: the machine's cores, and a BLAS that has started threads does not survive the fork.
SINGLE_THREADED = {
    name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
}

#: Address space of a sandbox above the zygote's, as a multiple of the memory limit. Generous: allocators
#: reserve more than they use, and the limit proper is the resident memory, which is watched.
DATA_MULTIPLE = 2
DATA_SLACK_BYTES = 512 * MEBIBYTE

#: More than the zygote allows itself, so that it is killed only when it is stuck.
CLOSE_SECONDS_MAX = 7.0


def function_environment(function: FunctionConfig, address: str, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the zygote and so of all sandboxes.

    The user's own AWS configuration stays as it is: tasks that read S3 on the user's machine under
    `LocalCluster` read it here. Only functions look for this service, under a name of our own.
    """
    environment = {name: value for name, value in inherited.items() if not name.startswith("AWS_LAMBDA_")}
    environment.update(SINGLE_THREADED)
    # As Dask's nanny has it: what a task frees goes back to the system, where a memory limit counts.
    environment.setdefault("MALLOC_TRIM_THRESHOLD_", "65536")
    environment.update(
        DASK_SERVERLESS_ENDPOINT=f"http://{address}",
        AWS_EXECUTION_ENV=f"AWS_Lambda_python{sys.version_info.major}.{sys.version_info.minor}",
        AWS_LAMBDA_FUNCTION_NAME=function.name,
        AWS_LAMBDA_FUNCTION_VERSION="$LATEST",
        AWS_LAMBDA_FUNCTION_MEMORY_SIZE=str(function.memory_mb),
        AWS_LAMBDA_INITIALIZATION_TYPE="on-demand",
        AWS_LAMBDA_LOG_GROUP_NAME=f"/aws/lambda/{function.name}",
        AWS_LAMBDA_LOG_STREAM_NAME="zygote",
        AWS_LAMBDA_RUNTIME_API=address,
        _HANDLER=function.handler,
    )
    environment.update(function.environment)
    return environment


class ZygoteLink:
    """A running zygote.

    Parameters
    ----------
    on_message
        Called with each message after "ready".
    on_lost
        Called when the zygote is gone without having been closed.
    """

    def __init__(self, on_message: Callable[[dict[str, Any]], None], on_lost: Callable[[], None]) -> None:
        self.preload_failures: dict[str, str] = {}
        self.threads = 0
        self._on_message = on_message
        self._on_lost = on_lost
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._unsent: list[bytes] = []
        self._ready = False

    @property
    def pid(self) -> int | None:
        """The zygote's process id."""
        return None if self._process is None else self._process.pid

    async def start(
        self, function: FunctionConfig, address: str, log_path: str, root: str, temporary_root: str
    ) -> None:
        """Start the process and wait until everything is imported.

        Raises `LocalLambdaError` with the traceback if the handler cannot be.
        """
        ours, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [sys.executable, str(ZYGOTE), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                pass_fds=(theirs.fileno(),),
                env=function_environment(function, address, os.environ),
                cwd=function.working_directory,
                # Where the kernel shares its time among sessions first, a thousand sandboxes that want to run
                # keep neither the service waiting nor the process that invokes them.
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise LocalLambdaError(f"The process for functions could not be started: {error}") from error
        finally:
            theirs.close()
        reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        settings = {
            "parent": os.getpid(),
            "handler": function.handler,
            "preload": list(function.preload),
            "python_path": list(function.python_path),
            "python_path_last": [PACKAGE_ROOT],
            "argv": list(function.argv),
            "address": address,
            "log_path": log_path,
            "root": root,
            "temporary_root": temporary_root,
            "functions": [
                {
                    "name": size.name,
                    "memory_mb": size.memory_mb,
                    "data_bytes_above": size.memory_mb * MEBIBYTE * DATA_MULTIPLE + DATA_SLACK_BYTES,
                }
                for size in function.sizes
            ],
        }
        self._writer.write(json.dumps(settings).encode() + b"\n")
        try:
            said = reader.readline()  # bound: the time that imports may take
            line = await asyncio.wait_for(said, function.start_seconds_max)
        except TimeoutError:
            self._process.kill()
            raise LocalLambdaError(
                f"Importing {function.handler!r} and what is to be preloaded took longer than"
                f" {function.start_seconds_max:g} s."
            ) from None
        if not line:
            try:
                status: object = await asyncio.to_thread(self._process.wait, CLOSE_SECONDS_MAX)
            except subprocess.TimeoutExpired:  # it has hung up, and lives
                self._process.kill()
                status = "killed"
            raise LocalLambdaError(f"Python ended (status {status}) while it imported {function.handler!r}.")
        message = json.loads(line)
        if "failed" in message:
            raise LocalLambdaError(f"The handler {function.handler!r} cannot be imported:\n{message['failed']}")
        self.preload_failures = message["ready"]["preload_failures"]
        self.threads = message["ready"]["threads"]
        self._reading = asyncio.create_task(self._read(reader))
        self._ready = True
        self._writer.writelines(self._unsent)
        self._unsent.clear()

    def start_sandbox(self, name: str, function: int = 0, crowded: bool = False) -> None:
        """Have a sandbox forked for one of the functions; `crowded`: as one of very many."""
        self._send({"start": name, "function": function, "crowded": crowded})

    def kill_sandbox(self, name: str) -> None:
        """Have a sandbox, and everything it started, killed."""
        self._send({"kill": name})

    async def close(self) -> None:
        """End the zygote and with it every sandbox."""
        if self._reading is not None:
            self._reading.cancel()
        if self._writer is not None:
            self._writer.write(b'{"close": true}\n')
            self._writer.close()
        if self._process is not None:
            process = self._process
            if not self._ready:  # still importing: it would not listen, and there is nothing to end in order
                process.kill()
            try:
                await asyncio.to_thread(process.wait, CLOSE_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)  # bound: it was killed

    def _send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        if self._ready and self._writer is not None:
            self._writer.write(data)
        else:
            self._unsent.append(data)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while line := await reader.readline():  # bound: the zygote's life
                self._on_message(json.loads(line))
        self._on_lost()
