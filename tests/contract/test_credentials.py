"""AWS credentials end while the invokers and the failure queue use them, and new ones are there, or are not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import sys
import time

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from dask_serverless.errors import CredentialsRefused, InvocationRefused
from dask_serverless.invoke import FailureQueue, GovernedInvoker
from lambda_worker.core.schedule import Assignment
from lambda_worker.invoker import LambdaInvoker
from tests.contract.test_invoker import SECRET, Aws
from tests.waiting import until

pytestmark = pytest.mark.fault(44)

#: A `credential_process`, whose keys say in their names when they end: the first one soon.
PROCESS = """\
#!{python}
import datetime, json, os, sys, time
from pathlib import Path
directory = Path({directory!r})
if (directory / "away").exists():
    (directory / "asked").touch()
    sys.exit("the login has ended")
number = len(list(directory.glob("key-*")))
(directory / f"key-{{number}}").touch()
ends = time.time() + ({seconds} if number == 0 or {says_when} else 60)
said = {{"Version": 1, "AccessKeyId": f"KEY{{int(ends * 1000)}}", "SecretAccessKey": "s", "SessionToken": "t"}}
if {says_when}:
    said["Expiration"] = datetime.datetime.fromtimestamp(ends, datetime.timezone.utc).isoformat()
print(json.dumps(said))
"""


def has_time_left(key):
    """Tell, as AWS does, whether a key of `PROCESS` has not ended."""
    return time.time() * 1000 < int(key.removeprefix("KEY"))


@pytest.fixture
def aws(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    # On this machine itself, which needs no credentials, broken ones would be replaced by others that stand for none.
    monkeypatch.setattr("lambda_worker.invoker.is_loopback", lambda url: False)
    service = Aws()
    yield service
    service.close()


@pytest.fixture
def give_keys(tmp_path):
    def give_keys(seconds, says_when=True):
        program = tmp_path / "give-keys"
        text = PROCESS.format(python=sys.executable, directory=str(tmp_path), seconds=seconds, says_when=says_when)
        program.write_text(text)
        program.chmod(stat.S_IRWXU)
        (tmp_path / "config").write_text(f"[default]\ncredential_process = {program}\n")

    return give_keys


def write_key(tmp_path, key):
    (tmp_path / "credentials").write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = s\n")


@pytest.fixture(params=[LambdaInvoker, GovernedInvoker])
def make(request, aws):
    made = []

    def make(**options):
        options = {"backoff_seconds_min": 0.001, **options}
        made.append(request.param("dask", SECRET, aws.endpoint_url, **options))
        return made[-1]

    yield make
    for invoker in made:
        invoker.close()


def assignments(count):
    return [Assignment("job", f"{number:04}", 1, [number]) for number in range(count)]


def wait_until_the_first_key_has_ended(aws):
    """The life of a key is what this is about: time has to pass."""
    until(lambda: not aws.is_good(aws.first), "the first key has ended")


def note_the_first(aws, is_good):
    """Remember the first key that comes along."""
    aws.first = None

    def note(key):
        aws.first = aws.first or key
        return is_good(key)

    aws.is_good = note


def test_keys_that_say_when_they_end_are_renewed_in_time(aws, make, give_keys, tmp_path):
    give_keys(1.0)
    note_the_first(aws, has_time_left)
    invoker = make()
    assert invoker.invoke(assignments(3)) == [None] * 3
    wait_until_the_first_key_has_ended(aws)
    assert invoker.invoke(assignments(3)) == [None] * 3
    assert aws.refusals == 0


def test_keys_that_do_not_say_when_they_end_are_renewed_when_they_are_refused(aws, make, give_keys, tmp_path):
    give_keys(1.0, says_when=False)
    note_the_first(aws, has_time_left)
    invoker = make()
    assert invoker.invoke(assignments(3)) == [None] * 3
    wait_until_the_first_key_has_ended(aws)
    assert invoker.invoke(assignments(20)) == [None] * 20
    assert len(list(tmp_path.glob("key-*"))) == 2, "one new key for all"
    assert len(aws.invoked) == 23


def test_keys_in_a_file_may_be_replaced(aws, make, tmp_path):
    write_key(tmp_path, "OLD")
    invoker = make()
    assert invoker.invoke(assignments(1)) == [None]
    aws.is_good = lambda key: key == "NEW"
    [error] = invoker.invoke(assignments(1))
    assert isinstance(error, CredentialsRefused)
    write_key(tmp_path, "NEW")
    assert invoker.invoke(assignments(2)) == [None, None], "the same invoker goes on"


def test_ended_keys_are_an_error_of_their_own_after_two_requests(aws, make, tmp_path):
    write_key(tmp_path, "OLD")
    aws.is_good = lambda key: False
    [error] = make().invoke(assignments(1))
    assert isinstance(error, CredentialsRefused) and isinstance(error, InvocationRefused)
    for piece in ("'dask'", "ExpiredTokenException", "neither the tasks nor Lambda are to blame", "aws sso login"):
        assert piece in str(error)
    assert aws.refusals == 2


def test_no_keys_at_all(aws, make, tmp_path):
    invoker = make()
    [error] = invoker.invoke(assignments(1))
    assert isinstance(error, CredentialsRefused) and "configure AWS credentials" in str(error)
    write_key(tmp_path, "NEW")
    assert invoker.invoke(assignments(1)) == [None]


class Client:
    """A client whose keys have ended, until it is closed; or one with good keys."""

    def __init__(self, good):
        self.good = good
        self.closed = asyncio.Event()
        self.calls = 0

    async def invoke(self, **request):
        self.calls += 1
        if self.good:
            return {"Payload": Body()}
        if self.calls == 1:
            raise ClientError({"Error": {"Code": "ExpiredTokenException", "Message": "it has ended"}}, "Invoke")
        await self.closed.wait()  # on its way there
        raise EndpointConnectionError(endpoint_url="http://lambda")


class Body:
    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        pass

    async def read(self):
        return b""


def test_who_was_on_the_way_when_a_client_was_replaced_goes_by_the_new_one(make):
    """The first is refused, and has the client replaced; the others had not got through by then."""
    clients = []

    @contextlib.asynccontextmanager
    async def open_client():
        clients.append(Client(good=bool(clients)))
        yield clients[-1]
        clients[0].closed.set()

    invoker = make()
    invoker._open_client = open_client
    assert invoker.invoke(assignments(3)) == [None] * 3
    assert [client.calls for client in clients] == [3, 3]


def test_who_gives_keys_may_be_away_for_a_moment(aws, make, give_keys, tmp_path):
    give_keys(1.0)
    invoker = make(broken_seconds_max=20.0, backoff_seconds_max=0.05)
    assert invoker.invoke(assignments(1)) == [None]
    (tmp_path / "away").touch()
    under_way = invoker.begin(assignments(1))
    until(lambda: (tmp_path / "asked").exists(), "it was asked in vain")
    (tmp_path / "away").unlink()
    assert under_way.result(20) == [None]
    assert len(aws.invoked) == 2


def test_who_gives_keys_is_gone(aws, make, give_keys, tmp_path):
    give_keys(1.0)
    invoker = make(broken_seconds_max=0.1)
    assert invoker.invoke(assignments(1)) == [None]
    (tmp_path / "away").touch()
    [error] = invoker.invoke(assignments(1))
    assert isinstance(error, CredentialsRefused)
    assert "the login has ended" in str(error) and "Renew them" in str(error)
    assert len(aws.invoked) == 1, "nothing was sent with an old key"


async def test_the_failure_queue_goes_on_with_new_keys(aws, tmp_path):
    write_key(tmp_path, "OLD")
    pauses = []

    async def sleep(seconds):
        pauses.append(seconds)
        write_key(tmp_path, "NEW")
        await asyncio.sleep(0)

    aws.is_good = lambda key: key == "NEW"
    aws.messages["1"] = '{"requestPayload": {"v": 1}, "responsePayload": {"errorType": "Runtime.ExitError"}}'
    queue = FailureQueue(f"{aws.endpoint_url}/queue", aws.endpoint_url, poll_seconds=0.1, sleep=sleep)
    failures = aiter(queue)
    assert (await anext(failures)).event == {"v": 1}
    await failures.aclose()
    assert (len(pauses), aws.refusals) == (1, 1)
