"""Performs the ledger's instructions, and feeds it what executors say.

Lives on the proxy's event loop; everything that waits for the storage tier or for Lambda runs on
threads. The ledger is touched on the event loop only.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import pickle
import time
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from dask_serverless.backend import Backend
from dask_serverless.backups import Backups
from dask_serverless.call_stacks import CallStacks
from dask_serverless.collector import collector_paused
from dask_serverless.constant_pool import IDLE_BYTES_MAX, ConstantPool
from dask_serverless.dask_graph import JobPlan
from dask_serverless.ending import Ending
from dask_serverless.experience import Experience
from dask_serverless.hands import Hands
from dask_serverless.job_events import (
    Admitted,
    Close,
    Erred,
    Event,
    Fail,
    Finish,
    Free,
    Import,
    JobFailed,
    Launch,
    Result,
    Retired,
    Room,
    Submitted,
)
from dask_serverless.jobs import Ledger
from dask_serverless.launcher import Launcher
from dask_serverless.legacy import Legacy
from dask_serverless.listener import Listener
from dask_serverless.lookout import Lookout
from dask_serverless.losses import Losses
from dask_serverless.patience import Choice
from dask_serverless.places import Places
from dask_serverless.preparation import KEEP_SEGMENTS_BYTES, Preparation, prepare, prepare_and_open
from dask_serverless.rebuilding import Rebuilding
from dask_serverless.recovery import Recovery
from dask_serverless.spending import Spending
from lambda_worker.compression import Compressor
from lambda_worker.core.errors import (
    MissingModule,
    PlatformError,
    ProtocolError,
    ServerlessError,
    StoreFull,
)
from lambda_worker.core.policy import Policy
from lambda_worker.core.schedule import Assignment
from lambda_worker.core.wire import Ref
from lambda_worker.task_runner import describe_error

logger = logging.getLogger("dask_serverless.dispatch")

#: Jobs up to this many tasks are pickled on the event loop: a thread costs more than they do.
PREPARE_INLINE_TASKS = 64
#: How long the rests of a finished job wait, for others to be removed along with them.
CLOSE_SECONDS = 0.05
#: How long a value that nobody holds any more waits, likewise.
FREE_SECONDS = 0.01
#: What is on its way to Lambda for longer than this is being throttled.
LAUNCH_SECONDS_MAX = 5.0


class Waiter(Protocol):
    """Who wants to hear of keys: the fleet worker."""

    def finish(self, key: Hashable, result: Result) -> None:
        """A key has a value."""

    def fail(self, key: Hashable, error: bytes) -> None:
        """A key has erred."""

    def task_event(self, topic: Any, message: Any) -> None:
        """A task has logged an event."""

    async def export(self, key: Hashable) -> None:
        """Bring the value of a key made elsewhere into the storage tier, and feed the ledger."""

    def give_up(self, key: Hashable) -> None:
        """The value of a key is lost."""

    def ask_again(self, keys: Sequence[Hashable]) -> None:
        """Have keys computed again."""


class Dispatcher:
    """The ledger of one cluster, and its hands.

    Parameters
    ----------
    backend
        The storage tier, Lambda and the numbers of this cluster.
    waiter
        Hears of keys.
    scheduler
        Address of the Dask scheduler, for tasks that are clients themselves.
    """

    def __init__(self, backend: Backend, waiter: Waiter, scheduler: str = "") -> None:
        self.backend = backend
        self.waiter = waiter
        self.ledger = Ledger()
        self.scheduler = scheduler
        self.places = Places(backend.ceiling)
        self._setting_places = asyncio.Lock()
        self.outfit: Callable[[], tuple[int, Ref] | None] = lambda: None  # what new executors shall wear
        self.outfit_refs: Callable[[], list[Ref]] = list
        idle_bytes_max = min(IDLE_BYTES_MAX, backend.settings.storage_max_memory // 16)
        settings = backend.settings
        policy = Policy(
            bytes_per_second=settings.storage_bytes_per_second,
            compress=settings.policy_compress,
            group=settings.policy_group and settings.policy_locality and settings.executor_linger > 0,
            threads=settings.executor_threads,
            request_seconds=settings.request_gb_seconds * 2**30 / settings.lambda_memory,
        )
        self.compressor = Compressor(policy, time.perf_counter)
        first = backend.numbers_from
        self.constants = ConstantPool(backend.store, backend.secret, self.compressor, idle_bytes_max, first)
        self.restore_outfit: Callable[[], Awaitable[None]] = _nothing
        self.failed: PlatformError | None = None
        self.counts: dict[str, int] = {"invocations": 0, "mails": 0, "executors": 0, "tasks_planned": 0}
        self.counts |= {"tasks_run": 0, "tasks_rerun": 0}
        self.experience = Experience(policy)
        self._call_stacks = CallStacks(fresh_seconds=backend.settings.executor_lease)  # three heartbeats
        self._preparations: dict[str, Preparation] = {}
        self._unopened: dict[str, JobPlan] = {}  # small jobs, which their first launch opens
        self._opened: dict[str, asyncio.Future[None]] = {}
        self._closes: list[Close] = []
        self._frees: list[Ref] = []
        self._jobs = itertools.count(first)
        self._executors = itertools.count(first)
        self._others = itertools.count(first)
        self._launches: set[asyncio.Task[Any]] = set()
        self._hands = Hands()
        self.call, self.spawn = self._hands.call, self._hands.spawn
        self.recovery = Recovery(self)
        self.spending = Spending(self)
        self.backups = Backups(self)
        self.losses = Losses(self, waiter)
        self.ending = Ending()
        self.rebuilding = Rebuilding(self, waiter)
        self.launcher = Launcher(backend, self._hands, self.counts, self._is_live, self.recovery.lose)
        near = self.launcher.whereabouts
        self.lookout = Lookout(policy, self.ledger, self.places, near, self.experience, self._look_again)
        self.legacy = Legacy(self)
        ears = (self._hands.closing, self.take, self.backend_failed, self.legacy.note_heard, self.rebuilding.forgotten)
        self._listener = Listener(backend.store, backend.secret, *ears, known=backend.epoch > 0)

    # -- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to listen; to be called on the event loop."""
        self._listener.start()
        self.backend.invoker.is_wanted = self._is_wanted
        loop = asyncio.get_running_loop()
        self.backend.watch_shards(lambda shard: self._hear_of_shard(loop, shard))
        self.spawn(self.recovery.watch_failures())
        self.spawn(self.recovery.sweep())
        self.spawn(self.spending.watch())
        self.spawn(self._keep_alive())

    def _hear_of_shard(self, loop: asyncio.AbstractEventLoop, shard: int) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: so are we
            if not self._hands.closing.is_set():
                loop.call_soon_threadsafe(self.losses.shard_lost, shard)

    async def close(self) -> None:
        """Stop listening; nothing that runs is waited for (its cluster goes with it)."""
        await self._hands.close()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self.backend.store.close)  # which wakes the listener
        await loop.run_in_executor(None, self._listener.join)

    @property
    def closing(self) -> bool:
        """Whether nothing new shall begin."""
        return self._hands.closing.is_set()

    def backend_failed(self, error: PlatformError) -> None:
        """The storage tier or Lambda is gone: everything that waits for it fails, by name."""
        if self.failed is not None or self._hands.closing.is_set():
            return
        self.failed = error
        logger.error("%s", error)
        blob = describe_error(error)
        for job in list(self.ledger.jobs):
            self.feed(JobFailed(job, blob))

    # -- jobs -----------------------------------------------------------------------------------

    def new_job(self) -> str:
        """Return a name for a job, unique in this cluster."""
        return f"j{next(self._jobs)}"

    def new_number(self) -> int:
        """Return a number, unique in this cluster, for what is neither a job nor an executor."""
        return next(self._others)

    def adopt(
        self, preparation: Preparation, again: Callable[[], JobPlan], constants: Mapping[bytes, Ref], opened: bool
    ) -> None:
        """Take on a job that another process has prepared and noted, and for all we know `opened`."""
        job, plan = preparation.job, preparation.plan
        self._preparations[job] = preparation
        if not opened:
            self._unopened[job] = plan
        self.losses.note(job, plan, again)
        self.constants.adopt(job, constants)
        self.experience.log.begin(job, len(plan.graph) - len(plan.externals), plan.visible)

    def submit(
        self,
        job: str,
        plan: JobPlan,
        urgent: bool = False,
        light: bool = True,
        again: Callable[[], JobPlan] | None = None,
    ) -> None:
        """Take on a planned graph. Everything from here on happens beside the caller.

        An urgent one goes above the ceiling, one executor for each of its starts. In one that is light, nothing
        is large enough to be a constant. `again` plans it once more, should what executors read of it be lost;
        without that, the plan is kept.
        """
        self.losses.note(job, plan, again)
        refusal = self.failed or self.spending.refusal
        if refusal is None:
            self.spending.budget.begin(job, len(plan.graph) - len(plan.externals))
            if urgent:
                self.places.ask(job)
            else:
                self.experience.log.begin(job, len(plan.graph) - len(plan.externals), plan.visible)
            if light and len(plan.graph) <= PREPARE_INLINE_TASKS and not plan.constants:
                self._unopened[job] = plan
            else:
                self._opened[job] = self.spawn(self._open(job, plan))
        self.feed(Submitted(job, plan.graph, plan.visible, plan.externals, plan.pointers, urgent))
        self.counts["tasks_planned"] += len(plan.graph)
        self.legacy.note_submitted(job, plan)
        if refusal is not None:
            self.feed(JobFailed(job, describe_error(refusal)))

    async def _open(self, job: str, plan: JobPlan) -> None:
        backend = self.backend
        self._preparations[job] = await self.call(
            prepare_and_open, job, plan, backend.secret, backend.store, self.constants, self.compressor
        )

    def feed(self, event: Event) -> None:
        """Feed the ledger and perform what it says."""
        self.legacy.note_event(event)
        for instruction in self.ledger.handle(event):
            match instruction:
                case Finish(key, result):
                    self.waiter.finish(key, result)
                case Fail(key, error):
                    self.waiter.fail(key, error)
                case Launch():
                    self.ending.afterwards(functools.partial(self._begin_launch, instruction))
                case Free(refs):
                    self._free_soon(refs)
                case Import(key):
                    self.spawn(self.waiter.export(key))
                case Close():
                    self._close_soon(instruction)

    def _begin_launch(self, instruction: Launch) -> None:
        launch = self.spawn(self._launch(instruction))
        self._launches.add(launch)
        launch.add_done_callback(self._launches.discard)

    async def _launch(self, launch: Launch) -> None:
        job = launch.job
        opening: asyncio.Future[None] | None = None
        choice = Choice(launch.starts)
        try:
            if job in self._opened and job not in self._unopened:
                await asyncio.shield(self._opened[job])
            choice = self.lookout.choose(launch)
            if not choice.now:
                if job in self._unopened or job in self._preparations:  # else it was closed meanwhile
                    self.legacy.note_waiting(job, self._unopened.get(job) or self._preparations[job].plan)
                self.feed(Admitted(job, (), later=choice.later))
                return
            plan = self._unopened.pop(job, None)
            if plan is not None:
                opening = self._opened[job] = asyncio.get_running_loop().create_future()
                if job not in self._preparations:  # else another process has prepared it
                    self._preparations[job] = prepare(job, plan, self.backend.secret)
            preparation = self._preparations.get(job)
            if preparation is None:  # closed meanwhile
                self.feed(Admitted(job, ()))
                return
            urgent = self.places.is_urgent(job)
            if not (urgent or self.experience.knows(job)):  # a first launch, and not an errand
                self.experience.begin(job, preparation.prefixes)
            places, starts_in_all = max(1, self.places.ceiling), len(preparation.plan.graph.starts)
            sharing = self.experience.share_out(job, len(choice.now), starts_in_all, places)
            if urgent:
                await self.set_places()
            serial = next(self._executors)
            make = functools.partial(
                preparation.assignments,
                choice.now,
                sharing,
                self.places.ceiling,
                self.ledger.live,
                self.backend.settings.executor_payload_bytes_max,
                serial,
                self.scheduler,
                self.outfit(),
                self.experience.told(job),
                choice.near,
            )
            small = len(preparation.plan.graph) <= PREPARE_INLINE_TASKS
            assignments = make() if small else await self.call(make)
            starts = dict(choice.now)
            await self.legacy.note_launch(preparation, serial, starts, assignments)
            segments = None if opening is None else preparation.segments
            plan = preparation.plan
            splits = len(plan.graph) - len(plan.externals) > 1  # those are there already
            room = None if urgent else self.places.count
            begin = functools.partial(self.launcher.begin, job, segments, assignments, room, splits)
            start = begin() if small else await self.call(begin)
            if not urgent:
                self.experience.expect(job, (each.executor for each in assignments))
            recipients, under_way = await self.call(start)
            granted = len(recipients)
            if self.places.take(job):
                await self.set_places()
            await self.legacy.note_given(job, serial, starts, assignments[:granted], recipients)
            refused = [(task, starts[task]) for each in assignments[granted:] for task in each.starts]
            self.feed(Admitted(job, [each.executor for each in assignments[:granted]], refused, choice.later))
            for recipient, assignment in zip(recipients, assignments, strict=False):
                self.launcher.note_posted(recipient, job, assignment.executor)
            self.lookout.sent(choice)
            choice = Choice(choice.now)
            if opening is not None:
                opening.set_result(None)
                if sum(map(len, preparation.segments.values())) > KEEP_SEGMENTS_BYTES:
                    preparation.segments = {}
            if under_way is not None:
                await self.launcher.hear_refusals(*under_way)
        except asyncio.CancelledError:
            raise
        except StoreFull as error:  # of records, or pieces of the graph
            first = next((task for task, _ in choice.now), -1)
            self._job_failed(job, StoreFull(f"{self._task_name(job, first)} cannot be begun: {error}"))
        except Exception as error:
            self._job_failed(job, error)
        finally:
            self.lookout.sent(choice)
            if opening is not None and not opening.done():
                opening.set_result(None)

    def _look_again(self) -> None:
        """Some starts have waited for long enough."""
        if not self._hands.closing.is_set():
            self.feed(Room())

    def _is_wanted(self, assignment: Assignment) -> bool:
        """Tell whether an executor still has something to do; on any thread."""
        return assignment.job in self.ledger.jobs

    def err(self, job: str, task: int, error: ServerlessError) -> None:
        """A task has erred, as the proxy found."""
        blob = describe_error(error)
        self.legacy.note_error(job, task, blob)
        self.feed(Erred(job, task, blob))

    def _is_live(self, job: str, executor: str) -> bool:
        known = self.ledger.jobs.get(job)
        return known is not None and executor not in known.gone

    def _job_failed(self, job: str, error: Exception) -> None:
        if not isinstance(error, ServerlessError):
            logger.error("job %s failed in the proxy", job, exc_info=error)
            error = ProtocolError(f"job {job} failed in the proxy: {type(error).__name__}: {error}")
        self.feed(JobFailed(job, describe_error(error)))

    def _free_soon(self, refs: Sequence[Ref]) -> None:
        """Remove values together: a collection is let go key by key."""
        if not self._frees:
            asyncio.get_running_loop().call_later(FREE_SECONDS, self._free)
        self._frees += refs

    def _free(self) -> None:
        if not self._hands.closing.is_set():
            refs, self._frees = self._frees, []
            self.spawn(self.call(self.backend.store.free, refs))

    def _close_soon(self, close: Close) -> None:
        """Clean up after a job, but not before its last values are on their way to who asked."""
        self._unopened.pop(close.job, None)
        self.losses.forget(close.job)
        self.spending.budget.forget(close.job)
        if self.places.forget(close.job):
            self.spawn(self.set_places())
        self._call_stacks.forget(close.job)
        self.backups.forget(close.job)
        self.launcher.forget(close.job)
        self.lookout.forget(close.job)
        if not self._closes:
            asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._close_jobs)
        self._closes.append(close)

    def _close_jobs(self) -> None:
        if not self._hands.closing.is_set():
            closes, self._closes = self._closes, []
            self.spawn(self._clean_up(closes))

    async def _clean_up(self, closes: list[Close]) -> None:
        opened = [self._opened.pop(close.job) for close in closes if close.job in self._opened]
        if opened:
            await asyncio.gather(*opened, return_exceptions=True)
        for close in closes:
            self._preparations.pop(close.job, None)
            self.recovery.supervisor.forget(close.job)
            self.legacy.note_end(close.job)
        if self.failed is None:
            await self.call(self._clean_store, closes)
        self.feed(Room())

    def _clean_store(self, closes: list[Close]) -> None:
        for close in closes:
            try:
                try:
                    self.backend.store.close_job(close.job, close.keep)  # which fences whoever is still at work
                finally:
                    self.constants.release(close.job)
            except PlatformError as error:
                if self._hands.closing.is_set():  # the whole store goes
                    return
                logger.warning("job %s was not cleaned up: %s", close.job, error)
            except Exception:  # our bug; the others are cleaned up
                logger.exception("job %s was not cleaned up", close.job)

    async def end_executors(self) -> None:
        """End everything that runs, at once, and use none of its sandboxes again."""
        with self.ending:
            await self.call(self.backend.retire, True)
            # 1. An invocation is on its way; 2. sandboxes are retired; 3. it arrives, and starts what nobody wants.
            if self._launches:
                await asyncio.wait(list(self._launches), timeout=LAUNCH_SECONDS_MAX)
                await self.call(self.backend.retire, True)
            # Who has heard that its job is over lingers while it is being ended: mail would be lost with it.
            await self.call(self.backend.store.send_home)

    async def retire_sandboxes(self) -> None:
        """Use no sandbox again that has served; those that work finish what they have."""
        await self.call(self.backend.retire, False)
        await self.call(self.backend.store.send_home)

    # -- what executors say ---------------------------------------------------------------------

    def take(self, events: list[Any]) -> None:
        """Take in what executors say."""
        with collector_paused():  # thousands of results at once, and all of them stay
            for event in events:
                try:
                    self._take_one(event)
                except Exception:  # our bug; the other events are other jobs' lives
                    logger.exception("an event could not be handled: %r", event)

    def _take_one(self, event: Any) -> None:
        match event:
            case ("count", job, counts):
                for name, amount in counts.items():
                    self.counts[name] = self.counts.get(name, 0) + amount
                self.spending.count(job, counts)
            case ("seceded" | "rejoined" as word, job, executor):
                self._note_seceded(job, executor, word == "seceded")
            case ("stack", job, executor, task, frames):
                now = asyncio.get_running_loop().time()
                self._call_stacks.note(job, executor, task, frames, now)
                self.backups.note(job, executor, task, now)
            case ("report", job, executor, report):
                self.experience.take(job, executor, report, asyncio.get_running_loop().time(), self.key_of)
            case ("sandbox", job, executor, sandbox, mailbox):
                self.launcher.note_retired(job, executor, sandbox, mailbox)
            case ("posted", job, posted):
                for recipient, executor in posted:
                    self.launcher.note_posted(recipient, job, executor)
            case ("log", blob):  # sealed, so it is one of our executors that pickled it
                self.waiter.task_event(*pickle.loads(blob))
            case ("missing", job, task, module):
                error = MissingModule(
                    f"{self._task_name(job, task)} needs the module {module!r} (or shares a segment with a task"
                    " that does), which the executors' environment does not have. Install it there, or define"
                    " the function in the notebook: functions of __main__ travel by value.",
                    name=module,
                )
                self.err(job, task, error)
            case ("lacking", job, constant):
                self.losses.lacking(job, constant)
            case ("lost", job, lost):
                self.losses.input_lost(job, lost)
            case ("invoke", blob):
                self.spawn(self.launcher.invoke([Assignment.from_bytes(blob)]))
            case _:
                if isinstance(event, Retired):
                    self.forget_executor(event.job, event.executor)
                self.feed(event)

    # -- what goes wrong ------------------------------------------------------------------------

    async def _keep_alive(self) -> None:
        """Nothing in the store lives for ever, except what somebody holds, as long as they hold it."""
        while True:
            await asyncio.sleep(self.backend.settings.storage_ttl / 4)
            try:
                await self.call(self.backend.store.touch, [*self.ledger.held(), *self.outfit_refs()])
                await self.call(self.constants.keep_alive)
                await self.legacy.keep_alive()
            except PlatformError as error:
                logger.warning("the time to live of stored values was not renewed: %s", error)

    def forget_executor(self, job: str, executor: str) -> None:
        """Whoever has retired or died runs nothing any more, and takes no place."""
        self._note_seceded(job, executor, False)
        self._call_stacks.forget(job, executor)
        self.backups.forget(job, executor)
        self.launcher.forget(job, executor)

    async def start_again(self, assignment: Assignment) -> None:
        """Give the record of an executor that died its next attempt, and invoke that."""
        if assignment.job in self._preparations:  # else the job is over
            await self.launcher.start_again(self.with_segments(assignment), self.places.count)

    async def admit_more(self, assignment: Assignment) -> bool:
        """Give one more executor a record, if there is room for it and its job goes on."""
        if assignment.job not in self._preparations:
            return False
        return bool(await self.call(self.backend.store.admit, [assignment], self.places.count))

    def with_segments(self, assignment: Assignment) -> Assignment:
        """Add the segments that an assignment had: perhaps they are nowhere else, as small jobs are not stored."""
        preparation = self._preparations.get(assignment.job)
        kept = {} if preparation is None else preparation.segments
        return replace(assignment, segments={n: kept[n] for n in assignment.hint if n in kept})

    def preparation(self, job: str) -> Preparation | None:
        """Return what was prepared of a job; None if that is not yet so, or the job is over."""
        return self._preparations.get(job)

    async def wait_until_opened(self, job: str) -> None:
        """Wait until what executors read of a job has been stored for the first time."""
        if job in self._opened:
            await asyncio.shield(self._opened[job])

    def key_of(self, job: str, task: int) -> Any:
        """Return the key of a task; None if it has none, or its job is over."""
        preparation = self._preparations.get(job)
        if task < 0 or preparation is None or task >= len(preparation.plan.keys):
            return None
        return preparation.plan.keys[task]

    def _task_name(self, job: str, task: int) -> str:
        key = self.key_of(job, task)
        return "a task (it did not say which)" if key is None else f"task {key!r}"

    def held_bytes(self) -> int:
        """Count the bytes of small values and of segments that are in this process's memory."""
        inline = sum(
            len(entry.result.location)
            for entry in self.ledger.keys.values()
            if entry.result is not None and isinstance(entry.result.location, bytes)
        )
        return inline + sum(len(each) for made in self._preparations.values() for each in made.segments.values())

    # -- small things ---------------------------------------------------------------------------

    def call_stacks(self, keys: Collection[Any] | None = None) -> dict[Any, Sequence[str]]:
        """Return where tasks are that have been running for a while: all, or those that `keys` wait for."""
        found: dict[Any, Sequence[str]] = {}
        for job, task, frames in self._call_stacks.fresh(asyncio.get_running_loop().time()):
            if job not in self._preparations:
                continue
            plan = self._preparations[job].plan
            if keys is not None:
                below = {task, *plan.graph.descendants(task)}
                if not any(plan.visible.get(key) in below for key in keys):
                    continue
            found[plan.keys[task]] = frames
        return found

    def set_ceiling(self, ceiling: int) -> None:
        """Change how many executors may live at once."""
        self.places.ceiling = ceiling
        self.spawn(self.set_places())

    def _note_seceded(self, job: str, executor: str, seceded: bool) -> None:
        if self.places.note_seceded(job, executor, seceded):
            self.spawn(self.set_places())

    async def set_places(self) -> None:
        """Tell Lambda and executors how many of them there may be."""
        async with self._setting_places:  # one by one: threads that overtook each other would leave an old number
            try:
                await self.call(self.backend.set_concurrency, self.places.count + self.places.awaited)
                await self.call(self.backend.store.set_ceiling, self.places.count)
            except PlatformError as error:
                logger.warning("executors have not heard of the new ceiling: %s", error)
        self.feed(Room())


async def _nothing() -> None:
    """There is no outfit."""
