"""Dask arrays, after docs.dask.org/en/stable/array.html and its API page."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np

from tests.compatibility.programs import program


def numbers(*shape, chunks="auto", seed=0):
    return da.random.default_rng(seed).random(shape, chunks=chunks)


@program
def the_first_example():
    x = da.random.default_rng(1).random((400, 400), chunks=(100, 100))
    y = x + x.T
    return y[::2, 200:].mean(axis=1).compute()


@program
def creation():
    return dask.compute(
        da.ones((6, 4), chunks=2),
        da.zeros((6, 4), chunks=(3, 4), dtype="i4"),
        da.full((5,), 7, chunks=2),
        da.arange(0, 20, 3, chunks=4),
        da.linspace(0, 1, 11, chunks=3),
        da.eye(6, chunks=2, k=1),
        da.diag(da.arange(5, chunks=2)),
        da.tri(5, chunks=2),
        da.indices((3, 4), chunks=2),
        da.fromfunction(lambda i, j: i * j, shape=(4, 4), chunks=(2, 2), dtype="i8"),
        da.empty_like(da.ones(4, chunks=2)).shape,
    )


@program
def from_a_numpy_array():
    x = da.from_array(np.arange(1000).reshape(50, 20), chunks=(7, 6))
    return (x**2).sum(axis=0).compute(), x[3].compute()


@program
def slicing():
    x = da.arange(1000, chunks=100).reshape(50, 20)
    return dask.compute(x[5], x[-1, ::-3], x[10:40:7, [1, 5, 2]], x[:, None, 3], x[..., 0], x[[4, 4, 40]])


@program
def boolean_masks():
    x = numbers(100, chunks=13)
    y = da.arange(100, chunks=13)
    return dask.compute(x[x > 0.5], y[x < 0.1], da.where(x > 0.5, y, -y), da.compress(x > 0.9, y, axis=0))


@program
def assignment():
    x = da.arange(20, chunks=6)
    x[3:7] = -1
    x[x > 15] = 0
    x[0] = da.max(x)
    return x.compute()


@program
def indexing_by_a_dask_array():
    x = da.arange(100, chunks=10) * 2
    return x[da.from_array(np.array([3, 50, 99]), chunks=2)].compute(), x.vindex[[1, 2],].compute()


@program
def vindex_and_blocks():
    x = numbers(20, 20, chunks=5)
    return dask.compute(x.vindex[[0, 7, 19], [1, 2, 3]], x.blocks[1, ::2], x.partitions[-1])


@program
def reductions():
    x = numbers(60, 40, chunks=(17, 13))
    return dask.compute(
        x.sum(), x.mean(axis=0), x.std(axis=1), x.var(ddof=1), x.min(), x.max(axis=(0, 1)), x.prod(axis=1),
        x.argmax(), x.argmin(axis=1), da.any(x > 0.99), da.all(x > 0.5, axis=0), da.ptp(x, axis=0), x.moment(3),
        da.count_nonzero(x > 0.5),
    )  # fmt: skip


@program
def nan_reductions():
    x = da.where(numbers(60, 40, chunks=15) > 0.3, numbers(60, 40, chunks=15, seed=2), np.nan)
    return dask.compute(
        da.nansum(x), da.nanmean(x, axis=0), da.nanstd(x, axis=1), da.nanmax(x), da.nanargmin(x, axis=0)
    )


@program
def nan_reduction_of_nothing():
    return da.nanmax(da.full((4, 4), np.nan, chunks=2), axis=0).compute()


@program
def division_by_zero():
    return (da.ones(4, chunks=2) / da.zeros(4, chunks=2)).compute()


@program
def medians_and_percentiles():
    x = da.arange(1000, chunks=1000)
    y = numbers(40, 30, chunks=(40, 10))
    return (
        da.percentile(x, [5, 50, 95]).compute(),
        da.median(y, axis=0).compute(),
        da.quantile(y, 0.3, axis=0).compute(),
    )


@program
def percentile_of_many_chunks():
    return da.percentile(da.arange(1000, chunks=100), [5, 50, 95], method="linear").compute()


@program
def topk():
    x = numbers(1000, chunks=90)
    return dask.compute(da.topk(x, 5), da.topk(x, -5), da.argtopk(x, 3))


@program
def unique():
    x = da.random.default_rng(3).integers(0, 9, 1000, chunks=90)
    return dask.compute(*da.unique(x, return_counts=True, return_inverse=True)), da.unique(x).compute()


@program
def unknown_chunks():
    x = numbers(100, chunks=10)
    y = x[x > 0.5]
    unknown = str(y.shape)
    y.compute_chunk_sizes()
    return unknown, y.shape, y.chunks, y[3].compute()


@program(raises=ValueError)
def an_index_into_unknown_chunks():
    x = numbers(100, chunks=10)
    return x[x > 0.5][3].compute()


@program
def histograms():
    x = numbers(1000, chunks=90)
    counts, edges = da.histogram(x, bins=10, range=(0, 1))
    both, _, _ = da.histogram2d(x, x**2, bins=4, range=((0, 1), (0, 1)))
    return counts.compute(), edges, both.compute(), da.bincount((x * 10).astype("i8"), minlength=10).compute()


@program
def digitize_and_searchsorted():
    x = numbers(50, chunks=9)
    return dask.compute(
        da.digitize(x, np.linspace(0, 1, 5)),
        da.searchsorted(da.arange(50, chunks=9), da.from_array(np.array([3, 30]), chunks=1)),
        da.isin(da.arange(9, chunks=4), [2, 5]),
    )


@program(rtol=1e-7)
def linear_algebra():
    x = numbers(60, 8, chunks=(20, 8))
    square = x.T @ x + 8 * da.eye(8, chunks=8)
    u, s, v = da.linalg.svd(x)
    q, r = da.linalg.qr(x)
    return dask.compute(s, abs(r), (u * s) @ v, q @ r, da.linalg.norm(x), da.linalg.norm(x, axis=1), square.trace())


@program(rtol=1e-7)
def solving():
    square = numbers(20, 20, chunks=10) + 20 * da.eye(20, chunks=10)
    symmetric = square @ square.T
    b = numbers(20, chunks=10)
    return dask.compute(
        da.linalg.solve(square, b), da.linalg.inv(square), da.linalg.cholesky(symmetric), *da.linalg.lu(square)
    )


@program(rtol=1e-6)
def least_squares():
    x, residuals, rank, s = da.linalg.lstsq(numbers(60, 4, chunks=(20, 4)), numbers(60, chunks=20, seed=5))
    return dask.compute(x, residuals, s)


@program(rtol=1e-6)
def compressed_svd():
    u, s, v = da.linalg.svd_compressed(numbers(200, 100, chunks=50), k=4, n_power_iter=2, seed=7)
    return s.compute()


@program(raises=np.linalg.LinAlgError)
def singular():
    return da.linalg.inv(da.zeros((4, 4), chunks=4)).compute()


@program
def products():
    x, y = numbers(30, 20, chunks=7), numbers(20, 10, chunks=7, seed=1)
    return dask.compute(
        x @ y, da.dot(x, y), da.tensordot(x, y, axes=1), da.vdot(x[:, 0], x[:, 1]), da.outer(x[0], y[0]),
        da.einsum("ij,jk->ik", x, y), da.einsum("ij->j", x), da.matmul(x, y),
    )  # fmt: skip


@program
def rechunking():
    x = numbers(60, 60, chunks=(60, 6))
    return x.rechunk((6, 60)).sum(axis=1).compute(), x.rechunk({0: 7, 1: -1}).compute(), x.rechunk("auto").chunks


@program
def rechunking_with_tasks():
    return numbers(60, 60, chunks=(60, 6)).rechunk((6, 60), method="tasks").compute()


@program
def rechunking_with_p2p():
    return numbers(60, 60, chunks=(60, 6)).rechunk((6, 60), method="p2p").compute()


@program
def shuffling_an_array():
    return da.arange(20, chunks=5).shuffle([[3, 1], [2, 0, 19, 4], list(range(5, 19))], axis=0).compute()


@program
def map_blocks():
    x = numbers(40, 40, chunks=10)

    def where(block, block_info=None, block_id=None):
        return block * 0 + block_info[0]["array-location"][0][0] + block_id[1]

    return dask.compute(
        x.map_blocks(np.sin),
        x.map_blocks(where, dtype=float),
        x.map_blocks(lambda b: b.sum(keepdims=True), chunks=(1, 1)),
        da.map_blocks(lambda a, b, c=1: a + b * c, x, x.T, c=3),
        x.map_blocks(lambda b: b[:, 0], drop_axis=1, chunks=(10,))[:3],
        x.map_blocks(lambda b: b[None], new_axis=0)[0, 0],
    )


@program
def map_overlap():
    x = numbers(40, 40, chunks=10)

    def smooth(block):
        return (block + np.roll(block, 1, axis=0) + np.roll(block, -1, axis=0)) / 3

    return dask.compute(
        x.map_overlap(smooth, depth={0: 1, 1: 0}, boundary="reflect"),
        x.map_overlap(smooth, depth=2, boundary="periodic"),
        da.overlap.overlap(x, depth=1, boundary=0).sum(),
        da.overlap.sliding_window_view(x[0], 4).mean(axis=1),
    )


@program
def generalised_ufuncs():
    x = numbers(30, 12, chunks=(10, 12))
    mean, std = da.apply_gufunc(
        lambda a: (a.mean(axis=-1), a.std(axis=-1)), "(i)->(),()", x, output_dtypes=2 * (float,)
    )

    @da.as_gufunc(signature="(i),(j)->(i,j)", output_dtypes=float, vectorize=True)
    def outer(a, b):
        return np.outer(a, b)

    return dask.compute(mean, std, outer(x[:2], x[:2]))


@program
def apply_along_and_over():
    x = numbers(10, 8, chunks=4)
    return dask.compute(da.apply_along_axis(np.sort, 0, x), da.apply_over_axes(np.sum, x, [0, 1]))


@program
def blockwise():
    x, y = da.arange(10, chunks=5), da.arange(6, chunks=3)
    return da.blockwise(np.add.outer, "ij", x, "i", y, "j", dtype=x.dtype).compute()


@program
def ufuncs():
    x = numbers(40, chunks=9)
    return dask.compute(
        np.sin(x), da.exp(x), da.hypot(x, x), np.add.outer(x[:4], x[:3]), da.frompyfunc(lambda v: v > 0.5, 1, 1)(x),
        da.clip(x, 0.2, 0.8), *da.modf(x * 3), *divmod(x * 10, 3), da.round(x, 2), ~(x > 0.5),
    )  # fmt: skip


@program
def shapes():
    x = da.arange(24, chunks=6).reshape(2, 3, 4)
    return dask.compute(
        x.T, x.ravel(), da.moveaxis(x, 0, -1), da.swapaxes(x, 0, 1), x.transpose(2, 0, 1), da.squeeze(x[:1]),
        da.broadcast_to(x[0, 0], (3, 4)), da.expand_dims(x, 1), da.flip(x, 0), da.roll(x, 2), da.rot90(x[0]),
        da.tile(x[0], (2, 1)), da.repeat(x, 2, axis=1), da.pad(x[0], 1, mode="edge"), da.tril(x[0]),
        da.atleast_3d(x[0]),
    )  # fmt: skip


@program
def stacking():
    x = [numbers(5, 4, chunks=3, seed=n) for n in range(4)]
    return dask.compute(
        da.stack(x), da.concatenate(x, axis=1), da.vstack(x), da.hstack(x), da.dstack(x), da.block([x[:2], x[2:]])
    )


@program
def fourier():
    x = numbers(16, 12, chunks=(4, 12))
    return dask.compute(
        da.fft.fft(x), da.fft.rfft(x), da.fft.fftshift(x), da.fft.fft2(x.rechunk(16)), da.fft.fftfreq(8, chunks=3)
    )


@program
def from_delayed():
    load = dask.delayed(lambda n: np.full((3, 4), n))
    return da.concatenate([da.from_delayed(load(n), (3, 4), dtype=int) for n in range(4)]).compute()


@program
def to_delayed():
    blocks = da.arange(20, chunks=5).to_delayed()
    return dask.compute(*[dask.delayed(lambda b: b.sum())(block) for block in blocks])


class File:
    """A target that writes to a file, wherever the task runs."""

    def __init__(self, name):
        self.name = str(name)
        np.save(self.name, np.zeros((20, 20)))

    def __setitem__(self, index, block):
        array = np.load(self.name, mmap_mode="r+")
        array[index] = block
        array.flush()


@program
def store(path):
    target = File(path / "x.npy")
    numbers(20, 20, chunks=6).store(target, lock=False)
    return np.load(path / "x.npy")


@program
def store_under_a_lock(path):
    target = File(path / "x.npy")
    numbers(20, 20, chunks=6).store(target)
    return np.load(path / "x.npy")


@program
def store_later(path):
    target, x = File(path / "x.npy"), numbers(20, 20, chunks=6)
    later = da.store([x], [target], lock=False, compute=False)
    before = np.load(path / "x.npy").sum()
    later.compute()
    return before, np.load(path / "x.npy").sum(), x.sum().compute()


@program
def numpy_files(path):
    x = numbers(20, 20, chunks=6)
    da.to_npy_stack(str(path / "stack"), x, axis=0)
    return da.from_npy_stack(str(path / "stack")).compute(), sorted(each.name for each in (path / "stack").iterdir())


@program
def masked_arrays():
    x = da.ma.masked_greater(numbers(20, chunks=6), 0.7)
    return dask.compute(x, x.sum(), da.ma.filled(x, -1), da.ma.getmaskarray(x), x.mean())


@program
def structured_arrays():
    x = da.from_array(np.array([(1, 2.0), (3, 4.0), (5, 6.0)], dtype=[("a", "i8"), ("b", "f8")]), chunks=2)
    return dask.compute(x["a"].sum(), x[["a", "b"]]["b"])


@program
def an_empty_array():
    x = da.zeros((0, 4), chunks=2)
    return dask.compute(x, x.sum(), x.sum(axis=0))


@program
def the_mean_of_nothing():
    return da.zeros(0, chunks=1).mean().compute()


@program
def a_scalar_array():
    x = da.from_array(np.array(3.0))
    return x.compute(), float(x + 1), int(x), bool(x > 1), (x + 1).ndim


@program
def python_protocols():
    x = da.arange(5, chunks=2)
    return (
        len(x),
        [int(each) for each in x],
        x.tolist() if hasattr(x, "tolist") else None,
        np.asarray(x),
        np.sum(x).compute(),
    )


@program
def persisting():
    x = (numbers(40, 40, chunks=10) + 1).persist()
    return x.sum().compute(), x[0].compute(), (x + x.T).mean().compute()


@program
def optimised_first():
    (x,) = dask.optimize(numbers(40, chunks=10) + 1)
    return x.sum().compute()


@program(raises=ValueError)
def an_error_in_a_block():
    def fail(block):
        raise ValueError(f"shape {block.shape}")

    return da.ones(10, chunks=10).map_blocks(fail, dtype=float).compute()


@program
def wrong_block_shapes():
    return da.ones(10, chunks=5).map_blocks(lambda b: b[:2]).sum().compute()


@program(raises=ValueError)
def mismatched_shapes():
    return (da.ones(3, chunks=3) + da.ones(4, chunks=2)).compute()


@program
def a_warning_in_a_block():
    return np.log(da.arange(-3, 3, chunks=2)).compute()


@program
def statistics():
    x, y = numbers(100, chunks=30), numbers(100, chunks=30, seed=1)
    return dask.compute(da.corrcoef(x, y), da.cov(x, y), da.average(x, weights=y), da.gradient(x), da.ediff1d(x))


@program
def select_and_choose():
    x = da.arange(12, chunks=5)
    return dask.compute(
        da.select([x < 3, x > 8], [x, -x], default=0), da.choose(x % 2, [x, x * 10]), *da.nonzero(x % 3),
        da.argwhere(x % 5 == 0), da.flatnonzero(x > 6), da.take(x, [1, 3]), da.extract(x > 9, x),
        da.unravel_index(da.arange(4, chunks=2), (2, 2)),
    )  # fmt: skip


@program
def coarsen():
    return da.coarsen(np.mean, numbers(12, 12, chunks=4), {0: 2, 1: 4}).compute(), da.insert(
        da.arange(5, chunks=2), 2, 9, axis=0
    ).compute()


@program
def reduction_with_functions_of_ones_own():
    return da.reduction(
        numbers(40, chunks=7),
        chunk=lambda x, axis, keepdims: x.max(axis=axis, keepdims=keepdims),
        aggregate=lambda x, axis, keepdims: x.max(axis=axis, keepdims=keepdims),
        dtype=float,
        split_every=2,
    ).compute()


@program
def sparse_blocks():
    import scipy.sparse

    x = da.where(numbers(20, 20, chunks=(5, 20)) > 0.9, 1.0, 0.0).map_blocks(scipy.sparse.csr_matrix)
    return x.compute()


@program
def scipy_functions():
    import scipy.special

    return numbers(50, chunks=20).map_blocks(scipy.special.gamma).compute()


@program
def several_at_once():
    x = numbers(30, 30, chunks=10)
    return dask.compute({"a": x.sum(), "b": [x.min(), (x.max(), 1)]}, x.std(), 7)


@program
def arrays_that_own_no_memory(client):
    x = np.broadcast_to(np.arange(3.0), (4, 3))
    return client.submit(lambda a: a * 2, x).result(), client.submit(np.asfortranarray, x).result().flags.f_contiguous


@program
def can_results_be_written_to():
    x = da.ones(10, chunks=5).compute()
    x[0] = 5
    return x, x.flags.writeable


@program
def can_a_single_chunk_be_written_to(client):
    x = client.submit(np.ones, 100_000).result()
    x[0] = 5
    return float(x.sum()), x.flags.writeable


@program
def changing_the_input_in_place(client):
    def change(x):
        x += 1
        return x.sum()

    x = client.submit(np.zeros, 1000)
    return client.submit(change, x).result()
