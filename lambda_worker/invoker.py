"""How one Lambda starts another: the `Invoker` port on the AWS Lambda API, by aiobotocore.

Rules kept here:

* Importing this module loads no AWS library (the handler's cold start is billed); the first
  invocation does, or `preload` in a process that forks later.
* An invoker has a private event loop in a daemon thread, so that executors' I/O threads and the
  proxy may call it alike, from any thread, many at once.
* Every wait is bounded: connecting, reading, and the whole time spent on being throttled.
* One place retries. botocore's own retries are off: they would sleep inside a connection slot, and
  multiply with ours.
* Credentials are never kept beyond their life. The SDK renews what it can; if AWS refuses what we have nevertheless, a
  new client reads the configuration anew, once, and then the invocation has failed (`credentials`).
* A repeated invocation is harmless (leases and fencing answer for doubles), so a connection that
  broke in the middle is simply tried again.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ipaddress
import os
import random as _random
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from lambda_worker.core.errors import CredentialsRefused, InvocationRefused
from lambda_worker.core.schedule import Assignment
from lambda_worker.credentials import REFUSED, UNAVAILABLE, code_of, remedy_of
from lambda_worker.payload import payload_of

CONNECT_SECONDS_MAX = 5.0
READ_SECONDS_MAX = 30.0
CLOSE_SECONDS_MAX = 5.0
PRELOAD_SECONDS_MAX = 60.0
#: Broken connections and 5xx answers are retried this often, and at least for so long (half of the invocations of a
#: second in which half of the requests fail are given up otherwise); throttling only by time.
BROKEN_ATTEMPTS_MAX = 4
BROKEN_SECONDS_MAX = 10.0

#: Lambda's names for "later, please" (the second is the generic one of older services).
THROTTLED = frozenset({"TooManyRequestsException", "ThrottlingException", "429"})

_ADVICE = {
    "ResourceNotFoundException": "no such function there: check the name, the region and that the stack is deployed",
    "AccessDeniedException": "these credentials lack lambda:InvokeFunction on it",
    "RequestEntityTooLargeException": "the payload is too large: lower the payload limit in the settings",
    "RequestTooLargeException": "the payload is too large: lower the payload limit in the settings",
    "NoRegion": "name a region (argument region, AWS_REGION or the AWS profile)",
    "TooManyRequestsException": "the concurrency limit is used up: raise it, or lower n_workers",
}

# botocore parses the service model (0.2 MB of JSON) once per *loader*; sessions are cheap. Shared by
# all invokers of this process and inherited by fork. Its cache is a dict: concurrent use at worst
# parses twice.
_loader: Any = None
_loader_lock = threading.Lock()


def is_loopback(endpoint_url: str | None) -> bool:
    """Tell whether a URL names this machine only.

    Examples
    --------
    >>> is_loopback("http://127.0.0.1:9001"), is_loopback("https://lambda.eu-west-1.amazonaws.com"), is_loopback(None)
    (True, False, False)
    """
    host = urlsplit(endpoint_url).hostname if endpoint_url else None
    if host is None:
        return False
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


def preload(services: Sequence[str] = ("lambda",)) -> None:
    """Load aiobotocore and its service models, for a process that will be forked.

    A forked child then makes its first client in about 10 ms instead of 350 ms. Opens no socket and
    leaves no thread, loop or credential behind.
    """

    async def warm() -> None:
        for service in services:
            # Making a client touches every file and module that a later one will need.
            async with open_client(service, "http://127.0.0.1:9", "us-east-1", credentials=("preload", "preload")):
                pass

    # In a thread: the caller may itself run on an event loop.
    thread = threading.Thread(target=lambda: asyncio.run(warm()), name="dask-serverless-preload")
    thread.start()
    thread.join(PRELOAD_SECONDS_MAX)


@contextlib.asynccontextmanager
async def open_client(
    service: str,
    endpoint_url: str | None = None,
    region: str | None = None,
    connections_max: int = 10,
    credentials: tuple[str, str] | None = None,
    read_seconds_max: float = READ_SECONDS_MAX,
) -> Any:
    """Open an aiobotocore client of one AWS service on the running loop.

    Parameters
    ----------
    service
        Name in botocore, as ``"lambda"``.
    endpoint_url, region
        Where; None: as the AWS configuration of this process says.
    connections_max
        Size of the connection pool.
    credentials
        Access key and secret key. When given, AWS profiles and files are not looked at: a laptop's
        broken profile must not keep a loopback endpoint from working.
    read_seconds_max
        How long an answer may take.
    """
    from aiobotocore.config import AioConfig
    from aiobotocore.session import AioSession

    global _loader
    loopback = is_loopback(endpoint_url)
    session = _bare_session(AioSession) if credentials else AioSession()
    with _loader_lock:
        if _loader is None:
            _loader = _bare_session(AioSession).get_component("data_loader")
    session.register_component("data_loader", _loader)
    if loopback and credentials is None:
        session, credentials = await _loopback_credentials(session, AioSession)
        session.register_component("data_loader", _loader)
    if region is None and loopback:
        region = session.get_config_variable("region") or "us-east-1"
    config = AioConfig(
        connect_timeout=CONNECT_SECONDS_MAX,
        read_timeout=read_seconds_max,
        max_pool_connections=connections_max,
        # ``total_max_attempts`` counts the first request as well (``max_attempts`` would not).
        retries={"total_max_attempts": 1, "mode": "standard"},
        # A sixth of a request's cost, each: botocore puts its name together anew, and checks what is always the same.
        user_agent="dask-serverless",
        parameter_validation=False,
        # A proxy of the environment cannot reach this machine's loopback.
        proxies={} if loopback else None,
    )
    keys: dict[str, Any] = {}
    if credentials is not None:
        keys = {"aws_access_key_id": credentials[0], "aws_secret_access_key": credentials[1]}
    async with session.create_client(
        service, region_name=region, endpoint_url=endpoint_url, config=config, **keys
    ) as client:
        yield client


def _bare_session(cls: Any) -> Any:
    """Make a session that reads no AWS profile and no AWS file."""
    return cls(
        session_vars={
            "profile": (None, [], None, None),
            "config_file": (None, None, os.devnull, None),
            "credentials_file": (None, None, os.devnull, None),
        }
    )


async def _loopback_credentials(session: Any, cls: Any) -> tuple[Any, tuple[str, str] | None]:
    """Return a session for a loopback endpoint, and dummy credentials if none are configured."""
    try:
        resolver = session.get_component("credential_provider")
        for remote in ("container-role", "iam-role"):  # asking the network takes seconds, and is not configuration
            resolver.remove(remote)
        found = await session.get_credentials()
    except Exception:  # a broken profile: this machine's own endpoint does not need it
        return _bare_session(cls), ("dask-serverless", "dask-serverless")
    return session, None if found is not None else ("dask-serverless", "dask-serverless")


class LambdaInvoker:
    """Start executors by the Lambda Invoke API (``Event``), several at the same time.

    Parameters
    ----------
    function_name
        Name or ARN of the function that runs assignments of the default class.
    secret
        The cluster's secret, with which payloads are sealed.
    endpoint_url, region
        Where Lambda is; None: as the AWS configuration of this process says.
    connections_max
        How many requests may be under way at once.
    throttled_seconds_max
        How long one invocation may be refused with 429 before it is given up.
    broken_seconds_max
        How long one invocation is tried whose requests fail in the service, or on the way there.
    backoff_seconds_min, backoff_seconds_max
        First and longest wait between attempts (each is multiplied by a random number in 0.5 .. 1).
    random
        Source of jitter in 0 .. 1. The default is seeded by the operating system here, so that
        siblings of one fork do not march in step.
    credentials
        Access key and secret key; None: as configured. An endpoint on loopback needs none.
    larger_functions
        Names or ARNs of the functions of the classes above the default one, in their order.

    Examples
    --------
    >>> invoker = LambdaInvoker("dask", b"secret", "http://127.0.0.1:9001")
    >>> invoker
    <LambdaInvoker 'dask' at http://127.0.0.1:9001, idle>
    >>> invoker.close()
    """

    def __init__(
        self,
        function_name: str,
        secret: bytes,
        endpoint_url: str | None = None,
        region: str | None = None,
        connections_max: int = 64,
        *,
        throttled_seconds_max: float = 30.0,
        broken_seconds_max: float = BROKEN_SECONDS_MAX,
        backoff_seconds_min: float = 0.02,
        backoff_seconds_max: float = 2.0,
        random: Callable[[], float] | None = None,
        credentials: tuple[str, str] | None = None,
        larger_functions: Sequence[str] = (),
    ):
        self.function_name = function_name
        self.functions = (function_name, *larger_functions)
        self.endpoint_url = endpoint_url
        self.region = region
        self.connections_max = connections_max
        self._secret = secret
        self._throttled_seconds_max = throttled_seconds_max
        self._broken_seconds_max = broken_seconds_max
        self._backoff_seconds_min = backoff_seconds_min
        self._backoff_seconds_max = backoff_seconds_max
        self._random = random or _random.Random().random
        self._credentials = credentials
        #: Tells, on the invoker's own thread and before each request, whether an invocation is still wanted.
        self.is_wanted: Callable[[Assignment], bool] = lambda assignment: True
        self._lock = threading.Lock()
        self._line: _Line | None = None
        self._closed = False
        self._counters = {"invocations": 0, "throttled": 0, "refused": 0}

    def __repr__(self) -> str:
        state = "closed" if self._closed else "idle" if self._line is None else "open"
        return f"<{type(self).__name__} {self.function_name!r} at {self.endpoint_url or 'AWS'}, {state}>"

    @property
    def warm(self) -> bool:
        """See `ports.Invoker.warm`."""
        return self._line is not None

    def invoke(self, assignments: Sequence[Assignment]) -> list[BaseException | None]:
        """Invoke one Lambda for each assignment; see `ports.Invoker`."""
        if not assignments:
            return []
        try:
            return self.begin(assignments).result()  # bound: each request has one, see `_invoke_one`
        except concurrent.futures.CancelledError:  # closed while under way
            return [self._refusal("Closed", "the invoker was closed")] * len(assignments)

    async def invoke_async(self, assignments: Sequence[Assignment]) -> list[BaseException | None]:
        """Do as `invoke`, without blocking the caller's event loop."""
        return await self.answers(assignments, self.begin(assignments)) if assignments else []

    async def answers(
        self, assignments: Sequence[Assignment], under_way: concurrent.futures.Future[list[BaseException | None]]
    ) -> list[BaseException | None]:
        """Wait for what `begin` began, without blocking the caller's event loop."""
        try:
            return await asyncio.wrap_future(under_way)
        except asyncio.CancelledError:
            if not self._closed:
                raise
            return [self._refusal("Closed", "the invoker was closed")] * len(assignments)

    def counters(self) -> dict[str, int]:
        """Return ``invocations`` (accepted), ``throttled`` (429 answers) and ``refused`` so far."""
        return dict(self._counters)

    def close(self) -> None:
        """Drop what is under way, close all connections, end the thread. Idempotent."""
        with self._lock:
            self._closed = True
            line, self._line = self._line, None
        if line is not None:
            line.finalizer()

    def begin(self, assignments: Sequence[Assignment]) -> concurrent.futures.Future[list[BaseException | None]]:
        """Begin to invoke, from any thread, and wait for nothing."""
        with self._lock:
            if self._closed:
                raise self._refusal("Closed", "the invoker was closed")
            if self._line is None or self._line.pid != os.getpid():  # a fork inherits the object, not the thread
                self._line = _Line(self.connections_max)
                # Beside close(): nobody's daemon thread may outlive the interpreter's modules.
                self._line.finalizer = weakref.finalize(self, self._line.close)
            return asyncio.run_coroutine_threadsafe(self._invoke_all(assignments, self._line), self._line.loop)

    async def _invoke_all(self, assignments: Sequence[Assignment], line: _Line) -> list[BaseException | None]:
        try:
            await line.client(self._open_client)
        except Exception as error:
            refusal = self._refusal(*code_and_message(error))
            return [refusal] * len(assignments)
        return list(await asyncio.gather(*(self._invoke_one(each, line) for each in assignments)))

    def _open_client(self) -> Any:
        return open_client("lambda", self.endpoint_url, self.region, self.connections_max, self._credentials)

    async def _invoke_one(self, assignment: Assignment, line: _Line) -> BaseException | None:
        begun = line.loop.time()
        broken = 0
        stale: Any = None  # a client whose credentials were not good
        backoff = self._backoff_seconds_min
        while True:
            async with line.slots:
                await self._before(line.loop.time())
                if not self.is_wanted(assignment):  # its job was cancelled, or has failed, while it waited here
                    return self._refusal("Unwanted", "its job is over", self.functions[assignment.function_class])
                code, message, again, client = await self._attempt(assignment, line, stale)
            await self._after(line.loop.time(), code)
            if code is None:
                self._counters["invocations"] += 1
                return None
            throttled = code in THROTTLED
            self._counters["throttled"] += throttled
            if code in REFUSED:
                again = stale is None
            elif code in UNAVAILABLE:
                again = True
            if remedy_of(code) is not None:
                stale = client
            broken += again and not throttled
            pause = backoff * (0.5 + 0.5 * self._random())
            waited = line.loop.time() + pause - begun
            given_up = broken >= BROKEN_ATTEMPTS_MAX and waited > self._broken_seconds_max
            if not again or given_up or waited > self._throttled_seconds_max:
                self._counters["refused"] += 1
                return self._refusal(code, message, self.functions[assignment.function_class])
            await asyncio.sleep(pause)
            backoff = min(2 * backoff, self._backoff_seconds_max)

    async def _attempt(self, assignment: Assignment, line: _Line, stale: Any) -> tuple[str | None, str, bool, Any]:
        """Send one request by another client than `stale`.

        Return the error's code (None: accepted), its text, whether to try again, and the client.
        """
        client = stale
        try:
            client = await line.client(self._open_client, stale)
            # The payload is made here, inside the slot: ten thousand waiting invocations hold none.
            response = await client.invoke(
                FunctionName=self.functions[assignment.function_class],
                InvocationType="Event",
                Payload=payload_of(self._secret, [assignment]),
            )
            async with response["Payload"] as body:  # unread, it would keep its connection
                await body.read()
            return None, "", False, client
        except Exception as error:
            code, message = code_and_message(error)
            # Who was on the way to Lambda when another one replaced the client, and closed it, never got there.
            replaced = client is not stale and not line.is_current(client)
            return code, message, code in THROTTLED or is_broken(error) or replaced, client

    async def _before(self, now: float) -> None:
        """Wait until a request may be sent (a hook for a governor)."""

    async def _after(self, now: float, code: str | None) -> None:
        """Hear how a request ended (a hook for a governor)."""

    def _refusal(self, code: str, message: str, function: str | None = None) -> InvocationRefused:
        remedy = remedy_of(code)
        advice = remedy or _ADVICE.get(code)
        where = f" at {self.endpoint_url}" if self.endpoint_url else f" in {self.region}" if self.region else ""
        text = f"Lambda function {(function or self.function_name)!r}{where} was not invoked: {code}: {message}"
        return (CredentialsRefused if remedy else InvocationRefused)(f"{text} ({advice})" if advice else text)


class _Line:
    """The thread, loop and client of one invoker.

    Knows nothing of its owner, so that the owner can be collected, which ends the thread.
    """

    finalizer: weakref.finalize[..., Any]

    def __init__(self, connections_max: int):
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.slots = asyncio.Semaphore(connections_max)
        self._stack = contextlib.AsyncExitStack()
        self._client: asyncio.Task[Any] | None = None
        self._thread = threading.Thread(target=self._run, name="dask-serverless-invoker", daemon=True)
        self._thread.start()

    async def client(self, opened: Callable[[], Any], stale: Any = None) -> Any:
        """Return the one client; who comes while it is made waits for it. A failure is not kept.

        Another one takes its place if it is the `stale` one. What is under way on that breaks, and is sent again.
        """
        if stale is not None and self.is_current(stale):
            self._client = None
            old, self._stack = self._stack, contextlib.AsyncExitStack()
            await old.aclose()
        if self._client is None:
            self._client = asyncio.ensure_future(self._stack.enter_async_context(opened()))
        task = self._client
        try:
            # Shielded: the first caller's cancellation is not everybody's.
            return await asyncio.shield(task)
        except Exception:
            if self._client is task:
                self._client = None
            raise

    def is_current(self, client: Any) -> bool:
        """Tell whether this is the one client now."""
        task = self._client
        if task is None or not task.done() or task.exception() is not None:
            return False
        return task.result() is client  # bound: it is done

    def close(self) -> None:
        """End everything; safe in any thread, and in a forked child (where there is nothing to end)."""
        if self.pid != os.getpid() or self.loop.is_closed():
            return
        with contextlib.suppress(RuntimeError):  # closed between the two lines
            self.loop.call_soon_threadsafe(self.loop.stop)
        if threading.current_thread() is not self._thread:  # the garbage collector runs anywhere
            self._thread.join(CLOSE_SECONDS_MAX)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            with contextlib.suppress(TimeoutError):
                self.loop.run_until_complete(self._finish())
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()

    async def _finish(self) -> None:
        # Not asyncio.wait_for: around this coroutine it would be one more task, and cancelled below.
        async with asyncio.timeout(CLOSE_SECONDS_MAX):
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._stack.aclose()
            await asyncio.sleep(0)  # transports close one turn later
            await self.loop.shutdown_asyncgens()


def code_and_message(error: Exception) -> tuple[str, str]:
    """Name an error of botocore as AWS does, or else by its class."""
    response = getattr(error, "response", None)
    if isinstance(response, dict) and "Error" in response:
        code = str(response["Error"].get("Code") or type(error).__name__)
        return code, str(response["Error"].get("Message") or error)
    return code_of(error), str(error)


def is_broken(error: Exception) -> bool:
    """Tell whether the way to Lambda failed (or Lambda itself), rather than the request."""
    from botocore.exceptions import ClientError, HTTPClientError

    if isinstance(error, ClientError):
        return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) >= 500
    return isinstance(error, (HTTPClientError, ConnectionError, TimeoutError))
