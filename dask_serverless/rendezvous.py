"""Where a persistent cluster of this machine is found again: a private directory for each name.

In it are three files. ``record.json`` says where the storage tier and the Lambda service are, and what opens them
(secrets: the directory is 0700, the file 0600). Whoever has the lock on ``owner`` owns the cluster, as long as its
process lives; the keeper of the storage tier has the one on ``keeper`` (`fargate_storage.service.launcher`). No process
id is ever trusted without the lock of its process.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import threading
from pathlib import Path
from typing import Any

from fargate_storage.service import locks
from lambda_worker.core.errors import ClusterInUse, PlatformError

#: A keeper that looks whether there is an owner has the lock for a moment, and one that ends needs some seconds.
CLAIM_SECONDS_MAX = 1.0
ENDING_SECONDS_MAX = 10.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_claimed: dict[str, Rendezvous] = {}  # by path: a lock does not keep apart who shares a process
_guard = threading.Lock()


class Rendezvous:
    """The place of one name.

    Parameters
    ----------
    name
        Of the cluster: letters, digits and ``._-``, since it is also the name of a directory.
    directory
        Where such places are; None: `default_directory`.

    Examples
    --------
    >>> import tempfile
    >>> place = Rendezvous("night", tempfile.mkdtemp())
    >>> place.claim()
    >>> place.write({"epoch": 0})
    >>> place.read() is None  # nobody keeps anything here
    True
    >>> place.remove()
    """

    def __init__(self, name: str, directory: str | None = None) -> None:
        self.name = check_name(name)
        self.path = Path(directory or default_directory()) / name
        self.owner_lock, self.keeper_lock = str(self.path / "owner"), str(self.path / "keeper")
        self._descriptor: int | None = None

    def __repr__(self) -> str:
        return f"<Rendezvous {self.name!r} in {self.path.parent}{', claimed' if self._descriptor is not None else ''}>"

    def claim(self) -> None:
        """Become the owner, until `remove` or the end of this process.

        Raises
        ------
        ClusterInUse
            Another process is, or this one with another cluster.
        PlatformError
            Others could look into the directory.
        """
        with _guard:
            if str(self.path) in _claimed:
                raise self._in_use(os.getpid())
            self._make_directories()
            descriptor = locks.take(self.owner_lock, CLAIM_SECONDS_MAX)
            if descriptor is None and (pid := self._owner()) is not None:
                raise self._in_use(pid)
            if descriptor is None:  # the keeper has it: nobody came in time, and everything is being removed
                self._wait_for_end()
                self._make_directories()
                descriptor = locks.take(self.owner_lock, CLAIM_SECONDS_MAX)
            if descriptor is None:
                raise self._in_use(self._owner() or 0)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            self._descriptor = descriptor
            _claimed[str(self.path)] = self

    def read(self) -> dict[str, Any] | None:
        """Return the record of what is kept here; None if there is nothing, or nobody keeps it any more."""
        return self.remains() if locks.held(self.keeper_lock) else None

    def remains(self) -> dict[str, Any] | None:
        """Return the record, whether or not anything of it is still there."""
        try:
            record: dict[str, Any] = json.loads((self.path / "record.json").read_text())
        except (FileNotFoundError, ValueError):  # an owner died before it had written it
            return None
        return record

    def begin_anew(self) -> None:
        """End what is kept here and cannot be taken over; to be called by the owner, who stays it.

        Raises
        ------
        ClusterInUse
            In the moment in between, another process has become the owner.
        """
        if locks.held(self.keeper_lock):
            os.kill(int(Path(self.keeper_lock).read_text()), signal.SIGTERM)
            self._wait_for_end()
        self.remove()  # the keeper has done so, but for our lock
        self.claim()

    def release(self) -> None:
        """Be the owner no more, and leave everything here. May be repeated."""
        with _guard:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
                _claimed.pop(str(self.path), None)

    def write(self, record: dict[str, Any]) -> None:
        """Replace the record, in one step."""
        new = self.path / "record.new"
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(record, file)
        os.replace(new, self.path / "record.json")

    def remove(self) -> None:
        """Leave nothing here, and be the owner no more. May be repeated."""
        with _guard:
            if self._descriptor is None:
                return
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._descriptor)
            self._descriptor = None
            _claimed.pop(str(self.path), None)

    def _make_directories(self) -> None:
        for directory in (self.path.parent, self.path):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self.path.stat()
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise PlatformError(
                f"{self.path} is not this user's alone: remove it, or choose another serverless.persistent.directory"
            )

    def _owner(self) -> int | None:
        try:
            return int(Path(self.owner_lock).read_text())
        except (OSError, ValueError):
            return None

    def _wait_for_end(self) -> None:
        descriptor = locks.take(self.keeper_lock, ENDING_SECONDS_MAX) if self.path.exists() else None
        if descriptor is not None:
            os.close(descriptor)

    def _in_use(self, pid: int) -> ClusterInUse:
        who = "this process" if pid == os.getpid() else f"process {pid}"
        return ClusterInUse(
            f"the persistent cluster {self.name!r} belongs to {who}, which lives: close it there, or connect to its "
            "scheduler, or choose another name"
        )


def check_name(name: str) -> str:
    """Return a name that a persistent cluster may have.

    Examples
    --------
    >>> check_name("../night")
    Traceback (most recent call last):
        ...
    ValueError: name='../night' cannot name a persistent cluster: up to 64 letters, digits, and . _ - are allowed
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"name={name!r} cannot name a persistent cluster: up to 64 letters, digits, and . _ - are allowed"
        )
    return name


def default_directory() -> str:
    """Return where this user's programs meet: the runtime directory of the session, else the user's state directory."""
    place = os.environ.get("XDG_RUNTIME_DIR")
    if not place or not os.access(place, os.W_OK):
        place = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(place, "dask-serverless")
