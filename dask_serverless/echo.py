"""What tasks print, shown where the user looks: their own standard output, as under `LocalCluster`."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
import threading

PAUSE_SECONDS = 0.1
CHUNK_BYTES = 64 * 1024


class Echo:
    """Follow a log file and write what is appended to it to `sys.stdout`.

    Parameters
    ----------
    path
        The file. It need not exist yet; when it becomes shorter (it was rotated), it is read from
        its beginning.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".log") as file:
    ...     echo = Echo(file.name)
    ...     echo.start()
    ...     _ = file.write("from a task" + chr(10))
    ...     file.flush()
    ...     echo.stop()
    from a task
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="serverless-echo", daemon=True)

    def skip(self) -> None:
        """Leave out what is there already: somebody else has shown it."""
        with contextlib.suppress(OSError):
            self._offset = os.path.getsize(self._path)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Write what is still there, and end."""
        self._stopping.set()
        self._thread.join(5)

    def _follow(self) -> None:
        while True:
            last = self._stopping.wait(PAUSE_SECONDS)
            with contextlib.suppress(OSError, ValueError):  # not there yet, or the user closed their output
                self._read()
            if last:
                return

    def _read(self) -> None:
        size = os.path.getsize(self._path)
        if size < self._offset:
            self._offset = 0
        if size == self._offset:
            return
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            while chunk := file.read(CHUNK_BYTES):
                self._offset += len(chunk)
                sys.stdout.write(self._decoder.decode(chunk))
        sys.stdout.flush()
