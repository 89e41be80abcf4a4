"""Assignments that are too large for an invocation go through the store, by reference.

Source: schedules inline up to a limit, by reference above it, Wukong (SoCC'20) section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lambda_worker.core.schedule import Assignment
from lambda_worker.core.wire import open_frames, seal_frames
from lambda_worker.ports import Store

#: Numbers, or sixteenths of references, that surely fit into the smallest payload that can be configured (16 KiB).
SMALL_ITEMS_MAX = 512


def payload_room(payload_bytes_max: int) -> int:
    """Return how large an assignment may be: base64 adds a third, and JSON and tags need room."""
    return payload_bytes_max * 2 // 3


def fit(assignments: Sequence[Assignment], store: Store, secret: bytes, payload_bytes_max: int) -> list[Assignment]:
    """Return assignments that fit into invocations: a large one becomes a reference to itself."""
    fitting = list(assignments)
    for index, assignment in enumerate(fitting):
        if _is_small(assignment):  # whoever invokes packs it, once
            continue
        blob = assignment.to_bytes()
        if len(blob) > payload_room(payload_bytes_max):
            name = f"{assignment.job}/assignment/{assignment.executor}/{assignment.attempt}"
            (stored,) = store.put([(name, seal_frames(secret, name, [blob]))])
            fitting[index] = replace(assignment, starts=(), given={}, hint=(), segments={}, stored=stored)
    return fitting


def _is_small(assignment: Assignment) -> bool:
    """Tell whether an assignment fits into any invocation, without packing it to find out."""
    if assignment.claims or assignment.segments or any(isinstance(each, bytes) for each in assignment.given.values()):
        return False
    items = len(assignment.starts) + len(assignment.hint) + len(assignment.without) + 16 * len(assignment.given)
    return items <= SMALL_ITEMS_MAX


def unfold(assignment: Assignment, store: Store, secret: bytes) -> Assignment:
    """Undo `fit`.

    Raises
    ------
    ValueLost, Tampered, StoreUnavailable
        When the stored assignment cannot be read.
    """
    if assignment.stored is None:
        return assignment
    (sealed,) = store.get([assignment.stored])
    (blob,) = open_frames(secret, assignment.stored.name, sealed)
    return Assignment.from_bytes(bytes(blob))
