"""Nodes of tasks that stand for objects: in the storage tier, or pickled by themselves. Imports Dask."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from dask._task_spec import GraphNode

from lambda_worker.core.wire import Ref


class StoredLiteral(GraphNode):
    """Takes the place of a large object among a task's arguments; Dask evaluates it when the task runs.

    So the object is read by the tasks that run, not by all whose bodies were pickled together, and each of them has
    an object of its own, as it has when the object travels with the task.

    Parameters
    ----------
    key
        Of the node that it takes the place of, if that has one.
    ref
        Where the object is.
    read
        Reads it; None where there is nobody to read it (in the proxy).

    Examples
    --------
    >>> from dask._task_spec import Task
    >>> Task("x", sum, StoredLiteral(None, Ref("constants/abc/1", 0, 3), lambda ref: [1, 2]))({})
    3
    """

    __slots__ = ("read", "location")

    def __init__(self, key: Any, ref: Ref, read: Callable[[Ref], Any] | None = None) -> None:
        self.key = key
        self._dependencies = frozenset()
        self.location = ref  # not `ref`, which is a method of nodes
        self.read = read

    def __repr__(self) -> str:
        return f"<StoredLiteral {self.location.name}>"

    def __call__(self, values: Any = ()) -> Any:
        """Make the object."""
        assert self.read is not None
        return self.read(self.location)


class OwnLiteral(GraphNode):
    """Takes the place of a small mutable object that several tasks have as an argument.

    Tasks that are pickled together would share it; each of them makes an object of its own from this, as it has
    under `LocalCluster`, where every task is pickled alone.

    Parameters
    ----------
    key
        Of the node that it takes the place of, if that has one.
    pickled
        The object.

    Examples
    --------
    >>> import pickle
    >>> node = OwnLiteral(None, pickle.dumps([]))
    >>> node() is node()
    False
    """

    __slots__ = ("pickled",)

    def __init__(self, key: Any, pickled: bytes) -> None:
        self.key = key
        self._dependencies = frozenset()
        self.pickled = pickled

    def __repr__(self) -> str:
        return f"<OwnLiteral of {len(self.pickled)} bytes>"

    def __call__(self, values: Any = ()) -> Any:
        """Make the object."""
        return pickle.loads(self.pickled)
