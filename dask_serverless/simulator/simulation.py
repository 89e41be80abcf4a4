"""One run: a workload, a cluster, faults, all drawn from a seed; and what came of it. Pure.

A run has two phases. While the faults are on, nothing wrong may happen (*safety*). Then they end, and everything must
come to its end in bounded time (*liveness*).
"""

from __future__ import annotations

import math
import random
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dask_serverless.job_events import Key
from dask_serverless.simulator import faults as fault_plans
from dask_serverless.simulator import workload as workloads
from dask_serverless.simulator.client import Client
from dask_serverless.simulator.driver import Driver
from dask_serverless.simulator.faults import Faults
from dask_serverless.simulator.invariants import Violated, Watch
from dask_serverless.simulator.lambda_service import LambdaConfig, LambdaService
from dask_serverless.simulator.network import ZONE_PER_SECOND, ObjectStore, Server
from dask_serverless.simulator.proxy import Proxy
from dask_serverless.simulator.sim_store import SimStore
from dask_serverless.simulator.tier import Tier
from dask_serverless.simulator.timeline import Body, Signal, Timeline, Trace
from dask_serverless.simulator.workload import MIB, SimJob, SimTask, Workload
from lambda_worker.core.policy import Policy
from lambda_worker.core.schedule import Assignment, Edges

if TYPE_CHECKING:
    from dask_serverless.plan.graph import Graph
    from dask_serverless.simulator.network import Host

#: Mail is kept twice for a moment; what is larger goes by invocation (as in `lambda_worker.lingering`).
MAIL_BYTES_MAX = 64 * 1024
#: A run of drawn jobs takes some hundreds to some ten thousand: one that goes round in circles is to end as well.
STEPS_MAX = 1_000_000
#: What comes after the last answer: values are let go, jobs are closed, invocations that come late find nothing.
GRACE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Options:
    """A cluster, and how long things may go wrong in it.

    Parameters
    ----------
    policy
        The numbers that executors decide by.
    ceiling, function_classes, allowed_failures, lease_seconds, linger_seconds
        As in a cluster's configuration.
    function
        Lambda's figures.
    shards, overflow_mebibytes
        Of the storage tier; and what there is beside them (as S3: endless, and slow now and then).
    latency_seconds, latency_spread
        From a host to the tier, or back: the median, and the deviation of the logarithm.
    segments_travel
        Whether invocations carry segments, or executors read them.
    whole_schedules
        Whether who begins with a job is given all of its graph.
    last_words
        Whether it is known what was running in a sandbox that died (locally), or only what its last heartbeat said.
    budget_dollars, executions_per_task, storage_allowed_failures
        As in a cluster's configuration.
    speculation
        Whether stragglers get backups.
    cached_share
        Of the values from other jobs that an executor is given: how many its sandbox takes for cached.
    waiting_share
        Of the starts with a value from another job: how many wait a moment for a place near it, each time.
    packed_per_second
        Bytes of values that an executor packs or unpacks.
    zone_per_second
        Bytes that all hosts move together.
    reads_one_by_one
        Whether the values that a task needs are read one after the other, or all at once.
    gather
        Whether the client reads what it wanted, or leaves it where it is.
    watched
        Whether everything is looked at after each step (what is only to be calculated need not be).
    safety_seconds, liveness_seconds
        How long faults are on; and how long a run may then take.
    """

    policy: Policy = field(default_factory=Policy)
    ceiling: int = 8
    function_classes: int = 3
    allowed_failures: int = 3
    lease_seconds: float = 15.0
    linger_seconds: float = 0.2
    function: LambdaConfig = field(default_factory=LambdaConfig)
    shards: int = 2
    overflow_mebibytes: float = 0.0
    latency_seconds: float = 0.0005
    latency_spread: float = 0.0
    segments_travel: bool = True
    whole_schedules: bool = False
    last_words: bool = True
    budget_dollars: float | None = None
    executions_per_task: int = 10
    storage_allowed_failures: int = 5
    speculation: bool = False
    cached_share: float = 0.0
    waiting_share: float = 0.0
    packed_per_second: float = math.inf
    zone_per_second: float = ZONE_PER_SECOND
    reads_one_by_one: bool = False
    gather: bool = True
    watched: bool = True
    safety_seconds: float = 60.0
    liveness_seconds: float = 10_000.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of; tests plant bugs here."""

    store: Callable[..., SimStore] = SimStore
    driver: Callable[..., Driver] = Driver
    proxy: Callable[..., Proxy] = Proxy


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run."""

    seed: int
    options: Options
    faults: Faults
    seconds: float
    steps: int
    digest: str
    answers: Mapping[Key, str]
    violation: Violated | None
    story: list[str] = field(repr=False)

    def brief(self) -> Outcome:
        """Return this without its story."""
        return replace(self, story=[])

    def __str__(self) -> str:
        verdict = "ok" if self.violation is None else f"VIOLATED {self.violation}"
        ran = f"{self.seconds:.1f} s, {self.steps} steps, digest {self.digest}"
        return f"seed {self.seed}: {verdict}; {ran}, {self.faults}"


class Simulation:
    """One run, from its beginning.

    Parameters
    ----------
    seed
        Draws everything.
    workload, faults, options
        In the place of what the seed draws.
    parts
        In the place of the real thing.

    Examples
    --------
    >>> outcome = Simulation(7).run()
    >>> outcome.violation, outcome.digest == Simulation(7).run().digest
    (None, True)
    """

    def __init__(
        self,
        seed: int,
        workload: Workload | None = None,
        faults: Faults | None = None,
        options: Options | None = None,
        parts: Parts | None = None,
    ) -> None:
        self.seed = seed
        self.parts = parts or Parts()
        self.workload = workloads.draw(_luck(seed, "workload")) if workload is None else workload
        self.drawn = fault_plans.draw(fault_plans.luck_of(seed)) if faults is None else faults
        self.options = draw_options(_luck(seed, "options")) if options is None else options
        self.faults = self.drawn
        self.luck = _luck(seed, "luck")
        self.timeline = Timeline()
        self.trace = Trace()
        self.tasks: dict[str, dict[int, SimTask]] = {}
        self.graphs: dict[str, Graph] = {}
        self.externals: dict[str, frozenset[int]] = {}
        self.origins: dict[str, str] = {}  # by job: its name when it began for the first time
        for job in self.workload.jobs:
            self.learn_of(job)
        self.last_words: dict[tuple[str, str], int] = {}
        self.mailboxes: dict[str, Signal] = {}
        self._clock_jump = 0.0
        self._edges: dict[bytes, Edges] = {}
        self._asked: dict[tuple[str, int], int] = {}
        room = int(self.drawn.shard_mebibytes * MIB) or 2**60
        beside = int(min(self.options.overflow_mebibytes * MIB, 2**60))
        self.tier = Tier(self._store_clock, self.options.shards, room, workloads.measure, beside)
        self.tier.on_mail = self._on_mail
        self.stores: list[SimStore] = []
        self.store = self.new_store()  # the proxy's
        self.metadata = Server("the metadata server")
        self.shards = [Server(f"the shard {number} server") for number in range(self.options.shards)]
        self.overflow = ObjectStore("the overflow", self.luck)
        self.zone = Server("the zone's network", self.options.zone_per_second, 0.0)
        self.watch = Watch(self)
        self.service = LambdaService(self, self.options.function)
        self.proxy = self.parts.proxy(self)
        self.tier.on_events = self.proxy.wake
        self.client = Client(self)

    def __repr__(self) -> str:
        return f"<Simulation {self.seed} at {self.timeline.now:.3f} s>"

    def learn_of(self, job: SimJob) -> None:
        """There is a job."""
        self.tasks[job.name] = job.tasks
        self.graphs[job.name] = job.graph
        self.externals[job.name] = frozenset(job.externals.values())
        self.origins[job.name] = job.origin or job.name

    def is_cached(self, driver: str, task: int) -> bool:
        """Tell whether an executor finds a value from another job in its sandbox."""
        share = self.options.cached_share
        return share > 0 and _luck(self.seed, f"cached {driver} {task}").random() < share

    def waits(self, launch: str, task: int) -> bool:
        """Tell whether a start waits for a place near its value."""
        share = self.options.waiting_share
        return share > 0 and _luck(self.seed, f"waits {launch} {task}").random() < share

    def new_store(self, holder: str = "") -> SimStore:
        """Make a client of the tier."""
        store = self.parts.store(self.tier, lease_seconds=self.options.lease_seconds, holder=holder)
        self.stores.append(store)
        return store

    def server(self, shard: int) -> Server:
        """Return who serves values of a shard (-1: of none, but beside them)."""
        return self.overflow if shard < 0 else self.shards[shard]

    def tell(self, who: str, what: str) -> None:
        """Add to the story."""
        self.trace.note(self.timeline.now, who, what)

    def run(self) -> Outcome:
        """Run to the end, or to the first violation."""
        time, watch = self.timeline, self.watch
        if self.drawn.loses_metadata:
            self.store.begin()
        for job in self.workload.jobs:
            time.after(job.at, self.proxy.submit, job)
            if job.released_at < float("inf"):
                time.after(job.released_at, self.client.forget, job)
        time.spawn(self.proxy.sweep())
        if self.options.budget_dollars is not None:
            time.spawn(self.proxy.purse.watch())
        for weather in self._weather():
            time.spawn(weather)
        deadline = self.options.safety_seconds + self.options.liveness_seconds
        over_since: float | None = None
        while watch.violation is None and time.next < deadline:
            if self.faults is self.drawn and time.next >= self.options.safety_seconds:
                self._end_faults()
            if time.steps > STEPS_MAX and self.options.watched:
                watch.violated("I2", f"not over after {time.steps:,} steps, at {time.now:.3f} s")
                break
            try:
                time.step()
            except Exception as error:  # where a promise is broken, the program may fail before anybody looks
                self.trace.lines.extend(traceback.format_exc().splitlines())
                watch.violated("I1", f"an error of ours: {error!r}")
            if over_since is None:
                over_since = time.now if self.is_over() else None
            elif time.now > over_since + GRACE_SECONDS and time.next > time.now:
                break
        if watch.violation is None:
            if over_since is None:
                watch.violated("I2", f"not over after {time.now:.0f} s: {self.client.pending} are pending")
            else:
                watch.ended()
        return Outcome(
            self.seed,
            self.options,
            self.drawn,
            over_since or time.now,
            time.steps,
            self.trace.digest,
            self.client.answered,
            watch.violation,
            list(self.trace.lines),
        )

    def is_over(self) -> bool:
        """Tell whether every job was submitted, and every key answered."""
        last = max(job.at for job in self.workload.jobs)
        return self.timeline.now >= last and not self.client.pending

    def edges_of(self, blob: bytes) -> Edges:
        """Unpack a segment. Nobody changes one, so all who read it share it."""
        found = self._edges.get(blob)
        if found is None:
            found = self._edges[blob] = Edges.from_bytes(blob)
        return found

    def after_step(self) -> None:
        """Something was done at the store."""
        if self.options.watched:
            self.watch.look()

    def together(self, host: Host, bodies: Iterable[Body]) -> Body:
        """Do several things at the same time; return what came of each. The first error ends the waiting."""
        todo = list(bodies)
        if len(todo) == 1:
            return [(yield from todo[0])]
        signals = [Signal() for _ in todo]

        def one(body: Body, signal: Signal) -> Body:
            try:
                signal.set((yield from body))
            except Exception as error:
                signal.set(error=error)

        for body, signal in zip(todo, signals, strict=True):
            self.timeline.spawn(one(body, signal), lambda: host.alive)
        results: list[Any] = []
        for signal in signals:
            results.append((yield signal.wait))
        return results

    def asks_for_later(self, job: str, task: int) -> bool:
        """Tell whether a task asks to be run later: so often altogether, wherever it runs."""
        asked = self._asked.get((job, task), 0)
        self._asked[job, task] = asked + 1
        return asked < self.tasks[job][task].reschedules

    def mail_of(self, assignment: Assignment) -> bytes:
        """Return what an executor that lingers is sent (empty: this one is to be invoked)."""
        if not self.options.linger_seconds or assignment.function_class:
            return b""
        mail = assignment.to_bytes()
        return b"" if len(mail) > MAIL_BYTES_MAX else mail

    def _on_mail(self, name: str) -> None:
        signal = self.mailboxes.get(name)
        if signal is not None:
            self.timeline.after(self.options.latency_seconds, signal.set)

    def _store_clock(self) -> float:
        return self.timeline.now + self._clock_jump

    # -- weather --------------------------------------------------------------------------------

    def _end_faults(self) -> None:
        self.tell("weather", "clears up")
        self.faults = self.drawn.over()
        for sandbox in self.service.busy.values():
            sandbox.cut_until = 0.0

    def _weather(self) -> list[Body]:
        faults = self.drawn
        return [
            self._now_and_then(rate, deed)
            for rate, deed in (
                (faults.cut_per_second, self._cut),
                (faults.value_lost_per_second, self._lose_value),
                (faults.shard_lost_per_second, self._lose_shard),
                (faults.rollback_per_second, self._roll_back),
                (faults.jump_per_second, self._jump),
                (faults.metadata_lost_per_second, self._forget),
                (faults.failover_per_second, self._begin_failover),
            )
            if rate
        ]

    def _now_and_then(self, rate: float, deed: Callable[[], None]) -> Body:
        while True:
            yield self.timeline.sleep(self.luck.expovariate(rate))
            if self.faults is not self.drawn or self.is_over():
                return
            deed()

    def _cut(self) -> None:
        if self.service.busy:
            sandbox = self.luck.choice(list(self.service.busy.values()))
            seconds = self.luck.expovariate(1 / self.faults.cut_seconds)
            self.tell("weather", f"{sandbox.name} is cut off for {seconds:.2f} s")
            self.watch.excuse("cut")
            sandbox.cut_until = self.timeline.now + seconds

    def _lose_value(self) -> None:
        places = enumerate(self.tier.places())
        stored = [(number, name) for number, place in places for name in place.objects]
        if stored:
            number, name = self.luck.choice(stored)
            self._lose(number, [name], "loses")

    def _lose_shard(self) -> None:
        number = self.luck.randrange(len(self.tier.shards))
        self._lose(number, None, "is empty")

    def _roll_back(self) -> None:
        number = self.luck.randrange(len(self.tier.shards))
        names = list(self.tier.shards[number].objects)
        share = self.luck.random() * min(1.0, self.faults.rollback_seconds)
        self._lose(number, names[len(names) - int(len(names) * share + 0.5) :], "forgets what was written last:")

    def _lose(self, number: int, names: Collection[str] | None, how: str) -> None:
        lost = self.tier.lose(number, names if names is None else list(names))
        where = f"shard {number}" if number < len(self.shards) else "the overflow"
        self.tell("weather", f"{where} {how} {lost} values")
        self.watch.values_lost += lost + (names is None)
        self.watch.excuse("value")

    def _forget(self) -> None:
        self.tell("weather", "the metadata server forgets everything")
        self.watch.metadata_lost += 1
        self.tier.forget()
        self.proxy.wake()  # the connection that it listens on has broken

    def _begin_failover(self) -> None:
        seconds = self.luck.random() * self.faults.failover_seconds
        self.timeline.after(seconds, self._fail_over, self.tier.save(), seconds)

    def _fail_over(self, saved: dict[str, Any], seconds: float) -> None:
        if self.faults is self.drawn:
            self.tell("weather", f"another metadata server stands in, which knows nothing of the last {seconds:.3f} s")
            self.watch.metadata_lost += 1
            self.tier.fail_over(saved)
            self.proxy.wake()

    def _jump(self) -> None:
        seconds = self.luck.choice((-1, 1)) * self.luck.uniform(0.0, self.faults.jump_seconds)
        self.tell("weather", f"the store's clock jumps by {seconds:.1f} s")
        self.watch.excuse("clock")
        self._clock_jump += seconds


def _luck(seed: int, what: str) -> random.Random:
    return random.Random(f"{seed} {what}")  # by text: the same in every process


def draw_options(luck: random.Random) -> Options:
    """Draw a cluster."""
    ceiling = luck.choice((1, 2, 3, 4, 8, 16))
    policy = Policy(
        ceiling=ceiling,
        inline_bytes_max=luck.choice((0, 1_000, 64 * 1024, 64 * 1024)),
        invoke_here_min=luck.choice((1, 4)),
        share_seconds_min=luck.choice((0.0, 0.02, 0.5)),
        full_seconds=luck.choice((0.0, 1.0)),
        refused_seconds=luck.choice((0.01, 0.1)),
        fetch_ahead=luck.choice((1, 2, 4)),
        kept_bytes_max=luck.choice((MIB, 256 * MIB)),
        hold=luck.random() < 0.7,
        hold_bytes_min=luck.choice((0, 10_000, MIB)),
        group=luck.random() < 0.7,
        split=luck.random() < 0.8,
        prefetch=luck.random() < 0.8,
        locality=luck.random() < 0.8,
    )
    function = LambdaConfig(
        concurrency=ceiling + luck.choice((0, 1, 100)),
        ramp_count=luck.choice((5, 1_000)),
        timeout_seconds=luck.choice((150.0, 300.0, 900.0)),
        warm=luck.choice((0, 0, 2, ceiling)),
    )
    options = replace(
        Options(),
        policy=policy,
        ceiling=ceiling,
        function=function,
        lease_seconds=luck.choice((3.0, 15.0)),
        linger_seconds=luck.choice((0.0, 0.2, 0.2, 2.0)),
        shards=luck.choice((1, 2, 3)),
        latency_seconds=luck.choice((0.0002, 0.0005, 0.005)),
        segments_travel=luck.random() < 0.7,
        last_words=luck.random() < 0.7,
        safety_seconds=luck.choice((20.0, 60.0, 200.0)),
        speculation=luck.random() < 0.3,
    )
    # Drawn last: what was drawn before stays what it was.
    tier_bytes_per_second = luck.choice((math.inf, 1e8, 1e6))  # with the least, values are held for long
    overflow_mebibytes = luck.choice((0.0, 20.0, math.inf))
    policy = replace(policy, tier_bytes_per_second=tier_bytes_per_second)
    cached_share = luck.choice((0.0, 0.5, 1.0))
    options = replace(options, policy=policy, overflow_mebibytes=overflow_mebibytes, cached_share=cached_share)
    waiting_share = luck.choice((0.0, 0.5))
    full_executors = luck.choice((1, 200))  # with the least, every fleet is a wide one
    return replace(options, policy=replace(policy, full_executors=full_executors), waiting_share=waiting_share)
