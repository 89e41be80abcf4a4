"""Every failure this product reports, named by whose fault it is and what to do.

Three families: the user's task (the user's own exception travels unchanged, so it has no class
here, only the ways in which a task cannot be run at all), the platform (Lambda, the storage tier),
and us (:class:`ProtocolError`: a promise of this package was broken; please report it). Beside them is
the limit that the user has set (:class:`BudgetExceeded`).
"""

from __future__ import annotations


class ServerlessError(RuntimeError):
    """Base of every error that dask-serverless itself raises."""


class TaskError(ServerlessError):
    """The user's task or its value cannot be handled; the message names the task."""


class UnpicklableTask(TaskError):
    """A task cannot be pickled, so no executor could ever receive it."""


class UnpicklableResult(TaskError, TypeError):
    """A task's result cannot be pickled, so it cannot leave its executor."""


class ValueTooLarge(TaskError):
    """A value is larger than ``serverless.storage.object-bytes-max``."""


class MissingModule(TaskError, ModuleNotFoundError):
    """A task needs a module that the executors' environment does not have."""

    def __init__(self, message: str, name: str | None = None) -> None:
        ImportError.__init__(self, message, name=name)


class BadAnnotation(TaskError, ValueError):
    """An annotation asks for something that no function of this cluster has, or for nothing sensible."""


class GraphError(TaskError):
    """The submitted graph is not a graph of tasks (for example, it has a cycle)."""


class PlatformError(ServerlessError):
    """Lambda or the storage tier failed; the user's code is not to blame."""


class ExecutorLost(PlatformError):
    """A Lambda died (killed, crashed, out of memory, timed out) while it ran a task."""


class InvocationRefused(PlatformError):
    """Lambda would not accept an invocation (permission, missing function, payload size)."""


class CredentialsRefused(InvocationRefused):
    """The AWS credentials have ended or are not accepted, and no new ones were to be had."""


class DeploymentRefused(PlatformError):
    """AWS does not let a deployment be looked at or changed, or that would touch what is another's."""


class RemovalUnfinished(PlatformError):
    """A deployment could not be removed within the time that there was; what is left is named."""


class BudgetExceeded(ServerlessError):
    """The cluster has spent what it may, or a job has run its tasks too often: nothing more is started for it."""


class EnvironmentMismatch(PlatformError):
    """An executor's Python or cloudpickle cannot read what the cluster's has pickled."""


class ClusterInUse(PlatformError):
    """A persistent cluster of this name belongs to a process that lives."""


class StoreUnavailable(PlatformError):
    """The storage tier cannot be reached or has failed."""


class StoreForgot(StoreUnavailable):
    """The metadata server of the storage tier has died, or been emptied: nobody knows any more which tasks are done."""


class StoreFull(PlatformError):
    """The storage tier has no room left for a value."""


class ValueLost(PlatformError):
    """A stored value is no longer there (or what is there is not what was written)."""


class WritingsLost(ValueLost):
    """What tasks have written for others beside their values (slices of a shuffle) is no longer there."""


class Tampered(PlatformError):
    """Bytes do not carry the tag of this cluster's secret: they were not decoded."""


class ProtocolError(ServerlessError):
    """A promise inside dask-serverless was broken. This is our bug: please report it."""
