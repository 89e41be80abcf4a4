"""Dask graphs translated: the plan, walked in number order, gives what Dask itself gives."""

from __future__ import annotations

import gc
import operator
import pickle
import subprocess
import sys
import threading
from types import ModuleType

import cloudpickle
import dask
import dask.array as da
import dask.bag as db
import numpy as np
import pytest
from dask._expr import FinalizeCompute, LLGExpr
from dask._task_spec import Alias, DataNode, Dict, List, Task, TaskRef, convert_legacy_graph
from dask.base import collections_to_expr
from dask.core import flatten
from distributed import Future, Scheduler
from distributed.protocol import deserialize
from distributed.scheduler import _cull, _materialize_graph
from distributed.shuffle._core import P2PBarrierTask, barrier_key
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_serverless import dask_graph, stubs
from dask_serverless.bodies import segment_bodies
from dask_serverless.collector import collector_paused
from dask_serverless.dask_graph import annotation, materialise, plan_job, split
from dask_serverless.literals import EMBEDDED_BYTES_MAX
from dask_serverless.shuffles import shuffle_internals, shuffle_members
from dask_serverless.stubs import as_expr_ser, stub_graph
from lambda_worker.core.errors import GraphError, ProtocolError, UnpicklableTask
from lambda_worker.core.schedule import SEGMENT_TASKS
from lambda_worker.shuffle import ShuffleTask
from lambda_worker.task_runner import key_of, run_body

dd = pytest.importorskip("dask.dataframe")
pd = pytest.importorskip("pandas")


def walk(plan, given=()):
    """Run a plan in number order, as an executor would, from pickled segments; values by number."""
    given = dict(given)
    refs = {name: (f"stored-{index}", 0, 1, 1) for index, name in enumerate(plan.constants)}
    stored = {ref[0]: plan.constants[name] for name, ref in refs.items()}
    values = {task: given[key] for key, task in plan.externals.items()}
    for first in range(0, len(plan.graph), SEGMENT_TASKS):
        last = min(first + SEGMENT_TASKS, len(plan.graph))
        bodies = pickle.loads(segment_bodies(plan, first, last, refs))
        assert len(bodies) == last - first
        for task, body in enumerate(bodies, first):
            if body is None:
                assert task in plan.graph.externals
                continue
            assert key_of(body) == plan.keys[task]
            parents = [values[parent] for parent in plan.graph.parents[task]]
            values[task] = run_body(body, parents, lambda ref: stored[ref.name])
    return values


def results(plan, given=()):
    """Return the values of everything that was asked for."""
    values = walk(plan, given)
    return {
        **{key: values[task] for key, task in plan.visible.items()},
        **{key: dict(given)[target] for key, target in plan.pointers.items()},
    }


def compute(collection):
    """Compute a collection the way the client, the proxy and an executor would together."""
    expr = FinalizeCompute(collections_to_expr([collection])).optimize()
    keys = list(flatten(expr.__dask_keys__()))
    graph = materialise(pickle.loads(cloudpickle.dumps(expr)), keys)
    found = results(plan_job(graph.tasks, set(keys)))
    assert found.keys() == set(keys)
    values = [found[key] for key in keys]
    return values[0] if len(values) == 1 else values


def same(ours, expected):
    if isinstance(expected, (pd.DataFrame, pd.Series)):
        (pd.testing.assert_frame_equal if isinstance(expected, pd.DataFrame) else pd.testing.assert_series_equal)(
            ours, expected
        )
    else:
        np.testing.assert_array_equal(ours, expected)


# -- values -----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_graphs(data):
    """Tasks, aliases, embedded and large data, keys made elsewhere, any of them asked for."""
    count = data.draw(st.integers(1, 25))
    far = {"far-0": 100, "far-1": 200}
    keys, tasks = list(far), {}
    for index in range(count):
        key = ("key", index)
        kind = data.draw(st.sampled_from(["task", "task", "task", "alias", "data", "large"]))
        refs = [TaskRef(name) for name in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=4))]
        if kind == "task":
            nested = data.draw(st.sampled_from([List, lambda *args: Dict({"a": args[0], "b": 2})]))
            tasks[key] = Task(key, total, *refs, nested(*refs))
        elif kind == "alias":
            tasks[key] = Alias(key, refs[0])
        else:
            tasks[key] = DataNode(key, np.full(1 if kind == "data" else 10_000, index))
        keys.append(key)
    wanted = data.draw(st.sets(st.sampled_from(keys[2:]), min_size=1))

    plan = plan_job(tasks, wanted)

    expected = dict(far)
    for key, task in tasks.items():
        expected[key] = task({name: expected[name] for name in task.dependencies})
    found = results(plan, far)
    assert found.keys() == wanted
    for key in wanted:
        np.testing.assert_array_equal(found[key], expected[key])
    assert all(parent < task for task, row in enumerate(plan.graph.parents) for parent in row)
    assert not {type(body[0]) for body in plan.bodies if body} & {Alias}


def total(*values):
    """Add up everything in nested containers; an array counts as its mean."""
    amount = 0
    for value in values:
        if isinstance(value, dict):
            value = list(value.values())
        amount += total(*value) if isinstance(value, (list, tuple)) else float(np.mean(value))
    return amount


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_random_delayed(data):
    nodes = [dask.delayed(index) for index in range(3)]
    for _ in range(data.draw(st.integers(1, 15))):
        args = data.draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=3))
        nodes.append(dask.delayed(total)(*args, list(args)))
    assert compute(nodes[-1]) == nodes[-1].compute(scheduler="sync")


def collections():
    x = da.arange(240, chunks=20).reshape(12, 20)
    y = da.from_array(np.arange(40_000.0).reshape(200, 200), chunks=50)
    frame = pd.DataFrame({"a": np.arange(100) % 7, "b": np.arange(100.0)})
    df = dd.from_pandas(frame, npartitions=5)
    bag = db.from_sequence(range(50), npartitions=7)
    yield "sum", x.sum()
    yield "matmul", (y @ y.T)[:30].mean(axis=0)
    yield "overlap", y.map_overlap(lambda block: block + 1, depth=1)
    yield "rechunk", y.rechunk((20, 200)) + 1
    yield "frame", df[df.a > 2].assign(c=df.b * 2)
    yield "group", df.groupby("a").b.mean()
    yield "shuffle", df.shuffle("a", shuffle_method="tasks").b.sum()
    yield "bag", bag.map(lambda item: item * 2).fold(operator.add)
    yield "frequencies", bag.map(lambda item: item % 3).frequencies()


@pytest.mark.parametrize("collection", [pytest.param(value, id=name) for name, value in collections()])
def test_collections(collection):
    expected = collection.compute(scheduler="sync")
    ours = compute(collection)
    if isinstance(ours, list) and not isinstance(expected, list):
        ours = pd.concat(ours)
    same(ours, expected)


def test_persisted_chunks_are_externals():
    x = da.arange(60, chunks=10)
    chunks = dict(zip(flatten(x.__dask_keys__()), np.split(np.arange(60), 6), strict=True))
    # What `persist` leaves: a graph of futures, which are references to themselves.
    persisted = da.Array({key: TaskRef(key) for key in chunks}, x.name, x.chunks, x.dtype)
    expr = FinalizeCompute(collections_to_expr([persisted + 1])).optimize()
    keys = list(flatten(expr.__dask_keys__()))
    plan = plan_job(materialise(expr, keys).tasks, set(keys))
    assert plan.externals.keys() == chunks.keys()
    assert all(plan.bodies[task] is None for task in plan.externals.values())
    (value,) = results(plan, chunks).values()
    np.testing.assert_array_equal(value, np.arange(1, 61))
    assert plan.sources() == {keys[0]: set(chunks)}


def test_futures_travel_as_plain_references():
    far = Future("far")  # what a future is after it came through a pickle
    tasks = {
        "x": Task("x", total, far, List(far)),
        "y": Task.fuse(Task("in", total, far, TaskRef("x")), Task("y", total, TaskRef("in"), 1)),
    }
    plan = plan_job(tasks, {"y"})
    assert b"distributed" not in segment_bodies(plan, 0, len(plan.graph))
    assert results(plan, {"far": 3}) == {"y": 3 + 6 + 1}
    assert tasks["x"].args[0] is far


def test_data_that_nobody_needs_is_not_touched():
    class Touchy:
        def __reduce__(self):
            raise AssertionError("pickled")

        __sizeof__ = __reduce__

    tasks = {
        "data": DataNode("data", Touchy()),
        "x": Task("x", total, TaskRef("data")),
        "y": Task("y", total, TaskRef("x")),
    }
    assert results(plan_job(tasks, {"y"}, {"x"}), {"x": 2}) == {"y": 2}


# -- materialise ------------------------------------------------------------------------------


@pytest.mark.parametrize("collection", [pytest.param(value, id=name) for name, value in collections()])
def test_materialised_like_the_stock_scheduler(collection):
    blob = cloudpickle.dumps(FinalizeCompute(collections_to_expr([collection])).optimize())
    expr = pickle.loads(blob)
    keys = set(flatten(expr.__dask_keys__()))
    theirs, annotations = _materialize_graph(pickle.loads(blob), validate=True)
    ours = materialise(expr, keys)
    assert ours.tasks.keys() == _cull(theirs, keys).keys()
    assert ours.annotations_by_type == annotations
    assert {key: task.dependencies for key, task in ours.tasks.items()} == {
        key: theirs[key].dependencies for key in ours.tasks
    }


def test_materialise_keeps_layer_annotations():
    with dask.annotate(retries=3, serverless=False):
        x = da.ones(4, chunks=2)
    expr = collections_to_expr([x], optimize_graph=False)
    graph = materialise(expr, list(flatten(expr.__dask_keys__())))
    assert graph.annotations_by_type == {
        "retries": dict.fromkeys(graph.tasks, 3),
        "serverless": dict.fromkeys(graph.tasks, False),
    }


def test_errors_of_users_code_pass_through_unchanged():
    class Broken(LLGExpr):
        def __dask_graph__(self):
            raise ZeroDivisionError("from the user's layer")

    with pytest.raises(ZeroDivisionError, match="^from the user's layer$"):
        materialise(Broken({}, _determ_token="broken"), [])
    assert gc.isenabled()


# -- split ------------------------------------------------------------------------------------


def line(*keys):
    return {key: Task(key, total, *[TaskRef(parent) for parent in keys[:index][-1:]]) for index, key in enumerate(keys)}


def test_annotations_of_a_key_win_over_global_ones():
    by_type = {"retries": {"a": 1, "b": None, "not here": 4}}
    assert annotation("retries", ["a", "b"], by_type, {"retries": 2}) == {"a": 1, "b": 2}
    assert annotation("retries", ["a", "b"], by_type, None) == {"a": 1}


@pytest.mark.parametrize(
    ("annotations", "pinned"),
    [
        ({"workers": ["tcp://1.2.3.4:5"]}, "abc"),
        ({"workers": lambda key: ["alice"] if key == "b" else None}, "b"),
        ({"workers": []}, ""),
        ({"resources": {"GPU": 1}}, "abc"),
        ({"allow_other_workers": True}, "abc"),
        ({"allow_other_workers": False}, ""),
        ({"serverless": False}, "abc"),
        ({"serverless": True}, ""),
        ({"serverless": None}, ""),
        ({"priority": 3, "retries": 2, "color": "blue"}, ""),
    ],
)
def test_global_annotations_pin(annotations, pinned):
    assert set(split(line("a", "b", "c"), {"c"}, None, annotations)) == set(pinned)


def test_annotations_by_key_and_actors_pin():
    tasks = line("a", "b", "c", "d")
    assert split(tasks, {"d"}, {"workers": {"a": ["alice"]}}) == {"a": "annotation workers=['alice']"}
    assert split(tasks, {"d"}, actors=True) == {"d": "actor"}
    assert split(tasks, {"d"}, actors=["b", "elsewhere"]) == {"b": "actor"}
    assert split(tasks, {"d"}, actors=False) == {}
    assert split(tasks, {"d"}, {"serverless": {"b": True}}, {"serverless": False}).keys() == {"a", "c", "d"}


def shuffles():
    df = dd.from_pandas(pd.DataFrame({"a": np.arange(20) % 5, "b": np.arange(20.0)}), npartitions=3)
    yield "frame", (df.assign(c=1)).shuffle("a", shuffle_method="p2p").map_partitions(len)
    yield "merge", df.merge(df, on="a", shuffle_method="p2p", broadcast=False)
    yield "array", (da.ones((8, 8), chunks=(8, 2)) + 1).rechunk((2, 8), method="p2p") * 2


def materialised(collection):
    """Return the tasks of a collection, and its keys."""
    expr = FinalizeCompute(collections_to_expr([collection])).optimize()
    keys = list(flatten(expr.__dask_keys__()))
    return materialise(expr, keys).tasks, keys


def uses_plugin(task):
    text = cloudpickle.dumps(task)
    return any(name in text for name in (b"_transfer", b"_unpack", b"p2p_barrier"))


@pytest.mark.parametrize("collection", [pytest.param(value, id=name) for name, value in shuffles()])
def test_tasks_of_peer_to_peer_shuffles_bring_their_specs(collection):
    tasks, keys = materialised(collection)
    assert split(tasks, keys) == {}
    members = shuffle_members(tasks)
    barriers = {key for key, task in tasks.items() if isinstance(task, P2PBarrierTask)}
    assert barriers and members.keys() >= {key for key, task in tasks.items() if uses_plugin(task)}
    assert shuffle_internals(tasks) < members.keys()
    plan = plan_job(tasks, keys)
    seen = set()
    for key, body in zip(plan.keys, plan.bodies, strict=True):
        if key in members and key not in barriers:
            assert isinstance(body[0], ShuffleTask) and body[0].key == key and not body[0].is_coro
            assert [barrier_key(spec.id) for spec in body[0].specs] == members[key]
            seen.update(members[key])
        else:
            assert not isinstance(body[0], ShuffleTask)
    assert seen == barriers
    found = [body[0] for body in pickle.loads(segment_bodies(plan, 0, len(plan.graph)))]
    assert sum(isinstance(task, ShuffleTask) for task in found) >= 2 * len(barriers)


@pytest.mark.parametrize("collection", [pytest.param(value, id=name) for name, value in shuffles()])
def test_a_shuffle_with_a_pinned_task_is_pinned_as_a_whole(collection):
    tasks, keys = materialised(collection)
    members = shuffle_members(tasks)
    last = next(reversed([key for key in members if not isinstance(tasks[key], P2PBarrierTask)]))
    pinned = split(tasks, keys, {"workers": {last: ["alice"]}})
    assert pinned.pop(last) == "annotation workers=['alice']"
    assert set(pinned.values()) == {"peer-to-peer shuffle with a pinned task"}
    assert {*pinned, last} == members.keys() and len(members) < len(tasks)

    # The rest is planned around them, as keys made elsewhere.
    plan = plan_job(tasks, {key for key in tasks if key not in members}, members)
    assert not members.keys() & plan.visible.keys()
    assert plan.externals.keys() <= members.keys()
    assert not any(isinstance(body[0], ShuffleTask) for body in plan.bodies if body)


def test_what_is_no_shuffle_is_not_pinned_with_one_and_chains_of_shuffles_are():
    df = dd.from_pandas(pd.DataFrame({"a": np.arange(20) % 5, "b": np.arange(20.0)}), npartitions=3)
    chain = df.shuffle("a", shuffle_method="p2p").assign(c=1).shuffle("b", shuffle_method="p2p")
    both, keys = materialised(chain)
    barriers = [key for key, task in both.items() if isinstance(task, P2PBarrierTask)]
    members = shuffle_members(both)
    assert len(barriers) == 2
    fused = any(len(found) == 2 for found in members.values())  # an unpack fused with the next transfer
    pinned = split(both, keys, {"serverless": {barriers[0]: False}})
    expected = members if fused else {key for key, found in members.items() if barriers[0] in found}
    assert pinned.keys() == set(expected)
    starts = [key for key in both if key not in members]
    assert starts and split(both, keys, {"workers": {starts[0]: ["alice"]}}).keys() == {starts[0]}


# -- plan -------------------------------------------------------------------------------------


def test_aliases_are_pointers():
    tasks = {
        "x": Task("x", total, 1),
        "p": Alias("p", "x"),
        "q": Alias("q", "p"),
        "y": Task("y", total, TaskRef("p"), TaskRef("x"), TaskRef("q")),
        "z": Task("z", total, TaskRef("q")),
    }
    plan = plan_job(tasks, {"y", "z", "q"})
    assert plan.keys == ["x", "y", "z"]
    assert plan.visible == {"q": 0, "y": 1, "z": 2}
    assert plan.graph.parents == [(), [0], [0]]
    assert plan.bodies[2][0] is tasks["z"]  # not rewritten: only the name differs
    assert plan.bodies[2][1] == ("q",)
    assert results(plan) == {"q": 1, "y": 3, "z": 1}


def test_a_wanted_alias_of_an_external_is_a_pointer():
    tasks = {"p": Alias("p", "q"), "q": Alias("q", "far"), "y": Task("y", total, TaskRef("q"))}
    plan = plan_job(tasks, {"p", "y"})
    assert plan.pointers == {"p": "far"}
    assert plan.visible.keys() == {"y"}
    assert plan.sources() == {"p": {"far"}, "y": {"far"}}


def test_a_known_alias_is_not_followed():
    tasks = {"x": Task("x", total, 1), "p": Alias("p", "x"), "y": Task("y", total, TaskRef("p"))}
    plan = plan_job(tasks, {"y"}, {"p"})
    assert plan.keys == ["p", "y"]
    assert plan.externals == {"p": 0}


def test_long_chains_of_aliases():
    size = 50_000
    tasks = {index: Alias(index, index - 1) for index in range(size, 0, -1)}
    tasks[0] = Task(0, total, 5)
    assert results(plan_job(tasks, {size, size // 2})) == {size: 5, size // 2: 5}


def test_a_circle_of_aliases_is_named():
    tasks = {"a": Alias("a", "b"), "b": Alias("b", "c"), "c": Alias("c", "b")}
    with pytest.raises(GraphError, match="'b' -> 'c' -> 'b'"):
        plan_job(tasks, {"a"})


def test_a_circle_of_tasks_is_named():
    tasks = convert_legacy_graph({"a": (total, "b"), "b": (total, "c"), "c": (total, "a")})
    with pytest.raises(GraphError, match="^the graph has a cycle: 'a' -> 'b' -> 'c' -> 'a'"):
        plan_job(tasks, {"a"})


def test_known_keys_are_externals_and_what_only_they_need_is_culled():
    tasks = line("a", "b", "c", "d")
    plan = plan_job(tasks, {"d", "b"}, lambda key: key in ("b", "elsewhere"))
    assert plan.keys == ["b", "c", "d"]
    assert plan.externals == {"b": 0}
    assert plan.pointers == {"b": "b"}
    assert plan.visible == {"d": 2}


def test_a_wanted_key_that_nobody_has_is_a_pointer_to_itself():
    plan = plan_job({}, {"gone"})
    assert (len(plan.graph), plan.pointers) == (0, {"gone": "gone"})


def test_small_data_is_embedded_and_large_data_stored_once():
    large = np.arange(100_000)
    tasks = {
        "small": DataNode("small", [1, 2]),
        "large": DataNode("large", large),
        "name of large": Alias("name of large", "large"),
        "asked": DataNode("asked", np.arange(50_000)),
        "unused": DataNode("unused", np.arange(50_000)),
        "x": Task("x", total, TaskRef("small"), TaskRef("large")),
        "y": Task("y", total, TaskRef("x"), TaskRef("name of large"), TaskRef("asked")),
    }
    plan = plan_job(tasks, {"y", "asked"})
    assert plan.keys == ["asked", "x", "y"]
    assert plan.constants.keys() == {"large"}
    assert plan.constants["large"] is large
    assert plan.bodies[1][1:] == ((), {"large": "large"})
    assert plan.bodies[2][1:] == (("x", "asked"), {"name of large": "large"})
    assert tasks["x"].dependencies == {"small", "large"}  # the user's task is as it was
    assert len(segment_bodies(plan, 1, 3, {"large": ("name", 0, 1, 1)})) < EMBEDDED_BYTES_MAX
    found = results(plan)
    assert found["y"] == 3 + large.mean() + large.mean() + np.arange(50_000).mean()


def test_data_that_many_segments_would_repeat_is_stored_once():
    tasks = {"data": DataNode("data", b"x" * (EMBEDDED_BYTES_MAX // 2))}
    tasks.update({index: Task(index, len, TaskRef("data")) for index in range(40 * SEGMENT_TASKS)})
    assert plan_job(tasks, set(range(40 * SEGMENT_TASKS))).constants.keys() == {"data"}
    assert not plan_job(tasks, {0}).constants


def test_data_in_the_graph_is_taken_from_there_even_if_the_key_is_known():
    # `client.map(f, items, model=large)` names the data "model", whatever model it is.
    tasks = {"model": DataNode("model", 1), "x": Task("x", total, TaskRef("model"))}
    assert results(plan_job(tasks, {"x"}, {"model"})) == {"x": 1}


@pytest.mark.parametrize(
    ("by_type", "global_annotations", "expected"),
    [
        ({"retries": {"b": 2}}, None, {"b": 2}),
        ({}, {"retries": 3}, {"a": 3, "b": 3, "c": 3}),
        ({"retries": {"b": 1}}, {"retries": 3}, {"a": 3, "b": 1, "c": 3}),
        ({}, {"retries": {"a": 4}}, {"a": 4}),
        ({}, {"retries": lambda key: 1 if key == "c" else 0}, {"c": 1}),
    ],
)
def test_retries(by_type, global_annotations, expected):
    plan = plan_job(line("far", "a", "b", "c"), {"c"}, {"far"}, by_type, global_annotations)
    assert {plan.keys[task]: times for task, times in plan.graph.retries.items()} == expected


def test_retries_that_are_no_number_are_refused_by_name():
    with pytest.raises(AssertionError, match="retries='often' of task 'a' must be a whole number"):
        plan_job(line("a", "b"), {"b"}, (), {"retries": {"a": "often"}})


def test_parents_are_in_the_order_of_the_arguments():
    names = [f"k{index}" for index in range(20)]
    fused = Task.fuse(Task("in", total, *map(TaskRef, names)), Task("out", total, TaskRef("in")))
    assert dask_graph._ordered_dependencies(fused) == names
    task = Task("t", total, List(TaskRef("b"), List(TaskRef("a"))), Dict({"k": TaskRef("c")}), z=TaskRef("d"))
    assert dask_graph._ordered_dependencies(task) == ["b", "a", "c", "d"]


def test_plans_do_not_depend_on_the_hash_seed():
    script = (
        "import dask.array as da; from dask.base import collections_to_expr; from dask.core import flatten\n"
        "from dask_serverless.dask_graph import materialise, plan_job\n"
        "x = da.ones((8, 8), chunks=2, name='ones'); y = da.Array(x.dask, 'ones', x.chunks, x.dtype)\n"
        "expr = collections_to_expr([(y + y.T).rechunk(4).sum()], optimize_graph=False)\n"
        "keys = set(flatten(expr.__dask_keys__()))\n"
        "plan = plan_job(materialise(expr, keys).tasks, keys)\n"
        "print([str(key).split('-')[0] + str(key)[-12:] for key in plan.keys], plan.graph.parents)\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_large_graphs_do_not_recurse():
    size = 100_000
    tasks = {index: Task(index, operator.add, TaskRef(index - 1), 1) for index in range(size, 0, -1)}
    tasks[0] = Task(0, int)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(250)
    try:
        plan = plan_job(materialise(LLGExpr(tasks, _determ_token="large"), {size}).tasks, {size})
        assert len(segment_bodies(plan, 0, SEGMENT_TASKS)) < 100 * SEGMENT_TASKS
    finally:
        sys.setrecursionlimit(limit)
    assert results(plan) == {size: size}


# -- pickle -----------------------------------------------------------------------------------


def test_an_unpicklable_task_is_named():
    lock = threading.Lock()
    tasks = {"fine": Task("fine", total, 1), ("bad", 3): Task(("bad", 3), total, TaskRef("fine"), lock)}
    plan = plan_job(tasks, {("bad", 3)})
    with pytest.raises(UnpicklableTask) as caught:
        segment_bodies(plan, 0, 2)
    assert str(caught.value).startswith(
        "task ('bad', 3) (a call of total) cannot be pickled, so no executor could receive it: "
        "TypeError: cannot pickle '_thread.lock' object."
    )
    assert isinstance(caught.value.__cause__, TypeError)


def test_unpicklable_data_is_blamed_on_the_task_that_uses_it():
    tasks = {"data": DataNode("data", threading.Lock()), "x": Task("x", total, TaskRef("data"))}
    with pytest.raises(UnpicklableTask, match=r"^task 'x' \(a call of total\)"):
        segment_bodies(plan_job(tasks, {"x"}), 0, 1)
    with pytest.raises(UnpicklableTask, match=r"^task 'data' \(a DataNode\)"):
        segment_bodies(plan_job(tasks, {"data"}), 0, 1)


def test_lambdas_and_functions_of_main_go_by_value():
    plan = plan_job({"x": Task("x", lambda: 7)}, {"x"})
    assert results(plan) == {"x": 7}

    main = ModuleType("__main__")
    exec("def answer(): return 42", main.__dict__)
    keep, sys.modules["__main__"] = sys.modules["__main__"], main
    try:
        blob = segment_bodies(plan_job({"x": Task("x", main.answer)}, {"x"}), 0, 1)
    finally:
        sys.modules["__main__"] = keep
    [body] = pickle.loads(blob)
    assert run_body(body, [], None) == 42


def test_modules_registered_by_value_go_by_value():
    module = ModuleType("only_on_this_machine")
    exec("def answer(): return 42", module.__dict__)
    sys.modules[module.__name__] = module
    try:
        cloudpickle.register_pickle_by_value(module)
        blob = segment_bodies(plan_job({"x": Task("x", module.answer)}, {"x"}), 0, 1)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
        del sys.modules[module.__name__]
    [body] = pickle.loads(blob)
    assert run_body(body, [], None) == 42


def test_what_tasks_share_is_pickled_once():
    model = np.arange(10_000)
    plan = plan_job({index: Task(index, total, model) for index in range(100)}, set(range(100)))
    assert len(segment_bodies(plan, 0, 100)) < 2 * model.nbytes


# -- what the scheduler sees ------------------------------------------------------------------


def test_a_stub_that_is_run_says_so():
    stub = pickle.loads(pickle.dumps(stub_graph(["y"], {"y": ["x", "z"]})["y"]))
    assert stub.dependencies == {"x", "z"}
    with pytest.raises(ProtocolError, match="a stub was run on a Dask worker"):
        stub({"x": 1, "z": 2})


def test_a_collapsed_graph_is_handed_over_once():
    tasks = stub_graph(["x"], {})
    message = as_expr_ser(tasks, {"retries": {"x": 1}})
    expr = deserialize(message.header, message.frames)
    assert expr.__dask_graph__() is tasks
    assert expr.__dask_annotations__() == {"retries": {"x": 1}}
    with pytest.raises(ProtocolError, match="read twice"):
        deserialize(message.header, message.frames)


def test_a_collapsed_graph_that_is_never_read_is_forgotten():
    before = len(stubs._deposits)
    message = as_expr_ser(stub_graph(["x"], {}))
    assert len(stubs._deposits) == before + 1
    del message
    assert len(stubs._deposits) == before


async def test_the_stock_scheduler_takes_a_collapsed_graph():
    async with Scheduler(port=0, host="127.0.0.1", dashboard=False) as scheduler:
        await scheduler.update_graph(
            client="someone",
            expr_ser=as_expr_ser(stub_graph(["x", "y", "z"], {"y": ["x"]}), {"retries": {"y": 4}}),
            keys={"x", "y"},
            span_metadata={"collections": []},
            internal_priority={"x": 0, "y": 1},
            submitting_task=None,
        )
        assert scheduler.tasks.keys() == {"x", "y"}
        assert scheduler.tasks["y"].retries == 4
        assert {parent.key for parent in scheduler.tasks["y"].dependencies} == {"x"}


# -- the garbage collector --------------------------------------------------------------------


def test_the_collector_is_as_it_was():
    assert gc.isenabled()
    frozen = gc.get_freeze_count()
    with collector_paused():
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen

    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_collector_waits_for_the_last_thread():
    entered, leave = threading.Event(), threading.Event()

    def other():
        with collector_paused():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with collector_paused():
        thread.start()
        assert entered.wait(10)
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()


def test_what_was_frozen_stays_frozen():
    gc.freeze()
    try:
        with collector_paused():
            pass
        assert gc.get_freeze_count() > 0  # not a fixed number: other threads may free frozen objects
    finally:
        gc.unfreeze()
