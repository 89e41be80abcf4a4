"""The owner's side: start the service's process, talk to it, end it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import IO, Any

import psutil

from dask_serverless.local_lambda.config import ACCOUNT, FAILURE_QUEUE, FunctionConfig, LocalLambdaError
from dask_serverless.local_lambda.link import PACKAGE_ROOT

TOKEN_HEADER = "X-Local-Lambda-Token"  # as in `service`, which the owner need not import

#: On top of the zygote's own limit: a Python that starts on a busy machine.
START_SECONDS_SLACK = 30.0
CLOSE_SECONDS_MAX = 12.0
CONTROL_SECONDS_MAX = 10.0
STDERR_CHARACTERS_MAX = 4000


class LocalLambda:
    """A local Lambda service that runs one function, in a process of its own.

    It ends with `close`, or with the process that started it, however that ends. The methods block;
    they may be called from any thread.

    Parameters
    ----------
    function
        What to run, and its limits.
    keeper
        Id of the process with which the service ends, in the place of this one: another may `adopt` it.

    Examples
    --------
    >>> with LocalLambda(FunctionConfig(handler="json.dumps")) as service:  # doctest: +SKIP
    ...     client = boto3.client("lambda", endpoint_url=service.endpoint_url)
    """

    def __init__(self, function: FunctionConfig | None = None, keeper: int | None = None) -> None:
        self.function = function or FunctionConfig()
        self.keeper = keeper
        self._adopted: psutil.Process | None = None
        self.preload_failures: dict[str, str] = {}  #: modules that could not be preloaded, and why
        self._token = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None
        self._address: str | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        state = f"at {self.endpoint_url}" if self._address else "not running"
        return f"<LocalLambda {self.function.name!r} {state}>"

    def __enter__(self) -> LocalLambda:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def endpoint_url(self) -> str:
        """Where AWS clients find the service."""
        if self._address is None:
            raise LocalLambdaError("The local Lambda service is not running.")
        return f"http://{self._address}"

    @property
    def failure_queue_url(self) -> str:
        """URL of the queue that receives a record of every failed asynchronous invocation."""
        return f"{self.endpoint_url}/{ACCOUNT}/{FAILURE_QUEUE}"

    @property
    def pid(self) -> int | None:
        """Process id of the service, while it runs."""
        if self._adopted is not None:
            return self._adopted.pid
        return None if self._process is None else self._process.pid

    def to_json(self) -> dict[str, Any]:
        """Return what `adopt` needs, its token included, as JSON types."""
        pid = self.pid
        return {
            "function": self.function.to_json(),
            "keeper": self.keeper,
            "token": self._token,
            "address": self._address,
            "pid": pid,
            "created": None if pid is None else psutil.Process(pid).create_time(),
        }

    @classmethod
    def adopt(cls, record: Mapping[str, Any]) -> LocalLambda:
        """Take over a service whose owner has died, from what its `to_json` has returned.

        Raises
        ------
        LocalLambdaError
            It does not run any more.
        """
        service = cls(FunctionConfig.from_json(record["function"]), record["keeper"])
        service._token, service._address = record["token"], record["address"]
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(record["pid"])
            if process.create_time() == record["created"]:
                service._adopted = process
        if not service.is_running():
            raise LocalLambdaError("The local Lambda service has ended.")
        return service

    def is_running(self) -> bool:
        """Tell whether the service's process lives."""
        if self._adopted is not None:
            with contextlib.suppress(psutil.Error):
                return bool(self._adopted.is_running() and self._adopted.status() != psutil.STATUS_ZOMBIE)
            return False
        pid = self.pid
        if pid is None:
            return False
        try:
            # Without WNOHANG-reaping it: `close` wants the exit status itself.
            return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    def start(self) -> None:
        """Start the service and wait until it can be invoked.

        Raises
        ------
        LocalLambdaError
            If it cannot start; the message has the handler's traceback, if that is the reason.
        """
        with self._lock:
            if self._process is not None:
                return
            # No name, so nothing is left of it; a file, so that nobody need keep reading a pipe.
            self._stderr = tempfile.TemporaryFile()
            environment = dict(os.environ)
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), PACKAGE_ROOT]))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dask_serverless.local_lambda"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the user's code
            )
            try:
                ready = self._greet(self._process)
            except BaseException:
                self._end()
                raise
            self._address = ready["address"]
            self.preload_failures = ready["preload_failures"]

    def close(self) -> None:
        """End the service and every sandbox. May be repeated."""
        with self._lock:
            self._end()

    def set_concurrency(self, concurrency: int) -> None:
        """Change how many invocations may run at once; those that run now stay."""
        self._ask("PUT", "concurrency", str(int(concurrency)).encode())

    def retire(self, at_once: bool = False) -> None:
        """Use no sandbox again that has served, as after a change of the function's configuration in AWS.

        Those that run an invocation finish it; with `at_once` they are ended, and their invocations fail.
        """
        self._ask("PUT", "retire", b"at-once" if at_once else b"")

    def counters(self) -> dict[str, float]:
        """Return what the service has done since it started, and what AWS would bill for."""
        counters: dict[str, float] = self._ask("GET", "counters")
        return counters

    def logs(self, n: int = 100) -> list[str]:
        """Return the last lines of the sandboxes' output."""
        lines: list[str] = self._ask("GET", f"logs?n={int(n)}")
        return lines

    def sandboxes(self) -> list[dict[str, Any]]:
        """Return the sandboxes: ``name``, ``state``, ``pid``, ``function``, and how many it has ``served``."""
        sandboxes: list[dict[str, Any]] = self._ask("GET", "sandboxes")
        return sandboxes

    def _greet(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        assert process.stdin is not None and process.stdout is not None
        settings = {
            "function": self.function.to_json(),
            "token": self._token,
            "owner": os.getpid(),
            "keeper": self.keeper,
        }
        with contextlib.suppress(BrokenPipeError):  # it is dead already: what it printed says why
            process.stdin.write(json.dumps(settings).encode() + b"\n")
            process.stdin.flush()
        deadline = time.monotonic() + self.function.start_seconds_max + START_SECONDS_SLACK
        received = b""
        while not received.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                raise LocalLambdaError(f"The local Lambda service did not start in time.{self._printed()}")
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                raise LocalLambdaError(f"The local Lambda service could not be started.{self._printed()}")
            received += data
        message = json.loads(received)
        if "failed" in message:
            raise LocalLambdaError(f"{message['failed']}{self._printed()}")
        ready: dict[str, Any] = message["ready"]
        return ready

    def _printed(self) -> str:
        if self._stderr is None:
            return ""
        self._stderr.seek(0)
        text = self._stderr.read().decode(errors="replace").strip()
        return f"\nIt printed:\n{text[-STDERR_CHARACTERS_MAX:]}" if text else ""

    def _end(self) -> None:
        if self.keeper is not None and self._address is not None:  # it does not listen to us otherwise
            with contextlib.suppress(LocalLambdaError):
                self._ask("PUT", "close")
        adopted, self._adopted = self._adopted, None
        if adopted is not None:
            with contextlib.suppress(psutil.Error):
                try:
                    adopted.wait(CLOSE_SECONDS_MAX)
                except psutil.TimeoutExpired:
                    adopted.kill()
        process, self._process, self._address = self._process, None, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        # Said as well as hung up: a process that the user forked may hold our end of the pipe too.
        with contextlib.suppress(OSError):
            process.stdin.write(b"close\n")
            process.stdin.flush()
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(CLOSE_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()  # the kernel ends the zygote with it, and the sandboxes with that
            process.wait()  # bound: it was killed
        process.stdout.close()
        if self._stderr is not None:
            self._stderr.close()
            self._stderr = None

    def _ask(self, method: str, what: str, body: bytes | None = None) -> Any:
        address = self.endpoint_url.removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=CONTROL_SECONDS_MAX)
        try:
            connection.request(method, f"/local/{what}", body, {TOKEN_HEADER: self._token})
            response = connection.getresponse()
            data = response.read()
        except OSError as error:
            raise LocalLambdaError(f"The local Lambda service does not answer: {error}.{self._printed()}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise LocalLambdaError(f"The local Lambda service refused {method} {what}: {data.decode(errors='replace')}")
        return json.loads(data)
