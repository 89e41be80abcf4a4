"""A small template of a deployment: every piece of the manifest, with the least that it needs."""

from __future__ import annotations

import json

from dask_serverless.deployment import manifest as m

ASSUMED_BY = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "lambda.amazonaws.com"}},
    ],
}
#: Moto's account.
ACCOUNT = "123456789012"
#: What moto wants to be told of an endpoint.
NO_ROUTES = {"VpcEndpointType": "Gateway", "RouteTableIds": [], "SubnetIds": [], "SecurityGroupIds": []}


def logical(piece):
    """Return the logical id of a piece in the template."""
    return "".join(word.capitalize() for word in piece.split("-"))


def listed(tags, key="Key", value="Value"):
    return [{key: each, value: tags[each]} for each in tags]


def properties(piece, number):
    """Return what the template says of a piece, beside its tags."""
    match piece.type:
        case m.FUNCTION:
            return {
                "Handler": "index.handler",
                "Runtime": "python3.11",
                "Role": {"Fn::GetAtt": [logical("executor-role"), "Arn"]},
                "Code": {"ZipFile": "def handler(event, context): pass"},
            }
        case m.LOG_GROUP:
            return {"RetentionInDays": 30}
        case m.ROLE:
            policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "logs:*", "Resource": "*"}]}
            return {
                "Path": {"Fn::Sub": m.role_path("${AWS::Region}")},
                "AssumeRolePolicyDocument": ASSUMED_BY,
                "Policies": [{"PolicyName": "least", "PolicyDocument": policy}],
            }
        case m.TASK_DEFINITION:
            container = {"Name": "server", "Image": "valkey", "Memory": 512}
            return {"Family": piece.name, "ContainerDefinitions": [container]}
        case m.SERVICE:
            return {
                "Cluster": {"Ref": logical("storage-cluster")},
                "TaskDefinition": {"Ref": logical(piece.name.replace("service", "task"))},
                "DesiredCount": 0,
                "LaunchType": "FARGATE",
            }
        case m.VPC:
            return {"CidrBlock": "10.0.0.0/16"}
        case m.SUBNET:
            return {"VpcId": {"Ref": logical("network")}, "CidrBlock": f"10.0.{number}.0/24"}
        case m.SECURITY_GROUP:
            return {"VpcId": {"Ref": logical("network")}, "GroupDescription": piece.name}
        case m.ENDPOINT:
            return {"VpcId": {"Ref": logical("network")}, "ServiceName": "com.amazonaws.us-east-1.s3", **NO_ROUTES}
    return {}


def template(name, pieces, retained=()):
    """Return a template with some pieces; those that are `retained` stay when the stack is deleted."""
    resources = {}
    for number, piece in enumerate(pieces):
        resource = {"Type": piece.type, "Properties": {**properties(piece, number)}}
        resource["Properties"]["Tags"] = listed(m.tags_of(name, piece.name))
        if piece.type == m.CLUSTER:
            resource["Properties"]["ClusterName"] = f"{name}-storage"
        if piece.name in retained:
            resource["DeletionPolicy"] = "Retain"
        resources[logical(piece.name)] = resource
    return json.dumps({"Resources": resources})


async def deploy(call, name="prod", without=(), retained=()):
    """Make a deployment; return what its pieces are called.

    By CloudFormation as far as moto's goes: that has no secrets, nothing about failures and expiry, and few tags.
    """
    pieces = [piece for piece in m.manifest() if piece.name not in without]
    body = template(name, [piece for piece in pieces if piece.type != m.SECRET], retained)
    await call("cloudformation", "create_stack", StackName=name, TemplateBody=body, Tags=listed(m.tags_of(name)))
    answer = await call("cloudformation", "list_stack_resources", StackName=name)
    ids = {each["LogicalResourceId"]: each["PhysicalResourceId"] for each in answer["StackResourceSummaries"]}
    made = {piece.name: ids.get(logical(piece.name)) for piece in pieces}
    for piece in pieces:
        tags = m.tags_of(name, piece.name)
        match piece.type:
            case m.SECRET:
                secret = {"Name": f"{name}-secret", "SecretString": "s", "Tags": listed(tags)}
                made[piece.name] = (await call("secretsmanager", "create_secret", **secret))["ARN"]
            case m.FUNCTION:
                arn = f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:{made[piece.name]}"
                await call("lambda", "tag_resource", Resource=arn, Tags=tags)
                told = {"FunctionName": arn, "MaximumRetryAttempts": 0}
                if m.FAILURE_QUEUE in made:
                    queue = f"arn:aws:sqs:us-east-1:{ACCOUNT}:{made[m.FAILURE_QUEUE].rpartition('/')[2]}"
                    told["DestinationConfig"] = {"OnFailure": {"Destination": queue}}
                await call("lambda", "put_function_event_invoke_config", **told)
            case m.CLUSTER | m.SERVICE | m.TASK_DEFINITION:
                arn = made[piece.name]
                arn = arn if arn.startswith("arn:") else f"arn:aws:ecs:us-east-1:{ACCOUNT}:cluster/{arn}"
                await call("ecs", "tag_resource", resourceArn=arn, tags=listed(tags, "key", "value"))
            case m.ENDPOINT:
                await call("ec2", "create_tags", Resources=[made[piece.name]], Tags=listed(tags))
            case m.BUCKET:
                rule = {"ID": "gone", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 2}}
                bucket = {"Bucket": made[piece.name], "LifecycleConfiguration": {"Rules": [rule]}}
                await call("s3", "put_bucket_lifecycle_configuration", **bucket)
    return made
