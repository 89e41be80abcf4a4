"""The bookkeeping of sandboxes and invocations: events in, instructions out. Pure.

A sandbox is always in one of these states; only the methods of `Pool` change them:

    STARTING ──ready──▶ IDLE ──invoke──▶ BUSY ──answered──▶ RETURNING ──ready──▶ IDLE
        │                │                │                     │
        └──────(too long, reaped, over a limit)──▶ DOOMED ◀─────┘         any state ──died──▶ gone

* An invocation belongs to no sandbox until one takes it: whichever is ready first takes the oldest one waiting.
  A sandbox is started only for invocations that none of those starting or returning will take, and a few at a time:
  a thousand at once would all be ready late, and one after the other the first ones take what the last ones were for.
* RETURNING exists because a caller may hear the answer, and invoke again, before the sandbox has asked for its
  next invocation; without it, that second invocation would cost a cold start.
* DOOMED: a kill is under way. The invocation ends when the death is confirmed, not when it is decided: whoever
  hears "timed out" may rely on the sandbox doing nothing more. An answer that arrives in between is ignored.
* A sandbox runs one function only. All functions share the concurrency; when as many sandboxes live as it allows,
  the longest idle one of another function makes room for a new one.
* A retired sandbox serves no further invocation. Nobody has used one that is still starting: it is not retired.
* A sandbox that dies before it was ever ready takes the oldest waiting invocation with it. So a function that
  cannot start makes every invocation fail, once, rather than starting sandboxes for ever.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum

from dask_serverless.local_lambda import verdicts
from dask_serverless.local_lambda.verdicts import Outcome

#: How long a returning sandbox is trusted to come back before another one is started in its stead,
#: and how long before it is given up. Coming back takes well under a millisecond, unless threads that the
#: function left behind hold the GIL.
RETURN_SECONDS_TRUSTED = 0.25
RETURN_SECONDS_MAX = 10.0


class State(Enum):
    """Where a sandbox is in its life (see the module's page)."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    RETURNING = "returning"
    DOOMED = "doomed"


class Throttled(Exception):
    """As many invocations as the concurrency allows are running."""


@dataclass(slots=True)
class Invocation:
    """One accepted request to run the function."""

    request_id: str
    payload: bytes
    event: bool  # asynchronous: the caller has been answered already
    function: int = 0
    trace_id: str = ""
    client_context: str = ""


@dataclass(slots=True)
class Sandbox:
    """One process that runs the function, as the pool sees it."""

    name: str
    state: State
    since: float
    function: int = 0
    pid: int | None = None
    came_up: bool = False  # it has asked for an invocation at least once
    retired: bool = False  # it will be killed when it has answered
    served: int = 0
    busy_since: float = 0.0
    invocation: Invocation | None = None
    verdict: Outcome | None = None  # what to report instead of the exit, when the pool decided the kill


@dataclass(frozen=True, slots=True)
class Start:
    """Start a sandbox for a function."""

    sandbox: str
    function: int = 0


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill a sandbox; its death is expected as an event."""

    sandbox: str


@dataclass(frozen=True, slots=True)
class Deliver:
    """Answer the sandbox's wait for its next invocation."""

    sandbox: str
    invocation: Invocation


@dataclass(frozen=True, slots=True)
class Finish:
    """Tell whoever is to know how an invocation ended."""

    invocation: Invocation
    outcome: Outcome


Instruction = Start | Kill | Deliver | Finish


@dataclass(frozen=True, slots=True)
class Limits:
    """What an invocation of one function may use."""

    memory_bytes: int
    timeout_seconds: float


@dataclass(slots=True)
class Counters:
    """What happened since the service started. `killed`: by the service, for time or memory."""

    invocations: int = 0
    sandboxes_cold: int = 0
    sandboxes_warm: int = 0
    sandboxes_started: int = 0
    throttled: int = 0
    killed: int = 0
    timed_out: int = 0
    out_of_memory: int = 0
    crashed: int = 0
    function_errors: int = 0
    billed_milliseconds: int = 0


class Pool:
    """Sandboxes and the invocations they run.

    Parameters
    ----------
    concurrency
        Invocations accepted and not yet ended, at most.
    limits
        Limits of one invocation, for each function.
    idle_seconds_max, idle_sandboxes_max
        Limits of what is kept warm (None: as many as `concurrency`).
    start_seconds_max
        A sandbox that takes longer to become ready is killed.
    new_name
        Makes the name of a sandbox.
    starting_max
        Sandboxes that are starting at once, at most.
    """

    def __init__(
        self,
        *,
        concurrency: int,
        limits: Sequence[Limits],
        new_name: Callable[[], str],
        idle_seconds_max: float = 300,
        idle_sandboxes_max: int | None = None,
        start_seconds_max: float = 60,
        starting_max: int = 64,
    ) -> None:
        self.starting_max = starting_max
        self.concurrency = concurrency
        self.limits = tuple(limits)
        self.idle_seconds_max = idle_seconds_max
        self.idle_sandboxes_max = idle_sandboxes_max
        self.start_seconds_max = start_seconds_max
        self.counters = Counters()
        self.sandboxes: dict[str, Sandbox] = {}
        # By function: invocations that wait for a sandbox, sandboxes that start, and what was billed.
        self._waiting: list[deque[Invocation]] = [deque() for _ in self.limits]
        self._starting = [0] * len(self.limits)
        self._billed_milliseconds = [0] * len(self.limits)
        self.running = 0  # invocations accepted and not yet ended
        self._new_name = new_name
        # Insertion order is meaning: the last idle one is the most recently used.
        self._in_state: dict[State, dict[str, Sandbox]] = {state: {} for state in State}

    def __repr__(self) -> str:
        states = ", ".join(f"{len(self._in_state[state])} {state.value}" for state in State)
        return f"<Pool: {self.running}/{self.concurrency} running, {len(self.waiting)} waiting; {states}>"

    @property
    def active(self) -> bool:
        """Whether anything is under way that has a time limit of its own (idle sandboxes do not count)."""
        return len(self._in_state[State.IDLE]) < len(self.sandboxes) or any(self._waiting)

    @property
    def waiting(self) -> list[Invocation]:
        """The invocations that no sandbox has taken yet."""
        return [invocation for waiting in self._waiting for invocation in waiting]

    def busy(self) -> list[Sandbox]:
        """Return the sandboxes that run an invocation now."""
        return list(self._in_state[State.BUSY].values())

    # Events ---------------------------------------------------------------------------------

    def invoke(self, invocation: Invocation, now: float) -> list[Instruction]:
        """Take on an invocation. Raises `Throttled` when there is no room for it."""
        if self.running >= self.concurrency:
            self.counters.throttled += 1
            raise Throttled
        self.counters.invocations += 1
        self.running += 1
        idle = self._in_state[State.IDLE]
        for name in reversed(idle):
            if idle[name].function == invocation.function:
                return [self._deliver(idle[name], invocation, now)]
        self._waiting[invocation.function].append(invocation)
        return self._balance(now)

    def ready(self, name: str, now: float) -> list[Instruction]:
        """A sandbox asks for its next invocation."""
        sandbox = self.sandboxes.get(name)
        if sandbox is None or sandbox.state is State.DOOMED:
            return []
        sandbox.came_up = True
        if sandbox.state is State.BUSY:  # it asks again without having answered: the runtime is broken
            return [self._doom(sandbox, now)]
        waiting = self._waiting[sandbox.function]
        if waiting:
            return [self._deliver(sandbox, waiting.popleft(), now), *self._balance(now)]
        self._move(sandbox, State.IDLE, now)
        return self._reap(now) + self._balance(now)

    def answered(self, name: str, request_id: str, outcome: Outcome, now: float) -> list[Instruction]:
        """A sandbox answers its invocation. A late or foreign answer is ignored."""
        sandbox = self.sandboxes.get(name)
        if sandbox is None or sandbox.state is not State.BUSY:
            return []
        assert sandbox.invocation is not None
        if sandbox.invocation.request_id != request_id:
            return []
        finish = self._finish(sandbox, outcome, now)
        if sandbox.retired:
            return [finish, self._doom(sandbox, now)]
        self._move(sandbox, State.RETURNING, now)
        return [finish]

    def hung_up(self, name: str, now: float) -> list[Instruction]:
        """A sandbox no longer waits for an invocation: it is dead or broken, and must be given none."""
        sandbox = self.sandboxes.get(name)
        if sandbox is None or sandbox.state is not State.IDLE:
            return []
        return [self._doom(sandbox, now)]

    def started(self, name: str, pid: int) -> None:
        """A sandbox's process exists."""
        sandbox = self.sandboxes.get(name)
        if sandbox is not None:
            sandbox.pid = pid

    def died(self, name: str, status: int, now: float, why: str = "") -> list[Instruction]:
        """A sandbox's process is gone (`status`: exit status, or minus a signal), or could not be made (`why`)."""
        sandbox = self.sandboxes.pop(name, None)
        if sandbox is None:
            return []
        del self._in_state[sandbox.state][name]
        self._starting[sandbox.function] -= sandbox.state is State.STARTING
        waiting = self._waiting[sandbox.function]
        instructions: list[Instruction] = []
        if sandbox.invocation is not None:
            if sandbox.verdict is None:
                self.counters.crashed += 1
            outcome = sandbox.verdict or verdicts.exited(sandbox.invocation.request_id, status)
            instructions.append(self._finish(sandbox, outcome, now))
        elif waiting and not sandbox.came_up:
            sandbox.invocation = waiting.popleft()
            request_id = sandbox.invocation.request_id
            outcome = sandbox.verdict or verdicts.start_failed(request_id, why or verdicts.exit_reason(status))
            instructions.append(self._finish(sandbox, outcome, now))
        return instructions + self._balance(now)

    def init_failed(self, name: str, outcome: Outcome) -> None:
        """A sandbox says that it cannot start; its death will follow."""
        sandbox = self.sandboxes.get(name)
        if sandbox is not None and sandbox.invocation is None:
            sandbox.verdict = outcome

    def set_concurrency(self, concurrency: int, now: float) -> list[Instruction]:
        """Change how many invocations may run at once. Those that run now stay."""
        self.concurrency = concurrency
        return self._reap(now)

    def retire(self, at_once: bool, now: float) -> list[Instruction]:
        """Use no sandbox again that has served; `at_once`: end those that work, and what waits for one."""
        instructions: list[Instruction] = []
        for state in (State.IDLE, State.RETURNING, State.BUSY):
            for sandbox in list(self._in_state[state].values()):
                if state is not State.BUSY:
                    instructions.append(self._doom(sandbox, now))
                elif at_once:
                    assert sandbox.invocation is not None
                    instructions.append(self._doom(sandbox, now, verdicts.retired(sandbox.invocation.request_id)))
                else:
                    sandbox.retired = True
        for invocation in self.waiting if at_once else ():
            self._waiting[invocation.function].remove(invocation)
            self.running -= 1
            self.counters.function_errors += 1
            instructions.append(Finish(invocation, verdicts.retired(invocation.request_id)))
        return instructions + self._balance(now)

    def tick(self, now: float, private_bytes: Mapping[str, int]) -> list[Instruction]:
        """Time has passed: enforce limits. `private_bytes`: memory of busy sandboxes, as far as known."""
        instructions: list[Instruction] = []
        for sandbox in list(self._in_state[State.BUSY].values()):
            assert sandbox.invocation is not None
            request_id = sandbox.invocation.request_id
            used = private_bytes.get(sandbox.name, 0)
            limits = self.limits[sandbox.function]
            if used > limits.memory_bytes:
                self.counters.out_of_memory += 1
                instructions.append(self._doom(sandbox, now, verdicts.out_of_memory(request_id, used)))
            elif now - sandbox.since >= limits.timeout_seconds:
                self.counters.timed_out += 1
                instructions.append(self._doom(sandbox, now, verdicts.timed_out(request_id, limits.timeout_seconds)))
        for state, seconds in ((State.STARTING, self.start_seconds_max), (State.RETURNING, RETURN_SECONDS_MAX)):
            for sandbox in list(self._in_state[state].values()):
                if now - sandbox.since >= seconds:
                    instructions.append(self._doom(sandbox, now))
        return instructions + self._reap(now) + self._balance(now)

    # Helpers --------------------------------------------------------------------------------

    def _move(self, sandbox: Sandbox, state: State, now: float) -> None:
        del self._in_state[sandbox.state][sandbox.name]
        self._starting[sandbox.function] -= sandbox.state is State.STARTING
        self._in_state[state][sandbox.name] = sandbox
        sandbox.state = state
        sandbox.since = now

    def _deliver(self, sandbox: Sandbox, invocation: Invocation, now: float) -> Deliver:
        if sandbox.served:
            self.counters.sandboxes_warm += 1
        else:
            self.counters.sandboxes_cold += 1
        sandbox.served += 1
        sandbox.busy_since = now
        sandbox.invocation = invocation
        self._move(sandbox, State.BUSY, now)
        return Deliver(sandbox.name, invocation)

    def _finish(self, sandbox: Sandbox, outcome: Outcome, now: float) -> Finish:
        assert sandbox.invocation is not None
        invocation, sandbox.invocation = sandbox.invocation, None
        if sandbox.served:  # a start that failed is not billed
            milliseconds = math.ceil((now - sandbox.busy_since) * 1000)
            self.counters.billed_milliseconds += milliseconds
            self._billed_milliseconds[sandbox.function] += milliseconds
        if outcome.function_error:
            self.counters.function_errors += 1
        self.running -= 1
        return Finish(invocation, outcome)

    def _doom(self, sandbox: Sandbox, now: float, verdict: Outcome | None = None) -> Kill:
        if verdict is not None:
            self.counters.killed += 1
            sandbox.verdict = verdict
        self._move(sandbox, State.DOOMED, now)
        return Kill(sandbox.name)

    def _reap(self, now: float) -> list[Instruction]:
        idle = self._in_state[State.IDLE]
        limit = self.concurrency if self.idle_sandboxes_max is None else self.idle_sandboxes_max
        instructions: list[Instruction] = []
        while idle:
            oldest = idle[next(iter(idle))]
            if len(idle) <= limit and now - oldest.since < self.idle_seconds_max:
                break
            instructions.append(self._doom(oldest, now))
        return instructions

    def _balance(self, now: float) -> list[Instruction]:
        instructions: list[Instruction] = []
        for function, waiting in enumerate(self._waiting):
            if not waiting:
                continue
            returning = self._in_state[State.RETURNING].values()
            coming = sum(
                sandbox.function == function and now - sandbox.since < RETURN_SECONDS_TRUSTED for sandbox in returning
            )
            wanted = len(waiting) - coming - self._starting[function]
            for _ in range(min(wanted, self.starting_max - sum(self._starting))):
                instructions += self._make_room(now)
                name = self._new_name()
                self.sandboxes[name] = sandbox = Sandbox(name, State.STARTING, now, function)
                self._in_state[State.STARTING][name] = sandbox
                self._starting[function] += 1
                self.counters.sandboxes_started += 1
                instructions.append(Start(name, function))
        return instructions

    def _make_room(self, now: float) -> list[Instruction]:
        """End the longest idle sandbox, necessarily another function's, if as many live as may be needed."""
        idle = self._in_state[State.IDLE]
        if not idle or len(self.sandboxes) - len(self._in_state[State.DOOMED]) < self.concurrency:
            return []
        return [self._doom(idle[next(iter(idle))], now)]

    def report(self, now: float) -> dict[str, float]:
        """Return the counters, with what AWS would bill them as by now, and how things are."""
        counters: dict[str, float] = asdict(self.counters)
        milliseconds = list(self._billed_milliseconds)
        for sandbox in self.sandboxes.values():
            if sandbox.invocation is not None and sandbox.served:  # under way
                milliseconds[sandbox.function] += math.ceil((now - sandbox.busy_since) * 1000)
        billed = zip(milliseconds, self.limits, strict=True)
        counters["gb_seconds"] = sum(ms / 1000 * limits.memory_bytes / 2**30 for ms, limits in billed)
        counters["running"] = self.running
        counters["sandboxes_idle"] = len(self._in_state[State.IDLE])
        counters["sandboxes"] = len(self.sandboxes)
        return counters
