"""Configuration: the defaults of `serverless.yaml` under Dask's own rules, checked once, early.

Precedence: keyword argument, then ``DASK_SERVERLESS__...`` environment variable (or
`dask.config.set`), then the user's YAML files, then the packaged defaults. `Settings.load` is the
only reader: what it returns has units resolved and has been checked, so no later code parses or
doubts a value.
"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import dask.config
import dask.system
import yaml
from dask.utils import format_bytes, format_time, parse_bytes, parse_timedelta

from dask_serverless.plan.classes import FunctionClass, make_classes
from dask_serverless.plan.price import Prices

DEFAULTS_FILE = Path(__file__).with_name("serverless.yaml")
SCHEMA_FILE = Path(__file__).with_name("serverless-schema.yaml")

MiB = 2**20
#: AWS's own limits (Lambda quotas): beyond them a deployed function would be refused, so the local
#: service must not allow more either.
LAMBDA_MEMORY_BYTES_MIN, LAMBDA_MEMORY_BYTES_MAX = 128 * MiB, 10_240 * MiB
LAMBDA_TIMEOUT_SECONDS_MAX = 900.0
EXECUTOR_THREADS_MAX = 64
LAMBDA_EVENT_BYTES_MAX = 1_000_000
#: More of them are a slip: each is a process of some 100 MiB.
DASK_WORKERS_MAX = 256
#: Below this an executor that is merely slow (garbage collection, a page fault storm) looks dead.
LEASE_SECONDS_MIN = 1.0
#: What a cluster uses is renewed in time: the mark in the metadata server, say, whenever `listen` returns. With less
#: than this, a pause of the proxy looks as if the servers had forgotten everything.
STORAGE_TTL_SECONDS_MIN = 10.0
#: Waiting is paid for: beyond this, invocations are cheaper.
LINGER_SECONDS_MAX = 2.0
#: Room in a payload beside one inlined value: the edges of a segment, names, tags.
PAYLOAD_BYTES_MIN = 16 * 2**10

with DEFAULTS_FILE.open() as _file:
    DEFAULTS: Mapping[str, Any] = yaml.safe_load(_file)

dask.config.ensure_file(source=str(DEFAULTS_FILE))  # a commented copy for the user to edit
dask.config.update_defaults(DEFAULTS)


class _Refused(Exception):
    """Says what a value should have been."""


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _Refused("a whole number, 1 or more")
    return value


def _count_or_none(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= DASK_WORKERS_MAX:
        raise _Refused(f"a whole number from 0 to {DASK_WORKERS_MAX}")
    return value


def _bytes(smallest: int, largest: int | None = None) -> Callable[[Any], int]:
    wanted = f"a size like '2 GiB', at least {format_bytes(smallest)}"
    if largest is not None:
        wanted = f"a size like '2 GiB', from {format_bytes(smallest)} to {format_bytes(largest)}"

    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise _Refused(wanted)
        try:
            size = parse_bytes(value)
        except ValueError:
            raise _Refused(wanted) from None
        if size < smallest or (largest is not None and size > largest):
            raise _Refused(f"{wanted} (a number without a unit counts bytes)")
        return size

    return parse


def _seconds(smallest: float, largest: float | None = None) -> Callable[[Any], float]:
    wanted = f"a duration like '15 s', at least {format_time(smallest)}"
    if largest is not None:
        wanted = f"a duration like '15 s', from {format_time(smallest)} to {format_time(largest)}"

    def parse(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str | timedelta):
            raise _Refused(wanted)
        try:
            duration = float(parse_timedelta(value))
        except (KeyError, ValueError):
            raise _Refused(wanted) from None
        # Written so that a NaN is refused as well.
        if not (smallest <= duration and (largest is None or duration <= largest)):
            raise _Refused(wanted)
        return duration

    return parse


def _memory_classes(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    memory = _bytes(LAMBDA_MEMORY_BYTES_MIN, LAMBDA_MEMORY_BYTES_MAX)
    if isinstance(value, str) or not isinstance(value, list | tuple):
        raise _Refused("a list of sizes like ['4 GiB', '8 GiB']")
    try:
        sizes = tuple(map(memory, value))
    except _Refused as refused:
        raise _Refused(f"a list, each of it {refused}") from None
    if any(later // MiB <= size // MiB for size, later in zip(sizes, sizes[1:], strict=False)):
        raise _Refused("a list of sizes in ascending order")
    return sizes


def _price(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise _Refused("a price in USD, 0 or more")
    return float(value)


def _budget(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise _Refused("an amount in USD above 0, or null")
    return float(value)


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value or any(part.isspace() for part in value):
        raise _Refused("a name without spaces")
    return value


def _modules(value: Any) -> tuple[str, ...]:
    wanted = "a list of module names"
    if isinstance(value, str) or not isinstance(value, list | tuple):
        raise _Refused(wanted)
    for module in value:
        if not isinstance(module, str) or not all(part.isidentifier() for part in module.split(".")):
            raise _Refused(wanted)
    return tuple(value)


def _server(value: Any) -> str | None:
    if value is None:
        return None
    path = os.path.expanduser(os.fspath(value)) if isinstance(value, str | os.PathLike) else ""
    if not (os.path.isfile(path) and os.access(path, os.X_OK)):
        raise _Refused("the path of a redis-server or valkey-server that can be executed")
    return path


def _directory(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike) or not os.path.isabs(os.path.expanduser(value)):
        raise _Refused("the absolute path of a directory")
    return os.path.expanduser(os.fspath(value))


def _own_directory(value: Any) -> str | None:
    path = _directory(value)
    if path is not None:
        there = path
        while not os.path.exists(there) and there != os.path.dirname(there):
            there = os.path.dirname(there)
        if not (os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)):
            raise _Refused(f"the absolute path of a directory that can be made and written to, which {there} cannot")
    return path


def _workers_count(value: Any) -> int:
    return dask.system.CPU_COUNT if value is None else _count(value)


def _storage_memory(value: Any) -> int:
    if value is None:
        from distributed.system import MEMORY_LIMIT  # knows containers' limits too

        return MEMORY_LIMIT // 4
    return _bytes(16 * MiB)(value)


def _overflow_max(value: Any) -> int | None:
    return None if value is None else _bytes(MiB)(value)


def _allowed_failures(value: Any) -> int:
    return _whole(dask.config.get("distributed.scheduler.allowed-failures") if value is None else value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _Refused("a whole number, 0 or more")
    return value


def _threads(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= EXECUTOR_THREADS_MAX:
        raise _Refused(f"a whole number between 1 and {EXECUTOR_THREADS_MAX}")
    return value


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Refused("true or false")
    return value


def _dask_worker_memory(value: Any) -> int | None:
    return None if value is None else _bytes(64 * MiB)(value)


def _setting(key: str, parse: Callable[[Any], Any]) -> Any:
    return field(metadata={"key": f"serverless.{key}", "parse": parse})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a cluster was told, checked, with units resolved (bytes, seconds, USD).

    Make one with `Settings.load`; each field is one key of ``serverless.yaml``, where its meaning
    is written.

    Examples
    --------
    >>> settings = Settings.load(workers_count=4, lambda_memory="1 GiB")
    >>> settings.workers_count, settings.lambda_memory
    (4, 1073741824)
    >>> Settings.load(workers_count=0)
    Traceback (most recent call last):
    ...
    ValueError: serverless.workers.count is 0, but must be a whole number, 1 or more
    """

    workers_count: int = _setting("workers.count", _workers_count)
    lambda_function_name: str = _setting("lambda.function-name", _name)
    lambda_memory: int = _setting("lambda.memory", _bytes(LAMBDA_MEMORY_BYTES_MIN, LAMBDA_MEMORY_BYTES_MAX))
    lambda_timeout: float = _setting("lambda.timeout", _seconds(1.0, LAMBDA_TIMEOUT_SECONDS_MAX))
    lambda_memory_classes: tuple[int, ...] = _setting("lambda.memory-classes", _memory_classes)
    lambda_classes_timeout: float = _setting("lambda.classes-timeout", _seconds(1.0, LAMBDA_TIMEOUT_SECONDS_MAX))
    lambda_preload: tuple[str, ...] = _setting("lambda.preload", _modules)
    lambda_price_gb_second: float = _setting("lambda.price-gb-second", _price)
    lambda_price_request: float = _setting("lambda.price-request", _price)
    storage_server: str | None = _setting("storage.server", _server)
    storage_shards: int = _setting("storage.shards", _count)
    storage_max_memory: int = _setting("storage.max-memory", _storage_memory)
    storage_metadata_max_memory: int = _setting("storage.metadata-max-memory", _bytes(8 * MiB))
    storage_object_bytes_max: int = _setting("storage.object-bytes-max", _bytes(1))
    storage_overflow: bool = _setting("storage.overflow", _switch)
    storage_overflow_directory: str | None = _setting("storage.overflow-directory", _own_directory)
    storage_overflow_max: int | None = _setting("storage.overflow-max", _overflow_max)
    storage_bytes_per_second: int = _setting("storage.bytes-per-second", _bytes(1))
    storage_shard_bytes_per_second: int = _setting("storage.shard-bytes-per-second", _bytes(1))
    storage_ttl: float = _setting("storage.ttl", _seconds(STORAGE_TTL_SECONDS_MIN))
    storage_patience: float = _setting("storage.patience", _seconds(1.0))
    storage_allowed_failures: int = _setting("storage.allowed-failures", _whole)
    executor_inline_bytes_max: int = _setting("executor.inline-bytes-max", _bytes(0))
    executor_payload_bytes_max: int = _setting(
        "executor.payload-bytes-max", _bytes(PAYLOAD_BYTES_MIN, LAMBDA_EVENT_BYTES_MAX)
    )
    executor_lease: float = _setting("executor.lease", _seconds(LEASE_SECONDS_MIN))
    executor_linger: float = _setting("executor.linger", _seconds(0.0, LINGER_SECONDS_MAX))
    executor_threads: int = _setting("executor.threads", _threads)
    allowed_failures: int = _setting("executor.allowed-failures", _allowed_failures)
    budget_dollars: float | None = _setting("budget.dollars", _budget)
    budget_executions_per_task: int = _setting("budget.executions-per-task", _count)
    policy_hold: bool = _setting("policy.hold", _switch)
    policy_group: bool = _setting("policy.group", _switch)
    policy_split: bool = _setting("policy.split", _switch)
    policy_cache: bool = _setting("policy.cache", _switch)
    policy_prefetch: bool = _setting("policy.prefetch", _switch)
    policy_compress: bool = _setting("policy.compress", _switch)
    policy_inline: bool = _setting("policy.inline", _switch)
    policy_locality: bool = _setting("policy.locality", _switch)
    policy_speculation: bool = _setting("policy.speculation", _switch)
    dask_workers_count: int = _setting("dask-workers.count", _count_or_none)
    dask_workers_threads: int = _setting("dask-workers.threads", _count)
    dask_workers_memory: int | None = _setting("dask-workers.memory", _dask_worker_memory)

    client_grace: float = _setting("client-grace", _seconds(0.0))

    persistent_timeout: float = _setting("persistent.timeout", _seconds(1.0))
    persistent_directory: str | None = _setting("persistent.directory", _directory)

    @property
    def request_gb_seconds(self) -> float:
        """How many gigabyte-seconds of Lambda cost as much as a request.

        Examples
        --------
        >>> round(Settings.load().request_gb_seconds, 4)
        0.012
        """
        return self.lambda_price_request / self.lambda_price_gb_second if self.lambda_price_gb_second else 0.0

    @property
    def function_classes(self) -> tuple[FunctionClass, ...]:
        """The functions that this cluster has, the default one first, in ascending order.

        Examples
        --------
        >>> [each.memory_bytes // MiB for each in Settings.load(lambda_memory="4 GiB").function_classes]
        [4096, 8192, 10240]
        """
        return make_classes(
            self.lambda_function_name,
            self.lambda_memory,
            self.lambda_timeout,
            self.lambda_memory_classes,
            self.lambda_classes_timeout,
        )

    @property
    def prices(self) -> Prices:
        """What Lambda asks for."""
        return Prices(lambda_gb_second=self.lambda_price_gb_second, lambda_request=self.lambda_price_request)

    @classmethod
    def load(cls, **overrides: Any) -> Settings:
        """Read every setting from Dask's configuration, except those given here.

        Parameters
        ----------
        **overrides
            Values by field name, in any form the configuration accepts (``"2 GiB"``, ``"15 s"``,
            `datetime.timedelta`). None means: not given.

        Raises
        ------
        ValueError
            A value is not acceptable; the message names its key and the value.
        TypeError
            There is no such setting.
        """
        names = [item.name for item in fields(cls)]
        for name in overrides:
            if name not in names:
                raise TypeError(f"there is no setting {name!r}{_did_you_mean(name, names)}")
        _warn_of_unknown_keys()
        values = {}
        for item in fields(cls):
            key, parse = item.metadata["key"], item.metadata["parse"]
            value = overrides.get(item.name)
            if value is None:
                value = dask.config.get(key)
            try:
                values[item.name] = parse(value)
            except _Refused as refused:
                raise ValueError(f"{key} is {value!r}, but must be {refused}") from None
        settings = cls(**values)
        settings._check_together()
        return settings

    def _check_together(self) -> None:
        pairs = [
            ("executor_inline_bytes_max", "executor_payload_bytes_max", format_bytes),
            ("executor_lease", "storage_ttl", format_time),
        ]
        keys = {item.name: item.metadata["key"] for item in fields(self)}
        for smaller, larger, show in pairs:
            low, high = getattr(self, smaller), getattr(self, larger)
            if low > high:
                raise ValueError(
                    f"{keys[smaller]} is {show(low)}, but must not exceed {keys[larger]}, which is {show(high)}"
                )


def _did_you_mean(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        key = f"{prefix}{name.replace('_', '-')}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{key}.")
        else:
            yield key


def _warn_of_unknown_keys() -> None:
    known = list(_keys(DEFAULTS))
    for key in _keys({"serverless": dask.config.get("serverless")}):
        if key not in known:
            warnings.warn(f"unknown configuration key {key!r}{_did_you_mean(key, known)}", stacklevel=3)
