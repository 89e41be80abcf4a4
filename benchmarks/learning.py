"""Workloads of machine learning: predictions of a fitted model, and a regression that reads its inputs many times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import dask.array as da
import dask_ml.datasets
import numpy as np
import sklearn.datasets
from dask_ml.wrappers import ParallelPostFit
from sklearn.svm import SVC

from benchmarks.contenders import Contender
from benchmarks.workloads import Workload

FITTED_SAMPLES = 1_000
#: Of the regression: how close to the coefficients that made the data it must come. (There is no noise.)
COEFFICIENT_ERROR_MAX = 0.05


@lru_cache(maxsize=1)
def model() -> ParallelPostFit:
    """Return the model of the papers: a support vector classifier fitted on 1,000 samples, some 60 kB."""
    X, y = sklearn.datasets.make_classification(n_samples=FITTED_SAMPLES, random_state=0)
    return ParallelPostFit(SVC(gamma="scale")).fit(X, y)


def svc(contender: Contender, turn: int, *, samples: int, chunks: int) -> Callable[[], int]:
    """Predict in parallel what has been fitted elsewhere; each turn other samples."""
    X, _ = dask_ml.datasets.make_classification(
        n_samples=samples, random_state=samples + turn, chunks=-(-samples // chunks)
    )
    prediction = model().predict(X)
    return lambda: int(np.sum(contender.compute(prediction)))


def regression(
    contender: Contender, turn: int, *, rows: int, columns: int, chunk: int, steps: int
) -> Callable[[], float]:
    """Fit a linear regression by gradient descent over persisted inputs; return how far it is from the truth."""
    X = da.random.default_rng(turn).standard_normal((rows, columns), chunks=(chunk, columns))
    truth = np.linspace(-1, 1, columns)

    def run() -> float:
        inputs = contender.persist(X)
        targets = contender.persist(inputs @ truth)
        found = np.zeros(columns)
        for _ in range(steps):
            gradient = contender.compute(inputs.T @ (inputs @ found - targets))
            found = found - gradient / rows  # the columns are independent, with variance 1
        return float(np.abs(found - truth).max())

    return run


def half_of_samples(size: Mapping[str, Any], found: Any) -> bool:
    return 0.1 * size["samples"] < found < 0.9 * size["samples"]


def predictions(name: str, full: Mapping[str, int], quick: Mapping[str, int]) -> Workload:
    return Workload(
        name=name,
        title="SVC (ParallelPostFit), {samples:,} samples in {chunks:,} chunks",
        full=full,
        quick=quick,
        build=svc,
        tasks=lambda size: 2 * size["chunks"],
        holds=half_of_samples,
        known="both classes, each at least a tenth",
    )


WORKLOADS = [
    predictions("svc", {"samples": 1_600_000, "chunks": 40}, {"samples": 10_000, "chunks": 4}),
    # Many partitions, one model: what a constant costs that sits in a thousand tasks.
    predictions("svc-1000", {"samples": 200_000, "chunks": 1_000}, {"samples": 4_000, "chunks": 40}),
    Workload(
        name="regression",
        title="linear regression, {rows:,} x {columns} persisted, {steps} steps",
        full={"rows": 2_000_000, "columns": 100, "chunk": 50_000, "steps": 20},
        ablated={"rows": 200_000, "chunk": 25_000},
        quick={"rows": 40_000, "columns": 20, "chunk": 10_000, "steps": 5},
        build=regression,
        tasks=lambda size: (2 + 4 * size["steps"]) * (size["rows"] // size["chunk"]),
        holds=lambda size, found: found < COEFFICIENT_ERROR_MAX,
        known="the coefficients that made the data",
    ),
]
