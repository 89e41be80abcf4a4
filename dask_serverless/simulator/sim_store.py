"""The storage tier in memory: every promise of `lambda_worker.ports.Store` and `JobStore`, without a server. Pure.

It is held to the same contract suite as the Redis store (``tests/contract``), so what is learnt of the protocol on it
holds there. A call takes no time: whoever calls decides when it happens. Nothing expires, since no run lasts for days.

`Tier` is what servers keep; a `SimStore` is one client of it. Each step is small, so that a test can plant a bug in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace

from dask_serverless.simulator.bulk import Bulk, job_of
from dask_serverless.simulator.tier import FanIn, JobState, Record, Tier
from lambda_worker.core.errors import StoreForgot
from lambda_worker.core.schedule import Assignment
from lambda_worker.core.wire import Location, Ref
from lambda_worker.ports import Arrival, Claim, Lapsed, Lingering, Reply, Standing, Succession, Verdict

#: What one `listen` returns at most; the rest comes with the next call.
EVENTS_MAX = 1_000
#: An executor's last calls with events, by which a repeated one is recognised.
HEARD_MAX = 16

#: Waits until something is true, or for some seconds.
Wait = Callable[[Callable[[], bool], float], object]


class SimStore(Bulk):
    """One client of a `Tier`.

    Parameters
    ----------
    tier
        What the servers keep.
    lease_seconds
        An executor that was silent for so long has lapsed.
    object_bytes_max
        A larger value is refused.
    holder
        Names the sandbox that speaks.
    wait
        Waits for events or mail. By default nobody waits: there is something now, or not.

    Examples
    --------
    >>> store = SimStore(Tier(lambda: 0.0))
    >>> store.open_job("job", {})
    >>> store.admit([Assignment("job", "a", 1, [0, 1])], ceiling=8)
    1
    >>> store.arrive("job", "a", 1, [Arrival(2, 0, 2, b"x"), Arrival(2, 1, 2, b"y")]).claims
    (Claim(child=2, verdict=<Verdict.YOURS: 'yours'>, values={0: b'x', 1: b'y'}),)
    """

    def __init__(
        self,
        tier: Tier,
        lease_seconds: float = 15.0,
        object_bytes_max: int = 10 * 2**30,
        holder: str = "",
        wait: Wait = lambda ready, seconds: None,
    ) -> None:
        super().__init__(tier, object_bytes_max)
        self.holder = holder
        self.lease_seconds = lease_seconds
        self._wait = wait
        self._returned = 0  # events that the last `listen` returned
        self._mark = (0, 0)  # what `begin` has found or put

    def __repr__(self) -> str:
        return f"<SimStore of {self.tier}>"

    # -- fan-ins, events, retirement ------------------------------------------------------------

    def arrive(
        self,
        job: str,
        executor: str,
        attempt: int,
        arrivals: Sequence[Arrival] = (),
        events: bytes = b"",
        retire: bool = False,
        succession: Succession | None = None,
        lingering: Lingering | None = None,
    ) -> Reply:
        """See `lambda_worker.ports.Store.arrive`."""
        if succession is not None and succession.record.job != job:
            raise ValueError("an executor can only be succeeded in its own job")
        self._count(round_trips=1)
        standing = self._enter(job, executor, attempt)
        if standing is not Standing.OK:
            return Reply(standing)
        self._renew(job, executor)
        state = self.tier.jobs[job]
        claims = self._arrive_at_each(state, executor, arrivals)
        record = state.records[executor]
        if events:
            digest = (attempt, tuple((each.child, each.parent, each.parents) for each in arrivals), retire, events)
            if digest not in record.heard:
                record.heard = [*record.heard[1 - HEARD_MAX :], digest]
                self._publish(job, executor, attempt, events)
        retired = retire and all(claim.verdict is not Verdict.YOURS for claim in claims)
        if retired:
            self._retire(job, executor, attempt, succession, lingering)
        return Reply(Standing.OK, tuple(claims), retired)

    def _arrive_at_each(self, state: JobState, executor: str, arrivals: Sequence[Arrival]) -> list[Claim]:
        settled: dict[int, Verdict] = {}  # as each child stood when this call came to it
        fan_ins: dict[int, FanIn] = {}
        held: dict[int, set[int]] = {}
        for arrival in arrivals:
            child = arrival.child
            if child not in settled:
                settled[child] = self._verdict(state, executor, child)
            if settled[child] is Verdict.WAIT:
                fan_in = fan_ins.get(child) or state.fan_ins.get(child) or self._new_fan_in(arrival.parents)
                fan_ins[child] = fan_in
                if arrival.value is None:
                    held.setdefault(child, set()).add(arrival.parent)
                else:
                    state.fan_ins[child] = fan_in
                    fan_in.set(arrival.parent, arrival.value)
        claims = []
        for child, verdict in settled.items():
            mine: Set[int] = held.get(child, set())
            if verdict is Verdict.WAIT and fan_ins[child].complete(mine):
                state.fan_ins[child] = fan_ins[child]  # who asked in vain leaves no trace
                fan_ins[child].owner = executor
                fan_ins[child].held = not mine <= fan_ins[child].values.keys()
                verdict = Verdict.YOURS
            if verdict is Verdict.YOURS:
                state.claims.setdefault(executor, {})[child] = None
                claims.append(Claim(child, verdict, dict(state.fan_ins[child].values)))
            else:
                claims.append(Claim(child, verdict))
        return claims

    def _verdict(self, state: JobState, executor: str, child: int) -> Verdict:
        if child in state.done:
            return Verdict.DONE
        fan_in = state.fan_ins.get(child)
        if fan_in is None or fan_in.owner is None:
            return Verdict.WAIT
        return Verdict.YOURS if fan_in.owner == executor else Verdict.TAKEN

    def _new_fan_in(self, parents: int) -> FanIn:
        return FanIn(parents)

    def _publish(self, job: str, executor: str, attempt: int, events: bytes) -> None:
        self.tier.events.append((job, executor, attempt, events))
        self.tier.on_events()

    def _retire(
        self, job: str, executor: str, attempt: int, succession: Succession | None, lingering: Lingering | None
    ) -> None:
        tier = self.tier
        state = tier.jobs[job]
        for child in state.claims.pop(executor, ()):
            state.done.add(child)
            state.fan_ins.pop(child, None)
        record = state.records.pop(executor)
        tier.leases.pop((job, executor), None)
        if succession is not None:
            self._create_record(succession.record)
            self._publish(job, executor, attempt, succession.events)
        self._publish(job, executor, attempt, b"")
        if lingering is not None:
            tier.taken.pop(lingering.name, None)
            if lingering.seconds > 0 and record.generation == tier.generation:
                tier.lingering[lingering.name] = tier.clock() + lingering.seconds

    # -- records --------------------------------------------------------------------------------

    def delegate(self, job: str, executor: str, attempt: int, records: Sequence[Assignment], ceiling: int) -> int:
        """See `lambda_worker.ports.Store.delegate`."""
        return len(self.delegate_and_post(job, executor, attempt, records, (), ceiling))

    def delegate_and_post(
        self,
        job: str,
        executor: str,
        attempt: int,
        records: Sequence[Assignment],
        mails: Sequence[bytes],
        ceiling: int,
    ) -> list[str]:
        """See `lambda_worker.ports.Store.delegate_and_post`."""
        if any(record.job != job for record in records):
            raise ValueError("an executor can only give away tasks of its own job")
        if not records:
            return []
        self._count(round_trips=1)
        if self._enter(job, executor, attempt) is not Standing.OK:
            return []
        self._renew(job, executor)
        latest = self.tier.ceiling
        giver = self.tier.jobs[job].records[executor]
        return self._create(records, mails, ceiling if latest is None else latest, giver, attempt)

    def admit(self, records: Sequence[Assignment], ceiling: int | None, opening: bool = False) -> int:
        """See `lambda_worker.ports.JobStore.admit`."""
        return len(self.admit_and_post(records, (), ceiling, opening))

    def admit_and_post(
        self,
        records: Sequence[Assignment],
        mails: Sequence[bytes],
        ceiling: int | None,
        opening: bool = False,
        preferred: Sequence[str] = (),
    ) -> list[str]:
        """See `lambda_worker.ports.JobStore.admit_and_post`."""
        if not records:
            return []
        self._count(round_trips=1)
        if opening:
            for record in records:
                self._open(record.job)
        places: float = float("inf")
        if ceiling is not None:
            places = ceiling if self.tier.ceiling is None else min(ceiling, self.tier.ceiling)
        return self._create(records, mails, places, preferred=preferred)

    def _create(
        self,
        records: Sequence[Assignment],
        mails: Sequence[bytes],
        ceiling: float,
        giver: Record | None = None,
        giver_attempt: int = 0,
        preferred: Sequence[str] = (),
    ) -> list[str]:
        posted: list[str] = []
        letters, names = mails or [b""] * len(records), preferred or [""] * len(records)
        lingering = self.tier.lingering
        reserved = {
            name: lingering.pop(name)
            for mail, name in zip(letters, names, strict=True)
            if mail and name in lingering and lingering[name] > self.tier.clock()
        }
        for record, mail, name in zip(records, letters, names, strict=True):
            state = self.tier.job(record.job)
            if not state.opened or state.cancelled:
                break
            known = state.records.get(record.executor)
            gave = (giver_attempt, tuple(record.starts))
            write, recipient = True, ""
            if giver is not None and giver.gave.get(record.executor) == gave:
                write = False  # this attempt's call, repeated: the new executor may even have retired since
            elif known is not None and giver is not None:
                if tuple(known.assignment.starts) != tuple(record.starts):
                    break  # not the same record: the starts stay with the giver
                write = False
            elif known is not None and known.attempt >= record.attempt:
                write = False
            elif known is None and len(self.tier.leases) >= ceiling:
                break
            if write:
                made = self._create_record(record)
                if mail and reserved.pop(name, None) is not None:
                    recipient = self._send(mail, name)
                else:
                    recipient = self._post(mail)
                made.recipient = recipient
            elif known is not None and known.attempt == record.attempt:
                recipient = known.recipient
            if giver is not None:
                giver.gave[record.executor] = gave
            posted.append(recipient)
        lingering.update(reserved)
        return posted

    def _create_record(self, assignment: Assignment) -> Record:
        state = self.tier.jobs[assignment.job]
        # Segments travel with the invocation; what an attempt before this gave away counts no more.
        made = Record(assignment.attempt, replace(assignment, segments={}), self.tier.generation)
        state.records[assignment.executor] = made
        self._renew(assignment.job, assignment.executor)
        return made

    def _enter(self, job: str, executor: str, attempt: int) -> Standing:
        """Tell whether an attempt may go on. A newer one than is known is believed; who speaks first holds it."""
        state = self.tier.job(job)
        if state.cancelled:
            return Standing.CANCELLED
        record = state.records.get(executor)
        if not state.opened or record is None or record.attempt > attempt:
            return Standing.FENCED
        if record.attempt < attempt:
            record.attempt, record.running, record.holder = attempt, -1, ""
        if not record.holder:
            record.holder = self.holder
        elif self.holder and self.holder != record.holder:
            return Standing.FENCED
        return Standing.OK

    def _renew(self, job: str, executor: str) -> None:
        self.tier.leases[job, executor] = self.tier.clock() + self.lease_seconds

    def beat(self, runs: Sequence[tuple[str, str, int, int]]) -> list[Standing]:
        """See `lambda_worker.ports.Store.beat`."""
        if runs:
            self._count(round_trips=1)
        standings = []
        for job, executor, attempt, running in runs:
            standing = self._enter(job, executor, attempt)
            if standing is Standing.OK:
                self.tier.jobs[job].records[executor].running = running
                self._renew(job, executor)
            standings.append(standing)
        return standings

    def lapsed(self) -> list[Lapsed]:
        """See `lambda_worker.ports.JobStore.lapsed`."""
        self._count(round_trips=1)
        now = self.tier.clock()
        found = []
        for (job, executor), end in sorted(self.tier.leases.items(), key=lambda item: item[1]):
            if end > now:
                break
            record = self.tier.job(job).records.get(executor)
            if record is not None:
                found.append(Lapsed(job, executor, record.attempt, record.running))
        return found

    def locate(self, job: str, child: int) -> dict[int, Location]:
        """See `lambda_worker.ports.Store.locate`."""
        self._count(round_trips=1)
        fan_in = self.tier.job(job).fan_ins.get(child)
        return {} if fan_in is None else dict(fan_in.values)

    def place(self, job: str, values: Mapping[int, Location]) -> None:
        """See `lambda_worker.ports.JobStore.place`."""
        self._count(round_trips=1)
        for task, location in values.items():
            self.tier.job(job).fan_ins.setdefault(task, FanIn(0)).values[task] = location

    def executors(self, job: str) -> list[str]:
        """See `lambda_worker.ports.JobStore.executors`."""
        self._count(round_trips=1)
        self._refuse_strangers()
        return sorted(self.tier.job(job).records)

    def recall(self, job: str, executor: str, alive: bool = False) -> Assignment | None:
        """See `lambda_worker.ports.JobStore.recall`."""
        self._count(round_trips=1)
        state = self.tier.job(job)
        record = state.records.get(executor)
        if record is None:
            return None
        if not alive:
            record.holder = "-"  # who was taken for dead is fenced from now on
        had = record.assignment
        gone = {*had.without, *(task for _, starts in record.gave.values() for task in starts)}
        claims: dict[int, Mapping[int, Location]] = dict(had.claims)
        for child in list(state.claims.get(executor, ())):
            fan_in = state.fan_ins[child]
            if fan_in.held:
                if not alive:  # what was held has died with the attempt: it has no owner any more
                    fan_in.owner, fan_in.held = None, False
                    del state.claims[executor][child]
            else:
                claims[child] = dict(fan_in.values)
        return replace(
            had,
            attempt=record.attempt,
            starts=[start for start in had.starts if start not in gone],
            claims={child: values for child, values in claims.items() if child not in gone},
            without=tuple(sorted(gone)),
        )

    def drop(self, job: str, executor: str) -> None:
        """See `lambda_worker.ports.JobStore.drop`."""
        self._count(round_trips=1)
        self.tier.job(job).records.pop(executor, None)
        self.tier.leases.pop((job, executor), None)

    def set_ceiling(self, ceiling: int) -> None:
        """See `lambda_worker.ports.JobStore.set_ceiling`."""
        self._count(round_trips=1)
        self.tier.ceiling = ceiling

    # -- mail -----------------------------------------------------------------------------------

    def _post(self, mail: bytes) -> str:
        """Send mail to who came last to linger for it; return its name, or "": nobody, or it was sent away."""
        tier = self.tier
        while tier.lingering:
            name = max(tier.lingering, key=lambda each: (tier.lingering[each], each))
            if tier.lingering.pop(name) > tier.clock():
                return self._send(mail, name)
        return ""

    def _send(self, mail: bytes, name: str) -> str:
        self.tier.mail[name] = mail
        self.tier.on_mail(name)
        return name if mail else ""

    def take_mail(self, name: str, seconds: float) -> bytes:
        """See `lambda_worker.ports.Store.take_mail`."""
        self._count(round_trips=1)
        tier = self.tier
        if name not in tier.taken and name not in tier.mail:
            self._wait(lambda: name in tier.mail, seconds)
        if name in tier.mail:
            tier.taken.setdefault(name, tier.mail.pop(name))
        tier.lingering.pop(name, None)
        return tier.taken.get(name, b"")

    def take_back(self, name: str) -> bytes:
        """See `lambda_worker.ports.JobStore.take_back`."""
        self._count(round_trips=1)
        if name in self.tier.mail:
            self.tier.taken_back[name] = self.tier.mail.pop(name)
        return self.tier.taken_back.get(name, b"")

    def send_home(self) -> None:
        """See `lambda_worker.ports.JobStore.send_home`."""
        self._count(round_trips=1)
        self.tier.generation += 1
        while self.tier.lingering:
            self._post(b"")

    # -- jobs -----------------------------------------------------------------------------------

    def begin(self) -> bool:
        """See `lambda_worker.ports.JobStore.begin`."""
        self._count(round_trips=1)
        tier = self.tier
        before = tier.mark[0] == tier.process
        if not before:
            if tier.mark != (0, 0):
                tier.clear()  # it is what another process has saved
            tier.marks += 1
            tier.mark = tier.process, tier.marks
        self._mark, self._returned = tier.mark, 0
        return before

    def open_job(self, job: str, segments: Mapping[int, bytes]) -> None:
        """See `lambda_worker.ports.JobStore.open_job`."""
        self._count(round_trips=1, bytes_written=sum(map(len, segments.values())))
        for number, segment in segments.items():
            self._shard(number).segments[job, number] = segment
        self._open(job)

    def _open(self, job: str) -> None:
        self.tier.jobs.setdefault(job, JobState()).opened = True

    def listen(self, seconds: float) -> list[tuple[str, str, int, bytes]]:
        """See `lambda_worker.ports.JobStore.listen`."""
        self._count(round_trips=1)
        self._refuse_strangers()
        events = self.tier.events
        del events[: self._returned]
        self._returned = 0
        if not events:
            self._wait(lambda: bool(events) or self.is_forgotten, seconds)
            self._refuse_strangers()
        heard = events[:EVENTS_MAX]
        self._returned = len(heard)
        return heard

    @property
    def is_forgotten(self) -> bool:
        """Whether the mark is lost that was found or put by `begin`, or another process has it now."""
        return self._mark != (0, 0) and (self.tier.mark, self.tier.process) != (self._mark, self._mark[0])

    def _refuse_strangers(self) -> None:
        if self.is_forgotten:
            raise StoreForgot("the metadata server has lost what it knew")

    def arrived(self, count: int) -> None:
        """So many of the events that the last `listen` read have arrived: the next one begins after these."""
        self._returned = count

    def cancel(self, job: str) -> None:
        """See `lambda_worker.ports.JobStore.cancel`."""
        self._count(round_trips=1)
        if self.tier.job(job).opened:
            self.tier.jobs[job].cancelled = True
            self._forget_executors(job)

    def close_job(self, job: str, keep: Sequence[Ref]) -> None:
        """See `lambda_worker.ports.JobStore.close_job`."""
        self._count(round_trips=1)
        if job in self.tier.jobs:
            self._forget_executors(job)
            del self.tier.jobs[job]
        kept = {ref.name for ref in keep}
        for shard in self.tier.places():
            self._remove(shard, [name for name in shard.objects if job_of(name) == job and name not in kept])
            for name in [name for name in shard.slices if job_of(name) == job]:
                del shard.slices[name]
            for which in [each for each in shard.segments if each[0] == job]:
                del shard.segments[which]

    def _forget_executors(self, job: str) -> None:
        state = self.tier.jobs[job]
        for executor in state.records:
            self.tier.leases.pop((job, executor), None)
        state.records.clear()
        state.claims.clear()

    # -- notes ----------------------------------------------------------------------------------

    def note(self, notes: Mapping[str, bytes]) -> None:
        """See `lambda_worker.ports.JobStore.note`."""
        self._count(round_trips=1)
        self.tier.notes.update(notes)

    def noted(self) -> dict[str, bytes]:
        """See `lambda_worker.ports.JobStore.noted`."""
        self._count(round_trips=1)
        return dict(self.tier.notes)

    def strike(self, names: Sequence[str]) -> None:
        """See `lambda_worker.ports.JobStore.strike`."""
        if names:
            self._count(round_trips=1)
        for name in names:
            self.tier.notes.pop(name, None)

    # -- numbers --------------------------------------------------------------------------------

    def counters(self) -> Mapping[str, int]:
        """See `lambda_worker.ports.Store.counters`."""
        return dict(self._counters)

    def usage(self) -> Mapping[str, int]:
        """See `lambda_worker.ports.JobStore.usage`."""
        return {
            "store_keys": len(self.tier.keys()) + len(self.tier.mail) + len(self.tier.taken),
            "store_bytes": sum(shard.nbytes for shard in self.tier.shards),
            "overflow_bytes": self.tier.overflow.nbytes,
        }
