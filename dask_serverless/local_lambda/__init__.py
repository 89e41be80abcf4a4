"""An embedded AWS Lambda: the real Invoke and Runtime APIs and an on-failure queue, without an account or Docker.

    with LocalLambda(FunctionConfig(handler="module.function")) as service:
        client = boto3.client("lambda", endpoint_url=service.endpoint_url, ...)

Where to start reading: `pool` (pure: what happens to sandboxes and invocations), then `service` (which
carries it out), then `zygote` and `sandbox` (where the functions run). Processes:

    owner (user's) ──stdin, stdout──▶ service ──socket pair──▶ zygote ──fork──▶ sandbox, sandbox, ...
                                         ▲────────── HTTP, Runtime API ──────────────┘

Each ends with the one to its left, however that ends. What is missing of AWS: isolation (a sandbox is a
process of the same user, on the same files), freezing between invocations, retries of asynchronous
invocations (as with MaximumRetryAttempts=0), and queueing of throttled ones (they are refused with 429).
"""

from dask_serverless.local_lambda.config import FunctionConfig, LocalLambdaError
from dask_serverless.local_lambda.manager import LocalLambda

__all__ = ["FunctionConfig", "LocalLambda", "LocalLambdaError"]
