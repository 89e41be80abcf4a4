"""How the stock scheduler is started for us: as `LocalCluster` does it, but for a few settings.

It does not steal and does not queue, because stubs stay on the fleet worker and the ledger queues.
Both are set on this one object, not in Dask's configuration, which belongs to the user. A scheduler
that listens inside this process only (``inproc``) listens on loopback as well, for executors and
Dask workers, which are other processes.
"""

from __future__ import annotations

import math
from pathlib import Path
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


def executors_tls(security: Security) -> dict[str, Any] | None:
    """Return what a task in an executor needs to be a client of a scheduler with TLS; None without TLS.

    Only what the role of a client needs, with the contents of files in the place of their paths: an
    executor may run where these files are not. In memory as PEM, as in `Security.temporary`.

    Raises
    ------
    ValueError
        A file cannot be read; the message names it.

    Examples
    --------
    >>> executors_tls(Security()) is None
    True
    """
    if not security.require_encryption:
        return None
    tls: dict[str, Any] = {"require_encryption": True}
    for name in ("tls_ca_file", "tls_client_cert", "tls_client_key"):
        value = getattr(security, name)
        if value is not None:
            tls[name] = value if "\n" in value else _pem(name, value)
    if (ciphers := security.get_tls_config_for_role("client")["ciphers"]) is not None:
        tls["tls_ciphers"] = ciphers
    return tls


def _pem(name: str, path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as error:
        raise ValueError(f"security: {name}={path!r} cannot be read: {error}") from None


def reachable_address(scheduler: Scheduler) -> str:
    """Return the address at which other processes reach a running scheduler."""
    for listener in scheduler.listeners:
        if not listener.contact_address.startswith("inproc"):
            return str(listener.contact_address)
    return str(scheduler.address)


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
    if str(options["protocol"]).startswith("inproc"):
        other = "tls://" if security.require_encryption else "tcp://"
        options["protocol"] = [options["protocol"], other]
        options["host"] = [options["host"], None if interface else host or "127.0.0.1"]
        options["port"] = [0, options["port"]]
    return options
