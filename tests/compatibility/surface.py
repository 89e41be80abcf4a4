"""The public face of `distributed`, and what of it a program is about.

`names` is what `docs/compatibility.md` has a row for: everything in ``distributed.__all__``, and every public method
of the classes that a program holds in its hands. `covered` reads a program's source: ``client.submit(...)`` is about
``Client.submit``, and about ``Future.result`` if that is asked of what it returned. What a source cannot show, as the
methods of an object inside a list, the program says itself (``covers=``).
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from typing import Any

import distributed
from distributed.cfexecutor import ClientExecutor
from distributed.diagnostics import MemorySampler

from tests.compatibility.programs import Program

#: Classes whose methods have rows of their own.
CLASSES: dict[str, type] = {
    "Client": distributed.Client,
    "Future": distributed.Future,
    "as_completed": distributed.as_completed,
    "LocalCluster": distributed.LocalCluster,
    "Adaptive": distributed.Adaptive,
    "Actor": distributed.Actor,
    "ActorFuture": distributed.ActorFuture,
    "Variable": distributed.Variable,
    "Queue": distributed.Queue,
    "Lock": distributed.Lock,
    "MultiLock": distributed.MultiLock,
    "Semaphore": distributed.Semaphore,
    "Event": distributed.Event,
    "ClientExecutor": ClientExecutor,
    "SchedulerPlugin": distributed.SchedulerPlugin,
    "WorkerPlugin": distributed.WorkerPlugin,
    "NannyPlugin": distributed.NannyPlugin,
    "MemorySampler": MemorySampler,
    "Security": distributed.Security,
}

#: Attributes that only instances have.
OF_INSTANCES = (
    "Client.cluster",
    "Client.datasets",
    "Client.futures",
    "Client.id",
    "Client.recreate_error_locally",
    "Client.recreate_task_locally",
    "Client.status",
    "LocalCluster.scheduler",
    "LocalCluster.scheduler_info",
    "LocalCluster.status",
    "LocalCluster.workers",
)

#: Public by their spelling alone: Dask's own machinery, and what a class has from another row.
MACHINERY = {
    "Actor": {"client", "key", "substitute"},
    "Client": {"loop", "normalize_collection", "start"},
    "Event": {"client"},
    "Future": {"bind_client", "client", "executor", "substitute"},
    "NannyPlugin": {"idempotent"},
    "LocalCluster": {"called_from_running_loop", "loop", "new_worker_spec"},
    "Lock": {"asynchronous", "loop", "register", "scheduler", "sync"},
    "Queue": {"client"},
    "Security": set(dir(distributed.Security)) - {"temporary", "require_encryption"},
    "Semaphore": {"asynchronous", "loop", "register", "scheduler", "sync"},
    "Variable": {"client"},
    "as_completed": {"condition"},
}
MACHINERY["Adaptive"] = set(dir(distributed.Adaptive)) - {"stop", "maximum", "minimum"}

#: What a call returns, where programs go on with it.
RETURNS = {
    "Client.compute": "Future",
    "Client.current": "Client",
    "Client.get_executor": "ClientExecutor",
    "Client.scatter": "Future",
    "Client.submit": "Future",
    "LocalCluster.adapt": "Adaptive",
    "LocalCluster.get_client": "Client",
    "default_client": "Client",
    "get_client": "Client",
    "worker_client": "Client",
}

#: What stands beside a cluster and never meets it: these are Dask's own, and nothing here touches them.
BESIDE = {
    "CompatibleExecutor": "another name of `Client`",
    "Nanny": "starts processes of a `LocalCluster`; beside this cluster it runs ordinary Dask workers",
    "SSHCluster": "another cluster",
    "Scheduler": "Dask's own, unmodified; the cluster runs one",
    "SpecCluster": "another cluster",
    "Status": "an enumeration",
    "SubprocessCluster": "another cluster",
    "config": "Dask's configuration, a dictionary",
    "dask": "a module",
    "widgets": "a module: templates of `_repr_html_`",
}


@cache
def names() -> tuple[str, ...]:
    """Return every name that has a row, in the order of the table."""
    methods = {
        f"{kind}.{name}"
        for kind, cls in CLASSES.items()
        for name in dir(cls)
        if not name.startswith("_") and name not in MACHINERY.get(kind, ())
    }
    methods.update(OF_INSTANCES)
    top = set(distributed.__all__) | set(CLASSES)
    return tuple(sorted(top | methods, key=lambda name: (name.partition(".")[0].lower(), name.lower())))


@cache
def covered(program: Program) -> frozenset[str]:
    """Return the names that a program proves something about."""
    if program.differs or program.unsupported:
        return frozenset(program.covers)
    return frozenset(program.covers) | {name for name in mentioned(program.function) if name in names()}


def mentioned(function: Any) -> set[str]:
    """Return the public names that the source of a function mentions, as far as its variables have plain types."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return _Reader({**_imports(function), "client": "Client", "cluster": "LocalCluster"}).read(tree)


def _imports(function: Any) -> dict[str, str]:
    """Return the names in a function's module that are classes and functions of `distributed`."""
    return {
        local: f"={public}"
        for public in sorted({*distributed.__all__, *CLASSES} - set(BESIDE))
        for local, value in function.__globals__.items()
        if value is (getattr(distributed, public, None) or CLASSES.get(public)) and not inspect.ismodule(value)
    }


class _Reader(ast.NodeVisitor):
    """Reads a source once, keeping the type of each variable: ``Client``, or ``=Client`` for the class itself."""

    def __init__(self, types: dict[str, str]):
        self.types = types
        self.found: set[str] = set()

    def read(self, tree: ast.AST) -> set[str]:
        self.visit(tree)
        return self.found

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module and node.module.split(".")[0] in ("distributed", "dask"):
            for alias in node.names:
                if alias.name in distributed.__all__ or alias.name in CLASSES:
                    self.types[alias.asname or alias.name] = f"={alias.name}"

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self._bind(target, node.value)

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            self.visit(item.context_expr)
            if item.optional_vars is not None:
                self._bind(item.optional_vars, item.context_expr)
        for statement in node.body:
            self.visit(statement)

    visit_AsyncWith = visit_With

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            self.visit(base)
            kind = self._type(base)
            if kind.startswith("="):
                defined = (each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
                self.found.update(f"{kind[1:]}.{each.name}" for each in defined)
        for statement in node.body:
            self.visit(statement)

    def visit_Name(self, node: ast.Name) -> None:
        if self.types.get(node.id, "").startswith("="):
            self.found.add(self.types[node.id][1:])

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.visit(node.value)
        if kind := self._type(node.value):
            self.found.add(f"{kind.removeprefix('=')}.{node.attr}")

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for each, its in zip(target.elts, value.elts, strict=True):
                self._bind(each, its)
        elif isinstance(target, ast.Name):
            self.types[target.id] = self._type(value)

    def _type(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return self.types.get(node.id, "")
        if isinstance(node, ast.Await):
            return self._type(node.value)
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                kind = self._type(node.func.value).removeprefix("=")
                return RETURNS.get(f"{kind}.{node.func.attr}", "") if kind else ""
            called = self._type(node.func)
            if called.startswith("="):
                return RETURNS.get(called[1:], called[1:])
        return ""
