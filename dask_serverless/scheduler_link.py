"""The fleet worker: how executors' results enter Dask. Knows distributed's worker protocol.

To the scheduler it is one Dask worker with as many threads as there may be executors. A request to
compute a *stub* never reaches its state machine: it is a subscription to a key of the ledger, and
is answered when the ledger knows. Values of stubs stay in the storage tier; `get_data` fetches
them for whoever asks. Everything else (tasks pinned to a Dask worker, actors, scattered data) is
done by the ordinary worker that this class extends.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Collection, Hashable
from typing import TYPE_CHECKING, Any

from distributed import Worker
from distributed.comm import Comm
from distributed.core import Status
from distributed.metrics import time
from distributed.protocol import Serialized, to_serialize
from distributed.worker_state_machine import UpdateDataEvent

from dask_serverless.job_events import Imported, ImportFailed, Result
from dask_serverless.rows import Rows
from lambda_worker.core.errors import ServerlessError, ValueLost
from lambda_worker.core.wire import (
    Frame,
    Location,
    Ref,
    frames_nbytes,
    open_frames,
    pack_inline,
    seal_frames,
    unpack,
    unpack_inline,
)
from lambda_worker.task_runner import describe_error
from lambda_worker.values import frames_to_value, value_to_frames, writeable_flags

if TYPE_CHECKING:
    from dask_serverless.proxy import Proxy

logger = logging.getLogger("dask_serverless.fleet")

#: A value that is lost more often than this is an error.
LOSSES_MAX = 3

#: Between two looks for what executors say at their heartbeats.
CALL_STACK_PAUSE_SECONDS = 0.1

#: The job name under which values made elsewhere are stored.
EXPORTS = "exports"


class FleetWorker(Worker):
    """The Dask worker that stands for all executors.

    Parameters
    ----------
    scheduler
        Its address.
    proxy
        Knows which keys are stubs, and their state.
    options
        As for `distributed.Worker`.
    """

    def __init__(self, scheduler: str, *, proxy: Proxy, **options: Any) -> None:
        super().__init__(scheduler, **options)
        self.proxy = proxy
        self._runs: dict[Hashable, int] = {}
        self._exports = itertools.count(1)
        self._losses: dict[Hashable, int] = {}
        self._rows = Rows(self.state.nthreads)
        self._fleet_tasks: set[asyncio.Task[None]] = set()
        self._compute_here = self.stream_handlers["compute-task"]
        self.stream_handlers["compute-task"] = self.handle_compute_task

    # -- the scheduler asks ---------------------------------------------------------------------

    def handle_compute_task(self, key: Hashable, run_id: int, **message: Any) -> None:
        """Subscribe to a stub, or compute anything else here."""
        if self._is_stale(key, run_id):
            return
        if self.proxy.is_stub(key):
            self._runs[key] = run_id
            if self._losses.get(key, 0) > LOSSES_MAX:
                self.fail(key, describe_error(ValueLost(f"the value of {key!r} was lost {LOSSES_MAX + 1} times")))
            else:
                self.proxy.wanted(key)
            return
        missing = [dep for dep in message["who_has"] if dep not in self.data and self.proxy.location(dep) is not None]
        if missing:
            self._spawn(self._bring_and_compute(missing, key, run_id, message))
        else:
            self._compute_here(key=key, run_id=run_id, **message)

    async def _bring_and_compute(self, missing: list[Any], key: Hashable, run_id: int, message: dict[str, Any]) -> None:
        """Read the inputs of a task that runs here out of the storage tier first."""
        try:
            found = await self.read(missing)
            values: dict[Any, Any] = {dep: frames_to_value(frames) for dep, frames in found.items()}
        except Exception as error:
            self._runs[key] = run_id
            self.fail(key, describe_error(error))
            return
        if self._is_stale(key, run_id):
            return
        stimulus_id = f"serverless-inputs-{time()}"
        self.handle_stimulus(UpdateDataEvent(data=values, stimulus_id=stimulus_id))
        # Said to the scheduler, so that it tells us when they are not needed any more.
        self.batched_send({"op": "add-keys", "keys": list(values), "stimulus_id": stimulus_id})
        self._compute_here(key=key, run_id=run_id, **message)

    def _is_stale(self, key: Any, run_id: int) -> bool:
        """Tell whether the scheduler, in this very process, has changed its mind since it asked."""
        ts = self.proxy.scheduler.tasks.get(key)
        return ts is None or ts.state != "processing" or ts.run_id != run_id

    async def get_call_stack(self, keys: Collection[Any] | None = None) -> dict[Any, Any]:  # type: ignore[override]
        """Say where tasks are: those that run here at once, those of executors as of their last heartbeats.

        If none of them has said anything yet, wait for a heartbeat, as long as there is a task to hear of.
        """
        deadline = time() + self.proxy.backend.settings.executor_lease / 2
        while True:
            found = {**super().get_call_stack(keys), **self.proxy.dispatcher.call_stacks(keys)}
            waited_for = self._runs if keys is None else self._runs.keys() & set(keys)
            if found or not waited_for or time() > deadline:
                return found
            await asyncio.sleep(CALL_STACK_PAUSE_SECONDS)

    def forget(self, key: Hashable, for_good: bool = False) -> None:
        """The scheduler no longer waits for a stub."""
        self._runs.pop(key, None)
        if for_good:
            self._losses.pop(key, None)

    # -- the ledger answers ---------------------------------------------------------------------

    def finish(self, key: Hashable, result: Result) -> None:
        """Tell the scheduler, if it has asked, that a stub has a value."""
        run_id = self._runs.pop(key, None)
        if run_id is None:
            return
        self.batched_send(
            {
                "op": "task-finished",
                "status": "OK",
                "key": key,
                "run_id": run_id,
                "nbytes": result.nbytes,
                "type": result.type,
                "typename": result.typename,
                "metadata": {},
                "thread": self._rows.take(result.started, result.stopped),
                "startstops": [{"action": "compute", "start": result.started, "stop": result.stopped}],
                "stimulus_id": f"serverless-{time()}",
            }
        )

    def fail(self, key: Hashable, error: bytes) -> None:
        """Tell the scheduler, if it has asked, that a stub has erred."""
        run_id = self._runs.pop(key, None)
        if run_id is None:
            return
        exception, traceback, exception_text, traceback_text, _, times = unpack(error)
        started, stopped = times or (time(), time())
        self.batched_send(
            {
                "op": "task-erred",
                "status": "error",
                "key": key,
                "run_id": run_id,
                "exception": to_serialize(exception),
                "traceback": None if traceback is None else to_serialize(traceback),
                "exception_text": exception_text,
                "traceback_text": traceback_text,
                "thread": self._rows.take(started, stopped),
                "startstops": [{"action": "compute", "start": started, "stop": stopped}],
                "stimulus_id": f"serverless-{time()}",
            }
        )

    async def export(self, key: Hashable) -> None:
        """Store the value of a key that a Dask worker or a client made, once it is there."""
        try:
            value = await self.proxy.value_of(key)
            location = await self.proxy.dispatcher.call(self._store_value, value)
        except Exception as error:
            if not isinstance(error, ServerlessError):
                error = ValueLost(f"the value of {key!r}, made on a Dask worker, cannot be stored: {error}")
            self.proxy.dispatcher.feed(ImportFailed(key, describe_error(error)))
        else:
            self.proxy.dispatcher.feed(Imported(key, location))

    def _store_value(self, value: Any) -> Location:
        backend = self.proxy.backend
        name = f"{EXPORTS}/{next(self._exports)}"
        frames = value_to_frames(value)
        sealed = seal_frames(backend.secret, name, frames)
        if frames_nbytes(frames) <= backend.settings.executor_inline_bytes_max:
            return pack_inline(name, sealed)
        (ref,) = backend.store.put([(name, sealed)])
        return ref

    # -- values out -----------------------------------------------------------------------------

    async def read(self, keys: Collection[Hashable]) -> dict[Hashable, list[Frame]]:
        """Read the frames of stubs' values, wherever they are; keys without a value are left out.

        Raises
        ------
        ValueLost, Tampered, StoreUnavailable
            When a value should be there and cannot be had.
        """
        located = {key: where for key in keys if (where := self.proxy.location(key)) is not None}
        refs = {key: where for key, where in located.items() if isinstance(where, Ref)}
        secret = self.proxy.backend.secret
        found: dict[Hashable, list[Frame]] = {}
        for key, where in located.items():
            if not isinstance(where, Ref):
                name, sealed = unpack_inline(where)
                found[key] = open_frames(secret, name, sealed)
        if refs:

            def get() -> dict[Hashable, list[Frame]]:
                sealed_values = self.proxy.backend.store.get(list(refs.values()))
                return {
                    key: open_frames(secret, ref.name, sealed)
                    for (key, ref), sealed in zip(refs.items(), sealed_values, strict=True)
                }

            found.update(await self.proxy.dispatcher.call(get))
        return found

    async def get_data(
        self, comm: Comm, keys: Collection[Any], who: str | None = None, serializers: list[str] | None = None
    ) -> Any:
        """Send values to whoever asks: stubs' from the storage tier, others' from memory."""
        stubs = [key for key in keys if key not in self.data and self.proxy.location(key) is not None]
        if not stubs:
            return await super().get_data(comm, keys, who=who, serializers=serializers)
        found = await self._read_or_lose(stubs)
        data: dict[Any, Any] = {
            key: Serialized({"serializer": "pickle", "writeable": writeable_flags(frames)}, frames[1:])
            for key, frames in found.items()
        }
        data.update((key, to_serialize(self.data[key])) for key in keys if key in self.data)
        await comm.write({"status": "OK", "data": data}, serializers=serializers)
        response = await comm.read(deserializers=serializers)
        if response != "OK":
            logger.warning("%s did not confirm %d values", who, len(data))
        return Status.dont_reply

    async def _read_or_lose(self, keys: list[Any]) -> dict[Hashable, list[Frame]]:
        """Read what can be read. What cannot is given up, and the scheduler has it computed again."""
        try:
            return await self.read(keys)
        except ServerlessError as error:
            if len(keys) > 1:  # one of them: find out which
                found: dict[Hashable, list[Frame]] = {}
                for key in keys:
                    found |= await self._read_or_lose([key])
                return found
            (key,) = keys
            logger.warning("%r is computed again: %s", key, error)
            self._losses[key] = self._losses.get(key, 0) + 1
            self.batched_send({"op": "release-worker-data", "key": key, "stimulus_id": f"serverless-lost-{time()}"})
            return {}

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._fleet_tasks.add(task)
        task.add_done_callback(self._fleet_tasks.discard)
