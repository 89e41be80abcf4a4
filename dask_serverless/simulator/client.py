"""The client of a simulated cluster: reads what it is given, and compares it with the right answer. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dask_serverless.job_events import Key, Result
from dask_serverless.simulator.network import Host
from dask_serverless.simulator.timeline import Body
from dask_serverless.simulator.workload import SimJob, from_frames
from lambda_worker.core.errors import ValueLost
from lambda_worker.core.wire import Location, Ref, unpack, unpack_inline

if TYPE_CHECKING:
    from dask_serverless.simulator.simulation import Simulation


class Client:
    """Who wants the answers: reads them, compares them, and lets them go when nobody needs them any more."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.host = Host(simulation, "client", simulation.options.latency_seconds)
        self.host.not_in_lambda()
        self.answered: dict[Key, str] = {}  # by key: what it was told
        self.released: set[Key] = set()
        self._expected = simulation.workload.answers()
        self._leaving: set[Key] = set()
        self._reading = 0
        jobs = simulation.workload.jobs
        self._sources = {job.name: job.graph.sources() for job in jobs}
        self._names = {
            job.name: {task: key for keys in (job.visible, job.externals) for key, task in keys.items()} for job in jobs
        }

    def finish(self, key: Key, result: Result) -> None:
        """A key has a value."""
        self._told(key, "a value")
        self._reading += 1
        self.simulation.timeline.spawn(self._read(key, result.location))

    def fail(self, key: Key, error: bytes) -> None:
        """A key has an error."""
        kind, job, task = unpack(error)
        self._told(key, f"error {kind} of {job}/{task}")
        self.simulation.watch.failed(key, self._expected[key], kind, (job, task))
        self._release_what_is_over()

    def forget(self, job: SimJob) -> None:
        """The client loses interest in a job."""
        for key in job.visible:
            self._let_go(key)

    @property
    def pending(self) -> list[Key]:
        """Keys without an answer, of those that are still wanted, and those being read."""
        jobs = self.simulation.workload.jobs
        keys = [key for job in jobs for key in job.visible if key not in self.answered and key not in self.released]
        return keys + ["(reading)"] * bool(self._reading)

    def _told(self, key: Key, what: str) -> None:
        sim = self.simulation
        sim.tell("client", f"{key}: {what}")
        if key in self.answered:
            sim.watch.violated("I3", f"{key} has two answers: {self.answered[key]}, {what}")
        self.answered[key] = what

    def _read(self, key: Key, location: Location) -> Body:
        sim = self.simulation
        if sim.options.watched:  # who does something else first meets more of what can go wrong
            yield sim.timeline.sleep(sim.luck.choice((0.0, 0.001, 0.1, 2.0)))
        value: int | None = None
        if not isinstance(location, Ref):
            value, _ = from_frames(unpack_inline(location)[1])
        elif key not in self.released and sim.options.gather:
            try:
                (frames,) = yield from self.host.ask(sim.server(location.shard), lambda: sim.store.get([location]))
                value, _ = from_frames(frames)
            except ValueLost as error:
                if key not in self.released:
                    sim.watch.lost(key, str(error))
        if value is not None:
            sim.watch.answered(key, self._expected[key], value)
        self._reading -= 1
        self._release_what_is_over()

    def _release_what_is_over(self) -> None:
        """Let go of what nobody needs any more, some time later: as Dask's scheduler does, which knows the stubs."""
        sim = self.simulation
        needed: set[Key] = set()
        for job in sim.workload.jobs:
            pending = [key for key in job.visible if key not in self.answered and key not in self.released]
            if pending:
                needed.update(job.externals)
                sources = self._sources[job.name]
                names = self._names[job.name]
                needed.update(names[source] for key in pending for source in sources[job.visible[key]])
        for key in self.answered:
            if key not in needed and key not in self._leaving:
                self._leaving.add(key)
                sim.timeline.after(sim.luck.choice((0.0, 0.1, 5.0)) * sim.luck.random(), self._let_go, key)

    def _let_go(self, key: Key) -> None:
        if key not in self.released and (not self._reading or key not in self.answered):
            self.released.add(key)
            self.simulation.proxy.release(key)
            self._release_what_is_over()
        elif key not in self.released:
            self.simulation.timeline.after(1.0, self._let_go, key)
