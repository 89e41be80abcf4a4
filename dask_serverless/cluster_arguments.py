"""Checks of `ServerlessCluster`'s arguments. Pure, but for the warnings.

A program written for `distributed.LocalCluster` must start: names that only make sense there are
accepted with a `UserWarning` that says why they do nothing. What nobody knows is a TypeError with
the nearest name; a bad value is refused here, before any process is started.
"""

from __future__ import annotations

import difflib
import inspect
import math
import operator
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import dask
import dask.system
from dask.utils import format_time, parse_bytes
from distributed.system import MEMORY_LIMIT
from distributed.utils import clean_dashboard_address, get_ip_interface

from dask_serverless.config import DASK_WORKERS_MAX, LAMBDA_MEMORY_BYTES_MAX, Settings
from dask_serverless.rendezvous import check_name

#: Names of `LocalCluster`, `Worker` and `Nanny` with a reason of their own; the others get `_WORKER_REASON`.
NO_EFFECT = {
    "start": "it is deprecated in LocalCluster as well",
    "services": "use the scheduler's own HTTP routes (distributed.scheduler.http.routes)",
    "worker_services": "executors serve nothing",
    "worker_class": "executors are Lambda functions, not Dask workers",
    "worker_dashboard_address": "executors have no dashboard; the scheduler's shows them all",
    "dashboard": "use dashboard_address",
    "nthreads": "use threads_per_worker",
    "ncores": "use threads_per_worker",
    "death_timeout": "executors end with their invocation",
    "lifetime": "executors end with their invocation",
    "data": "values live in the storage tier",
    "heartbeat_interval": "executors renew leases (serverless.executor.lease)",
}
_WORKER_REASON = "it is an option of Dask workers, and executors are Lambda functions"

#: Names of earlier designs of this product, and what replaces each.
REPLACED = {
    "proxy_address": "the proxy is part of the cluster's scheduler and needs no address",
    "num_fargate_nodes": "use storage_shards",
    "num_lambda_invokers": "the invoker adapts its connections and rate by itself",
    "use_fargate": "storage is local for a local cluster; use storage_shards for the number of servers",
}

#: Argument of the cluster: field of `Settings`.
_SETTINGS = {
    "n_workers": "workers_count",
    "threads_per_worker": "executor_threads",
    "memory_limit": "lambda_memory",
    "timeout": "lambda_timeout",
    "preload": "lambda_preload",
    "storage_shards": "storage_shards",
    "storage_max_memory": "storage_max_memory",
    "dask_workers": "dask_workers_count",
    "budget": "budget_dollars",
}

#: AWS gives an account 1,000 at once at first, and on request some ten thousands. Beyond that a number is a slip.
EXECUTORS_AT_ONCE_MAX = 10_000

#: Options of Dask workers that follow from the cluster.
_NOT_THEIRS = {
    "name": "names are given by the cluster",
    "scheduler_ip": "they belong to this cluster's scheduler",
    "scheduler_port": "they belong to this cluster's scheduler",
    "scheduler_file": "they belong to this cluster's scheduler",
    "security": "give security= to the cluster",
}


def warn_no_effect(name: str, reason: str) -> None:
    """Say that an argument does nothing, and why."""
    warnings.warn(f"ServerlessCluster: {name!r} has no effect: {reason}", UserWarning, stacklevel=4)


def check_others(others: Mapping[str, Any], own: frozenset[str]) -> None:
    """Warn of known names that mean nothing here; refuse unknown ones.

    Parameters
    ----------
    others
        The arguments that the cluster has no parameter for.
    own
        The names of its parameters.

    Examples
    --------
    >>> check_others({"n_wrokers": 2}, frozenset({"n_workers"}))
    Traceback (most recent call last):
        ...
    TypeError: ServerlessCluster() got an unexpected keyword argument 'n_wrokers'; did you mean 'n_workers'?
    """
    theirs = _names_of_dask_workers()
    for name in others:
        if name not in REPLACED and name not in NO_EFFECT and name not in theirs:
            near = difflib.get_close_matches(name, sorted(own | theirs), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"ServerlessCluster() got an unexpected keyword argument {name!r}{hint}")
    for name in others:
        if name in REPLACED:
            warnings.warn(f"ServerlessCluster: {name!r} is gone: {REPLACED[name]}", UserWarning, stacklevel=3)
        else:
            warn_no_effect(name, NO_EFFECT.get(name, _WORKER_REASON))


def check_persistent(persistent: bool, name: str | None, settings: Settings) -> None:
    """Refuse a persistent cluster that could not be found again, or whose values would be gone before.

    Examples
    --------
    >>> check_persistent(True, None, Settings.load())
    Traceback (most recent call last):
        ...
    ValueError: persistent=True needs a name, by which the cluster is found again: name="..."
    """
    if not isinstance(persistent, bool):
        raise TypeError(f"persistent={persistent!r} must be True or False")
    if not persistent:
        return
    if name is None:
        raise ValueError('persistent=True needs a name, by which the cluster is found again: name="..."')
    check_name(str(name))
    if settings.persistent_timeout > settings.storage_ttl:
        raise ValueError(
            f"serverless.persistent.timeout is {format_time(settings.persistent_timeout)}, but must not exceed "
            f"serverless.storage.ttl, which is {format_time(settings.storage_ttl)}"
        )


def check_worker_shape(
    processes: bool | None,
    worker_class: Any,
    worker_dashboard_address: Any,
    services: Any,
    worker_services: Any,
    start: Any,
) -> None:
    """Warn of LocalCluster's own parameters whose given value means nothing here."""
    if processes is not None and not processes:
        warn_no_effect("processes", "executors are always processes of their own")
    given = {
        "worker_class": worker_class,
        "worker_dashboard_address": worker_dashboard_address,
        "services": services,
        "worker_services": worker_services,
        "start": start,
    }
    for name, value in given.items():
        if value is not None:
            warn_no_effect(name, NO_EFFECT[name])


def check_ceiling(n_workers: Any) -> int | None:
    """Return the number of executors at once (0: none until `scale`), None as None.

    Examples
    --------
    >>> check_ceiling(-1)
    Traceback (most recent call last):
        ...
    ValueError: n_workers=-1 must be a whole number, 0 or more
    >>> check_ceiling(10**6)
    Traceback (most recent call last):
        ...
    ValueError: n_workers=1000000 is more than 10000 executors at once; tasks queue for them, so fewer do as well
    """
    if n_workers is None:
        return None
    count = _whole_number("n_workers", n_workers)
    if count > EXECUTORS_AT_ONCE_MAX:
        raise ValueError(
            f"n_workers={n_workers!r} is more than {EXECUTORS_AT_ONCE_MAX} executors at once; "
            "tasks queue for them, so fewer do as well"
        )
    return count


def check_dask_workers(dask_workers: Any) -> int:
    """Return the number of Dask workers.

    Examples
    --------
    >>> check_dask_workers(10**6)
    Traceback (most recent call last):
        ...
    ValueError: dask_workers=1000000 is more than 256, and each is a process of this machine
    """
    count = _whole_number("dask_workers", dask_workers)
    if count > DASK_WORKERS_MAX:
        raise ValueError(
            f"dask_workers={dask_workers!r} is more than {DASK_WORKERS_MAX}, and each is a process of this machine"
        )
    return count


def check_budget(dollars: Any) -> float | None:
    """Return an amount in USD, None as None.

    Examples
    --------
    >>> check_budget(0)
    Traceback (most recent call last):
        ...
    ValueError: dollars=0 must be an amount in USD above 0, or None
    """
    if dollars is None:
        return None
    if isinstance(dollars, bool) or not isinstance(dollars, int | float) or not 0 < dollars < math.inf:
        raise ValueError(f"dollars={dollars!r} must be an amount in USD above 0, or None")
    return float(dollars)


def _whole_number(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r} must be a whole number, 0 or more") from None
    if count < 0:
        raise ValueError(f"{name}={value!r} must be a whole number, 0 or more")
    return count


def ceiling_of(n: Any, memory: Any, cores: float | None, settings: Settings) -> int:
    """Return the ceiling that a call of `scale` means: the largest of what is given.

    Examples
    --------
    >>> settings = Settings.load(lambda_memory="1 GiB", executor_threads=2)
    >>> ceiling_of(2, "5 GiB", None, settings), ceiling_of(2, None, 5, settings)
    (5, 3)
    """
    count = check_ceiling(n) or 0
    if memory is not None:
        count = max(count, math.ceil(parse_bytes(memory) / settings.lambda_memory))
    if cores is not None:
        count = max(count, math.ceil(cores / settings.executor_threads))
    return check_ceiling(count) or 0


def adaptive_bounds(
    least: tuple[Any, Any, Any], most: tuple[Any, Any, Any], ceiling: int, settings: Settings
) -> tuple[int, int]:
    """Return what a call of `adapt` means: the fewest and the most executors.

    Parameters
    ----------
    least, most
        Each as a count, cores and memory; what was not given is None (or infinite).
    ceiling
        The most, if nothing says otherwise.
    settings
        Of the cluster: the memory and the threads of one executor.

    Examples
    --------
    >>> adaptive_bounds((0, None, None), (math.inf, 8, "5 GiB"), 2, Settings.load(lambda_memory="1 GiB"))
    (0, 5)
    """
    lambda_memory, threads = settings.lambda_memory, settings.executor_threads
    minimum, minimum_cores, minimum_memory = least
    maximum, maximum_cores, maximum_memory = most
    fewest, largest = minimum or 0, math.inf if maximum is None else maximum
    if minimum_cores is not None:
        fewest = max(fewest, math.ceil(minimum_cores / threads))
    if minimum_memory is not None:
        fewest = max(fewest, math.ceil(parse_bytes(minimum_memory) / lambda_memory))
    if maximum_cores is not None:
        largest = min(largest, math.floor(maximum_cores / threads))
    if maximum_memory is not None:
        largest = min(largest, math.floor(parse_bytes(maximum_memory) / lambda_memory))
    if fewest < 0 or largest < 0:
        raise ValueError(f"adapt: minimum={fewest!r} and maximum={largest!r} must not be negative")
    if largest == math.inf:
        largest = max(ceiling, fewest)
    if fewest > largest:
        raise ValueError(f"adapt: minimum={fewest!r} must not exceed maximum={largest!r}")
    for name, value in (("minimum", fewest), ("maximum", largest)):
        if value > EXECUTORS_AT_ONCE_MAX:
            raise ValueError(f"adapt: {name}={value!r} is more than {EXECUTORS_AT_ONCE_MAX} executors at once")
    return math.ceil(fewest), math.floor(largest)


def check_dask_worker_options(options: Any, resources: Any = None) -> dict[str, Any]:
    """Refuse what is no option of Dask workers; return the options, with the cluster's `resources`.

    Examples
    --------
    >>> check_dask_worker_options({"nthreads": 2}, {"GPU": 1})
    {'nthreads': 2, 'resources': {'GPU': 1}}
    >>> check_dask_worker_options({"nthread": 2})
    Traceback (most recent call last):
        ...
    TypeError: dask_worker_options has 'nthread', which is no option of Dask workers; did you mean 'nthreads'?
    """
    if options is None:
        options = {}
    if not isinstance(options, Mapping):
        raise TypeError(f"dask_worker_options={options!r} must be a mapping")
    known = _names_of(_dask_worker_classes())
    for name in options:
        if name in _NOT_THEIRS:
            raise ValueError(f"dask_worker_options has {name!r}: {_NOT_THEIRS[name]}")
        if name not in known:
            near = difflib.get_close_matches(str(name), sorted(known), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"dask_worker_options has {name!r}, which is no option of Dask workers{hint}")
    checked = {**options, **({} if resources is None or "resources" in options else {"resources": resources})}
    declared = checked.get("resources")
    if declared is not None:
        if not isinstance(declared, Mapping):
            raise TypeError(f"resources={declared!r} must be a mapping of names to amounts")
        for name, amount in declared.items():
            if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount < math.inf:
                raise ValueError(f"resources has {name!r}: {amount!r}, but an amount must be a number, 0 or more")
    return checked


def load_settings(**arguments: Any) -> Settings:
    """Read the settings, with the cluster's arguments above the configuration.

    Raises
    ------
    ValueError
        Naming the argument and its value, if it was an argument.
    """
    arguments = {name: value for name, value in arguments.items() if value is not None or name == "memory_limit"}
    given = dict(arguments)
    threads = arguments.get("threads_per_worker")
    many = "n_workers" not in arguments and dask.config.get("serverless.workers.count", None) is None
    if many and isinstance(threads, int):
        arguments["n_workers"] = max(1, dask.system.CPU_COUNT // max(1, threads))  # as in LocalCluster
    if "memory_limit" in arguments:
        arguments["memory_limit"] = _lambda_memory(arguments["memory_limit"])
    if isinstance(arguments.get("preload"), str):
        arguments["preload"] = [arguments["preload"]]
    if arguments.get("n_workers") == 0:  # the settings know no cluster without executors; the ceiling does
        del arguments["n_workers"]
    keys = {field.name: field.metadata["key"] for field in fields(Settings)}
    try:
        return Settings.load(**{_SETTINGS[name]: value for name, value in arguments.items()})
    except ValueError as error:
        for name, value in given.items():
            if f"{keys[_SETTINGS[name]]} is " in str(error):
                raise ValueError(f"{name}={value!r}: {error}") from None
        raise


def _lambda_memory(memory_limit: Any) -> Any:
    """Read a memory limit as LocalCluster does: "auto", a fraction of this machine, or bytes."""
    if memory_limit == "auto":
        return None
    if memory_limit is None or (memory_limit == 0 and not isinstance(memory_limit, bool)):  # "no limit"
        warn_no_effect(f"memory_limit={memory_limit!r}", "a Lambda always has a limit; the largest is used")
        return LAMBDA_MEMORY_BYTES_MAX
    if isinstance(memory_limit, (int, float)) and not isinstance(memory_limit, bool):
        if isinstance(memory_limit, float) and 0 < memory_limit <= 1:
            return int(memory_limit * MEMORY_LIMIT)
    return memory_limit


def check_environment(environment: Mapping[str, Any] | None, env: Mapping[str, Any] | None) -> dict[str, str]:
    """Merge the two spellings of the executors' environment (Nanny's ``env``, Fargate's ``environment``)."""
    merged: dict[str, str] = {}
    for argument, variables in (("env", env), ("environment", environment)):
        if variables is None:
            continue
        if not isinstance(variables, Mapping):
            raise TypeError(f"{argument}={variables!r} must be a mapping of variable names to values")
        for name, value in variables.items():
            if not isinstance(name, str) or not name or "=" in name:
                raise ValueError(f"{argument} has {name!r}, which is no name of an environment variable")
            if name.startswith("DASK_SERVERLESS_") and "__" not in name:  # with "__" it is configuration
                raise ValueError(f"{argument} has {name!r}: names with DASK_SERVERLESS_ belong to dask-serverless")
            merged[name] = str(value)
    return merged


def check_local_directory(local_directory: Any) -> str | None:
    """Return a path, or None."""
    if local_directory is None:
        return None
    try:
        return os.fspath(local_directory)
    except TypeError:
        raise TypeError(f"local_directory={local_directory!r} must be a path") from None


def check_scheduler_kwargs(scheduler_kwargs: Any) -> None:
    """Refuse options that the scheduler does not have.

    It would refuse them itself, but in the middle of its constructor, with its HTTP port already open
    and nobody who could close it.
    """
    from distributed import Scheduler
    from distributed.core import Server

    if scheduler_kwargs is None:
        return
    if not isinstance(scheduler_kwargs, Mapping):
        raise TypeError(f"scheduler_kwargs={scheduler_kwargs!r} must be a mapping")
    known = {name for cls in (Scheduler, Server) for name in inspect.signature(cls).parameters} - {"kwargs"}
    for name in scheduler_kwargs:
        if name not in known:
            near = difflib.get_close_matches(str(name), sorted(known), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"scheduler_kwargs has {name!r}, which is no option of the scheduler{hint}")


def dashboard_addresses(
    dashboard_address: Any, host: str | None = None, interface: str | None = None
) -> list[tuple[str, int]]:
    """Resolve where the scheduler's HTTP server listens.

    `LocalCluster` opens ":8787" on all interfaces, although its scheduler listens on loopback only.
    Here an address without a host means the scheduler's host.

    Examples
    --------
    >>> dashboard_addresses(":8787")
    [('127.0.0.1', 8787)]
    >>> dashboard_addresses("0.0.0.0:0"), dashboard_addresses(8080, host="tcp://10.0.0.5:8786")
    ([('0.0.0.0', 0)], [('10.0.0.5', 8080)])
    >>> dashboard_addresses(None)  # disabled, but the routes for health and metrics stay
    [('127.0.0.1', 0)]
    """
    default = "127.0.0.1"
    if host:
        default = _host_alone(host)
    elif interface:
        default = get_ip_interface(interface)
    if dashboard_address is None:
        return [(default, 0)]
    try:
        addresses = clean_dashboard_address(dashboard_address)
        return [(each["address"] or default, int(each["port"])) for each in addresses]
    except (ValueError, TypeError, UnboundLocalError):
        raise ValueError(
            f"dashboard_address={dashboard_address!r} must be like ':8787', 'localhost:8787', a port, or None"
        ) from None


def _host_alone(host: str) -> str:
    """Take scheme and port away from a host."""
    host = host.split("://", 1)[-1]
    if host.startswith("["):
        return host[1:].split("]", 1)[0]
    if host.count(":") == 1:
        host = host.split(":", 1)[0]
    return host or "127.0.0.1"


def _dask_worker_classes() -> tuple[type, ...]:
    from distributed import Nanny, Worker

    return (Worker, Nanny)


def _names_of_dask_workers() -> frozenset[str]:
    from distributed import LocalCluster

    return _names_of((LocalCluster, *_dask_worker_classes()))


def _names_of(classes: Iterable[type]) -> frozenset[str]:
    names: set[str] = set()
    for cls in classes:
        parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
        names.update(each.name for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD)
    return frozenset(names - {"self", "args"})
