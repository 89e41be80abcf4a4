"""Where tasks that need a Dask worker run: on ordinary ones if there are any, else on the fleet worker.

The fleet worker is a part of the user's process. It is there for programs without ordinary Dask
workers; as soon as there are some, it is the last choice for whatever is not a stub. The scheduler's
own rules stay: who names the fleet worker (as stubs do) gets it, resources and hosts restrict as ever.
"""

from __future__ import annotations

from typing import Any

from distributed import Scheduler


def prefer_dask_workers(scheduler: Scheduler, fleet: str) -> None:
    """Let one scheduler choose the fleet worker only for those who name it, or have nobody else.

    Set on this one object, in the place of two methods that choose workers. Their promises are kept.

    Parameters
    ----------
    scheduler
        The scheduler.
    fleet
        Name of the fleet worker.
    """
    stock_valid_workers = scheduler.valid_workers

    def valid_workers(ts: Any) -> Any:
        valid = stock_valid_workers(ts)
        if ts.worker_restrictions or len(scheduler.workers) < 2:  # stubs, and nearly every cluster: no time is lost
            return valid
        others = {ws for ws in (scheduler.running if valid is None else valid) if ws.name != fleet}
        return others or valid

    def decide_worker_rootish(ts: Any) -> Any:
        # Theirs looks at no restrictions: tasks that have any are not "rootish". Ours all have one.
        return scheduler.decide_worker_non_rootish(ts)

    scheduler.valid_workers = valid_workers  # type: ignore[method-assign]
    scheduler.decide_worker_rootish_queuing_disabled = decide_worker_rootish  # type: ignore[method-assign]
