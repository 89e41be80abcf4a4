"""An invocation's payload: what goes in comes out, and nothing else is decoded."""

import base64
import json

import pytest

from lambda_worker.core.errors import EnvironmentMismatch, Tampered
from lambda_worker.core.schedule import Assignment
from lambda_worker.core.wire import PROTOCOL_VERSION, Ref, seal
from lambda_worker.payload import ProtocolMismatch, assignments_of, payload_of

SECRET = b"s" * 32


def test_what_goes_in_comes_out():
    first = Assignment("job", "a", 1, [0, 1], {2: Ref("job/2/b/1", 0, 10), 3: b"inline"}, [0], {0: b"sealed"})
    second = Assignment("job", "b", 2, [5], hint=[])

    event = json.loads(payload_of(SECRET, [first, second]))

    assert assignments_of(SECRET, event) == [first, second]
    assert event["v"] == PROTOCOL_VERSION


@pytest.mark.fault(32)
def test_another_version_is_refused_by_both_names():
    event = json.loads(payload_of(SECRET, [Assignment("job", "a", 1, [0])]))
    event["v"] = PROTOCOL_VERSION + 1

    with pytest.raises(ProtocolMismatch, match=f"protocol {PROTOCOL_VERSION + 1}.*protocol {PROTOCOL_VERSION}"):
        assignments_of(SECRET, event)


@pytest.mark.fault(32)
def test_another_python_or_cloudpickle_is_refused_by_both_names():
    event = json.loads(payload_of(SECRET, [Assignment("job", "a", 1, [0])]))
    event["pickles"] = "Python 2.7, cloudpickle 0"

    with pytest.raises(
        EnvironmentMismatch, match=r"with Python 2\.7, cloudpickle 0, .* has Python 3\.\d+, cloudpickle"
    ):
        assignments_of(SECRET, event)


@pytest.mark.fault(47)
def test_another_cluster_is_refused():
    event = json.loads(payload_of(b"another secret", [Assignment("job", "a", 1, [0])]))
    with pytest.raises(Tampered):
        assignments_of(SECRET, event)


@pytest.mark.fault(42)
def test_the_tag_is_checked_before_decoding():
    # Given bytes that the decoder would choke on, behind a wrong tag: the tag is what is reported.
    event = {"v": PROTOCOL_VERSION, "runs": [base64.b64encode(b"\xc1" * 100).decode()]}
    with pytest.raises(Tampered):
        assignments_of(SECRET, event)


@pytest.mark.fault(42)
def test_a_seal_of_another_name_is_refused():
    blob = seal(SECRET, "events", Assignment("job", "a", 1, [0]).to_bytes())
    with pytest.raises(Tampered):
        assignments_of(SECRET, {"v": PROTOCOL_VERSION, "runs": [base64.b64encode(blob).decode()]})


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"key1": "value1"},
        [],
        {"v": PROTOCOL_VERSION},
        {"v": PROTOCOL_VERSION, "runs": "x"},
        {"v": PROTOCOL_VERSION, "runs": ["!!"]},
        {"v": PROTOCOL_VERSION, "runs": [None]},
        {"v": PROTOCOL_VERSION, "runs": [""]},
    ],
)
def test_what_is_not_ours_is_refused(event):
    with pytest.raises(Tampered):
        assignments_of(SECRET, event)
