"""Segments lose nothing, groups divide the work evenly and part as little as they can."""

from __future__ import annotations

import sys
import tracemalloc
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_serverless.plan import (
    SHARED,
    Estimate,
    Sharing,
    assign_starts,
    edges,
    explain,
    number,
    owners,
    worth_starting,
)
from dask_serverless.plan.paths import heights, longest_first
from lambda_worker.core.schedule import HINT_SEGMENTS_MAX, SEGMENT_TASKS, Edges, segment_of


@st.composite
def graphs(draw, tasks_max=60):
    count = draw(st.integers(1, tasks_max))
    parents = {key: draw(st.lists(st.integers(0, key - 1), max_size=3)) if key else [] for key in range(count)}
    wanted = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=6))
    graph, _ = number(parents, wanted, retries={key: key % 3 for key in range(count)})
    return graph


def independent(size, stems=1):
    """`size` chains of `stems` tasks."""
    parents = {(chain, step): [(chain, step - 1)] if step else [] for chain in range(size) for step in range(stems)}
    return number(parents, [(chain, stems - 1) for chain in range(size)])[0]


def tree(starts):
    parents = {("start", index): [] for index in range(starts)}
    level = list(parents)
    while len(level) > 1:
        above = [(len(level), index) for index in range(0, len(level), 2)]
        parents.update(
            {key: level[index : index + 2] for key, index in zip(above, range(0, len(level), 2), strict=True)}
        )
        level = above
    return number(parents, level)[0]


def fan_in(size):
    return number({**{key: [] for key in range(size)}, "all": range(size)}, ["all"])[0]


def chain(size):
    return number({key: [key - 1] if key else [] for key in range(size)}, [size - 1])[0]


def fan_out(size):
    return number({"one": [], **{key: ["one"] for key in range(size)}}, range(size))[0]


SHAPES = [independent, tree, fan_in, chain, fan_out]


def check_edges(graph):
    first = 0
    for segment in edges(graph):
        assert segment.first == first
        for offset, (parents, children) in enumerate(zip(segment.parents, segment.children, strict=True)):
            task = first + offset
            assert list(parents) == list(graph.parents[task])
            assert list(children) == list(graph.children[task])
        here = range(first, first + len(segment.parents))
        assert segment.fan_ins == {
            child: len(graph.parents[child])
            for task in here
            for child in graph.children[task]
            if len(graph.parents[child]) > 1
        }
        assert segment.visible == graph.visible.intersection(here)
        assert segment.retries == {task: times for task, times in graph.retries.items() if task in here}
        first += len(segment.parents)
    assert first == len(graph)


@given(graphs())
def test_segments_hold_the_graph(graph):
    check_edges(graph)


@pytest.mark.parametrize("shape", SHAPES)
def test_segments_hold_the_graph_over_many_segments(shape):
    graph = shape(3 * SEGMENT_TASKS + 7)
    check_edges(graph)
    for segment in edges(graph):
        back = Edges.from_bytes(segment.to_bytes())
        assert [list(row) for row in segment.parents] == list(back.parents)
        assert (segment.fan_ins, segment.visible, segment.retries) == (back.fan_ins, back.visible, back.retries)


@given(graphs(), st.integers(1, 12))
def test_groups_divide_the_starts(graph, count):
    groups = assign_starts(graph, Sharing(count))
    assert [start for group in groups for start in sorted(group.starts)] == list(graph.starts)
    assert all(group.starts for group in groups)
    assert len(groups) == min(count, len(graph.starts))


@given(graphs(), st.integers(1, 12))
def test_every_task_is_in_one_group_or_shared(graph, count):
    groups = assign_starts(graph, Sharing(count))
    owner = owners(graph, [group.starts for group in groups])
    starts_above = [
        {start for start in graph.starts if start in {task, *graph.ancestors([task])}} for task in range(len(graph))
    ]
    for task, group in enumerate(owner):
        led_by = {index for index, item in enumerate(groups) if starts_above[task] & set(item.starts)}
        assert led_by == {group} if group != SHARED else len(led_by) > 1
    sizes = Counter(owner)
    for index, group in enumerate(groups):
        assert group.tasks == sizes[index]
        assert list(group.segments) == sorted({segment_of(task) for task, own in enumerate(owner) if own == index})
    assert sum(group.tasks for group in groups) + sizes[SHARED] == len(graph)


@given(graphs(), st.data())
def test_groups_of_some_starts(graph, data):
    chosen = data.draw(st.sets(st.sampled_from(list(graph.starts))))
    groups = assign_starts(graph, Sharing(3), chosen)
    assert [start for group in groups for start in sorted(group.starts)] == sorted(chosen)
    assert all(group.tasks >= len(group.starts) for group in groups)


def test_recomputation_may_begin_in_the_middle():
    graph = chain(10)
    assert [(group.starts, group.tasks) for group in assign_starts(graph, Sharing(5), [7])] == [([7], 3)]


@pytest.mark.parametrize("stems", [1, 5])
def test_equal_work_is_divided_equally(stems):
    groups = assign_starts(independent(2_000, stems), Sharing(200))
    assert {len(group.starts) for group in groups} == {10}
    assert {group.tasks for group in groups} == {10 * stems}


def test_unequal_work_is_divided_by_weight():
    parents = {(name, 0): [] for name in range(100)}
    parents.update({(50, step): [(50, step - 1)] for step in range(1, 100)})
    graph, _ = number(parents, [(name, 0) for name in range(100)] + [(50, 99)])
    sizes = [group.tasks for group in assign_starts(graph, Sharing(2))]
    assert sum(sizes) == 199
    assert max(sizes) <= 150


def test_a_shared_tail_does_not_pull_the_starts_together():
    parents = {index: [] for index in range(100)}
    parents["tail", 0] = list(range(100))
    parents.update({("tail", step): [("tail", step - 1)] for step in range(1, 1_000)})
    graph, _ = number(parents, [("tail", 999)])
    assert {len(group.starts) for group in assign_starts(graph, Sharing(10))} == {10}


def test_cuts_do_not_part_what_belongs_together():
    parents = {}
    for pair in range(100):
        parents.update({("x", pair): [], ("y", pair): [], ("add", pair): [("x", pair), ("y", pair)]})
    parents["sum"] = [("add", pair) for pair in range(100)]
    graph, _ = number(parents, ["sum"])
    groups = assign_starts(graph, Sharing(14))  # 200 starts: 14.3 each, so that even cuts would part pairs
    assert all(len(group.starts) % 2 == 0 for group in groups)
    assert max(group.tasks for group in groups) <= 2 * min(group.tasks for group in groups)


def estimate_of(graph, seconds=1.0):
    return Estimate([seconds] * len(graph), [0.0] * len(graph))


def test_where_values_are_cheap_and_tasks_long_cuts_are_even():
    parents = {}
    for pair in range(100):
        parents.update({("x", pair): [], ("y", pair): [], ("add", pair): [("x", pair), ("y", pair)]})
    parents["sum"] = [("add", pair) for pair in range(100)]
    graph, _ = number(parents, ["sum"])
    even = [len(group.starts) for group in assign_starts(graph, Sharing(14, estimate_of(graph), slack=0.01))]
    assert max(even) - min(even) <= 2
    assert any(size % 2 for size in even)


def test_groups_are_even_in_time_not_in_numbers():
    graph = independent(100)
    seconds = [9.0 if task < 10 else 1.0 for task in range(100)]
    sizes = [len(group.starts) for group in assign_starts(graph, Sharing(2, Estimate(seconds, [0.0] * 100)))]
    assert sizes == [10, 90]


def test_the_longest_path_is_the_one_that_takes_longest():
    graph, keys = number({"long": (), "a": (), "b": ("a",), "c": ("b",), "end": ("long", "c")}, ["end"])
    seconds = [10.0 if key == "long" else 1.0 for key in keys]
    height = heights(graph, seconds)
    assert height[keys.index("long")] == 11.0
    assert height[keys.index("a")] == 4.0
    starts = sorted([keys.index("long"), keys.index("a")])
    assert keys[longest_first(starts, height)[0]] == "long"
    assert keys[longest_first(starts, heights(graph))[0]] == "a"


def test_a_fan_in_is_at_home_where_the_larger_input_is():
    graph, keys = number({"a": (), "b": (), "c": ("a", "b")}, ["c"])
    for large, home in (("a", 0), ("b", 1)):
        nbytes = [1e9 if key == large else 0.0 for key in keys]
        groups = assign_starts(graph, Sharing(2, Estimate([1.0] * 3, nbytes)))
        assert [bool(group.home) for group in groups] == [home == 0, home == 1]


@given(graphs(), st.integers(1, 8))
def test_no_fan_in_is_at_home_with_two(graph, groups):
    """Both would hold their values back for it, and wait for each other."""
    homes = [group.home for group in assign_starts(graph, Sharing(groups))]
    tasks = [
        task for home in homes for first, end in zip(home[::2], home[1::2], strict=True) for task in range(first, end)
    ]
    shared = {task for task in tasks if len(graph.parents[task]) > 1}
    owner = owners(graph, [group.starts for group in assign_starts(graph, Sharing(groups))])
    met = [task for task in tasks if task in shared and owner[task] == SHARED]
    assert len(met) == len(set(met))


def test_starts_whose_inputs_are_in_one_place_are_a_group():
    graph = independent(20)
    near = {start: "A" if start % 2 else "B" for start in graph.starts}
    groups = assign_starts(graph, Sharing(2), near=near)
    assert [list(group.starts) for group in groups] == [list(graph.starts)[::2], list(graph.starts)[1::2]]


def test_what_is_left_is_shared_out_as_ever_and_comes_last():
    graph = independent(20)
    near = dict.fromkeys(list(graph.starts)[15:], "A")
    groups = assign_starts(graph, Sharing(4), near=near)
    assert [len(group.starts) for group in groups] == [5, 5, 5, 5]
    assert list(groups[0].starts) == list(graph.starts)[15:]


@pytest.mark.parametrize("places", [["A"], ["A", "B", "C"]])
def test_nobody_is_given_much_more_than_others_because_its_inputs_are_there(places):
    """All of it is in one place; and in more places than there shall be groups."""
    graph = independent(20)
    near = {start: places[start % len(places)] for start in graph.starts}
    assert assign_starts(graph, Sharing(2), near=near) == assign_starts(graph, Sharing(2))


def test_of_some_of_a_jobs_starts_those_in_one_place_are_one_group():
    """Half of the job, for all of its places: that is what is fair for one of them."""
    graph = independent(40)
    some = list(graph.starts)[:20]
    groups = assign_starts(graph, Sharing(2, fair=1.0), some, near=dict.fromkeys(some, "A"))
    assert [list(group.starts) for group in groups] == [some]
    assert len(assign_starts(graph, Sharing(2), some, near=dict.fromkeys(some, "A"))) == 2


def test_there_are_no_more_groups_than_there_may_be():
    graph = independent(80)
    near = {start: start // 16 for start in list(graph.starts) if start % 16 < 3}
    assert len(assign_starts(graph, Sharing(8), near=near)) == 8


def test_who_would_begin_when_all_is_under_way_is_left_out():
    graph = independent(100)
    sharing = Sharing(10, estimate_of(graph, 0.5), lead=0.025, threads=25)
    assert [len(group.starts) for group in assign_starts(graph, sharing)] == [25, 25, 25, 25]


@given(graphs(), st.integers(1, 8), st.dictionaries(st.integers(0, 59), st.sampled_from("ABC")))
def test_groups_divide_the_starts_wherever_their_inputs_are(graph, groups, near):
    made = assign_starts(graph, Sharing(groups), near=near)
    assert sorted(start for group in made for start in group.starts) == list(graph.starts)
    assert all(group.starts for group in made)


def test_who_begins_earlier_is_given_more():
    graph = independent(1_000, 1)
    sharing = Sharing(10, estimate_of(graph), slack=0.0, lead=10.0)
    assert [len(group.starts) for group in assign_starts(graph, sharing)] == [145 - 10 * group for group in range(10)]


@given(groups=st.integers(1, 50), total=st.floats(1e-3, 5_000), lead=st.floats(0, 1e6))
def test_no_lead_is_so_large_that_somebody_is_left_with_less_than_nothing(groups, total, lead):
    ends = [0.0, *Sharing(groups, lead=lead).ends(total, groups), total]
    sizes = [end - begin for begin, end in pairwise(ends)]
    assert min(sizes) >= -1e-9 * total
    assert all(mine >= following - 1e-9 * total for mine, following in pairwise(sizes))


@given(
    groups=st.integers(1, 12),
    starts=st.integers(12, 200),
    each=st.sampled_from([0.01, 0.1, 0.5]),
    lead=st.sampled_from([0.0, 0.002, 0.03, 0.2]),
    threads=st.integers(1, 10),
)
def test_of_tasks_that_all_take_as_long_nobody_has_one_round_more_than_must_be(groups, starts, each, lead, threads):
    def rounds_until(end):
        return [max(0, int((end - lead * group) / each + 1e-9)) for group in range(groups)]

    graph = independent(starts)
    sharing = Sharing(groups, estimate_of(graph, each), lead=lead, threads=threads)
    sizes = [len(group.starts) for group in assign_starts(graph, sharing)]
    last = max(lead * group + -(-size // threads) * each for group, size in enumerate(sizes))
    could = {lead * group + rounds * each for group in range(groups) for rounds in range(1, starts + 1)}
    soonest = min(end for end in could if threads * sum(rounds_until(end)) >= starts)
    assert last <= soonest + each / 1_000


def test_a_hundred_executors_of_ten_threads_nap_ten_times_each():
    """Ten thousand naps of 0.5 s, and executors that begin 1.5 ms apart: one nap more would take all of them 0.5 s."""
    graph = independent(10_000)
    sharing = Sharing(100, estimate_of(graph, 0.5), slack=0.001, lead=0.0015, threads=10)
    assert {len(group.starts) for group in assign_starts(graph, sharing)} == {100}


@given(executors=st.integers(1, 2_000), seconds=st.floats(1e-3, 1e5), start_seconds=st.floats(1e-6, 10))
def test_nobody_is_started_to_find_nothing_left(executors, seconds, start_seconds):
    worth = worth_starting(executors, seconds, start_seconds)
    assert 1 <= worth <= executors
    assert worth == 1 or seconds / worth - start_seconds * (worth - 1) / 2 >= -1e-6 * seconds
    if worth < executors:  # one more would be one too many
        assert seconds / (worth + 1) - start_seconds * worth / 2 <= 1e-6 * seconds


def test_hints_are_bounded():
    graph = chain(SEGMENT_TASKS * (HINT_SEGMENTS_MAX + 10))
    (group,) = assign_starts(graph, Sharing(4))
    assert list(group.segments) == list(range(HINT_SEGMENTS_MAX))
    assert group.tasks == len(graph)


def test_groups_must_be_possible():
    with pytest.raises(ValueError, match="at least 1"):
        assign_starts(chain(2), Sharing(0))
    assert assign_starts(chain(2), Sharing(3), []) == []


@pytest.mark.fault(34)
@pytest.mark.parametrize("shape", SHAPES)
def test_large_graphs(shape):
    """Memory is linear and nothing recurses; time is covered by counting what is yielded."""

    def peak(size):
        graph = shape(size)
        tracemalloc.start()
        try:
            rows = sum(len(segment.parents) + len(segment.fan_ins) for segment in edges(graph))
            groups = assign_starts(graph, Sharing(200))
            explain(graph, groups)
            assert rows <= 3 * len(graph)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(200)
    try:
        small, large = peak(10_000), peak(100_000)
    finally:
        sys.setrecursionlimit(limit)
    assert large < 25 * small


def test_explain():
    graph = tree(64)
    told = explain(graph, assign_starts(graph, Sharing(4)))
    assert (told.tasks, told.starts, told.fan_ins, told.fan_outs, told.depth) == (127, 64, 63, 0, 7)
    assert told.groups == [31, 31, 31, 31]
    assert told.shared == 3
    assert "critical path: 7 tasks" in str(told)
    assert "4 groups to begin with, of 31 to 31 tasks" in str(told)
    assert explain(chain(100_000)).depth == 100_000
