"""A Lambda environment: serves one invocation after the other, lingers between them, and dies. Pure.

This is `lambda_worker.handler` with everything left out that takes no step at the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dask_serverless.simulator.driver import Driver
from dask_serverless.simulator.network import Host
from dask_serverless.simulator.timeline import Body, Signal
from dask_serverless.supervisor import Cause
from lambda_worker.core.errors import ServerlessError, StoreUnavailable
from lambda_worker.core.schedule import Assignment
from lambda_worker.lingering import Waiter

if TYPE_CHECKING:
    from dask_serverless.simulator.simulation import Simulation


class Sandbox(Host):
    """One Lambda environment: serves one invocation after the other, until it dies."""

    def __init__(self, simulation: Simulation, number: int, function_class: int) -> None:
        luck, faults = simulation.luck, simulation.faults
        super().__init__(simulation, f"s{number}", simulation.options.latency_seconds * luck.uniform(0.7, 1.5))
        self.number = number
        self.function_class = function_class
        self.slow = faults.slow_factor if luck.random() < faults.slow_sandbox else 1.0
        # Clocks of different machines have nothing to do with one another.
        self.clock_offset = luck.uniform(0.0, 1e6)
        self.store = simulation.new_store(self.name)
        self.invocation = 0
        self.invoked_at = 0.0
        self.driver: Driver | None = None
        self._invoked: Assignment | None = None

    def clock(self) -> float:
        """Tell the time as this machine does."""
        return self.simulation.timeline.now + self.clock_offset

    def serve(self, assignment: Assignment, until: float) -> None:
        """Begin an invocation, whose time is over at `until`."""
        self.invocation += 1
        self._invoked = assignment
        self.spawn(self._handle(assignment, until))

    def spawn(self, body: Body) -> None:
        """Run something that ends with the invocation."""
        number = self.invocation
        self.simulation.timeline.spawn(body, lambda: self.alive and self.invocation == number)

    def die(self, why: str, cause: Cause = Cause.CRASH) -> None:
        """End at once."""
        sim = self.simulation
        if not self.alive or self._invoked is None:
            return
        sim.tell(self.name, f"dies: {why}")
        self.alive = False
        if self.driver is not None:
            sim.watch.died(self.driver.assignment, self.driver.last_begun)
        sim.service.ended(self, self._invoked, cause)

    def _handle(self, assignment: Assignment, until: float) -> Body:
        """Do as `lambda_worker.handler`: run what was assigned, and then what comes by mail."""
        sim = self.simulation
        waiter = Waiter(assignment, sim.options.linger_seconds, lambda: until - sim.timeline.now)
        cause = None
        todo = [assignment]
        try:
            while todo:
                self.driver = sim.parts.driver(self, todo.pop(), waiter)
                yield from self.driver.work(until)
                self.driver = None
                if waiter.offered:
                    mail = yield from self._linger(waiter)
                    if mail:
                        todo.append(Assignment.from_bytes(mail))
        except ServerlessError as error:
            sim.tell(self.name, f"fails: {type(error).__name__}: {error}")
            if self.driver is not None:
                self.driver.executor.finished = True
                sim.watch.died(self.driver.assignment, self.driver.last_begun)
                self.driver = None
            cause = Cause.CRASH
        invoked, self._invoked = self._invoked, None
        assert invoked is not None
        sim.service.ended(self, invoked, cause)

    def _linger(self, waiter: Waiter) -> Body:
        sim = self.simulation
        waiter.offered = False
        came = Signal()
        sim.mailboxes[waiter.name] = came
        sim.timeline.after(sim.options.linger_seconds, came.set)
        yield came.wait
        sim.mailboxes.pop(waiter.name, None)
        try:
            mail = yield from self.ask(sim.metadata, lambda: self.store.take_mail(waiter.name, 0.0))
        except StoreUnavailable:  # all was done here; whoever has sent mail finds out
            return b""
        return mail
