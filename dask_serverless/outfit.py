"""What executors shall wear, as the scheduler has it: its plugins, the configuration, what `run` did.

The scheduler's own tables are the truth: what it would give a new Dask worker, it gives executors.
Each change makes a new version, stored and sealed, which the assignments made from then on name.
Bodies are shared between versions. An old version is no longer kept alive, and goes with its time to
live: executors under way may still have to read it.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import dask.config
from distributed import Scheduler
from distributed.protocol import pickle

from lambda_worker.core.outfit import Outfit, Piece
from lambda_worker.core.wire import Location, Ref, pack_inline, seal_frames
from lambda_worker.ports import JobStore

logger = logging.getLogger("dask_serverless.outfit")

#: Pieces up to this size travel inside the outfit.
INLINE_BYTES_MAX = 16 * 2**10
#: Calls of `client.run` that new sandboxes repeat.
RUNS_MAX = 100

#: Settings that are this process's own (by where they are), or nobody else's business (by a word in them).
_OWN = re.compile(
    r"^(serverless|temporary-directory|scheduler-address"
    r"|distributed\.(admin|dashboard|deploy|logging|nanny|scheduler|version|worker))(\.|$)"
)
_SECRET = re.compile(r"(^|[.-])(tls|require-encryption|secrets?|tokens?|passw(or)?d|credentials?|keys?)([.-]|$)", re.I)


class Tailor:
    """Makes a cluster's outfits.

    Parameters
    ----------
    scheduler
        Whose plugins executors shall have.
    store, secret
        Where outfits are kept, and what they are sealed with.
    call
        Runs a blocking call on a thread and returns an awaitable.
    numbers_from
        The first number of a version, and of a piece: sandboxes wear the newest one that they have seen.
    """

    def __init__(
        self, scheduler: Scheduler, store: JobStore, secret: bytes, call: Callable[..., Any], numbers_from: int = 1
    ) -> None:
        self._scheduler = scheduler
        self._store = store
        self._secret = secret
        self._call = call
        self._serials = numbers_from - 1
        self._pieces: dict[tuple[str, str], Piece] = {}
        self._runs: dict[str, Piece] = {}
        self._version = numbers_from - 1
        self._stored: dict[Ref, list[Any]] = {}  # what is in the store, sealed, should it be lost there
        self.current: tuple[int, Ref] | None = None  #: what assignments name; None: nothing to wear

    def refs(self) -> list[Ref]:
        """Return what must be kept alive in the store."""
        bodies = [piece.body for piece in (*self._pieces.values(), *self._runs.values())]
        refs = [body for body in bodies if isinstance(body, Ref)]
        return refs if self.current is None else [*refs, self.current[1]]

    def next_serial(self) -> int:
        """Return the serial number of a registration that is about to be made."""
        self._serials += 1
        return self._serials

    async def note_config(self) -> None:
        """Take the configuration of this process, as a nanny does when it starts a worker."""
        content = to_send(dask.config.config, dask.config.merge(*dask.config.defaults))
        slot = ("config", "dask")
        self._pieces.pop(slot, None)
        if content:
            await self._add(slot, pickle.dumps(content), self.next_serial())
        await self._make()

    async def note_plugin(self, kind: str, name: str) -> None:
        """A plugin has been registered (again) with the scheduler, or is no longer."""
        table: Mapping[str, bytes] = getattr(self._scheduler, f"{kind}_plugins")
        if name not in table:
            self._pieces.pop((kind, name), None)
        else:
            await self._add((kind, name), table[name], self.next_serial())
        await self._make()

    async def note_run(self, name: str, content: tuple[bytes, bytes, bytes], serial: int) -> None:
        """`client.run` has called a function in one sandbox: the others shall call it as well."""
        self._runs.pop(name, None)
        self._runs[name] = await self._piece(("run", name), pickle.dumps(content), serial)
        if len(self._runs) > RUNS_MAX:
            del self._runs[next(iter(self._runs))]
            logger.warning(
                "client.run was called with more than %d functions: new executors repeat the last %d only. "
                "Use a worker plugin for what every executor needs.",
                RUNS_MAX,
                RUNS_MAX,
            )
        await self._make()

    def forget_runs(self) -> None:
        """The processes that `client.run` has changed are gone, and nobody expects the changes of new ones."""
        self._runs.clear()

    async def _add(self, slot: tuple[str, str], body: bytes, serial: int) -> None:
        self._pieces[slot] = await self._piece(slot, body, serial)

    async def _piece(self, slot: tuple[str, str], body: bytes, serial: int) -> Piece:
        name = f"outfit/piece-{serial}"
        sealed = seal_frames(self._secret, name, [body])
        location: Location
        if len(body) <= INLINE_BYTES_MAX:
            location = pack_inline(name, sealed)
        else:
            (ref,) = await self._call(self._store.put, [(name, sealed)])
            self._stored[ref] = sealed
            location = ref
        return Piece(*slot, serial, location)

    async def _make(self) -> None:
        if not self._pieces and not self._runs and self.current is None:
            return
        self._version += 1
        version = self._version  # another one may be made while this one is being stored
        outfit = Outfit(version, (*self._pieces.values(), *self._runs.values()))
        name = f"outfit/{version}"
        sealed = seal_frames(self._secret, name, [outfit.to_bytes()])
        (ref,) = await self._call(self._store.put, [(name, sealed)])
        self._stored[ref] = sealed
        if self.current is None or self.current[0] < version:
            self.current = (version, ref)
        for old in self._stored.keys() - {*self.refs(), ref}:
            del self._stored[old]

    async def restore(self) -> None:
        """Store again what is there no longer."""
        refs = self.refs()
        if refs:
            again = [(ref, self._stored[ref]) for ref in refs if ref in self._stored]
            await self._call(self._store.put_again, again)


def name_of_run(content: tuple[bytes, bytes, bytes]) -> str:
    """Name a call of `client.run`: the same call has the same name."""
    return hashlib.sha256(b"\0".join(content)).hexdigest()[:16]


def to_send(config: Mapping[str, Any], defaults: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return the settings that executors would otherwise not have.

    Parameters
    ----------
    config
        All settings of this process, or those below one key.
    defaults
        What everybody has there.
    above
        That key.

    Examples
    --------
    >>> settings = {"array": {"chunk-size": "1 MiB", "rechunk": {}}, "serverless": {"x": 1}, "mine": {"api-key": "?"}}
    >>> to_send(settings, {"array": {"chunk-size": "128 MiB"}})
    {'array': {'chunk-size': '1 MiB'}}
    """
    usual = {name.replace("_", "-"): value for name, value in defaults.items()}
    different: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{above}{name}".replace("_", "-")
        default = usual.get(name.replace("_", "-"))
        if _OWN.search(key) or _SECRET.search(key) or value == default:
            continue
        if isinstance(value, Mapping):
            below = to_send(value, default if isinstance(default, Mapping) else {}, f"{key}.")
            if below:
                different[name] = below
            continue
        try:
            pickle.dumps(value)
        except Exception:
            logger.info("the setting %s cannot be pickled: executors do without it", key)
        else:
            different[name] = value
    return different
