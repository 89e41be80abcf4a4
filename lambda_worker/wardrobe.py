"""Puts the outfit on in a sandbox: plugins, uploaded files, configuration, what `client.run` did.

Once per sandbox and version, before a task runs. User code runs here as it would in a Dask worker:
on the event loop's thread, with the sandbox's `TaskWorker` as its worker. A plugin that fails does
not keep tasks from running, as on a Dask worker: the error goes to the log, and to whoever asks for
it (`Wardrobe.failures`), which is how a registration hears of it.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

from lambda_worker.core.outfit import Outfit, Slot, changes
from lambda_worker.core.wire import Location, Ref, open_frames, unpack_inline
from lambda_worker.ports import Store

if TYPE_CHECKING:
    from lambda_worker.dask_context import TaskWorker

logger = logging.getLogger("lambda_worker.wardrobe")

_CALLED = {"config": "the configuration", "nanny": "nanny plugin", "worker": "worker plugin", "run": "client.run of"}


class Wardrobe:
    """What one sandbox wears.

    Parameters
    ----------
    store, secret
        Where pieces are, and what they are sealed with.
    worker
        What plugins are set up with; it lives as long as the sandbox.
    """

    def __init__(self, store: Store, secret: bytes, worker: TaskWorker) -> None:
        self.store = store
        self.secret = secret
        self.worker = worker
        self.version = 0
        self.worn: dict[Slot, int] = {}
        self.failures: dict[Slot, BaseException] = {}

    def wear(self, version: int, ref: Ref) -> None:
        """Put on an outfit, unless it or a newer one is worn.

        Raises
        ------
        ValueLost, Tampered, StoreUnavailable
            When the outfit or a piece of it cannot be read. What was put on stays on.
        """
        if version <= self.version:
            return
        (blob,) = self._read([ref])
        wanted = Outfit.from_bytes(blob)
        off, on = changes(self.worn, wanted)
        bodies = self._read([piece.body for piece in on])
        for slot in off:
            del self.worn[slot]
            self._note(slot, self.worker.take_off(*slot))
        for piece, body in zip(on, bodies, strict=True):
            importlib.invalidate_caches()  # what was installed by others, or by the last piece, shall be found
            self.worn[piece.slot] = piece.serial
            self._note(piece.slot, self.worker.put_on(piece.kind, piece.name, body))
        self.version = wanted.version

    def _note(self, slot: Slot, failure: BaseException | None) -> None:
        self.failures.pop(slot, None)
        if failure is not None:
            self.failures[slot] = failure
            logger.error("%s %s failed in an executor", _CALLED[slot[0]], slot[1], exc_info=failure)

    def _read(self, locations: list[Location]) -> list[bytes]:
        refs = [each for each in locations if isinstance(each, Ref)]
        stored = iter(self.store.get(refs) if refs else ())
        found: list[bytes] = []
        for each in locations:
            name, sealed = (each.name, next(stored)) if isinstance(each, Ref) else unpack_inline(each)
            found.append(b"".join(open_frames(self.secret, name, sealed)))
        return found
