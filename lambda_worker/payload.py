"""What an invocation of the function carries, in both directions. Pure.

An event is JSON, because Lambda insists: ``{"v": protocol version, "pickles": what the sender pickles
with, "runs": [base64, ...]}``. Each run is one sealed `Assignment`. The tag is checked before anything
behind it is decoded; a replayed event is valid bytes, and leases and fencing answer for it, not this
module.
"""

from __future__ import annotations

import base64
import binascii
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import cloudpickle

from lambda_worker.core.errors import EnvironmentMismatch, PlatformError, Tampered
from lambda_worker.core.schedule import Assignment
from lambda_worker.core.wire import PROTOCOL_VERSION, seal, unseal

_NAME = "assignment"

#: What must be the same on both sides for one to read the other's pickled functions.
PICKLES = f"Python {sys.version_info[0]}.{sys.version_info[1]}, cloudpickle {cloudpickle.__version__.split('.')[0]}"


class ProtocolMismatch(PlatformError):
    """The two ends of an invocation come from releases that do not understand each other."""


def seal_assignment(secret: bytes, assignment: Assignment) -> bytes:
    """Make the bytes of an assignment that travel, inside an invocation or as mail."""
    return seal(secret, _NAME, assignment.to_bytes())


def open_assignment(secret: bytes, sealed: bytes) -> Assignment:
    """Undo `seal_assignment`; raises `Tampered`."""
    return Assignment.from_bytes(unseal(secret, _NAME, sealed))


def payload_of(secret: bytes, assignments: Sequence[Assignment]) -> bytes:
    """Make the payload of one invocation.

    Parameters
    ----------
    secret
        The cluster's secret; only its functions accept the result.
    assignments
        What the invoked function shall run.

    Examples
    --------
    >>> payload = payload_of(b"secret", [Assignment("job", "a", 1, (0, 1))])
    >>> assignments_of(b"secret", json.loads(payload))[0].starts
    [0, 1]
    """
    # Base64 needs no escapes: a general encoder would look for them in every character.
    runs = b",".join(b'"%b"' % base64.b64encode(seal_assignment(secret, each)) for each in assignments)
    return b'{"v":%d,"pickles":%b,"runs":[%b]}' % (PROTOCOL_VERSION, json.dumps(PICKLES).encode(), runs)


def assignments_of(secret: bytes, event: Mapping[str, Any]) -> list[Assignment]:
    """Undo `payload_of` for an event that the Lambda runtime has parsed.

    Raises
    ------
    ProtocolMismatch
        When the event was written by another protocol version; the message names both.
    EnvironmentMismatch
        When what it refers to was pickled by another Python or cloudpickle; the message names both.
    Tampered
        When the event is not one of ours, or does not carry this cluster's tag.

    Examples
    --------
    >>> assignments_of(b"secret", {"v": 0, "runs": []})
    Traceback (most recent call last):
        ...
    lambda_worker.payload.ProtocolMismatch: the invocation speaks protocol 0, this function speaks protocol 1: \
install the same release of dask-serverless on both sides (redeploy the function)
    """
    if not isinstance(event, Mapping) or "v" not in event:
        raise Tampered("the event is not an invocation by dask-serverless: not decoded")
    if event["v"] != PROTOCOL_VERSION:
        raise ProtocolMismatch(
            f"the invocation speaks protocol {event['v']!r}, this function speaks protocol {PROTOCOL_VERSION}: "
            "install the same release of dask-serverless on both sides (redeploy the function)"
        )
    if event.get("pickles", PICKLES) != PICKLES:
        raise EnvironmentMismatch(
            f"the cluster pickles with {event['pickles']}, this function has {PICKLES}: they cannot read each "
            "other's pickled functions. Give both the same Python and cloudpickle (redeploy the function, or start "
            "the cluster from another environment)"
        )
    runs = event.get("runs")
    if not isinstance(runs, list):
        raise Tampered("the event carries no list of runs: not decoded")
    return [open_assignment(secret, _decoded(run)) for run in runs]


def _decoded(run: Any) -> bytes:
    try:
        return base64.b64decode(run, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise Tampered("a run of the event is not base64: not decoded") from None
