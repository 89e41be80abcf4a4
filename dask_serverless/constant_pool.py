"""The constants of one cluster: stored once by content, for as long as jobs use them and a little longer.

Rules kept here:

* The name of a constant tells its content and which writing of it this is (``constants/HASH/SERIAL``). What was freed
  and is needed again has another name: a removal that is still on its way cannot hit it.
* A constant is used by jobs, and freed by none of them: what no job uses any more is *idle*, and stays for the next
  job that brings the same content, up to a number of bytes. The one idle for longest goes first.
* What is lost with a shard, while jobs use it, is written again under its own name when one of them is prepared again:
  tasks know it by that. What is lost while it is idle is forgotten.
* What is used is kept alive in the store; what was idle from one such round to the next is freed.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lambda_worker.compression import Compressor
from lambda_worker.core.errors import StoreFull, ValueLost
from lambda_worker.core.policy import Policy
from lambda_worker.core.wire import Frame, Ref, frames_nbytes, seal_frames
from lambda_worker.ports import JobStore
from lambda_worker.values import value_to_frames

#: What no job uses may fill so much of the storage tier, at most.
IDLE_BYTES_MAX = 64 * 2**20
#: With so slow a storage tier, compressing always pays.
ALWAYS = Policy(bytes_per_second=1.0)


@dataclass(slots=True)
class _Constant:
    ref: Ref
    jobs: set[str] = field(default_factory=set)
    aging: bool = False  # idle when constants were last kept alive
    lost: bool = False  # no longer in the store


class ConstantPool:
    """What is stored by content, and who uses it. Safe to use from several threads.

    Parameters
    ----------
    store, secret
        Where constants are kept, and what they are sealed with.
    compressor
        Compresses them where it pays.
    idle_bytes_max
        How much may stay that no job uses.
    numbers_from
        The first serial number.
    """

    def __init__(
        self,
        store: JobStore,
        secret: bytes,
        compressor: Compressor,
        idle_bytes_max: int = IDLE_BYTES_MAX,
        numbers_from: int = 1,
    ) -> None:
        self._store = store
        self._secret = secret
        self._compressor = compressor
        self._idle_bytes_max = idle_bytes_max
        self._constants: dict[bytes, _Constant] = {}  # by content; who became idle last is last
        self._serials = numbers_from - 1
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        idle = sum(not each.jobs for each in self._constants.values())
        return f"<ConstantPool: {len(self._constants)} constants, {idle} of them idle>"

    def keep(self, job: str, value: Any) -> Ref:
        """Store a value for a job, unless its content is there already.

        Raises
        ------
        ValueTooLarge, StoreFull, StoreUnavailable
            And whatever pickling the value raises.
        """
        frames = value_to_frames(value)
        digest = content_hash(frames)
        with self._lock:
            known = self._constants.get(digest)
            if known is not None:
                known.jobs.add(job)
                if not known.lost:
                    return known.ref
        if known is not None:
            self._write_again(known, frames)
            return known.ref
        with self._lock:
            self._serials += 1
            name = f"constants/{digest.hex()}/{self._serials}"
        sealed = seal_frames(self._secret, name, self._compressor.shrink(frames))
        try:
            (ref,) = self._store.put([(name, sealed)])
        except StoreFull:
            self._store.free(self._drop_idle(0))
            (ref,) = self._store.put([(name, sealed)])
        with self._lock:
            # Another job may have written the same meanwhile: each goes on with its own, and this one is the one kept.
            known = self._constants.setdefault(digest, _Constant(ref))
            known.jobs.add(job)
        if known.ref != ref:
            self._store.free([ref])
        return known.ref

    def _write_again(self, constant: _Constant, frames: list[Frame]) -> None:
        """Write a constant as and where it was written before: tasks know it by its ref.

        Whether compressing pays is measured, and may differ by now.
        """
        ref = constant.ref
        for make in (self._compressor.shrink, list, Compressor(ALWAYS, self._compressor.clock).shrink):
            sealed = seal_frames(self._secret, ref.name, make(frames))
            if frames_nbytes(sealed) == ref.nbytes:
                self._store.put_again([(ref, sealed)])
                constant.lost = False
                return
        raise ValueLost(f"{ref.name} was lost with a storage server, and cannot be written as it was. Compute again")

    def used_by(self, job: str) -> dict[bytes, Ref]:
        """Return where the constants of a job are, by content."""
        with self._lock:
            return {digest: each.ref for digest, each in self._constants.items() if job in each.jobs}

    def adopt(self, job: str, constants: Mapping[bytes, Ref]) -> None:
        """Take on what another process has stored for a job."""
        with self._lock:
            for digest, ref in constants.items():
                self._constants.setdefault(digest, _Constant(ref)).jobs.add(job)

    def look(self) -> None:
        """Find out what is lost."""
        with self._lock:
            refs = [each.ref for each in self._constants.values()]
        missing = set(self._store.missing(refs))
        with self._lock:
            for digest, each in list(self._constants.items()):
                if each.ref in missing:
                    each.lost = True
                    if not each.jobs:
                        del self._constants[digest]

    def doubt(self, name: str) -> None:
        """Somebody could not read a constant: it is to be written again, whatever is there."""
        with self._lock:
            for each in self._constants.values():
                each.lost = each.lost or each.ref.name == name

    def lacks(self, job: str) -> bool:
        """Tell whether a constant of a job was found lost."""
        with self._lock:
            return any(each.lost for each in self._constants.values() if job in each.jobs)

    def release(self, job: str) -> None:
        """A job is over: what nobody else uses is idle, and the oldest of what is idle is freed."""
        with self._lock:
            for digest in [digest for digest, each in self._constants.items() if job in each.jobs]:
                constant = self._constants.pop(digest)
                self._constants[digest] = constant
                constant.jobs.discard(job)
                constant.aging = False
        self._free(self._drop_idle(self._idle_bytes_max))

    def keep_alive(self) -> None:
        """Renew the time to live of what is used, and free what has been idle since this was last called."""
        with self._lock:
            used = [each.ref for each in self._constants.values() if each.jobs]
            old = [digest for digest, each in self._constants.items() if not each.jobs and each.aging]
            refs = [self._constants.pop(digest).ref for digest in old]
            for each in self._constants.values():
                each.aging = not each.jobs
        self._store.touch(used)
        self._free(refs)

    def _drop_idle(self, nbytes_max: int) -> list[Ref]:
        """Forget what is idle, the oldest first, until no more bytes are idle than these; return what to free."""
        with self._lock:
            idle = [(digest, each.ref) for digest, each in self._constants.items() if not each.jobs]
            nbytes = sum(ref.nbytes for _, ref in idle)
            dropped = []
            for digest, ref in idle:
                if nbytes <= nbytes_max:
                    break
                del self._constants[digest]
                nbytes -= ref.nbytes
                dropped.append(ref)
        return dropped

    def _free(self, refs: Sequence[Ref]) -> None:
        if refs:
            self._store.free(refs)


def content_hash(frames: Sequence[Frame]) -> bytes:
    """Digest frames, with where one ends and the next begins.

    Examples
    --------
    >>> content_hash([b"ab", b"c"]) == content_hash([b"a", b"bc"])
    False
    """
    digest = hashlib.blake2b(digest_size=16)
    for frame in frames:
        view = memoryview(frame)
        digest.update(view.nbytes.to_bytes(8, "big"))
        digest.update(view)
    return digest.digest()
