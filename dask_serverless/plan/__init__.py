"""The planner: from a graph of keys to numbers, segments and groups of start tasks.

Pure: no I/O, clock or randomness, and no Dask (`dask_serverless.dask_graph` translates). Read
`graph` (numbers), then `partition` (segments and groups), then `explain` (the same for people).
`sharing` says how large groups are, `classes` which kinds of function there are.

Rules kept here:

* Every parent has a smaller number than its children, so one pass in number order is always enough.
* The tasks that only one start key needs lie near it: a range of numbers is a piece of the graph.
* Time and memory are linear in tasks plus edges, and nothing recurses, whatever the shape.
* The same graph in the same order gives the same plan: no set decides an order.
"""

from dask_serverless.plan.classes import FunctionClass, make_classes, smallest_class
from dask_serverless.plan.explain import Explanation, explain
from dask_serverless.plan.graph import Graph, number
from dask_serverless.plan.homes import SHARED
from dask_serverless.plan.partition import Group, assign_starts, edges, owners
from dask_serverless.plan.sharing import Estimate, Sharing, worth_starting

__all__ = [
    "SHARED",
    "Estimate",
    "Explanation",
    "FunctionClass",
    "Graph",
    "Group",
    "Sharing",
    "assign_starts",
    "edges",
    "explain",
    "make_classes",
    "number",
    "owners",
    "worth_starting",
    "smallest_class",
]
