"""How AWS words the end of an invocation. Pure: the one module that knows these shapes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

#: Signal numbers as Go's os/exec prints them, which is what AWS shows.
SIGNAL_NAMES = {
    1: "hangup",
    2: "interrupt",
    3: "quit",
    4: "illegal instruction",
    5: "trace/breakpoint trap",
    6: "aborted",
    7: "bus error",
    8: "floating point exception",
    9: "killed",
    11: "segmentation fault",
    13: "broken pipe",
    14: "alarm clock",
    15: "terminated",
}


#: Error type of an invocation that was ended because its sandbox was retired.
RETIRED = "Sandbox.Retired"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of an invocation: what the function answered, or the error that stands for it."""

    payload: bytes
    function_error: str | None = None  # value of X-Amz-Function-Error


def _error(error_type: str, message: str) -> Outcome:
    return Outcome(json.dumps({"errorType": error_type, "errorMessage": message}).encode(), "Unhandled")


def exit_reason(status: int) -> str:
    """Say how a process ended, given its exit status or minus the signal that ended it."""
    if status < 0:
        return f"Runtime exited with error: signal: {SIGNAL_NAMES.get(-status, f'signal {-status}')}"
    if status > 0:
        return f"Runtime exited with error: exit status {status}"
    return "Runtime exited without providing a reason"


def exited(request_id: str, status: int) -> Outcome:
    """Return the outcome of an invocation whose sandbox died by itself."""
    return _error("Runtime.ExitError", f"RequestId: {request_id} Error: {exit_reason(status)}")


def timed_out(request_id: str, timeout_seconds: float) -> Outcome:
    """Return the outcome of an invocation that was killed for its time."""
    message = f"RequestId: {request_id} Error: Task timed out after {timeout_seconds:.2f} seconds"
    return _error("Sandbox.Timedout", message)


def out_of_memory(request_id: str, used_bytes: int) -> Outcome:
    """Return the outcome of an invocation that was killed for its memory.

    AWS's message is the same as for any kill and tells the memory only in the log's REPORT line; here
    it is appended, so that whoever reads the record can tell.
    """
    used_mb = used_bytes // (1024 * 1024)
    message = f"RequestId: {request_id} Error: {exit_reason(-9)} Max Memory Used: {used_mb} MB"
    return _error("Runtime.OutOfMemory", message)


def retired(request_id: str) -> Outcome:
    """Return the outcome of an invocation that was ended because its sandbox was retired."""
    return _error(RETIRED, f"RequestId: {request_id} Error: the sandbox was retired")


def start_failed(request_id: str, why: str) -> Outcome:
    """Return the outcome of an invocation for which no sandbox could be started."""
    return _error("Runtime.InitError", f"RequestId: {request_id} Error: {why}")


def response_too_large(size: int, limit: int) -> Outcome:
    """Return the outcome of an invocation whose answer is above the payload limit."""
    return _error(
        "Function.ResponseSizeTooLarge",
        f"Response payload size ({size} bytes) exceeded maximum allowed payload size ({limit} bytes).",
    )


def _json_or_text(data: bytes) -> Any:
    try:
        return json.loads(data) if data else None
    except ValueError:
        return data.decode(errors="replace")


def destination_record(request_id: str, arn: str, request: bytes, outcome: Outcome, now: float) -> str:
    """Return the record that an on-failure destination receives (`now`: seconds since the epoch)."""
    timestamp = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    return json.dumps(
        {
            "version": "1.0",
            "timestamp": timestamp,
            "requestContext": {
                "requestId": request_id,
                "functionArn": f"{arn}:$LATEST",
                "condition": "RetriesExhausted",
                "approximateInvokeCount": 1,
            },
            "requestPayload": _json_or_text(request),
            "responseContext": {
                "statusCode": 200,
                "executedVersion": "$LATEST",
                "functionError": outcome.function_error,
            },
            "responsePayload": _json_or_text(outcome.payload),
        }
    )
