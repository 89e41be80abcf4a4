"""Function classes: which ones a cluster has, which one a task needs, and who is given it."""

from __future__ import annotations

from datetime import timedelta

import dask
import dask.array as da
import dask.bag as db
import numpy as np
import pytest
from dask._expr import FinalizeCompute, LLGExpr
from dask._task_spec import Task, TaskRef
from dask.base import collections_to_expr
from dask.core import flatten
from hypothesis import given
from hypothesis import strategies as st

from dask_serverless.config import Settings
from dask_serverless.dask_graph import materialise, plan_job, split
from dask_serverless.plan import Sharing, edges, make_classes, number, smallest_class
from dask_serverless.plan.prefixes import Prefixes
from dask_serverless.preparation import Preparation
from dask_serverless.recovery import _advice
from lambda_worker.core.errors import BadAnnotation

GIB = 2**30
CLASSES = make_classes("f", 2 * GIB, 60, [4 * GIB, 8 * GIB], 900)  # 2 GiB, 2 GiB for longer, 4 GiB, 8 GiB


def plan(tasks, wanted, by_type=None, everywhere=None, known=()):
    return plan_job(tasks, wanted, known, by_type, everywhere, CLASSES)


def classes_by_key(planned):
    return {planned.keys[task]: needs for task, needs in planned.graph.classes.items()}


def materialised(collection):
    expr = FinalizeCompute(collections_to_expr([collection])).optimize()
    return materialise(expr, set(flatten(expr.__dask_keys__())))


# --- which classes there are


def test_classes_ascend_and_begin_with_the_default_one():
    assert [(each.name, each.memory_bytes // GIB, each.timeout_seconds) for each in CLASSES] == [
        ("f", 2, 60),
        ("f-2048mb", 2, 900),
        ("f-4096mb", 4, 900),
        ("f-8192mb", 8, 900),
    ]


def test_sizes_that_are_not_above_the_default_are_not_made():
    assert [each.memory_bytes // GIB for each in make_classes("f", 4 * GIB, 900, [2 * GIB, 4 * GIB], 900)] == [4]
    # A longer default timeout counts for all.
    assert {each.timeout_seconds for each in make_classes("f", GIB, 900, [2 * GIB], 60)} == {900}


@given(
    st.floats(0, 9 * GIB),
    st.floats(0, 1000),
)
def test_the_smallest_class_that_has_enough_of_both(memory, timeout):
    found = smallest_class(CLASSES, memory, timeout)
    enough = [memory <= each.memory_bytes and timeout <= each.timeout_seconds for each in CLASSES]
    assert (found is None) == (not any(enough))
    if found is not None:
        assert enough.index(True) == found
        assert all(enough[found:]), "classes ascend: whoever has a larger one can run it as well"


def test_the_configuration_names_the_classes():
    settings = Settings.load(lambda_memory="1 GiB", lambda_timeout="1 minute", lambda_memory_classes=["3 GiB"])
    assert [(each.memory_bytes // GIB, each.timeout_seconds) for each in settings.function_classes] == [
        (1, 60),
        (1, 900),
        (3, 900),
    ]
    assert len(Settings.load(lambda_memory_classes=[]).function_classes) == 1


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("4 GiB", "a list of sizes"),
        (["4 GiB", "4 GiB"], "in ascending order"),
        (["8 GiB", "4 GiB"], "in ascending order"),
        (["11 GiB"], "from 128.00 MiB to 10.00 GiB"),
        (["much"], "each of it a size"),
    ],
)
def test_bad_classes_are_refused_with_their_key(value, wanted):
    with pytest.raises(ValueError, match="serverless.lambda.memory-classes is .*, but must be") as refusal:
        Settings.load(lambda_memory_classes=value)
    assert wanted in str(refusal.value)


# --- which one a task needs


def test_a_task_gets_the_smallest_class_that_fits_memory_and_time():
    tasks = {key: Task(key, int) for key in "abcdef"}
    by_type = {
        "memory": {"a": "1 GiB", "b": "3 GiB", "c": 4 * GIB + 1, "e": None},
        "timeout": {"a": 60, "b": "10 minutes", "d": timedelta(minutes=2), "f": "900s"},
    }
    assert classes_by_key(plan(tasks, set(tasks), by_type)) == {"b": 2, "c": 3, "d": 1, "f": 1}


def test_global_annotations_count_for_every_task_that_has_none_of_its_own():
    tasks = {key: Task(key, int) for key in "abc"}
    everywhere = {"memory": lambda key: "8 GiB" if key == "b" else None, "timeout": "2 minutes"}
    assert classes_by_key(plan(tasks, set(tasks), {"memory": {"c": "3 GiB"}}, everywhere)) == {"a": 1, "b": 3, "c": 2}


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        ({"memory": "9 GiB"}, "memory='9 GiB' of task 'a' is more than .*8.00 GiB.*memory-classes.*split the task"),
        ({"memory": 0}, "memory=0 of task 'a' must be a size above 0"),
        ({"memory": "-1 GiB"}, "memory='-1 GiB' of task 'a' must be a size"),
        ({"memory": "much"}, "memory='much' of task 'a' must be a size"),
        ({"memory": True}, "memory=True of task 'a' must be a size"),
        ({"memory": float("nan")}, "memory=nan of task 'a' must be a size"),
        ({"memory": ["4 GiB"]}, "must be a size"),
        ({"timeout": "16 minutes"}, "timeout='16 minutes' of task 'a' is longer than .*15 minutes.*serverless=False"),
        ({"timeout": float("inf")}, "timeout=inf of task 'a' must be a time above 0"),
        ({"timeout": float("nan")}, "timeout=nan of task 'a' must be a time above 0"),
        ({"timeout": -5}, "timeout=-5 of task 'a' must be a time above 0"),
        ({"timeout": "soon"}, "timeout='soon' of task 'a' must be a time"),
    ],
)
def test_bad_values_are_refused_naming_key_and_value(annotation, said):
    tasks = {"a": Task("a", int)}
    with pytest.raises(BadAnnotation, match=said):
        plan(tasks, {"a"}, {name: {"a": value} for name, value in annotation.items()})
    with pytest.raises(BadAnnotation, match=said):
        plan(tasks, {"a"}, None, annotation)
    assert issubclass(BadAnnotation, ValueError)


def test_what_is_made_elsewhere_may_ask_for_anything():
    tasks = {"pinned": Task("pinned", int), "b": Task("b", abs, TaskRef("pinned"))}
    by_type = {"memory": {"pinned": "1 TiB", "b": "8 GiB"}, "serverless": {"pinned": False}}
    assert "pinned" in split(tasks, {"b"}, by_type)
    # Whoever is handed the value from elsewhere is to go on with it: it needs the class of what comes next.
    assert classes_by_key(plan(tasks, {"b"}, by_type, known={"pinned"})) == {"pinned": 3, "b": 3}


def test_an_external_has_the_smallest_class_of_its_children():
    graph, keys = number({"a": ["x"], "b": ["x"], "c": ["y"]}, ["a", "b", "c"], {"x", "y"}, None, {"a": 2, "c": 1})
    assert {keys[task]: needs for task, needs in graph.classes.items()} == {"a": 2, "c": 1, "y": 1}


@pytest.mark.parametrize("make", [lambda x: x.map_blocks(np.sqrt), lambda x: x + 1], ids=["map_blocks", "add"])
def test_layers_of_arrays_keep_their_annotation_though_fusion_renames_their_keys(make):
    x = da.ones(4, chunks=2)
    with dask.annotate(memory="3 GiB"):
        y = make(x)
    found = materialised((y * 2).sum())
    needed = classes_by_key(plan(found.tasks, set(found.tasks), found.annotations_by_type))
    assert len(needed) == 2 and set(needed.values()) == {2}, "one for each block"
    assert all(not key[0].startswith("sum-aggregate") for key in needed)


def test_layers_of_bags_and_delayed_too():
    with dask.annotate(timeout="5 minutes"):
        bag = db.from_sequence([1, 2], npartitions=2).map(abs)
        lazy = dask.delayed(abs)(-1)
    for collection, count in ((bag, 2), (dask.delayed(abs)(lazy), 1)):
        found = materialised(collection)
        needed = classes_by_key(plan(found.tasks, set(found.tasks), found.annotations_by_type))
        assert list(needed.values()) == [1] * count


def test_a_fused_task_needs_the_most_that_any_task_in_it_asked_for():
    with dask.annotate(memory="3 GiB"):
        x = da.ones(2, chunks=2) + 1
    with dask.annotate(memory="5 GiB"):
        x = x.map_blocks(np.sqrt)
    found = materialised(x * 3)
    assert set(classes_by_key(plan(found.tasks, set(found.tasks), found.annotations_by_type)).values()) == {3}


def test_a_fused_task_is_pinned_if_a_task_in_it_is():
    with dask.annotate(serverless=False):
        x = da.ones(4, chunks=2).map_blocks(np.sqrt)
    found = materialised(x.sum())
    pinned = split(found.tasks, set(), found.annotations_by_type)
    assert len([key for key in pinned if type(found.tasks[key]) is Task]) == 2
    assert set(pinned.values()) == {"annotation serverless=False"}


def test_without_annotations_nothing_is_added():
    found = materialised((da.ones(4, chunks=2) + 1).sum())
    assert found.annotations_by_type == {}
    planned = plan(found.tasks, set(found.tasks), found.annotations_by_type)
    assert planned.graph.classes == {}
    assert all(each.classes == {} for each in edges(planned.graph))
    assert materialise(LLGExpr({"x": 1}), {"x"}).annotations_by_type == {}


# --- who is given it


def test_a_segment_knows_the_classes_of_its_tasks_and_of_their_children():
    parents = {n: [n - 1] if n else [] for n in range(600)}
    graph, _ = number(parents, [599], classes={256: 1, 300: 2, 599: 3})
    assert [each.classes for each in edges(graph)] == [{256: 1}, {256: 1, 300: 2}, {599: 3}]


def test_start_tasks_are_grouped_by_class_the_largest_first():
    graph, _ = number({n: () for n in range(10)}, range(10), classes={7: 2, 8: 2, 9: 1})
    preparation = Preparation("job", plan({"a": Task("a", int)}, {"a"}), {}, Prefixes(["a"], [1], [[]]))
    preparation.plan = type("Plan", (), {"graph": graph})
    made = preparation.assignments([(n, None) for n in range(10)], Sharing(5), 5, 0, 2**18, 1)
    assert [(each.function_class, list(each.starts)) for each in made] == [
        (2, [7, 8]),
        (1, [9]),
        (0, [0, 1]),
        (0, [2, 3, 4]),
        (0, [5, 6]),
    ]


@pytest.mark.parametrize(
    ("why", "function_class", "said", "unsaid"),
    [
        ("Runtime.OutOfMemory: killed", 0, "dask.annotate(memory='4 GiB'), or raise the cluster's memory_limit=", None),
        ("Runtime.OutOfMemory: killed", 2, "dask.annotate(memory='8 GiB')", None),
        ("Runtime.OutOfMemory: killed", 3, "memory_limit=", "annotate"),
        ("Task timed out after 60.00 seconds", 0, "dask.annotate(timeout='900 s'), or raise the cluster's", None),
        ("Task timed out after 900.00 seconds", 1, "timeout= (Lambda allows 15 minutes)", "annotate"),
        ("no sign of life for 15 s", 0, "look into what this one calls", "annotate"),
    ],
)
def test_advice_names_the_next_class(why, function_class, said, unsaid):
    advice = _advice(why, CLASSES, function_class)
    assert said in advice
    assert unsaid is None or unsaid not in advice
