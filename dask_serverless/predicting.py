"""What a Dask collection would take in AWS: its graph, with what its tasks take, through the simulator.

The collection is planned as `explain` plans it (which runs users' code: optimisers, lazy layers), and nothing is run.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Any

from dask_serverless.cluster_arguments import load_settings
from dask_serverless.explaining import current_cluster, plan_of
from dask_serverless.simulator import calculator
from dask_serverless.simulator.calculator import Prediction
from dask_serverless.simulator.clusters import MEMORY_BYTES, ours
from dask_serverless.simulator.shapes import experienced
from dask_serverless.simulator.workload import SimJob, SimTask, Workload
from dask_serverless.statistics import Learned

#: A larger graph would take minutes to simulate.
TASKS_MAX = 100_000
#: What is learned of a small value is only that it is small.
SMALL_BYTES = 1_000


def predict(
    collection: Any,
    cluster: Any = None,
    *,
    seconds: Mapping[str, float] | float | None = None,
    nbytes: Mapping[str, int] | int | None = None,
    executors: int = 1_000,
    shards: int = 4,
    memory_bytes: int = MEMORY_BYTES,
    seed: int = 0,
) -> Prediction:
    """Predict what it would take to compute a Dask collection in AWS: time, invocations, bytes and cost.

    How long tasks take and how large their values are is given here, or learned: a cluster knows it of the key prefixes
    that it has run. The rest is a simulation on warm Lambdas, whose figures were measured by others
    (``docs/simulation.md`` tells which, and how well it fits).

    Parameters
    ----------
    collection
        A collection, or a list of them.
    cluster
        A `ServerlessCluster` that has run such tasks before; None: that of the current client, if there is one.
    seconds, nbytes
        What each task takes, and how large its value is: one number for all, or one for each key prefix. What is given
        goes before what was learned. The size of a value that is neither is small.
    executors
        How many Lambdas may run at once.
    shards
        Data servers of the storage tier.
    memory_bytes
        Of each Lambda.
    seed
        Draws latencies.

    Returns
    -------
    dask_serverless.simulator.calculator.Prediction
        Print it; its fields have the numbers.

    Examples
    --------
    >>> import dask
    >>> from dask_serverless import predict
    >>> total = dask.delayed(sum)([dask.delayed(abs)(number, dask_key_name=f"abs-{number}") for number in range(64)])
    >>> predicted = predict(total, seconds={"abs": 2.0, "sum": 0.1}, nbytes=100_000)
    >>> predicted.invocations, 2.1 < predicted.seconds < 4.0
    (64, True)
    """
    for name, value, least in (("executors", executors, 1), ("shards", shards, 1), ("memory_bytes", memory_bytes, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r} is no number of at least {least}")
    _check("seconds", seconds)
    _check("nbytes", nbytes)
    asked = cluster is not None
    cluster = cluster if asked else current_cluster()
    learned: dict[str, Learned] = {}
    settings = load_settings()
    if cluster is not None:
        if not hasattr(cluster, "explain"):
            raise TypeError(f"cluster={cluster!r} is no ServerlessCluster")
        settings = cluster.settings
        if not cluster.asynchronous:
            learned = {name: each for name, _, each in cluster.explain(collection).prefixes if each is not None}
        elif asked:
            raise TypeError("the cluster is asynchronous: what it has learned cannot be asked here; give seconds=")
    planned = plan_of(collection, settings, _is_there(cluster))
    graph, prefixes = planned.plan.graph, planned.prefixes
    if len(graph) > TASKS_MAX:
        raise ValueError(f"the graph has {len(graph):,} tasks: more than {TASKS_MAX:,} take too long to simulate")
    used = [name for name, tasks in zip(prefixes.names, prefixes.counts, strict=True) if tasks]
    durations = _values(seconds, used, {name: each.seconds for name, each in learned.items()})
    sizes = _values(nbytes, used, {name: int(each.nbytes) for name, each in learned.items()})
    unknown = [name for name in used if name not in durations]
    if unknown:
        shown = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(
            f"how long tasks of these key prefixes take is not known: {shown}. "
            f"Give seconds={{{unknown[0]!r}: ...}}, or a cluster that has run some"
        )
    names = [prefixes.names[number] for number in prefixes.of_each()[: len(graph)]]
    tasks = {
        # What is there already takes no time, and is read from the tier like any other value.
        task: SimTask(0.0 if task in graph.externals else float(durations[name]), int(sizes.get(name) or SMALL_BYTES))
        for task, name in enumerate(names)
    }
    # Which class of Lambda a task needs is not simulated: all are as large as asked for.
    plain = replace(graph, classes={}, externals=frozenset())
    job = SimJob("j1", plain, tasks, {f"j1-{task}": task for task in graph.visible}, prefixes=prefixes)
    options = ours(executors, shards)
    policy = replace(options.policy, kept_bytes_max=memory_bytes // 4)
    workload = experienced(Workload([job]))
    return calculator.predict(workload, replace(options, policy=policy), memory_bytes, seed=seed)


def _is_there(cluster: Any) -> Callable[[Hashable], bool]:
    """Tell what needs not be computed: values that the cluster has."""
    return (lambda key: False) if cluster is None else cluster.has


def _check(what: str, value: Mapping[str, float] | float | None) -> None:
    if value is None:
        return
    for name, each in value.items() if isinstance(value, Mapping) else [("", value)]:
        if not isinstance(each, int | float) or isinstance(each, bool) or not 0 <= each < float("inf"):
            where = f" of {name!r}" if name else ""
            raise ValueError(f"{what}={each!r}{where} is no number of at least 0")


def _values(
    given: Mapping[str, float] | float | None, names: list[str], learned: Mapping[str, float]
) -> dict[str, float]:
    """Return what is known of each prefix: what is given goes first."""
    if isinstance(given, Mapping):
        if strange := [name for name in given if name not in names]:
            raise ValueError(f"there are no tasks of key prefix {strange[0]!r}, but of these: {', '.join(names)}")
        return {**learned, **given}
    return dict(learned) if given is None else dict.fromkeys(names, given)
