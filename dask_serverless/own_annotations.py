"""Annotations of our own: ``memory`` and ``timeout``, and what Dask forgets of them and of ``serverless``.

    with dask.annotate(memory="8 GiB", timeout="10 minutes"):
        future = client.submit(train, data)

A task runs in the smallest class that has as much of both. Who asks for less than the default class has
gets the default class.

Layer annotations reach tasks by their keys, and Dask's low-level fusion renames keys: it drops the
annotations of fused array and bag layers. For memory that would be fatal, so ours are read from the
layers as they were before (`before_fusion`). A fused task needs the most that any task in it asked for, and
it runs on a Dask worker if any task in it must.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeAlias

from dask._expr import Expr, HLGExpr
from dask._task_spec import GraphNode, Task, _execute_subgraph
from dask.highlevelgraph import HighLevelGraph
from dask.utils import format_bytes, format_time, parse_bytes, parse_timedelta

from dask_serverless.plan.classes import FunctionClass, smallest_class
from lambda_worker.core.errors import BadAnnotation

Key: TypeAlias = Any

#: Annotations that choose a function class.
REQUESTS = ("memory", "timeout")

#: Lambda's own limit; no configuration makes it longer.
TIMEOUT_SECONDS_MAX = 900.0

_ADVICE = "split the task, use smaller chunks, or run it on a Dask worker with dask.annotate(serverless=False)"


def before_fusion(expr: Expr, tasks: Mapping[Key, GraphNode]) -> dict[str, dict[Key, Any]]:
    """Return our annotations of an expression's layers, by name and key, as they were before fusion.

    Costs a look at each layer; keys are listed only of those that have one.

    Parameters
    ----------
    expr, tasks
        The expression, and the tasks it has become.
    """
    found: dict[str, dict[Key, Any]] = {}
    for layer in _layers(expr):
        for name in (*REQUESTS, "serverless"):
            value = (layer.annotations or {}).get(name)
            if value is not None:
                asked = found.setdefault(name, {})
                for key in layer.get_output_keys():
                    asked[key] = value(key) if callable(value) else value
    if serverless := found.get("serverless"):
        for key, task in tasks.items():
            if any(serverless.get(inner) is False for inner in keys_in(key, task)):
                serverless[key] = False
    return found


def _layers(expr: Expr) -> Iterator[Any]:
    stack = [expr]
    seen: set[int] = set()
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, HLGExpr) and isinstance(node.dsk, HighLevelGraph):
            yield from node.dsk.layers.values()
        else:
            stack.extend(operand for operand in node.operands if isinstance(operand, Expr))


def function_classes(
    tasks: Mapping[Key, GraphNode],
    memory: Mapping[Key, Any],
    timeout: Mapping[Key, Any],
    classes: Sequence[FunctionClass],
) -> dict[Key, int]:
    """Return the number of the class that each task needs, where that is not the default one.

    Parameters
    ----------
    tasks
        The graph.
    memory, timeout
        The annotations, by key. Keys of tasks that have been fused into others count for those.
    classes
        What the cluster has, the default class first.

    Raises
    ------
    BadAnnotation
        Naming the key and the value.

    Examples
    --------
    >>> from dask_serverless.plan.classes import make_classes
    >>> classes = make_classes("dask", 2 * 2**30, 60, [4 * 2**30], 900)
    >>> tasks = {"a": Task("a", int), "b": Task("b", int)}
    >>> function_classes(tasks, {"a": "3 GiB"}, {"b": 20}, classes)
    {'a': 2}
    >>> function_classes(tasks, {"a": "3 TiB"}, {}, classes)
    Traceback (most recent call last):
        ...
    lambda_worker.core.errors.BadAnnotation: memory='3 TiB' of task 'a' is more than the largest function class of \
this cluster has (4.00 GiB; Lambda allows 10 GiB, see serverless.lambda.memory-classes): split the task, use smaller \
chunks, or run it on a Dask worker with dask.annotate(serverless=False)
    """
    found: dict[Key, int] = {}
    numbers: dict[str, int] = {}  # most tasks that ask, ask for the same
    for key, task in tasks.items():
        for inner in keys_in(key, task):
            asked = memory.get(inner), timeout.get(inner)
            if asked == (None, None):
                continue
            request = repr(asked)
            if request not in numbers:
                numbers[request] = _number(inner, *asked, classes)
            if numbers[request] > found.get(key, 0):
                found[key] = numbers[request]
    return found


def keys_in(key: Key, task: GraphNode) -> Iterator[Key]:
    """Yield the keys that a task stands for: its own, and those that were fused into it."""
    yield key
    if isinstance(task, Task) and task.func is _execute_subgraph:
        yield from task.args[0]


def _number(key: Key, memory: Any, timeout: Any, classes: Sequence[FunctionClass]) -> int:
    largest = classes[-1]
    memory_bytes = 0 if memory is None else _memory_bytes(key, memory)
    if memory_bytes > largest.memory_bytes:
        raise BadAnnotation(
            f"memory={memory!r} of task {key!r} is more than the largest function class of this cluster has"
            f" ({format_bytes(largest.memory_bytes)}; Lambda allows 10 GiB, see serverless.lambda.memory-classes):"
            f" {_ADVICE}"
        )
    timeout_seconds = 0.0 if timeout is None else _timeout_seconds(key, timeout)
    if timeout_seconds > largest.timeout_seconds:
        more = "" if largest.timeout_seconds == TIMEOUT_SECONDS_MAX else ", see serverless.lambda.classes-timeout"
        raise BadAnnotation(
            f"timeout={timeout!r} of task {key!r} is longer than the {format_time(largest.timeout_seconds)} that"
            f" functions of this cluster may take (Lambda allows 15 minutes{more}): {_ADVICE}"
        )
    number = smallest_class(classes, memory_bytes, timeout_seconds)
    assert number is not None, "the largest class has the most of both"
    return number


def _memory_bytes(key: Key, memory: Any) -> int:
    try:
        if isinstance(memory, bool) or not isinstance(memory, int | float | str):
            raise ValueError
        size = parse_bytes(memory)
        if not size > 0:
            raise ValueError
    except (ValueError, OverflowError):
        raise BadAnnotation(f"memory={memory!r} of task {key!r} must be a size above 0, like '8 GiB'") from None
    return size


def _timeout_seconds(key: Key, timeout: Any) -> float:
    try:
        if isinstance(timeout, bool) or not isinstance(timeout, int | float | str | timedelta):
            raise ValueError
        seconds = float(parse_timedelta(timeout))
        if not seconds > 0:
            raise ValueError
    except (KeyError, ValueError, OverflowError):
        raise BadAnnotation(f"timeout={timeout!r} of task {key!r} must be a time above 0, like '10 minutes'") from None
    return seconds
