"""An AWS account, as one deployment sees it: what is there of it, and taking it away.

Rules kept here:

* Whatever is found is looked at before it counts: the tagging API remembers for a while what is gone.
* What is found through a stack, or through tags, is told with the tags that it carries itself; those decide what may be
  removed.
* Requests are sent again where AWS is busy or broken, and nowhere else; botocore's own retries are off.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from dask_serverless.deployment import manifest
from dask_serverless.deployment.findings import Event, Found, Inventory, Stack, latest_failures
from dask_serverless.deployment.kinds import KINDS, Gone, empty_bucket, id_of, known
from lambda_worker import credentials
from lambda_worker.core.errors import CredentialsRefused, DeploymentRefused
from lambda_worker.invoker import code_and_message, is_broken, open_client

ATTEMPTS_MAX = 6
BACKOFF_SECONDS_MIN = 0.2
#: Requests that are under way at once.
CONNECTIONS_MAX = 8
#: How many of a stack's events are read to find out why something failed.
EVENTS_MAX = 1000

#: AWS's names for "there is none".
GONE = frozenset(
    {
        *("404", "NoSuchBucket", "NoSuchTagSet", "NoSuchLifecycleConfiguration"),
        *("AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"),
        *("NoSuchEntity", "ResourceNotFoundException", "ClusterNotFoundException", "ServiceNotFoundException"),
        *("ServiceNotActiveException", "InvalidVpcID.NotFound", "InvalidSubnetID.NotFound"),
        *("InvalidGroup.NotFound", "InvalidVpcEndpointId.NotFound"),
    }
)
#: Services that say so in words only: a code, and a part of the message.
GONE_IN_WORDS = (("ValidationError", "does not exist"), ("ClientException", "describe task definition"))
#: Somebody still uses it, or it is being changed: later, then.
BUSY = frozenset(
    {
        *("DependencyViolation", "DeleteConflict", "BucketNotEmpty", "OperationAborted", "ConcurrentModification"),
        *("ClusterContainsServicesException", "ClusterContainsTasksException", "ResourceConflictException"),
        *("UpdateInProgressException", "InvalidParameterValue.InUse", "ResourceInUse"),
    }
)
THROTTLED = frozenset(
    {"Throttling", "ThrottlingException", "ThrottledException", "TooManyRequestsException", "RequestLimitExceeded"}
)
ADVICE = {
    "AccessDenied": "these credentials lack that permission",
    "AccessDeniedException": "these credentials lack that permission",
    "UnauthorizedOperation": "these credentials lack that permission",
    "NoRegion": "name a region (--region, AWS_REGION or the AWS profile)",
    "EndpointConnection": "is the region, or --endpoint-url, right, and is this machine connected?",
}
RENEW = (
    "the AWS credentials of this process have ended, or were withdrawn: renew them (`aws sso login`, or whatever gave "
    "you the keys), then run this again: it goes on where it stopped"
)


class Busy(DeploymentRefused):
    """Something cannot be removed yet, since it is in use."""


class Account:
    """An AWS account in one region.

    Parameters
    ----------
    name
        The deployment's name.
    region, endpoint_url
        Where; None: as the AWS configuration of this process says.

    Examples
    --------
    >>> async def look():  # doctest: +SKIP
    ...     async with Account("prod", "eu-west-1") as account:
    ...         return await account.inventory()
    """

    def __init__(self, name: str, region: str | None = None, endpoint_url: str | None = None):
        self.name = name
        self.region = region
        self.endpoint_url = endpoint_url
        self._clients: dict[str, asyncio.Task[Any]] = {}
        self._stack = contextlib.AsyncExitStack()

    def __repr__(self) -> str:
        return f"<Account with deployment {self.name!r} in {self.region or 'the configured region'}>"

    async def __aenter__(self) -> Account:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def inventory(self) -> Inventory:
        """Find out what is there."""
        stack = await self.stack()
        candidates: dict[tuple[str, str], None] = {}
        unknown = []
        async for arn in self._tagged():
            if kind := known(arn):
                candidates[kind] = None
            elif f":stack/{self.name}/" not in arn:
                unknown.append(arn)
        if stack is not None:
            candidates |= dict.fromkeys([each async for each in self._resources(stack)])
        slots = asyncio.Semaphore(CONNECTIONS_MAX)

        async def look(type: str, id: str) -> Found | None:
            async with slots:
                return await self.look(type, id)

        found = await asyncio.gather(*(look(*each) for each in sorted(candidates)))
        return Inventory(self.name, stack, tuple(each for each in found if each is not None), tuple(unknown))

    async def stack(self) -> Stack | None:
        """Return the stack of the deployment's name, whoever's it is."""
        try:
            [told] = (await self._call("cloudformation", "describe_stacks", StackName=self.name))["Stacks"]
        except Gone:
            return None
        failures: tuple[Event, ...] = ()
        if not told["StackStatus"].endswith("_COMPLETE") or "ROLLBACK" in told["StackStatus"]:
            failures = latest_failures([each async for each in self._events(told["StackId"])])
        tags = {tag["Key"]: tag["Value"] for tag in told.get("Tags", ())}
        protected = bool(told.get("EnableTerminationProtection"))
        return Stack(told["StackId"], told["StackStatus"], told.get("StackStatusReason", ""), tags, failures, protected)

    async def look(self, type: str, id: str) -> Found | None:
        """Look at something; None: it is not there."""
        try:
            seen = await KINDS[type].look(self._call, id)
        except Gone:
            return None
        return None if seen is None else Found(type, id, *seen)

    async def delete_stack(self, stack: Stack) -> None:
        """Ask CloudFormation to delete a stack, which takes its time."""
        with contextlib.suppress(Gone):
            await self._call("cloudformation", "delete_stack", StackName=stack.id)

    async def empty(self, bucket: Found) -> None:
        """Delete what is in a bucket."""
        with contextlib.suppress(Gone):
            await empty_bucket(self._call, bucket.id)

    async def remove(self, found: Found) -> None:
        """Remove something; if it is gone already, nothing happens. Raises `Busy` if that has to wait."""
        with contextlib.suppress(Gone):
            await KINDS[found.type].remove(self._call, found.id)

    async def _tagged(self) -> AsyncIterator[str]:
        """Yield the ARNs of all that may carry the deployment's tags."""
        filters = [{"Key": key, "Values": [value]} for key, value in manifest.tags_of(self.name).items()]
        pages = self._pages("resourcegroupstaggingapi", "get_resources", "PaginationToken", TagFilters=filters)
        async for page in pages:
            for each in page["ResourceTagMappingList"]:
                yield each["ResourceARN"]
        region = (await self._client("cloudformation")).meta.region_name
        async for page in self._pages("iam", "list_roles", "Marker", PathPrefix=manifest.role_path(region)):
            for each in page["Roles"]:
                found = await self.look(manifest.ROLE, each["RoleName"])
                if found is not None and manifest.belongs(found.tags, self.name):
                    yield each["Arn"]

    async def _resources(self, stack: Stack) -> AsyncIterator[tuple[str, str]]:
        """Yield kind and id of all that a stack has made, of the kinds that are known."""
        async for page in self._pages("cloudformation", "list_stack_resources", "NextToken", StackName=stack.id):
            for each in page["StackResourceSummaries"]:
                if each["ResourceType"] in KINDS and each.get("PhysicalResourceId"):
                    yield each["ResourceType"], id_of(each["ResourceType"], each["PhysicalResourceId"])

    async def _events(self, stack_id: str) -> AsyncIterator[Event]:
        count = 0
        async for page in self._pages("cloudformation", "describe_stack_events", "NextToken", StackName=stack_id):
            for each in page["StackEvents"]:
                count += 1
                yield Event(
                    each["LogicalResourceId"],
                    each["ResourceType"],
                    each["ResourceStatus"],
                    each.get("ResourceStatusReason", ""),
                    each.get("PhysicalResourceId") == stack_id,
                )
            if count >= EVENTS_MAX:
                return

    async def _pages(
        self, service: str, operation: str, token: str, /, **parameters: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the pages of a list, each of which names the next one."""
        while True:  # bound: as many as AWS has
            page = await self._call(service, operation, **parameters)
            yield page
            if not (following := page.get(token)):
                return
            parameters[token] = following

    async def _call(self, service: str, operation: str, /, **parameters: Any) -> dict[str, Any]:
        """Send one request, again if AWS is busy or broken. Raises `Gone`, `Busy`, or says what was refused and why."""
        backoff = BACKOFF_SECONDS_MIN
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                client = await self._client(service)
                answer: dict[str, Any] = await getattr(client, operation)(**parameters)
                return answer
            except Exception as error:
                code, message = code_and_message(error)
                if code in GONE or any(code == each and words in message for each, words in GONE_IN_WORDS):
                    raise Gone(message) from error
                if not (code in THROTTLED or is_broken(error)) or attempt == ATTEMPTS_MAX:
                    raise self._refusal(f"{service}:{operation}", code, message) from error
            await asyncio.sleep(backoff)
            backoff *= 2
        raise AssertionError("unreachable")

    def _refusal(self, request: str, code: str, message: str) -> Exception:
        where = self.endpoint_url or self.region or "the configured region"
        text = f"deployment {self.name!r} in {where}: {request} was refused: {code}: {message}"
        if credentials.remedy_of(code) is not None:
            return CredentialsRefused(f"{text} ({credentials.ADVICE.get(code, RENEW)})")
        advice = ADVICE.get(code)
        return (Busy if code in BUSY else DeploymentRefused)(f"{text} ({advice})" if advice else text)

    async def _client(self, service: str) -> Any:
        """Return the client of a service; who comes while it is made waits for it."""
        if service not in self._clients:
            opened = open_client(service, self.endpoint_url, self.region, CONNECTIONS_MAX)
            self._clients[service] = asyncio.ensure_future(self._stack.enter_async_context(opened))
        return await self._clients[service]
