"""Locks that say which process lives: held by it, and given back by the kernel however it ends.

They are POSIX record locks. A fork does not inherit them, so a child that outlives who held the lock does not keep it.
They belong to a process, not to who opened the file in it: closing the file anywhere in that process gives them back.
"""

from __future__ import annotations

import fcntl
import os
import time

#: Between two looks at a lock that somebody holds.
PAUSE_SECONDS = 0.02


def take(path: str | os.PathLike[str], seconds: float = 0.0) -> int | None:
    """Take a lock; return the descriptor that holds it, or None if another process had it for all that time, or
    there is no place for it.

    What this returns is not inherited. A lock whose file was removed meanwhile is not one: another file has its name.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # its directory was removed
            return None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                return descriptor
        except OSError:
            pass
        os.close(descriptor)
        if time.monotonic() >= deadline:
            return None
        time.sleep(PAUSE_SECONDS)


def held(path: str | os.PathLike[str]) -> bool:
    """Tell whether another process holds a lock."""
    if not os.path.exists(path):
        return False
    descriptor = take(path)
    if descriptor is None:
        return os.path.exists(path)
    os.close(descriptor)
    return False
