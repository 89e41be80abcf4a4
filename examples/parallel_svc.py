"""Parallel prediction with dask-ml, on Lambda executors.

A support vector classifier is fitted on 1,000 samples; the predictions for 800,000 more, in 20 chunks,
are made by executors that schedule among themselves. It is an ordinary dask-ml program: the one
line that is not is ``ServerlessCluster()`` where ``LocalCluster()`` stood.

    python examples/parallel_svc.py [--samples 800000] [--chunks 20]
"""

from __future__ import annotations

import argparse
import sys
import time

import dask.config
import dask_ml.datasets
import numpy as np
import sklearn.datasets
from dask_ml.wrappers import ParallelPostFit
from distributed import Client, as_completed
from sklearn.svm import SVC

from dask_serverless import ServerlessCluster


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Predict with a fitted SVC, in parallel, on Lambda executors.")
    parser.add_argument("--samples", type=positive, default=800_000, help="how many to predict (default: 800000)")
    parser.add_argument("--chunks", type=positive, default=20, help="in how many chunks (default: 20)")
    options = parser.parse_args(arguments)
    samples, chunks = options.samples, min(options.chunks, options.samples)

    print("Fitting SVC(gamma='scale') on 1,000 samples, here.")
    X, y = sklearn.datasets.make_classification(n_samples=1_000, random_state=0)
    clf = ParallelPostFit(SVC(gamma="scale"))
    clf.fit(X, y)

    print("Starting a cluster: a Dask scheduler, a store, and a Lambda service on this machine.")
    begun = time.perf_counter()
    with ServerlessCluster() as cluster, Client(cluster) as client:
        print(f"Started in {time.perf_counter() - begun:.1f} s: {cluster!r}")
        X, y = dask_ml.datasets.make_classification(
            n_samples=samples, random_state=samples, chunks=-(-samples // chunks)
        )
        prediction = clf.predict(X)
        before = cluster.stats()
        begun = time.perf_counter()

        # One future for each chunk, so that there is progress to show; `prediction.compute()` does it all at once.
        futures = client.compute(prediction.to_delayed().tolist())
        print(f"Predicting {samples:,} samples in {len(futures)} chunks, on Lambda executors.")
        for done, _ in enumerate(as_completed(futures), start=1):
            print(f"  {done:>4} of {len(futures)} chunks after {time.perf_counter() - begun:6.1f} s", flush=True)
        parts = client.gather(futures)
        seconds = time.perf_counter() - begun
        after = cluster.stats()

    predicted = np.concatenate(parts)
    assert predicted.shape == (samples,)
    print("Class counts:", counts(predicted))

    print("Checking the first chunk against clf.estimator.predict, here.")
    expected = clf.estimator.predict(X.blocks[0].compute(scheduler="sync"))
    assert counts(parts[0]) == counts(expected), (counts(parts[0]), counts(expected))
    assert np.array_equal(parts[0], expected)
    print("Equal:", counts(expected))

    used = {name: after[name] - before[name] for name in after}
    price_gb_second = dask.config.get("serverless.lambda.price-gb-second")
    price_request = dask.config.get("serverless.lambda.price-request")
    cost = used["gb_seconds"] * price_gb_second + used["invocations"] * price_request
    print(f"Wall time:               {seconds:.1f} s")
    print(f"Invocations:             {used['invocations']:,}")
    print(f"Executors:               {used['executors']:,}")
    print(f"Written to the store:    {used['bytes_written']:,} bytes")
    print(f"Read from the store:     {used['bytes_read']:,} bytes")
    print(f"On Lambda it would cost: ${cost:.6f} ({used['gb_seconds']:,.1f} GB-seconds, at list price)")
    return 0


def counts(classes: np.ndarray) -> dict[int, int]:
    """Return how often each class occurs."""
    names, numbers = np.unique(classes, return_counts=True)
    return dict(zip(names.tolist(), numbers.tolist(), strict=True))


if __name__ == "__main__":
    sys.exit(main())
