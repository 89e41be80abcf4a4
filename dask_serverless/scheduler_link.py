"""The fleet worker: how executors' results enter Dask. Knows distributed's worker protocol.

To the scheduler it is one Dask worker with as many threads as there may be executors. A request to
compute a *stub* never reaches its state machine: it is a subscription to a key of the ledger, and
is answered when the ledger knows. Values of stubs stay in the storage tier; `get_data` fetches
them for whoever asks. Everything else (tasks pinned to a Dask worker, actors, scattered data) is
done by the ordinary worker that this class extends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Hashable
from typing import TYPE_CHECKING, Any

from distributed import Worker
from distributed.comm import Comm
from distributed.core import Status
from distributed.diagnostics.plugin import ForwardLoggingPlugin, ForwardOutput
from distributed.metrics import time
from distributed.protocol import Serialized, decompress, pickle, to_serialize
from distributed.protocol.serialize import merge_and_deserialize
from distributed.worker_state_machine import UpdateDataEvent

from dask_serverless.job_events import Imported, ImportFailed, Result
from dask_serverless.rows import Rows
from dask_serverless.short_cut import Hatch, ShortCut
from lambda_worker.compression import expand
from lambda_worker.core.errors import ServerlessError, ValueLost
from lambda_worker.core.wire import (
    Frame,
    Location,
    Ref,
    frames_nbytes,
    open_frames,
    pack,
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

#: Plugins that bring what executors say to the user's process. Here they would bring it back to itself, for ever.
ELSEWHERE_ONLY = (ForwardLoggingPlugin, ForwardOutput)

#: A value that is lost more often than this is an error.
LOSSES_MAX = 3

#: Between two looks for what executors say at their heartbeats.
CALL_STACK_PAUSE_SECONDS = 0.1

#: The job name under which values made elsewhere are stored.
EXPORTS = "exports"


class ShownBytes(int):
    """A memory limit that is shown but never enforced.

    The scheduler errs a task whose inputs are together larger than its worker's memory. A stub stands for many
    tasks on many executors, none of which may ever hold all of it.
    """

    def __bool__(self) -> bool:
        return False


class FleetWorker(Worker):
    """The Dask worker that stands for all executors.

    Parameters
    ----------
    scheduler
        Its address.
    proxy
        Knows which keys are stubs, and their state.
    predecessor
        Address of the fleet worker whose place this one takes.
    options
        As for `distributed.Worker`.
    """

    def __init__(self, scheduler: str, *, proxy: Proxy, predecessor: str = "", **options: Any) -> None:
        super().__init__(scheduler, **options)
        self.proxy = proxy
        self._predecessor = predecessor
        self._runs: dict[Hashable, int] = {}
        self._losses: dict[Hashable, int] = {}
        self._rows = Rows()
        self._fleet_tasks: set[asyncio.Task[None]] = set()
        self._outbox = Hatch(self._tell)
        self._compute_stock = self.stream_handlers["compute-task"]
        self.stream_handlers["compute-task"] = self.handle_compute_task
        self.handlers["plugin-add"] = self.handle_plugin_add
        self.handlers["plugin-remove"] = self.handle_plugin_remove
        self.handlers["get_logs"] = self.handle_get_logs
        self._not_worn: dict[str, bytes] = {}  # worker plugins that nothing here has needed yet
        self._wearing = asyncio.Lock()

    async def _register_with_scheduler(self) -> None:
        """Take over what is restricted to the predecessor: the scheduler remembers addresses, not names."""
        for ts in self.proxy.scheduler.tasks.values() if self._predecessor else ():
            if ts.worker_restrictions and self._predecessor in ts.worker_restrictions:
                ts.worker_restrictions = {*ts.worker_restrictions, self.address} - {self._predecessor}
        await super()._register_with_scheduler()

    def take_short_cut(self) -> None:
        """Have the scheduler hand over what it says of stubs; to be called once it knows this worker."""
        streams: dict[str, Any] = self.proxy.scheduler.stream_comms
        streams[self.address] = ShortCut(streams[self.address], self.proxy.is_stub, self._compute_stub)

    def resize(self, executors: int, threads: int, memory: int) -> None:
        """Show the threads and the memory of so many executors, here and in the scheduler's books."""
        scheduler, nthreads, memory = self.proxy.scheduler, executors * threads, executors * memory
        self.state.nthreads = nthreads
        self.executors["default"]._max_workers = nthreads  # type: ignore[attr-defined]
        self.memory_manager.memory_limit = memory
        ws = scheduler.workers.get(self.address)
        if ws is None:
            return
        more = nthreads - ws.nthreads
        ws.nthreads += more
        scheduler.host_info[ws.host]["nthreads"] += more
        scheduler.total_nthreads += more
        scheduler.total_nthreads_history.append((time(), scheduler.total_nthreads))
        scheduler.total_memory += memory - ws.memory_limit
        ws.memory_limit = ShownBytes(memory)
        scheduler.check_idle_saturated(ws)

    # -- the scheduler asks ---------------------------------------------------------------------

    def handle_compute_task(self, key: Hashable, run_id: int, **message: Any) -> None:
        """Subscribe to a stub, or compute anything else here."""
        if self.proxy.is_stub(key):
            return self._compute_stub({"key": key, "run_id": run_id})
        if self._is_stale(key, run_id):
            return
        missing = [dep for dep in message["who_has"] if dep not in self.data and self.proxy.location(dep) is not None]
        if missing:
            self._spawn(self._bring_and_compute(missing, key, run_id, message))
        else:
            self._compute_here(key=key, run_id=run_id, **message)

    def _compute_stub(self, message: dict[str, Any]) -> None:
        key, run_id = message["key"], message["run_id"]
        if self._is_stale(key, run_id):
            return
        self._runs[key] = run_id
        if self._losses.get(key, 0) > LOSSES_MAX:
            self.fail(key, describe_error(ValueLost(f"the value of {key!r} was lost {LOSSES_MAX + 1} times")))
        else:
            self.proxy.wanted(key)

    async def _bring_and_compute(self, missing: list[Any], key: Hashable, run_id: int, message: dict[str, Any]) -> None:
        """Read the inputs of a task that runs here out of the storage tier first."""
        try:
            found = await self._read_or_lose(missing)  # for what is lost, the scheduler takes the task back
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

    def _compute_here(self, key: Hashable, run_id: int, **message: Any) -> None:
        """Compute in this process, with the plugins that a Dask worker would have."""
        if self._not_worn:
            self._spawn(self._wear_and_compute(key, run_id, message))
        else:
            self._compute_stock(key=key, run_id=run_id, **message)

    async def _wear_and_compute(self, key: Hashable, run_id: int, message: dict[str, Any]) -> None:
        async with self._wearing:  # who comes second waits until all is worn
            while self._not_worn:
                name, plugin = next(iter(self._not_worn.items()))
                await super().plugin_add(plugin=plugin, name=name)
                if self._not_worn.get(name) is plugin:  # else another one was registered meanwhile
                    del self._not_worn[name]
        if not self._is_stale(key, run_id):
            self._compute_stock(key=key, run_id=run_id, **message)

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
        self._outbox.put(
            {
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

    def _tell(self, finished: dict[str, Any]) -> None:
        self.proxy.scheduler.handle_task_finished(worker=self.address, **finished)

    def fail(self, key: Hashable, error: bytes) -> None:
        """Tell the scheduler, if it has asked, that a stub has erred."""
        run_id = self._runs.pop(key, None)
        if run_id is None:
            return
        started, stopped = unpack(error)[5] or (time(), time())
        self.batched_send(
            {
                "op": "task-erred",
                "key": key,
                "run_id": run_id,
                **error_response(error),
                "thread": self._rows.take(started, stopped),
                "startstops": [{"action": "compute", "start": started, "stop": stopped}],
                "stimulus_id": f"serverless-{time()}",
            }
        )

    async def export(self, key: Hashable) -> None:
        """Store the value of a key that a Dask worker or a client made, once it is there."""
        try:
            value = await self.proxy.value_of(key)
            location = await self.proxy.dispatcher.call(self.store_value, value)
        except Exception as error:
            if not isinstance(error, ServerlessError):
                error = ValueLost(f"the value of {key!r}, made on a Dask worker, cannot be stored: {error}")
            self.proxy.dispatcher.feed(ImportFailed(key, describe_error(error)))
        else:
            self.proxy.dispatcher.feed(Imported(key, location))

    def store_value(self, value: Any, keep: bool = False) -> Location:
        """Store a value where executors find it; if told so, where it outlives servers and this process."""
        backend = self.proxy.backend
        name = f"{EXPORTS}/{self.proxy.dispatcher.new_number()}"
        frames = frames_of(value)
        if frames_nbytes(frames) <= backend.settings.executor_inline_bytes_max:
            return pack_inline(name, seal_frames(backend.secret, name, frames))
        lean = self.proxy.dispatcher.compressor.shrink(frames)
        write = backend.store.keep if keep else backend.store.put
        (ref,) = write([(name, seal_frames(backend.secret, name, lean))])
        return ref

    # -- plugins, functions, logs: executors' affairs -------------------------------------------

    async def plugin_add(self, plugin: Any, name: str | None = None, catch_errors: bool = True) -> Any:
        """Keep a plugin until something must be computed here, in the user's own process."""
        if isinstance(plugin, bytes) and name is not None:
            if not isinstance(pickle.loads(plugin), ELSEWHERE_ONLY):
                self._not_worn[name] = plugin
            return {"status": "OK"}
        return await super().plugin_add(plugin=plugin, name=name, catch_errors=catch_errors)

    async def handle_plugin_add(self, plugin: bytes, name: str) -> Any:
        """Give executors a plugin, and answer what became of it in one of them."""
        await self.plugin_add(plugin=plugin, name=name)
        return await self.proxy.attendant.plugin_changed("worker", name)

    async def handle_plugin_remove(self, name: str) -> Any:
        """Take a plugin off executors, and off this worker if it is worn here."""
        self._not_worn.pop(name, None)
        if name in self.plugins:
            await self.plugin_remove(name=name)
        return await self.proxy.attendant.plugin_changed("worker", name)

    def run(self, comm: Any, function: bytes, args: bytes = b"", wait: bool = True, kwargs: bytes | None = None) -> Any:
        """Run a function in an executor: this process is the user's own."""
        return self.proxy.attendant.run(function, args, kwargs, wait)

    async def handle_get_logs(self, start: float = 0, n: int | None = None, timestamps: bool = False) -> list[Any]:
        """Return what executors have printed and logged, and this worker, newest first."""
        lines = await self.proxy.dispatcher.call(self.proxy.backend.logs) if not start else []
        said = [(_level_of(line), line) for line in reversed(lines)]
        own = super().get_logs(start=start, n=None, timestamps=timestamps)
        entries = [(0.0, *each) if timestamps else each for each in said] + list(own)
        return entries[:n] if n else entries

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
                    key: expand(open_frames(secret, ref.name, sealed))
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
        data: dict[Any, Any] = dict(await self.values_of(stubs))
        data.update((key, to_serialize(self.data[key])) for key in keys if key in self.data)
        await comm.write({"status": "OK", "data": data}, serializers=serializers)
        response = await comm.read(deserializers=serializers)
        if response != "OK":
            logger.warning("%s did not confirm %d values", who, len(data))
        return Status.dont_reply

    async def values_of(self, stubs: list[Any]) -> dict[Hashable, Serialized]:
        """Read stubs' values as a client takes them; what cannot be read is given up and left out."""
        return {
            key: Serialized({"serializer": "pickle", "writeable": writeable_flags(frames)}, frames[1:])
            for key, frames in (await self._read_or_lose(stubs)).items()
        }

    async def _read_or_lose(self, keys: list[Any]) -> dict[Hashable, list[Frame]]:
        """Read what can be read. What cannot is given up, and the scheduler has it computed again."""
        try:
            found = await self.read(keys)
            for key in found:
                self._losses.pop(key, None)  # what was lost since then is another loss
            return found
        except ServerlessError as error:
            if len(keys) > 1:  # one of them: find out which
                found = {}
                for key in keys:
                    found |= await self._read_or_lose([key])
                return found
            (key,) = keys
            if key in self.data:  # it came meanwhile, and stays: what cannot be read is a copy
                return {}
            logger.warning("%r is computed again: %s", key, error)
            self._losses[key] = self._losses.get(key, 0) + 1
            self.give_up(key)
            return {}

    def give_up(self, key: Hashable) -> None:
        """Tell the scheduler that a stub's value is lost: if it is still needed, it is asked for again."""
        self.batched_send({"op": "release-worker-data", "key": key, "stimulus_id": f"serverless-lost-{time()}"})

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._fleet_tasks.add(task)
        task.add_done_callback(self._fleet_tasks.discard)


def as_serialized(frames: list[Frame]) -> Serialized:
    """Return a stored value as Dask sends values, without decoding it."""
    frames = expand(frames)
    return Serialized({"serializer": "pickle", "writeable": writeable_flags(frames)}, frames[1:])


def error_response(error: bytes) -> dict[str, Any]:
    """Return an encoded error as a Dask worker answers a call that has failed."""
    exception, traceback, exception_text, traceback_text, *_ = unpack(error)
    return {
        "status": "error",
        "exception": to_serialize(exception),
        "traceback": None if traceback is None else to_serialize(traceback),
        "exception_text": exception_text,
        "traceback_text": traceback_text,
    }


def _level_of(line: str) -> str:
    r"""Return the level of a line that the Lambda runtime has formatted; what tasks print has none.

    Examples
    --------
    >>> _level_of("[ERROR]\t2026-01-01T00:00:00Z\tid\tsomething"), _level_of("hello")
    ('ERROR', 'INFO')
    """
    level = line.partition("]")[0].removeprefix("[")
    return level if level in _LEVELS else "INFO"


_LEVELS = frozenset(logging.getLevelNamesMapping())


def frames_of(value: Any) -> list[Frame]:
    """Return the frames of a value, or of what came from another process and has not been decoded.

    A pickle stays as it is: this process need not have what it is made of, and an actor's handle, if it were
    made here, would belong to a client that the user has in this process.
    """
    if not isinstance(value, Serialized):
        return value_to_frames(value)
    header, frames = value.header, value.frames
    if any(header.get("compression") or ()):
        frames = decompress(header, frames)
    whole = all(count == 1 for count in header.get("split-num-sub-frames", ()))
    if header.get("serializer") == "pickle" and whole:
        return [pack([bool(each) for each in header["writeable"]]), *frames]
    return value_to_frames(merge_and_deserialize(header, frames))
