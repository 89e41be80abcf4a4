"""More of dask.array, after docs.dask.org/en/stable/array-api.html."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np

from tests.compatibility.programs import program


def grid(rows=12, columns=6, chunks=(4, 3)):
    return da.from_array(np.arange(rows * columns, dtype=float).reshape(rows, columns), chunks=chunks)


@program
def cumulative():
    x = da.from_array(np.arange(1.0, 13.0), chunks=5)
    return dask.compute(
        x.cumsum(axis=0), da.cumprod(x, axis=0), da.nancumsum(da.where(x > 5, np.nan, x), axis=0),
        da.cumsum(grid(), axis=1), da.cumsum(x, axis=0, method="blelloch"), da.diff(x), da.diff(grid(), axis=1, n=2),
    )  # fmt: skip


@program
def random_numbers():
    rng = da.random.default_rng(5)
    old = da.random.RandomState(5)
    return dask.compute(
        rng.random(10, chunks=4), rng.normal(2, 1, size=(4, 4), chunks=2), rng.integers(0, 9, 10, chunks=5),
        rng.choice(5, 8, chunks=4), old.uniform(size=6, chunks=3), old.poisson(3, size=6, chunks=3),
    )  # fmt: skip


@program
def permutations():
    rng = da.random.default_rng(0)
    return rng.permutation(da.arange(20, chunks=5)).compute(), da.random.RandomState(0).permutation(6).compute()


@program
def dtypes():
    x = da.arange(10, chunks=4)
    return (
        x.astype("f4").compute(), x.dtype, (x + 1.5).dtype, (x > 3).compute(), x.view("u8").compute(),
        x.astype(str).compute(), (x * 1j).compute(), x.astype("M8[D]").compute(), da.result_type(x, 1.0),
    )  # fmt: skip


@program
def strings_and_objects():
    words = da.from_array(np.array(["a", "bb", "ccc", None], dtype=object), chunks=2)
    return words.compute(), words[:3].map_blocks(lambda block: np.array([len(w) for w in block]), dtype=int).compute()


@program
def dates():
    days = da.from_array(np.arange("2026-01-01", "2026-01-13", dtype="M8[D]"), chunks=5)
    return days[::2].compute(), (days[1:] - days[:-1]).compute(), days.dtype, days.astype("i8").sum().compute()


@program
def einsum_and_tensordot():
    x, y = grid(), grid(6, 4, chunks=(3, 2))
    return dask.compute(
        da.einsum("ij,jk->ik", x, y), da.einsum("ij->j", x), da.tensordot(x, y, axes=1), x @ y, da.outer(x[0], y[0]),
        da.vdot(x[0], x[1]), da.dot(x, y), da.matmul(x, y),
    )  # fmt: skip


@program
def where_and_piecewise():
    x = da.arange(10, chunks=4)
    return dask.compute(
        da.where(x > 5, x, -x), da.piecewise(x, [x < 3, x >= 3], [-1, 1]), da.select([x < 3, x > 6], [x, x * 10], 0),
        da.choose(x % 2, [x, -x]), da.clip(x, 2, 5), da.isin(x, [1, 3]), da.extract(x % 3 == 0, x),
    )  # fmt: skip


@program
def nonzero_and_friends():
    x = da.from_array(np.array([[0, 1, 0], [2, 0, 3]]), chunks=(1, 3))
    return (
        [each.compute() for each in da.nonzero(x)], da.argwhere(x).compute(), da.flatnonzero(x).compute(),
        da.count_nonzero(x).compute(), [each.compute() for each in da.unravel_index(da.arange(4, chunks=2), (2, 3))],
    )  # fmt: skip


@program
def padding_and_tiling():
    x = grid(4, 4, chunks=2)
    return dask.compute(
        da.pad(x, 1, mode="constant", constant_values=-1), da.pad(x, 2, mode="reflect"), da.tile(x, (2, 1)),
        da.repeat(x, 2, axis=1), da.roll(x, 1, axis=0), da.flip(x, 0), da.rot90(x), da.block([[x, x], [x, x]]),
    )  # fmt: skip


@program
def axes_and_dimensions():
    x = grid()
    return dask.compute(
        x.T, da.moveaxis(x[None], 0, -1), da.expand_dims(x, 1), da.squeeze(x[None]), da.swapaxes(x, 0, 1),
        da.broadcast_to(x[0], (2, 6)), x.reshape(-1), x.reshape(12, 2, 3), da.ravel(x), da.atleast_3d(x[0]),
    )  # fmt: skip


@program
def joining_and_splitting():
    x = grid()
    return dask.compute(
        da.concatenate([x, x], axis=1), da.stack([x, x]), da.hstack([x, x]), da.vstack([x, x]), da.dstack([x, x]),
        da.append(x, x, axis=0), da.insert(x, 1, 0.0, axis=0), da.delete(x, 1, axis=0),
    )  # fmt: skip


@program
def sets_and_counts():
    x = da.from_array(np.array([3, 1, 2, 3, 1, 3]), chunks=2)
    return (
        [each.compute() for each in da.unique(x, return_counts=True, return_inverse=True)],
        da.bincount(x, minlength=5).compute(), da.union1d(x, da.arange(3, chunks=2)).compute(),
        da.searchsorted(da.arange(5, chunks=2), x).compute(), da.histogram(x, bins=3, range=(0, 4))[0].compute(),
    )  # fmt: skip


@program
def histograms_in_two_dimensions():
    x = grid()
    counts, rows, columns = da.histogram2d(x[:, 0], x[:, 1], bins=4, range=((0, 72), (0, 72)))
    several, _ = da.histogramdd(x[:, :3].rechunk((4, -1)), bins=(2, 2, 2), range=((0, 72),) * 3)
    return counts.compute(), np.asarray(rows), several.compute()


@program(rtol=1e-7)
def factorisations():
    x = grid(24, 4, chunks=(8, 4)) ** 0.5
    square = da.from_array(np.eye(6) * 4 + 1, chunks=3)
    q, r = da.linalg.qr(x)
    return (
        abs(r.compute()), (q @ r).compute(), abs(da.linalg.tsqr(x)[1].compute()), da.linalg.svd(x)[1].compute(),
        da.linalg.cholesky(square).compute(), [each.compute() for each in da.linalg.lu(square)],
        da.linalg.inv(square).compute(), da.linalg.norm(x).compute(),
        abs(da.linalg.sfqr(x.T.rechunk((4, 8)))[1].compute()),
    )  # fmt: skip


@program(rtol=1e-7)
def triangles_and_solutions():
    square = da.from_array(np.tril(np.ones((6, 6))) + np.eye(6), chunks=3)
    b = da.arange(6, chunks=3)
    return dask.compute(
        da.linalg.solve_triangular(square, b, lower=True), da.linalg.solve(square, b),
        da.tril(square), da.triu(square, 1),
        da.diag(b), da.diagonal(square), da.trace(square), da.tri(4, 4, chunks=2), da.eye(5, chunks=2),
    )  # fmt: skip


@program
def transforms():
    x = da.from_array(np.random.default_rng(0).random((4, 8)), chunks=(2, 8))
    return dask.compute(
        da.fft.fft(x), da.fft.rfft(x), da.fft.ifft(da.fft.fft(x)).real, da.fft.fft2(x.rechunk(-1)),
        da.fft.fftshift(x), da.fft.fftfreq(8, chunks=4), da.fft.fft_wrap(np.fft.hfft)(x),
    )  # fmt: skip


@program
def overlaps():
    x = grid()
    return dask.compute(
        da.overlap.overlap(x, depth={0: 1, 1: 1}, boundary={0: "reflect", 1: 0}),
        da.overlap.map_overlap(lambda b: b - b.mean(), x, depth=1, boundary="periodic", dtype=float),
        da.overlap.map_overlap(lambda a, b: a + b, x, x, depth=1, boundary="nearest", dtype=float),
        da.overlap.trim_internal(da.overlap.overlap(x, depth=1, boundary="none"), {0: 1, 1: 1}, boundary="none"),
        da.lib.stride_tricks.sliding_window_view(x, 3, axis=0).sum(axis=-1),
    )  # fmt: skip


@program
def functions_with_a_signature():
    x = grid().rechunk((4, -1))

    def spread(block):
        return block.mean(axis=-1), block.max(axis=-1)

    mean, largest = da.apply_gufunc(spread, "(i)->(),()", x, output_dtypes=(float, float))
    product = da.gufunc(lambda a, b: np.einsum("...i,...i->...", a, b), signature="(i),(i)->()", output_dtypes=float)
    doubled = da.as_gufunc(signature="(i)->(i)", output_dtypes=float)(lambda a: a * 2)
    return dask.compute(mean, largest, product(x, x), doubled(x))


@program
def blocks_with_information():
    x = grid()

    def where(block, block_info=None, block_id=None):
        return np.full_like(block, sum(block_info[0]["chunk-location"]) + 10 * block_id[0])

    return (
        x.map_blocks(where, dtype=float).compute(),
        da.map_blocks(lambda a, b: a + b, x, 5, dtype=float).compute(),
        x.map_blocks(lambda b: b[:, :1], chunks=((4, 4, 4), (1, 1)), dtype=float).compute(),
        x.map_blocks(lambda b: b.sum(), drop_axis=[0, 1], dtype=float).shape,
        da.map_blocks(lambda block_id: np.array([block_id[0]]), chunks=((1,) * 4,), dtype=int).compute(),
        x.blocks[1, :].compute(), [b.compute().shape for b in x.partitions][:2],
    )  # fmt: skip


@program
def rechunked_in_many_ways():
    x = grid()
    with dask.config.set({"array.rechunk.method": "tasks"}):
        tasks = x.rechunk((3, 2)).compute()
    with dask.config.set({"array.rechunk.method": "p2p"}):
        p2p = x.rechunk({0: -1, 1: 2}).compute()
    return tasks, p2p, x.rechunk("auto").compute(), x.rechunk(balance=True, chunks=(5, -1)).chunks, x.rechunk(4).chunks


@program
def masked():
    x = da.ma.masked_greater(grid(), 40)
    return (
        x.compute(), x.sum().compute(), x.mean(axis=0).compute(), da.ma.filled(x, -1).compute(),
        da.ma.getmaskarray(x).compute(), da.ma.masked_where(grid() > 9, grid()).compute(),
        da.ma.average(x, axis=1).compute(), da.ma.count(x).compute(),
        da.ma.masked_invalid(da.log(grid() - 3)).sum().compute(),
    )  # fmt: skip


@program
def from_many_sources(path):
    np.save(path / "a.npy", np.arange(12.0))
    memory = np.load(path / "a.npy", mmap_mode="r")
    later = da.from_delayed(dask.delayed(np.ones)(4), (4,), float)
    return dask.compute(
        da.from_array(memory, chunks=5) + 1, da.from_array([1, 2, 3], chunks=2), da.asarray([[1, 2], [3, 4]]),
        da.fromfunction(lambda i, j: i + j, shape=(4, 4), chunks=2, dtype=float), later * 2,
        da.indices((2, 3), chunks=(1, 3)), *da.meshgrid(da.arange(3, chunks=2), da.arange(2, chunks=2)),
        da.full_like(grid(), 7), da.linspace(0, 1, 5, chunks=2), da.concatenate([later, later]),
    )  # fmt: skip


@program
def stored_in_many_ways(path):
    class Target:
        def __init__(self, name):
            self.name = name

        def __setitem__(self, index, value):
            kept = np.load(self.name, mmap_mode="r+")
            kept[index] = value
            kept.flush()

    np.save(path / "target.npy", np.zeros((12, 6)))
    da.store(grid(), Target(str(path / "target.npy")), lock=False)
    da.to_npy_stack(str(path / "stack"), grid(), axis=0)
    return np.load(path / "target.npy"), da.from_npy_stack(str(path / "stack")).compute()


@program
def arg_reductions():
    x = da.where(grid() == 5, np.nan, grid())
    return dask.compute(
        grid().argmax(axis=0), grid().argmin(), da.nanargmax(x, axis=1), da.nanargmin(x, axis=0),
        da.argtopk(grid()[:, 0], 3),
        da.topk(grid(), -2, axis=0), da.ptp(grid(), axis=0),
    )  # fmt: skip


@program
def moments_and_correlations():
    x = grid() ** 2
    return dask.compute(
        da.var(x, axis=0, ddof=1), da.std(x), da.moment(x, 3, axis=0), da.cov(x.T), da.corrcoef(x.T),
        da.average(x, axis=0, weights=da.arange(12, chunks=4)), da.median(x, axis=0), da.nanmedian(x, axis=1),
        da.nanpercentile(x, 30, axis=0), da.nanquantile(x.rechunk((-1, 3)), 0.3, axis=0),
    )  # fmt: skip


@program
def a_tree_of_a_given_width():
    x = da.ones(64, chunks=2)
    return x.sum(split_every=4).compute(), x.mean(split_every=2).compute(), da.reduction(
        x, chunk=lambda b, axis, keepdims: b.sum(axis=axis, keepdims=keepdims), aggregate=np.max, dtype=float,
        split_every=3,
    ).compute()  # fmt: skip


@program
def the_numpy_interface():
    x = grid()
    return (
        np.sum(x).compute(), np.concatenate([x, x]).compute().shape, np.exp(x / 100).compute(), np.asarray(x[:2]),
        type(np.mean(x)).__name__, float(x[0, 0]), len(x), x.nbytes, x.npartitions, bool((x >= 0).all()),
        [row.compute()[0] for row in x[:2]],
    )  # fmt: skip


@program
def sizes_computed():
    x = da.arange(12, chunks=4)
    some = x[x % 3 == 0]
    before = some.shape
    some.compute_chunk_sizes()
    return str(before), some.shape, some.chunks, some[1:3].compute()


@program
def a_graph_looked_at():
    x = grid().sum(axis=0)
    return len(dask.optimize(x)[0].dask) > 0, x.__dask_keys__()[0][1:], [type(d).__name__ for d in x.to_delayed()]


@program(raises=ValueError)
def a_reshape_that_does_not_fit():
    return grid().reshape(5, 5)


@program(raises=IndexError)
def an_index_that_is_too_large():
    return grid()[20].compute()


@program(raises=np.linalg.LinAlgError)
def a_matrix_that_is_not_positive():
    return da.linalg.cholesky(da.from_array(-np.eye(4), chunks=2)).compute()


@program(raises=FloatingPointError)
def floating_point_errors_in_blocks():
    def careful(block):
        with np.errstate(divide="raise"):
            return 1 / block

    return da.zeros(4, chunks=2).map_blocks(careful, dtype=float).compute()


@program
def game_of_life():
    board = da.from_array((np.arange(64).reshape(8, 8) % 3 == 0).astype(int), chunks=4)

    def step(block):
        neighbours = sum(np.roll(block, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)) - block
        return ((neighbours == 3) | ((block == 1) & (neighbours == 2))).astype(int)

    for _ in range(3):
        board = board.map_overlap(step, depth=1, boundary="periodic")
    return board.compute()


@program(rtol=1e-6)
def ordinary_least_squares():
    rng = np.random.default_rng(0)
    x = da.from_array(rng.normal(size=(60, 3)), chunks=(20, 3))
    y = x @ np.array([1.0, 2.0, 3.0])
    return da.linalg.lstsq(x, y)[0].compute(), da.linalg.solve(x.T @ x, x.T @ y).compute()


@program(rtol=1e-6)
def power_iteration():
    a = da.from_array(np.diag([5.0, 2.0, 1.0, 0.5]) + 0.1, chunks=2)
    v = da.ones(4, chunks=2)
    for _ in range(4):
        v = a @ v
        v = (v / da.linalg.norm(v)).persist()
    return v.compute()


@program
def monte_carlo():
    xy = da.random.default_rng(1).random((2000, 2), chunks=(500, 2))
    return (4 * ((xy**2).sum(axis=1) < 1).mean()).compute()
