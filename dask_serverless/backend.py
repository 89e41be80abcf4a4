"""Where tasks run and values are kept: what the proxy is given, and the local kind of it.

`Backend` is data. `LocalBackend` owns what stands behind it on this machine: the storage servers, the
local Lambda service, and a private directory. Its methods block; the cluster calls them in threads.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dask_serverless.config import Settings
from dask_serverless.echo import Echo
from dask_serverless.invoke import FailureQueue, GovernedInvoker
from dask_serverless.local_lambda import FunctionConfig, LocalLambda, LocalLambdaError
from dask_serverless.local_lambda.config import PRELOAD, FunctionSize
from dask_serverless.rendezvous import Rendezvous
from fargate_storage.client.config import StoreConfig
from fargate_storage.client.redis_store import RedisStore
from fargate_storage.service.local import Keep, LocalTier
from lambda_worker.core.errors import PlatformError, StoreUnavailable
from lambda_worker.invoker import LambdaInvoker

logger = logging.getLogger("dask_serverless.backend")

SECRET_BYTES = 32
#: Libraries whose import takes long. What this process has of them, sandboxes get from the zygote:
#: imported once there, instead of once in each sandbox, in the middle of its first task.
HEAVY_LIBRARIES = frozenset({"dask", "dask_ml", "numba", "numpy", "pandas", "pyarrow", "scipy", "sklearn", "xarray"})
#: The local service wants signed requests, as AWS does, but does not check the signature. Named here
#: so that no real credentials of the user are looked up, or sent to it.
LOCAL_CREDENTIALS = ("dask-serverless", "dask-serverless")
LOGS_LINES = 1_000
#: Each owner of a persistent cluster numbers what it makes from a number of its own.
EPOCH_NUMBERS = 10**9
#: Settings of what runs already when a cluster is taken over.
_OF_THE_PLATFORM = ("lambda_", "storage_", "executor_", "policy_", "persistent_timeout")
#: Settings that executors' decisions take as they are.
POLICY_SWITCHES = ("hold", "group", "split", "prefetch", "compress", "locality")
_MIB = 2**20


class LambdaUnavailable(PlatformError):
    """Lambda cannot be reached or has failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """What a proxy needs of the platform.

    Parameters
    ----------
    store, store_config
        The storage tier, and what an executor needs to reach it.
    invoker
        Starts executors.
    failures
        Invocations that Lambda gave up on.
    secret
        What payloads and values are sealed with.
    ceiling
        How many executors may live at once.
    settings
        The configuration, checked.
    set_concurrency
        Tells Lambda how many executors may live at once.
    last_words_directory
        Where local executors say which task they run.
    retire
        Has Lambda use no sandbox again that has served; if told so, those that work are ended at once.
    logs
        Returns the last lines that executors printed.
    billed
        Returns what Lambda has billed this cluster until now: GB-seconds, also of what is under way, and requests.
    watch_shards
        Has something called, on any thread, with the number of each shard that has died and is back, empty, or was
        given up.
    persistent
        Whether another proxy may go on with what this one has begun.
    epoch
        How many proxies there were before this one.
    """

    store: RedisStore
    store_config: StoreConfig
    invoker: LambdaInvoker
    failures: FailureQueue
    secret: bytes = field(repr=False)
    ceiling: int
    settings: Settings
    last_words_directory: str
    set_concurrency: Callable[[int], None] = lambda places: None
    retire: Callable[[bool], None] = lambda at_once: None
    logs: Callable[[], list[str]] = list
    billed: Callable[[], tuple[float, float]] = lambda: (0.0, 0.0)
    watch_shards: Callable[[Callable[[int], None]], None] = lambda hear: None
    persistent: bool = False
    epoch: int = 0

    @property
    def numbers_from(self) -> int:
        """The first number of what this proxy names by numbers: no proxy before it has used it."""
        return 1 + self.epoch * EPOCH_NUMBERS


class LocalBackend:
    """The platform on this machine: real storage servers, a real Invoke API, no account.

    Parameters
    ----------
    name
        Prefix of every key in the store.
    ceiling
        How many executors may live at once.
    settings
        The configuration, checked.
    environment
        Variables for the user's tasks.
    local_directory
        Where the private directory is made; None: the system's place for temporary files.
    tls
        What tasks need to be clients of a scheduler with TLS.
    persistent
        Whether everything outlives this process, for another one with the same `name` to take it over.
    """

    def __init__(
        self,
        name: str,
        ceiling: int,
        settings: Settings,
        environment: Mapping[str, str] | None = None,
        local_directory: str | None = None,
        tls: Mapping[str, Any] | None = None,
        persistent: bool = False,
    ):
        self.attached = False  #: whether this took over what another process had started
        self.scheduler_address: str | None = None  #: where the scheduler of that process was
        self._rendezvous = Rendezvous(name, settings.persistent_directory) if persistent else None
        self._record: dict[str, Any] = {}
        self.name = name
        self.ceiling = ceiling
        self.settings = settings
        self.directory: str | None = None
        self.tier: LocalTier | None = None
        self.service: LocalLambda | None = None
        self.backend: Backend | None = None
        self._environment = dict(environment or {})
        self._local_directory = local_directory
        self._tls = tls
        self._echo: Echo | None = None
        self._shard_watchers: list[Callable[[int], None]] = []
        # Held during start: a close in the middle of it waits, and then finds everything.
        self._lock = threading.Lock()
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "not started" if self.backend is None else "running"
        return f"<LocalBackend {self.name!r}, {state}>"

    def start(self) -> Backend:
        """Start everything, or leave nothing.

        Raises
        ------
        PlatformError
            A part did not start; the message says which and why.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("this backend is closed")
            try:
                return self._start()
            except BaseException:
                self._close(keep=self.attached)
                raise

    def _start(self) -> Backend:
        if self._rendezvous is not None:
            self._rendezvous.claim()
            found = self._rendezvous.read()
            if found is not None and self._adopt(found):
                return self._make_backend()
            self._end_remains(self._rendezvous)
        secret = secrets.token_bytes(SECRET_BYTES)
        store_config = self._start_tier()
        self.service = LocalLambda(self._function(secret, store_config), self._keeper())
        self.service.start()
        for module, why in self.service.preload_failures.items():
            logger.info("executors could not preload %s: %s", module, why)
        self._record = {"epoch": 0, "secret": secret.hex(), "store": store_config.to_json()}
        return self._make_backend()

    def _start_tier(self) -> StoreConfig:
        settings, keep = self.settings, None
        if self._local_directory is not None:
            os.makedirs(self._local_directory, exist_ok=True)
            self.directory = tempfile.mkdtemp(prefix="dask-serverless-", dir=self._local_directory)
        if (meeting := self._rendezvous) is not None:
            leftovers = (str(meeting.path), *(() if self.directory is None else (self.directory,)))
            keep = Keep(meeting.owner_lock, meeting.keeper_lock, settings.persistent_timeout, leftovers)
        overflow = self.directory  # None: inside the tier's directory
        if settings.storage_overflow and settings.storage_overflow_directory is not None:
            os.makedirs(settings.storage_overflow_directory, exist_ok=True)
            overflow = tempfile.mkdtemp(prefix="dask-serverless-", dir=settings.storage_overflow_directory)
        self.tier = LocalTier(
            shards=settings.storage_shards,
            maxmemory_bytes=settings.storage_max_memory,
            metadata_bytes=settings.storage_metadata_max_memory,
            server=settings.storage_server,
            on_restart=self._server_restarted,
            keep=keep,
            remove=[each for each in dict.fromkeys((overflow, self.directory)) if each is not None],
        )
        self.tier.start()
        place: dict[str, Any] = {}
        if settings.storage_overflow:
            path = os.path.join(overflow or str(self.tier.directory), "overflow")
            os.mkdir(path, 0o700)
            free = shutil.disk_usage(path).free
            bytes_max = settings.storage_overflow_max
            place = {
                "overflow": Path(path).as_uri(),
                "overflow_bytes_max": free // 2 if bytes_max is None else bytes_max,
            }
        if self.directory is None:
            # Inside the tier's directory (mode 0700), which goes even if this process is killed.
            self.directory = os.path.join(str(self.tier.directory), "executors")
            os.mkdir(self.directory)
        return self.tier.config(
            cluster=self.name,
            lease_seconds=settings.executor_lease,
            object_bytes_max=settings.storage_object_bytes_max,
            ttl_seconds=round(settings.storage_ttl),
            **place,
        )

    def _keeper(self) -> int | None:
        return None if self._rendezvous is None or self.tier is None else self.tier.keeper

    def _adopt(self, record: dict[str, Any]) -> bool:
        """Take over what another process has left; tell whether all of it runs."""
        tier = LocalTier.adopt(record["tier"], self._server_restarted)
        try:
            service = LocalLambda.adopt(record["lambda"])
        except PlatformError:
            service = None
        ended = ["its Lambda service"] if service is None else _fatal(tier.names, tier.poll())
        if not ended and not _remembers(StoreConfig.from_json(record["store"])):
            # Nobody was there to write down again what it had known.
            ended = ["its metadata server (which was started again, and knows nothing)"]
        if service is None or ended:
            logger.warning(
                "the persistent cluster %r cannot be taken over, %s has ended: it begins anew, and what was under way "
                "or held is lost",
                self.name,
                ", ".join(ended),
            )
            return False
        self.tier, self.service, self.directory = tier, service, record["directory"]
        self._record = record | {"epoch": record["epoch"] + 1}
        self.scheduler_address = record["scheduler"]
        self.attached = True
        theirs = settings_from_json(record["settings"], self.settings)
        if different := [item.metadata["key"] for item in fields(theirs) if _differ(theirs, self.settings, item.name)]:
            logger.warning(
                "the persistent cluster %r runs already: it goes on with its own settings of %s",
                self.name,
                ", ".join(different),
            )
        self.settings = theirs
        assert self._rendezvous is not None
        self._rendezvous.write(self._record)  # before anything is numbered
        service.set_concurrency(self.ceiling)
        return True

    def _end_remains(self, place: Rendezvous) -> None:
        """End what cannot be taken over, so that a new cluster of this name can begin."""
        record = place.remains()
        place.begin_anew()
        tier = {} if record is None else record["tier"]
        for directory in () if record is None else (tier["directory"], record["directory"], *tier.get("remove", ())):
            shutil.rmtree(directory, ignore_errors=True)

    def note_scheduler(self, address: str) -> None:
        """Write down where the scheduler is, and all else that another process needs to take this cluster over."""
        if self._rendezvous is None or self.tier is None or self.service is None:
            return
        self._record |= {
            "scheduler": address,
            "tier": self.tier.to_json(),
            "lambda": self.service.to_json(),
            "directory": self.directory,
            "settings": asdict(self.settings),
            "executors": self.ceiling,
        }
        self._rendezvous.write(self._record)

    def _make_backend(self) -> Backend:
        settings, service, directory = self.settings, self.service, self.directory
        assert service is not None and directory is not None
        secret = bytes.fromhex(self._record["secret"])
        store_config = StoreConfig.from_json(self._record["store"])
        self._echo = Echo(os.path.join(directory, f"{settings.lambda_function_name}-{service.pid}.log"))
        if self.attached:
            self._echo.skip()
        self._echo.start()
        endpoint_url = service.endpoint_url
        region = service.function.region
        self.backend = Backend(
            # Who gave up would give up every job. Executors are less patient, because they can be replaced.
            store=RedisStore(replace(store_config, retry_seconds=settings.storage_patience)),
            store_config=store_config,
            invoker=GovernedInvoker(
                settings.lambda_function_name,
                secret,
                endpoint_url,
                region,
                credentials=LOCAL_CREDENTIALS,
                larger_functions=[each.name for each in settings.function_classes[1:]],
            ),
            failures=FailureQueue(service.failure_queue_url, endpoint_url, region, credentials=LOCAL_CREDENTIALS),
            secret=secret,
            ceiling=self.ceiling,
            settings=settings,
            last_words_directory=directory,
            set_concurrency=service.set_concurrency,
            retire=service.retire,
            logs=self.logs,
            billed=self.billed,
            watch_shards=self._shard_watchers.append,
            persistent=self._rendezvous is not None,
            epoch=self._record["epoch"],
        )
        return self.backend

    def _function(self, secret: bytes, store_config: StoreConfig) -> FunctionConfig:
        settings = self.settings
        assert self.directory is not None
        executor_settings = {
            "inline_bytes_max": settings.executor_inline_bytes_max if settings.policy_inline else -1,
            "policy": {name: getattr(settings, f"policy_{name}") for name in POLICY_SWITCHES}
            | {"threads": settings.executor_threads},
            "cache": settings.policy_cache,
            "bytes_per_second": settings.storage_bytes_per_second,
            "tier_bytes_per_second": settings.storage_shards * settings.storage_shard_bytes_per_second,
            "request_gb_seconds": settings.request_gb_seconds,
            "payload_bytes_max": settings.executor_payload_bytes_max,
            "ceiling": self.ceiling,
            "lease_seconds": settings.executor_lease,
            "linger_seconds": settings.executor_linger,
            "timeout_seconds": settings.lambda_timeout,
            "larger_functions": [each.name for each in settings.function_classes[1:]],
        }
        return FunctionConfig(
            name=settings.lambda_function_name,
            environment={
                **self._environment,
                "DASK_SERVERLESS_STORE": store_config.to_json(),
                "DASK_SERVERLESS_SECRET": secret.hex(),
                "DASK_SERVERLESS_FUNCTION": settings.lambda_function_name,
                "DASK_SERVERLESS_SETTINGS": json.dumps(executor_settings),
                "DASK_SERVERLESS_LAST_WORDS": self.directory,
                **({} if self._tls is None else {"DASK_SERVERLESS_TLS": json.dumps(self._tls)}),
            },
            memory_mb=settings.lambda_memory // _MIB,
            timeout_seconds=settings.lambda_timeout,
            larger=tuple(
                FunctionSize(each.name, each.memory_bytes // _MIB, each.timeout_seconds)
                for each in settings.function_classes[1:]
            ),
            concurrency=self.ceiling,
            preload=tuple(dict.fromkeys((*PRELOAD, *settings.lambda_preload, *heavy_modules(sys.modules)))),
            python_path=python_path(),
            argv=tuple(getattr(sys, "argv", ("",))),
            log_directory=self.directory,
        )

    def check(self) -> None:
        """Look whether everything still runs.

        Raises
        ------
        StoreUnavailable, LambdaUnavailable
            Naming what has ended.
        """
        tier, service = self.tier, self.service
        if self._closed or tier is None or service is None:
            return
        ended = tier.poll()
        fatal = _fatal(tier.names, ended)
        if ended and not fatal and self.backend is not None:
            self._give_up_shards(self.backend, [tier.names.index(name) - 1 for name in ended])
        if fatal:
            if not self._closed:
                raise StoreUnavailable(
                    f"the local storage server(s) {', '.join(fatal)} have ended: what they held is lost. "
                    "Close this cluster and start another (too little memory? see storage_max_memory)"
                )
        elif not service.is_running() and not self._closed:
            raise LambdaUnavailable(
                "the local Lambda service has ended, and all executors with it: close this cluster and start another"
            )

    def _give_up_shards(self, backend: Backend, shards: list[int]) -> None:
        """Go on without some shards that have ended for good: others have what is made again.

        Said again at each look, lest the metadata server forgets it.
        """
        known = backend.store.shard_map.gone
        backend.store.give_up_shards(shards)
        for shard in sorted(backend.store.shard_map.gone - known):
            logger.warning(
                "A storage server of this cluster (shard-%d) has ended for good. It goes on with the %d that are left, "
                "and with less memory for values; what was lost and is still needed is computed again. Too little "
                "memory? See storage_max_memory",
                shard,
                len(backend.store.shard_map.left()),
            )
            for hear in self._shard_watchers:
                hear(shard)

    def _server_restarted(self, name: str) -> None:
        """Say what the death of a storage server means, and let those know who can make it good."""
        if self._closed:
            return
        if name == "metadata":  # the proxy finds out by itself
            logger.warning(
                "The metadata server of this cluster has died and was started again, empty. What was under way begins "
                "again; values that were finished are still there. If this goes on, this machine may be out of memory"
            )
            return
        logger.warning(
            "A storage server of this cluster (%s) has died and was started again, empty. What it held and is "
            "still needed is computed again. If this goes on, it may be out of memory: see storage_max_memory",
            name,
        )
        for hear in self._shard_watchers:
            hear(int(name.removeprefix("shard-")))

    def set_ceiling(self, ceiling: int) -> None:
        """Change how many executors may live at once; the proxy tells the service."""
        self.ceiling = ceiling
        if self._rendezvous is not None and "executors" in self._record and not self._closed:
            self._record["executors"] = ceiling
            self._rendezvous.write(self._record)

    def counters(self) -> dict[str, float]:
        """Return what Lambda did, and what is in the store now."""
        if self.backend is None or self.service is None or self._closed:
            return {}
        return {**self.service.counters(), **self.backend.store.usage()}

    def billed(self) -> tuple[float, float]:
        """Return GB-seconds and requests until now.

        Raises
        ------
        LambdaUnavailable
            There is nobody who knows.
        """
        service = self.service
        try:
            counters = {} if service is None or self._closed else service.counters()
            return counters["gb_seconds"], counters["invocations"]
        except (OSError, KeyError, LocalLambdaError) as error:
            raise LambdaUnavailable(f"the local Lambda service does not tell what it has billed: {error!r}") from None

    def logs(self) -> list[str]:
        """Return the last lines that executors printed."""
        return self.service.logs(LOGS_LINES) if self.service is not None and not self._closed else []

    def close(self) -> None:
        """End every process, connection and file. May be repeated; waits for a start under way."""
        with self._lock:
            self._close()

    def detach(self) -> None:
        """Leave a persistent cluster to the next process; nothing of it ends, but for our connections."""
        with self._lock:
            self._close(keep=True)

    def _close(self, keep: bool = False) -> None:
        self._closed = True
        backend, self.backend = self.backend, None
        service, self.service = self.service, None
        tier, self.tier = self.tier, None
        directory, self.directory = self.directory, None
        echo, self._echo = self._echo, None
        ends: list[tuple[str, Callable[[], Any]]] = []
        if backend is not None:
            ends.append(("invoker", backend.invoker.close))
        # Before the storage tier: executors in the middle of a task would report a dead store.
        if service is not None and not keep:
            ends.append(("local Lambda service", service.close))
        if echo is not None:
            ends.append(("echo of what tasks print", echo.stop))
        if backend is not None:
            ends.append(("store", backend.store.close))
        if tier is not None and not keep:
            ends.append(("storage tier", tier.close))
        if self._rendezvous is not None:
            ends.append(("rendezvous", self._rendezvous.release if keep else self._rendezvous.remove))
        if directory is not None and not keep:
            ends.append(("directory", lambda: shutil.rmtree(directory, ignore_errors=True)))
        for what, end in ends:
            try:
                end()
            except Exception:  # whatever one of them does, the others are ended
                logger.exception("the %s did not close cleanly", what)


def _remembers(store_config: StoreConfig) -> bool:
    """Tell whether the metadata server still knows what a proxy before this one has told it."""
    store = RedisStore(store_config)
    try:
        return store.begin()
    finally:
        store.close()


def _fatal(names: Sequence[str], ended: Sequence[str]) -> Sequence[str]:
    """Return the servers that have ended if the cluster ends with them: the metadata server, or all of the others.

    Examples
    --------
    >>> names = ("metadata", "shard-0", "shard-1")
    >>> _fatal(names, ["shard-1"]), _fatal(names, ["shard-0", "shard-1"]), _fatal(names, ["metadata"])
    ([], ['shard-0', 'shard-1'], ['metadata'])
    """
    return ended if names[0] in ended or set(names[1:]) <= set(ended) else []


def heavy_modules(loaded: Iterable[str]) -> list[str]:
    """Return the public modules of heavy libraries among those loaded, packages first.

    Examples
    --------
    >>> heavy_modules(["sklearn.svm", "sklearn", "sklearn.svm._base", "sklearn._config", "json"])
    ['sklearn', 'sklearn.svm']
    """
    found = (name.split(".") for name in list(loaded))
    return [
        ".".join(parts)
        for parts in sorted(found)
        if len(parts) <= 2 and parts[0] in HEAVY_LIBRARIES and not parts[-1].startswith("_")
    ]


def python_path() -> tuple[str, ...]:
    """Return the places this process imports from, as absolute paths.

    So that what can be imported in a notebook can be imported in its executors.
    """
    places = (os.path.abspath(place or os.getcwd()) for place in sys.path)
    return tuple(dict.fromkeys(place for place in places if os.path.exists(place)))


def size_left(name: str) -> int | None:
    """Return how many executors the persistent cluster of that name has that is kept on this machine, whoever owns it.

    None if there is none.
    """
    directory = Settings.load().persistent_directory
    try:
        record = Rendezvous(name, directory).read()
    except ValueError:  # not a name that one could have
        return None
    return None if record is None else int(record["executors"])


def settings_from_json(record: Mapping[str, Any], own: Settings) -> Settings:
    """Return settings as they are for what runs already; the rest is this process's own affair."""
    names = [item.name for item in fields(own) if item.name.startswith(_OF_THE_PLATFORM) and item.name in record]
    values: dict[str, Any] = {
        name: tuple(record[name]) if isinstance(record[name], list) else record[name] for name in names
    }
    return replace(own, **values)


def _differ(one: Settings, other: Settings, name: str) -> bool:
    return bool(getattr(one, name) != getattr(other, name))
