"""What `Client.recreate_task_locally` and `recreate_error_locally` get from a scheduler that holds stubs only.

The proxy keeps the users' graphs, and an error names the task that raised it. So the task that a
client runs again is the real one, also when nobody asked for its key. Its inputs travel inside it:
values of the graph's inner keys are let go as soon as nobody needs them, and those that are gone are
computed again first.
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from dask._task_spec import Alias, DataNode, GraphNode
from distributed.protocol.serialize import ToPickle
from distributed.utils import offload

from dask_serverless.scheduler_link import frames_of
from dask_serverless.stubs import as_expr_ser
from lambda_worker.core.wire import unpack
from lambda_worker.values import frames_to_value

if TYPE_CHECKING:
    from dask_serverless.dask_graph import Materialised
    from dask_serverless.proxy import Proxy
    from dask_serverless.submissions import Submission


class Replay:
    """Takes the place of two of the scheduler's handlers.

    Parameters
    ----------
    proxy
        Keeps the graphs.
    """

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self._numbers = itertools.count()
        handlers = proxy.scheduler.handlers
        self._stock = {name: handlers[name] for name in ("get_runspec", "get_error_cause")}

    def install(self) -> None:
        """Answer in the scheduler's place."""
        self.proxy.scheduler.handlers |= {"get_runspec": self.get_runspec, "get_error_cause": self.get_error_cause}

    def uninstall(self) -> None:
        """Give the handlers back."""
        self.proxy.scheduler.handlers |= self._stock

    async def _graph_with(self, key: Hashable) -> tuple[Submission, Materialised] | None:
        for submission in self.proxy.graphs_with(key):
            read = submission.read() if submission.small else await offload(submission.read)
            if key in read.tasks:
                return submission, read
        return None

    async def get_error_cause(self, *args: Any, keys: Any = (), **options: Any) -> Hashable:
        """Name the task that raised what made one of these keys err, whether or not it is visible."""
        cause: Hashable = self._stock["get_error_cause"](*args, keys=keys, **options)
        entry = self.proxy.dispatcher.ledger.keys.get(cause)
        if entry is None or entry.error is None:
            return cause
        blob = unpack(entry.error)[4]
        blamed = pickle.loads(blob) if blob else cause  # sealed, so it is one of our executors that pickled it
        return cause if await self._graph_with(blamed) is None else blamed

    async def get_runspec(self, *args: Any, key: Any = None, **options: Any) -> Any:
        """Return a task that computes a key without asking anybody."""
        key = tuple(key) if isinstance(key, list) else key
        found = await self._graph_with(key)
        if found is None:
            return self._stock["get_runspec"](*args, key=key, **options)
        submission, graph = found
        nodes: dict[Any, GraphNode] = {}
        inputs: set[Any] = set()
        stack = [key]
        while stack:
            name = stack.pop()
            task = graph.tasks.get(name)
            if name == key or type(task) in (Alias, DataNode):
                nodes[name] = task  # type: ignore[assignment]
                stack.extend(task.dependencies - nodes.keys())  # type: ignore[union-attr]
            else:
                inputs.add(name)
        if inputs:
            nodes.update(await self._values(inputs, submission, graph))
        first = nodes.pop(key)
        return ToPickle(GraphNode.fuse(first, *nodes.values(), key=key))

    async def _values(self, keys: set[Any], submission: Submission, graph: Materialised) -> dict[Any, GraphNode]:
        """Have the keys computed, as for a client of our own, and return their values as data."""
        client = f"serverless-replay-{next(self._numbers)}"
        try:
            await self.proxy.update_graph_message(
                client=client,
                expr_ser=as_expr_ser(dict(graph.tasks), graph.annotations_by_type),
                keys=keys,
                annotations=dict(submission.annotations),
                span_metadata={},
                submitting_task=None,
            )
            values = await asyncio.gather(*map(self.proxy.value_of, keys))
        finally:
            self.proxy.holders.drop(client)
        decoded = await offload(lambda: [frames_to_value(frames_of(value)) for value in values])
        return {key: DataNode(key, value) for key, value in zip(keys, decoded, strict=True)}
