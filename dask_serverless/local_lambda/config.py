"""What a local Lambda service is told when it starts, the limits it holds, and its one error."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lambda_worker.core.errors import PlatformError

MEBIBYTE = 1024 * 1024

#: Lambda's own payload quotas. Sync and its response: 6 MB; async: 1 MB (256 kB until late 2025).
SYNC_PAYLOAD_BYTES_MAX = 6 * MEBIBYTE
EVENT_PAYLOAD_BYTES_MAX = MEBIBYTE

#: A request body above this is cut off by closing the connection; below it, it is read to its end
#: (and dropped beyond the quotas) so that the caller can be told 413 rather than "connection reset".
HTTP_BODY_BYTES_MAX = 256 * MEBIBYTE

#: The only account there is, as in LocalStack.
ACCOUNT = "000000000000"

#: The queue that receives a record of every failed asynchronous invocation.
FAILURE_QUEUE = "dask-serverless-failures"

#: Loaded into the zygote. `numpy.random` and its siblings are lazy in numpy: naming them saves each sandbox
#: 3.4 MB. `dask.array` because chunk functions are pickled by reference to it.
PRELOAD = (
    "numpy",
    "numpy.random",
    "numpy.linalg",
    "numpy.fft",
    "dask",
    "dask._task_spec",
    "dask.array",
    "distributed.protocol",
    "redis",
    "msgpack",
    "lambda_worker.snapshot",
)


class LocalLambdaError(PlatformError):
    """The local Lambda service could not be started or has stopped; the message says what it printed."""


@dataclass(frozen=True, slots=True)
class FunctionSize:
    """What differs between functions with the same code."""

    name: str
    memory_mb: int
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class FunctionConfig:
    """The code that a local Lambda service runs, and the function or functions that run it.

    Parameters
    ----------
    name, handler
        As in Lambda. The handler's module is imported once, in the zygote, before any sandbox exists: a
        connection it opens at import would be shared by all sandboxes, so it must not open one.
    environment
        Variables of the function, above those of the current process (without its ``AWS_LAMBDA_*``).
    memory_mb
        A sandbox whose own memory (above what it shares with the zygote) grows beyond this is killed.
    timeout_seconds
        An invocation that runs longer is killed with its sandbox.
    larger
        Further functions with the same code and environment, but a name, memory and timeout of their own.
    concurrency
        Invocations of all functions that may run at once; more are refused with 429. Default: the CPU count.
    preload
        Modules to load into the zygote, beside the handler's. One that cannot be imported is skipped.
    python_path
        Directories that functions can import from, before all others.
    argv
        What functions find in `sys.argv`.
    working_directory
        Current directory of the sandboxes; default: the one of the current process.
    log_directory
        Where the sandboxes' output is kept; default: a temporary directory, removed at close.
    idle_seconds_max, idle_sandboxes_max
        How long, and how many, idle sandboxes are kept for reuse. Default count: the concurrency.
    start_seconds_max
        How long the service, and later one sandbox, may take to start.
    log_bytes_max
        The sandboxes' output is moved aside (one old file is kept) when it is larger than this.
    """

    name: str = "dask-serverless-executor"
    handler: str = "lambda_worker.handler.handler"
    environment: Mapping[str, str] = field(default_factory=dict)
    memory_mb: int = 2048
    timeout_seconds: float = 900
    larger: tuple[FunctionSize, ...] = ()
    concurrency: int = field(default_factory=lambda: os.cpu_count() or 1)
    preload: tuple[str, ...] = PRELOAD
    python_path: tuple[str, ...] = ()
    argv: tuple[str, ...] = ("",)
    working_directory: str | None = None
    log_directory: str | None = None
    idle_seconds_max: float = 300
    idle_sandboxes_max: int | None = None
    start_seconds_max: float = 60
    log_bytes_max: int = 64 * MEBIBYTE
    region: str = "us-east-1"

    @property
    def sizes(self) -> tuple[FunctionSize, ...]:
        """All functions, the one with this name first."""
        return (FunctionSize(self.name, self.memory_mb, self.timeout_seconds), *self.larger)

    def arn(self, function: int = 0) -> str:
        """Return a function's ARN."""
        return f"arn:aws:lambda:{self.region}:{ACCOUNT}:function:{self.sizes[function].name}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types, for the way to the service's process."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> FunctionConfig:
        """Return what `to_json` was called on."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        values["larger"] = tuple(FunctionSize(**each) for each in values.get("larger", ()))
        return cls(**values)
