"""Workloads of linear algebra on chunked arrays, as in the papers on serverless engines: GEMM, SVD1, SVD2, TSQR.

Every answer is small, so that nobody is measured by how fast the client reads. cubed has arrays of its own, with random
numbers of its own: its answers are checked by what is known of such matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import dask.array as da
import numpy as np

from benchmarks.contenders import Contender
from benchmarks.workloads import Workload

#: Random matrices are close to what is expected of them: sums and norms of many thousand entries.
NEAR = 0.02


def matrix(turn: int, rows: int, columns: int, chunk_rows: int, chunk_columns: int) -> Any:
    """Return numbers between 0 and 1, made in the tasks."""
    return da.random.default_rng(turn).random((rows, columns), chunks=(chunk_rows, chunk_columns))


def gemm(contender: Contender, turn: int, *, n: int, chunk: int) -> Callable[[], float]:
    left, right = matrix(2 * turn, n, n, chunk, chunk), matrix(2 * turn + 1, n, n, chunk, chunk)
    product = (left @ right).sum()
    return lambda: float(contender.compute(product))


def gemm_by_cubed(contender: Any, turn: int, *, n: int, chunk: int) -> Callable[[], float]:
    left, right = contender.matrix(n, n, chunk, chunk), contender.matrix(n, n, chunk, chunk)
    product = contender.xp.sum(contender.xp.matmul(left, right))
    return lambda: float(contender.compute(product))


def svd(contender: Contender, turn: int, *, rows: int, columns: int, chunk: int) -> Callable[[], float]:
    """SVD1, tall and skinny: the right singular vectors."""
    _, values, vectors = da.linalg.svd(matrix(turn, rows, columns, chunk, columns))

    def run() -> float:
        found, directions = contender.compute(values, vectors)
        assert np.allclose(directions @ directions.T, np.eye(len(found)), atol=1e-6)
        return float(found[0])

    return run


def svd_by_cubed(contender: Any, turn: int, *, rows: int, columns: int, chunk: int) -> Callable[[], float]:
    values = contender.xp.linalg.svdvals(contender.matrix(rows, columns, chunk, columns))
    return lambda: float(contender.compute(values)[0])


def svd_compressed(contender: Contender, turn: int, *, n: int, chunk: int, k: int) -> Callable[[], float]:
    """SVD2, square and approximate: the right singular vectors."""
    _, values, vectors = da.linalg.svd_compressed(matrix(turn, n, n, chunk, chunk), k=k, seed=turn)

    def run() -> float:
        found, directions = contender.compute(values, vectors)
        assert np.allclose(directions @ directions.T, np.eye(k), atol=1e-6)
        return float(found[0])

    return run


def tsqr(contender: Contender, turn: int, *, rows: int, columns: int, chunk: int) -> Callable[[], float]:
    """The R of a tall and skinny matrix; nobody asks for Q."""
    _, r = da.linalg.tsqr(matrix(turn, rows, columns, chunk, columns))
    return lambda: float(np.linalg.norm(contender.compute(r)))


def tsqr_by_cubed(contender: Any, turn: int, *, rows: int, columns: int, chunk: int) -> Callable[[], float]:
    _, r = contender.xp.linalg.qr(contender.matrix(rows, columns, chunk, columns))
    return lambda: float(np.linalg.norm(contender.compute(r)))


def near(expected: Callable[[Mapping[str, Any]], float]) -> Callable[[Mapping[str, Any], Any], bool]:
    return lambda size, found: math.isclose(found, expected(size), rel_tol=NEAR)


def blocks(size: Mapping[str, Any]) -> int:
    return -(-size.get("rows", size.get("n", 0)) // size["chunk"])


def svd2(name: str, title: str, memory: str) -> Workload:
    """Return SVD2, which reads its matrix several times, on executors of so much memory."""
    return Workload(
        name=name,
        title=title,
        full={"n": 18_000, "chunk": 2_000, "k": 5},
        ablated={"n": 8_000, "chunk": 1_000},
        quick={"n": 2_000, "chunk": 500, "k": 5},
        build=svd_compressed,
        tasks=lambda size: 6 * blocks(size) ** 2,
        holds=near(lambda size: size["n"] / 2),
        known="orthonormal vectors, and the expected largest singular value",
        settings={"serverless.lambda.memory": memory},
    )


def tsqr_in(name: str, chunk: int) -> Workload:
    """Return TSQR in chunks of so many rows: the smaller, the more of the R factors must meet."""
    return Workload(
        name=name,
        title="TSQR, {rows:,} x {columns} in chunks of {chunk:,} rows",
        full={"rows": 2_097_152, "columns": 128, "chunk": chunk},
        ablated={"rows": 1_048_576},
        quick={"rows": 32_768, "columns": 64, "chunk": 4_096},
        build=tsqr,
        tasks=lambda size: 4 * blocks(size),
        holds=near(lambda size: math.sqrt(size["rows"] * size["columns"] / 3)),
        known="the expected norm",
        others={"cubed": tsqr_by_cubed},
    )


WORKLOADS = [
    Workload(
        name="gemm",
        title="GEMM, {n:,} x {n:,} in chunks of {chunk:,}",
        full={"n": 7_000, "chunk": 1_000},
        ablated={"n": 5_000},
        quick={"n": 1_200, "chunk": 400},
        build=gemm,
        tasks=lambda size: 2 * blocks(size) ** 2 + blocks(size) ** 3 + 2 * blocks(size) ** 2,
        holds=near(lambda size: size["n"] ** 3 / 4),
        known="the expected sum of the product",
        others={"cubed": gemm_by_cubed},
    ),
    Workload(
        name="svd1",
        title="SVD1 (svd), {rows:,} x {columns} in chunks of {chunk:,} rows",
        full={"rows": 2_000_000, "columns": 100, "chunk": 20_000},
        ablated={"rows": 600_000},
        quick={"rows": 40_000, "columns": 50, "chunk": 5_000},
        build=svd,
        tasks=lambda size: 7 * blocks(size),
        holds=near(lambda size: math.sqrt(size["rows"] * size["columns"]) / 2),
        known="orthonormal vectors, and the expected largest singular value",
        others={"cubed": svd_by_cubed},
    ),
    svd2("svd2", "SVD2 (svd_compressed), {n:,} x {n:,} in chunks of {chunk:,}, k={k}", memory="10 GiB"),
    svd2("svd2-tight", "SVD2, {n:,} x {n:,}, with executors of 2 GiB: no room for the matrix", memory="2 GiB"),
    tsqr_in("tsqr", chunk=16_384),
    tsqr_in("tsqr-auto", chunk=131_072),  # what Dask itself makes of it: 128 MiB
]
