"""Where the storage tier is and how to use it, small enough for an environment variable."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from urllib.parse import urlsplit

MIB = 2**20


@dataclass(frozen=True)
class StoreConfig:
    """All that a `RedisStore` needs to know.

    Parameters
    ----------
    cluster
        Prefix of every key, so that clusters may share servers.
    metadata
        URL of the server that keeps records and fan-ins (``unix:///path``, ``redis://host:port``, ``rediss://...``).
    shards
        URLs of the servers that keep objects and segments; none: the metadata server keeps them too. Their number and
        order may not change while the cluster lives; which of them are left is in its `shard_map`.
    password
        Of all servers. Never part of a URL, so that a URL may be shown.
    ttl_seconds
        Every key is gone after this long without use.
    lease_seconds
        An executor that was silent for this long has lapsed.
    object_bytes_max
        A larger value goes to the overflow; without one it is refused with `ValueTooLarge`.
    stripe_bytes
        A larger value is cut into stripes of this size, spread over the shards.
    wait_seconds
        How long one reply (or the next part of it) may take; also the bound for connecting.
    retry_seconds
        For how long a step that met a broken connection is tried again.
    ca_file
        Certificate authority to trust with ``rediss://``; None: the system's.
    overflow
        URL of where values go that find no room (``file:///path``); None: they are refused.
    overflow_bytes_max
        Bound on all that is kept there.

    Examples
    --------
    >>> config = StoreConfig("demo", "redis://10.0.0.7:6379", password="secret")
    >>> StoreConfig.from_json(config.to_json()) == config
    True
    >>> "secret" in repr(config)
    False
    """

    cluster: str
    metadata: str
    shards: tuple[str, ...] = ()
    password: str | None = field(default=None, repr=False)
    ttl_seconds: int = 86_400
    lease_seconds: float = 15.0
    object_bytes_max: int = 10_240 * MIB
    stripe_bytes: int = 64 * MIB
    wait_seconds: float = 4.0
    retry_seconds: float = 2.0
    ca_file: str | None = None
    overflow: str | None = None
    overflow_bytes_max: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shards", tuple(self.shards))
        for url in (self.metadata, *self.shards):
            if urlsplit(url).password:
                raise ValueError("a storage URL must not contain a password: pass password=")
        # Redis wants whole, positive seconds; a stripe is one list, and Redis strings end at 512 MiB.
        if self.ttl_seconds < 1 or self.lease_seconds <= 0 or not 0 < self.stripe_bytes <= 512 * MIB:
            raise ValueError(
                "ttl_seconds, lease_seconds and stripe_bytes must be positive, stripe_bytes at most 512 MiB"
            )

    def to_json(self) -> str:
        """Encode, password included: keep it where secrets are kept."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> StoreConfig:
        """Undo `to_json`. Fields this version does not know are left out: a newer proxy may have written it."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in json.loads(text).items() if name in known})
