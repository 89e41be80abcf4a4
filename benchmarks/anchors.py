"""Published measurements of Wukong (SoCC'20), and the workloads that they are of, for `benchmarks.calibration`.

Figures were read off plots, to about 1 %. Wukong ran on Lambdas of 3 GB, warm, and 75 Fargate nodes of 4 vCPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dask_serverless.simulator.clusters import wukong
from dask_serverless.simulator.shapes import chains, gemm, svd1, svd2, tree, tsqr
from dask_serverless.simulator.simulation import Options
from dask_serverless.simulator.workload import Workload

#: Lambdas that could run at once.
CONCURRENCY = 5_000
FARGATE_NODES = 75


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement.

    Parameters
    ----------
    table, name
        Which it is.
    seconds
        That were measured.
    workload
        Makes what was computed.
    executors
        Lambdas at most.
    as_wukong
        The cluster (None: `wukong` with so many executors).
    fitted
        The constant that was fitted to this measurement; empty: none was.
    others
        What else was measured: ``read`` and ``written`` in GB, ``dollars``.
    with_ours
        Whether this package is put to it as well.
    """

    table: str
    name: str
    seconds: float
    workload: Callable[[], Workload]
    executors: int = CONCURRENCY
    as_wukong: Options | None = None
    fitted: str = ""
    others: Mapping[str, float] | None = None
    with_ours: bool = True

    @property
    def cluster(self) -> Options:
        """How Wukong was set up."""
        return self.as_wukong or wukong(self.executors, FARGATE_NODES)


TABLES = {
    "TR": "Tree reduction of 1,024 numbers, by the delay of each task (figure 9)",
    "SVD1": "SVD of rows x 100 in blocks of 10,000 rows (figure 10; dollars: figure 18, on demand)",
    "SVD2": "`svd_compressed` of n x n in blocks of 5,000 x 5,000 (figure 11)",
    "GEMM": "Product of n x n matrices (figure 13; bytes: figure 15)",
    "GEMM, one Redis": "The same with one server for all values (figure 13)",
    "TSQR": "QR of rows x 128 in blocks of 16,384 rows, R wanted (figure 14; bytes: figure 16)",
    "Factors": "SVD2 of 100,000 x 100,000 with one part after the other switched on (figure 23)",
    "Strong": "10,000 tasks on N Lambdas, by their delay (figure 21)",
    "Weak": "10 tasks on each of N Lambdas (figure 21)",
    "N on N": "N tasks on N Lambdas (figure 21)",
}

_TR = {0: 1.74, 100: 2.86, 250: 4.47, 500: 6.99}
_SVD1 = {
    "128k": (128_000, 0.423, 0.0019),
    "256k": (256_000, 0.494, 0.00197),
    "512k": (512_000, 0.725, 0.00284),
    "1.0M": (1_024_000, 1.20, 0.00492),
    "2.0M": (2_048_000, 1.71, 0.00759),
    "4.1M": (4_096_000, 2.57, 0.0122),
    "8.2M": (8_192_000, 3.32, 0.0220),
}
_SVD2 = {
    "10k": (10_000, 2.47),
    "25k": (25_000, 3.85),
    "50k": (50_000, 5.76),
    "100k": (100_000, 11.9),
    "128k": (128_000, 19.9),
    "196k": (196_000, 48.9),
    "256k": (256_000, 88.3),
}
#: Size, side of a block, seconds with 75 and with one Redis, GB read and written. The text gives the block of
#: 25,000 (2,000); those of the others follow from the bytes, that of 7,500 is a guess.
_GEMM: dict[str, tuple[int, int, float, float, tuple[float, float] | None]] = {
    "5k": (5_000, 1_000, 4.12, 3.88, (2.34, 0.60)),
    "7.5k": (7_500, 1_500, 8.77, 9.10, None),
    "10k": (10_000, 2_000, 12.6, 14.7, (9.36, 2.41)),
    "15k": (15_000, 2_000, 25.1, 29.7, (32.0, 5.42)),
    "25k": (25_000, 2_000, 59.6, 95.7, (140.0, 15.1)),
}
_TSQR: dict[str, tuple[int, float, tuple[float, float] | None]] = {
    "32.7k": (2, 0.46, None),
    "65.5k": (4, 0.48, None),
    "131k": (8, 0.55, None),
    "262k": (16, 0.55, None),
    "524k": (32, 1.24, None),
    "1.0M": (64, 1.62, (1.10, 0.035)),
    "2.1M": (128, 1.89, (2.20, 0.069)),
    "4.2M": (256, 2.72, (4.39, 0.138)),
    "8.4M": (512, 4.04, (8.78, 0.275)),
    "16.8M": (1_024, 6.98, (17.6, 0.550)),
    "33.6M": (2_048, 9.32, None),
    "67.1M": (4_096, 17.5, None),
}
_DELAYS = (0, 100, 250, 500)
_STRONG = {250: (1.0, 4.97, 10.9, 20.9), 500: (1.6, 3.85, 6.94, 11.6), 1000: (0.77, 2.27, 4.52, 6.41)}
_WEAK = {250: (0.89, 1.94, 3.37, 5.95), 500: (1.54, 2.56, 4.36, 6.88), 1000: (0.74, 2.24, 4.49, 6.39)}
#: Those of 5,000 and 10,000 take long to simulate.
_N_ON_N = {1000: (0.61, 1.25, 1.21, 1.39), 2000: (0.84, 1.9, 1.58, 1.9)}


def cells() -> list[Cell]:
    """Return all measurements, table by table."""
    found = [
        Cell("TR", f"{delay} ms", measured, _tree(delay), 512, fitted="step spread" if not delay else "")
        for delay, measured in _TR.items()
    ]
    for name, (rows, measured, dollars) in _SVD1.items():
        fitted = "warm start" if name == "128k" else ""
        found.append(Cell("SVD1", name, measured, _call(svd1, rows), fitted=fitted, others={"dollars": dollars}))
    for name, (size, measured) in _SVD2.items():
        # What holds and asks for 50 s and more takes minutes to simulate, so ours is not put to the largest.
        fitted = "zone" if name == "256k" else ""
        found.append(Cell("SVD2", name, measured, _call(svd2, size), fitted=fitted, with_ours=size <= 128_000))
    for name, (size, chunk, measured, _, moved) in _GEMM.items():
        others = None if moved is None else {"read": moved[0], "written": moved[1]}
        fitted = "packing" if name == "10k" else ""
        found.append(Cell("GEMM", name, measured, _call(gemm, size, chunk), fitted=fitted, others=others))
    for name, (size, chunk, _, single, _) in _GEMM.items():
        one = wukong(CONCURRENCY, shards=1)
        cell = Cell("GEMM, one Redis", name, single, _call(gemm, size, chunk), as_wukong=one, with_ours=False)
        found.append(cell)
    for name, (count, measured, moved) in _TSQR.items():
        others = None if moved is None else {"read": moved[0], "written": moved[1]}
        found.append(Cell("TSQR", name, measured, _call(tsqr, count * 16_384), others=others))
    for name, clustering, delayed, measured in (
        ("multi-Redis", False, False, 43.2),
        ("and clustering", True, False, 22.1),
        ("and delayed I/O", True, True, 11.9),
    ):
        options = wukong(CONCURRENCY, FARGATE_NODES, clustering, delayed)
        found.append(Cell("Factors", name, measured, _call(svd2, 100_000), as_wukong=options, with_ours=False))
    for table, rows_of, length in (("Strong", _STRONG, 10_000), ("Weak", _WEAK, 0), ("N on N", _N_ON_N, 0)):
        for count, row in rows_of.items():
            for delay, measured in zip(_DELAYS, row, strict=True):
                each = length // count if length else 10 if table == "Weak" else 1
                name = f"{count:,}, {delay} ms"
                work = _call(chains, count, each, delay / 1000)
                # Of N on N what is fastest to simulate: ours has no chains to keep together there.
                found.append(Cell(table, name, measured, work, count, with_ours=count <= 1_000))
    return found


def _tree(delay: int) -> Callable[[], Workload]:
    return _call(tree, 1_024, delay / 1000)


def _call(make: Callable[..., Workload], *arguments: float) -> Callable[[], Workload]:
    return lambda: make(*arguments)
