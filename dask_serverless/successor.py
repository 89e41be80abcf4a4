"""The part of a proxy that knows of other processes: what a dead one has left comes into the scheduler.

The keys that are there, or will be, and data that was scattered, are held under a name of our own, until a client that
has asked for them can hold them itself, or for a bounded time (`holders`). So whoever submits the same graph finds its
keys known, as if it had submitted it twice; and published datasets are published again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from dask.utils import stringify

from dask_serverless.notes import Found
from dask_serverless.stubs import as_expr_ser, stub_graph
from lambda_worker.core.errors import PlatformError

if TYPE_CHECKING:
    from dask_serverless.proxy import Proxy

logger = logging.getLogger("dask_serverless.proxy")

#: Who holds, towards the scheduler, what a predecessor has left.
HOLDER = "serverless-predecessor"


class Successor:
    """Brings what a predecessor has left into a scheduler, and notes for the next one what is published.

    Parameters
    ----------
    proxy
        Whose scheduler this is.
    fleet
        The name that stubs are restricted to.
    """

    def __init__(self, proxy: Proxy, fleet: str) -> None:
        self._proxy = proxy
        self._fleet = fleet
        self._scheduler = proxy.scheduler
        self._notes = proxy.dispatcher.legacy.notes
        handlers = proxy.scheduler.handlers
        self._stock = {name: handlers[name] for name in ("publish_put", "publish_delete")}

    def install(self) -> None:
        """Hear of what is published."""
        if self._notes is not None:
            self._scheduler.handlers |= {"publish_put": self.put, "publish_delete": self.delete}

    def uninstall(self) -> None:
        """Hear no more."""
        if self._notes is not None:
            self._scheduler.handlers |= self._stock

    async def show(self, found: Found) -> None:
        """Have the scheduler know the keys that a predecessor has left, as if a client had asked for them."""
        ledger, kept = self._proxy.dispatcher.ledger, self._proxy.kept
        published = {key for dataset in found.datasets for key in dataset.keys}
        there = {data.key for data in found.data}
        sources: dict[Any, set[Any]] = {}
        for note in found.jobs.values():
            for key, above in note.plan.sources().items():
                entry = ledger.keys.get(key)
                is_there = entry is not None and entry.error is None
                can_be_made = (note.waits or key in published) and above <= sources.keys() | there
                if is_there or can_be_made:
                    sources[key] = above
                    kept[key] = note.again.submission
        stubs = stub_graph(sources, {key: above & (sources.keys() | there) for key, above in sources.items()})
        if found.data and self._proxy.fleet is not None:  # as if it had them in its memory
            self._scheduler.update_data(
                who_has={data.key: [self._proxy.fleet.address] for data in found.data},
                nbytes={data.key: data.nbytes for data in found.data},
                client=HOLDER,
            )
        if stubs:
            await self._proxy.update_stock(
                client=HOLDER,
                expr_ser=as_expr_ser(stubs, {"workers": dict.fromkeys(stubs, [self._fleet])}),
                keys=set(stubs),
                internal_priority={key: number for number, key in enumerate(stubs)},
                annotations={},
                span_metadata={"collections": []},
                submitting_task=None,
            )
        if stubs or there:
            self._proxy.holders.wait_for_clients(HOLDER, self._proxy.backend.settings.persistent_timeout)
        extension = self._scheduler.extensions["publish"]
        for dataset in found.datasets:
            if lost := [key for key in dataset.keys if key not in stubs and key not in there]:
                logger.warning("the dataset %r is lost: %r died with the process that held it", dataset.name, lost[0])
                await self._note("strike_dataset", dataset.name)
                continue
            self._scheduler.client_desires_keys(list(dataset.keys), f"published-{stringify(dataset.name)}")
            extension.datasets[dataset.name] = {"data": dataset.data, "keys": dataset.keys}
            self._proxy.durable.publish(dataset.keys)

    async def put(self, names: Any, keys: Any, data: Any, override: bool, client: str, uid: bytes) -> None:
        """Handle ``publish_put`` in the scheduler's place, then note it for a successor."""
        await self._stock["publish_put"](names=names, keys=keys, data=data, override=override, client=client, uid=uid)
        for dataset in zip(names, keys, data, strict=True):
            await self._note("note_dataset", *dataset)

    async def delete(self, names: Any, client: str, uid: bytes) -> None:
        """Handle ``publish_delete`` in the scheduler's place, then strike the note."""
        await self._stock["publish_delete"](names=names, client=client, uid=uid)
        for name in names:
            await self._note("strike_dataset", name)

    async def _note(self, what: str, *about: Any) -> None:
        try:
            await self._proxy.dispatcher.call(getattr(self._notes, what), *about)
        except PlatformError as error:
            logger.warning("the dataset %r will not be there after the death of this process: %s", about[0], error)
