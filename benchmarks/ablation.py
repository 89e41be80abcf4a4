"""Our engine with one part of its policy switched off at a time, against itself: what each part is worth.

The switches are those that the installed version's configuration has: the booleans of `serverless.policy`, and
`serverless.executor.linger`, of which "off" is no time at all. Two more entrants: everything off at once, and
`no locality` (`serverless.policy.locality: false`), where every value is written, every input is read from the
store, and an executor runs one task: how engines work whose workers do not keep what they have.

All of them are given graphs as they are written: what Dask fuses before anybody sees it is locality as well, which
would be there for everybody, and by chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.stage import Entrant

POLICY = "serverless.policy"
LINGER = "serverless.executor.linger"
LOCALITY = "locality"
AS_WRITTEN: Mapping[str, Any] = {"optimization.fuse.active": False}
ALL_ON, ALL_OFF, NO_LOCALITY = "all on", "all off", "no locality"
#: What the parts are worth shows where values are large, where tasks are many, and where inputs are read again.
WORKLOADS = (
    *("tree", "fan", "map", "submit"),
    *("gemm", "svd1", "svd2", "tsqr", "tsqr-auto"),
    *("svc-1000", "merge", "regression"),
)


class NoSuchSwitch(ValueError):
    """A switch that the installed version does not have."""


def switches(defaults: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Return the switches of a configuration: of each its key, and the value that is "off".

    Examples
    --------
    >>> switches({"policy": {"hold": True, "hold-seconds-max": 1}, "executor": {"linger": "200 ms"}})
    {'hold': ('serverless.policy.hold', False), 'linger': ('serverless.executor.linger', 0)}
    """
    policy = defaults.get("policy") or {}
    found: dict[str, tuple[str, Any]] = {
        name: (f"{POLICY}.{name}", False) for name, value in policy.items() if isinstance(value, bool)
    }
    if "linger" in (defaults.get("executor") or {}):
        found["linger"] = (LINGER, 0)
    return found


def entrants(defaults: Mapping[str, Any], wanted: Sequence[str] | None = None) -> list[Entrant]:
    """Return who takes part: all on, one off at a time, all off, and (where there is the switch) no locality.

    Parameters
    ----------
    defaults
        The section `serverless` of the configuration's defaults.
    wanted
        Names of switches; None: all there are.
    """
    there = switches(defaults)
    parts = [name for name in there if name != LOCALITY]
    for name in wanted or ():
        if name not in there:
            raise NoSuchSwitch(
                f"this version has no switch {name!r} ({POLICY}.{name}); it has: {', '.join(there) or 'none'}"
            )
    chosen = [name for name in parts if wanted is None or name in wanted]
    off = {name: dict([there[name]]) for name in parts}
    found = [Entrant(ALL_ON, "serverless", AS_WRITTEN)]
    found += [Entrant(f"without {name}", "serverless", {**AS_WRITTEN, **off[name]}) for name in chosen]
    everything = dict(AS_WRITTEN)
    for each in off.values():
        everything |= each
    if wanted is None:
        found.append(Entrant(ALL_OFF, "serverless", everything))
    if LOCALITY in there and (wanted is None or LOCALITY in wanted):
        found.append(Entrant(NO_LOCALITY, "serverless", {**everything, **dict([there[LOCALITY]])}))
    return found
