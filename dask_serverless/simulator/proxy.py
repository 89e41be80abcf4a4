"""The proxy in virtual time: a real `Ledger`, a real `Supervisor`, and hands that perform what they decide. Pure.

This is `dask_serverless.dispatch`, `launcher` and `recovery` with everything left out but what they do at the store
and at Lambda, and in which order.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from dask_serverless.experience import share_expected
from dask_serverless.first_assignments import first_assignments
from dask_serverless.job_events import (
    Admitted,
    Close,
    Delegating,
    Done,
    Erred,
    Event,
    Fail,
    Finish,
    Free,
    Import,
    ImportFailed,
    JobFailed,
    Key,
    Launch,
    Lost,
    Released,
    Result,
    Retired,
    Room,
    Submitted,
)
from dask_serverless.jobs import Ledger
from dask_serverless.oblivion import BeginAgain, Oblivion
from dask_serverless.patience import Start
from dask_serverless.places import Places
from dask_serverless.plan.partition import edges
from dask_serverless.plan.prefixes import Prefixes
from dask_serverless.postings import Postings
from dask_serverless.simulator.lambda_service import names
from dask_serverless.simulator.network import Host
from dask_serverless.simulator.purse import Purse
from dask_serverless.simulator.timeline import Body, Signal
from dask_serverless.simulator.workload import SimJob
from dask_serverless.statistics import Learned
from dask_serverless.stragglers import BACKUP, Stragglers, backup_of
from dask_serverless.supervisor import Blame, Cause, Death, GiveUp, Supervisor, TryAgain, next_attempt, silence_allowed
from lambda_worker.core.errors import ServerlessError, StoreForgot
from lambda_worker.core.schedule import Assignment
from lambda_worker.core.wire import Ref, location_from_wire, pack, unpack
from lambda_worker.lingering import name_of
from lambda_worker.ports import Lapsed

if TYPE_CHECKING:
    from dask_serverless.simulator.simulation import Simulation

SWEEP_SECONDS = 1.0
TAKE_BACK_SECONDS = 0.1
CLOSE_SECONDS = 0.05
FREE_SECONDS = 0.01
#: How long a start waits for a place near its value, before it looks again.
WAIT_SECONDS = 0.02
#: The listener's blocked read comes back so soon after something was published.
LISTEN_SECONDS = 0.0005
#: What travels along in an invocation, at most.
PAYLOAD_ROOM = 170_000

_NO_PREFIXES = Prefixes([], [], [])


class Proxy(Host):
    """One cluster's proxy. It does not die (yet), and is never cut off for so long that it gives up."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(simulation, "proxy", simulation.options.latency_seconds)
        self.not_in_lambda()
        options = simulation.options
        self.ledger = Ledger()
        self.supervisor = Supervisor(options.allowed_failures, jitter=simulation.luck.random)
        self.purse = Purse(self)
        self.stragglers = Stragglers()
        self.places = Places(options.ceiling)
        self.postings = Postings()
        self.jobs: dict[str, SimJob] = {}
        self.segments: dict[str, dict[int, bytes]] = {}
        self._arrived = 0  # of the events that were read last
        self._dead: set[str] = set()
        self._lapsed: dict[tuple[str, str], float] = {}
        self._stalled: set[str] = set()
        self._listening = False
        self._opened: dict[str, Signal] = {}
        self._closes: list[Close] = []
        self._frees: list[Ref] = []
        self._serials = itertools.count(1)
        self._launches = itertools.count(1)
        self._oblivion = Oblivion(options.storage_allowed_failures)
        self._begun_again = itertools.count(1)
        self._forgotten = False
        self._free_invokers = options.function.invokers
        self._invoke_next: deque[Signal] = deque()

    def spawn(self, body: Body) -> None:
        """Run something beside everything else; an error of the platform fails every job."""
        self.simulation.timeline.spawn(self._guarded(body))

    def _guarded(self, body: Body) -> Body:
        try:
            yield from body
        except ServerlessError as error:
            self.simulation.tell("proxy", f"fails: {type(error).__name__}: {error}")
            for job in list(self.ledger.jobs):
                self.feed(JobFailed(job, pack([type(error).__name__, job, -1])))

    # -- jobs -----------------------------------------------------------------------------------

    def submit(self, job: SimJob) -> None:
        """Take on a graph."""
        self.simulation.tell("proxy", f"{job.name} is submitted: {len(job.tasks)} tasks")
        self.jobs[job.name] = job
        self.purse.budget.begin(job.name, len(job.tasks))
        runs = [()] if job.prefixes is None else job.prefixes.runs
        self.segments[job.name] = {
            number: replace(each, prefixes=runs[number] if number < len(runs) else ()).to_bytes()
            for number, each in enumerate(edges(job.graph))
        }
        self.feed(Submitted(job.name, job.graph, job.visible, job.externals, {}))

    def feed(self, event: Event) -> None:
        """Feed the ledger, and do what it says."""
        sim = self.simulation
        for instruction in self.ledger.handle(event):
            match instruction:
                case Finish(key, result):
                    sim.client.finish(key, result)
                case Fail(key, error):
                    sim.client.fail(key, error)
                case Launch():
                    self.spawn(self._launch(instruction))
                case Import(key):
                    self.feed(ImportFailed(key, pack(["released", "", -1])))
                case Free(refs):
                    if not self._frees:
                        sim.timeline.after(FREE_SECONDS, self._free)
                    self._frees += refs
                case Close():
                    self.purse.budget.forget(instruction.job)
                    self.stragglers.forget(instruction.job)
                    self.places.forget(instruction.job)
                    self.postings.forget(instruction.job)
                    if not self._closes:
                        sim.timeline.after(CLOSE_SECONDS, self._close_jobs)
                    self._closes.append(instruction)

    def _launch(self, launch: Launch) -> Body:
        sim, name = self.simulation, launch.job
        opened = self._opened.get(name)
        if opened is not None:
            yield opened.wait
        segments = self.segments.get(name)
        if segments is None:  # closed meanwhile
            self.feed(Admitted(name, ()))
            return
        given, later = self._choose(launch)
        if not given:
            self.feed(Admitted(name, (), later=later))
            return
        graph = self.jobs[name].graph
        expected, prefixes = self.jobs[name].expected, self.jobs[name].prefixes or _NO_PREFIXES
        count, room = len(given), max(1, self.places.ceiling)
        sharing = share_expected(expected, prefixes, count, len(graph.starts), room, policy=sim.options.policy)
        assignments = first_assignments(
            name,
            graph,
            segments if sim.options.segments_travel else {},
            given,
            sharing,
            self.places.ceiling,
            self.ledger.live,
            PAYLOAD_ROOM,
            next(self._serials),
        )
        if expected.known:
            learned = {number: (each.seconds, each.nbytes) for number, each in expected.known.items()}
            assignments = [replace(each, learned=learned) for each in assignments]
        if sim.options.whole_schedules:
            assignments = [replace(each, hint=list(segments), segments=segments) for each in assignments]
        mails = [sim.mail_of(each) for each in assignments]
        places = self.places.count
        if opened is None:  # its first launch; others wait for that, and so does who closes the job
            opening = self._opened[name] = Signal()
            yield from self._open(name, segments)
        recipients = yield from self._admit(assignments, mails, places)
        if opened is None:
            opening.set()
        granted = len(recipients)
        starts = dict(given)
        refused = [(task, starts[task]) for each in assignments[granted:] for task in each.starts]
        sim.tell("proxy", f"admits {names(assignments[:granted])}, refuses {len(refused)} starts")
        self.feed(Admitted(name, [each.executor for each in assignments[:granted]], refused, later))
        for recipient, assignment in zip(recipients, assignments, strict=False):
            self._note_posted(recipient, name, assignment.executor)
        unposted = [each for recipient, each in zip(recipients, assignments, strict=False) if not recipient]
        yield from self._invoke(unposted)

    def _choose(self, launch: Launch) -> tuple[list[Start], list[Start]]:
        """Part the starts that are given to somebody now from those that wait for a place near their values."""
        sim, number = self.simulation, next(self._launches)
        given: list[Start] = []
        later: list[Start] = []
        for start, value in launch.starts:
            waits = value is not None and sim.waits(f"{launch.job} {number}", start)
            (later if waits else given).append((start, value))
        if later:
            sim.timeline.after(WAIT_SECONDS, lambda: self.feed(Room()))
        return given, later

    def _open(self, job: str, segments: Mapping[int, bytes]) -> Body:
        sim = self.simulation
        by_shard: dict[int, dict[int, bytes]] = {}
        for number, blob in segments.items():
            by_shard.setdefault(number % len(sim.shards), {})[number] = blob
        for shard, some in by_shard.items():
            nbytes = sum(map(len, some.values()))
            yield from self.ask(sim.shards[shard], partial(sim.store.open_job, job, some), out=nbytes)

    def _admit(self, assignments: Sequence[Assignment], mails: Sequence[bytes], places: int) -> Body:
        sim = self.simulation
        called = itertools.count()

        def step() -> list[str]:
            sim.watch.repeated += next(called) > 0
            recipients: list[str] = sim.store.admit_and_post(assignments, mails, places)
            for each in assignments[: len(recipients)]:
                sim.watch.admitted(each)
            return recipients

        return self.ask(sim.metadata, step)

    def _invoke(self, assignments: Sequence[Assignment]) -> Body:
        sim = self.simulation
        answers = yield from sim.together(self, [self._invoke_one(each) for each in assignments])
        for assignment, answer in zip(assignments, answers, strict=True):
            if answer is not None:
                self._report(assignment.job, assignment.executor, assignment.attempt, Cause.REFUSED, -1)

    def _invoke_one(self, assignment: Assignment) -> Body:
        """Invoke when it is this one's turn: only so many requests are under way at once."""
        if self._free_invokers:
            self._free_invokers -= 1
        else:
            turn = Signal()
            self._invoke_next.append(turn)
            yield turn.wait
        answer = yield from self.simulation.service.invoke(assignment, lambda: assignment.job in self.ledger.jobs)
        if self._invoke_next:
            self._invoke_next.popleft().set()
        else:
            self._free_invokers += 1
        return answer

    def _free(self) -> None:
        refs, self._frees = self._frees, []
        self.spawn(self.ask(self.simulation.metadata, lambda: self.simulation.store.free(refs)))

    def _close_jobs(self) -> None:
        closes, self._closes = self._closes, []
        self.spawn(self._clean_up(closes))

    def _clean_up(self, closes: list[Close]) -> Body:
        sim = self.simulation
        for close in closes:
            if close.job in self._opened:
                yield self._opened[close.job].wait
            self.segments.pop(close.job, None)
            self.supervisor.forget(close.job)
        for close in closes:
            yield from self.ask(sim.metadata, partial(self.close_job, close))
        self.feed(Room())

    def close_job(self, close: Close) -> None:
        """Remove what a job left behind; this fences whoever is still at work."""
        self.simulation.store.close_job(close.job, close.keep)

    def release(self, key: Key) -> None:
        """The client holds a key no longer."""
        self.feed(Released(key))

    @property
    def is_forgotten(self) -> bool:
        """Whether the metadata server knows nothing any more of what is under way here."""
        return self._forgotten or self.simulation.store.is_forgotten

    def _begin_again(self) -> None:
        """The metadata server has forgotten everything: begin anew with what is pending."""
        sim = self.simulation
        pending = {name: [key for keys in job.keys.values() for key in keys] for name, job in self.ledger.jobs.items()}
        sim.tell("proxy", f"is forgotten, with {pending}")
        again = []
        for verdict in self._oblivion.judge(pending):
            if isinstance(verdict, BeginAgain):
                again.append(verdict)
                for key in verdict.keys:
                    self.feed(Released(key))
            else:
                self.feed(JobFailed(verdict.job, pack([StoreForgot.__name__, verdict.job, -1])))
        self.spawn(self._set_places())
        for verdict in reversed(again):  # who waits for a key finds it known
            before = self.jobs[verdict.job]
            job = before.begun_again(self.new_name(before), verdict.keys, self.there())
            sim.learn_of(job)
            self.submit(job)

    def new_name(self, job: SimJob) -> str:
        """Name a job that is begun again: nobody who was at work in it before may be taken for one of its own."""
        return f"{job.origin or job.name}r{next(self._begun_again)}"

    def there(self) -> Container[Key]:
        """Return the keys that have a value."""
        return {key for key, entry in self.ledger.keys.items() if entry.result is not None}

    # -- what executors say ---------------------------------------------------------------------

    def wake(self) -> None:
        """Something was published."""
        if not self._listening:
            self._listening = True
            self.simulation.timeline.after(LISTEN_SECONDS, self._listen)

    def _listen(self) -> None:
        self.spawn(self._hear())

    def _hear(self) -> Body:
        sim = self.simulation

        def step() -> list[tuple[str, str, int, bytes]]:
            arrived, self._arrived = self._arrived, 0
            sim.store.arrived(arrived)  # what was read and did not arrive is read again
            try:
                return sim.store.listen(0)
            except StoreForgot:
                sim.store.begin()
                self._forgotten = True
                return []

        while True:
            heard = yield from self.ask(sim.metadata, step)
            self._arrived = len(heard)
            if self._forgotten:
                self._forgotten = False
                self._begin_again()
            if not heard:
                self._listening = False
                if sim.tier.events or sim.store.is_forgotten:  # something happened while the answer was on its way
                    self.wake()
                return
            for job, executor, _, blob in heard:
                self._take(job, executor, blob)

    def _take(self, job: str, executor: str, blob: bytes) -> None:
        if not blob:
            self._forget_executor(job, executor)
            self.feed(Retired(job, executor))
            self.purse.ended(job)
            return
        _, said = unpack(blob)
        for word, content in said:
            match word:
                case "done":
                    results = [Result(task, location_from_wire(where), *rest) for task, where, *rest in content]
                    self.feed(Done(job, results))
                case "erred":
                    for task, error in content:
                        self.feed(Erred(job, task, error))
                case "stack":
                    if job in self.ledger.jobs:
                        self.stragglers.says(job, executor, content[0], self.simulation.timeline.now)
                case "delegating":
                    self.feed(Delegating(job, content))
                case "posted":
                    for recipient, name in content:
                        self._note_posted(recipient, job, name)
                case "invoke":
                    self.spawn(self._invoke([Assignment.from_bytes(content)]))
                case "seceded" | "rejoined":
                    if self.places.note_seceded(job, executor, word == "seceded"):
                        self.spawn(self._set_places())

    def _set_places(self) -> Body:
        sim = self.simulation
        yield from self.ask(sim.metadata, lambda: sim.store.set_ceiling(self.places.count))
        self.feed(Room())

    def _forget_executor(self, job: str, executor: str) -> None:
        if self.places.note_seceded(job, executor, False):
            self.spawn(self._set_places())
        self.postings.ended(job, executor)
        self.stragglers.forget(job, executor)

    # -- mail -----------------------------------------------------------------------------------

    def _note_posted(self, recipient: str, job: str, executor: str) -> None:
        known = self.ledger.jobs.get(job)
        if not recipient or known is None or executor in known.gone:
            return
        self.postings.sent(recipient, job, executor)
        if recipient in self._dead:
            self.spawn(self._recipient_died(recipient, Cause.CRASH))
        else:
            self.simulation.timeline.after(TAKE_BACK_SECONDS, self._see_to, recipient, job, executor)

    def _see_to(self, recipient: str, job: str, executor: str) -> None:
        if (job, executor) in self.postings:
            self.spawn(self._take_back(recipient))

    def _take_back(self, recipient: str) -> Body:
        sim = self.simulation
        mail = yield from self.ask(sim.metadata, lambda: sim.store.take_back(recipient))
        if mail:
            assignment = Assignment.from_bytes(mail)
            self.postings.ended(assignment.job, assignment.executor)
            yield from self._invoke([assignment])

    def _recipient_died(self, recipient: str, cause: Cause) -> Body:
        self._dead.add(recipient)
        if self.postings.to(recipient):
            yield from self._take_back(recipient)
        for job, executor in self.postings.to(recipient):
            self._report(job, executor, 1, cause, -1)  # later attempts do not come by mail

    # -- who died -------------------------------------------------------------------------------

    def hear_failure(self, invoked: Assignment, cause: Cause) -> None:
        """Lambda says that an invocation failed."""
        self._report(invoked.job, invoked.executor, invoked.attempt, cause, -1)
        self.spawn(self._recipient_died(name_of(invoked), cause))

    def sweep(self) -> Body:
        """Look for who has fallen silent, for ever."""
        sim = self.simulation
        while True:
            yield sim.timeline.sleep(SWEEP_SECONDS)
            if not self.ledger.jobs:
                if sim.is_over():
                    return
                continue
            lapsed = yield from self.ask(sim.metadata, sim.store.lapsed)
            before, self._lapsed = self._lapsed, {}
            for each in lapsed:
                self._judge_silence(each, before.get((each.job, each.executor), sim.timeline.now))
            for job, executor, _ in self.stragglers.overdue(self._expected, self.places.count):
                self.spawn(self._back_up(job, executor))
            stalled_before, self._stalled = self._stalled, set()
            for job in self.ledger.stalled():
                yield from self._look_into(job, job in stalled_before)
            self.feed(Room())

    def _expected(self, job: str, task: int) -> Learned:
        """Return what is known of a task: in the end, everything."""
        return Learned(100.0, self.jobs[job].tasks[task].seconds, 0.0, 0.0, 0.0)

    def _back_up(self, job: str, executor: str) -> Body:
        """Start one more executor with the work of one that straggles."""
        sim = self.simulation
        had = yield from self.ask(sim.metadata, lambda: sim.store.recall(job, executor, alive=True))
        kept = self.segments.get(job)
        if had is None or kept is None:
            self.stragglers.forget(job, executor + BACKUP)
            return
        backup = backup_of(had)
        granted = yield from self._admit([backup], (), self.places.count)
        if not granted:
            self.stragglers.forget(job, backup.executor)
            return
        sim.tell("proxy", f"backs up {job}/{executor} with {list(backup.starts)} {sorted(backup.claims)}")
        sim.watch.backed_up(job)
        self.feed(Delegating(job, [backup.executor]))
        yield from self._invoke([_with_segments(backup, kept) if sim.options.segments_travel else backup])

    def _look_into(self, job: str, again: bool) -> Body:
        sim = self.simulation
        try:
            unheard_of = yield from self.ask(sim.metadata, lambda: sim.store.executors(job))
        except StoreForgot:  # whoever listens finds out
            return
        if unheard_of:
            self.feed(Delegating(job, unheard_of))
        elif not again:
            self._stalled.add(job)
        elif job in self.ledger.stalled():
            sim.watch.stalled(job)

    def _judge_silence(self, lapsed: Lapsed, since: float) -> None:
        sim = self.simulation
        who = (lapsed.job, lapsed.executor)
        begun = lapsed.running >= 0 or who in sim.last_words
        options = sim.options
        allowed = silence_allowed(lapsed.attempt, begun, options.lease_seconds, options.function.timeout_seconds)
        if sim.timeline.now - since < allowed:
            self._lapsed[who] = since
            return
        self._report(lapsed.job, lapsed.executor, lapsed.attempt, Cause.SILENCE, lapsed.running)

    def _report(self, job: str, executor: str, attempt: int, cause: Cause, running: int) -> None:
        sim = self.simulation
        said = sim.last_words.pop((job, executor), -1)
        if job not in self.ledger.jobs:
            return  # over: whoever was still at work in it, nobody waits for
        task = said if said >= 0 else running
        verdicts = self.supervisor.judge(Death(job, executor, attempt, task, cause))
        if verdicts:
            sim.tell("proxy", f"{job}/{executor}#{attempt} died of {cause.value}, task {task}: {verdicts}")
            self._forget_executor(job, executor)
            self.purse.died(job)
        for verdict in verdicts:
            match verdict:
                case Blame(blamed, _):
                    sim.watch.blamed(job, blamed)
                    self.feed(Erred(job, blamed, pack(["killed", job, blamed])))
                case TryAgain():
                    self.spawn(self._try_again(job, executor, verdict))
                case GiveUp():
                    self.spawn(self._give_up(job, executor))

    def _try_again(self, job: str, executor: str, verdict: TryAgain) -> Body:
        sim = self.simulation
        yield sim.timeline.sleep(verdict.seconds)

        def recall() -> Assignment | None:
            had: Assignment | None = sim.store.recall(job, executor)
            sim.watch.recalled(job, executor)
            return had

        had = yield from self.ask(sim.metadata, recall)
        if had is None:  # it had just retired when it died, or its job is over
            self.feed(Retired(job, executor))
            return
        function_class = min(had.function_class + verdict.more_memory, sim.options.function_classes - 1)
        again = next_attempt(had, verdict, function_class)
        kept = self.segments.get(job)
        if kept is None:
            return
        if sim.options.segments_travel:
            again = _with_segments(again, kept)
        places = self.places.count
        sim.tell("proxy", f"tries {names([again])} again with {list(again.starts)} {sorted(again.claims)}")
        yield from self._admit([again], (), places)
        yield from self._invoke([again])

    def _give_up(self, job: str, executor: str) -> Body:
        sim = self.simulation
        self.feed(Lost(job, executor, pack(["lost", job, -1])))
        yield from self.ask(sim.metadata, lambda: sim.store.drop(job, executor))
        self.feed(Room())


def _with_segments(assignment: Assignment, kept: Mapping[int, bytes]) -> Assignment:
    return replace(assignment, segments={n: kept[n] for n in assignment.hint if n in kept})
