"""The pieces of a deployment, and the tags by which they are known. Pure.

Rules kept here:

* A piece belongs to a deployment if it carries both tags, `CREATED_BY` and the deployment's name; a third one says
  which piece it is. Names are never looked at: they may be like those of others.
* Whoever deploys makes these pieces with these tags (`tags_of`). What is not in the manifest is not inspected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: What a deployment, and its CloudFormation stack, is called unless told otherwise.
DEFAULT_NAME = "dask-serverless"

CREATED_BY_TAG, CREATED_BY = "createdBy", "dask-serverless"
NAME_TAG = "dask-serverless:stack"
PIECE_TAG = "dask-serverless:piece"

FUNCTION = "AWS::Lambda::Function"
QUEUE = "AWS::SQS::Queue"
LOG_GROUP = "AWS::Logs::LogGroup"
ROLE = "AWS::IAM::Role"
BUCKET = "AWS::S3::Bucket"
SECRET = "AWS::SecretsManager::Secret"
CLUSTER = "AWS::ECS::Cluster"
TASK_DEFINITION = "AWS::ECS::TaskDefinition"
SERVICE = "AWS::ECS::Service"
VPC = "AWS::EC2::VPC"
SUBNET = "AWS::EC2::Subnet"
SECURITY_GROUP = "AWS::EC2::SecurityGroup"
ENDPOINT = "AWS::EC2::VPCEndpoint"

#: Who uses something goes before it.
REMOVAL_ORDER = (
    *(SERVICE, FUNCTION, TASK_DEFINITION, CLUSTER, QUEUE, LOG_GROUP, SECRET, BUCKET, ROLE),
    *(ENDPOINT, SECURITY_GROUP, SUBNET, VPC),
)

FAILURE_QUEUE = "failure-queue"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a deployment.

    Parameters
    ----------
    name
        The value of its `PIECE_TAG`.
    type
        What CloudFormation calls its kind.
    without
        What is the matter when it is missing.
    """

    name: str
    type: str
    without: str


def manifest(function_classes: int = 1) -> tuple[Piece, ...]:
    """Return the pieces of a deployment.

    Parameters
    ----------
    function_classes
        How many functions differ in memory and time; the first one is the default.

    Examples
    --------
    >>> [piece.name for piece in manifest(function_classes=3) if piece.type == FUNCTION]
    ['executor-function-0', 'executor-function-1', 'executor-function-2']
    """
    larger = range(1, function_classes)
    return (
        Piece("executor-function-0", FUNCTION, "nothing can run"),
        *(
            Piece(f"executor-function-{number}", FUNCTION, "tasks that need its memory or time cannot run")
            for number in larger
        ),
        Piece(FAILURE_QUEUE, QUEUE, "the death of an executor is heard of only when its lease runs out"),
        Piece("executor-log", LOG_GROUP, "what executors say is lost, or kept for ever"),
        Piece("executor-role", ROLE, "executors may do nothing: neither begin nor start others"),
        Piece("overflow-bucket", BUCKET, "values that find no room in the storage tier are an error"),
        Piece("secret", SECRET, "nobody can log in to the storage tier, or seal what is sent"),
        Piece("storage-cluster", CLUSTER, "there is nowhere for the storage tier to run"),
        Piece("metadata-task", TASK_DEFINITION, "the metadata server cannot be started again"),
        Piece("metadata-service", SERVICE, "there is no metadata server: nothing can run"),
        Piece("data-task", TASK_DEFINITION, "data servers cannot be started again"),
        Piece("data-service", SERVICE, "there are no data servers: large values cannot be stored"),
        Piece("storage-log", LOG_GROUP, "what the storage tier says is lost, or kept for ever"),
        Piece("storage-role", ROLE, "servers of the storage tier cannot read their secret"),
        Piece("storage-execution-role", ROLE, "Fargate cannot fetch the storage tier's image"),
        Piece("network", VPC, "there is no network"),
        Piece("subnet-0", SUBNET, "functions and servers have no place in one zone"),
        Piece("subnet-1", SUBNET, "functions and servers have no place in one zone"),
        Piece("executor-security-group", SECURITY_GROUP, "functions cannot reach the storage tier"),
        Piece("storage-security-group", SECURITY_GROUP, "nobody can reach the storage tier"),
        Piece("endpoint-s3", ENDPOINT, "executors cannot reach the overflow"),
        Piece("endpoint-lambda", ENDPOINT, "executors cannot start others"),
        Piece("endpoint-logs", ENDPOINT, "the storage tier cannot log, so Fargate does not start it"),
        Piece("endpoint-secrets", ENDPOINT, "the storage tier cannot read its secret"),
        Piece("endpoint-ecr-api", ENDPOINT, "Fargate cannot fetch the storage tier's image"),
        Piece("endpoint-ecr-images", ENDPOINT, "Fargate cannot fetch the storage tier's image"),
    )


def tags_of(name: str, piece: str | None = None) -> dict[str, str]:
    """Return the tags of a deployment's stack, or of one of its pieces.

    Examples
    --------
    >>> tags_of("prod", "secret")
    {'createdBy': 'dask-serverless', 'dask-serverless:stack': 'prod', 'dask-serverless:piece': 'secret'}
    """
    tags = {CREATED_BY_TAG: CREATED_BY, NAME_TAG: name}
    return tags if piece is None else {**tags, PIECE_TAG: piece}


def role_path(region: str) -> str:
    """Return the path of a deployment's roles. They belong to all regions, and the tagging API does not know them.

    So the path tells which region's deployments they are of; tags tell which deployment's.

    Examples
    --------
    >>> role_path("eu-west-1")
    '/dask-serverless/eu-west-1/'
    """
    return f"/dask-serverless/{region}/"


def belongs(tags: Mapping[str, str], name: str) -> bool:
    """Tell whether who carries these tags is a part of a deployment.

    Examples
    --------
    >>> belongs(tags_of("prod", "secret"), "prod"), belongs(tags_of("prod"), "pro"), belongs({NAME_TAG: "prod"}, "prod")
    (True, False, False)
    """
    return all(tags.get(key) == value for key, value in tags_of(name).items())
