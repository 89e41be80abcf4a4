"""The Invoker port and the failure queue, against HTTP services that speak as AWS does.

The service here is a small one that can be told to misbehave; the local Lambda service is held to
the same behaviour by its own tests.
"""

import asyncio
import gc
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections import deque

import psutil
import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from dask_serverless.invoke import FailureQueue, GovernedInvoker, Limits
from lambda_worker.core.errors import InvocationRefused
from lambda_worker.core.schedule import Assignment
from lambda_worker.invoker import LambdaInvoker, is_loopback
from lambda_worker.payload import assignments_of
from tests.waiting import until

SECRET = b"s" * 32


class Aws:
    """Lambda's Invoke API and SQS's receive and delete, in a thread, with answers to order."""

    def __init__(self):
        self.invoked = []  # (headers, event)
        self.answers = deque()  # statuses (or (status, code)) of the next invocations; then 202
        self.delay_seconds = 0.0
        self.under_way = self.under_way_max = 0
        self.messages = {}
        self.deleted = []
        self.sqs_errors = 0
        self.polled = threading.Event()
        self.is_good = lambda key: True  # whether an access key has not ended
        self.refusals = 0
        started = threading.Event()

        async def main():
            self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
            sockets = bind_sockets(0, "127.0.0.1")
            self.endpoint_url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
            server = HTTPServer(
                Application(
                    [(r"/2015-03-31/functions/(.*)/invocations", _Invoke, {"aws": self}), (r"/.*", _Sqs, {"aws": self})]
                )
            )
            server.add_sockets(sockets)
            started.set()
            await self.stop.wait()
            server.stop()
            await server.close_all_connections()

        self.thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
        self.thread.start()
        started.wait()

    def close(self):
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join()

    @property
    def executors(self):
        return sorted(assignments_of(SECRET, event)[0].executor for _, event in self.invoked)


class _Signed(RequestHandler):
    def initialize(self, aws):
        self.aws = aws

    def refuses(self):
        """Answer as AWS does when a key has ended."""
        key = self.request.headers["Authorization"].partition("Credential=")[2].partition("/")[0]
        if self.aws.is_good(key):
            return False
        self.aws.refusals += 1
        self.set_status(403)
        self.set_header("x-amzn-ErrorType", "ExpiredTokenException")
        self.set_header("Content-Type", "application/json")
        self.write(
            {"__type": "ExpiredTokenException", "message": "The security token included in the request is expired"}
        )
        return True


class _Invoke(_Signed):
    async def post(self, name):
        aws = self.aws
        if self.refuses():
            return
        aws.under_way += 1
        aws.under_way_max = max(aws.under_way_max, aws.under_way)
        await asyncio.sleep(aws.delay_seconds)
        aws.under_way -= 1
        answer = aws.answers.popleft() if aws.answers else 202
        if answer == "break":
            self.request.connection.stream.close()
            return
        status, code = answer if isinstance(answer, tuple) else (answer, "TooManyRequestsException")
        self.set_status(status)
        if status == 202:
            aws.invoked.append((self.request.headers, json.loads(self.request.body)))
            return
        self.set_header("x-amzn-ErrorType", code)
        self.set_header("Content-Type", "application/json")
        self.write({"Type": "User", "message": f"because {name}"})


class _Sqs(_Signed):
    async def post(self):
        aws = self.aws
        if self.refuses():
            return
        aws.polled.set()
        if aws.sqs_errors:
            aws.sqs_errors -= 1
            self.set_status(500)
            return
        request = json.loads(self.request.body)
        self.set_header("Content-Type", "application/x-amz-json-1.0")
        if self.request.headers["X-Amz-Target"] == "AmazonSQS.ReceiveMessage":
            for _ in range(int(request["WaitTimeSeconds"] * 100)):
                if aws.messages:
                    break
                await asyncio.sleep(0.01)
            taken = list(aws.messages.items())[: request["MaxNumberOfMessages"]]
            messages = [{"MessageId": handle, "ReceiptHandle": handle, "Body": body} for handle, body in taken]
            self.write(json.dumps({"Messages": messages} if messages else {}))
        else:
            for entry in request["Entries"]:
                aws.messages.pop(entry["ReceiptHandle"], None)
                aws.deleted.append(entry["ReceiptHandle"])
            self.write(json.dumps({"Successful": [{"Id": entry["Id"]} for entry in request["Entries"]], "Failed": []}))


@pytest.fixture
def aws(monkeypatch):
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    service = Aws()
    yield service
    service.close()


@pytest.fixture(params=[LambdaInvoker, GovernedInvoker])
def make(request, aws):
    made = []

    def make(**kwargs):
        kwargs = {"endpoint_url": aws.endpoint_url, "backoff_seconds_min": 0.001, **kwargs}
        made.append(request.param("dask", SECRET, **kwargs))
        return made[-1]

    yield make
    for invoker in made:
        invoker.close()


def assignments(count):
    return [Assignment("job", f"{number:04}", 1, [number]) for number in range(count)]


def test_one_event_invocation_for_each_assignment(aws, make):
    assert make().invoke(assignments(3)) == [None, None, None]

    assert aws.executors == ["0000", "0001", "0002"]
    assert {headers["X-Amz-Invocation-Type"] for headers, _ in aws.invoked} == {"Event"}


def test_nothing_to_invoke_opens_nothing(aws, make):
    before = threading.active_count()
    assert make().invoke([]) == []
    assert threading.active_count() == before


def test_many_at_once_but_not_more_than_connections(aws, make):
    aws.delay_seconds = 0.01
    invoker = make(connections_max=8)

    assert invoker.invoke(assignments(100)) == [None] * 100
    assert len(set(aws.executors)) == 100
    assert 4 <= aws.under_way_max <= 8


def test_several_threads_at_once(aws, make):
    invoker = make()
    threads = [threading.Thread(target=invoker.invoke, args=(assignments(5),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(aws.invoked) == 40
    assert invoker.counters()["invocations"] == 40


@pytest.mark.fault(9)
def test_throttling_is_waited_out(aws, make):
    aws.answers.extend([429] * 6)
    invoker = make()

    assert invoker.invoke(assignments(3)) == [None] * 3
    assert aws.executors == ["0000", "0001", "0002"]
    assert invoker.counters() == {"invocations": 3, "throttled": 6, "refused": 0}


@pytest.mark.fault(9)
def test_throttling_for_ever_is_given_up_in_time(aws, make):
    aws.answers.extend([429] * 10_000)
    invoker = make(throttled_seconds_max=0.3)

    before = time.monotonic()
    [error] = invoker.invoke(assignments(1))

    assert time.monotonic() - before < 5
    assert isinstance(error, InvocationRefused)
    for piece in ("'dask'", "TooManyRequestsException", "concurrency limit"):
        assert piece in str(error)


@pytest.mark.fault(9)
def test_back_off_doubles_with_jitter_from_the_given_source(aws):
    aws.answers.extend([429] * 4)
    drawn = []

    def luck():
        drawn.append(1.0)
        return 1.0

    invoker = LambdaInvoker("dask", SECRET, aws.endpoint_url, backoff_seconds_min=0.04, random=luck)
    before = time.monotonic()
    assert invoker.invoke(assignments(1)) == [None]
    assert time.monotonic() - before > 0.04 + 0.08 + 0.16 + 0.32
    assert len(drawn) == 4
    invoker.close()


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (404, "ResourceNotFoundException", "no such function"),
        (403, "AccessDeniedException", "lambda:InvokeFunction"),
        (413, "RequestTooLargeException", "too large"),
        (400, "InvalidRequestContentException", "because dask"),
    ],
)
def test_a_refusal_names_function_code_and_remedy(aws, make, status, code, advice):
    aws.answers.append((status, code))

    [refused, accepted] = make(connections_max=1).invoke(assignments(2))

    assert accepted is None, "the other one is not touched"
    assert isinstance(refused, InvocationRefused)
    for piece in ("'dask'", code, advice, aws.endpoint_url):
        assert piece in str(refused)


@pytest.mark.fault(10)
def test_a_service_error_or_broken_connection_is_tried_again(aws, make):
    aws.answers.extend([(500, "ServiceException"), "break", (502, "EC2UnexpectedException")])
    assert make().invoke(assignments(1)) == [None]
    assert len(aws.invoked) == 1


@pytest.mark.fault(10)
def test_a_broken_service_is_given_up(aws, make):
    aws.answers.extend([(500, "ServiceException")] * 4)
    [error] = make(broken_seconds_max=0).invoke(assignments(1))
    assert isinstance(error, InvocationRefused) and "ServiceException" in str(error)
    assert not aws.answers


@pytest.mark.fault(10)
def test_a_service_that_fails_for_a_second_is_waited_for(aws, make):
    aws.answers.extend([(500, "ServiceException"), "break", (503, "ServiceUnavailableException")] * 4)
    assert make(broken_seconds_max=5).invoke(assignments(1)) == [None]
    assert not aws.answers


def test_nobody_there(aws):
    invoker = LambdaInvoker("dask", SECRET, "http://127.0.0.1:9", broken_seconds_max=0.01)
    [error] = invoker.invoke(assignments(1))
    assert isinstance(error, InvocationRefused)
    assert "http://127.0.0.1:9" in str(error)
    invoker.close()


def test_from_an_event_loop(aws, make):
    invoker = make()

    async def main():
        return await asyncio.gather(*(invoker.invoke_async(assignments(2)) for _ in range(3)))

    assert asyncio.run(main()) == [[None, None]] * 3


def test_close_answers_who_waits_and_is_idempotent(aws, make):
    aws.delay_seconds = 5
    invoker = make()
    answers = []
    thread = threading.Thread(target=lambda: answers.extend(invoker.invoke(assignments(2))))
    thread.start()
    while not aws.under_way:
        time.sleep(0.01)

    before = time.monotonic()
    invoker.close()
    thread.join(3)

    assert time.monotonic() - before < 3
    assert [type(answer) for answer in answers] == [InvocationRefused] * 2
    invoker.close()
    with pytest.raises(InvocationRefused, match="closed"):
        invoker.invoke(assignments(1))


def test_nothing_is_left_open_and_nothing_warns(aws):
    threads = threading.active_count()
    sockets = len(psutil.Process().net_connections())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for close in (True, False):
            invoker = LambdaInvoker("dask", SECRET, aws.endpoint_url)
            assert invoker.invoke(assignments(4)) == [None] * 4
            if close:
                invoker.close()
            del invoker  # unclosed: the garbage collector does it
            gc.collect()
    # What nobody closed, and the service's side of a connection, end a moment later.
    until(lambda: threading.active_count() <= threads, lambda: f"{threads} threads, not {threading.enumerate()}")
    until(lambda: len(psutil.Process().net_connections()) <= sockets, f"{sockets} sockets")


def test_a_forked_child_opens_its_own(aws, make):
    invoker = make()
    assert invoker.invoke(assignments(1)) == [None]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if invoker.invoke(assignments(2)) == [None, None] else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert invoker.invoke(assignments(1)) == [None]
    assert len(aws.invoked) == 4


def test_an_unclosed_invoker_does_not_disturb_the_interpreters_end(aws):
    program = (
        "from lambda_worker.invoker import LambdaInvoker\n"
        "from lambda_worker.core.schedule import Assignment\n"
        f"invoker = LambdaInvoker('dask', b's', {aws.endpoint_url!r})\n"
        "assert invoker.invoke([Assignment('job', 'a', 1, [0])]) == [None]\n"
    )
    done = subprocess.run([sys.executable, "-W", "always", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_is_lean_and_preload_leaves_nothing_behind():
    program = (
        "import sys, threading, lambda_worker.invoker\n"
        "assert not {'botocore', 'aiobotocore', 'aiohttp'} & set(sys.modules)\n"
        "lambda_worker.invoker.preload()\n"
        "assert 'aiobotocore' in sys.modules and threading.active_count() == 1\n"
        "import psutil; assert not psutil.Process().net_connections()\n"
    )
    done = subprocess.run([sys.executable, "-W", "always", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_broken_aws_profile_does_not_matter_on_loopback(aws, make, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    assert make().invoke(assignments(1)) == [None]


def test_configured_credentials_are_used_on_loopback_too(aws, make, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "configured")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "configured")
    assert make().invoke(assignments(1)) == [None]
    assert "Credential=configured/" in aws.invoked[0][0]["Authorization"]


def test_no_dummy_credentials_leave_the_machine(aws, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    invoker = LambdaInvoker("dask", SECRET, "http://192.0.2.1:9", "us-east-1")
    [error] = invoker.invoke(assignments(1))
    assert "NoCredentials" in str(error)
    invoker.close()


def test_a_missing_region_is_named(aws):
    invoker = LambdaInvoker("dask", SECRET)
    [error] = invoker.invoke(assignments(1))
    assert "NoRegion" in str(error) and "AWS_REGION" in str(error)
    invoker.close()


@pytest.mark.parametrize("url", ["http://localhost:1", "http://127.1.2.3", "http://[::1]:80", "http://a.localhost"])
def test_loopback(url):
    assert is_loopback(url)


@pytest.mark.parametrize(
    "url", [None, "https://lambda.eu-west-1.amazonaws.com", "http://10.0.0.1", "http://localhost.evil.com"]
)
def test_not_loopback(url):
    assert not is_loopback(url)


def test_a_governor_paces_the_proxys_invocations(aws):
    invoker = GovernedInvoker("dask", SECRET, aws.endpoint_url, limits=Limits(rate_per_second_max=100, burst_max=10))
    before = time.monotonic()
    assert invoker.invoke(assignments(40)) == [None] * 40
    assert 0.28 < time.monotonic() - before < 3
    invoker.close()


# --- the failure queue


def record(number):
    return json.dumps(
        {
            "version": "1.0",
            "requestContext": {"condition": "RetriesExhausted", "approximateInvokeCount": 1},
            "requestPayload": {"v": 1, "runs": [str(number)]},
            "responseContext": {"statusCode": 200, "functionError": "Unhandled"},
            "responsePayload": {"errorType": "Runtime.ExitError", "errorMessage": "signal: killed"},
        }
    )


async def read(queue, count):
    failures = []
    records = queue.__aiter__()
    try:
        while len(failures) < count:
            failures.append(await asyncio.wait_for(anext(records), 10))
        # Coming back for more is what deletes the last ones.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(records), 0.3)
    finally:
        await records.aclose()
    return failures


@pytest.fixture
def queue(aws):
    return FailureQueue(f"{aws.endpoint_url}/000000000000/dask-serverless-failures", aws.endpoint_url)


def test_failures_are_read_and_deleted(aws, queue):
    aws.messages = {f"h{number}": record(number) for number in range(25)}

    failures = asyncio.run(read(queue, 25))

    assert failures[3] == ({"v": 1, "runs": ["3"]}, "Runtime.ExitError", "signal: killed")
    assert sorted(aws.deleted) == sorted(f"h{number}" for number in range(25))


def test_what_is_no_record_is_skipped_and_deleted(aws, queue):
    aws.messages = {"a": "nonsense", "b": "[]", "c": json.dumps({"requestPayload": "text"}), "d": record(0)}
    assert len(asyncio.run(read(queue, 1))) == 1
    assert sorted(aws.deleted) == ["a", "b", "c", "d"]


def test_a_timeout_has_a_type_although_aws_gives_none(aws, queue):
    body = json.loads(record(0))
    body["responsePayload"] = {"errorMessage": "2026-01-01T00:00:00Z d34d Task timed out after 3.00 seconds"}
    aws.messages = {"a": json.dumps(body)}
    [failure] = asyncio.run(read(queue, 1))
    assert failure.error_type == "Sandbox.Timedout"


def test_errors_of_the_endpoint_are_survived(aws):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)
        await asyncio.sleep(0)

    queue = FailureQueue(f"{aws.endpoint_url}/0/q", aws.endpoint_url, sleep=sleep)
    aws.sqs_errors = 10
    aws.messages = {"a": record(0)}
    assert len(asyncio.run(read(queue, 1))) == 1
    assert slept == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0]


def test_cancelled_while_polling(aws, queue):
    async def main():
        task = asyncio.create_task(read(queue, 1))
        while not aws.polled.is_set():
            await asyncio.sleep(0.01)
        before = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - before < 1

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main())
        gc.collect()
