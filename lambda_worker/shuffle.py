"""Peer-to-peer shuffles and rechunks in executors: through the storage tier instead of from worker to worker.

Dask's tasks for them (transfer, barrier, unpack) find all that they need at one place: the plugin ``"shuffle"`` of
the worker that runs them. In an executor this is `Shuffles`, so neither the graph nor the client has to know.

A transfer cuts its input partition into *slices*, one for each output partition that gets any of it, and writes them
at once; nothing of it stays in memory. The barrier adds up what the transfers say they wrote. An unpack reads the
slices of its own output partition, and no others.

Rules kept here:

* A slice is named by job, shuffle, input and output partition: writing it twice is writing it once, and a barrier that
  is run again changes nothing.
* What the transfers wrote and what an unpack reads must be the same, byte for byte. A *ledger* tells: for each
  output partition the size of its slices, and the sum of their tags. A slice that is missing, or of another run of
  a task that does not repeat itself, is an error, never a partition with other rows.
* Rows and elements are in the order that Dask's own plugin gives them: by input partition, then as they were.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, Protocol

from distributed import get_worker
from distributed.shuffle._arrow import _INPUT_PARTITION_ID_COLUMN, convert_shards
from distributed.shuffle._exceptions import P2PConsistencyError, P2POutOfDiskError
from distributed.shuffle._rechunk import ArrayRechunkSpec, convert_chunk, split_axes
from distributed.shuffle._shuffle import DataFrameShuffleRun, DataFrameShuffleSpec

from lambda_worker.core.errors import ProtocolError, ServerlessError, StoreFull, Tampered, WritingsLost
from lambda_worker.core.wire import Frame, Frames, frames_nbytes, open_frames, seal_frames
from lambda_worker.ports import Store
from lambda_worker.values import value_to_frames

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

#: A transfer writes when it holds slices of this size. They may be copies of what they are cut from.
HELD_BYTES_MAX = 16 * 2**20

#: Bytes of a slice's tag that are added up in the ledger, and what the sum is taken modulo.
_TAG_BYTES = 8
_TAGS = 2 ** (8 * _TAG_BYTES)


class SlicesLost(WritingsLost, P2PConsistencyError):
    """What a shuffle's transfers wrote is not what the storage tier has."""


class NoRoomForSlices(P2POutOfDiskError, StoreFull):
    """The storage tier has no room left for what a shuffle moves."""

    def __str__(self) -> str:
        return StoreFull.__str__(self)  # theirs speaks of disks


def slice_name(job: str, shuffle: str, source: int, target: int) -> str:
    """Name what input partition `source` has for output partition `target`.

    Examples
    --------
    >>> slice_name("job-1", "0a1b", 3, 7)
    'job-1/shuffle/0a1b/7/3'
    """
    return f"{job}/shuffle/{shuffle}/{target}/{source}"


class ShuffleTask:
    """A transfer or unpack task that brings along the specs of its shuffles.

    Dask keeps them in the barriers, which run after the transfers, and elsewhere.
    """

    __slots__ = ("specs", "task")

    def __init__(self, task: Any, specs: Sequence[Any]) -> None:
        self.task = task
        self.specs = specs

    def __repr__(self) -> str:
        return f"<ShuffleTask {self.key!r}, {', '.join(str(spec.id) for spec in self.specs)}>"

    @property
    def key(self) -> Any:
        """The key of the task."""
        return self.task.key

    @property
    def is_coro(self) -> bool:
        """Whether its result is to be awaited."""
        return bool(self.task.is_coro)

    def __call__(self, values: Mapping[Any, Any]) -> Any:
        """Run the task."""
        shuffles: Any = get_worker().plugins["shuffle"]
        shuffles.learn(self.specs)
        try:
            return self.task(values)
        except NoRoomForSlices as error:
            raise NoRoomForSlices(f"task {self.key!r}: {error}") from None
        except RuntimeError as error:
            # Dask wraps all errors but its own ("P2P ... failed during ..."). Ours say whose fault it is.
            ours = error.__cause__
            if not isinstance(ours, ServerlessError):
                raise
        # Not in there: it would have what it is the cause of as its context, and a circle cannot be pickled.
        raise ours


class Shuffles:
    """The shuffles of one job, as an executor takes part in them.

    Parameters
    ----------
    store
        Where the slices go.
    secret
        What they are sealed with.
    job
        Whose they are.
    """

    def __init__(self, store: Store, secret: bytes, job: str) -> None:
        self._store = store
        self._secret = secret
        self._job = job
        self._shuffles: dict[str, _Shuffle] = {}

    def __repr__(self) -> str:
        return f"<Shuffles of {self._job}: {', '.join(self._shuffles) or 'none yet'}>"

    def learn(self, specs: Iterable[Any]) -> None:
        """Take in the specs of the shuffles that the next task is part of."""
        for spec in specs:
            if spec.id not in self._shuffles:
                self._shuffles[spec.id] = _shuffle(spec)

    def add_partition(self, data: Any, partition_id: Any, id: str, **options: Any) -> np.ndarray[Any, Any]:
        """Cut an input partition into slices, write them, and return their ledger."""
        shuffle = self._known(id)
        source = shuffle.source(partition_id)
        ledger = _empty_ledger(shuffle.targets)
        slices: dict[int, list[Frame]] = {}
        held = 0
        for target, frames in shuffle.split(data, partition_id):
            sealed = seal_frames(self._secret, slice_name(self._job, id, source, target), frames)
            nbytes = frames_nbytes(sealed)
            ledger[:, target] = nbytes, _tag_of(sealed)
            if slices and held + nbytes > HELD_BYTES_MAX:
                self._put(id, source, slices)
                slices, held = {}, 0
            slices[target] = sealed
            held += nbytes
        if slices:
            self._put(id, source, slices)
        return ledger

    def _put(self, id: str, source: int, slices: Mapping[int, Frames]) -> None:
        try:
            self._store.put_slices(self._job, id, source, slices)
        except StoreFull as error:
            nbytes = sum(map(frames_nbytes, slices.values()))
            raise NoRoomForSlices(
                f"P2P {id}: no room for {nbytes:,} bytes of input partition {source}, and a shuffle needs room for all "
                f"of its data at once: {error}"
            ) from None

    def barrier(self, id: str, run_ids: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """Add up the ledgers of all transfers; every unpack gets the sum."""
        total = _empty_ledger(0)
        for ledger in run_ids:
            total = ledger.copy() if not total.size else total + ledger
        return total

    def get_output_partition(
        self, id: str, run_id: np.ndarray[Any, Any], partition_id: Any, meta: pd.DataFrame | None = None
    ) -> Any:
        """Read the slices of an output partition and put them together.

        Raises
        ------
        SlicesLost
            When they are not, or no longer, what the transfers wrote.
        """
        shuffle = self._known(id)
        target = shuffle.target(partition_id)
        nbytes, tags = (int(number) for number in run_id[:, target])
        if not nbytes:
            return shuffle.join([])
        found = self._store.get_slices(self._job, id, target, nbytes)
        if sum(map(_tag_of, found.values())) % _TAGS != tags:
            there = sum(map(frames_nbytes, found.values()))
            raise SlicesLost(
                f"P2P {id}: of output partition {partition_id} the storage tier has {there:,} bytes in {len(found)} "
                f"slices, which is not what the transfers wrote ({nbytes:,} bytes): it has lost some, or a task was "
                "run twice with different results"
            )
        opened = []
        for source in sorted(found):
            name = slice_name(self._job, id, source, target)
            try:
                opened.append((source, open_frames(self._secret, name, found.pop(source))))
            except Tampered as error:
                raise SlicesLost(f"P2P {id}: {error}") from None
        return shuffle.join(opened)

    def _known(self, id: str) -> _Shuffle:
        try:
            return self._shuffles[id]
        except KeyError:
            raise ProtocolError(f"a task takes part in shuffle {id}, whose spec it did not bring") from None


def _empty_ledger(targets: int) -> np.ndarray[Any, Any]:
    """Make a ledger: a row of sizes and a row of sums of tags, with a column for each output partition."""
    import numpy as np

    return np.zeros((2, targets), dtype="u8")


def _tag_of(sealed: Frames) -> int:
    return int.from_bytes(bytes(sealed[0][:_TAG_BYTES]), "big") if sealed else 0


# -- what is shuffled -------------------------------------------------------------------------


class _Shuffle(Protocol):
    """One kind of shuffle: how to cut, and how to join. Partitions are numbered."""

    targets: int  # above the number of every output partition

    def source(self, partition: Any) -> int: ...

    def target(self, partition: Any) -> int: ...

    def split(self, data: Any, partition: Any) -> Iterator[tuple[int, list[Frame]]]: ...

    def join(self, slices: list[tuple[int, list[Frame]]]) -> Any:
        """Put slices together, in the order of their sources; empties the list."""


def _shuffle(spec: Any) -> _Shuffle:
    if isinstance(spec, DataFrameShuffleSpec):
        return _DataFrameShuffle(spec)
    if isinstance(spec, ArrayRechunkSpec):
        return _ArrayRechunk(spec)
    raise ProtocolError(f"a shuffle of an unknown kind: {type(spec).__name__}")


class _DataFrameShuffle:
    """Rows go where a column says. A slice is one frame: an Arrow stream."""

    def __init__(self, spec: DataFrameShuffleSpec) -> None:
        import numpy as np

        self.spec = spec
        wanted = np.fromiter(spec.output_partitions, dtype="i8")
        self.targets = int(wanted.max(initial=-1)) + 1
        self.wanted = np.zeros(self.targets, dtype=bool)
        self.wanted[wanted] = True

    def source(self, partition: int) -> int:
        return partition

    def target(self, partition: int) -> int:
        return partition

    def split(self, data: pd.DataFrame, partition: int) -> Iterator[tuple[int, list[Frame]]]:
        import numpy as np
        import pyarrow as pa
        from dask.dataframe.dispatch import to_pyarrow_table_dispatch

        DataFrameShuffleRun.validate_data(self.spec, data)  # type: ignore[arg-type]  # it looks at `meta` only
        if self.targets > self.spec.npartitions:
            # Rows were numbered for fewer partitions than are asked for: they would go to the wrong ones.
            raise IndexError(f"there is no output partition {self.targets - 1}, only {self.spec.npartitions}")
        targets = self._targets(data[self.spec.column])
        # The smaller the numbers, the faster they are sorted; stable, so that rows keep their order.
        order = np.argsort(targets, kind="stable")
        targets = targets[order]
        skipped = int(np.searchsorted(targets, self.targets))  # rows for partitions that nobody wants come last
        order, targets = order[:skipped], targets[:skipped]
        if not len(order):
            return
        table = to_pyarrow_table_dispatch(data, preserve_index=True)
        if self.spec.drop_column:
            table = table.drop([self.spec.column])
        table = table.take(pa.array(order))
        starts = np.concatenate([[0], np.flatnonzero(np.diff(targets)) + 1])
        for start, end in zip(starts, [*starts[1:], len(targets)], strict=True):
            stream = pa.BufferOutputStream()
            with pa.ipc.new_stream(stream, table.schema) as writer:
                writer.write_table(table.slice(start, end - start))
            yield int(targets[start]), [memoryview(stream.getvalue()).cast("B")]

    def _targets(self, column: pd.Series[Any]) -> np.ndarray[Any, Any]:
        """Return each row's output partition; `self.targets` where it has none that is wanted."""
        import numpy as np

        numbers = column.to_numpy()
        if numbers.dtype.kind not in "iu":
            numbers = column.to_numpy(dtype="f8", na_value=np.nan)
            numbers = np.where(numbers == np.floor(numbers), numbers, -1)
        inside = (numbers >= 0) & (numbers < self.targets)
        small = np.min_scalar_type(self.targets)
        found = np.where(inside, numbers, 0).astype(small)
        found[~(inside & self.wanted[found])] = self.targets
        return found

    def join(self, slices: list[tuple[int, list[Frame]]]) -> pd.DataFrame:
        import numpy as np
        import pyarrow as pa

        if not slices:
            spec = self.spec
            return spec.meta.drop(columns=spec.column) if spec.drop_column else spec.meta.copy()
        tables = []
        for source, (frame,) in slices:
            with pa.ipc.open_stream(pa.py_buffer(frame)) as reader:
                table = reader.read_all()
            sources = pa.array(np.full(table.num_rows, source, dtype="u4"))
            tables.append(table.append_column(_INPUT_PARTITION_ID_COLUMN, sources))
        slices.clear()
        return convert_shards(tables, self.spec.meta, self.spec.column, self.spec.drop_column)


class _ArrayRechunk:
    """Chunks are cut along the new chunks' borders. A slice is where it belongs in its chunk, and an array."""

    def __init__(self, spec: ArrayRechunkSpec) -> None:
        import numpy as np

        self.old = tuple(map(len, spec.old))
        self.new = tuple(map(len, spec.new))
        self.targets = int(np.prod(self.new))
        self.axes = split_axes(spec.old, spec.new)

    def source(self, partition: tuple[int, ...]) -> int:
        return _ravel(partition, self.old)

    def target(self, partition: tuple[int, ...]) -> int:
        return _ravel(partition, self.new)

    def split(self, data: np.ndarray[Any, Any], partition: tuple[int, ...]) -> Iterator[tuple[int, list[Frame]]]:
        for splits in product(*(axis[index] for axis, index in zip(self.axes, partition, strict=True))):
            chunk, place, slices = zip(*splits, strict=True)
            part = data[slices]
            flags = getattr(part, "flags", None)
            if flags is not None and not flags.forc:
                part = part.copy()  # in one piece, which can be sent as it is
            yield self.target(chunk), value_to_frames((place, part))

    def join(self, slices: list[tuple[int, list[Frame]]]) -> np.ndarray[Any, Any]:
        # Arrays that cannot be written to will do: they are copied into the chunk.
        parts = [pickle.loads(body, buffers=buffers) for _, (_, body, *buffers) in slices]
        slices.clear()
        return convert_chunk([parts])


def _ravel(index: Sequence[int], shape: Sequence[int]) -> int:
    """Number the cells of a grid, row by row.

    Examples
    --------
    >>> [_ravel(index, (2, 3)) for index in product(range(2), range(3))]
    [0, 1, 2, 3, 4, 5]
    """
    number = 0
    for position, length in zip(index, shape, strict=True):
        number = number * length + position
    return number
