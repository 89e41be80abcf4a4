"""Large values that are held back: when, for how long, and what becomes of them."""

from dataclasses import replace

import pytest

from lambda_worker.core.events import Answered, Began, InputsFetched, TaskDone, Woken
from lambda_worker.core.executor import Executor
from lambda_worker.core.instructions import Arrive, Delegate, Fetch, Run, WakeAfter
from lambda_worker.core.kept import Kept
from lambda_worker.core.policy import Policy
from lambda_worker.core.schedule import Assignment, Edges
from lambda_worker.core.verdicts import Claim, Standing, Verdict
from lambda_worker.core.wire import Ref

LARGE = 10_000_000
#: Tasks 0 and 1 start; 2 is the child of 0 and 1, and 3 the only child of 2. Who meets here starts with 0 alone.
EDGES = Edges(0, [[], [], [0, 1], [2]], [[2], [2], [3], []], fan_ins={2: 2}, visible=frozenset({3}))
POLICY = Policy(bytes_per_second=50e6)


def begun(policy=POLICY, home=(0, 4), edges=EDGES, **fields):
    executor = Executor(Assignment("job", "e", 1, starts=[0], home=home, **fields), policy)
    assert executor.handle(Began(0.0, {0: edges})) == [Run(0, [])]
    return executor


def answer(now, *claims, retired=False, **fields):
    return Answered(Standing.OK, claims, retired, now, **fields)


def test_who_is_at_home_asks_and_others_arrive():
    asks = begun().handle(TaskDone(0, 0.1, 0.1, LARGE))
    assert asks == [Arrive([], [], [], retire=False, asks=[(2, 0, 2)])]
    arrives = begun(home=(3, 4)).handle(TaskDone(0, 0.1, 0.1, LARGE))
    assert arrives == [Arrive([(2, 0, 2)], [], [], retire=True)]
    assert begun(home=()).handle(TaskDone(0, 0.1, 0.1, LARGE)) == arrives
    assert begun(replace(POLICY, hold=False)).handle(TaskDone(0, 0.1, 0.1, LARGE)) == arrives


def test_small_values_are_not_held():
    assert begun().handle(TaskDone(0, 0.1, 0.1, 100)) == [Arrive([(2, 0, 2)], [], [], retire=True)]


def test_values_that_are_written_anyway_are_not_held():
    executor = begun(edges=replace(EDGES, visible=frozenset({0, 3})))
    assert executor.handle(TaskDone(0, 0.1, 0.1, LARGE)) == [Arrive([(2, 0, 2)], [0], [], retire=True)]


def test_values_for_a_task_that_does_not_fit_are_not_held():
    executor = begun(edges=replace(EDGES, classes={2: 1}))
    assert executor.handle(TaskDone(0, 0.1, 0.1, LARGE)) == [Arrive([(2, 0, 2)], [], [], retire=True)]


def test_a_child_that_is_won_runs_with_the_value_at_hand():
    executor = begun()
    executor.handle(TaskDone(0, 0.1, 0.1, LARGE))
    there = Ref("job/1/f/1", 0, 50)
    assert executor.handle(answer(0.2, Claim(2, Verdict.YOURS, {1: there}))) == [Fetch(2, {1: there})]
    assert executor.handle(InputsFetched(2)) == [Run(2, [0, 1])]
    forget, run = executor.handle(TaskDone(2, 0.1, 0.3))
    assert (set(forget.tasks), run) == ({0, 1}, Run(3, [2]))


def test_the_store_is_asked_again_and_less_and_less_often():
    executor = begun()
    executor.handle(TaskDone(0, 0.1, 0.1, LARGE))
    now, pauses = 0.1, []
    while True:
        (wake,) = executor.handle(answer(now, Claim(2, Verdict.WAIT)))
        assert isinstance(wake, WakeAfter)
        pauses.append(round(wake.seconds, 4))
        now += wake.seconds
        (arrive,) = executor.handle(Woken(now))
        if arrive.arrivals:
            break
        assert arrive.asks == [(2, 0, 2)] and not arrive.retire
    assert pauses[:6] == [0.002, 0.004, 0.008, 0.016, 0.032, 0.05] and max(pauses) == 0.05
    # To write and read it takes 0.2 s: who has waited twice as long has waited long enough.
    assert 0.5 <= now < 0.56
    assert arrive == Arrive([(2, 0, 2)], [], [], retire=True)


def test_what_is_measured_counts_not_what_was_taken_for_granted():
    executor = begun()
    executor.handle(TaskDone(0, 0.1, 0.1, LARGE))
    executor.handle(answer(0.1, Claim(2, Verdict.WAIT), nbytes=LARGE, seconds=1.0))  # 10 MB/s: 4 s are worth waiting
    (asks,) = executor.handle(Woken(4.0))
    assert asks.asks
    executor.handle(answer(4.0, Claim(2, Verdict.WAIT)))
    (arrives,) = executor.handle(Woken(4.2))
    assert arrives.arrivals


@pytest.mark.parametrize("verdict", [Verdict.TAKEN, Verdict.DONE])
def test_a_child_that_is_somebody_elses_is_let_go(verdict):
    executor = begun()
    executor.handle(TaskDone(0, 0.1, 0.1, LARGE))
    forget, retire = executor.handle(answer(0.2, Claim(2, verdict)))
    assert (forget.tasks, retire) == ([0], Arrive([], [], [], retire=True))


def test_when_memory_is_short_the_last_ones_are_written_first():
    """Two tasks, each with a large value for a child at home; there is room for one and a half."""
    edges = Edges(0, [[], [], [], [], [0, 9], [1, 9], []], [[4], [5], [], [], [], [], []], fan_ins={4: 2, 5: 2})
    executor = Executor(
        Assignment("job", "e", 1, starts=[0, 1, 2], home=(0, 99)), replace(POLICY, kept_bytes_max=LARGE * 3 // 2)
    )
    executor.handle(Began(0.0, {0: edges}))
    run, _ = executor.handle(TaskDone(0, 0.1, 0.1, LARGE))
    assert run == Run(1, [])
    (ask,) = executor.handle(Woken(0.11))
    assert ask.asks == [(4, 0, 2)]
    executor.handle(answer(0.12, Claim(4, Verdict.WAIT)))
    # Nothing runs before what does not fit is written.
    assert executor.handle(TaskDone(1, 0.1, 0.2, LARGE)) == [
        Arrive([(5, 1, 2)], [], [], retire=False, asks=[(4, 0, 2)])
    ]
    forget, run, *_ = executor.handle(answer(0.3, Claim(4, Verdict.WAIT), Claim(5, Verdict.WAIT)))
    assert (forget.tasks, run) == ([1], Run(2, []))


def test_who_leaves_holds_nothing_back():
    executor = Executor(Assignment("job", "e", 1, starts=[0], home=(0, 4)), POLICY)
    executor.handle(Began(0.0, {0: EDGES}, until=0.05))
    assert executor.handle(TaskDone(0, 0.1, 0.1, LARGE)) == [Arrive([(2, 0, 2)], [], [], retire=True)]


def test_a_child_won_by_asking_after_it_was_given_up_is_not_arrived_at():
    executor = begun()
    executor.handle(TaskDone(0, 0.1, 0.1, LARGE))  # asks
    executor.handle(Woken(9.0))  # gives up while that is on its way
    (run,) = executor.handle(answer(9.1, Claim(2, Verdict.YOURS, {1: b"small"})))
    assert run == Fetch(2, {1: b"small"})
    assert executor.handle(InputsFetched(2)) == [Run(2, [0, 1])]
    forget, run = executor.handle(TaskDone(2, 0.1, 9.3))
    assert (set(forget.tasks), run) == ({0, 1}, Run(3, [2]))


def test_ready_tasks_stay_with_large_inputs_unless_they_take_longer_than_moving_them():
    """Twenty children of one large value: worth giving away when each takes longer than the value's way."""
    count = 20
    edges = Edges(0, [[], *([0] for _ in range(count))], [list(range(1, count + 1)), *([] for _ in range(count))])
    for policy, seconds, given in ((POLICY, 0.1, 0), (POLICY, 0.3, 1), (replace(POLICY, group=False), 0.1, 1)):
        policy = replace(policy, ceiling=4, share_seconds_min=0.1, full_seconds=0.0)
        executor = Executor(Assignment("job", "e", 1, starts=[0], room=3), policy)
        executor.handle(Began(0.0, {0: edges}))
        told = executor.handle(TaskDone(0, seconds, seconds, LARGE))
        delegates = [each for each in told if isinstance(each, Delegate)]
        assert len(delegates) == given, (policy, seconds)


def test_an_input_is_as_large_as_it_is_here_not_as_it_was_when_it_travelled():
    kept = Kept({0: Ref("a", 0, 1_000), 1: Ref("b", 0, 1_000)})
    kept.fetched([0, 1], {1: 1_000_000})
    assert (kept.nbytes, kept.nbytes_of([1])) == (1_001_000, 1_000_000)
