"""Task bodies: whatever way a body is pickled, it does what Dask's task does."""

from __future__ import annotations

import gc
import pickle
import weakref

from dask._task_spec import Alias, DataNode, Dict, GraphNode, List, Task, TaskRef
from hypothesis import given
from hypothesis import strategies as st

from dask_serverless.bodies import segment_bodies
from dask_serverless.dask_graph import plan_job
from lambda_worker.task_runner import CALL_FIELDS, key_of, run_body


def show(*args, **kwargs):
    return args, kwargs


def run(task, given=()):
    """Pickle a task as an executor would be given it, and run it there; return its value and its body."""
    values = dict(given)
    plan = plan_job({task.key: task}, {task.key}, values)
    *_, body = pickle.loads(segment_bodies(plan, 0, len(plan.graph)))
    assert key_of(body) == task.key
    parents = [values[plan.keys[parent]] for parent in plan.graph.parents[-1]]
    return run_body(body, parents, None), body


VALUES = {"a": 1, "b": [2], ("c", 0): None}
PLAIN = st.one_of(
    st.integers(),
    st.text(max_size=2),
    st.builds(list),
    st.sampled_from([TaskRef(k) for k in VALUES]),
    st.just((1, "a")),
)
NODES = st.sampled_from(
    [Alias("a"), List(TaskRef("a"), 1), Dict({"k": TaskRef("b")}), Task(None, len, TaskRef("b")), DataNode(None, 5)]
)


@given(
    st.lists(st.one_of(PLAIN, NODES), max_size=4),
    st.dictionaries(st.sampled_from(["x", "y"]), st.one_of(PLAIN, NODES)),
)
def test_a_body_does_what_the_task_does(args, kwargs):
    task = Task("mine", show, *args, **kwargs)
    found, _ = run(task, VALUES)
    assert found == task({key: VALUES[key] for key in task.dependencies})


def test_plain_tasks_are_calls():
    for task, call in [
        (Task("t", show, 1, []), ("t", show, (1, []), (), None)),
        (Task("t", show, TaskRef("a"), TaskRef("b")), ("t", show, (), None, None)),
        (Task("t", show, TaskRef("a"), 1, TaskRef("a")), ("t", show, (None, 1, None), [(0, 0), (2, 0)], None)),
        (Task("t", show, x=1), ("t", show, (), (), {"x": 1})),
    ]:
        _, body = run(task, VALUES)
        assert body == call
    for task in (Task("t", show, x=TaskRef("a")), Task("t", show, List(TaskRef("a")))):
        _, body = run(task, VALUES)
        assert len(body) < CALL_FIELDS


async def wait_for_it(value):
    return value


def test_coroutine_functions():
    assert run(Task("t", wait_for_it, TaskRef("a")), VALUES)[0] == 1


def test_a_function_that_returns_a_coroutine_is_not_awaited():
    made, _ = run(Task("t", lambda: wait_for_it(1)))
    assert made.__name__ == "wait_for_it"
    made.close()


class Value:
    """Something that can be seen to go."""


def test_a_fused_task_lets_go_of_what_it_needs_no_more():
    seen = []

    def first():
        value = Value()
        seen.append(weakref.ref(value))
        return value

    def third(_):
        gc.collect()
        return seen[-1]() is None

    tasks = [Task("a", first), Task("b", type, TaskRef("a")), Task("c", third, TaskRef("b"))]
    inputs = GraphNode.fuse(*tasks, key="c")
    assert run_body((inputs, (), None), [], None) is True


@given(st.data())
def test_fused_tasks_run_as_dask_runs_them(data):
    count = data.draw(st.integers(1, 8))
    tasks = []
    for n in range(count):
        near = [f"t{m}" for m in range(n)] + ["a", ("c", 0)]
        parents = data.draw(st.lists(st.sampled_from(near), unique=True, max_size=3))
        tasks.append(Task(f"t{n}", show, n, *map(TaskRef, parents)))
    needed = set().union(*(task.dependencies for task in tasks))
    last = Task("last", show, *(TaskRef(task.key) for task in tasks if task.key not in needed))
    fused = GraphNode.fuse(*data.draw(st.permutations([*tasks, last])))
    within = GraphNode.fuse(Task("outer", show, TaskRef("last"), 1), fused)
    for task in (fused, within):
        assert run(task, VALUES)[0] == task({key: VALUES[key] for key in task.dependencies})
