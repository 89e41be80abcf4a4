"""What an executor lets others know: values, results, errors, and what others shall go on with.

Rule: data before signal. Whatever an arrival or a result mentions has been written before.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lambda_worker.belongings import Belongings
from lambda_worker.core.errors import StoreFull, UnpicklableResult, ValueTooLarge
from lambda_worker.core.events import Answered, Delegated
from lambda_worker.core.executor import Executor
from lambda_worker.core.instructions import Arrive, Delegate, Successor
from lambda_worker.core.journal import Journal
from lambda_worker.core.schedule import Assignment
from lambda_worker.core.verdicts import Claim, Standing, Verdict
from lambda_worker.core.wire import (
    Frame,
    Frames,
    Location,
    Ref,
    events_name,
    frames_nbytes,
    location_to_wire,
    object_name,
    open_frames,
    pack,
    pack_inline,
    seal,
    seal_frames,
    unpack_inline,
)
from lambda_worker.lingering import Waiter, mail_of
from lambda_worker.parcels import fit
from lambda_worker.ports import Arrival, Reply, Succession
from lambda_worker.task_runner import describe_value
from lambda_worker.values import value_to_frames
from lambda_worker.world import World

#: How long small values are stored like large ones after there was no room for one at a fan-in.
CROWDED_SECONDS = 1.0
#: How long the proxy may take to say where a value is.
PLACE_SECONDS_MAX = 10.0


class Publisher:
    """The voice of one executor. Any thread may publish.

    Parameters
    ----------
    world
        Ports, secret and numbers of this sandbox.
    assignment
        Who publishes.
    belongings
        What there is to publish.
    executor
        Counts the tasks that were run.
    waiter
        Lingers when this executor has retired.
    """

    def __init__(
        self,
        world: World,
        assignment: Assignment,
        belongings: Belongings,
        executor: Executor,
        waiter: Waiter | None = None,
    ) -> None:
        self._world = world
        self._assignment = assignment
        self._belongings = belongings
        self._executor = executor
        self._waiter = waiter
        self._lock = threading.Lock()  # of the counters and the journal
        self._journal = Journal()
        self._counters: dict[str, int] = {"executors": 1}
        self._counted_runs = (0, 0, 0)
        self._numbers = itertools.count()
        self._crowded_until = float("-inf")
        self._began = world.clock() if world.counted else None  # None: a new sandbox, which says nothing of others

    def say(self, word: str, content: Any = None) -> bool:
        """Publish one event of its own; tell whether it was still heard."""
        mine, events = self._assignment, self._seal_events([[word, content]])
        return self._world.store.arrive(mine.job, mine.executor, mine.attempt, events=events).standing is Standing.OK

    def wait_for_place(self, task: int) -> Location | None:
        """Wait until the proxy has said where a value is; None: this executor is to stop, or it took too long."""
        mine, store = self._assignment, self._world.store
        deadline, pause = time.monotonic() + PLACE_SECONDS_MAX, 0.005
        while time.monotonic() < deadline:
            if (found := store.locate(mine.job, task).get(task)) is not None:
                return found
            (standing,) = store.beat([(mine.job, mine.executor, mine.attempt, -1)])
            if standing is not Standing.OK:
                return None
            time.sleep(pause)
            pause = min(2 * pause, 0.5)
        return None

    def arrive(self, arrive: Arrive) -> Answered:
        """Store what is mentioned, publish results and errors, and arrive at children."""
        mine, belongings = self._assignment, self._belongings
        parents = [parent for _, parent, _ in arrive.arrivals]
        copies: dict[int, int] = {}
        for _, parent, parents_of_child in arrive.arrivals:
            copies[parent] = max(copies.get(parent, 0), parents_of_child)
        inputs = arrive.successor.inputs if arrive.successor is not None else {}
        needed = [parent for parents_of_start in inputs.values() for parent in parents_of_start]
        began = self._world.clock()
        locations, failed, nbytes = self._locate([*parents, *arrive.results, *needed], copies)
        seconds = self._world.clock() - began
        events: list[Any] = []
        done = [
            [
                task,
                location_to_wire(locations[task]),
                *describe_value(belongings.values[task], self._world.types),
                *belongings.durations[task],
            ]
            for task in arrive.results
            if task in locations
        ]
        if done:
            events.append(["done", done])
        missing = {task: belongings.missing.pop(task) for task in arrive.errors if task in belongings.missing}
        if missing:  # without its module a body cannot be read, not even for the task's name
            events.append(["missing", list(missing.items())])
        erred = {task: belongings.errors.pop(task) for task in arrive.errors if task not in missing} | failed
        if erred:
            events.append(["erred", list(erred.items())])
        counts = self._counts()
        if counts:
            events.append(["count", counts])
        succession = self._succession(arrive.successor, locations)
        # Whose place is taken by another executor leaves its sandbox to it as well.
        lingering = self._waiter.offer() if self._waiter is not None and arrive.retire and succession is None else None
        if lingering is not None and lingering.seconds > 0:
            self._note("linger", seconds=lingering.seconds)
        if arrive.retire and self._world.name and self._world.linger_seconds:
            # Whoever reads what was written here had better be sent here.
            mailbox = lingering.name if lingering is not None and lingering.seconds > 0 else ""
            events.append(["sandbox", [self._world.name, mailbox]])
        report = self._report(arrive)
        if report:
            events.append(["report", report])

        def tell(arrivals: Sequence[tuple[int, int, int]]) -> Reply:
            said = [Arrival(child, parent, parents, locations[parent]) for child, parent, parents in arrivals]
            asked = [Arrival(child, parent, parents, None) for child, parent, parents in arrive.asks]
            return self._world.store.arrive(
                mine.job,
                mine.executor,
                mine.attempt,
                said + asked,
                self._seal_events(events),
                retire=arrive.retire,
                succession=succession,
                lingering=lingering,
            )

        arrivals = [each for each in arrive.arrivals if each[1] in locations]
        untold: Mapping[int, bytes] = {}
        try:
            reply = tell(arrivals)
        except StoreFull:
            reply, untold = self._tell_without_room(arrivals, locations, events, tell)
        if reply.retired and self._waiter is not None:
            self._waiter.offered = lingering is not None and lingering.seconds > 0
        for claim in reply.claims:
            for parent, location in claim.values.items():
                belongings.locations.setdefault(parent, location)
        # Nobody here keeps anything any more for who is never told.
        claims = [*reply.claims, *(Claim(child, Verdict.DONE) for child in untold)]
        return Answered(reply.standing, claims, reply.retired, self._world.clock(), nbytes, seconds)

    def _tell_without_room(
        self,
        arrivals: Sequence[tuple[int, int, int]],
        locations: dict[int, Location],
        events: list[Any],
        tell: Callable[[Sequence[tuple[int, int, int]]], Reply],
    ) -> tuple[Reply, Mapping[int, bytes]]:
        """Arrive where fan-ins take references at most; return why for each child that cannot be told, as well."""
        try:
            locations |= self._store_inline([parent for _, parent, _ in arrivals], locations)
            events.append(["count", self._counts()])
            return tell(arrivals), {}
        except StoreFull as error:
            # A child that is never told of its input never runs. Its parent may be done and told of already.
            untold: dict[int, bytes] = {}
            for child, parent, _ in arrivals:
                if child not in untold:
                    untold[child] = self._never_told(child, parent, error)
            events.append(["erred", list(untold.items())])
            return tell([]), untold

    def _locate(
        self, tasks: Iterable[int], fan_ins: Mapping[int, int] | None = None
    ) -> tuple[dict[int, Location], dict[int, bytes], int]:
        """Find out where values are, writing those that nobody else could read yet.

        `fan_ins` gives the in-degree of the widest child for which each value is published.
        Returns the locations, an encoded error for each value that cannot be written, and how many bytes were.
        """
        mine, belongings = self._assignment, self._belongings
        located: dict[int, Location] = {}
        failed: dict[int, bytes] = {}
        large: list[tuple[int, str, list[Frame]]] = []
        for task in dict.fromkeys(tasks):
            known = belongings.locations.get(task)
            if known is not None:
                located[task] = known
                continue
            name = object_name(mine.job, task, mine.executor, mine.attempt)
            try:
                frames = value_to_frames(belongings.values[task])
            except Exception as error:
                kind = type(belongings.values[task])
                failed[task] = belongings.error(
                    task,
                    UnpicklableResult(
                        f"Could not serialize object of type {kind.__qualname__}: the result of task"
                        f" {belongings.key(task)!r} cannot be pickled ({kind.__module__}.{kind.__qualname__}): {error}."
                        " To use it where it is made, compute both in one graph, or run them on a Dask worker:"
                        " dask.annotate(serverless=False)"
                    ),
                )
                continue
            nbytes, readers = frames_nbytes(frames), (fan_ins or {}).get(task, 1)
            crowded = task in (fan_ins or ()) and self._world.clock() < self._crowded_until
            inline = not crowded and self._world.policy.inline(nbytes, readers)
            self._note("inline" if inline else "store", task=task, nbytes=nbytes, meeting=readers)
            sealed = seal_frames(self._world.secret, name, frames if inline else self._world.compressor.shrink(frames))
            if inline:
                located[task] = pack_inline(name, sealed)
            else:
                large.append((task, name, sealed))
        try:
            refs = self._world.put([(name, sealed) for _, name, sealed in large]) if large else []
            located.update((task, ref) for (task, _, _), ref in zip(large, refs, strict=True))
        except (ValueTooLarge, StoreFull):
            refs = []
            # One of them is too much: write them one by one to find out which.
            for task, name, sealed in large:
                try:
                    (located[task],) = self._world.put([(name, sealed)])
                except (ValueTooLarge, StoreFull) as error:
                    said = type(error)(f"the value of task {belongings.key(task)!r}: {error}")
                    failed[task] = belongings.error(task, said)
        for task, _, _ in large:
            ref = located.get(task)
            if isinstance(ref, Ref) and ref.stripes > 1:
                self._note("stripe", task=task, nbytes=ref.nbytes, stripes=ref.stripes)
        belongings.locations.update(located)
        return located, failed, sum(ref.nbytes for ref in refs)

    def _store_inline(self, tasks: Iterable[int], locations: Mapping[int, Location]) -> dict[int, Location]:
        """Write small values to where large ones are: where fan-ins are, there is no room for them."""
        inline = {task: where for task in tasks if isinstance(where := locations.get(task), bytes)}
        refs = self._world.put([self._as_own(task, *unpack_inline(where)) for task, where in inline.items()])
        self._crowded_until = self._world.clock() + CROWDED_SECONDS
        stored: dict[int, Location] = dict(zip(inline, refs, strict=True))
        self._belongings.locations.update(stored)
        return stored

    def _as_own(self, task: int, name: str, sealed: Frames) -> tuple[str, Frames]:
        """Have a value that was made in another job stored for this one: what that one has stored goes with it."""
        mine, secret = self._assignment, self._world.secret
        if name.startswith(f"{mine.job}/"):
            return name, sealed
        own = object_name(mine.job, task, mine.executor, mine.attempt)
        return own, seal_frames(secret, own, open_frames(secret, name, sealed))

    def _never_told(self, child: int, parent: int, error: Exception) -> bytes:
        # The child's own key may not be known here.
        said = f"the value of task {self._belongings.key(parent)!r} cannot reach its children: {error}"
        return self._belongings.error(child, type(error)(said))

    def _succession(self, successor: Successor | None, locations: Mapping[int, Location]) -> Succession | None:
        if successor is None:
            return None
        # A start whose input has no location has erred with that input.
        inputs = {start: parents for start, parents in successor.inputs.items() if locations.keys() >= set(parents)}
        if not inputs:
            return None
        given = {parent: locations[parent] for parents in inputs.values() for parent in parents}
        record = replace(
            successor.assignment, starts=[task for task in successor.assignment.starts if task in inputs], given=given
        )
        (fitting,) = fit([record], self._world.store, self._world.secret, self._world.payload_bytes_max)
        # The proxy invokes it: whoever takes a place should not begin before the place is left.
        said = [["delegating", [record.executor]], ["invoke", fitting.to_bytes()]]
        return Succession(record, self._seal_events(said))

    def delegate(self, delegate: Delegate) -> Delegated:
        """Start other executors with a part of the work, as many as there is room for."""
        mine = self._assignment
        assignments = []
        locations, failed, _ = self._locate(parent for parents in delegate.inputs for parent in parents)
        if failed:  # keep the work here, where the values are
            return Delegated(0, self._world.clock())
        for assignment, parents in zip(delegate.assignments, delegate.inputs, strict=True):
            given = {parent: locations[parent] for parent in parents}
            assignments.append(replace(assignment, given=given))
        posting = bool(self._world.linger_seconds)
        mails = [mail_of(self._world.secret, each) if posting else b"" for each in assignments]
        try:
            recipients = self._world.store.delegate_and_post(
                mine.job, mine.executor, mine.attempt, assignments, mails, mine.ceiling
            )
        except StoreFull:  # of records: the work stays here, as if there were no place
            recipients = []
        granted = len(recipients)
        if not granted:
            return Delegated(0, self._world.clock())
        posted = [(name, each) for name, each in zip(recipients, assignments, strict=False) if name]
        unposted = [each for name, each in zip(recipients, assignments, strict=False) if not name]
        fitting = fit(unposted, self._world.store, self._world.secret, self._world.payload_bytes_max)
        invoker = self._world.invoker
        if self._world.policy.invoke_here(len(fitting), invoker.warm):
            errors = invoker.invoke(fitting)
            refused = [assignment for assignment, error in zip(fitting, errors, strict=True) if error is not None]
        else:
            refused = fitting
        with self._lock:
            self._counters["invocations"] = self._counters.get("invocations", 0) + len(fitting) - len(refused)
        events: list[Any] = [["delegating", [assignment.executor for assignment in assignments[:granted]]]]
        if posted:
            events.append(["posted", [[name, each.executor] for name, each in posted]])
        # Their records exist: the proxy, which has more patience, invokes those that were not invoked here.
        events.extend(["invoke", assignment.to_bytes()] for assignment in refused)
        self._world.store.arrive(mine.job, mine.executor, mine.attempt, events=self._seal_events(events))
        return Delegated(granted, self._world.clock())

    def _seal_events(self, events: list[Any]) -> bytes:
        if not events:
            return b""
        mine = self._assignment
        name = events_name(mine.job, mine.executor, mine.attempt)
        # The number tells two publications with the same content from one that is repeated.
        return seal(self._world.secret, name, pack([next(self._numbers), events]))

    def _note(self, decision: str, **numbers: float) -> None:
        with self._lock:
            self._journal.note(decision, **numbers)

    def _report(self, arrive: Arrive) -> list[Any]:
        """Say what was observed of tasks, what was decided, and how long ago this began, when the executor says so."""
        decided, samples = arrive.journal
        if not decided:  # nor was anything observed: it is the journal that says that this is a report
            return []
        with self._lock:
            mine, more = self._journal.take()
        age = None if self._began is None else self._world.clock() - self._began
        return [arrive.observed, decided | mine, [*samples, *more], age]

    def _counts(self) -> dict[str, int]:
        """Count what happened since this was last asked in this sandbox."""
        with self._lock:
            counts, self._counters = self._counters, {}
        for name, total in self._world.store.counters().items():
            if total != self._world.counted.get(name, 0):
                counts[name] = total - self._world.counted.get(name, 0)
                self._world.counted[name] = total
        runs = (self._executor.tasks_run, self._executor.tasks_rerun, self._executor.tasks_remade)
        for name, now, before in zip(
            ("tasks_run", "tasks_rerun", "tasks_remade"), runs, self._counted_runs, strict=True
        ):
            if now != before:
                counts[name] = now - before
        self._counted_runs = runs
        return counts
