"""Dask graphs executed by Lambda functions that schedule among themselves.

>>> from distributed import Client
>>> from dask_serverless import ServerlessCluster
>>> client = Client(ServerlessCluster())  # doctest: +SKIP

Importing this package checks the support window (`dask_serverless._compatibility`) and loads the
configuration defaults; the cluster itself is imported when it is first named, so that the pure
floors (`dask_serverless.plan`, `dask_serverless.jobs`) can be used without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dask_serverless import _compatibility

_compatibility.check_support_window()

from dask_serverless import config as config  # noqa: E402  (after the window was checked)
from dask_serverless._version import __version__  # noqa: E402

if TYPE_CHECKING:
    from dask_serverless.cluster import ServerlessCluster
    from dask_serverless.explaining import explain
    from dask_serverless.predicting import predict

__all__ = ["ServerlessCluster", "__version__", "explain", "predict"]


def __getattr__(name: str) -> Any:
    if name == "ServerlessCluster":
        from dask_serverless.cluster import ServerlessCluster

        return ServerlessCluster
    if name == "explain":
        from dask_serverless.explaining import explain

        return explain
    if name == "predict":
        from dask_serverless.predicting import predict

        return predict
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
