"""What becomes of the work of a client that goes away without a word.

A client that closes says ``close-client`` first. One that was killed, or whose connection broke, only falls silent; the
stock scheduler then cancels at once whatever nobody else wants. Here it is held for a while under a name of our own
(`holders`), so that whoever comes back and asks for the same keys finds them done, or under way: the same client over
another connection (it has forgotten its futures, but submits again), or another process with the same graph.

Rules kept here:

* Who says goodbye, cancels or restarts is treated as ever: only a connection that ends by itself is waited for.
* What has failed is not held. Whoever asks for it again wants it tried again.
* One connection for each client. 1. A laptop sleeps, and its side of the connection breaks; 2. it connects anew; 3. the
  scheduler finds that the old connection is broken, and (the stock one) takes the new one's client for gone. So the
  old one is ended before the new one begins.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Collection
from typing import Any

from distributed import Scheduler
from distributed.comm import Comm
from distributed.core import Status

from dask_serverless.holders import Holders

logger = logging.getLogger("dask_serverless.proxy")

#: How long the end of a client's old connection may take, once it was aborted: a turn or two of the event loop.
OLD_CONNECTION_SECONDS_MAX = 5.0


class Grace:
    """Stands where the scheduler hears of clients that come, go, or want keys.

    Parameters
    ----------
    scheduler
        The scheduler.
    holders
        Those of its keys that are held under names of our own.
    seconds
        How long a silent client is waited for; 0: not at all, as under `LocalCluster`.
    """

    def __init__(self, scheduler: Scheduler, holders: Holders, seconds: float) -> None:
        self._scheduler = scheduler
        self._holders = holders
        self._seconds = seconds
        self._numbers = itertools.count()
        self._connections: dict[str, asyncio.Future[None]] = {}  # by client; done when its connection has ended

    def install(self) -> None:
        """Hear of clients. A goodbye (``close-client``) still goes to the stock method, which was bound before."""
        scheduler = self._scheduler
        self._stock_register = scheduler.handlers["register-client"]
        self._stock_desires = scheduler.stream_handlers["client-desires-keys"]
        self._stock_remove = scheduler.remove_client
        scheduler.handlers["register-client"] = self.register
        scheduler.stream_handlers["client-desires-keys"] = self.client_desires_keys
        scheduler.remove_client = self.remove_client  # type: ignore[method-assign]

    def uninstall(self) -> None:
        """Hear no more, and wait for nobody."""
        scheduler = self._scheduler
        if scheduler.handlers.get("register-client") == self.register:
            scheduler.handlers["register-client"] = self._stock_register
            scheduler.stream_handlers["client-desires-keys"] = self._stock_desires
            scheduler.remove_client = self._stock_remove  # type: ignore[method-assign]
        self._holders.close()

    async def register(self, comm: Comm, client: str, versions: dict[str, Any] | None = None) -> None:
        """Handle ``register-client`` in the scheduler's place; it returns when the connection has ended."""
        before = self._connections.get(client)
        if before is not None and client in self._scheduler.client_comms:
            self._scheduler.client_comms[client].abort()
            await asyncio.wait([before], timeout=OLD_CONNECTION_SECONDS_MAX)
        ended = self._connections[client] = asyncio.get_running_loop().create_future()
        try:
            await self._stock_register(comm=comm, client=client, versions=versions)
        finally:
            ended.set_result(None)
            if self._connections.get(client) is ended:
                del self._connections[client]

    def client_desires_keys(self, keys: Collection[Any], client: str) -> None:
        """Handle ``client-desires-keys`` in the scheduler's place."""
        self._stock_desires(keys=keys, client=client)
        self._holders.hand_over(keys)

    def remove_client(self, client: str, stimulus_id: str | None = None) -> None:
        """Do what the scheduler does when a client's connection has ended; if it had not said goodbye, wait for it."""
        gone = self._scheduler.clients.get(client)
        if gone is not None and self._seconds and self._scheduler.status == Status.running:
            keys = [ts.key for ts in gone.wants_what if ts.state != "erred"]
            if keys:
                holder = f"serverless-gone-{next(self._numbers)}"
                self._holders.hold(keys, holder)
                self._holders.wait_for_clients(holder, self._seconds)
                logger.info("%s went away silently: its %d keys are held for %g s", client, len(keys), self._seconds)
        self._stock_remove(client=client, stimulus_id=stimulus_id)
