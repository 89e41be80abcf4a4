"""What is said of a collection before it runs."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest

from dask_serverless import explain
from dask_serverless.cluster_arguments import load_settings
from dask_serverless.explaining import keys_of, plan_of
from dask_serverless.forecast import Terms, forecast
from dask_serverless.plan import number
from dask_serverless.plan.prefixes import number_prefixes
from dask_serverless.statistics import Statistics

MIB = 2**20


def told(parents, wanted, known=(), places=2, threads=1, **more):
    """Forecast a graph whose keys are their own prefixes but for a digit."""
    graph, keys = number(parents, wanted, **more)
    statistics = Statistics()
    for name, (seconds, nbytes) in dict(known).items():
        statistics.take(name, [1, seconds, seconds**2, nbytes, nbytes**2, 0])
    prefixes = number_prefixes(keys, lambda key: key.rstrip("0123456789"), graph.externals)
    return forecast(graph, prefixes, statistics.expect(prefixes), Terms(places, threads=threads))


MAP = {f"inc{n}": () for n in range(64)}
REDUCED = {**MAP, "sum": list(MAP)}


def test_of_new_prefixes_it_says_that_nothing_is_known():
    it = told(REDUCED, ["sum"])
    assert (it.executors, it.seconds, it.expected_seconds, it.nbytes) == (2, None, None, None)
    assert (it.inlined, it.stored, it.unsized) == (0, 0, 65)
    assert "nothing is known yet of 65 tasks (inc, sum), which may be long" in str(it)
    assert "time: not known yet" in str(it)


def test_a_tiny_job_takes_one_executor_and_says_why():
    it = told(REDUCED, ["sum"], {"inc": (1e-5, 0), "sum": (1e-5, 0)})
    assert it.executors == 1
    assert "1 invocation to begin with, of 2 places: all tasks take about 650 us together, not worth more" in str(it)
    assert (it.inlined, it.stored, it.unsized) == (1, 0, 0)
    assert it.shape.groups == [65]


def test_a_long_job_takes_all_places_and_as_long_as_its_critical_path_at_least():
    known = {"inc": (1.0, 0), "sum": (5.0, 0)}
    it = told(REDUCED, ["sum"], known)
    assert (it.executors, it.seconds, it.critical_seconds) == (2, 69.0, 6.0)
    assert 34.5 < it.expected_seconds < 34.6
    assert 17.2 < told(REDUCED, ["sum"], known, threads=2).expected_seconds < 17.4
    wide = told(REDUCED, ["sum"], known, places=1000)
    assert wide.executors == 64
    assert 6.0 < wide.expected_seconds < 6.1


def test_if_some_is_known_that_is_told_and_no_total_is_made_up():
    it = told(REDUCED, ["sum"], {"inc": (1.0, 0)})
    assert (it.seconds, it.expected_seconds) == (64.0, None)
    assert "nothing is known yet of 1 task (sum), which may be long; the others take about 64 s together" in str(it)


def test_large_values_that_must_leave_their_group_are_stored():
    it = told(REDUCED, ["sum"], {"inc": (1.0, 8 * MIB), "sum": (1.0, 0)})
    assert (it.inlined, it.stored, it.unsized) == (1, 64, 0)
    assert it.nbytes == 512 * MIB
    assert "512.0 MiB expected" in str(it)


def test_large_values_that_stay_are_not_stored():
    parents = {f"{kind}{n}": [f"make{n}"] if kind == "size" else [] for n in range(8) for kind in ("make", "size")}
    it = told(parents, [f"size{n}" for n in range(8)], {"make": (1.0, 8 * MIB), "size": (1.0, 0)})
    assert (it.inlined, it.stored) == (8, 0)


def test_what_is_made_elsewhere_takes_no_time_here():
    it = told({"inc0": ("far",), "inc1": ("far",)}, ["inc0", "inc1"], {"inc": (2.0, 0)}, externals={"far"})
    assert (it.seconds, it.critical_seconds) == (4.0, 2.0)
    assert it.prefixes[0][:2] == ("inc", 2)


def test_function_classes_are_counted():
    graph, keys = number({"a": (), "b": (), "c": ()}, ["a", "b", "c"], classes={"b": 1})
    prefixes = number_prefixes(keys, str)
    it = forecast(graph, prefixes, Statistics().expect(prefixes), Terms(3, classes=["2 GiB, 900 s", "8 GiB, 900 s"]))
    assert it.tasks_by_class == {"2 GiB, 900 s": 2, "8 GiB, 900 s": 1}
    assert "function classes: 2 GiB, 900 s: 2, 8 GiB, 900 s: 1" in str(it)


def test_nothing_to_run_is_told_as_well():
    it = told({}, [])
    assert it.executors == 0
    assert "there is nothing to run" in str(it)


def test_a_notebook_shows_a_table_without_what_keys_would_inject():
    html = told({"<i>0": ()}, ["<i>0"])._repr_html_()
    assert "<table>" in html and "&lt;i&gt;" in html and "<i>" not in html


def test_in_many_prefixes_only_some_are_printed():
    it = told({chr(97 + n) * 3: () for n in range(26)}, [chr(97 + n) * 3 for n in range(26)])
    assert "... and 6 more prefixes" in str(it)
    assert len(it.prefixes) == 26


# -- collections ----------------------------------------------------------------------------------


def test_an_array_is_planned_as_it_would_be_computed_and_nothing_runs():
    def never(block):
        raise AssertionError("it ran")

    x = da.ones((40, 40), chunks=10).map_blocks(never, dtype=float, meta=np.empty((0, 0))).sum()
    it = explain(x)
    assert it.shape.visible == 1
    assert it.shape.tasks >= 16
    assert it.unsized > 0


def test_annotations_count_as_they_would():
    with dask.annotate(memory="8 GiB"):
        large = dask.delayed(len)("abc")
    assert sorted(explain([large, dask.delayed(len)("ab")]).tasks_by_class.values()) == [1, 1]
    with dask.annotate(serverless=False):
        pinned = dask.delayed(len)("abcd")
    it = explain(dask.delayed(sum)([pinned, 1]))
    assert (it.on_dask_workers, it.shape.tasks, it.shape.externals) == (1, 2, 1)
    assert "1 task on Dask workers" in str(it)


def test_what_the_cluster_has_already_is_not_run_again():
    parent = dask.delayed(len)("abc", dask_key_name="there")
    child = dask.delayed(abs)(parent, dask_key_name="new")
    planned = plan_of(child, load_settings(), is_known={"there"}.__contains__)
    assert planned.plan.externals == {"there": 0}
    assert planned.prefixes.counts == [0, 1]


@pytest.mark.parametrize("thing", [3, "x", [dask.delayed(1), 3]])
def test_what_is_no_collection_is_refused_by_name(thing):
    with pytest.raises(TypeError, match="^(3|'x') is no Dask collection"):
        explain(thing)


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match="no collection was given"):
        explain([])


def test_a_cluster_of_another_kind_is_refused_by_name():
    with pytest.raises(TypeError, match="cluster='mine' is no ServerlessCluster"):
        explain(dask.delayed(1), cluster="mine")


def test_keys_are_found_in_collections_and_refused_elsewhere():
    assert keys_of([dask.delayed(1, name="a"), dask.delayed(2, name="b")]) == ["a", "b"]
    with pytest.raises(TypeError, match="7 is neither a future nor a Dask collection"):
        keys_of(7)
