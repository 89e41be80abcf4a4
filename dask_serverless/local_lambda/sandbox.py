"""What a process does between being forked from the zygote and being a Lambda sandbox.

Loaded by the zygote, which must stay free of this package's weight: this module imports nothing of
`dask_serverless`, and the standard library only as far as the zygote has it anyway.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import importlib
import io
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
from types import ModuleType
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
MEBIBYTE = 1024 * 1024

#: awslambdaric's C client reads AWS_LAMBDA_RUNTIME_API while it is being loaded (awslambdaric 4.2.2: a static
#: string), so each sandbox must load it for itself; the zygote imports awslambdaric without it.
C_CLIENT = "runtime_client"

# Bound before any fork: dlopen in each of a thousand children would be wasted work.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel signal this process when the thread that forked it ends.

    Numbered story of the race: 1. we are forked; 2. the parent dies; 3. we ask for the signal, which never
    comes, because the death is in the past. So look at the parent once more, afterwards.
    """
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every descendant that loses its own, so that it can be found and ended."""
    if _libc is not None:
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def limit_resources(data_bytes_max: int) -> None:
    """Put hard limits on this process.

    The memory limit proper is enforced by watching (see `service`); this one only keeps a single huge
    allocation, which can outrun the watching, from taking the machine. It raises MemoryError inside.
    """
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes_max, data_bytes_max))
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # if the machine itself runs out, these go before the user's process
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("800")


def take_turns() -> None:
    """Do not interrupt who is running when there is something to do here, but wait for a turn.

    A thousand sandboxes that wake up at once would all be half ready for long, and have each page of each other's
    in the processor's caches replaced time and again, rather than be ready one after the other.
    """
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


class _Log(io.FileIO):
    """What is printed while the disk is full is dropped, rather than fail the task that prints: nobody else's output
    depends on where this service keeps its log."""

    def write(self, data: Any, /) -> int:
        try:
            return int(super().write(data) or 0)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return memoryview(data).nbytes


def log_stream(descriptor: int) -> io.TextIOWrapper:
    """Return a stream that writes to the log, at once."""
    raw: Any = _Log(descriptor, "wb", closefd=False)
    return io.TextIOWrapper(raw, "utf-8", "backslashreplace", write_through=True)


def reseed() -> None:
    """Part ways with the siblings: forked processes would all draw the same random numbers."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def become(name: str, settings: dict[str, Any], function: dict[str, Any], zygote: int) -> NoReturn:
    """Turn this freshly forked process into the sandbox `name` and run a function until the end."""
    status = 1
    try:
        _prepare(name, settings, function, zygote)
        _run(name, settings)
        status = 0
    except SystemExit as exit_:
        status = _status(exit_)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        # Never return into the zygote's stack, whose exit handlers are not ours.
        os._exit(status)


def _status(exit_: SystemExit) -> int:
    if exit_.code is None:
        return 0
    if isinstance(exit_.code, int):
        return exit_.code & 0xFF
    print(exit_.code, file=sys.stderr)
    return 1


def _prepare(name: str, settings: dict[str, Any], function: dict[str, Any], zygote: int) -> None:
    os.setpgid(0, 0)
    die_with_parent(zygote)
    log = os.open(settings["log_path"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    sys.stdout, sys.stderr = log_stream(1), log_stream(2)
    temporary = os.path.join(settings["temporary_root"], name)
    os.mkdir(temporary, 0o700)
    tempfile.tempdir = None  # an import in the zygote may have decided it
    os.environ["TMPDIR"] = temporary
    os.environ["AWS_LAMBDA_FUNCTION_NAME"] = function["name"]
    os.environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] = str(function["memory_mb"])
    os.environ["AWS_LAMBDA_LOG_GROUP_NAME"] = f"/aws/lambda/{function['name']}"
    os.environ["AWS_LAMBDA_LOG_STREAM_NAME"] = name
    os.environ["AWS_LAMBDA_RUNTIME_API"] = f"{settings['address']}/{name}"
    # The zygote's program is nobody's business; what a task starts with `multiprocessing` would even import it.
    sys.argv = settings["argv"]
    sys.modules["__main__"] = ModuleType("__main__")
    limit_resources(function["data_bytes_max"])
    reseed()
    gc.enable()


def _run(name: str, settings: dict[str, Any]) -> None:
    from awslambdaric import bootstrap, lambda_runtime_client

    class RuntimeClient(lambda_runtime_client.LambdaRuntimeClient):  # type: ignore[misc]
        """The address has a path, so that one port serves all sandboxes. The C client, which does next,
        response and error, takes it as it is; http.client, which does the rest, wants it apart."""

        def call_rapid(self, http_method: str, endpoint: str, *args: Any, **kwargs: Any) -> None:
            super().call_rapid(http_method, f"/{name}{endpoint}", *args, **kwargs)

    del sys.modules[C_CLIENT]
    lambda_runtime_client.runtime_client = client = importlib.import_module(C_CLIENT)
    client.initialize_client(lambda_runtime_client._user_agent())
    bootstrap.run(settings["handler"], RuntimeClient(settings["address"]))
