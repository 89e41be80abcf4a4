"""Import this where a process is about to be copied: the local zygote, SnapStart in AWS.

Importing it loads what an executor needs only later (the AWS client's service model, Dask's size
estimates, error formatting), so that every copy has it already. It opens no socket and leaves no
thread behind. `lambda_worker.handler` does not import it: a plain cold start is billed.
"""

from __future__ import annotations

import dask.sizeof  # noqa: F401
import distributed.core  # noqa: F401
import distributed.protocol.pickle  # noqa: F401

import lambda_worker.dask_context
import lambda_worker.shuffle  # noqa: F401
from lambda_worker.invoker import preload

preload()
