"""The fleet's nanny: what Dask asks of a worker's nanny, done for all executors.

It outlives the fleet worker, which it replaces when somebody asks for a restart. Nanny plugins
(`Environ`, `UploadDirectory`, installers) are set up in executors: each is a process of its own, which
a nanny would have started with what they give it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distributed.core import Server
from distributed.protocol import pickle

if TYPE_CHECKING:
    from dask_serverless.proxy import Proxy


class FleetNanny(Server):
    """Answers at the address that the fleet worker names as its nanny's.

    Parameters
    ----------
    proxy
        Replaces the fleet worker, and knows what executors wear.
    security
        As for a Dask worker.
    """

    def __init__(self, proxy: Proxy, security: Any) -> None:
        self.proxy = proxy
        self.security = security
        super().__init__(
            handlers={
                "kill": self.kill,
                "restart": self.kill,
                "run": self.run,
                "get_logs": self.get_logs,
                "plugin_add": self.plugin_add,
                "plugin_remove": self.plugin_remove,
                "close_gracefully": self.close_gracefully,
                "terminate": self.close_gracefully,
            },
            connection_args=security.get_connection_args("worker"),
            needs_workdir=False,
        )

    async def listen_beside(self, scheduler: str, host: str | None) -> None:
        """Listen where the scheduler does, on a port of its own."""
        scheme = scheduler.partition("://")[0]
        await self.listen(f"{scheme}://{host or ''}", **self.security.get_listen_args("worker"))

    async def kill(self, reason: str = "nanny-kill", timeout: float = 30) -> None:
        """Replace the fleet worker; every sandbox goes, with what runs in it."""
        await self.proxy.restart_fleet(reason)

    def run(self, comm: Any, function: bytes, args: bytes = b"", wait: bool = True, kwargs: bytes | None = None) -> Any:
        """Run a function in an executor (`client.run` with ``nanny=True``)."""
        return self.proxy.attendant.run(function, args, kwargs, wait)

    async def get_logs(self, start: float = 0, n: int | None = None, timestamps: bool = False) -> list[Any]:
        """Return nothing: what executors say is the fleet worker's log."""
        return []

    async def plugin_add(self, plugin: bytes, name: str) -> Any:
        """Give executors a nanny plugin; new sandboxes only, if it asks for a restart."""
        restart = bool(getattr(pickle.loads(plugin), "restart", False))
        return await self.proxy.attendant.plugin_changed("nanny", name, fresh=restart)

    async def plugin_remove(self, name: str) -> Any:
        """Take a nanny plugin off executors."""
        return await self.proxy.attendant.plugin_changed("nanny", name)

    async def close_gracefully(self, reason: str = "") -> None:
        """Nothing to do: this lives as long as the cluster."""
