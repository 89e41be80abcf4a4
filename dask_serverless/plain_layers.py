"""Graphs of delayed tasks, read without a detour.

Each delayed call is a layer of its own. Dask's optimizer for them only culls, layer by layer, into as many new layers:
for small tasks that costs more than everything else that is done with the graph before it runs. What it
would leave out is left out by key here (`dask_graph.materialise`), and layers are read as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import dask
from dask._expr import Expr, HLGExpr, _HLGExprGroup, _HLGExprSequence
from dask.delayed import optimize
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer


def read_plain_layers(expr: Expr) -> tuple[dict[Any, Any], dict[str, dict[Any, Any]]] | None:
    """Return the tasks and the annotations by type of a graph that only its optimizer's culling would change.

    None if it is any other graph: of other layers than materialised ones, or to be optimized otherwise.

    Examples
    --------
    >>> from dask.base import collections_to_expr
    >>> total = dask.delayed(sum)([dask.delayed(abs)(-1, dask_key_name="a")], dask_key_name="b")
    >>> tasks, annotations = read_plain_layers(collections_to_expr(total))
    >>> sorted(tasks), annotations
    (['a', 'b'], {})
    """
    parts = expr.operands if type(expr) is _HLGExprSequence else [expr]
    layers: dict[str, Any] = {}
    for part in parts:
        if type(part) not in (HLGExpr, _HLGExprGroup) or not isinstance(part.hlg, HighLevelGraph):
            return None
        optimizer = part.operand("low_level_optimizer")
        only_culls = optimizer is optimize and not dask.config.get("optimization.fuse.delayed")
        if not only_culls or any(type(layer) is not MaterializedLayer for layer in part.hlg.layers.values()):
            return None
        layers.update(part.hlg.layers)
    tasks: dict[Any, Any] = {}
    annotations_by_type: defaultdict[str, dict[Any, Any]] = defaultdict(dict)
    for layer in layers.values():
        mapping: Mapping[Any, Any] = layer.mapping
        tasks.update(mapping)
        for name, value in (layer.annotations or {}).items():
            annotations_by_type[name].update((key, value(key) if callable(value) else value) for key in mapping)
    return tasks, dict(annotations_by_type)
