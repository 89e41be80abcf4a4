"""What will happen to a collection, and what happened to one: `explain` before, and how to find a job after.

A collection is planned here as the proxy would plan it, and nothing is run. That runs users' code (optimisers, lazy
layers), in the caller's thread, as `Client.compute` does.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import dask
from dask._expr import FinalizeCompute
from dask.base import collections_to_expr
from dask.core import flatten
from distributed import Client, Future

from dask_serverless.cluster_arguments import load_settings
from dask_serverless.config import Settings
from dask_serverless.dask_graph import JobPlan, materialise, plan_job, split
from dask_serverless.forecast import Forecast, Terms, forecast
from dask_serverless.plan.prefixes import Prefixes
from dask_serverless.prefixes import prefixes_of
from dask_serverless.statistics import Expectation


@dataclass(frozen=True, slots=True)
class Planned:
    """A collection as a plan."""

    plan: JobPlan
    prefixes: Prefixes
    on_dask_workers: int

    def forecast(self, expected: Expectation, places: int, settings: Settings) -> Forecast:
        """Say what a cluster would do with it."""
        classes = [
            f"{each.memory_bytes / 2**30:.3g} GiB, {each.timeout_seconds:.0f} s" for each in settings.function_classes
        ]
        terms = Terms(places, settings.executor_inline_bytes_max, classes, settings.executor_threads)
        plan = self.plan
        return forecast(plan.graph, self.prefixes, expected, terms, len(plan.constants), self.on_dask_workers)


def plan_of(collection: Any, settings: Settings, is_known: Callable[[Hashable], bool] = lambda key: False) -> Planned:
    """Plan a collection, or a list of them, as `Client.compute` and the proxy would.

    Parameters
    ----------
    is_known
        Tells the keys that the cluster has values of, or is at work on.

    Examples
    --------
    >>> planned = plan_of(dask.delayed(abs)(-1), load_settings())
    >>> planned.plan.graph, planned.prefixes.names
    (<Graph: 1 tasks, 1 starts, 1 visible, 0 externals>, ['abs'])
    """
    collections = list(collection) if isinstance(collection, (list, tuple, set, frozenset)) else [collection]
    if not collections:
        raise ValueError("there is nothing to explain: no collection was given")
    for each in collections:
        if not dask.is_dask_collection(each):
            raise TypeError(
                f"{each!r} is no Dask collection, so there is no graph to explain"
                + (": a future is under way already, see cluster.decisions(future)" if isinstance(each, Future) else "")
            )
    expr = FinalizeCompute(collections_to_expr(collections)).optimize()
    keys = set(flatten(expr.__dask_keys__()))
    annotations = dask.get_annotations()
    found = materialise(expr, keys)
    tasks, by_type = found.tasks, found.annotations_by_type
    pinned = split(tasks, keys, by_type, annotations)
    known = {key for key in tasks if is_known(key)}
    wanted = {key for key in keys if key in tasks and key not in known and key not in pinned}
    for key in pinned.keys() - known:
        needs = tasks[key].dependencies
        wanted.update(each for each in needs if each in tasks and each not in known and each not in pinned)
    plan = plan_job(tasks, wanted, known.union(pinned), by_type, annotations, settings.function_classes)
    return Planned(plan, prefixes_of(plan), len(pinned))


def explain(collection: Any, cluster: Any = None) -> Any:
    """Say what would happen to a Dask collection, before it is computed. Nothing is run.

    Tells the shape of its graph, with how many executors it would begin and why, what values would travel and how,
    and, for key prefixes that the cluster has run before, how long it would take and how large the values would be.

    Parameters
    ----------
    collection
        A collection, or a list of them.
    cluster
        A `ServerlessCluster`; None: that of the current client, if there is one, else what
        ``ServerlessCluster()`` would be, which has learned nothing yet.

    Returns
    -------
    dask_serverless.forecast.Forecast
        Print it, or show it in a notebook; its fields have the numbers.

    Examples
    --------
    >>> import dask
    >>> from dask_serverless import explain
    >>> total = dask.delayed(sum)([dask.delayed(abs)(number, dask_key_name=f"abs-{number}") for number in range(64)])
    >>> explained = explain(total)
    >>> print(str(explained).partition(", so at most")[0])
    65 tasks and 64 edges in 1 segment
    64 starts (0 given from elsewhere), 1 visible key
    1 fan-in (widest 64), 0 fan-outs (widest 1)
    critical path: 2 tasks
    >>> [(name, tasks, learned) for name, tasks, learned in explained.prefixes]
    [('abs', 64, None), ('sum', 1, None)]
    """
    if cluster is None:
        cluster = current_cluster()
    if cluster is not None:
        if not hasattr(cluster, "explain"):
            raise TypeError(f"cluster={cluster!r} is no ServerlessCluster")
        return cluster.explain(collection)
    settings = load_settings()
    planned = plan_of(collection, settings)
    return planned.forecast(
        Expectation(
            unknown={
                name: tasks
                for name, tasks in zip(planned.prefixes.names, planned.prefixes.counts, strict=True)
                if tasks
            }
        ),
        settings.workers_count,
        settings,
    )


def current_cluster() -> Any:
    """Return the `ServerlessCluster` of the current client, if there is one."""
    try:
        cluster = Client.current().cluster
    except ValueError:  # there is no client
        return None
    return cluster if hasattr(cluster, "explain") else None


def keys_of(collection: Any) -> list[Hashable]:
    """Return the keys by which the job of a future or a collection is found.

    Examples
    --------
    >>> keys_of(dask.delayed(abs)(-1, dask_key_name="three"))
    ['three']
    """
    if isinstance(collection, Future):
        return [collection.key]
    if isinstance(collection, (list, tuple, set, frozenset)):
        return [key for each in collection for key in keys_of(each)]
    if dask.is_dask_collection(collection):
        return list(flatten(collection.__dask_keys__()))
    raise TypeError(f"{collection!r} is neither a future nor a Dask collection nor the name of a job")
