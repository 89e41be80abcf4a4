"""`dask serverless doctor` and `destroy` against AWS's APIs, which moto plays here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import urllib.request
from collections import Counter

import pytest
from click.testing import CliRunner
from moto.backends import get_backend
from moto.cloudformation.models import Event
from moto.server import ThreadedMotoServer

from dask_serverless.command_line import serverless
from dask_serverless.config import Settings
from dask_serverless.deployment import manifest as m
from dask_serverless.deployment.account import Account, Busy
from dask_serverless.deployment.findings import Condition, condition_of, examine
from dask_serverless.deployment.removal import destroy
from dask_serverless.errors import CredentialsRefused, DeploymentRefused, RemovalUnfinished
from tests.deployments import ACCOUNT, deploy

pytestmark = [pytest.mark.fault(43), pytest.mark.filterwarnings("ignore:Tried to parse:UserWarning")]

REGION = "us-east-1"
PIECES = m.manifest()
#: One of each kind is enough where each costs a run.
TWINS = (
    *("storage-log", "storage-role", "storage-execution-role", "data-task", "data-service", "subnet-1"),
    *("endpoint-s3", "endpoint-lambda", "endpoint-logs", "endpoint-secrets", "endpoint-ecr-api"),
    "executor-security-group",
)
FEW = tuple(piece for piece in PIECES if piece.name not in TWINS)
CHANGES = re.compile("delete_|detach_|deregister_|revoke_|abort_")


@pytest.fixture(scope="module")
def url():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(autouse=True)
def empty(url):
    with urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset", method="POST"), timeout=10):
        pass


@pytest.fixture
async def account(url):
    async with Account("prod", REGION, url) as account:
        yield account


@pytest.fixture
def call(account):
    """Send any request: as who deploys does, or somebody else."""
    return account._call


async def no_sleep(seconds):
    pass


def remove(account, say=lambda text: None, **options):
    return destroy(account, say, **{"sleep": no_sleep, **options})


async def put(call, bucket, count=3):
    for number in range(count):
        await call("s3", "put_object", Bucket=bucket, Key=f"job/{number}", Body=b"value")


def tell(logical_id, type, status, reason):
    """Have the stack tell of what moto's never meets, and end so."""
    [stack] = get_backend("cloudformation")[ACCOUNT][REGION].stacks.values()
    stack.events.append(Event(stack.stack_id, "prod", logical_id, "", type, status, reason, None))
    stack.status = status


def command(url, *arguments, **options):
    where = ["--name", "prod", "--region", REGION, "--endpoint-url", url]
    return CliRunner().invoke(serverless, [arguments[0], *where, *arguments[1:]], **options)


async def test_all_pieces_of_a_deployment_are_found_and_nothing_is_wrong(account, call):
    await deploy(call)
    inventory = await account.inventory()
    assert Counter((each.type, each.piece) for each in inventory.found) == Counter((p.type, p.name) for p in PIECES)
    assert examine(inventory, PIECES) == []
    assert condition_of(inventory, PIECES) is Condition.COMPLETE


async def test_a_piece_of_any_kind_that_somebody_has_removed_is_named(account, call):
    await deploy(call, without=TWINS)
    inventory = await account.inventory()
    for each in sorted(inventory.found, key=lambda each: m.REMOVAL_ORDER.index(each.type)):
        await account.remove(each)
        if each.type != m.ENDPOINT:  # moto fails when there is none
            await account.remove(each)
        assert await account.look(each.type, each.id) is None
    inventory = await account.inventory()
    assert inventory.found == ()
    findings = examine(inventory, FEW)
    assert [each.piece for each in findings] == [piece.name for piece in FEW]
    assert all("is missing, although the stack is complete" in each.what for each in findings)


async def test_what_is_broken_is_named(account, call):
    made = await deploy(call, without=TWINS)
    await call("lambda", "delete_function_event_invoke_config", FunctionName=made["executor-function-0"])
    await call("logs", "delete_retention_policy", logGroupName=made["executor-log"])
    await call("s3", "delete_bucket_lifecycle", Bucket=made["overflow-bucket"])
    findings = examine(await account.inventory(), FEW)
    broken = ["executor-function-0", "executor-function-0", "executor-log", "overflow-bucket"]
    assert sorted(each.piece for each in findings) == broken


async def test_what_could_not_be_made_is_named_with_the_reason(account, call):
    await deploy(call, without=[*TWINS, "metadata-service"])
    tell("MetadataService", m.SERVICE, "CREATE_FAILED", "no capacity for Fargate")
    tell("FailureQueue", m.QUEUE, "CREATE_FAILED", "Resource creation cancelled")
    inventory = await account.inventory()
    assert condition_of(inventory, FEW) is Condition.HALF_DEPLOYED
    first, second = examine(inventory, FEW)
    assert first.piece == "MetadataService" and "no capacity for Fargate" in first.what
    assert "CREATE_FAILED; not there: metadata-service" in second.what
    assert await remove(account) == await account.inventory()
    assert condition_of(await account.inventory(), FEW) is Condition.NOTHING


async def test_a_deployment_is_removed_with_what_is_stored_in_it(account, call):
    made = await deploy(call, without=TWINS)
    await put(call, made["overflow-bucket"])
    said = []
    left = await remove(account, said.append)
    assert (left.stack, left.found, left.unknown) == (None, (), ())
    assert said[0].startswith("emptied overflow-bucket") and said[1].startswith("asked CloudFormation")
    said.clear()
    await remove(account, said.append)
    assert said == []


async def test_what_the_stack_has_left_is_removed(account, call):
    made = await deploy(call, retained=[piece.name for piece in PIECES])
    await account.delete_stack(await account.stack())
    await put(call, made["overflow-bucket"])
    inventory = await account.inventory()
    assert condition_of(inventory, PIECES) is Condition.HALF_DELETED
    left = {piece.name for piece in PIECES if piece.type != m.ENDPOINT}  # which moto's tagging API does not know
    assert {each.piece for each in examine(inventory, PIECES)} == left
    said = []
    await remove(account, said.append)
    assert Counter(text.split()[1] for text in said) == Counter(left)
    assert (await account.inventory()).found == ()


async def test_a_stack_that_could_not_be_deleted_is_deleted_once_its_pieces_are_gone(account, call, monkeypatch):
    # Retained, since moto, unlike AWS, fails to delete a stack whose bucket is gone already.
    made = await deploy(call, without=TWINS, retained=[piece.name for piece in PIECES])
    await put(call, made["overflow-bucket"])
    delete_stack, asked = account.delete_stack, []

    async def fails_at_first(stack):
        asked.append(stack.status)
        if len(asked) > 1:
            return await delete_stack(stack)
        tell("OverflowBucket", m.BUCKET, "DELETE_FAILED", "the bucket is not empty")

    monkeypatch.setattr(account, "delete_stack", fails_at_first)
    monkeypatch.setattr(account, "empty", no_sleep)
    left = await remove(account)
    assert (left.stack, left.found, asked) == (None, (), ["CREATE_COMPLETE", "DELETE_FAILED"])


class Interrupted(Account):
    """Lets one change pass, then ends, as if somebody had pulled the plug."""

    changes = 0

    async def _call(self, service, operation, /, **parameters):
        if CHANGES.match(operation):
            if self.changes:
                raise KeyboardInterrupt
            self.changes += 1
        return await super()._call(service, operation, **parameters)


async def test_after_an_interruption_at_any_step_the_next_run_goes_on(url, call):
    """Each run dies after one change, so that a run begins with every state between nothing and all being done.

    Requests that only look leave nothing behind that another run could meet.
    """
    made = await deploy(call, without=TWINS, retained=[piece.name for piece in PIECES])
    await put(call, made["overflow-bucket"])
    runs = 0
    async with Interrupted("prod", REGION, url) as account:
        left = None
        while left is None:
            runs, account.changes = runs + 1, 0
            with contextlib.suppress(KeyboardInterrupt):
                left = await remove(account)
    assert (left.stack, left.found) == (None, ())
    assert runs > len(FEW)


async def test_what_belongs_to_others_survives(url, account, call):
    for name in ("prod", "prod-2"):
        made = await deploy(call, name, without=TWINS, retained=["overflow-bucket", "failure-queue"])
        await put(call, made["overflow-bucket"])
    await call("s3", "create_bucket", Bucket="prod-overflow-bucket")
    await call("sqs", "create_queue", QueueName="prod-FailureQueue", tags={m.NAME_TAG: "prod"})
    async with Account("prod-2", REGION, url) as other:
        before = await other.inventory()
        await remove(account)
        assert await other.inventory() == before
    assert len((await call("s3", "list_objects_v2", Bucket=made["overflow-bucket"]))["Contents"]) == 3
    await call("s3", "head_bucket", Bucket="prod-overflow-bucket")
    await call("sqs", "get_queue_url", QueueName="prod-FailureQueue")


async def test_a_deployment_of_the_same_name_in_another_region_survives(url, account, call):
    """Roles are the same in all regions. (So are buckets in moto's tagging API, but not in AWS's.)"""
    await deploy(call, "prod", without=[*TWINS, "overflow-bucket"])
    before = await account.inventory()
    async with Account("prod", "eu-west-1", url) as elsewhere:
        assert (await elsewhere.inventory()).found == ()
        await remove(elsewhere)
    assert await account.inventory() == before


async def test_what_is_protected_against_being_deleted_keeps_what_is_stored(url, account, call):
    made = await deploy(call, "prod", without=TWINS)
    await put(call, made["overflow-bucket"])
    [stack] = get_backend("cloudformation")[ACCOUNT][REGION].stacks.values()
    stack.enable_termination_protection = True  # moto has no request for it
    with pytest.raises(DeploymentRefused, match="protected"):
        await remove(account)
    assert len((await call("s3", "list_objects_v2", Bucket=made["overflow-bucket"]))["Contents"]) == 3


async def test_a_stack_of_the_same_name_that_is_not_ours_is_not_touched(url, account, call):
    body = '{"Resources": {"Q": {"Type": "AWS::SQS::Queue", "Properties": {"QueueName": "theirs"}}}}'
    await call("cloudformation", "create_stack", StackName="prod", TemplateBody=body)
    with pytest.raises(DeploymentRefused, match="another's"):
        await remove(account)
    assert condition_of(await account.inventory(), PIECES) is Condition.ANOTHERS
    await call("sqs", "get_queue_url", QueueName="theirs")


class Refusing(Account):
    """Is refused one kind of request."""

    def refuse(self, request, error):
        self.refused, self.error = request, error

    async def _call(self, service, operation, /, **parameters):
        if operation == self.refused:
            raise self.error
        return await super()._call(service, operation, **parameters)


async def test_what_may_not_be_removed_keeps_nothing_else_from_being_removed(url, call):
    await deploy(call, without=TWINS, retained=[piece.name for piece in PIECES])
    async with Refusing("prod", REGION, url) as account:
        account.refuse("delete_queue", DeploymentRefused("no permission for queues"))
        with pytest.raises(DeploymentRefused, match="no permission for queues"):
            await remove(account)
        assert [each.piece for each in (await account.inventory()).found] == ["failure-queue"]


async def test_what_is_in_use_is_waited_for_until_the_time_is_over(url, call):
    await deploy(call, without=TWINS, retained=["storage-security-group", "network", "subnet-0"])
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    async with Refusing("prod", REGION, url) as account:
        account.refuse("delete_security_group", Busy("a network interface uses it"))
        with pytest.raises(RemovalUnfinished, match="not removed within 60 s: a network interface uses it"):
            await remove(account, seconds_max=60, sleep=sleep, clock=lambda: sum(waits))
        assert sum(waits) == 60
        account.refuse("", None)
        assert (await remove(account)).found == ()


async def test_without_credentials_there_is_an_error_of_its_own(url, monkeypatch, tmp_path):
    monkeypatch.setattr("lambda_worker.invoker.is_loopback", lambda url: False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    async with Account("prod", REGION, url) as account:
        with pytest.raises(CredentialsRefused, match="'prod'.*configure AWS credentials"):
            await account.inventory()


def with_a_deployment(url, **options):
    async def run():
        async with Account("nobody", REGION, url) as account:
            return await deploy(account._call, **options)

    return asyncio.run(run())


def test_the_commands_on_nothing(url):
    done = command(url, "doctor")
    assert done.exit_code == 1 and "deployment 'prod': nothing, 1 finding" in done.output
    done = command(url, "destroy")
    assert (done.exit_code, done.output) == (0, "deployment 'prod': nothing is there\n")


def test_the_commands_on_a_deployment(url, monkeypatch):
    monkeypatch.setattr("dask_serverless.deployment.removal.PAUSE_SECONDS", 0)
    asked = []
    monkeypatch.setattr("dask_serverless.command_line.manifest", lambda classes: asked.append(classes) or FEW)
    with_a_deployment(url, without=TWINS)
    done = command(url, "doctor")
    assert (done.exit_code, done.output) == (0, "deployment 'prod': complete, 0 finding(s)\n")
    assert asked == [len(Settings.load().function_classes)]
    for arguments, answer, status in ((["--dry-run"], None, 0), ([], "n\n", 1)):
        done = command(url, "destroy", *arguments, input=answer)
        assert done.exit_code == status
        assert "the stack arn:" in done.output and "overflow-bucket (AWS::S3::Bucket" in done.output
        assert "removed " not in done.output.partition("to be removed")[2]
    done = command(url, "destroy", "--yes")
    assert done.exit_code == 0 and "asked CloudFormation to delete the stack" in done.output
    assert done.output.endswith("deployment 'prod': nothing is left\n")


def test_the_commands_say_when_they_cannot_look(url):
    for name in ("doctor", "destroy"):
        done = command("http://127.0.0.1:1", name)
        assert done.exit_code == 2 and "is this machine connected?" in done.output
