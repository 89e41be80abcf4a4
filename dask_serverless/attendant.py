"""Answers, for all executors, what Dask asks of workers and nannies: plugins and functions to run.

Whatever is asked is done in one executor, above the ceiling, whose answer is the answer; all others
do it before their next task, because it is in their outfit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import Any

from dask.utils import funcname
from distributed import Scheduler
from distributed.protocol import Serialized, pickle

from dask_serverless.dispatch import Dispatcher
from dask_serverless.errands import Errands, Erred
from dask_serverless.outfit import Tailor, name_of_run
from dask_serverless.scheduler_link import as_serialized, error_response
from lambda_worker import errand
from lambda_worker.core.wire import Location, Ref, open_frames, unpack_inline


class Attendant:
    """What executors wear, and do for the cluster itself.

    Parameters
    ----------
    scheduler
        Whose plugins executors shall have.
    dispatcher
        Runs errands, and gives the outfit to executors.
    """

    def __init__(self, scheduler: Scheduler, dispatcher: Dispatcher) -> None:
        backend = dispatcher.backend
        self.dispatcher = dispatcher
        self.errands = Errands(dispatcher)
        self.tailor = Tailor(scheduler, backend.store, backend.secret, dispatcher.call, backend.numbers_from)
        self._background: set[asyncio.Future[Any]] = set()
        dispatcher.outfit = lambda: self.tailor.current
        dispatcher.outfit_refs = self.tailor.refs
        dispatcher.restore_outfit = self.tailor.restore

    async def start(self) -> None:
        """Take the configuration of this process."""
        await self.tailor.note_config()

    def close(self) -> None:
        """Nobody waits for an answer any more."""
        self.errands.close()

    async def plugin_changed(self, kind: str, name: str, fresh: bool = False) -> Any:
        """A plugin was registered or unregistered: answer what became of it in one executor.

        With `fresh` it is for new sandboxes; those that work finish what they have.
        """
        await self.tailor.note_plugin(kind, name)
        if fresh:
            await self.dispatcher.retire_sandboxes()
        return await self._answer(f"plugin-{name}", errand.fit, kind, name)

    async def run(self, function: bytes, args: bytes, kwargs: bytes | None, wait: bool) -> Any:
        """Answer `client.run`: in one executor now, and in the others before their next task."""
        content = (bytes(function), bytes(args or b""), bytes(kwargs or b""))
        called = pickle.loads(content[0])
        label = f"run-{funcname(called)}"
        if not wait:
            assert iscoroutinefunction(called), "Combination not supported"
            self._background.add(task := asyncio.ensure_future(self._answer(label, errand.run, *content)))
            task.add_done_callback(self._background.discard)
            return {"status": "OK", "result": None}
        name, serial = name_of_run(content), self.tailor.next_serial()
        answer = await self._answer(label, errand.run, *content, name, serial)
        if answer["status"] == "OK":
            await self.tailor.note_run(name, content, serial)
        return answer

    async def restart(self) -> None:
        """End all executors; new ones wear the outfit, but not what functions have changed."""
        self.tailor.forget_runs()
        await self.tailor.note_config()
        await self.dispatcher.end_executors()

    async def _answer(self, label: str, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        """Run a function in an executor, and answer as a Dask worker's `run` does."""
        try:
            value = await self.errands.run(label, function, *args, read=self._read)
        except Erred as erred:
            return error_response(erred.error)
        return {"status": "OK", "result": value}

    async def _read(self, location: Location) -> Serialized:
        backend = self.dispatcher.backend
        if isinstance(location, Ref):
            (sealed,) = await self.dispatcher.call(backend.store.get, [location])
            return as_serialized(open_frames(backend.secret, location.name, sealed))
        return as_serialized(open_frames(backend.secret, *unpack_inline(location)))
