"""The service: requests in from callers and sandboxes, instructions of the pool carried out.

Four protocols on one port of the loopback interface, told apart by path and header:

* ``/2015-03-31/functions/NAME/invocations``: the Invoke API, for anyone with an AWS client. As in AWS, a
  request must be signed; here the signature is not verified, but its presence keeps web pages out.
* ``/SANDBOX/2018-06-01/runtime/...``: the Runtime API, for sandboxes. SANDBOX is random: who knows it, is it.
* ``X-Amz-Target: AmazonSQS...``: the on-failure destination (see `queue_api`).
* ``/local/...``: what AWS offers elsewhere or not at all; for the owner, who has the token.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import json
import os
import resource
import secrets
import shutil
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import psutil

from dask_serverless.local_lambda import verdicts
from dask_serverless.local_lambda.config import (
    ACCOUNT,
    EVENT_PAYLOAD_BYTES_MAX,
    MEBIBYTE,
    SYNC_PAYLOAD_BYTES_MAX,
    FunctionConfig,
    LocalLambdaError,
)
from dask_serverless.local_lambda.front import Exchange, Front
from dask_serverless.local_lambda.link import ZygoteLink
from dask_serverless.local_lambda.pool import (
    Deliver,
    Finish,
    Instruction,
    Invocation,
    Kill,
    Limits,
    Pool,
    Start,
    Throttled,
)
from dask_serverless.local_lambda.queue_api import QueueApi
from dask_serverless.local_lambda.verdicts import Outcome

TOKEN_HEADER = "X-Local-Lambda-Token"

_INVOKE_PREFIX = "/2015-03-31/functions/"
_INVOKE_SUFFIX = "/invocations"
_RUNTIME = "/2018-06-01/runtime/"
_JSON = {"Content-Type": "application/json"}

#: How often limits are looked at while anything runs. Looking at one sandbox costs about 10 us, so with very
#: many busy ones it is done less often, to stay near 2% of a core.
TICK_SECONDS = 0.05
TICK_SECONDS_PER_SANDBOX = 0.0005
IDLE_TICK_SECONDS = 2.0

#: The zygote is started anew when it is lost, so often within a minute. Who dies more often will not do better.
ZYGOTE_RESTARTS_MAX = 5
MINUTE = 60.0

#: With more sandboxes than this to a core they take turns (see `sandbox.take_turns`). With fewer, what counts is how
#: soon one begins.
CROWD_PER_CORE = 16
#: Starting takes a sandbox some milliseconds, nearly all of them of a core.
STARTING_PER_CORE = 8

LOG_TAIL_BYTES = MEBIBYTE
_PAGE = resource.getpagesize()
_CORES = os.cpu_count() or 1


def anonymous_bytes(pid: int) -> int:
    """Return a process's resident memory that no file backs, including what it still shares with its parent."""
    if sys.platform != "linux":
        with contextlib.suppress(psutil.Error):
            return int(psutil.Process(pid).memory_info().rss)
        return 0
    try:  # ten times as fast as psutil, and this is done for every busy sandbox many times a second
        with open(f"/proc/{pid}/statm", "rb") as file:
            fields = file.read().split()
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * _PAGE


class Service:
    """Functions with the same code, their sandboxes, and the protocols to reach them.

    Parameters
    ----------
    function
        What to run.
    token
        Secret of the owner, for ``/local/``.
    """

    def __init__(self, function: FunctionConfig, token: str) -> None:
        self.function = function
        self.stopped = asyncio.Event()
        self.stop_reason = ""
        self._token = token
        if function.log_directory is not None:
            os.makedirs(function.log_directory, exist_ok=True)
        self._root = tempfile.mkdtemp(prefix="dask-serverless-lambda-")
        self._temporary_root = os.path.join(self._root, "sandboxes")
        os.mkdir(self._temporary_root)
        self._log_path = Path(function.log_directory or self._root) / f"{function.name}-{os.getpid()}.log"
        self._pool = Pool(
            concurrency=function.concurrency,
            limits=[Limits(size.memory_mb * MEBIBYTE, size.timeout_seconds) for size in function.sizes],
            new_name=lambda: secrets.token_hex(12),
            idle_seconds_max=function.idle_seconds_max,
            idle_sandboxes_max=function.idle_sandboxes_max,
            start_seconds_max=function.start_seconds_max,
            starting_max=STARTING_PER_CORE * _CORES,
        )
        self._front = Front(self._route)
        self.address = f"127.0.0.1:{self._front.port}"
        self._queue = QueueApi(f"http://{self.address}")
        self._nexts: dict[str, Exchange] = {}  # sandboxes that wait for their next invocation
        self._callers: dict[str, Exchange] = {}  # synchronous callers, by request id
        self._zygote_bytes = 0  # what every sandbox has resident, and shares, when it is forked
        self._tick_handle: asyncio.TimerHandle | None = None
        self._tick_is_slow = False
        self._link = self._new_link()
        self._restarts: list[float] = []  # when, within the last minute
        self._background: set[asyncio.Task[None]] = set()

    # Life -----------------------------------------------------------------------------------

    def _new_link(self) -> ZygoteLink:
        return ZygoteLink(self._on_zygote_message, self._on_zygote_lost)

    @property
    def zygote(self) -> ZygoteLink:
        """The zygote as it is now."""
        return self._link

    async def start(self) -> None:
        """Start the zygote. Raises `LocalLambdaError` if the handler cannot be imported."""
        self._log_path.touch(0o600)
        await self._front.start()
        await self._start_zygote()
        self._arm_tick()

    async def _start_zygote(self) -> None:
        await self._link.start(self.function, self.address, str(self._log_path), self._root, self._temporary_root)
        if self._link.pid is not None:
            self._zygote_bytes = anonymous_bytes(self._link.pid)

    async def close(self) -> None:
        """End every process and connection and remove every file."""
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        for task in self._background:
            task.cancel()
        await self._link.close()
        await self._front.close()
        await asyncio.to_thread(shutil.rmtree, self._root, True)

    def stop(self, reason: str) -> None:
        """Have the service's process end."""
        self.stop_reason = self.stop_reason or reason
        self.stopped.set()

    def _on_zygote_lost(self) -> None:
        print("local Lambda: the zygote was lost", file=sys.stderr, flush=True)
        now = time.monotonic()
        self._restarts = [*(then for then in self._restarts if now - then < MINUTE), now]
        if len(self._restarts) > ZYGOTE_RESTARTS_MAX:
            return self.stop("the zygote was lost too often")
        lost = list(self._pool.sandboxes)
        old, self._link = self._link, self._new_link()
        self._spawn(old.close())
        self._spawn(self._restart_zygote())
        for name in lost:  # the kernel killed them with their parent
            self._on_zygote_message({"died": name, "status": -9})

    async def _restart_zygote(self) -> None:
        try:
            await self._start_zygote()
        except LocalLambdaError as error:
            self.stop(str(error))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # The pool's events and instructions -----------------------------------------------------

    def _on_zygote_message(self, message: dict[str, Any]) -> None:
        if "started" in message:
            self._pool.started(message["started"], message["pid"])
            return
        name = message["died"]
        sandbox = self._pool.sandboxes.get(name)
        why = message.get("why", "")
        status = message.get("status", 1)
        if sandbox is not None and sandbox.invocation is not None:
            verdict = json.loads(sandbox.verdict.payload) if sandbox.verdict else {}
            reason = verdict.get("errorMessage") or f"{sandbox.invocation.request_id} {verdicts.exit_reason(status)}"
            if verdict.get("errorType") != verdicts.RETIRED:  # its owner has asked for it
                self._log(f"REPORT {reason}")
        self._nexts.pop(name, None)
        self._perform(self._pool.died(name, status, time.monotonic(), why))
        temporary = os.path.join(self._temporary_root, name)
        try:
            os.rmdir(temporary)  # nearly always empty
        except FileNotFoundError:
            pass
        except OSError:
            self._spawn(asyncio.to_thread(shutil.rmtree, temporary, True))

    def _perform(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Deliver(name, invocation):
                    self._deliver(name, invocation)
                case Finish(invocation, outcome):
                    self._finish(invocation, outcome)
                case Start(name, function):
                    self._link.start_sandbox(name, function, self._pool.concurrency > CROWD_PER_CORE * _CORES)
                case Kill(name):
                    self._link.kill_sandbox(name)
        if self._tick_is_slow and self._pool.active:
            self._arm_tick()

    def _deliver(self, name: str, invocation: Invocation) -> None:
        exchange = self._nexts.pop(name, None)
        if exchange is None:  # its connection has closed; the death that explains it is on its way
            return
        timeout_seconds = self.function.sizes[invocation.function].timeout_seconds
        headers = {
            "Content-Type": "application/json",
            "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
            "Lambda-Runtime-Deadline-Ms": str(int((time.time() + timeout_seconds) * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": self.function.arn(invocation.function),
            "Lambda-Runtime-Trace-Id": invocation.trace_id,
        }
        if invocation.client_context:
            headers["Lambda-Runtime-Client-Context"] = invocation.client_context
        exchange.answer(200, headers, invocation.payload)

    def _finish(self, invocation: Invocation, outcome: Outcome) -> None:
        if not invocation.event:
            exchange = self._callers.pop(invocation.request_id)
            headers = {**_JSON, "x-amzn-RequestId": invocation.request_id, "X-Amz-Executed-Version": "$LATEST"}
            if outcome.function_error:
                headers["X-Amz-Function-Error"] = outcome.function_error
            exchange.answer(200, headers, outcome.payload)
        elif outcome.function_error:
            record = verdicts.destination_record(
                invocation.request_id,
                self.function.arn(invocation.function),
                invocation.payload,
                outcome,
                time.time(),
            )
            self._queue.put(record)

    def _arm_tick(self) -> None:
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        self._tick_is_slow = not self._pool.active
        if self._tick_is_slow:
            seconds = IDLE_TICK_SECONDS
        else:
            seconds = max(TICK_SECONDS, len(self._pool.busy()) * TICK_SECONDS_PER_SANDBOX)
        self._tick_handle = asyncio.get_running_loop().call_later(seconds, self._tick)

    def _tick(self) -> None:
        private_bytes = {
            sandbox.name: anonymous_bytes(sandbox.pid) - self._zygote_bytes
            for sandbox in self._pool.busy()
            if sandbox.pid is not None
        }
        self._perform(self._pool.tick(time.monotonic(), private_bytes))
        with contextlib.suppress(OSError):
            if self._log_path.stat().st_size > self.function.log_bytes_max:
                self._rotate_log()
        self._arm_tick()

    # Requests -------------------------------------------------------------------------------

    def _route(self, exchange: Exchange) -> None:
        path = exchange.path
        try:
            if path.startswith(_INVOKE_PREFIX):
                self._route_invoke(exchange, path[len(_INVOKE_PREFIX) :].partition("?")[0])
            elif (at := path.find(_RUNTIME)) > 0:
                self._route_runtime(exchange, path[1:at], path[at + len(_RUNTIME) :])
            elif exchange.headers.get("x-amz-target", "").startswith("AmazonSQS."):
                if self._is_signed(exchange):
                    self._queue.route(exchange)
            elif path.startswith("/local/"):
                self._route_local(exchange, path[len("/local/") :])
            else:
                self._refuse(exchange, 404, "UnknownOperationException", f"There is no {path} here.")
        except Exception as error:  # a bug of ours must not look like a hung function
            self._refuse(exchange, 500, "ServiceException", f"The local Lambda service failed: {error!r}")
            raise

    def _refuse(self, exchange: Exchange, status: int, error_type: str, message: str, **more: str) -> None:
        exchange.answer_json(
            status,
            {"Type": "User" if status < 500 else "Service", "Message": message, "message": message, **more},
            {"x-amzn-ErrorType": error_type, "x-amzn-RequestId": str(uuid.uuid4())},
        )

    def _is_signed(self, exchange: Exchange) -> bool:
        if exchange.headers.get("authorization", "").startswith("AWS4-HMAC-SHA256"):
            return True
        self._refuse(exchange, 403, "MissingAuthenticationTokenException", "Missing Authentication Token")
        return False

    # Invoke API

    def _function_named(self, name: str) -> int | None:
        name = name.removesuffix(":$LATEST")
        for number, size in enumerate(self.function.sizes):
            if name in (size.name, f"{ACCOUNT}:function:{size.name}", self.function.arn(number)):
                return number
        return None

    def _route_invoke(self, exchange: Exchange, rest: str) -> None:
        if not self._is_signed(exchange):
            return
        if not rest.endswith(_INVOKE_SUFFIX) or exchange.method != "POST":
            return self._refuse(exchange, 404, "UnknownOperationException", "Only Invoke is offered here.")
        name = unquote(rest[: -len(_INVOKE_SUFFIX)])
        function = self._function_named(name)
        if function is None:
            arn = (
                name if name.startswith("arn:") else f"arn:aws:lambda:{self.function.region}:{ACCOUNT}:function:{name}"
            )
            return self._refuse(exchange, 404, "ResourceNotFoundException", f"Function not found: {arn}")
        kind = exchange.headers.get("x-amz-invocation-type", "RequestResponse")
        if kind not in ("Event", "RequestResponse", "DryRun"):
            return self._refuse(
                exchange, 400, "InvalidParameterValueException", f"There is no invocation type {kind!r}."
            )
        limit = EVENT_PAYLOAD_BYTES_MAX if kind == "Event" else SYNC_PAYLOAD_BYTES_MAX
        if exchange.size > limit:
            return self._refuse(
                exchange,
                413,
                "RequestTooLargeException",
                f"{exchange.size} byte payload is too large for the {kind} invocation type (limit {limit} bytes)",
            )
        payload = exchange.body or b"{}"
        try:
            json.loads(payload)
        except ValueError as error:
            return self._refuse(
                exchange, 400, "InvalidRequestContentException", f"Could not parse request body into json: {error}"
            )
        if kind == "DryRun":
            return exchange.answer(204, {"x-amzn-RequestId": str(uuid.uuid4())})
        self._invoke(exchange, kind == "Event", payload, function)

    def _invoke(self, exchange: Exchange, event: bool, payload: bytes, function: int) -> None:
        request_id = str(uuid.uuid4())
        context = exchange.headers.get("x-amz-client-context", "")
        if context:
            try:
                context = json.dumps(json.loads(base64.b64decode(context, validate=True)))  # one line, ASCII
            except (binascii.Error, ValueError):
                return self._refuse(
                    exchange, 400, "InvalidRequestContentException", "Client context must be base64 of JSON."
                )
        trace_id = exchange.headers.get("x-amzn-trace-id") or (
            f"Root=1-{int(time.time()):08x}-{request_id[:8]}{request_id[-16:].replace('-', '0')};Sampled=0"
        )
        invocation = Invocation(request_id, payload, event, function, trace_id, context)
        if not event:
            self._callers[request_id] = exchange
        try:
            instructions = self._pool.invoke(invocation, time.monotonic())
        except Throttled:
            self._callers.pop(request_id, None)
            return self._refuse(
                exchange,
                429,
                "TooManyRequestsException",
                "Rate Exceeded.",
                Reason="ReservedFunctionConcurrentInvocationLimitExceeded",
            )
        if event:
            exchange.answer(202, {"x-amzn-RequestId": request_id})
        self._perform(instructions)

    # Runtime API

    def _route_runtime(self, exchange: Exchange, name: str, rest: str) -> None:
        if name not in self._pool.sandboxes:
            return exchange.answer_json(403, {"errorType": "Forbidden", "errorMessage": "No such sandbox."})
        now = time.monotonic()
        if rest == "invocation/next":
            self._next(exchange, name, now)
        elif rest == "init/error":
            self._pool.init_failed(name, Outcome(exchange.body, "Unhandled"))
            exchange.answer(202, _JSON, b'{"status":"OK"}')
        elif rest.endswith("/response"):
            outcome = Outcome(exchange.body)
            if exchange.size > SYNC_PAYLOAD_BYTES_MAX:
                outcome = verdicts.response_too_large(exchange.size, SYNC_PAYLOAD_BYTES_MAX)
                error = {"errorType": "RequestEntityTooLarge", "errorMessage": "The response is too large."}
                exchange.answer_json(413, error)
            else:
                exchange.answer(202, _JSON, b'{"status":"OK"}')
            self._perform(self._pool.answered(name, rest.split("/")[1], outcome, now))
        elif rest.endswith("/error"):
            exchange.answer(202, _JSON, b'{"status":"OK"}')
            self._perform(self._pool.answered(name, rest.split("/")[1], Outcome(exchange.body, "Unhandled"), now))
        else:
            exchange.answer_json(404, {"errorType": "NotFound", "errorMessage": rest})

    def _next(self, exchange: Exchange, name: str, now: float) -> None:
        self._nexts[name] = exchange
        exchange.on_gone(lambda: self._perform(self._pool.hung_up(name, time.monotonic())))
        self._perform(self._pool.ready(name, now))

    # What AWS offers elsewhere

    def _route_local(self, exchange: Exchange, rest: str) -> None:
        if not hmac.compare_digest(exchange.headers.get(TOKEN_HEADER.lower(), "").encode(), self._token.encode()):
            return self._refuse(exchange, 403, "AccessDeniedException", "This is for the service's owner.")
        what, _, query = rest.partition("?")
        if what == "counters":
            counters = self._pool.report(time.monotonic())
            counters["failures_queued"] = len(self._queue.queue)
            counters["failures_dropped"] = self._queue.queue.dropped
            return exchange.answer_json(200, counters)
        if what == "logs":
            return exchange.answer_json(200, self._log_lines(int(parse_qs(query).get("n", ["100"])[0])))
        if what == "sandboxes":
            sandboxes = [
                {
                    "name": s.name,
                    "state": s.state.value,
                    "pid": s.pid,
                    "served": s.served,
                    "function": self.function.sizes[s.function].name,
                }
                for s in self._pool.sandboxes.values()
            ]
            return exchange.answer_json(200, sandboxes)
        if what == "concurrency" and exchange.method == "PUT":
            self._perform(self._pool.set_concurrency(int(exchange.body), time.monotonic()))
            return exchange.answer_json(200, {"concurrency": self._pool.concurrency})
        if what == "retire" and exchange.method == "PUT":
            self._perform(self._pool.retire(exchange.body == b"at-once", time.monotonic()))
            return exchange.answer_json(200, {})
        if what == "close" and exchange.method == "PUT":
            exchange.answer_json(200, {})
            return self.stop("closed by the owner")
        return self._refuse(exchange, 404, "UnknownOperationException", f"There is no {what} here.")

    # The log --------------------------------------------------------------------------------

    def _log(self, line: str) -> None:
        with contextlib.suppress(OSError), open(self._log_path, "a") as file:
            file.write(line + "\n")

    def _log_lines(self, count: int) -> list[str]:
        with open(self._log_path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        return lines[-count:] if count > 0 else []

    def _rotate_log(self) -> None:
        # Copied and emptied rather than renamed: every sandbox holds the file open for appending.
        shutil.copyfile(self._log_path, self._log_path.with_suffix(".old.log"))
        os.truncate(self._log_path, 0)
