"""What the drivers of one sandbox share, from one invocation to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lambda_worker.beside import Beside
from lambda_worker.cache import Cache
from lambda_worker.compression import Compressor
from lambda_worker.constants import Constants
from lambda_worker.core.policy import Policy
from lambda_worker.core.speed import Speed
from lambda_worker.core.wire import Frame, Frames, Location, Ref, open_frames, unpack_inline
from lambda_worker.headroom import Headroom, cache_bytes_max
from lambda_worker.last_words import LastWords
from lambda_worker.ports import Clock, Invoker, Store
from lambda_worker.values import frames_to_value
from lambda_worker.wardrobe import Wardrobe

if TYPE_CHECKING:
    from lambda_worker.dask_context import TaskWorker

#: Of a sandbox, unless something else is said.
MEMORY_BYTES = 2 * 2**30


@dataclass
class World:
    """What the drivers of one sandbox share: the ports, the secret and the numbers."""

    store: Store
    invoker: Invoker
    secret: bytes
    policy: Policy
    clock: Clock
    beside: Beside
    wall_offset: float = 0.0  # add to `clock` for the time of day, as Dask's task stream wants it
    lease_seconds: float = 15.0
    linger_seconds: float = 0.0
    payload_bytes_max: int = 256 * 1024
    last_words: LastWords | None = None
    name: str = ""  # of the sandbox
    worker: TaskWorker | None = None  # what Dask code finds in this sandbox, once a task has run in it
    wardrobe: Wardrobe | None = None
    # For tasks that are clients, see `lambda_worker.dask_context.TaskWorker`. Has a private key.
    tls: Mapping[str, Any] | None = field(default=None, repr=False)
    memory_bytes: int = MEMORY_BYTES
    caches: bool = True
    counted: dict[str, int] = field(default_factory=dict)
    types: dict[type, tuple[bytes, str]] = field(default_factory=dict)
    cache: Cache = field(init=False)
    headroom: Headroom = field(init=False)
    constants: Constants = field(init=False)
    compressor: Compressor = field(init=False)
    speed: Speed = field(init=False)

    def __post_init__(self) -> None:
        self.speed = Speed(2 * self.policy.bytes_per_second)  # that is there and back
        self.compressor = Compressor(self.policy, self.clock, self.speed)
        self.cache = Cache(cache_bytes_max(self.memory_bytes) if self.caches else 0)
        self.headroom = Headroom(self.cache, self.memory_bytes)
        self.constants = Constants(self.store, self.secret, self.cache)

    def task_worker(self, scheduler: str, name: str) -> TaskWorker:
        """Return the Dask worker that stands for this sandbox; it is made once."""
        if self.worker is None or self.worker.scheduler.address != scheduler:
            from lambda_worker.dask_context import TaskWorker  # Dask, which a Lambda loads for its first task only

            self.worker = TaskWorker(scheduler, self.name or name, self.tls)
            self.worker.wardrobe = self.wardrobe = Wardrobe(self.store, self.secret, self.worker)
        return self.worker

    def put(self, objects: Sequence[tuple[str, Frames]]) -> list[Ref]:
        """Store values, and note how fast that went."""
        began = self.clock()
        refs = self.store.put(objects)
        self.speed.moved(sum(ref.nbytes for ref in refs), self.clock() - began)
        return refs

    def get(self, refs: Sequence[Ref]) -> list[list[Frame]]:
        """Read stored values, and note how fast that went."""
        began = self.clock()
        found = self.store.get(refs)
        self.speed.moved(sum(ref.nbytes for ref in refs), self.clock() - began)
        return found

    def open_location(self, location: Location) -> Any:
        """Read one value, wherever it is."""
        if isinstance(location, Ref):
            return self.open_value(location.name, self.get([location])[0])
        return self.open_value(*unpack_inline(location))

    def open_value(self, name: str, sealed: Sequence[Frame]) -> Any:
        """Check and decode the sealed frames of a value."""
        return frames_to_value(open_frames(self.secret, name, sealed))
