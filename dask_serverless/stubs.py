"""What the stock scheduler gets to see of a graph: one stub for each key that was asked for."""

from __future__ import annotations

import itertools
import pickle
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from dask._expr import LLGExpr
from dask._task_spec import GraphNode, Task, TaskRef
from distributed.protocol.serialize import Serialized

from dask_serverless.dask_graph import Key
from lambda_worker.core.errors import ProtocolError


def run_elsewhere(*values: Any) -> NoReturn:
    """Stand for a task that Lambda runs."""
    raise ProtocolError(
        "a stub was run on a Dask worker: its key is computed by Lambda, and only the fleet worker may be given it"
    )


def stub_graph(visible: Iterable[Key], dependencies: Mapping[Key, Iterable[Key]]) -> dict[Key, GraphNode]:
    """Return the collapsed graph: one stub per visible key, with the keys it keeps alive.

    Examples
    --------
    >>> stub_graph(["y"], {"y": ["x"]})["y"].dependencies
    frozenset({'x'})
    """
    return {
        key: Task(key, run_elsewhere, *[TaskRef(name) for name in dependencies.get(key, ())])  # type: ignore[misc]
        for key in visible
    }


class CollapsedGraph(LLGExpr):
    """A low-level graph that is handed on as it is, with its annotations."""

    _parameters = ["dsk", "annotations_by_type"]

    def __dask_graph__(self) -> dict[Key, GraphNode]:  # noqa: D105
        graph: dict[Key, GraphNode] = self.operand("dsk")
        return graph

    def __dask_annotations__(self) -> dict[str, dict[Key, Any]]:  # noqa: D105
        annotations: dict[str, dict[Key, Any]] = self.operand("annotations_by_type")
        return annotations


_deposits: dict[int, CollapsedGraph] = {}
_tokens = itertools.count()


class _Deposit:
    """Pickles to a token; unpickled in the same process, becomes the expression left under it."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __reduce__(self) -> tuple[Any, ...]:
        return _collect, (self.token,)


def _collect(token: int) -> CollapsedGraph:
    try:
        return _deposits.pop(token)
    except KeyError:
        raise ProtocolError("a collapsed graph was read twice, or in another process") from None


def as_expr_ser(
    tasks: dict[Key, GraphNode], annotations_by_type: Mapping[str, Mapping[Key, Any]] | None = None
) -> Serialized:
    """Wrap a graph for `Scheduler.update_graph`, which takes serialised expressions only.

    What it deserialises to, once and in this process, holds the very same dict: nothing is
    pickled. A wrapper that is never read takes the graph with it.

    Examples
    --------
    >>> from distributed.protocol import deserialize
    >>> tasks = stub_graph(["x"], {})
    >>> message = as_expr_ser(tasks)
    >>> deserialize(message.header, message.frames).__dask_graph__() is tasks
    True
    """
    token = next(_tokens)
    # With a token of its own, the expression is not hashed through and through for a name.
    _deposits[token] = CollapsedGraph(tasks, dict(annotations_by_type or {}), _determ_token=f"collapsed-{token}")
    message = Serialized({"serializer": "pickle", "writeable": ()}, [pickle.dumps(_Deposit(token), protocol=5)])
    weakref.finalize(message, _deposits.pop, token, None)
    return message
