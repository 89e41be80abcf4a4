"""Named workloads: graphs of any shape, and the block algorithms of Wukong's evaluation. Pure.

The graphs are those of the Dask of that time (1.2), as far as the published bytes tell: a product reads whole rows and
columns of blocks, a tall-and-skinny QR stacks as many factors as make a block again, sums go by fours. Blocks of the
inputs are read from where they were before (the published bytes have them in it).

What a block operation takes follows from its floating point operations. PyWren's 2,800 Lambdas of 1.5 GB did
40 TFLOPS in products; Lambda's processors grow with memory. Other operations are slower than a product by what numpy
takes for them on one core (measured with OpenBLAS: QR of a tall block 0.15 to 0.23, a thin product 0.56).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import TypeAlias

from dask_serverless.plan.graph import Graph, number
from dask_serverless.plan.prefixes import Prefixes, number_prefixes
from dask_serverless.simulator.network import BASELINE_PER_SECOND
from dask_serverless.simulator.workload import SimJob, SimTask, Workload
from dask_serverless.statistics import Expectation, Statistics
from lambda_worker.core.schedule import SEGMENT_TASKS

Key: TypeAlias = Hashable

#: Floating point operations per second: 40 TFLOPS / 2,800 for 1,536 MB, and twice that for 3,008.
PRODUCT_FLOPS = 40e12 / 2_800 / 1_536 * 3_008
#: Against a product, on one core.
THIN_PRODUCT = 0.55
TALL_QR = 0.2
#: Of a small matrix: 100 x 100, and of other sizes by the cube.
SMALL_SVD_SECONDS = 0.003
#: Random numbers from a normal distribution, each.
NORMAL_SECONDS = 30e-9
#: A task that copies or picks something small.
SMALL_SECONDS = 0.0001
DOUBLE = 8
#: What is learned of values below this size is that they are small.
LARGE_BYTES = 64 * 1024


class Shape:
    """A graph that is being drawn: tasks by name, with what each takes.

    Examples
    --------
    >>> shape = Shape()
    >>> shape.add("a", seconds=1.0), shape.add("b", ["a"], nbytes=8)
    ('a', 'b')
    >>> shape.workload(["b"]).jobs[0].graph
    <Graph: 2 tasks, 1 starts, 1 visible, 0 externals>
    """

    def __init__(self) -> None:
        self._parents: dict[Key, Sequence[Key]] = {}
        self._tasks: dict[Key, SimTask] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def __repr__(self) -> str:
        return f"<Shape of {len(self)} tasks>"

    def add(
        self, key: Key, parents: Sequence[Key] = (), seconds: float = SMALL_SECONDS, nbytes: int = 100, reads: int = 0
    ) -> Key:
        """Add a task, and return its name.

        Parameters
        ----------
        key, parents
            Its name, and those of the tasks whose values it needs.
        seconds, nbytes
            What it takes, and how large its value is.
        reads
            Bytes of input.
        """
        self._parents[key] = parents
        self._tasks[key] = SimTask(seconds, nbytes, input_nbytes=reads)
        return key

    def add_sum(self, key: Key, parts: Sequence[Key], nbytes: int, width: int = 4) -> Key:
        """Add a sum of values of the same size by a tree, and return its name."""
        level = 0
        while len(parts) > 1:
            parts = [
                self.add((key, level, at), parts[at : at + width], SMALL_SECONDS, nbytes)
                for at in range(0, len(parts), width)
            ]
            level += 1
        return parts[0]

    def workload(self, wanted: Sequence[Key]) -> Workload:
        """Return what computes these."""
        graph, keys = number(self._parents, wanted)
        tasks = {task: self._tasks[key] for task, key in enumerate(keys)}
        numbers = {key: task for task, key in enumerate(keys)}
        prefixes = number_prefixes(keys, prefix_of)
        visible: dict[Key, int] = {f"j1-{numbers[key]}": numbers[key] for key in wanted}
        return Workload([SimJob("j1", graph, tasks, visible, prefixes=prefixes)])


def prefix_of(key: Key) -> str:
    """Return what a task's name has in common with those of its like.

    Examples
    --------
    >>> prefix_of((("mat_h", 3), 0, 1)), prefix_of(("q", "r", 7)), prefix_of("v")
    ('mat_h', 'q r', 'v')
    """
    parts: list[str] = []
    while isinstance(key, tuple):
        parts += [each for each in key[1:] if isinstance(each, str)]
        key = key[0]
    return " ".join([str(key), *parts])


def experienced(workload: Workload) -> Workload:
    """Return a workload as one that has run in the cluster before: it is known what tasks of each prefix take.

    Examples
    --------
    >>> experienced(chains(2, 3, 0.5)).jobs[0].expected.seconds
    3.0
    """
    known = []
    for job in workload.jobs:
        prefixes = job.prefixes or Prefixes(["task"], [len(job.tasks)], [[]] * (len(job.graph) // SEGMENT_TASKS + 1))
        known.append(replace(job, prefixes=prefixes, expected=_expectation(job, prefixes)))
    return Workload(known)


def _expectation(job: SimJob, prefixes: Prefixes) -> Expectation:
    statistics = Statistics()
    numbers = prefixes.of_each()
    for task, does in job.tasks.items():
        seconds = does.seconds + does.input_nbytes / BASELINE_PER_SECOND
        nbytes = does.nbytes if does.nbytes >= LARGE_BYTES else 0
        statistics.take(prefixes.names[numbers[task]], [1, seconds, seconds**2, nbytes, nbytes**2, 0])
    return statistics.expect(prefixes)


def workload_of(
    parents: Sequence[Sequence[int]], seconds: Sequence[float] | float, nbytes: Sequence[int] | int = 100
) -> Workload:
    """Make a workload of a graph. Parents have smaller numbers than their children; what has no child is wanted.

    Examples
    --------
    >>> workload_of([[], [], [0, 1]], seconds=0.1).jobs[0].visible
    {'j1-2': 2}
    """
    count = len(parents)
    children: list[list[int]] = [[] for _ in range(count)]
    for task, row in enumerate(parents):
        for parent in row:
            children[parent].append(task)
    wanted = [task for task in range(count) if not children[task]]
    starts = [task for task in range(count) if not parents[task]]
    tasks = {
        task: SimTask(
            seconds if isinstance(seconds, float | int) else seconds[task],
            nbytes if isinstance(nbytes, int) else nbytes[task],
        )
        for task in range(count)
    }
    graph = Graph(parents, children, starts, frozenset(wanted))
    return Workload([SimJob("j1", graph, tasks, {f"j1-{task}": task for task in wanted})])


def tree(numbers: int, seconds: float, nbytes: int = 30) -> Workload:
    """Return a tree reduction of so many numbers by pairs, in depth-first order (Wukong's TR)."""
    parents: list[list[int]] = []

    def add(count: int) -> int:
        # As deep as the logarithm of `numbers`.
        row = [] if count <= 2 else [add(count // 2), add(count - count // 2)]
        parents.append(row)
        return len(parents) - 1

    add(numbers)
    return workload_of(parents, seconds, nbytes)


def chains(count: int, length: int, seconds: float, nbytes: int = 30) -> Workload:
    """Return independent chains (Wukong's scaling experiments)."""
    parents = [[task - 1] if task % length else [] for task in range(count * length)]
    return workload_of(parents, seconds, nbytes)


def lookups(tables: int, readers: int, seconds: float, nbytes: int) -> Workload:
    """Return tables that a task makes each, so many tasks that look something up in each, and one that counts all.

    Examples
    --------
    >>> lookups(2, 3, seconds=0.01, nbytes=10**9).jobs[0].graph
    <Graph: 9 tasks, 2 starts, 1 visible, 0 externals>
    """
    shape = Shape()
    found = []
    for table in range(tables):
        made = shape.add(("table", table), seconds=1.0, nbytes=nbytes)
        found += [shape.add(("look-up", table, at), [made], seconds) for at in range(readers)]
    return shape.workload([shape.add("count", found)])


# -- block algorithms -------------------------------------------------------------------------------


def blocks(size: int, chunk: int) -> list[int]:
    """Return the sizes of the blocks along an axis.

    Examples
    --------
    >>> blocks(25, 10)
    [10, 10, 5]
    """
    return [min(chunk, size - first) for first in range(0, size, chunk)]


def gemm(size: int, chunk: int) -> Workload:
    """Return the product of two square matrices (Wukong's GEMM): each block of it needs a row and a column of blocks.

    Examples
    --------
    >>> gemm(25_000, 2_000).jobs[0].graph
    <Graph: 507 tasks, 338 starts, 169 visible, 0 externals>
    """
    shape, sizes = Shape(), blocks(size, chunk)
    for which in "ab":
        for i, rows in enumerate(sizes):
            for j, columns in enumerate(sizes):
                nbytes = rows * columns * DOUBLE
                shape.add((which, i, j), nbytes=nbytes, reads=nbytes)
    wanted = []
    for i, rows in enumerate(sizes):
        for j, columns in enumerate(sizes):
            needs = [("a", i, k) for k in range(len(sizes))] + [("b", k, j) for k in range(len(sizes))]
            seconds = 2 * rows * columns * size / PRODUCT_FLOPS
            wanted.append(shape.add(("c", i, j), needs, seconds, rows * columns * DOUBLE))
    return shape.workload(wanted)


def qr_seconds(rows: int, columns: int) -> float:
    """Return what the QR decomposition of a tall block takes, with both of its factors."""
    return 4 * rows * columns**2 / (PRODUCT_FLOPS * TALL_QR)


def _factors(shape: Shape, name: Key, parts: Sequence[Key], rows: Sequence[int], columns: int) -> list[Key]:
    """Add QR decompositions of blocks, and return the names of the upper triangular factors."""
    found = []
    for at, (part, height) in enumerate(zip(parts, rows, strict=True)):
        nbytes = (height + columns) * columns * DOUBLE
        both = shape.add((name, "qr", at), [part], qr_seconds(height, columns), nbytes)
        found.append(shape.add((name, "r", at), [both], nbytes=columns**2 * DOUBLE))
    return found


def _reduce(shape: Shape, name: Key, factors: list[Key], columns: int, chunk: int) -> Key:
    """Stack factors until one is left, and return its name."""
    level, width = 0, max(2, chunk // columns)
    while True:
        stacks, rows = [], []
        for at in range(0, len(factors), width):
            some = factors[at : at + width]
            rows.append(len(some) * columns)
            stacks.append(shape.add((name, "stack", level, at), some, nbytes=rows[-1] * columns * DOUBLE))
        factors = _factors(shape, (name, level), stacks, rows, columns)
        if len(factors) == 1:
            return factors[0]
        level += 1


def _tall(shape: Shape, rows: int, columns: int, chunk: int) -> Key:
    parts, sizes = [], blocks(rows, chunk)
    for at, height in enumerate(sizes):
        nbytes = height * columns * DOUBLE
        parts.append(shape.add(("x", at), nbytes=nbytes, reads=nbytes))
    return _reduce(shape, "tsqr", _factors(shape, "tsqr", parts, sizes, columns), columns, chunk)


def tsqr(rows: int, columns: int = 128, chunk: int = 16_384) -> Workload:
    """Return the QR decomposition of a tall and skinny matrix, of which R is wanted (Wukong's TSQR).

    Examples
    --------
    >>> tsqr(4_194_304).jobs[0].graph
    <Graph: 777 tasks, 256 starts, 1 visible, 0 externals>
    """
    shape = Shape()
    return shape.workload([_tall(shape, rows, columns, chunk)])


def svd1(rows: int, columns: int = 100, chunk: int = 10_000) -> Workload:
    """Return the SVD of a tall and skinny matrix, of which V is wanted (Wukong's SVD1).

    Examples
    --------
    >>> svd1(1_000_000).jobs[0].graph
    <Graph: 305 tasks, 100 starts, 1 visible, 0 externals>
    """
    shape = Shape()
    factor = _tall(shape, rows, columns, chunk)
    nbytes = columns**2 * DOUBLE
    svd = shape.add("svd", [factor], SMALL_SVD_SECONDS * (columns / 100) ** 3, 2 * nbytes)
    return shape.workload([shape.add("v", [svd], nbytes=nbytes)])


def svd2(size: int, chunk: int = 5_000, rank: int = 5, oversampled: int = 20) -> Workload:
    """Return the approximate SVD of a square matrix, of which V is wanted (Wukong's SVD2: `svd_compressed`).

    The matrix is multiplied by a thin random one, the product is made orthogonal, and the matrix is multiplied by that:
    every block of it is needed twice, at the beginning and after a synchronisation.

    Examples
    --------
    >>> svd2(50_000).jobs[0].graph
    <Graph: 505 tasks, 110 starts, 10 visible, 0 externals>
    """
    shape, sizes, thin = Shape(), blocks(size, chunk), oversampled
    every = range(len(sizes))
    product = [[2 * rows * columns * thin / (PRODUCT_FLOPS * THIN_PRODUCT) for columns in sizes] for rows in sizes]
    for i in every:
        shape.add(("omega", i), (), sizes[i] * thin * NORMAL_SECONDS, sizes[i] * thin * DOUBLE)
        for j in every:
            nbytes = sizes[i] * sizes[j] * DOUBLE
            shape.add(("x", i, j), nbytes=nbytes, reads=nbytes)
    sampled = []
    for i in every:
        nbytes = sizes[i] * thin * DOUBLE
        parts = [shape.add(("p", i, j), [("x", i, j), ("omega", j)], product[i][j], nbytes) for j in every]
        sampled.append(shape.add_sum(("mat_h", i), parts, nbytes))
    basis = _orthogonal(shape, "q", sampled, sizes, thin)
    compressed = []
    for j in every:
        nbytes = sizes[j] * thin * DOUBLE
        parts = [shape.add(("c", i, j), [basis[i], ("x", i, j)], product[i][j], nbytes) for i in every]
        compressed.append(shape.add_sum(("compressed", j), parts, nbytes))
    found = _orthogonal(shape, "v", compressed, sizes, thin, svd=True)
    wanted = [shape.add(("wanted", j), [found[j]], nbytes=rank * sizes[j] * DOUBLE) for j in every]
    return shape.workload(wanted)


def _orthogonal(
    shape: Shape, name: str, parts: Sequence[Key], rows: Sequence[int], columns: int, svd: bool = False
) -> list[Key]:
    """Add a QR decomposition (and an SVD of its R), and return the names of the blocks of its tall factor."""
    factors = _factors(shape, name, parts, rows, columns)
    height = len(factors) * columns
    stack = shape.add((name, "stack"), factors, nbytes=height * columns * DOUBLE)
    small = shape.add((name, "small"), [stack], qr_seconds(height, columns), (height + columns) * columns * DOUBLE)
    if svd:
        seconds = SMALL_SVD_SECONDS * (columns / 100) ** 3
        small = shape.add((name, "svd"), [small], seconds, height * columns * DOUBLE)
    found = []
    for at, tall in enumerate(rows):
        nbytes = columns**2 * DOUBLE
        part = shape.add((name, "part", at), [small], nbytes=nbytes)
        mine = shape.add((name, "q1", at), [(name, "qr", at)], nbytes=tall * columns * DOUBLE)
        seconds = 2 * tall * columns**2 / (PRODUCT_FLOPS * THIN_PRODUCT)
        found.append(shape.add((name, at), [mine, part], seconds, tall * columns * DOUBLE))
    return found
