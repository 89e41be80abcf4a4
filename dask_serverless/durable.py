"""What nobody could make again has a place that outlives servers and processes: the overflow.

* The results of a published dataset, in any cluster that has an overflow: a copy, written beside, under the name that
  the value has. Whoever misses it on its shard reads the copy; nothing is computed again.
* Data that clients scatter, in a persistent cluster: stored in the overflow (small ones in their note) before `scatter`
  returns, so that what it returned survives the process. In any other cluster the process has the data as long as
  there is a cluster, and the tier has copies only.

Without an overflow nothing here does anything.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Hashable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dask_serverless.job_events import Kept, Released
from dask_serverless.notes import Data
from fargate_storage.client.overflow import OVERFLOW
from lambda_worker.core.errors import ServerlessError, ValueLost
from lambda_worker.core.wire import Location, Ref

if TYPE_CHECKING:
    from dask_serverless.proxy import Proxy

logger = logging.getLogger("dask_serverless.proxy")

#: What is scattered is kept in pieces of as many values, or bytes: a thread and a round trip for each would take long.
BATCH_KEYS_MAX = 1_000
#: What Dask workers have is in this process's memory meanwhile; a larger value is a piece by itself.
BATCH_BYTES_MAX = 16 * 2**20


class Durable:
    """Keeps published results and scattered data of one proxy.

    Parameters
    ----------
    proxy
        Whose scheduler this is.
    """

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._handlers: dict[str, Any] = proxy.scheduler.handlers
        self._stock: dict[str, Any] = {}
        self._notes = proxy.dispatcher.legacy.notes
        self._has_overflow = proxy.backend.store_config.overflow is not None
        self._published: set[Hashable] = set()
        self._copying = asyncio.Lock()

    def install(self) -> None:
        """Hear of what is published and scattered."""
        own: dict[str, Any] = {}
        if self._has_overflow:
            own["publish_put"] = self.publish_put
            if self._notes is not None:
                own |= {"scatter": self.scatter, "update_data": self.update_data}
        self._stock = {name: self._handlers[name] for name in own}
        self._handlers |= own

    def uninstall(self) -> None:
        """Hear no more."""
        self._handlers |= self._stock

    # -- published results ----------------------------------------------------------------------

    async def publish_put(self, names: Any, keys: Any, **message: Any) -> None:
        """Handle ``publish_put`` in the scheduler's place, then copy what is there."""
        await self._stock["publish_put"](names=names, keys=keys, **message)
        self.publish([key for each in keys for key in each])

    def publish(self, keys: Collection[Hashable]) -> None:
        """Have results copied: those that are there now, the others when they are."""
        if self._has_overflow:
            self._published.update(keys)
            for key in keys:
                self.finished(key)

    def finished(self, key: Hashable) -> None:
        """A key may have a value now."""
        if key not in self._published:
            return
        where = self._proxy.location(key)
        if isinstance(where, Ref) and where.shard != OVERFLOW:  # else it is where copies are
            self._proxy.dispatcher.spawn(self._copy(key, where))

    def forget(self, key: Hashable) -> None:
        """Nobody knows a key any more."""
        self._published.discard(key)

    async def _copy(self, key: Hashable, ref: Ref) -> None:
        dispatcher, store = self._proxy.dispatcher, self._proxy.backend.store

        def copy() -> None:
            store.keep([(ref.name, store.get([ref])[0])])

        try:
            # One by one: a dataset may be larger than this process's memory, and other work needs the threads.
            async with self._copying:
                if not dispatcher.ledger.holds(ref):  # freed while it waited
                    return
                await dispatcher.call(copy)
            if not dispatcher.ledger.holds(ref):  # freed meanwhile, so that nobody would free the copy
                await dispatcher.call(store.free, [ref])
        except ValueLost:  # as above; or else it is made again, and this is called again
            pass
        except ServerlessError as error:
            logger.warning(
                "of the published result %r there is no copy, it is made again should it be lost: %s", key, error
            )

    # -- scattered data -------------------------------------------------------------------------

    async def scatter(self, **message: Any) -> Any:
        """Handle ``scatter`` in the scheduler's place, then keep the data."""
        keys = await self._stock["scatter"](**message)
        await self._keep(keys)
        return keys

    async def update_data(self, **message: Any) -> None:
        """Handle ``update_data``, which comes after data that a client has sent to workers itself; then keep it."""
        self._stock["update_data"](**message)
        await self._keep(list(message["who_has"]))

    async def _keep(self, keys: Collection[Any]) -> None:
        tasks = self._proxy.scheduler.tasks
        scattered = {key: tasks[key].get_nbytes() for key in keys if key in tasks and not self._proxy.is_stub(key)}
        for some in _batches(scattered):
            await self._keep_some(some)

    async def _keep_some(self, keys: Collection[Any]) -> None:
        """Store and note data, small as it may be, in one go."""
        proxy, dispatcher, notes = self._proxy, self._proxy.dispatcher, self._notes
        assert notes is not None
        noted: list[Data] = []
        freed: list[Ref] = []
        for key, where in (await self._store(keys)).items():
            ts = proxy.scheduler.tasks.get(key)
            if ts is None or ts.state != "memory":  # let go meanwhile
                freed += [where] if isinstance(where, Ref) else []
                continue
            if proxy.location(key) is not None:  # another value under the same name takes its place
                dispatcher.feed(Released(key))
            dispatcher.feed(Kept(key, where))
            if proxy.location(key) == where:
                noted.append(Data(key, ts.nbytes, where))
        try:
            if freed:
                await dispatcher.call(proxy.backend.store.free, freed)
            if noted:
                await dispatcher.call(notes.note_data, noted)
        except ServerlessError as error:
            for data in noted:
                _warn(data.key, error)
        for data in noted:
            if proxy.location(data.key) is None:  # let go before the note was known
                dispatcher.feed(Released(data.key))

    async def _store(self, keys: Collection[Any]) -> dict[Any, Location]:
        """Store what can be stored. Whatever becomes of the copies, the data is where it was."""
        proxy, fleet = self._proxy, self._proxy.fleet
        stored: dict[Any, Location] = {}
        if fleet is None:
            return stored
        values: dict[Any, Any] = {}
        for key in keys:
            try:
                values[key] = await proxy.value_of(key)
            except Exception as error:
                _warn(key, error)

        def store() -> None:
            for key, value in values.items():
                try:
                    stored[key] = fleet.store_value(value, keep=True)
                except Exception as error:  # users' classes are pickled
                    _warn(key, error)

        await proxy.dispatcher.call(store)
        return stored


def _batches(sizes: Mapping[Any, int]) -> Iterator[Collection[Any]]:
    """Cut what is scattered into pieces that are kept in one go.

    Examples
    --------
    >>> list(_batches({"a": 1, "b": BATCH_BYTES_MAX, "c": 1, "d": 1}))
    [['a'], ['b'], ['c', 'd']]
    """
    batch: list[Any] = []
    nbytes = 0
    for key, size in sizes.items():
        if batch and (len(batch) == BATCH_KEYS_MAX or nbytes + size > BATCH_BYTES_MAX):
            yield batch
            batch, nbytes = [], 0
        batch.append(key)
        nbytes += size
    if batch:
        yield batch


def _warn(key: Any, error: Exception) -> None:
    logger.warning("the scattered data %r will not survive this process: %s", key, error)
