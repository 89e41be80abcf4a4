"""The key prefixes of a planned graph, as Dask splits keys."""

from __future__ import annotations

from dask.utils import key_split

from dask_serverless.dask_graph import JobPlan
from dask_serverless.plan.prefixes import Prefixes, number_prefixes


def prefixes_of(plan: JobPlan) -> Prefixes:
    """Number the key prefixes of a plan.

    Examples
    --------
    >>> from dask_serverless.dask_graph import plan_call
    >>> prefixes_of(plan_call("three-1", max, 1, 3)).names
    ['three']
    """
    return number_prefixes(plan.keys, key_split, plan.graph.externals)
