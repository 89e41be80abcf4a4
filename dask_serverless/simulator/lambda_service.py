"""Lambda: invocations that are accepted, late, lost or doubled; environments that are cold, warm or dead. Pure.

Facts modelled, as AWS documents them: asynchronous invocations are queued, and may be lost or come twice; 1,000 new
environments per 10 seconds and function; a concurrency limit; a time limit; a record of what failed goes to a
destination. AWS's own retries are off, as this package has them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dask_serverless.simulator.network import PAUSE_SECONDS
from dask_serverless.simulator.sandbox import Sandbox
from dask_serverless.simulator.timeline import Body
from dask_serverless.supervisor import Cause
from lambda_worker.core.schedule import Assignment

if TYPE_CHECKING:
    from dask_serverless.simulator.simulation import Simulation

#: How long one invocation may be refused with 429 before it is given up (as `LambdaInvoker` does).
THROTTLED_SECONDS_MAX = 60.0
PAUSE_SECONDS_MAX = 5.0


@dataclass(frozen=True, slots=True)
class LambdaConfig:
    """The figures of a function.

    Parameters
    ----------
    concurrency
        Environments that work at once, at most.
    ramp_count, ramp_seconds
        So many new environments in so much time.
    request_seconds
        From a request to its answer.
    dispatch_seconds, dispatch_spread
        From the answer until a warm environment begins: the median, and the deviation of its logarithm. Some take
        many times as long as most, and who needs all waits for the last.
    invokers
        Requests that the proxy has under way at once.
    timeout_seconds
        What an invocation may take.
    warm
        Environments that are there from the beginning.
    """

    concurrency: int = 1_000
    ramp_count: int = 1_000
    ramp_seconds: float = 10.0
    request_seconds: float = 0.012
    dispatch_seconds: float = 0.008
    dispatch_spread: float = 0.3
    invokers: int = 64
    timeout_seconds: float = 900.0
    warm: int = 0


@dataclass(slots=True)
class Bill:
    """What was used."""

    requests: int = 0
    cold_starts: int = 0
    seconds: float = 0.0
    peak: int = 0  # environments at work at once
    by_class: dict[int, float] = field(default_factory=dict)


class LambdaService:
    """Lambda, for the functions of one cluster.

    Parameters
    ----------
    simulation
        Where it is.
    config
        Its figures.
    """

    def __init__(self, simulation: Simulation, config: LambdaConfig) -> None:
        self.simulation = simulation
        self.config = config
        self.bill = Bill()
        self.busy: dict[int, Sandbox] = {}
        self._queue: deque[Assignment] = deque()
        self._idle: dict[int, list[Sandbox]] = {}  # by function class; the last one was used last
        self._made = 0
        self._tokens = float(config.ramp_count)
        self._filled_at = 0.0
        for _ in range(config.warm):
            self._idle.setdefault(0, []).append(self._make(0))

    def __repr__(self) -> str:
        return f"<LambdaService: {len(self.busy)} at work, {len(self._queue)} queued>"

    # -- requests -------------------------------------------------------------------------------

    def invoke(self, assignment: Assignment, wanted: Callable[[], bool] = lambda: True) -> Body:
        """Ask for one asynchronous invocation, as the invokers do, as long as it is wanted; return why it was not
        accepted, or None."""
        sim = self.simulation
        time, luck = sim.timeline, sim.luck
        begun, pause = time.now, PAUSE_SECONDS
        if wanted():
            sim.watch.invokes(assignment)
        while True:
            faults = sim.faults
            if not wanted():
                return "Unwanted"
            sim.watch.requested[assignment.job] = time.now
            yield time.sleep(self.config.request_seconds * luck.uniform(0.8, 1.5))
            self.bill.requests += 1
            if faults.throttled and luck.random() < faults.throttled:
                if time.now - begun > THROTTLED_SECONDS_MAX:
                    return "TooManyRequestsException"
                yield time.sleep(pause * luck.uniform(0.5, 1.0))
                pause = min(2 * pause, PAUSE_SECONDS_MAX)
                continue
            if faults.unknown_outcome and luck.random() < faults.unknown_outcome:
                # It may have been accepted; who asks again doubles it.
                if luck.random() < 0.5:
                    self._accept(assignment)
                yield time.sleep(pause)
                continue
            self._accept(assignment)
            return None

    def _accept(self, assignment: Assignment) -> None:
        sim = self.simulation
        time, luck, faults = sim.timeline, sim.luck, sim.faults
        if faults.invocation_lost and luck.random() < faults.invocation_lost:
            sim.tell("lambda", f"loses {_name(assignment)}")
            sim.watch.excuse("lost")
            return
        copies = 1
        if faults.invocation_doubled and luck.random() < faults.invocation_doubled:
            copies = luck.choice((2, 2, 3))
        for copy in range(copies):
            seconds = self.config.dispatch_seconds * luck.lognormvariate(0.0, self.config.dispatch_spread)
            if copy:
                seconds += luck.choice((0.0, 0.1, 3.0, 60.0)) * luck.random()
            if faults.invocation_late and luck.random() < faults.invocation_late:
                seconds += sim.options.lease_seconds * luck.uniform(0.0, 4.0)
                sim.watch.excuse("late")
            time.after(seconds, self._enqueue, assignment)

    def _enqueue(self, assignment: Assignment) -> None:
        self._queue.append(assignment)
        self._dispatch()

    def _dispatch(self) -> None:
        """Begin what waits, as far as there are environments for it."""
        sim = self.simulation
        while self._queue and len(self.busy) < self.config.concurrency:
            function_class = self._queue[0].function_class
            idle = self._idle.setdefault(function_class, [])
            seconds = 0.0
            if idle:
                sandbox = idle.pop()
            else:
                if not self._take_token():
                    sim.timeline.after(self.config.ramp_seconds / self.config.ramp_count, self._dispatch)
                    return
                sandbox = self._make(function_class)
                seconds = sim.faults.cold_seconds * sim.luck.uniform(0.5, 2.0)
                self.bill.cold_starts += 1
            assignment = self._queue.popleft()
            self.busy[sandbox.number] = sandbox
            self.bill.peak = max(self.bill.peak, len(self.busy))
            sandbox.invoked_at = sim.timeline.now
            sim.timeline.after(seconds, self._begin, sandbox, assignment)

    def _take_token(self) -> bool:
        config, now = self.config, self.simulation.timeline.now
        grown = (now - self._filled_at) * config.ramp_count / config.ramp_seconds
        self._tokens = min(float(config.ramp_count), self._tokens + grown)
        self._filled_at = now
        if self._tokens < 1.0 - 1e-9:
            return False
        self._tokens -= 1.0
        return True

    def _make(self, function_class: int) -> Sandbox:
        self._made += 1
        return Sandbox(self.simulation, self._made, function_class)

    # -- environments ---------------------------------------------------------------------------

    def _begin(self, sandbox: Sandbox, assignment: Assignment) -> None:
        sim = self.simulation
        if not sandbox.alive:
            return
        sim.timeline.after(self.config.timeout_seconds, self._time_out, sandbox, sandbox.invocation + 1)
        rate = sim.faults.crash_per_second
        if rate:
            sim.timeline.after(sim.luck.expovariate(rate), self._crash, sandbox, sandbox.invocation + 1)
        sandbox.serve(assignment, sim.timeline.now + self.config.timeout_seconds)

    def _time_out(self, sandbox: Sandbox, invocation: int) -> None:
        if sandbox.invocation == invocation and sandbox.number in self.busy:
            sandbox.die("time is up", Cause.TIMEOUT)

    def _crash(self, sandbox: Sandbox, invocation: int) -> None:
        if sandbox.invocation == invocation and sandbox.number in self.busy and self.simulation.faults.crash_per_second:
            sandbox.die("crashes", Cause.CRASH)

    def ended(self, sandbox: Sandbox, invoked: Assignment, cause: Cause | None) -> None:
        """An invocation ended, well (no cause) or badly; whoever is alive still may serve another."""
        self.busy.pop(sandbox.number, None)
        seconds = self.simulation.timeline.now - sandbox.invoked_at
        self.bill.seconds += seconds
        by_class = self.bill.by_class
        by_class[sandbox.function_class] = by_class.get(sandbox.function_class, 0.0) + seconds
        if cause is not None:
            self._record_failure(invoked, cause)
        if sandbox.alive:
            self._idle.setdefault(sandbox.function_class, []).append(sandbox)
        self._dispatch()

    def _record_failure(self, invoked: Assignment, cause: Cause) -> None:
        sim = self.simulation
        faults, luck = sim.faults, sim.luck
        if faults.failure_lost and luck.random() < faults.failure_lost:
            return
        copies = 2 if faults.failure_doubled and luck.random() < faults.failure_doubled else 1
        for _ in range(copies):
            sim.timeline.after(luck.uniform(0.02, 2.0), sim.proxy.hear_failure, invoked, cause)


def _name(assignment: Assignment) -> str:
    return f"{assignment.job}/{assignment.executor}#{assignment.attempt}"


def names(assignments: Sequence[Assignment]) -> str:
    """Name assignments, for the story."""
    return " ".join(map(_name, assignments))
