"""The service side of the storage tier: the servers themselves.

`local` runs real Redis or Valkey servers on this machine, for ``ServerlessCluster()`` and for tests: one for
metadata, some for objects, on unix sockets only the owner may enter, gone when their owner is gone. In AWS the same
servers run as Fargate tasks; the client side does not know the difference.
"""

from fargate_storage.service.local import Keep, LocalTier, ServerFailed, ServerNotFound, find_server

__all__ = ["Keep", "LocalTier", "ServerFailed", "ServerNotFound", "find_server"]
