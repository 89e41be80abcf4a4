"""The embedded Lambda service, reached the way users reach it: through unmodified AWS clients."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import ClientError

from dask_serverless.local_lambda import FunctionConfig, LocalLambda, LocalLambdaError, sandbox, verdicts
from dask_serverless.local_lambda.config import FunctionSize
from dask_serverless.local_lambda.failures import FailureQueue
from dask_serverless.local_lambda.pool import Deliver, Finish, Invocation, Kill, Limits, Pool, Start, State, Throttled
from dask_serverless.local_lambda.verdicts import Outcome
from dask_serverless.local_lambda.zygote import fill_holes

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FUNCTION = "dask-serverless-executor"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sandboxes are watched through /proc")


def config(**changes: Any) -> FunctionConfig:
    settings: dict[str, Any] = {
        "handler": "local_lambda_handler.handler",
        "python_path": (str(HERE),),
        "preload": ("numpy", "numpy.random"),
        "concurrency": 8,
    }
    return FunctionConfig(**{**settings, **changes})


def until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


class Aws:
    """The two clients, and short words for what the tests do with them."""

    def __init__(self, service: LocalLambda, functions: Any, queues: Any) -> None:
        self.service = service
        self.functions = functions
        self.queues = queues

    async def call(self, **event: Any) -> Any:
        """Invoke and wait for the value."""
        reply = await self.functions.invoke(FunctionName=event.pop("to", FUNCTION), Payload=json.dumps(event))
        value = json.loads(await reply["Payload"].read())
        assert "FunctionError" not in reply, value
        return value

    async def fail(self, **event: Any) -> dict[str, Any]:
        """Invoke, expect the function to fail, return the error."""
        reply = await self.functions.invoke(FunctionName=event.pop("to", FUNCTION), Payload=json.dumps(event))
        assert reply["StatusCode"] == 200
        assert reply["FunctionError"] == "Unhandled"
        error: dict[str, Any] = json.loads(await reply["Payload"].read())
        assert not error["errorMessage"].startswith("RequestId:") or (
            reply["ResponseMetadata"]["RequestId"] in error["errorMessage"]
        )
        return error

    async def send(self, **event: Any) -> str:
        """Invoke asynchronously and return the request id."""
        reply = await self.functions.invoke(
            FunctionName=event.pop("to", FUNCTION), Payload=json.dumps(event), InvocationType="Event"
        )
        assert reply["StatusCode"] == 202
        return str(reply["ResponseMetadata"]["RequestId"])

    async def failure(self, request_id: str) -> dict[str, Any]:
        """Wait for the record of a failed asynchronous invocation, and delete it."""
        async with asyncio.timeout(10):
            while True:
                received = await self.queues.receive_message(
                    QueueUrl=self.service.failure_queue_url, WaitTimeSeconds=5, MaxNumberOfMessages=10
                )
                for message in received.get("Messages", []):
                    record: dict[str, Any] = json.loads(message["Body"])
                    await self.queues.delete_message(
                        QueueUrl=self.service.failure_queue_url, ReceiptHandle=message["ReceiptHandle"]
                    )
                    if record["requestContext"]["requestId"] == request_id:
                        return record


async def connect(stack: AsyncExitStack, service: LocalLambda) -> Aws:
    clients = []
    for name in ("lambda", "sqs"):
        client = get_session().create_client(
            name,
            endpoint_url=service.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=AioConfig(max_pool_connections=100, retries={"total_max_attempts": 1}),
        )
        clients.append(await stack.enter_async_context(client))
    return Aws(service, *clients)


@pytest.fixture(scope="module")
def service() -> Iterator[LocalLambda]:
    """One service for all tests that do not change it: 2-second timeout, 96 MB, 50 at once."""
    with LocalLambda(
        config(concurrency=50, timeout_seconds=2, memory_mb=96, environment={"COLOUR": "blue"})
    ) as running:
        yield running


@pytest.fixture
async def aws(service: LocalLambda) -> AsyncIterator[Aws]:
    async with AsyncExitStack() as stack:
        yield await connect(stack, service)


# A function runs -----------------------------------------------------------------------------


async def test_an_invocation_returns_what_the_handler_returns(aws: Aws) -> None:
    value = await aws.call(do="echo", text="żółw")
    assert value["event"] == {"do": "echo", "text": "żółw"}
    assert value["arn"] == f"arn:aws:lambda:us-east-1:000000000000:function:{FUNCTION}"


async def test_a_function_is_found_by_arn_and_qualifier(aws: Aws) -> None:
    arn = f"arn:aws:lambda:us-east-1:000000000000:function:{FUNCTION}"
    for name, more in ((arn, {}), (FUNCTION, {"Qualifier": "$LATEST"}), (f"{FUNCTION}:$LATEST", {})):
        reply = await aws.functions.invoke(FunctionName=name, Payload="{}", **more)
        assert reply["ExecutedVersion"] == "$LATEST"


async def test_a_sandbox_is_a_place_of_its_own(aws: Aws) -> None:
    about = await aws.call(do="about")
    environment = about["environment"]
    assert environment["COLOUR"] == "blue"
    assert environment["AWS_LAMBDA_FUNCTION_NAME"] == FUNCTION
    assert environment["AWS_LAMBDA_FUNCTION_VERSION"] == "$LATEST"
    assert environment["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] == "96"
    assert environment["DASK_SERVERLESS_ENDPOINT"] == aws.service.endpoint_url
    assert environment.get("AWS_ENDPOINT_URL") == os.environ.get("AWS_ENDPOINT_URL")
    assert environment["OPENBLAS_NUM_THREADS"] == "1"
    assert environment["_X_AMZN_TRACE_ID"].startswith("Root=1-")
    assert about["group"] == about["pid"]
    assert about["temporary"] == environment["TMPDIR"]
    assert 0 < about["remaining"] <= 2000
    assert about["loaded"] == []  # neither this package nor the scheduler's
    assert not any(process.cmdline()[-1] == "zygote" for process in family(about["pid"]))


async def test_sandboxes_draw_different_random_numbers(aws: Aws) -> None:
    draws = await asyncio.gather(*(aws.call(do="draw", seconds=0.1) for _ in range(4)))
    assert len({draw["pid"] for draw in draws}) == 4
    assert len({draw["random"] for draw in draws}) == 4
    assert len({draw["numpy"] for draw in draws}) == 4


async def test_a_warm_sandbox_is_reused(aws: Aws) -> None:
    await aws.call(do="echo")
    before = await asyncio.to_thread(aws.service.counters)
    for _ in range(20):  # at once: a sandbox that is still on its way back must not cost a cold start
        await aws.call(do="echo")
    after = await asyncio.to_thread(aws.service.counters)
    assert after["sandboxes_cold"] == before["sandboxes_cold"]
    assert after["sandboxes_warm"] == before["sandboxes_warm"] + 20
    assert after["billed_milliseconds"] >= before["billed_milliseconds"] + 20
    assert after["gb_seconds"] == pytest.approx(after["billed_milliseconds"] / 1000 * 96 / 1024)


@pytest.mark.fault(9)
async def test_fifty_run_in_parallel_and_one_more_is_refused(aws: Aws, tmp_path: Path) -> None:
    until_path = tmp_path / "until"
    holds = [
        asyncio.create_task(aws.call(do="hold", begun=str(tmp_path / f"begun-{i}"), until=str(until_path)))
        for i in range(50)
    ]
    await asyncio.to_thread(until, lambda: len(list(tmp_path.glob("begun-*"))) == 50, 10)
    for kind in ("Event", "RequestResponse"):
        with pytest.raises(ClientError) as refused:
            await aws.functions.invoke(FunctionName=FUNCTION, Payload="{}", InvocationType=kind)
        assert refused.value.response["Error"]["Code"] == "TooManyRequestsException"
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 429
        assert refused.value.response["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded"
    until_path.touch()
    assert len({value["pid"] for value in await asyncio.gather(*holds)}) == 50
    assert (await asyncio.to_thread(aws.service.counters))["throttled"] == 2


async def test_dry_run_runs_nothing(aws: Aws) -> None:
    before = (await asyncio.to_thread(aws.service.counters))["invocations"]
    reply = await aws.functions.invoke(FunctionName=FUNCTION, InvocationType="DryRun")
    assert reply["StatusCode"] == 204
    assert (await asyncio.to_thread(aws.service.counters))["invocations"] == before


async def test_output_is_in_the_logs(aws: Aws) -> None:
    await aws.call(do="print", text="a line to be found")
    assert "a line to be found" in await asyncio.to_thread(aws.service.logs, 20)


# Refusals ------------------------------------------------------------------------------------


@pytest.mark.fault(46)
def test_what_is_printed_on_a_full_disk_is_dropped() -> None:
    """Else a task fails that prints, because the log of this service is full."""
    with open("/dev/full", "wb") as full:
        stream = sandbox.log_stream(full.fileno())
        print("hello", 1, file=stream, flush=True)
        assert stream.buffer.write(b"bytes") == 5
    with tempfile.TemporaryFile() as file:
        print("hello", 1, file=sandbox.log_stream(file.fileno()))
        file.seek(0)
        assert file.read() == b"hello 1\n"


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"FunctionName": "nobody"}, 404, "ResourceNotFoundException"),
        ({"Payload": b"{"}, 400, "InvalidRequestContentException"),
        ({"Payload": b'"' + b"x" * 2**20 + b'"', "InvocationType": "Event"}, 413, "RequestTooLargeException"),
        ({"Payload": b'"' + b"x" * 6 * 2**20 + b'"'}, 413, "RequestTooLargeException"),
    ],
    ids=["no-such-function", "not-json", "event-too-large", "request-too-large"],
)
async def test_refusals_are_those_of_aws(aws: Aws, request_: dict[str, Any], status: int, code: str) -> None:
    with pytest.raises(getattr(aws.functions.exceptions, code)) as refused:
        await aws.functions.invoke(**{"FunctionName": FUNCTION, "Payload": b"{}", **request_})
    assert refused.value.response["Error"]["Code"] == code
    assert refused.value.response["Error"]["Message"]
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == status


@pytest.mark.fault(41)
async def test_an_unsigned_request_is_refused(service: LocalLambda) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(service.endpoint_url.rpartition(":")[2]))
    path = f"/2015-03-31/functions/{FUNCTION}/invocations"
    writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode())
    answer = await reader.read()
    writer.close()
    assert b"403" in answer.splitlines()[0]
    assert b"MissingAuthenticationTokenException" in answer


async def test_a_payload_of_five_megabytes_travels_both_ways(aws: Aws) -> None:
    value = await aws.call(do="echo", text="x" * 5 * 2**20)
    assert len(value["event"]["text"]) == 5 * 2**20


# Failures ------------------------------------------------------------------------------------

FAILURES: dict[str, tuple[dict[str, Any], str, str]] = {
    "raise": ({}, "Unhappy", "on demand"),
    "exit": ({"status": 3}, "Runtime.ExitError", "RequestId: {id} Error: Runtime exited with error: exit status 3"),
    "kill": ({}, "Runtime.ExitError", "RequestId: {id} Error: Runtime exited with error: signal: killed"),
    "segfault": (
        {},
        "Runtime.ExitError",
        "RequestId: {id} Error: Runtime exited with error: signal: segmentation fault",
    ),
    "sleep": ({"seconds": 60}, "Sandbox.Timedout", "RequestId: {id} Error: Task timed out after 2.00 seconds"),
    "grow": (
        {},
        "Runtime.OutOfMemory",
        "RequestId: {id} Error: Runtime exited with error: signal: killed Max Memory Used: ",
    ),
    "huge": ({"bytes": 100 * 2**30}, "MemoryError", ""),
    "large": ({"bytes": 7 * 2**20}, "Function.ResponseSizeTooLarge", "Response payload size"),
}


@pytest.mark.parametrize("what", FAILURES)
async def test_a_failure_is_told_to_the_caller_and_to_the_queue(aws: Aws, what: str) -> None:
    event, error_type, message = FAILURES[what]
    request_id, error = await asyncio.gather(aws.send(do=what, **event), aws.fail(do=what, **event))
    record = await aws.failure(request_id)
    assert error["errorType"] == error_type
    assert error["errorMessage"].startswith(message.partition("{id}")[0])
    assert record["version"] == "1.0"
    assert record["timestamp"].endswith("Z")
    assert record["requestContext"] == {
        "requestId": request_id,
        "functionArn": f"arn:aws:lambda:us-east-1:000000000000:function:{FUNCTION}:$LATEST",
        "condition": "RetriesExhausted",
        "approximateInvokeCount": 1,
    }
    assert record["requestPayload"] == {"do": what, **event}
    assert record["responseContext"] == {
        "statusCode": 200,
        "executedVersion": "$LATEST",
        "functionError": "Unhandled",
    }
    assert record["responsePayload"]["errorType"] == error_type
    assert record["responsePayload"]["errorMessage"].startswith(message.format(id=request_id))
    assert await aws.call(do="echo")  # and the service goes on


async def test_an_error_has_a_stack_trace(aws: Aws) -> None:
    error = await aws.fail(do="raise")
    assert error["requestId"]
    assert "local_lambda_handler.py" in error["stackTrace"][0]


async def test_a_sandbox_killed_while_idle_costs_no_invocation(aws: Aws) -> None:
    pid = (await aws.call(do="about"))["pid"]
    psutil.Process(pid).kill()
    # That the process is gone is not enough: the service must have heard of it.
    await asyncio.to_thread(until, lambda: pid not in [each["pid"] for each in aws.service.sandboxes()])
    assert (await aws.call(do="about"))["pid"] != pid


async def test_what_a_function_started_dies_with_its_sandbox(aws: Aws) -> None:
    started = await aws.call(do="child")
    child = psutil.Process(started["child"])
    psutil.Process(started["pid"]).kill()
    await asyncio.to_thread(until, lambda: is_gone(child))


@pytest.mark.fault(2)
async def test_the_service_survives_the_loss_of_its_zygote(aws: Aws) -> None:
    about = await aws.call(do="about")
    waiting = asyncio.create_task(aws.fail(do="sleep", seconds=60))
    await asyncio.to_thread(until, lambda: aws.service.counters()["running"] == 1)
    psutil.Process(about["parent"]).kill()
    assert (await waiting)["errorType"] == "Runtime.ExitError"
    assert (await aws.call(do="about"))["parent"] != about["parent"]


# The queue -----------------------------------------------------------------------------------


async def test_the_failure_queue_is_an_sqs_queue(aws: Aws) -> None:
    url = (await aws.queues.get_queue_url(QueueName="dask-serverless-failures"))["QueueUrl"]
    assert url == aws.service.failure_queue_url
    with pytest.raises(aws.queues.exceptions.QueueDoesNotExist):
        await aws.queues.get_queue_url(QueueName="another")
    poll = asyncio.create_task(aws.queues.receive_message(QueueUrl=url, WaitTimeSeconds=20, VisibilityTimeout=0))
    request_id = await aws.send(do="raise")
    [message] = (await poll)["Messages"]  # a long poll hears of a failure at once
    [again] = (await aws.queues.receive_message(QueueUrl=url, WaitTimeSeconds=5))["Messages"]
    assert message["MessageId"] == again["MessageId"]
    assert request_id in again["Body"]
    assert "Messages" not in await aws.queues.receive_message(QueueUrl=url)  # hidden
    deleted = await aws.queues.delete_message_batch(
        QueueUrl=url, Entries=[{"Id": "a", "ReceiptHandle": again["ReceiptHandle"]}]
    )
    assert [entry["Id"] for entry in deleted["Successful"]] == ["a"]
    assert (await asyncio.to_thread(aws.service.counters))["failures_queued"] == 0


def test_the_queue_drops_its_oldest_message_at_its_limit() -> None:
    queue = FailureQueue(messages_max=2)
    for body in "abc":
        queue.put(body, now=0)
    assert [message["Body"] for message in queue.receive(10, now=0)] == ["b", "c"]
    assert queue.dropped == 1
    assert [message["Body"] for message in queue.receive(10, now=31)] == ["b", "c"]  # visible again


# The service's own life ----------------------------------------------------------------------


async def test_functions_with_the_same_code_differ_in_name_memory_and_timeout(tmp_path: Path) -> None:
    larger = (FunctionSize("larger", 256, 30),)
    async with AsyncExitStack() as stack:
        function = config(memory_mb=96, timeout_seconds=2, larger=larger, concurrency=1)
        service = stack.enter_context(LocalLambda(function))
        aws = await connect(stack, service)
        small = await aws.call(do="about")
        large = await aws.call(to="larger", do="about")
        assert [each["environment"]["AWS_LAMBDA_FUNCTION_NAME"] for each in (small, large)] == [FUNCTION, "larger"]
        assert [each["environment"]["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] for each in (small, large)] == ["96", "256"]
        assert small["remaining"] <= 2_000 < large["remaining"] <= 30_000
        assert small["pid"] != large["pid"]
        echo = await aws.call(to="larger", do="echo")
        assert echo["arn"].endswith(":function:larger")
        assert (await aws.fail(to="larger", do="grow"))["errorType"] == "Runtime.OutOfMemory"
        used = float((await aws.fail(to="larger", do="grow"))["errorMessage"].split("Used: ")[1].split()[0])
        assert used > 200
        # The record of a failure says whose it is, and the concurrency is one for both.
        begun, until_ = tmp_path / "begun", tmp_path / "until"
        request_id = await aws.send(to="larger", do="kill")
        record = await aws.failure(request_id)
        assert record["requestContext"]["functionArn"].endswith(":function:larger:$LATEST")
        await aws.send(to="larger", do="hold", begun=str(begun), until=str(until_))
        until(begun.exists)
        with pytest.raises(ClientError, match="TooManyRequestsException"):
            await aws.send(do="echo")
        until_.touch()


async def test_concurrency_can_be_changed() -> None:
    async with AsyncExitStack() as stack:
        service = LocalLambda(config(concurrency=0, preload=()))
        await asyncio.to_thread(service.start)
        stack.callback(service.close)
        aws = await connect(stack, service)
        with pytest.raises(aws.functions.exceptions.TooManyRequestsException):
            await aws.call(do="echo")
        await asyncio.to_thread(service.set_concurrency, 1)
        for _ in range(20):  # the next is accepted as soon as the last has been answered, by the same sandbox
            await aws.call(do="echo")
        assert [sandbox["served"] for sandbox in await asyncio.to_thread(service.sandboxes)] == [20]


def test_close_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    service = LocalLambda(config(preload=()))
    service.start()

    async def use() -> None:
        async with AsyncExitStack() as stack:
            aws = await connect(stack, service)
            await asyncio.gather(*(aws.call(do="sleep", seconds=0.05) for _ in range(4)))
            await aws.send(do="sleep", seconds=60)
            await aws.call(do="child")
            await aws.call(do="child", apart=True)

    asyncio.run(use())
    assert service.pid is not None
    processes = family(service.pid)
    assert len(processes) == 8  # service, zygote, four sandboxes, and two that these have started
    assert list(tmp_path.iterdir())
    port = int(service.endpoint_url.rpartition(":")[2])
    service.close()
    service.close()
    assert not any(process.is_running() for process in processes)
    assert list(tmp_path.iterdir()) == []
    assert not any(c.laddr.port == port and c.status == "LISTEN" for c in psutil.net_connections("tcp"))
    with pytest.raises(LocalLambdaError):
        service.counters()


def test_it_outlives_the_thread_that_started_it() -> None:
    service = LocalLambda(config(preload=()))
    thread = threading.Thread(target=service.start)
    thread.start()
    thread.join()
    try:
        assert service.counters()["running"] == 0
    finally:
        service.close()


OWNER = """
import asyncio, sys
sys.path.insert(0, {root!r})
from dask_serverless.local_lambda import FunctionConfig, LocalLambda
service = LocalLambda(FunctionConfig(handler="local_lambda_handler.handler", python_path=({here!r},), preload=()))
service.start()
print(service.pid, service.endpoint_url, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("victim", ["owner", "service"])
async def test_nothing_survives_a_killed_parent(victim: str, tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(root=str(ROOT), here=str(HERE))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert owner.stdin is not None and owner.stdout is not None
    try:
        pid, endpoint_url = (await asyncio.to_thread(owner.stdout.readline)).split()
        service = LocalLambda()  # only a name for the endpoint
        service._address = endpoint_url.removeprefix("http://")
        async with AsyncExitStack() as stack:
            aws = await connect(stack, service)
            await aws.call(do="child", apart=True)
            await aws.send(do="sleep", seconds=60)
        processes = family(int(pid))
        assert len(processes) >= 4
        began = time.monotonic()
        os.kill(owner.pid if victim == "owner" else int(pid), signal.SIGKILL)
        await asyncio.to_thread(until, lambda: all(is_gone(process) for process in processes))
        assert time.monotonic() - began < 2  # one second, and the machine may be busy
        await asyncio.to_thread(until, lambda: not list(tmp_path.iterdir()))
    finally:
        owner.kill()
        owner.wait()
        owner.stdin.close()
        owner.stdout.close()


def test_a_handler_that_cannot_be_imported_is_an_error_with_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module_anywhere\n")
    service = LocalLambda(config(handler="broken.handler", python_path=(str(tmp_path),), preload=()))
    with pytest.raises(LocalLambdaError, match="No module named 'no_such_module_anywhere'"):
        service.start()
    assert service.pid is None


def test_a_handler_that_ends_or_hangs_python_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text("import os, sys; print('last words', flush=True); os._exit(7)\n")
    (tmp_path / "hangs.py").write_text("import time; time.sleep(100)\n")
    with pytest.raises(LocalLambdaError, match=r"status 7(.|\n)*last words"):
        LocalLambda(config(handler="ends.handler", python_path=(str(tmp_path),), preload=())).start()
    hangs = config(handler="hangs.handler", python_path=(str(tmp_path),), preload=(), start_seconds_max=0.5)
    with pytest.raises(LocalLambdaError, match="longer than"):
        LocalLambda(hangs).start()


def test_a_module_that_cannot_be_preloaded_is_reported_and_skipped() -> None:
    with LocalLambda(config(preload=("no_such_module_anywhere",))) as service:
        assert "no_such_module_anywhere" in service.preload_failures


# The pool, which is pure ---------------------------------------------------------------------


def pool(**changes: Any) -> Pool:
    names = iter("abcdefgh")
    settings: dict[str, Any] = {"concurrency": 4, "limits": [Limits(100, 10), Limits(200, 20)]}
    return Pool(**{**settings, **changes}, new_name=lambda: next(names))


def request(request_id: str, function: int = 0) -> Invocation:
    return Invocation(request_id, b"{}", event=True, function=function)


OK = Outcome(b"null")


def test_pool_an_invocation_waits_for_a_returning_sandbox_rather_than_start_another() -> None:
    p = pool()
    first, second = request("1"), request("2")
    assert p.invoke(first, 0) == [Start("a")]
    assert p.ready("a", 0.1) == [Deliver("a", first)]
    assert p.answered("a", "1", OK, 0.2) == [Finish(first, OK)]
    assert p.invoke(second, 0.2) == []
    assert p.ready("a", 0.201) == [Deliver("a", second)]
    assert p.counters.billed_milliseconds == 100


def test_pool_a_few_sandboxes_start_at_a_time_and_the_first_ones_take_what_waits() -> None:
    p = pool(concurrency=8, starting_max=2)
    requests = [request(str(number)) for number in range(4)]
    started = [each for invocation in requests for each in p.invoke(invocation, 0)]
    assert started == [Start("a"), Start("b")]
    assert p.ready("a", 0.1) == [Deliver("a", requests[0]), Start("c")]
    assert p.answered("a", "0", OK, 0.2) == [Finish(requests[0], OK)]
    assert p.ready("a", 0.2) == [Deliver("a", requests[1])]
    assert p.ready("b", 0.3) == [Deliver("b", requests[2])]
    assert p.died("c", 1, 0.4)[0] == Finish(requests[3], verdicts.start_failed("3", verdicts.exit_reason(1)))
    assert not p.waiting


def test_pool_a_returning_sandbox_that_does_not_return_is_replaced_and_then_killed() -> None:
    p = pool()
    p.invoke(request("1"), 0)
    p.ready("a", 0)
    p.answered("a", "1", OK, 0)
    assert p.invoke(request("2"), 0) == []
    assert p.tick(0.3, {}) == [Start("b")]
    p.ready("b", 0.4)
    assert Kill("a") in p.tick(10.0, {})


def test_pool_the_most_recently_used_is_used_and_the_least_recently_used_is_reaped() -> None:
    p = pool(idle_seconds_max=100)
    for i in range(3):
        p.invoke(request(str(i)), i)
    for name in "abc":
        p.ready(name, 3)
    for i, name in enumerate("abc"):
        p.answered(name, str(i), OK, 4 + i)
        p.ready(name, 4 + i)
    fourth = request("4")
    assert p.invoke(fourth, 7) == [Deliver("c", fourth)]
    assert p.tick(104, {}) == [Kill("c"), Kill("a")]  # the fourth is out of time; a was idle since 4
    assert p.tick(105, {}) == [Kill("b")]


def test_pool_a_timeout_ends_the_invocation_when_the_sandbox_is_dead_and_not_before() -> None:
    p = pool()
    p.invoke(request("1"), 0)
    p.ready("a", 0)
    assert p.tick(9.9, {"a": 100}) == []
    assert p.tick(10, {}) == [Kill("a")]
    assert p.answered("a", "1", OK, 10.001) == []
    assert p.running == 1
    [finish] = p.died("a", -9, 10.01)
    assert isinstance(finish, Finish) and b"timed out after 10.00 seconds" in finish.outcome.payload
    assert p.running == 0


def test_pool_retired_sandboxes_serve_nobody_again() -> None:
    p = pool()
    for i in range(3):
        p.invoke(request(str(i)), 0)
    for name in "abc":
        p.ready(name, 0)
    p.answered("b", "1", OK, 1)
    p.ready("b", 1)
    p.answered("c", "2", OK, 1)  # idle, returning, busy
    assert p.retire(False, 2) == [Kill("b"), Kill("c")]
    kill = Kill("a")
    assert p.answered("a", "0", OK, 3)[1:] == [kill]
    assert p.invoke(request("3"), 4) == [Start("d")]
    assert p.retire(False, 5) == []  # nobody has used it


def test_pool_retiring_at_once_ends_what_runs_and_what_waits() -> None:
    p = pool()
    p.invoke(request("1"), 0)
    p.ready("a", 0)
    p.invoke(request("2"), 0)
    kill, finish = p.retire(True, 1)
    assert kill == Kill("a")
    assert isinstance(finish, Finish) and finish.invocation.request_id == "2"
    assert b"Sandbox.Retired" in finish.outcome.payload and p.running == 1
    [finish] = p.died("a", -9, 1)
    assert isinstance(finish, Finish) and b"Sandbox.Retired" in finish.outcome.payload
    assert p.running == 0 and not p.waiting


@pytest.mark.fault(1)
def test_pool_a_sandbox_that_never_comes_up_takes_one_invocation_with_it() -> None:
    p = pool()
    p.invoke(request("1"), 0)
    p.invoke(request("2"), 0)
    [finish] = p.died("a", 1, 1)
    assert isinstance(finish, Finish) and finish.invocation.request_id == "1"
    assert b"exit status 1" in finish.outcome.payload
    [finish] = p.died("b", 1, 1)
    assert p.running == 0 and not p.waiting and not p.sandboxes


def test_pool_an_idle_sandbox_that_hangs_up_is_given_nothing() -> None:
    p = pool()
    p.invoke(request("1"), 0)
    p.ready("a", 0)
    p.answered("a", "1", OK, 1)
    p.ready("a", 1)
    assert p.hung_up("a", 2) == [Kill("a")]
    assert p.invoke(request("2"), 3) == [Start("b")]
    assert p.died("a", -9, 4) == []


def test_pool_refuses_above_its_concurrency() -> None:
    p = pool(concurrency=1)
    p.invoke(request("1"), 0)
    with pytest.raises(Throttled):
        p.invoke(request("2"), 0)
    assert p.counters.throttled == 1 and p.counters.invocations == 1


def test_pool_a_sandbox_serves_its_function_only_and_an_idle_one_makes_room() -> None:
    p = pool(concurrency=2)
    small, large, again = request("1"), request("2", function=1), request("3")
    p.invoke(small, 0)
    p.ready("a", 0)
    p.answered("a", "1", OK, 1)
    p.ready("a", 1)
    assert p.invoke(large, 2) == [Start("b", 1)]  # there is room for both, and a stays warm
    assert p.ready("b", 2) == [Deliver("b", large)]
    p.answered("b", "2", OK, 3)
    p.ready("b", 3)
    assert p.invoke(again, 4) == [Deliver("a", again)]
    # No room: two live. The idle one of the other function goes.
    assert p.invoke(request("4"), 5) == [Kill("b"), Start("c", 0)]
    with pytest.raises(Throttled):  # the concurrency is everybody's
        p.invoke(request("5", function=1), 5)


def test_pool_limits_and_bills_belong_to_the_function() -> None:
    p = pool()
    p.invoke(request("1"), 0)
    p.invoke(request("2", function=1), 0)
    p.ready("a", 0)
    p.ready("b", 0)
    assert p.tick(9, {"a": 100, "b": 101}) == []
    assert p.report(9)["gb_seconds"] == pytest.approx((9 * 100 + 9 * 200) / 2**30)  # also of what is under way
    assert p.tick(10, {"b": 101}) == [Kill("a")]
    p.died("a", -9, 10)
    assert p.tick(20, {"b": 101}) == [Kill("b")]
    [finish] = p.died("b", -9, 20)
    assert isinstance(finish, Finish) and b"timed out after 20.00 seconds" in finish.outcome.payload
    assert p.report(30)["gb_seconds"] == pytest.approx((10 * 100 + 20 * 200) / 2**30)


def test_pool_who_never_comes_up_takes_an_invocation_of_its_own_function() -> None:
    p = pool()
    p.invoke(request("1"), 0)
    p.invoke(request("2", function=1), 0)
    [finish] = p.died("b", 1, 1)
    assert isinstance(finish, Finish) and finish.invocation.request_id == "2"
    assert [each.request_id for each in p.waiting] == ["1"]


def test_pool_asks_every_state_every_event() -> None:
    """Whatever a sandbox's state, an event leads to a state or to its end, and the books stay balanced."""

    def brought_to(state: State) -> Pool:
        p = pool()
        p.invoke(request("1"), 0)
        if state is not State.STARTING:
            p.ready("a", 0)
        if state in (State.RETURNING, State.IDLE):
            p.answered("a", "1", OK, 1)
        if state is State.IDLE:
            p.ready("a", 1)
        if state is State.DOOMED:
            p.tick(10, {})
        assert p.sandboxes["a"].state is state
        return p

    events: dict[str, Callable[[Pool], Any]] = {
        "ready": lambda p: p.ready("a", 2),
        "answered": lambda p: p.answered("a", "1", OK, 2),
        "answered another": lambda p: p.answered("a", "0", OK, 2),
        "died": lambda p: p.died("a", -9, 2),
        "hung up": lambda p: p.hung_up("a", 2),
        "started": lambda p: p.started("a", 1),
        "invoke": lambda p: p.invoke(request("2"), 2),
        "invoke another function": lambda p: p.invoke(request("2", function=1), 2),
        "tick": lambda p: p.tick(1000, {"a": 1000}),
        "no room": lambda p: p.set_concurrency(0, 2),
    }
    for state in State:
        for event in events.values():
            p = brought_to(state)
            event(p)
            held = [s for s in p.sandboxes.values() if s.invocation is not None]
            assert p.running == len(p.waiting) + len(held)
            assert all(s.state in (State.BUSY, State.DOOMED) for s in held)
            assert all(p._in_state[s.state][s.name] is s for s in p.sandboxes.values())
            assert sum(p._starting) == len(p._in_state[State.STARTING])
            for name in list(p.sandboxes):
                p.died(name, -9, 2000)
            assert not p._in_state[State.BUSY]


def test_nothing_that_a_sandbox_allocates_needs_a_page_that_it_shares() -> None:
    filling = fill_holes()
    assert len(filling) > 1_000
    assert len(fill_holes()) < len(filling) / 2, "the holes were filled"


def test_too_few_open_files_for_so_many_sandboxes_are_an_error_that_says_so() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert 0 < hard < 2**40, "this test needs a limit"
    with pytest.raises(LocalLambdaError, match=rf"{hard + 1} executors need .* allows {hard}: raise the limit"):
        LocalLambda(config(concurrency=hard + 1)).start()
