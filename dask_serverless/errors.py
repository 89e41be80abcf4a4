"""The errors that this package raises, for who wants to catch them.

Whose fault each is says its family: `TaskError` (the task or its value), `PlatformError` (Lambda, the
storage tier), `ProtocolError` (this package: please report it); or it was the limit that you have set
(`BudgetExceeded`). What a task itself raises travels unchanged.

>>> issubclass(StoreFull, PlatformError), issubclass(UnpicklableResult, (TaskError, TypeError))
(True, True)
"""

from __future__ import annotations

from dask_serverless.killed import ExecutorKilled
from lambda_worker.core.errors import (
    BadAnnotation,
    BudgetExceeded,
    ClusterInUse,
    CredentialsRefused,
    DeploymentRefused,
    EnvironmentMismatch,
    ExecutorLost,
    GraphError,
    InvocationRefused,
    MissingModule,
    PlatformError,
    ProtocolError,
    RemovalUnfinished,
    ServerlessError,
    StoreFull,
    StoreUnavailable,
    Tampered,
    TaskError,
    UnpicklableResult,
    UnpicklableTask,
    ValueLost,
    ValueTooLarge,
)

__all__ = [
    "BadAnnotation",
    "BudgetExceeded",
    "ClusterInUse",
    "CredentialsRefused",
    "DeploymentRefused",
    "EnvironmentMismatch",
    "ExecutorKilled",
    "ExecutorLost",
    "GraphError",
    "InvocationRefused",
    "MissingModule",
    "PlatformError",
    "ProtocolError",
    "RemovalUnfinished",
    "ServerlessError",
    "StoreFull",
    "StoreUnavailable",
    "Tampered",
    "TaskError",
    "UnpicklableResult",
    "UnpicklableTask",
    "ValueLost",
    "ValueTooLarge",
]
