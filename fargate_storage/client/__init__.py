"""The client side of the storage tier; lean, because every Lambda imports it.

Start reading in `redis_store` (the promises of `lambda_worker.ports`, kept with Redis), then `arrive.lua` (the one
step that recovery rests on). `keys` alone knows key names, `endpoint` alone speaks to a server.
"""

from fargate_storage.client.config import StoreConfig
from fargate_storage.client.redis_store import RedisStore

__all__ = ["RedisStore", "StoreConfig"]
