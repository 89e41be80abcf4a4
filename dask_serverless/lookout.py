"""Looks out for room where the inputs of start tasks are: `Patience`, with a clock, the ledger and alarms.

Lives on the proxy's event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dask_serverless.experience import Experience
from dask_serverless.job_events import Launch
from dask_serverless.jobs import Ledger
from dask_serverless.patience import Choice, Patience
from dask_serverless.places import Places
from dask_serverless.whereabouts import Whereabouts
from lambda_worker.core.policy import Policy


class Lookout:
    """Chooses which starts of a launch begin now, and has the others looked at again in time.

    Parameters
    ----------
    policy
        The numbers decisions are made from.
    ledger, places
        Know how many executors there are, and how many there may be.
    whereabouts
        Knows where values are.
    experience
        Notes that a job waits.
    look_again
        Has everybody who waits look again.
    """

    def __init__(
        self,
        policy: Policy,
        ledger: Ledger,
        places: Places,
        whereabouts: Whereabouts,
        experience: Experience,
        look_again: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._places = places
        self._experience = experience
        self._look_again = look_again
        self._patience = Patience(policy, whereabouts, self._is_at_work)
        self._alarms: dict[str, asyncio.TimerHandle] = {}  # by job, when some of it has waited for long enough

    def __repr__(self) -> str:
        return f"<Lookout with {len(self._alarms)} alarms: {self._patience!r}>"

    def choose(self, launch: Launch) -> Choice:
        """Choose the starts that begin now. An urgent job waits for nobody."""
        name, job = launch.job, self._ledger.jobs.get(launch.job)
        if job is None or job.urgent:
            return Choice(launch.starts)
        loop = asyncio.get_running_loop()
        choice = self._patience.choose(name, job.graph.children, launch.starts, loop.time(), self._has_room)
        if choice.begins:
            self._experience.note_wait(name, len(choice.later), choice.nbytes, choice.seconds)
        self._stop_alarm(name)
        if choice.seconds > 0:  # else somebody's end makes room, and is heard of, or missed until the next sweep
            self._alarms[name] = loop.call_later(choice.seconds, self._ring, name)
        return choice

    def sent(self, choice: Choice) -> None:
        """The starts that were chosen are where they were to be sent, or elsewhere."""
        self._patience.sent(choice)

    def forget(self, job: str) -> None:
        """A job is over."""
        self._stop_alarm(job)
        self._patience.forget(job)

    def _has_room(self) -> bool:
        return self._ledger.live < self._places.count

    def _is_at_work(self, job: str, executor: str) -> bool:
        known = self._ledger.jobs.get(job)
        return known is not None and executor in known.live

    def _ring(self, job: str) -> None:
        self._alarms.pop(job, None)
        self._look_again()

    def _stop_alarm(self, job: str) -> None:
        alarm = self._alarms.pop(job, None)
        if alarm is not None:
            alarm.cancel()
