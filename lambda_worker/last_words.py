"""Which task was running when a process died: a few bytes in a file shared with who asks later.

A killed process cannot speak any more, and a message to the store before every task would cost
more than most tasks. A memory-mapped file costs a fraction of a microsecond per task and survives
its writer. Where nobody can read the writer's file system (AWS), the last heartbeat has to do.

A sandbox makes its file once, because making and removing one takes as long as ten tasks: it bears the name
of the executor that is at work, and a name of its own in between.
"""

from __future__ import annotations

import mmap
import os
import struct

_RECORD = struct.Struct("<q")


class LastWords:
    """Write, over and over, the number of the task that is about to run (-1: none).

    Parameters
    ----------
    directory
        Where whoever asks will look.
    sandbox
        Name of the sandbox, unique in the directory.

    Examples
    --------
    >>> import tempfile
    >>> directory = tempfile.mkdtemp()
    >>> words = LastWords(directory, "sandbox")
    >>> words.begin("executor")
    >>> words.say(7)
    >>> last_words(directory, "executor")
    7
    >>> words.end()
    >>> last_words(directory, "executor") is None
    True
    """

    def __init__(self, directory: str, sandbox: str) -> None:
        self._directory = directory
        self._idle = os.path.join(directory, f"idle-{sandbox}")
        self._path = ""  # of the executor that is at work
        self._map: mmap.mmap | None = None
        self._inode = 0

    def begin(self, executor: str) -> None:
        """An executor begins; raises `OSError` if nothing can be written there."""
        path = os.path.join(self._directory, executor)
        if self._map is not None:
            self._map[:] = _RECORD.pack(-1)
            try:
                os.rename(self._idle, path)
            except FileNotFoundError:  # somebody asked, and has forgotten it
                self._map.close()
                self._map = None
        if self._map is None:
            # Made under a name that only this sandbox uses, never opened by the executor's: a doubled invocation, or
            # an attempt after one that was only slow, would cut the file that the other sandbox has mapped, and
            # whoever touches a map beyond the end of its file is killed (SIGBUS).
            with open(self._idle, "w+b") as file:
                file.write(_RECORD.pack(-1))
                file.flush()
                self._map = mmap.mmap(file.fileno(), _RECORD.size)
                self._inode = os.fstat(file.fileno()).st_ino
            os.rename(self._idle, path)
        self._path = path

    def say(self, task: int) -> None:
        """Note the task that runs from now on."""
        if self._map is not None:
            _RECORD.pack_into(self._map, 0, task)

    def end(self) -> None:
        """The executor ended well: nothing to remember."""
        try:
            if os.stat(self._path).st_ino == self._inode:
                os.rename(self._path, self._idle)
            else:  # by now the name is that of another sandbox's file, where the executor is at work as well
                self._map = None
        except OSError:  # asked for and forgotten, or its directory is gone with its cluster
            self._map = None


def last_words(directory: str, executor: str) -> int | None:
    """Read what an executor said last and forget it; None if it said nothing."""
    path = os.path.join(directory, executor)
    try:
        with open(path, "rb") as file:
            blob = file.read()
        os.unlink(path)
    except OSError:
        return None
    return int(_RECORD.unpack(blob)[0]) if len(blob) == _RECORD.size else None
