"""The overflow in a directory: one file for each value.

::

    PLACE/used                  how many bytes are kept or promised
    PLACE/writing/...           what is being written, locked by who does
    PLACE/values/JOB/NAME       what is kept

Rules kept here:

* A file is written under another name, brought to the disk, and then renamed, under one lock, unless its own name is
  taken: so it is whole, and the first one, and never there twice.
* Room is promised before anything is written, under the same lock, so that all processes together keep the bound. Who
  is killed in the middle leaves a promise and a part of a file; both are found, by the lock that is gone, when room is
  short. The number that is noted may be too high then, never too low: it is raised before a file begins, and lowered
  after one has gone.
* Names are made safe: no name leaves the directory, whatever is in it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from urllib.parse import quote, unquote

from fargate_storage.client.stripes import flat
from lambda_worker.core.errors import StoreFull, StoreUnavailable
from lambda_worker.core.wire import Frame, Frames, pack, unpack

#: A file begins with this, and with how long the list of frames is.
MAGIC = b"dsv1"
HEAD_BYTES = len(MAGIC) + 4
#: File systems end at 255 bytes; a longer name becomes its digest.
FILE_NAME_BYTES_MAX = 200
#: What systems say when there is no room: the disk, the user's quota, the process's own limit.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: How long one who has counted everything does not do so again: that takes time in the number of files, with the lock.
#: What is removed meanwhile makes room at once; what expires, or was left by the dead, after that time.
COUNTED_SECONDS = 1.0
#: How many files are removed while others wait for the lock.
FILES_MAX = 100
#: How often a value's directory may be removed under our hands.
NAMINGS_MAX = 5
#: What says that something is not there.
ABSENT = (FileNotFoundError, NotADirectoryError)

_numbers = itertools.count()
# A lock of `fcntl.lockf` keeps processes apart, and is not inherited by a fork; this keeps threads apart.
_guard = threading.Lock()


class DirectoryOverflow:
    """Values in files of a directory that only this user may enter.

    Parameters
    ----------
    path
        The directory. It is made when it is needed, with mode 0700.
    bytes_max
        Bound on all files together.
    ttl_seconds
        A value that nobody has used for that long goes when room is short.

    Examples
    --------
    >>> import tempfile
    >>> place = DirectoryOverflow(tempfile.mkdtemp(), 1_000)
    >>> place.write("job/1/a/1", [b"tag", b"hello"])
    >>> [bytes(frame) for frame in place.read("job/1/a/1")]
    [b'tag', b'hello']
    >>> place.delete(["job/1/a/1"])
    >>> place.read("job/1/a/1") is None, place.usage()
    (True, 0)
    """

    def __init__(self, path: str, bytes_max: int, ttl_seconds: float = 86_400.0) -> None:
        self.path = path
        self._bytes_max = bytes_max
        self._ttl_seconds = ttl_seconds
        self._values = os.path.join(path, "values")
        self._writing = os.path.join(path, "writing")
        self._counted_until = float("-inf")

    def __repr__(self) -> str:
        return f"<DirectoryOverflow at {self.path}, at most {self._bytes_max:,} bytes>"

    def write(self, name: str, frames: Frames) -> None:
        """See `Overflow.write`."""
        final = self._file(name)
        views = [flat(frame) for frame in frames]
        lengths = pack([len(view) for view in views])
        head = MAGIC + len(lengths).to_bytes(4, "big") + lengths
        nbytes = len(head) + sum(map(len, views))
        with self._errors(nbytes):
            if self._renew(final):
                return
            self._make(self._writing)
            descriptor, temporary = self._promise(nbytes)
            whole = False
            try:
                for piece in (head, *views):
                    view = memoryview(piece)
                    while len(view):
                        view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)  # so that what the disk refuses is heard here
                whole = True
            finally:
                try:
                    with self._used() as used:  # whoever counts finds the value once, and what is taken back not
                        if not (whole and self._name(temporary, final)):
                            os.unlink(temporary)
                            used.nbytes -= nbytes
                finally:
                    os.close(descriptor)

    @staticmethod
    def _renew(path: str) -> bool:
        """Renew a value's time to live; tell whether it is there."""
        try:
            os.utime(path)
        except ABSENT:
            return False
        return True

    def _make(self, directory: str) -> None:
        """Make a directory in this place; `os.makedirs` alone would let others look into those above it."""
        for each in (self.path, os.path.dirname(directory), directory):
            os.makedirs(each, mode=0o700, exist_ok=True)

    def _name(self, temporary: str, final: str) -> bool:
        """Give a file its name, if nobody has that; tell whether it has it now. With the lock, which all others that
        name files have as well."""
        for _ in range(NAMINGS_MAX):
            if os.path.exists(final):
                return False
            try:
                os.rename(temporary, final)
                return True
            except FileNotFoundError:  # its directory goes with a job's last value, even if that was made just now
                self._make(os.path.dirname(final))
        raise OSError(errno.ENOENT, "its directory is removed again and again", final)

    def read(self, name: str, first: int = 0, count: int | None = None) -> list[Frame] | None:
        """See `Overflow.read`."""
        with self._errors(0):
            try:
                with open(self._file(name), "rb", buffering=0) as file:
                    os.utime(file.fileno())
                    return _frames(file.fileno(), first, count)
            except ABSENT:
                return None

    def names(self, prefix: str) -> list[str]:
        """See `Overflow.names`."""
        job, _, rest = prefix.partition("/")
        begin = "=" + quote(rest, safe="")
        found = _listed(os.path.join(self._values, _safe(job)))
        return [f"{job}/{unquote(each[1:])}" for each in found if each.startswith(begin)]

    def has(self, name: str) -> bool:
        """See `Overflow.has`."""
        return os.path.exists(self._file(name))

    def touch(self, names: Iterable[str]) -> None:
        """See `Overflow.touch`."""
        with self._errors(0):
            for name in names:
                self._renew(self._file(name))

    def delete(self, names: Iterable[str]) -> None:
        """See `Overflow.delete`."""
        self._remove(map(self._file, names))

    def forget(self, job: str, keep: Collection[str]) -> None:
        """See `Overflow.forget`."""
        directory = os.path.join(self._values, _safe(job))
        kept = {self._file(name) for name in keep}
        found = [os.path.join(directory, each) for each in _listed(directory)]
        self._remove(path for path in found if path not in kept)

    def usage(self) -> int:
        """See `Overflow.usage`."""
        if not os.path.exists(self.path):
            return 0
        with self._errors(0), self._used() as used:
            return used.nbytes

    # -- room -----------------------------------------------------------------------------------

    @contextmanager
    def _used(self) -> Iterator[_Used]:
        """Hold the lock, under which what is used is known and changed."""
        with _guard:
            os.makedirs(self.path, mode=0o700, exist_ok=True)
            descriptor = os.open(os.path.join(self.path, "used"), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX)  # bound: some file operations of others; their death ends it
                used = _Used(descriptor, self._count)
                yield used
                used.note()
            finally:
                os.close(descriptor)

    def _promise(self, nbytes: int) -> tuple[int, str]:
        """Promise room, and begin a file that is locked as long as it is being written."""
        temporary = os.path.join(self._writing, f"{os.getpid()}-{threading.get_ident()}-{next(_numbers)}")
        descriptor = None
        try:
            with self._used() as used:
                if used.nbytes + nbytes > self._bytes_max and time.monotonic() >= self._counted_until:
                    used.nbytes = self._count()
                    used.note()
                    self._counted_until = time.monotonic() + COUNTED_SECONDS
                if used.nbytes + nbytes > self._bytes_max:
                    raise StoreFull(
                        f"the overflow at {self.path} is full: {used.nbytes:,} of {self._bytes_max:,} bytes are used, "
                        f"and {nbytes:,} more were to be written. Let go of futures that are not needed any more, or "
                        "raise serverless.storage.overflow-max"
                    )
                used.nbytes += nbytes
                used.note()
                try:
                    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                    # Not `lockf`: threads of one process are to be told apart here.
                    fcntl.flock(descriptor, fcntl.LOCK_EX)  # bound: nobody else has it
                    os.ftruncate(descriptor, nbytes)  # so that who counts finds all that was promised
                except OSError:
                    used.nbytes -= nbytes
                    used.note()
                    raise
        except BaseException:
            if descriptor is not None:
                os.unlink(temporary)
                os.close(descriptor)
            raise
        return descriptor, temporary

    def _count(self) -> int:
        """Count what is there, having removed what was left by the dead and what has expired; with the lock."""
        total = 0
        for path in _files(self._writing):
            total += self._size_unless_dead(path)
        oldest = time.time() - self._ttl_seconds
        for path in _files(self._values):
            try:
                found = os.stat(path)
                if found.st_mtime < oldest:
                    os.unlink(path)
                else:
                    total += found.st_size
            except ABSENT:
                pass
        return total

    @staticmethod
    def _size_unless_dead(path: str) -> int:
        """Remove what nobody is writing any more, and return the size of anything else."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except ABSENT:
            return 0
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return os.fstat(descriptor).st_size
        else:
            os.unlink(path)
            return 0
        finally:
            os.close(descriptor)

    def _remove(self, paths: Iterable[str]) -> None:
        with self._errors(0):
            # Most of what is freed was never here: that needs no lock.
            there = [path for path in paths if _size(path) is not None]
            for first in range(0, len(there), FILES_MAX):
                with self._used() as used:  # whoever counts in between would have what is then taken back a second time
                    for path in there[first : first + FILES_MAX]:
                        size = _size(path)
                        if size is not None:
                            os.unlink(path)
                            used.nbytes -= size
            for directory in {os.path.dirname(path) for path in there}:
                try:
                    os.rmdir(directory)  # a job's last value takes it along
                except OSError:  # something is kept there, or is being written
                    pass

    def _noted(self) -> str:
        """Say what is used without counting, locking or writing: the disk has just refused something."""
        try:
            # Closing any descriptor of a file ends all `lockf` locks of the process on it: not while a thread has one.
            with _guard, open(os.path.join(self.path, "used"), "rb") as file:
                return f"{int(file.read(32)):,}"
        except (OSError, ValueError):
            return "an unknown number"

    @contextmanager
    def _errors(self, nbytes: int) -> Iterator[None]:
        """Have callers see our errors, not the system's."""
        try:
            yield
        except OSError as error:
            if error.errno in NO_ROOM:
                raise StoreFull(
                    f"the disk of the overflow at {self.path} refuses {nbytes:,} bytes ({error.strerror}): "
                    f"{self._noted()} of {self._bytes_max:,} bytes are used. Make room there, or name another place "
                    "in serverless.storage.overflow-directory"
                ) from None
            raise StoreUnavailable(f"the overflow at {self.path} cannot be used: {error}") from None

    def _file(self, name: str) -> str:
        job, _, rest = name.partition("/")
        return os.path.join(self._values, _safe(job), _safe(rest))


class _Used:
    """What is used, as it is noted in a file; with the lock.

    Parameters
    ----------
    descriptor
        The file.
    count
        Finds out what is used, if nothing is noted.
    """

    def __init__(self, descriptor: int, count: Callable[[], int]) -> None:
        text = os.pread(descriptor, 32, 0)
        self._descriptor = descriptor
        self._noted = int(text) if text.strip().isdigit() else None
        self.nbytes = self._before = count() if self._noted is None else self._noted

    def note(self) -> None:
        """Note what is used now."""
        if self.nbytes == self._noted:
            return
        try:
            os.pwrite(self._descriptor, b"%-31d\n" % max(0, self.nbytes), 0)
        except OSError as error:
            # A number that is not noted, or too high, is counted again when it matters. One that is too low is not.
            if self.nbytes > self._before or error.errno not in NO_ROOM:
                raise
        self._noted = self._before = self.nbytes


def _safe(part: str) -> str:
    """Return a file's name for a part of a value's name.

    Examples
    --------
    >>> _safe("7/a/1"), _safe("../.."), _safe("")
    ('=7%2Fa%2F1', '=..%2F..', '=')
    """
    quoted = quote(part, safe="")
    if len(quoted) > FILE_NAME_BYTES_MAX:
        return "#" + hashlib.blake2b(part.encode(), digest_size=32).hexdigest()
    return "=" + quoted


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except ABSENT:
        return None


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except ABSENT:
        return []


def _files(directory: str) -> Iterator[str]:
    for where, _, names in os.walk(directory):
        yield from (os.path.join(where, name) for name in names)


def _frames(descriptor: int, first: int, count: int | None) -> list[Frame] | None:
    """Read what `write` has written, or some frames of it; None: this is something else."""
    head = os.read(descriptor, HEAD_BYTES)
    if len(head) < HEAD_BYTES or not head.startswith(MAGIC):
        return None
    size = os.fstat(descriptor).st_size
    length = int.from_bytes(head[len(MAGIC) :], "big")
    if HEAD_BYTES + length > size:
        return None
    try:
        lengths = unpack(_exactly(descriptor, length))
        if not all(isinstance(each, int) and each >= 0 for each in lengths):
            return None
        if HEAD_BYTES + length + sum(lengths) != size:
            return None
        os.lseek(descriptor, sum(lengths[:first]), os.SEEK_CUR)
        return [_exactly(descriptor, each) for each in lengths[first:][:count]]
    except (ValueError, TypeError):  # msgpack's own errors are ValueErrors
        return None


def _exactly(descriptor: int, nbytes: int) -> bytearray:
    found = bytearray(nbytes)
    view = memoryview(found)
    while len(view):
        count = os.readv(descriptor, [view])
        if not count:
            raise ValueError("the file has become shorter")
        view = view[count:]
    return found
