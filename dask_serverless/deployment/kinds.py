"""The kinds of pieces in AWS: how each is looked at, and how it is removed. Knows their APIs' requests and answers.

Each look answers with tags and facts, or None: it is gone, or about to be. Each removal takes away what would be in its
way, and what is not there any more is no error: who was interrupted comes again.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dask_serverless.deployment import manifest
from lambda_worker.core.errors import DeploymentRefused

#: Sends one request: service, operation, parameters. Raises `Gone` when what it is about is not there.
Call = Callable[..., Awaitable[dict[str, Any]]]
#: Tags and facts.
Seen = tuple[dict[str, str], dict[str, Any]]

#: How many objects one request may delete.
OBJECTS_MAX = 1000


class Gone(Exception):
    """What a request is about is not there."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of piece: the ARNs that it has, and what is done with one of them.

    An ``id`` is what its API wants to have: a name, an identifier or an ARN.
    """

    arn: str
    look: Callable[[Call, str], Awaitable[Seen | None]]
    remove: Callable[[Call, str], Awaitable[None]]


def known(arn: str) -> tuple[str, str] | None:
    """Return the kind and id of what an ARN names.

    Examples
    --------
    >>> known("arn:aws:sqs:eu-west-1:123456789012:failures")
    ('AWS::SQS::Queue', 'failures')
    >>> known("arn:aws:ecs:eu-west-1:123456789012:task/storage/8f1a") is None
    True
    """
    for type, kind in KINDS.items():
        if match := re.fullmatch(rf"arn:[\w-]+:{kind.arn}", arn):
            return type, match.groupdict().get("id", arn)
    return None


def id_of(type: str, physical_id: str) -> str:
    """Return the id of what CloudFormation calls so."""
    return physical_id.rpartition("/")[2] if type == manifest.QUEUE else physical_id


def _tags(listed: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Read a list of tags, in any of AWS's spellings."""
    return {each.get("Key") or each["key"]: each.get("Value") or each.get("value", "") for each in listed}


async def _look_function(call: Call, id: str) -> Seen | None:
    answer = await call("lambda", "get_function", FunctionName=id)
    facts = {"state": answer["Configuration"].get("State"), "reason": answer["Configuration"].get("StateReason")}
    try:
        told = await call("lambda", "get_function_event_invoke_config", FunctionName=id)
    except Gone:  # nothing is configured
        told = {}
    facts["retries"] = told.get("MaximumRetryAttempts")
    facts["destination"] = told.get("DestinationConfig", {}).get("OnFailure", {}).get("Destination")
    return answer.get("Tags", {}), facts


async def _remove_function(call: Call, id: str) -> None:
    await call("lambda", "delete_function", FunctionName=id)


async def _look_queue(call: Call, id: str) -> Seen | None:
    url = (await call("sqs", "get_queue_url", QueueName=id))["QueueUrl"]
    answer = await call("sqs", "get_queue_attributes", QueueUrl=url, AttributeNames=["QueueArn"])
    tags = await call("sqs", "list_queue_tags", QueueUrl=url)
    return tags.get("Tags", {}), {"arn": answer["Attributes"]["QueueArn"]}


async def _remove_queue(call: Call, id: str) -> None:
    url = (await call("sqs", "get_queue_url", QueueName=id))["QueueUrl"]
    await call("sqs", "delete_queue", QueueUrl=url)


async def _look_log_group(call: Call, id: str) -> Seen | None:
    answer = await call("logs", "describe_log_groups", logGroupNamePrefix=id, limit=50)
    for group in answer["logGroups"]:  # in the order of their names: the one that is called just so is the first
        if group["logGroupName"] == id:
            arn = group["arn"].removesuffix(":*")
            tags = await call("logs", "list_tags_for_resource", resourceArn=arn)
            return tags.get("tags", {}), {"retention_days": group.get("retentionInDays")}
    return None


async def _remove_log_group(call: Call, id: str) -> None:
    await call("logs", "delete_log_group", logGroupName=id)


async def _look_role(call: Call, id: str) -> Seen | None:
    return _tags((await call("iam", "get_role", RoleName=id))["Role"].get("Tags", ())), {}


async def _remove_role(call: Call, id: str) -> None:
    for policy in (await call("iam", "list_attached_role_policies", RoleName=id))["AttachedPolicies"]:
        await call("iam", "detach_role_policy", RoleName=id, PolicyArn=policy["PolicyArn"])
    for name in (await call("iam", "list_role_policies", RoleName=id))["PolicyNames"]:
        await call("iam", "delete_role_policy", RoleName=id, PolicyName=name)
    await call("iam", "delete_role", RoleName=id)


async def _look_bucket(call: Call, id: str) -> Seen | None:
    await call("s3", "head_bucket", Bucket=id)
    try:
        tags = _tags((await call("s3", "get_bucket_tagging", Bucket=id))["TagSet"])
    except Gone:
        tags = {}
    try:
        rules = (await call("s3", "get_bucket_lifecycle_configuration", Bucket=id))["Rules"]
    except Gone:
        rules = []
    return tags, {"expires": any(rule["Status"] == "Enabled" and "Expiration" in rule for rule in rules)}


async def empty_bucket(call: Call, id: str) -> None:
    """Delete every object of a bucket, all versions of it, and what has been uploaded in part."""
    listed: Any = True
    while listed:  # bound: each turn deletes what it has listed, or fails
        page = await call("s3", "list_object_versions", Bucket=id, MaxKeys=OBJECTS_MAX)
        listed = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
        if listed:
            objects = [{"Key": each["Key"], "VersionId": each["VersionId"]} for each in listed]
            answer = await call("s3", "delete_objects", Bucket=id, Delete={"Objects": objects, "Quiet": True})
            for kept in answer.get("Errors", ()):
                raise DeploymentRefused(f"bucket {id!r} keeps {kept['Key']!r}: {kept['Code']}: {kept.get('Message')}")
    for each in (await call("s3", "list_multipart_uploads", Bucket=id)).get("Uploads", ()):
        await call("s3", "abort_multipart_upload", Bucket=id, Key=each["Key"], UploadId=each["UploadId"])


async def _remove_bucket(call: Call, id: str) -> None:
    await empty_bucket(call, id)
    await call("s3", "delete_bucket", Bucket=id)


async def _look_secret(call: Call, id: str) -> Seen | None:
    answer = await call("secretsmanager", "describe_secret", SecretId=id)
    return None if answer.get("DeletedDate") else (_tags(answer.get("Tags", ())), {})


async def _remove_secret(call: Call, id: str) -> None:
    # At once: who deploys again could not use the name for the days in which it might be restored.
    await call("secretsmanager", "delete_secret", SecretId=id, ForceDeleteWithoutRecovery=True)


async def _look_cluster(call: Call, id: str) -> Seen | None:
    answer = await call("ecs", "describe_clusters", clusters=[id], include=["TAGS"])
    found = [each for each in answer["clusters"] if each["status"] != "INACTIVE"]
    return (_tags(found[0].get("tags", ())), {}) if found else None


async def _remove_cluster(call: Call, id: str) -> None:
    await call("ecs", "delete_cluster", cluster=id)


def _cluster_of(service: str) -> str:
    return service.split("/")[-2]


async def _look_service(call: Call, id: str) -> Seen | None:
    answer = await call("ecs", "describe_services", cluster=_cluster_of(id), services=[id], include=["TAGS"])
    for each in answer["services"]:
        if each["status"] == "ACTIVE":  # one that drains was deleted
            return _tags(each.get("tags", ())), {"running": each["runningCount"], "desired": each["desiredCount"]}
    return None


async def _remove_service(call: Call, id: str) -> None:
    await call("ecs", "delete_service", cluster=_cluster_of(id), service=id, force=True)


async def _look_task_definition(call: Call, id: str) -> Seen | None:
    answer = await call("ecs", "describe_task_definition", taskDefinition=id, include=["TAGS"])
    return (_tags(answer.get("tags", ())), {}) if answer["taskDefinition"]["status"] == "ACTIVE" else None


async def _remove_task_definition(call: Call, id: str) -> None:
    await call("ecs", "deregister_task_definition", taskDefinition=id)


async def _remove_security_group(call: Call, id: str) -> None:
    # Groups that name one another could not be deleted, whichever is the first.
    [group] = (await call("ec2", "describe_security_groups", GroupIds=[id]))["SecurityGroups"]
    for rules, revoke in (("IpPermissions", "ingress"), ("IpPermissionsEgress", "egress")):
        if group.get(rules):
            await call("ec2", f"revoke_security_group_{revoke}", GroupId=id, IpPermissions=group[rules])
    await call("ec2", "delete_security_group", GroupId=id)


async def _remove_endpoint(call: Call, id: str) -> None:
    await call("ec2", "delete_vpc_endpoints", VpcEndpointIds=[id])


def _part_of_network(noun: str, describe: str, answered: str, ids: str, remove: Any = None) -> Kind:
    async def look(call: Call, id: str) -> Seen | None:
        found = (await call("ec2", describe, **{ids: [id]}))[answered]
        there = [each for each in found if str(each.get("State", "")).lower() not in ("deleting", "deleted")]
        return (_tags(there[0].get("Tags", ())), {}) if there else None

    async def delete(call: Call, id: str) -> None:
        await call("ec2", f"delete_{noun}", **{ids.removesuffix("s"): id})

    return Kind(rf"ec2:[^:]*:\d+:{noun.replace('_', '-')}/(?P<id>.+)", look, remove or delete)


KINDS: dict[str, Kind] = {
    manifest.FUNCTION: Kind(r"lambda:[^:]*:\d+:function:(?P<id>[^:]+)", _look_function, _remove_function),
    manifest.QUEUE: Kind(r"sqs:[^:]*:\d+:(?P<id>.+)", _look_queue, _remove_queue),
    manifest.LOG_GROUP: Kind(r"logs:[^:]*:\d+:log-group:(?P<id>[^:]+)(:\*)?", _look_log_group, _remove_log_group),
    manifest.ROLE: Kind(r"iam::\d+:role/(.*/)?(?P<id>[^/]+)", _look_role, _remove_role),
    manifest.BUCKET: Kind(r"s3:::(?P<id>[^/]+)", _look_bucket, _remove_bucket),
    manifest.SECRET: Kind(r"secretsmanager:[^:]*:\d+:secret:.+", _look_secret, _remove_secret),
    manifest.CLUSTER: Kind(r"ecs:[^:]*:\d+:cluster/(?P<id>.+)", _look_cluster, _remove_cluster),
    manifest.SERVICE: Kind(r"ecs:[^:]*:\d+:service/.+/.+", _look_service, _remove_service),
    manifest.TASK_DEFINITION: Kind(r"ecs:[^:]*:\d+:task-definition/.+", _look_task_definition, _remove_task_definition),
    manifest.VPC: _part_of_network("vpc", "describe_vpcs", "Vpcs", "VpcIds"),
    manifest.SUBNET: _part_of_network("subnet", "describe_subnets", "Subnets", "SubnetIds"),
    manifest.SECURITY_GROUP: _part_of_network(
        "security_group", "describe_security_groups", "SecurityGroups", "GroupIds", _remove_security_group
    ),
    manifest.ENDPOINT: _part_of_network(
        "vpc_endpoint", "describe_vpc_endpoints", "VpcEndpoints", "VpcEndpointIds", _remove_endpoint
    ),
}
