"""Numbers keep the order of the data, whatever the shape and size of the graph."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_serverless.plan import number
from lambda_worker.core.errors import GraphError


@st.composite
def dags(draw, tasks_max=40):
    """Draw ``(parents_by_key, wanted, externals)``."""
    count = draw(st.integers(1, tasks_max))
    parents = {0: []}
    for key in range(1, count):
        parents[key] = draw(st.lists(st.integers(0, key - 1), max_size=4))
    keys = st.integers(0, count - 1)
    # Names in another order than the tasks, so that nothing works by accident of sorting.
    names = draw(st.permutations([f"task-{key}" for key in range(count)]))
    renamed = {names[key]: [names[parent] for parent in row] for key, row in parents.items()}
    wanted = [names[key] for key in draw(st.lists(keys, min_size=1, max_size=5, unique=True))]
    externals = {names[key] for key in draw(st.sets(keys, max_size=3))}
    return renamed, wanted, externals


def needed_keys(parents, wanted, externals):
    needed, stack = set(), list(wanted)
    while stack:
        key = stack.pop()
        if key not in needed:
            needed.add(key)
            stack += [] if key in externals else parents[key]
    return needed


@given(dags())
def test_numbering(dag):
    parents, wanted, externals = dag
    graph, keys = number(parents, wanted, externals)

    assert len(keys) == len(set(keys)) == len(graph)
    assert set(keys) == needed_keys(parents, wanted, externals)
    for task, key in enumerate(keys):
        expected = [] if key in externals else list(dict.fromkeys(parents[key]))
        assert [keys[parent] for parent in graph.parents[task]] == expected
        assert all(parent < task for parent in graph.parents[task])
        assert list(graph.children[task]) == sorted(set(graph.children[task]))
    pairs = {(parent, task) for task, row in enumerate(graph.parents) for parent in row}
    assert pairs == {(task, child) for task, row in enumerate(graph.children) for child in row}
    assert list(graph.starts) == [task for task, row in enumerate(graph.parents) if not row]
    assert {keys[task] for task in graph.visible} == set(wanted)
    assert {keys[task] for task in graph.externals} == externals & set(keys)


@given(dags())
def test_reaching_up_and_down_agree(dag):
    graph, _ = number(*dag)
    below = {task: set(graph.descendants(task)) for task in range(len(graph))}
    above = {task: set(graph.ancestors([task])) for task in range(len(graph))}
    for task in range(len(graph)):
        assert below[task] == {other for other in above if task in above[other]}
        assert task not in below[task]


@given(dags())
def test_sources_are_the_nearest_visible_and_external_tasks(dag):
    graph, _ = number(*dag)

    def nearest(task):
        found = set()
        for parent in graph.parents[task]:
            found |= {parent} if parent in graph.visible | graph.externals else nearest(parent)
        return found

    assert graph.sources() == {task: nearest(task) for task in graph.visible}


def test_a_subtree_that_nobody_shares_is_contiguous():
    parents = {"sum": ["left", "right"], "left": ["a", "b"], "right": ["c", "d"], **dict.fromkeys("abcd", ())}
    _, keys = number(parents, ["sum"])
    assert keys == ["a", "b", "left", "c", "d", "right", "sum"]


def test_ancestors_stop_at_what_still_has_its_value():
    graph, keys = number({"a": (), "b": ("a",), "c": ("b",), "x": (), "d": ("c", "x")}, ["d"])
    have = {keys.index("b")}
    assert {keys[task] for task in graph.ancestors([keys.index("d")], have)} == {"c", "x"}


def test_retries_follow_their_keys():
    graph, keys = number({"a": (), "b": ("a",), "unused": ()}, ["b"], retries={"b": 3, "a": 0, "unused": 1})
    assert graph.retries == {keys.index("b"): 3}


@pytest.mark.parametrize(
    ("parents", "text"),
    [
        ({"a": ["b"], "b": ["c"], "c": ["a"]}, "'a' -> 'b' -> 'c' -> 'a'"),
        ({"a": ["b"], "b": ["c"], "c": ["b"]}, "'b' -> 'c' -> 'b'"),
        ({"a": ["a"]}, "'a' -> 'a'"),
        ({"a": ["s", "b"], "s": [], "b": ["s", "c"], "c": ["s", "b"]}, "'b' -> 'c' -> 'b'"),
    ],
)
def test_a_cycle_is_named(parents, text):
    with pytest.raises(GraphError) as caught:
        number(parents, ["a"])
    assert str(caught.value) == f"the graph has a cycle: {text} (each needs the next)"


def test_a_long_cycle_is_cut_short():
    size = 100_000
    with pytest.raises(GraphError) as caught:
        number({key: [(key + 1) % size] for key in range(size)}, [0])
    assert "0 -> 1 -> 2" in str(caught.value)
    assert "... 99980 more ..." in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_missing_key_is_named_with_who_needs_it():
    with pytest.raises(GraphError, match=r"^'b' needs 'gone', which is neither"):
        number({"a": ["b"], "b": ["gone"]}, ["a"])
    with pytest.raises(GraphError, match=r"^'gone' was asked for, but is neither"):
        number({}, ["gone"])


class CountingKey(int):
    """A key that counts how often any key was looked up or compared: time, without a clock."""

    lookups = 0

    def __hash__(self):
        CountingKey.lookups += 1
        return int.__hash__(self)


def chain(size):
    keys = [CountingKey(key) for key in range(size)]
    return {key: keys[max(0, key - 1) : key] for key in keys}, [keys[-1]]


def fan_out(size):
    keys = [CountingKey(key) for key in range(size)]
    return {keys[0]: [], **{key: [keys[0]] for key in keys[1:]}}, keys


def fan_in(size):
    keys = [CountingKey(key) for key in range(size)]
    return {**{key: [] for key in keys[:-1]}, keys[-1]: keys[:-1]}, [keys[-1]]


def ladder(size):
    """Every task has two parents, which share theirs: the number of paths is exponential."""
    keys = [CountingKey(key) for key in range(size)]
    return {key: keys[max(0, key - 2) : key] for key in keys}, [keys[-1]]


SHAPES = [chain, fan_out, fan_in, ladder]


@pytest.mark.parametrize("shape", SHAPES)
def test_large_graphs_are_linear_and_never_recurse(shape):
    def lookups(size):
        parents, wanted = shape(size)
        CountingKey.lookups = 0
        graph, keys = number(parents, wanted)
        assert len(graph) == len(keys) == size
        return CountingKey.lookups

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(200)
    try:
        small, large = lookups(1_000), lookups(100_000)
    finally:
        sys.setrecursionlimit(limit)
    assert large / small < 105


@pytest.mark.parametrize(
    ("shape", "above_the_last", "below_the_first"),
    [(chain, 99_999, 99_999), (fan_out, 1, 99_999), (fan_in, 99_999, 1), (ladder, 99_999, 99_999)],
)
def test_reaching_in_large_graphs(shape, above_the_last, below_the_first):
    graph, _ = number(*shape(100_000))
    assert sum(1 for _ in graph.ancestors([99_999])) == above_the_last
    assert sum(1 for _ in graph.descendants(0)) == below_the_first


def test_sources_of_an_unseen_running_sum_are_collected_once():
    size = 50_000  # copying the set at each step would be more than a billion additions
    parents = {("sum", 0): [("x", 0)]}
    parents.update({("sum", index): [("sum", index - 1), ("x", index)] for index in range(1, size)})
    graph, _ = number(parents, [("sum", size - 1)], externals={("x", index) for index in range(size)})
    (sources,) = graph.sources().values()
    assert sources == graph.externals
    assert len(sources) == size
