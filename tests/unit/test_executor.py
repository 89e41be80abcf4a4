"""The executor core: told events, it must say the right instructions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from dask_serverless.plan import edges
from lambda_worker.core.delegation import Delegation
from lambda_worker.core.events import (
    Answered,
    Began,
    Delegated,
    Halted,
    InputsLost,
    Located,
    Rescheduled,
    Seceded,
    TaskDone,
    Woken,
    WritingsMissed,
)
from lambda_worker.core.executor import Executor
from lambda_worker.core.instructions import (
    Arrive,
    Delegate,
    Fetch,
    Finish,
    Forget,
    GivePlace,
    Locate,
    Run,
    TakePlace,
    WakeAfter,
)
from lambda_worker.core.lineage import REWRITES_MAX
from lambda_worker.core.parked import Parked
from lambda_worker.core.policy import Policy
from lambda_worker.core.schedule import Assignment, Edges
from lambda_worker.core.segments import Segments
from lambda_worker.core.verdicts import Claim, Standing, Verdict
from lambda_worker.core.wire import Ref, unpack
from tests.unit.executor_world import EAGER, chain, graph_of


def test_only_what_is_missing_on_the_way_to_a_lost_value_runs_again():
    # 0, 1 -> 2; 2, 3 -> 4. The value of 2 is lost; those of 0 and 1 can be read, says the store.
    edges = Edges(0, [[], [], [0, 1], [], [2, 3]], [[2], [2], [4], [4], []], fan_ins={2: 2, 4: 2}, visible={4})
    executor = Executor(Assignment("job", "e", 1, starts=[3]), Policy())
    executor.handle(Began(0.0, {0: edges}))
    executor.handle(TaskDone(3, 0.1, 0.1))
    claim = Claim(4, Verdict.YOURS, {2: b"two", 3: b"three"})
    assert executor.handle(Answered(Standing.OK, [claim], False, 0.2)) == [Fetch(4, {2: b"two"})]
    assert executor.handle(InputsLost(4, [2])) == [Locate(2)]
    assert executor.handle(Located(2, {0: b"zero", 1: b"one"})) == [Fetch(2, {0: b"zero", 1: b"one"})]
    assert executor.handle(InputsLost(2, [1])) == [Run(1, [])]
    assert executor.handle(TaskDone(1, 0.1, 0.3)) == [Run(2, [0, 1])]
    assert executor.handle(TaskDone(2, 0.1, 0.4)) == [Forget([0, 1], []), Run(4, [2, 3])]
    assert executor.handle(TaskDone(4, 0.1, 0.5))[-1] == Arrive([], [4], [], retire=True)
    assert executor.tasks_remade == 2


def test_what_the_parents_of_the_parents_wrote_is_written_again_a_few_times():
    """0, 1 (transfers) -> 2 (barrier) -> 3 (unpack)."""
    edges = Edges(0, [[], [], [0, 1], [2]], [[2], [2], [3], []], fan_ins={2: 2}, visible={3})
    executor = Executor(Assignment("job", "e", 1, starts=[0, 1]), Policy())
    executor.handle(Began(0.0, {0: edges}))
    for task in range(3):
        out = executor.handle(TaskDone(task, 0.1, 0.1))
    assert out[-1] == Run(3, [2])
    for _ in range(REWRITES_MAX):
        assert executor.handle(WritingsMissed(3, 0.2)) == [Run(0, [])]
        assert executor.handle(TaskDone(0, 0.1, 0.3)) == [Run(1, [])]
        assert executor.handle(TaskDone(1, 0.1, 0.4)) == [Run(2, [0, 1])]
        assert executor.handle(TaskDone(2, 0.1, 0.5)) == [Forget([0, 1], []), Run(3, [2])]
    assert executor.handle(WritingsMissed(3, 0.6))[-1] == Arrive([], [], [3], retire=True)


def test_who_is_given_work_by_a_later_attempt_does_not_run_what_that_has_claimed():
    """1. An attempt claims 2 and dies; 2. the next one gives 1 away, a parent of 2; 3. who got it promises 2."""
    edges = Edges(0, [[], [], [0, 1], []], [[2], [2], [], []], fan_ins={2: 2})
    again = Assignment("job", "e", 2, starts=[0, 1], claims={2: {0: b"x", 1: b"y"}}, patience=1.0)
    segments = Segments()
    segments.add(0, edges)
    delegation = Delegation(again, Policy(), segments, Parked())
    (delegate,) = delegation.offer([1, 0], size=1, upto=1)
    assert [(each.starts, each.without) for each in delegate.assignments] == [([1], (2,))]
    delegation.answered(granted=1, now=0.0)
    (delegate,) = delegation.offer([2, 0], size=1, upto=1)
    assert [(each.starts, each.without) for each in delegate.assignments] == [([2], ())]


def test_what_is_at_hand_is_used_first():
    """What has to be read comes meanwhile, and takes the room of what was used: of a scan something stays."""
    made = {f"c{n}": (f"g{n}",) for n in range(6)}
    graph, keys = graph_of(made, list(made), {f"g{n}" for n in range(6)})
    inputs = [keys.index(f"g{n}") for n in range(6)]
    given = {task: Ref(f"old/{task}/a/1", 0, 10**6) for task in inputs}
    executor = Executor(Assignment("job", "e", 1, inputs, given), Policy(fetch_ahead=6))
    cached = {keys.index("g2"): 10**6, keys.index("g5"): 10**6}
    out = executor.handle(Began(0.0, dict(enumerate(edges(graph))), math.inf, cached))
    fetched = [keys[each.task] for each in out if isinstance(each, Fetch)]
    assert fetched == ["c2", "c5", "c0", "c1", "c3", "c4"]


def test_the_bodies_of_a_segment_are_let_go_when_all_its_tasks_have_ended():
    graph, _ = graph_of(chain(600), {599})
    executor = Executor(Assignment("job", "e", 1, [0]), Policy())
    executor.handle(Began(0.0, dict(enumerate(edges(graph)))))
    let_go = {}
    for task in range(600):
        for instruction in executor.handle(TaskDone(task, 0.0, 0.0)):
            if isinstance(instruction, Forget):
                let_go.update((segment, task) for segment in instruction.segments)
    assert let_go == {0: 255, 1: 511}


def test_a_halt_ends_at_once():
    graph, _ = graph_of(chain(10), {9})
    executor = Executor(Assignment("job", "e", 1, [0]), Policy())
    executor.handle(Began(0.0, dict(enumerate(edges(graph)))))
    assert executor.handle(Halted(Standing.CANCELLED)) == [Finish("cancelled")]
    assert executor.handle(TaskDone(0, 0.1, 0.1)) == []


def test_results_of_quick_tasks_wait_for_the_alarm_while_others_run():
    graph, _ = graph_of({n: () for n in range(3)}, {0, 1, 2})
    executor = Executor(Assignment("job", "e", 1, [0, 1, 2]), Policy())
    executor.handle(Began(0.0, dict(enumerate(edges(graph)))))
    assert executor.handle(TaskDone(0, 0.0, 0.0)) == [Run(1, ()), WakeAfter(Policy().publish_seconds)]
    assert executor.handle(TaskDone(1, 0.0, 0.0)) == [Run(2, ())]
    assert executor.handle(Woken(0.01)) == [Arrive([], [0, 1], [], retire=False)]


def test_a_task_that_secedes_lets_the_others_go_elsewhere():
    graph, _ = graph_of({n: () for n in range(3)}, {0, 1, 2})
    executor = Executor(Assignment("job", "e", 1, [0, 1, 2]), Policy())
    executor.handle(Began(0.0, dict(enumerate(edges(graph)))))
    (offer,) = executor.handle(Seceded())
    assert [list(each.starts) for each in offer.assignments] == [[1, 2]]
    # There is no place for them yet: ask again while the task still waits.
    assert executor.handle(Delegated(0, 0.1)) == [WakeAfter(Policy().refused_seconds)]
    assert executor.handle(Woken(0.2))[-1].assignments[0].executor == "e.1.2"
    assert executor.handle(Delegated(1, 0.3)) == []
    assert executor.handle(TaskDone(0, 1.0, 1.0)) == [Arrive([], [0], [], retire=True)]


@pytest.mark.parametrize("full_executors", [1, 200])  # a wide fleet, or none
def test_what_does_not_fit_is_given_away_while_other_tasks_run(full_executors):
    graph, _ = graph_of({"s": (), **{n: ("s",) for n in range(4)}}, set(range(4)), classes={2: 1, 3: 1})
    executor = Executor(Assignment("job", "e", 1, [0]), Policy(ceiling=8, full_executors=full_executors))
    executor.handle(Began(0.0, dict(enumerate(edges(graph)))))
    run, offer = executor.handle(TaskDone(0, 0.1, 0.1))
    assert run == Run(1, [0])
    assert [(each.starts, each.function_class) for each in offer.assignments] == [([3], 1), ([4], 1)]
    # There is room for one. The other is offered again although the running task is not done yet.
    (wake,) = executor.handle(Delegated(1, 0.1))
    assert wake == WakeAfter(Policy().refused_seconds)
    (again,) = executor.handle(Woken(0.3))
    assert [each.starts for each in again.assignments] == [[4]]
    assert executor.handle(Delegated(0, 0.3)) == [WakeAfter(Policy().refused_seconds)]
    # Nothing else is left: its place goes to a successor, in the step that publishes what was done.
    # What is to be published does not wait for that alarm.
    assert executor.handle(TaskDone(1, 0.1, 0.31)) == [Run(2, [0]), WakeAfter(Policy().publish_seconds)]
    (arrive,) = executor.handle(TaskDone(2, 0.1, 0.32))
    assert arrive.retire and arrive.successor.assignment.starts == [4]
    assert arrive.successor.assignment.function_class == 1
    assert arrive.successor.inputs == {4: [0]}


def test_a_larger_executor_gives_small_tasks_to_small_ones():
    graph, _ = graph_of({"s": (), **{n: ("s",) for n in range(100)}}, set(range(100)), classes={"s": 1, 99: 1})
    policy = replace(EAGER, ceiling=10)
    executor = Executor(Assignment("job", "e", 1, [0], function_class=1), policy)
    executor.handle(Began(0.0, dict(enumerate(edges(graph)))))
    offer, _ = executor.handle(TaskDone(0, 1.0, 1.0))
    assert [each.function_class for each in offer.assignments] == [1, *[0] * 8]


def test_the_default_class_costs_no_byte():
    plain = Assignment("job", "e", 1, [0])
    assert len(plain.to_bytes()) == len(Assignment("job", "e", 1, [0], function_class=0).to_bytes())
    assert len(unpack(plain.to_bytes())) == 10 and len(unpack(next(edges(graph_of(chain(3), {2})[0])).to_bytes())) == 6
    large = replace(plain, function_class=2)
    assert Assignment.from_bytes(large.to_bytes()) == replace(large, starts=[0], hint=[])


# --- tasks that ask to be run again


def rescheduler(parents, wanted, starts, segments=None, **options):
    graph, _ = graph_of(parents, wanted)
    executor = Executor(Assignment("job", "e", 1, starts, segments=segments or {}), Policy(**options))
    first = executor.handle(Began(0.0, dict(enumerate(edges(graph)))))
    return executor, first


def test_a_rescheduled_task_runs_again_behind_the_others():
    executor, first = rescheduler({"a": (), "b": (), "end": ("a", "b")}, {"end"}, [0, 1])
    assert first == [Run(0, ())]
    assert executor.handle(Rescheduled(0, 0.0)) == [WakeAfter(0.01), Run(1, ())]
    assert executor.handle(Woken(0.01)) == []
    assert executor.handle(TaskDone(1, 0.01, 0.02)) == [Run(0, ())]
    assert Run(2, [0, 1]) in executor.handle(TaskDone(0, 0.01, 0.03))
    assert executor.tasks_rerun == 1


def test_who_reschedules_for_ever_waits_longer_gives_its_place_and_moves():
    executor, said = rescheduler({"a": ()}, {"a"}, [0], {0: b"sealed"}, ceiling=2)
    now, waits, places = 0.0, [], []
    for _ in range(8):
        assert Run(0, ()) in said
        places += [type(each) for each in said if isinstance(each, TakePlace)]
        said = executor.handle(Rescheduled(0, now))
        (wake,) = [each for each in said if isinstance(each, WakeAfter)]
        places += [type(each) for each in said if isinstance(each, GivePlace)]
        waits.append(wake.seconds)
        assert executor.handle(Woken(now + wake.seconds / 2)) == [WakeAfter(pytest.approx(wake.seconds / 2))], "not yet"
        now += wake.seconds
        said = executor.handle(Woken(now))
    assert waits == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0]
    assert places == [GivePlace, TakePlace] * 3 + [GivePlace]
    (delegate,) = said
    assert isinstance(delegate, Delegate) and delegate.assignments[0].starts == [0]
    assert delegate.assignments[0].segments == {0: b"sealed"}, "which may be stored nowhere"
    assert executor.handle(Delegated(0, now))[0] == TakePlace(), "nobody had room: it runs here"
    executor.handle(Rescheduled(0, now))
    executor.handle(Woken(now + 1.0))
    assert executor.handle(Delegated(1, now + 1.0)) == [Arrive([], [], [], retire=True)]


def test_alarms_do_not_multiply():
    """One task is parked, and there is no room for another: each alarm that comes is followed by one at most."""
    graph, _ = graph_of({"a": (), "b": (), "end": ("b",)}, {"a", "end"}, classes={"end": 1})
    executor = Executor(Assignment("job", "e", 1, [0, 1]), Policy(ceiling=2))
    alarms, now = [], 0.0

    def tell(event):
        said = executor.handle(event)
        alarms.extend(now + each.seconds for each in said if isinstance(each, WakeAfter))
        for each in said:
            if isinstance(each, Delegate):
                tell(Delegated(0, now))

    tell(Began(now, dict(enumerate(edges(graph)))))
    for _ in range(8):  # until it waits for a second
        tell(Rescheduled(0, now))
        if 1 in executor._running:
            tell(TaskDone(1, 0.01, now))
        while 0 not in executor._running:
            now = alarms.pop(alarms.index(min(alarms)))
            tell(Woken(now))
            assert len(alarms) <= 4


def test_an_executor_that_is_halted_lets_its_parked_tasks_be():
    executor, _ = rescheduler({"a": ()}, {"a"}, [0])
    executor.handle(Rescheduled(0, 0.0))
    assert isinstance(executor.handle(Halted(Standing.CANCELLED))[0], Finish)
    assert executor.handle(Woken(1.0)) == []


def test_who_keeps_too_much_publishes_before_it_goes_on():
    edges = Edges(first=0, parents=[[]] * 4, children=[[]] * 4, visible=frozenset(range(4)))
    executor = Executor(Assignment("job", "e", 1, starts=[0, 1, 2, 3]), Policy(kept_bytes_max=100))
    assert executor.handle(Began(0.0, {0: edges})) == [Run(0, [])]
    # Below the bound, results wait for company while tasks run.
    assert executor.handle(TaskDone(0, 0.0, 0.0, nbytes=100))[0] == Run(1, [])
    # Above it, no task runs until they are written.
    assert executor.handle(TaskDone(1, 0.0, 0.0, nbytes=1)) == [Arrive([], [0, 1], [], retire=False)]
    assert executor.handle(Woken(0.0)) == []
    forget, run = executor.handle(Answered(Standing.OK, (), False, 0.0))
    assert (forget.tasks, run) == ([0, 1], Run(2, []))
    assert executor.handle(TaskDone(2, 0.0, 0.0, nbytes=1))[0] == Run(3, [])


def test_what_publishing_cannot_free_stops_nobody():
    """A large value that is kept for tasks here: they must run."""
    edges = Edges(first=0, parents=[[], [0], [0]], children=[[1, 2], [], []], visible=frozenset({1, 2}))
    executor = Executor(Assignment("job", "e", 1, starts=[0]), Policy(kept_bytes_max=100))
    executor.handle(Began(0.0, {0: edges}))
    assert executor.handle(TaskDone(0, 0.0, 0.0, nbytes=1_000)) == [Run(1, [0])]
    assert executor.handle(TaskDone(1, 0.0, 0.0)) == [Arrive([], [1], [], retire=False)]
    forget, run = executor.handle(Answered(Standing.OK, (), False, 0.0))
    assert (forget.tasks, run) == ([1], Run(2, [0]))
