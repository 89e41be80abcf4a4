"""Tasks that one executor wins at the same time: who runs them."""

from __future__ import annotations

from lambda_worker.core.events import Answered, Began, Delegated, InputsFetched, SegmentsLoaded, TaskDone
from lambda_worker.core.executor import Executor
from lambda_worker.core.instructions import Delegate, Fetch, LoadSegments, Run
from lambda_worker.core.policy import Policy
from lambda_worker.core.schedule import Assignment, Edges
from lambda_worker.core.verdicts import Claim, Standing, Verdict
from lambda_worker.core.wire import Ref

#: What comes last (task 0, of prefix 0) is all that four tasks (of prefix 1) still lack; task 1 was run elsewhere.
TOGETHER = Edges(
    0,
    [[], [], *([0, 1] for _ in range(4))],
    [[2, 3, 4, 5], [2, 3, 4, 5], [], [], [], []],
    fan_ins=dict.fromkeys(range(2, 6), 2),
    visible=frozenset(range(2, 6)),
    prefixes=[0, 2, 1, 4],
)
THERE = Ref("job/1/f/1", 0, 1_000_000)


def won(learned, edges=TOGETHER, children=range(2, 6), **fields):
    """Return an executor that has won them all, and what it does."""
    executor = Executor(
        Assignment("job", "e", 1, [0], ceiling=99, room=98, learned=learned), Policy(ceiling=99, **fields)
    )
    executor.handle(Began(0.0, {0: edges}))
    executor.handle(TaskDone(0, 2.0, 2.0))
    claims = [Claim(child, Verdict.YOURS, {1: THERE}) for child in children]
    return executor, executor.handle(Answered(Standing.OK, claims, False, 2.1))


def starts(delegate):
    return [list(each.starts) for each in delegate.assignments]


def test_they_are_shared_before_any_of_them_runs_if_it_is_known_that_this_pays():
    executor, told = won({1: (2.0, 0)})
    delegate, fetch = told
    assert isinstance(delegate, Delegate) and starts(delegate) == [[5], [4], [3]]
    assert fetch == Fetch(2, {1: THERE})
    executor.handle(Delegated(3, now=2.2))
    assert executor.handle(InputsFetched(2)) == [Run(2, [0, 1])]


def test_they_stay_if_they_are_known_to_be_short():
    _, told = won({1: (0.01, 0)})
    assert [type(each) for each in told] == [Fetch, Fetch]


def test_they_stay_where_nothing_is_shared():
    _, told = won({1: (2.0, 0)}, split=False)
    assert [type(each) for each in told] == [Fetch, Fetch]


def test_one_is_run_first_if_nobody_knows_what_they_take():
    executor, told = won({})
    assert [type(each) for each in told] == [Fetch, Fetch]
    executor.handle(InputsFetched(2))
    executor.handle(InputsFetched(3))
    told = executor.handle(TaskDone(2, 2.0, 4.2))
    (delegate,) = [each for each in told if isinstance(each, Delegate)]
    assert starts(delegate) == [[5]], "another one was read ahead, and one stays"


def test_what_they_need_is_read_first_and_until_then_one_is_begun_and_none_read_ahead():
    """Two of them are in a segment that is not here."""
    near = Edges(
        0,
        [[], [], [0, 1], [0, 1], *([] for _ in range(252))],
        [[2, 3, 256, 257], [2, 3, 256, 257], *([] for _ in range(254))],
        fan_ins={2: 2, 3: 2, 256: 2, 257: 2},
        visible=frozenset((2, 3)),
        prefixes=[0, 2, 1, 254],
    )
    far = Edges(256, [[0, 1], [0, 1]], [[], []], visible=frozenset((256, 257)), prefixes=[1, 2])
    executor, told = won({1: (2.0, 0)}, near, (2, 3, 256, 257))
    assert told == [LoadSegments([1]), Fetch(2, {1: THERE})]
    told = executor.handle(SegmentsLoaded({1: far}))
    delegate, fetch = told
    assert starts(delegate) == [[257], [256]]
    assert fetch == Fetch(3, {1: THERE})
