"""How the stock scheduler is started for us: as `LocalCluster` does it, but for two settings.

It does not steal and does not queue, because stubs stay on the fleet worker and the ledger queues.
Both are set on this one object, not in Dask's configuration, which belongs to the user.
"""

from __future__ import annotations

import math
from typing import Any

from distributed import Scheduler
from distributed.scheduler import DEFAULT_EXTENSIONS
from distributed.security import Security
from distributed.stealing import WorkStealing

from dask_serverless import cluster_arguments as arguments


class NoStealing(WorkStealing):
    """Work stealing that never steals.

    Stubs must stay on the fleet worker. The extension is there nevertheless, because a page of the
    dashboard reads it.
    """

    async def start(self, scheduler: Any = None) -> None:
        """Start nothing."""
        self._in_flight_event.set()

    def balance(self) -> None:
        """Move nothing."""

    def transition(self, *args: Any, **kwargs: Any) -> None:
        """Note nothing: what could be stolen is nobody's question."""


def make_scheduler(options: dict[str, Any]) -> Scheduler:
    """Make a scheduler from `scheduler_options`; it is not started yet."""
    scheduler = Scheduler(**options)
    scheduler.WORKER_SATURATION = math.inf  # every stub goes to the fleet at once; the ledger queues
    return scheduler


def make_security(security: Security | bool | None) -> Security:
    """Turn what `LocalCluster` takes as ``security`` into a `Security`."""
    if security is None or security is False:
        return Security()
    if security is True:
        return Security.temporary()
    if not isinstance(security, Security):
        raise TypeError(f"security={security!r} must be a Security object, or True")
    return security


def scheduler_options(
    *,
    host: str | None,
    port: int,
    protocol: str | None,
    interface: str | None,
    security: Security,
    dashboard_address: Any,
    blocked_handlers: list[str] | None,
    service_kwargs: dict[str, Any] | None,
    scheduler_kwargs: dict[str, Any] | None,
) -> dict[str, Any]:
    """Make the scheduler's options as LocalCluster does, but for what the module's rules say."""
    arguments.check_scheduler_kwargs(scheduler_kwargs)
    if protocol is None:
        if host and "://" in host:
            protocol = host.split("://")[0]
        else:
            protocol = "tls://" if security.require_encryption else "tcp://"
    if not protocol.endswith("://"):
        protocol += "://"
    if host is None and not protocol.startswith("inproc") and not interface:
        host = "127.0.0.1"
    options = {
        "host": host,
        "port": port,
        "interface": interface,
        "protocol": protocol,
        "security": security,
        "services": {},
        "service_kwargs": service_kwargs,
        "dashboard": dashboard_address is not None,
        "dashboard_address": dashboard_address,
        "blocked_handlers": blocked_handlers,
        "extensions": {**DEFAULT_EXTENSIONS, "stealing": NoStealing},
        **(scheduler_kwargs or {}),
    }
    options["dashboard_address"] = arguments.dashboard_addresses(
        options["dashboard_address"], options["host"], options["interface"]
    )
    return options
