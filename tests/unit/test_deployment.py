"""What is said of a deployment, and what is done next to remove one: from what was found, without AWS."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest

from dask_serverless.deployment import manifest as m
from dask_serverless.deployment.findings import (
    Condition,
    Event,
    Fault,
    Found,
    Inventory,
    Stack,
    condition_of,
    examine,
    flaws,
    latest_failures,
)
from dask_serverless.deployment.steps import DELETIONS_MAX, DeleteStack, Done, Refuse, Remove, Wait, next_step, ours

pytestmark = pytest.mark.fault(43)

PIECES = m.manifest(function_classes=2)
#: As they should be.
FACTS = {
    m.FUNCTION: {"state": "Active", "retries": 0, "destination": "arn:queue"},
    m.QUEUE: {"arn": "arn:queue"},
    m.LOG_GROUP: {"retention_days": 30},
    m.BUCKET: {"expires": True},
    m.SERVICE: {"running": 1, "desired": 1},
}
ALL = tuple(
    Found(piece.type, f"{number}-of-prod", m.tags_of("prod", piece.name), FACTS.get(piece.type, {}))
    for number, piece in enumerate(PIECES)
)
NO_QUEUE = tuple(each for each in ALL if each.piece != m.FAILURE_QUEUE)
LIMIT = Event("FailureQueue", m.QUEUE, "CREATE_FAILED", "too many queues")
NOT_EMPTY = Event("OverflowBucket", m.BUCKET, "DELETE_FAILED", "the bucket is not empty")


def stack(status, *failures, tags=None, id="arn:stack/prod/1", protected=False):
    return Stack(id, status, "", m.tags_of("prod") if tags is None else tags, failures, protected)


@pytest.mark.parametrize(
    "found_stack, found, condition, said",
    [
        (None, (), Condition.NOTHING, ["prod: nothing is there"]),
        (stack("DELETE_COMPLETE"), (), Condition.NOTHING, ["prod: nothing is there"]),
        (stack("CREATE_COMPLETE"), ALL, Condition.COMPLETE, []),
        (stack("UPDATE_COMPLETE"), ALL, Condition.COMPLETE, []),
        (stack("IMPORT_COMPLETE"), ALL, Condition.COMPLETE, []),
        (stack("UPDATE_ROLLBACK_COMPLETE"), ALL, Condition.COMPLETE, ["prod: .*as it was before"]),
        (
            stack("CREATE_FAILED", LIMIT),
            NO_QUEUE,
            Condition.HALF_DEPLOYED,
            ["FailureQueue: .*too many queues", "prod: .*CREATE_FAILED; not there: failure-queue"],
        ),
        (
            stack("ROLLBACK_COMPLETE", LIMIT),
            (),
            Condition.HALF_DEPLOYED,
            ["FailureQueue: .*too many queues", "prod: .*not there: executor-function-0, executor-function-1, fai"],
        ),
        (stack("ROLLBACK_FAILED"), ALL, Condition.HALF_DEPLOYED, ["prod: .*ROLLBACK_FAILED"]),
        (stack("UPDATE_ROLLBACK_FAILED"), ALL, Condition.HALF_DEPLOYED, ["prod: .*UPDATE_ROLLBACK_FAILED"]),
        (stack("REVIEW_IN_PROGRESS"), (), Condition.HALF_DEPLOYED, ["prod: .*REVIEW_IN_PROGRESS; not there"]),
        (stack("SOMETHING_NEW"), ALL, Condition.HALF_DEPLOYED, ["prod: .*SOMETHING_NEW"]),
        (
            stack("CREATE_COMPLETE"),
            NO_QUEUE,
            Condition.HALF_DEPLOYED,
            ["failure-queue: .*missing, although the stack is complete; without it the death of an executor"],
        ),
        (
            stack("DELETE_FAILED", NOT_EMPTY),
            ALL[:3],
            Condition.HALF_DELETED,
            ["OverflowBucket: .*could not be removed: the bucket is not empty", "prod: .*DELETE_FAILED"],
        ),
        (
            None,
            ALL[:2],
            Condition.HALF_DELETED,
            ["executor-function-0: .*0-of-prod was left behind", "executor-function-1: .*was left behind"],
        ),
        *(
            (stack(f"{what}_IN_PROGRESS"), ALL[:2], Condition.IN_PROGRESS, [f"prod: .*{what}_IN_PROGRESS"])
            for what in ("CREATE", "ROLLBACK", "UPDATE", "UPDATE_COMPLETE_CLEANUP", "DELETE")
        ),
        (stack("CREATE_COMPLETE", tags={}), ALL, Condition.ANOTHERS, ["prod: .*without the tags"]),
        (stack("DELETE_FAILED", tags=m.tags_of("other")), (), Condition.ANOTHERS, ["prod: .*without the tags"]),
    ],
)
def test_how_a_deployment_stands_and_what_is_said_of_it(found_stack, found, condition, said):
    inventory = Inventory("prod", found_stack, found)
    assert condition_of(inventory, PIECES) is condition
    findings = examine(inventory, PIECES)
    assert len(findings) == len(said)
    for finding, text in zip(findings, said, strict=True):
        piece, _, what = text.partition(": ")
        assert finding.piece == piece
        assert re.search(what, finding.what)
        assert finding.remedy and finding.fault in str(finding)


@pytest.mark.parametrize("piece", PIECES, ids=lambda piece: piece.name)
def test_each_piece_that_somebody_has_removed_is_named(piece):
    found = tuple(each for each in ALL if each.piece != piece.name)
    [finding] = examine(Inventory("prod", stack("CREATE_COMPLETE"), found), PIECES)
    assert (finding.piece, finding.fault) == (piece.name, Fault.SOMEBODY)
    assert piece.without in finding.what and "destroy --name prod" in finding.remedy


def test_a_piece_of_another_deployment_is_no_substitute():
    other = Found(m.QUEUE, "failures", m.tags_of("prod-2", m.FAILURE_QUEUE))
    untagged = Found(m.QUEUE, "prod-failures", {})
    inventory = Inventory("prod", stack("CREATE_COMPLETE"), (*NO_QUEUE, other, untagged))
    assert [each.piece for each in examine(inventory, PIECES) if each.fault is Fault.SOMEBODY][0] == m.FAILURE_QUEUE
    assert other not in ours(inventory) and untagged not in ours(inventory)


@pytest.mark.parametrize(
    "type, change, what, fault",
    [
        (m.FUNCTION, {"state": "Failed", "reason": "no such image"}, "cannot run: no such image", Fault.AWS),
        (m.FUNCTION, {"retries": 2}, "must be 0", Fault.SOMEBODY),
        (m.FUNCTION, {"retries": None}, "must be 0", Fault.SOMEBODY),
        (m.FUNCTION, {"destination": None}, "failure queue", Fault.SOMEBODY),
        (m.FUNCTION, {"destination": "arn:another"}, "failure queue", Fault.SOMEBODY),
        (m.LOG_GROUP, {"retention_days": None}, "for ever", Fault.SOMEBODY),
        (m.BUCKET, {"expires": False}, "should expire", Fault.SOMEBODY),
        (m.SERVICE, {"running": 0}, "has 0 of 1 servers", Fault.AWS),
    ],
)
def test_what_is_there_may_be_broken(type, change, what, fault):
    index = next(number for number, each in enumerate(ALL) if each.type == type)
    broken = replace(ALL[index], facts=ALL[index].facts | change)
    found = (*ALL[:index], broken, *ALL[index + 1 :])
    inventory = Inventory("prod", stack("CREATE_COMPLETE"), found)
    [finding] = examine(inventory, PIECES)
    assert (finding.piece, finding.fault) == (broken.piece, fault)
    assert what in finding.what and broken.id in finding.what


def test_what_is_as_it_should_be_is_not_found_fault_with():
    assert [flaw for each in ALL for flaw in flaws(each, ["arn:queue"])] == []
    idle = Found(m.SERVICE, "data", facts={"running": 0, "desired": 0})
    assert list(flaws(idle)) == []


def test_only_what_failed_first_and_last_time_is_told():
    def begun(status):
        return Event("prod", "AWS::CloudFormation::Stack", status, is_stack=True)

    events = [
        begun("ROLLBACK_COMPLETE"),
        begun("ROLLBACK_IN_PROGRESS"),
        Event("Secret", m.SECRET, "CREATE_FAILED", "Resource creation cancelled"),
        LIMIT,
        Event("Network", m.VPC, "CREATE_COMPLETE"),
        begun("UPDATE_IN_PROGRESS"),
        NOT_EMPTY,
    ]
    assert latest_failures(events) == (LIMIT,)


def test_pieces_have_names_of_their_own_and_a_place_in_the_order_of_removal():
    names = [piece.name for piece in PIECES]
    assert len(set(names)) == len(names)
    assert {piece.type for piece in PIECES} == set(m.REMOVAL_ORDER)


BUCKETS = tuple(each for each in ALL if each.type == m.BUCKET)
NONE = Inventory("prod")


@pytest.mark.parametrize(
    "found_stack, found, deletions, step",
    [
        (None, (), 0, Done()),
        (stack("DELETE_COMPLETE"), (), 1, Done()),
        (stack("CREATE_COMPLETE"), ALL, 0, DeleteStack(stack("CREATE_COMPLETE"), BUCKETS)),
        (stack("CREATE_COMPLETE"), (), 1, Wait(stack("CREATE_COMPLETE"))),
        (stack("DELETE_IN_PROGRESS"), ALL, 0, Wait(stack("DELETE_IN_PROGRESS"))),
        (stack("UPDATE_IN_PROGRESS"), ALL, 0, Wait(stack("UPDATE_IN_PROGRESS"))),
        (stack("CREATE_IN_PROGRESS"), ALL, 0, DeleteStack(stack("CREATE_IN_PROGRESS"), BUCKETS)),
        (stack("DELETE_FAILED"), ALL, 0, DeleteStack(stack("DELETE_FAILED"), BUCKETS)),
        (stack("DELETE_FAILED"), BUCKETS, 1, Remove(BUCKETS)),
        (stack("DELETE_FAILED"), (), 1, DeleteStack(stack("DELETE_FAILED"), ())),
        (None, BUCKETS, 1, Remove(BUCKETS)),
        (None, BUCKETS, 0, Remove(BUCKETS)),
    ],
)
def test_what_is_done_next(found_stack, found, deletions, step):
    inventory = Inventory("prod", found_stack, found)
    assert next_step(inventory, inventory, deletions) == step


def test_who_uses_something_goes_before_it():
    step = next_step(Inventory("prod", None, ALL), NONE, 0)
    assert isinstance(step, Remove) and len(step.found) == len(ALL)
    types = [each.type for each in step.found]
    for user, used in ((m.SERVICE, m.CLUSTER), (m.FUNCTION, m.ROLE), (m.ENDPOINT, m.SUBNET), (m.SUBNET, m.VPC)):
        assert max(i for i, type in enumerate(types) if type == user) < types.index(used)


@pytest.mark.parametrize(
    "found_stack, first, deletions, reason",
    [
        (stack("CREATE_COMPLETE", tags={}), NONE, 0, "another's"),
        (stack("CREATE_COMPLETE", protected=True), None, 0, "protected"),
        (stack("CREATE_IN_PROGRESS"), NONE, 0, "another deployment 'prod' was begun"),
        (stack("CREATE_COMPLETE", id="2"), Inventory("prod", stack("CREATE_COMPLETE", id="1")), 1, "was begun"),
        (stack("DELETE_FAILED", NOT_EMPTY), None, DELETIONS_MAX, "OverflowBucket: the bucket is not empty"),
    ],
)
def test_what_is_refused(found_stack, first, deletions, reason):
    inventory = Inventory("prod", found_stack)
    step = next_step(inventory, inventory if first is None else first, deletions)
    assert isinstance(step, Refuse) and reason in step.reason


@pytest.mark.parametrize("seed", range(50))
def test_whatever_fails_and_wherever_it_stops_nothing_is_left_in_the_end(seed):
    """CloudFormation removes what it likes, fails as it likes; runs end anywhere; others' things are not touched."""
    luck = random.Random(seed)
    foreign = Found(m.QUEUE, "prod-queue", {})
    inventory = Inventory("prod", stack("CREATE_COMPLETE"), (*ALL, foreign))
    for _ in range(20):  # runs
        first, deletions = inventory, 0
        for _ in range(luck.randrange(1, 12)):
            match next_step(inventory, first, deletions):
                case Done():
                    assert inventory.found == (foreign,)
                    return
                case Refuse():
                    assert deletions == DELETIONS_MAX
                    break
                case DeleteStack():
                    deletions += 1
                    inventory = replace(inventory, stack=stack("DELETE_IN_PROGRESS"))
                case Wait():
                    left = tuple(each for each in inventory.found if each is foreign or luck.random() < 0.5)
                    gone = luck.random() < 0.4
                    inventory = Inventory("prod", None if gone else stack("DELETE_FAILED", NOT_EMPTY), left)
                case Remove(found):
                    assert foreign not in found
                    done = set(luck.sample([each.id for each in found], luck.randrange(1, len(found) + 1)))
                    inventory = replace(inventory, found=tuple(e for e in inventory.found if e.id not in done))
    raise AssertionError(f"something is left: {inventory}")
