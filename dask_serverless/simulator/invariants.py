"""What must hold in every run, whatever goes wrong. A violation ends the run and brings its story with it. Pure.

======  ============================================================================================================
I1      A key is answered with the right value, with the user's own error, or with an error of the platform for which
        there was a reason. Never with a wrong value, never with an error of ours.
I2      When nothing goes wrong any more, every run ends within a bounded time (`simulation`).
I3      A key is answered once. A child has one owner. Who is fenced is told so.
I4      A fan-in whose parents are all done has an owner, and an owner that is not gone. Whoever the ledger believes
        to be at work has a record, so that its death would be noticed.
I5      A task runs once in each invocation that meets it (and once for each retry); without faults, once. Each death,
        each backup, each doubled invocation and each repeated admission (or delegation) may cost one run more.
I6      When everything has been answered and let go, nothing is left in the tier, and nobody is at work.
I7      No more is spent than the budget and what was under way when it was exceeded; a second later, nobody is invoked.
======  ============================================================================================================

I8 (secrecy) is not for symbols to show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dask_serverless.job_events import Key
from dask_serverless.simulator.workload import Expected
from lambda_worker.core.schedule import Assignment
from lambda_worker.core.verdicts import Standing, Verdict
from lambda_worker.ports import Reply

if TYPE_CHECKING:
    from dask_serverless.simulator.driver import Driver
    from dask_serverless.simulator.simulation import Simulation


class Violated(Exception):
    """A promise was broken: which, and how."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(invariant, what)  # so that it can be pickled
        self.invariant = invariant

    def __str__(self) -> str:
        return ": ".join(self.args)


class Watch:
    """Sees everything, and says when something must not be.

    Parameters
    ----------
    simulation
        What it watches.
    """

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.violation: Violated | None = None
        self.runs_of: dict[tuple[str, int], int] = {}
        self.starts_of: dict[str, int] = {}  # by job: how many assignments began in a sandbox
        self.requested: dict[str, float] = {}  # by job: when Lambda was last asked for an invocation
        self.values_lost = 0
        self.metadata_lost = 0
        self.repeated = 0  # admissions and delegations that were done twice, and may have been answered differently
        self._excuses: set[str] = set()
        self._newest: dict[tuple[str, str], int] = {}
        self._holders: dict[tuple[str, str, int], str] = {}
        self._owners: dict[tuple[str, int], str] = {}
        self._deaths: dict[tuple[str, int], int] = {}
        self._begun: set[tuple[str, str, int]] = set()
        self._again: dict[str, int] = {}  # by job: assignments that began though their executor had begun before
        self._run_here: dict[int, dict[int, int]] = {}

    def violated(self, invariant: str, what: str) -> None:
        """Note what must not be. It cannot be raised here: whoever is at fault might catch it."""
        if self.violation is None:
            self.violation = Violated(invariant, what)

    def excuse(self, reason: str) -> None:
        """Note something that explains errors of the platform."""
        self._excuses.add(reason)

    # -- I1: answers ----------------------------------------------------------------------------

    def answered(self, key: Key, expected: Expected, value: int) -> None:
        """A key's value was read."""
        if expected.failing:
            self.violated("I1", f"{key} has a value, although {sorted(expected.failing)} fails")
        elif value != expected.value:
            self.violated("I1", f"{key} is {value}, not {expected.value}")

    def failed(self, key: Key, expected: Expected, kind: str, where: tuple[str, int]) -> None:
        """A key has an error."""
        sim = self.simulation
        drawn = sim.drawn
        job, task = where
        first = (sim.origins.get(job, job), task)
        match kind:
            case "user":
                fine = first in expected.failing
            case "killed":
                fine = first in expected.poison or bool(self._deaths.get(where))
            case "lost":
                fine = bool(self._deaths) or bool(self._excuses) or drawn.throttled > 0
            case "ValueLost":
                fine = bool(self.values_lost)
            case "StoreFull":
                fine = bool(drawn.shard_mebibytes) and sim.options.overflow_mebibytes < float("inf")
            case "BudgetExceeded":
                purse = sim.proxy.purse
                fine = purse.exceeded_at is not None or where[0] in purse.storms
            case "StoreUnavailable":
                fine = bool(drawn.request_lost or drawn.reply_lost)
            case "StoreForgot":
                fine = self.metadata_lost > sim.options.storage_allowed_failures
            case _:
                fine = False
        if not fine:
            self.violated("I1", f"{key} has an error for which there is no reason: {kind} of {where}")

    def lost(self, key: Key, what: str) -> None:
        """The client could not read a key's value."""
        if not self.values_lost:
            self.violated("I1", f"the value of {key} is gone: {what}")

    def blamed(self, job: str, task: int) -> None:
        """The supervisor fails a task for the end of executors."""
        if not self._deaths.get((job, task)) and not self.simulation.tasks[job][task].poison:
            self.violated("I1", f"task {task} of {job} is blamed, and nobody died of it")

    def died(self, assignment: Assignment, task: int) -> None:
        """An executor died. `task` was the last that it had begun."""
        where = (assignment.job, task)
        self._deaths[where] = self._deaths.get(where, 0) + 1

    def stalled(self, job: str) -> None:
        """The ledger says that a job cannot end."""
        self.violated("I4", f"{job} cannot end: keys are pending that nobody works on")

    # -- I3: attempts and owners ----------------------------------------------------------------

    def admitted(self, assignment: Assignment) -> None:
        """The store has admitted an executor."""
        who = (assignment.job, assignment.executor)
        self._newest[who] = max(assignment.attempt, self._newest.get(who, 0))
        # A call that is repeated after its executor has retired admits it again: work for nothing, and no harm.
        if self._holders.pop((*who, assignment.attempt), None) is not None:
            self._again[assignment.job] = self._again.get(assignment.job, 0) + 1

    def recalled(self, job: str, executor: str) -> None:
        """The store has told what a dead executor had: what it had won by asking is nobody's again."""
        fan_ins = self.simulation.tier.job(job).fan_ins
        for (name, child), owner in list(self._owners.items()):
            if (name, owner) == (job, executor) and child in fan_ins and fan_ins[child].owner is None:
                del self._owners[name, child]

    def heard(self, job: str, executor: str, attempt: int, standing: Standing, sandbox: str) -> None:
        """The store has answered an executor."""
        if standing is not Standing.OK:
            return
        newest = self._newest.get((job, executor), 0)
        if attempt < newest:
            self.violated("I3", f"{job}/{executor}#{attempt} may go on, although there is #{newest}")
        self._newest[job, executor] = max(attempt, newest)
        holder = self._holders.setdefault((job, executor, attempt), sandbox)
        if holder != sandbox:
            self.violated("I3", f"{job}/{executor}#{attempt} may go on in {holder}, and also in {sandbox}")

    def claimed(self, driver: Driver, reply: Reply) -> None:
        """The store has told an executor whose each child is."""
        mine = driver.assignment
        if mine.job not in self.simulation.proxy.ledger.jobs:  # it is over: a step done twice has opened it once more
            return
        for claim in reply.claims:
            if claim.verdict is Verdict.YOURS:
                owner = self._owners.setdefault((mine.job, claim.child), mine.executor)
                if owner != mine.executor:
                    self.violated("I3", f"{mine.job}/{claim.child} is {owner}'s, and also {mine.executor}'s")

    def told(self, driver: Driver, reply: Reply) -> None:
        """An executor hears which children are its own."""
        job = driver.assignment.job
        for claim in reply.claims:
            # Who is told once more need not have its inputs any more: it has run the child.
            if claim.verdict is Verdict.YOURS and claim.child not in driver.won:
                driver.won.add(claim.child)
                parents = self.simulation.graphs[job].parents[claim.child]
                # Who wins by asking has the other values at hand.
                known = {*claim.values, *driver.values, *driver.locations}
                if not set(claim.values) <= set(parents) <= known:
                    self.violated("I4", f"{job}/{claim.child} begins with {sorted(claim.values)}, not {parents}")

    def backed_up(self, job: str) -> None:
        """A straggler gets a backup, which does the same work."""
        self._again[job] = self._again.get(job, 0) + 1

    # -- I4: nobody waits for nobody ------------------------------------------------------------

    def look(self) -> None:
        """Look at the tier and the ledger, after a step."""
        tier, proxy = self.simulation.tier, self.simulation.proxy
        if proxy.is_forgotten:  # it is about to find out, and then all begins again
            return
        for name, job in tier.jobs.items():
            if not job.opened or job.cancelled or name not in proxy.ledger.jobs:
                continue
            for executor in job.records:
                if (name, executor) not in tier.leases:
                    self.violated("I4", f"{name}/{executor} has a record and no lease")
            for child, fan_in in job.fan_ins.items():
                if fan_in.owner is None:
                    if fan_in.complete():
                        self.violated("I4", f"all parents of {name}/{child} are done, and it has no owner")
                elif fan_in.owner not in job.records:
                    self.violated("I4", f"{name}/{child} belongs to {fan_in.owner}, who is gone")
        for name, known in proxy.ledger.jobs.items():
            state = tier.jobs.get(name)
            if state is None or not known.live:
                continue
            missing = known.live - state.records.keys()
            if missing:
                coming = {e for j, e, _, blob in tier.events if j == name and not blob}
                if missing - coming:
                    self.violated("I4", f"{sorted(missing - coming)} of {name} have no record, and are waited for")

    # -- I5: waste ------------------------------------------------------------------------------

    def starts(self, driver: Driver) -> None:
        """An assignment begins in a sandbox."""
        mine = driver.assignment
        self.starts_of[mine.job] = self.starts_of.get(mine.job, 0) + 1
        if mine.attempt > 1 or (mine.job, mine.executor, mine.attempt) in self._begun:
            self._again[mine.job] = self._again.get(mine.job, 0) + 1
        self._begun.add((mine.job, mine.executor, mine.attempt))
        self._run_here[id(driver)] = {}

    def runs(self, driver: Driver, task: int) -> None:
        """A task begins."""
        sim, job = self.simulation, driver.assignment.job
        does = sim.tasks[job][task]
        tries = 1 + sim.graphs[job].retries.get(task, 0) + does.reschedules
        here = self._run_here[id(driver)]
        here[task] = here.get(task, 0) + 1
        needs = sim.graphs[job].classes.get(task, 0)
        if needs > driver.sandbox.function_class:
            self.violated("I5", f"task {task} of {job} needs class {needs}, and runs in a smaller one")
        total = self.runs_of[job, task] = self.runs_of.get((job, task), 0) + 1
        if self.values_lost:  # they are made again, by everybody who misses them
            return
        if job not in sim.proxy.ledger.jobs:  # it is over, its values go, and who is at work is about to be fenced
            return
        if here[task] > tries:
            self.violated("I5", f"task {task} of {job} runs {here[task]} times in {driver.name}")
        again = self._again.get(job, 0) + self.repeated
        # Who leaves a task to a successor does not say how often it has failed.
        if tries == 1 and total > 1 + again:
            self.violated("I5", f"task {task} of {job} runs {total} times, though only {again} began again")

    # -- I7: money ------------------------------------------------------------------------------

    def invokes(self, assignment: Assignment) -> None:
        """Lambda is asked for an invocation, for the first time."""
        if self.simulation.proxy.purse.closed:
            self.violated("I7", f"{assignment.job}/{assignment.executor} is invoked, though the budget is exceeded")

    # -- I6: leftovers --------------------------------------------------------------------------

    def ended(self) -> None:
        """Everything was answered and let go, a while ago."""
        sim = self.simulation
        if overspent := sim.proxy.purse.overspent():
            self.violated("I7", overspent)
        # Who is fenced writes a value, or a step is done again, after its job was closed: those wait for their time to
        # live. A job that ended in order leaves nothing.
        untidy = bool(sim.drawn.classes) or any("error" in answer for answer in sim.client.answered.values())
        untidy = untidy or any(job.released_at < float("inf") for job in sim.workload.jobs)
        left = [key for key in sim.tier.keys() if not (untidy and key.startswith("object:"))]
        if left and not sim.drawn.step_doubled:  # who opens a job again after its end, and admits again, leaves more
            self.violated("I6", f"left in the tier: {left[:10]}")
        if sim.service.busy:
            self.violated("I6", f"still at work: {list(sim.service.busy.values())}")
        if sim.proxy.ledger.jobs or sim.proxy.ledger.keys or sim.proxy.ledger.held():
            self.violated("I6", f"left in the ledger: {sim.proxy.ledger}")
