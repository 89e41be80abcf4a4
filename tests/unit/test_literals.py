"""Large objects that tasks hold: taken out of their bodies, stored once, given back to whoever runs."""

from __future__ import annotations

import functools
import pickle
import threading

import dask.array as da
import numpy as np
import pytest
from dask._task_spec import DataNode, Dict, GraphNode, List, Task, TaskRef
from dask.base import collections_to_expr
from dask.core import flatten
from hypothesis import given
from hypothesis import strategies as st

from dask_serverless.bodies import segment_bodies
from dask_serverless.dask_graph import materialise, plan_job
from dask_serverless.literals import EMBEDDED_BYTES_MAX, STORED_BYTES_MIN, Literals
from lambda_worker.core.errors import StoreFull, UnpicklableTask, ValueTooLarge
from lambda_worker.core.schedule import BODIES_TASKS, SEGMENT_TASKS
from lambda_worker.core.wire import Ref, frames_nbytes
from lambda_worker.task_runner import Bodies, run_body
from lambda_worker.values import frames_to_value, value_to_frames

LARGE = 3 * EMBEDDED_BYTES_MAX


class Shelf:
    """A store that counts."""

    def __init__(self):
        self.stored = []
        self.read = []
        self.nbytes_max = 2**20

    def keep(self, value):
        self.stored.append([bytes(frame) for frame in value_to_frames(value)])
        return Ref(f"constants/{len(self.stored) - 1}", 0, frames_nbytes(self.stored[-1]))

    def value(self, ref):
        number = int(ref.name.rpartition("/")[2])
        self.read.append(number)
        return frames_to_value(self.stored[number])

    def run(self, tasks, wanted=None, only=None, segments=None):
        """Run tasks from their pickled segments; return the values, and the bytes of the segments."""
        wanted = tasks.keys() if wanted is None else wanted
        plan = plan_job(tasks, set(wanted))
        count = len(plan.graph)
        literals = Literals(segments or -(-count // BODIES_TASKS), self.keep)
        bodies, nbytes = Bodies(self), 0
        constants = {name: self.keep(value) for name, value in plan.constants.items()}
        for number, first in enumerate(range(0, count, SEGMENT_TASKS)):
            last = min(first + SEGMENT_TASKS, count)
            blobs = [
                segment_bodies(plan, each, min(each + BODIES_TASKS, last), constants, literals)
                for each in range(first, last, BODIES_TASKS)
            ]
            bodies.add(number, blobs)
            nbytes += sum(map(len, blobs))
        values = {}
        for task, key in enumerate(plan.keys):
            if only is None or key in only:
                parents = [values[plan.keys[parent]] for parent in plan.graph.parents[task]]
                values[key] = run_body(bodies.get(task), parents, bodies.constant)
        return values, nbytes


def table(size=LARGE):
    return np.arange(size // 8)


def look_up(number, where):
    return int(where[number])


def spoil(where):
    where[0] += 1
    return int(where[0])


def test_an_argument_of_many_tasks_is_stored_once_and_leaves_the_segments():
    shelf, array = Shelf(), table()
    tasks = {n: Task(n, look_up, n, array) for n in range(2 * SEGMENT_TASKS)}
    values, nbytes = shelf.run(tasks)
    assert values == {n: n for n in tasks}
    assert len(shelf.stored) == 1 and nbytes < EMBEDDED_BYTES_MAX
    assert tasks[0].args[1] is array, "the user's task is as it was"


def test_each_task_has_an_object_of_its_own():
    array = np.zeros(LARGE // 8)
    values, _ = Shelf().run({n: Task(n, spoil, array) for n in range(4)})
    assert set(values.values()) == {1}


def test_only_tasks_that_run_read_what_only_they_have():
    shelf = Shelf()
    tasks = {n: Task(n, look_up, 7, np.full(LARGE // 8, n)) for n in range(10)}
    values, nbytes = shelf.run(tasks, only={3, 4})
    assert values == {3: 3, 4: 4}
    assert len(shelf.stored) == 10 and len(shelf.read) == 2 and nbytes < LARGE


def test_what_is_small_travels_with_the_tasks():
    shelf = Shelf()
    tasks = {n: Task(n, look_up, n, table(STORED_BYTES_MIN // 2)) for n in range(SEGMENT_TASKS)}
    shelf.run(tasks)
    shared = table(EMBEDDED_BYTES_MAX // 2)
    shelf.run({n: Task(n, look_up, n, shared) for n in range(SEGMENT_TASKS)})
    assert not shelf.stored


def test_what_many_segments_would_repeat_is_stored_sooner():
    shelf, shared = Shelf(), table(EMBEDDED_BYTES_MAX // 2)
    own = [table(EMBEDDED_BYTES_MAX // 2) for _ in range(4)]
    tasks = {n: Task(n, look_up, n, shared) for n in range(4)} | {-n: Task(-n, look_up, n, own[n]) for n in range(1, 4)}
    values, _ = shelf.run(tasks, segments=100)
    assert values[3] == values[-3] == 3
    assert len(shelf.stored) == 1


@pytest.mark.parametrize(
    "hold",
    [
        lambda array: Task("x", look_up, 5, where=array),
        lambda array: Task("x", look_up, 5, DataNode("inside", array)),
        lambda array: Task("x", sum, List(Task(None, look_up, 2, array), Task(None, look_up, 3, array))),
        lambda array: Task("x", lambda found: look_up(5, found["where"]), Dict({"where": DataNode(None, array)})),
        lambda array: GraphNode.fuse(Task("y", look_up, 4, array), Task("x", lambda y: y + 1, TaskRef("y"))),
        lambda array: GraphNode.fuse(DataNode("y", array), Task("x", look_up, 5, TaskRef("y"))),
        lambda array: Task("x", look_up, 5, [*array]),
        lambda array: Task("x", functools.partial(look_up, where=array), 5),
        lambda array: Task("x", lambda: look_up(5, array)),
        lambda array: Task("x", lambda where=array: look_up(5, where)),
        lambda array: Task("x", functools.partial(lambda number: look_up(number, array), 5)),
        lambda array: Task("x", array.item, 5),
    ],
)
def test_wherever_it_is(hold):
    shelf = Shelf()
    values, nbytes = shelf.run({"x": hold(table())})
    assert values == {"x": 5}
    assert len(shelf.stored) == 1 and nbytes < LARGE / 2


def test_an_object_inside_another_and_beside_it():
    shelf, array = Shelf(), table()

    def both(one, others):
        return type(one) is type(others[0]) is np.ndarray and bool((one == others[0]).all())

    values, nbytes = shelf.run({"x": Task("x", both, array, [array, 1]), "y": Task("y", lambda: both(array, [array]))})
    assert values == {"x": True, "y": True} and nbytes < LARGE / 2


def test_globals_that_travel_with_a_function():
    shelf = Shelf()
    space = {"__name__": "__main__", "TABLE": table()}
    exec("def f(n):\n    return [int(TABLE[m]) for m in (n,)][0]", space)
    values, nbytes = shelf.run({n: Task(n, space["f"], n) for n in range(SEGMENT_TASKS * 2)})
    assert values == {n: n for n in values}
    assert len(shelf.stored) == 1 and nbytes < LARGE


def test_a_blockwise_layer_with_a_large_keyword_argument():
    model = {n: str(n) for n in range(40_000)}
    array = da.ones((600, 2), chunks=(1, 2)).map_blocks(lambda block, model: block + len(model), model=model)
    flat = list(flatten(array.__dask_keys__()))
    tasks = materialise(collections_to_expr([array]).optimize(), flat).tasks
    shelf = Shelf()
    values, nbytes = shelf.run(tasks, flat)
    assert {float(values[key][0, 0]) for key in flat} == {40_001.0}
    assert len(shelf.stored) == 1 and nbytes < len(pickle.dumps(model)) * 2


@pytest.mark.parametrize("error", [ValueTooLarge("too large"), StoreFull("full")])
def test_what_the_store_refuses_is_named_by_its_task(error):
    def refuse(value):
        raise error

    plan = plan_job({"mine": Task("mine", look_up, 1, table())}, {"mine"})
    with pytest.raises(type(error), match=r"a ndarray that task 'mine' holds: (too large|full)"):
        segment_bodies(plan, 0, 1, literals=Literals(1, refuse))


def test_what_cannot_be_pickled_is_named_as_ever():
    plan = plan_job({"mine": Task("mine", len, [table(), threading.Lock()])}, {"mine"})
    with pytest.raises(UnpicklableTask, match="task 'mine' .a call of len. cannot be pickled"):
        segment_bodies(plan, 0, 1, literals=Literals(1, Shelf().keep))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), min_size=1, max_size=20),
    st.integers(1, 40),
)
def test_values_do_not_depend_on_what_is_stored(holds, segments):
    objects = [table(LARGE), table(EMBEDDED_BYTES_MAX // 2), table(STORED_BYTES_MIN * 2), table(64)]

    def last(*arrays):
        return [int(array[-1]) for array in arrays]

    tasks = {}
    for n, (which, capture, nest) in enumerate(holds):
        array = objects[which]
        function = functools.partial(last, array) if capture else last
        tasks[n] = Task(n, function, DataNode(None, array) if nest else array)
    values, _ = Shelf().run(tasks, segments=segments)
    for n, (which, capture, _) in enumerate(holds):
        assert values[n] == [len(objects[which]) - 1] * (2 if capture else 1)


def test_of_data_with_a_key_the_one_used_last_stays_and_others_while_there_is_room():
    shelf = Shelf()
    small, large = [shelf.keep(np.zeros(count)) for count in (20_000, 200_000)]  # one is more than has room
    others = [shelf.keep(np.zeros(20_000)) for _ in range(5)]
    bodies = Bodies(shelf)
    for ref in (small, *others, small, large, large):
        assert bodies.constant(ref) is bodies.constant(ref)
    assert shelf.read == [0, 2, 3, 4, 5, 6, 1]
    bodies.constant(small)
    assert shelf.read[-1] == 0


class Noted(Task):
    """A task of somebody's own, with more than Dask's slots."""

    __slots__ = ("note",)


def test_tasks_of_other_kinds_keep_what_they_have():
    task = Noted("x", look_up, 5, table())
    task.note = "mine"
    shelf = Shelf()
    plan = plan_job({"x": task}, {"x"})
    bodies = Bodies(shelf)
    bodies.add(0, [segment_bodies(plan, 0, 1, literals=Literals(1, shelf.keep))])
    body = bodies.get(0)
    assert type(body[0]) is Noted and body[0].note == "mine" and not shelf.read
    assert run_body(body, [], bodies.constant) == 5 and len(shelf.read) == 1
