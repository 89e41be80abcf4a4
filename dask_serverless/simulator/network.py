"""Between sandboxes and the storage tier: bandwidth, latency, and steps that get lost on their way. Pure.

The figures of AWS are measured ones (Skyrise, CIDR'25): a Lambda moves a burst of 300 MiB at 1.2 GiB/s and then
75 MiB/s, in each direction; everything in one availability zone of a private network moves 20 GiB/s together. S3
answers in 27 ms (median) and in 75 ms (95 of 100).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dask_serverless.simulator.timeline import Body
from lambda_worker.core.errors import ServerlessError, StoreUnavailable

if TYPE_CHECKING:
    from dask_serverless.simulator.simulation import Simulation

MIB = 2**20
#: For how long a client tries to reach the store before it gives up (as `StoreConfig.retry_seconds`).
RETRY_SECONDS = 2.0
#: A client notices a broken connection, or waits before it tries again, for so long.
PAUSE_SECONDS = 0.1
#: What a step weighs beside its values.
STEP_BYTES = 300
#: What a Lambda moves in each direction once its burst is used up.
BASELINE_PER_SECOND = 75 * MIB
#: What one server of the storage tier moves.
SHARD_PER_SECOND = 1.2 * 1024 * MIB
#: What all hosts in one availability zone move together.
ZONE_PER_SECOND = 20 * 1024 * MIB
#: How long S3 takes to answer: the median, and the deviation of the logarithm (95 of 100 within 75 ms).
S3_SECONDS = 0.027
S3_SPREAD = math.log(0.075 / S3_SECONDS) / 1.645
#: A step that is done again is done within this time.
DOUBLED_SECONDS_MAX = 2.0


@dataclass(slots=True)
class Bucket:
    """One direction of one Lambda's network.

    Examples
    --------
    >>> bucket = Bucket()
    >>> round(bucket.seconds(300 * MIB, now=0.0), 3), round(bucket.seconds(75 * MIB, now=1.0), 3)
    (0.244, 0.29)
    """

    burst_bytes: float = 300 * MIB
    burst_per_second: float = 1.2 * 1024 * MIB
    per_second: float = BASELINE_PER_SECOND
    _level: float = -1.0
    _at: float = 0.0

    def seconds(self, nbytes: float, now: float) -> float:
        """Move so many bytes; return how long that takes."""
        level = self.burst_bytes if self._level < 0 else self._level
        # What is idle recharges half of the burst, at the pace of the baseline.
        level = min(max(level, self.burst_bytes / 2), level + max(0.0, now - self._at) * self.per_second)
        from_burst = min(level, nbytes)
        seconds = from_burst / self.burst_per_second + (nbytes - from_burst) / self.per_second
        self._level = level - from_burst
        self._at = now + seconds
        return seconds


@dataclass(slots=True)
class Server:
    """One server of the tier: it does one thing after the other.

    Parameters
    ----------
    per_second
        Bytes that its network moves.
    step_seconds
        What a step costs it beside moving bytes.
    """

    name: str
    per_second: float = SHARD_PER_SECOND
    step_seconds: float = 20e-6
    free_at: float = 0.0
    steps: int = 0
    nbytes: int = 0

    def seconds(self, nbytes: float, now: float) -> float:
        """Serve a step that arrives now; return how long that takes, waiting in line included."""
        self.free_at = max(self.free_at, now) + self.step_seconds + nbytes / self.per_second
        self.steps += 1
        self.nbytes += int(nbytes)
        return self.free_at - now


def s3_answers_in(luck: random.Random) -> float:
    """Draw how many seconds S3 takes to answer."""
    return luck.lognormvariate(math.log(S3_SECONDS), S3_SPREAD)


class ObjectStore(Server):
    """What is beside the servers (S3): it serves any number at once, slowly, and now and then very slowly."""

    def __init__(self, name: str, luck: random.Random) -> None:
        super().__init__(name, BASELINE_PER_SECOND)
        self._luck = luck

    def seconds(self, nbytes: float, now: float) -> float:
        """Serve a request; return how long that takes."""
        self.steps += 1
        self.nbytes += int(nbytes)
        return s3_answers_in(self._luck) + nbytes / self.per_second


class Host:
    """Who speaks to the store: a sandbox, or the proxy.

    Parameters
    ----------
    simulation
        Where it is.
    name
        Of the host, for the story.
    latency_seconds
        One way.
    """

    def __init__(self, simulation: Simulation, name: str, latency_seconds: float) -> None:
        self.simulation = simulation
        self.name = name
        self.latency_seconds = latency_seconds
        self.alive = True
        self.out = Bucket()
        self.back = Bucket()
        # Its processor, as far as it packs and unpacks values: one after the other.
        self.packing = Server(f"what {name} packs", simulation.options.packed_per_second, 0.0)
        self.cut_until = 0.0  # it cannot reach the store before
        self.io_seconds = 0.0

    def __repr__(self) -> str:
        return f"<Host {self.name}>"

    def not_in_lambda(self) -> None:
        """Have a network without a baseline below its burst, and packing that is not what it waits for."""
        self.out.per_second = self.back.per_second = self.out.burst_per_second
        self.packing.per_second = math.inf

    def die(self, why: str) -> None:
        """End at once, in the middle of whatever this is. The proxy does not."""

    def ask(
        self, server: Server, step: Callable[[], Any], out: float = 0.0, back: Callable[[Any], float] = lambda _: 0.0
    ) -> Body:
        """Have a step done at the store, as `fargate_storage.client` does: repeated after a broken connection.

        Parameters
        ----------
        server
            Who does it.
        step
            What is done there, at once.
        out, back
            Bytes of the values that travel along, there and back.
        """
        sim = self.simulation
        time, luck = sim.timeline, sim.luck
        begun = time.now
        while True:
            faults = sim.faults
            if self.cut_until > time.now:
                if time.now - begun >= RETRY_SECONDS:
                    raise StoreUnavailable(f"{server.name} cannot be reached")
                yield time.sleep(PAUSE_SECONDS)
                continue
            if faults.crash_at_step and luck.random() < faults.crash_at_step / 2:
                self.die("before a step")
            sent = self.packing.seconds(out, time.now) if out else 0.0
            sent += self.out.seconds(out + STEP_BYTES, time.now + sent) + self._latency()
            if out:
                sent = max(sent, sim.zone.seconds(out, time.now))
            if faults.request_lost and luck.random() < faults.request_lost:
                yield time.sleep(sent + PAUSE_SECONDS)
                continue
            if faults.step_doubled and luck.random() < faults.step_doubled:
                time.after(sent + luck.uniform(0.0, DOUBLED_SECONDS_MAX), self._again, step)
            yield time.sleep(sent + server.seconds(out + STEP_BYTES, time.now + sent))
            reply, error = None, None
            try:
                reply = step()
            except ServerlessError as failure:
                error = failure
            sim.after_step()
            if faults.crash_at_step and luck.random() < faults.crash_at_step / 2:
                self.die("after a step")
            if faults.reply_lost and luck.random() < faults.reply_lost:
                yield time.sleep(PAUSE_SECONDS)
                continue
            nbytes = (back(reply) if error is None else 0.0) + STEP_BYTES
            waits = 0.0
            if nbytes > STEP_BYTES:
                waits = max(server.seconds(nbytes, time.now), sim.zone.seconds(nbytes, time.now))
            waits += self._latency() + self.back.seconds(nbytes, time.now)
            if nbytes > STEP_BYTES:
                waits += self.packing.seconds(nbytes, time.now + waits)
            yield time.sleep(waits)
            self.io_seconds += time.now - begun
            if error is not None:
                raise error
            return reply

    def _latency(self) -> float:
        spread = self.simulation.options.latency_spread
        return self.latency_seconds * (self.simulation.luck.lognormvariate(0.0, spread) if spread else 1.0)

    def read_input(self, nbytes: int) -> Body:
        """Read what is no task's value: data that was there before, in S3 or something like it."""
        sim = self.simulation
        time, now = sim.timeline, sim.timeline.now
        asked = s3_answers_in(sim.luck)
        waits = max(sim.zone.seconds(nbytes, now), self.back.seconds(nbytes, now))
        yield time.sleep(asked + waits)

    def _again(self, step: Callable[[], Any]) -> None:
        """1. A connection breaks after a step was sent; 2. it is sent again, and done; 3. the first is done, too."""
        try:
            step()
        except ServerlessError:
            pass  # nobody hears it
        self.simulation.after_step()
