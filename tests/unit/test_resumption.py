"""What a successor makes of notes: the ledger is where the predecessor's was; what cannot go on begins anew."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dask_serverless.job_events import Close, Done, Erred, Finish, Free, Import, Kept, Launch, Result
from dask_serverless.jobs import Ledger
from dask_serverless.plan import number
from dask_serverless.resumption import Past, resume
from lambda_worker.core.wire import Ref

pytestmark = pytest.mark.fault(25)


def plan(parents, wanted, externals=(), pointers=None):
    graph, keys = number({key: tuple(needs) for key, needs in parents.items()}, list(wanted), externals=set(externals))
    numbers = {key: task for task, key in enumerate(keys)}
    return SimpleNamespace(
        graph=graph,
        visible={key: numbers[key] for key in wanted},
        externals={key: numbers[key] for key in externals},
        pointers=pointers or {},
    )


def ref(job, task):
    return Ref(f"{job}/{task}/a/1", 0, 100_000)


def done(job, *tasks):
    return Done(job, [Result(task, ref(job, task), 100_000, b"type", "int", 0.0, 1.0) for task in tasks])


def restored(*pasts):
    """Return a ledger that was told all of it, and what it asked for meanwhile."""
    ledger = Ledger()
    return ledger, [each for event in resume(pasts) for each in ledger.handle(event)]


def test_what_was_finished_has_its_value_and_what_was_not_is_waited_for():
    two = plan({"x": (), "y": ("x",)}, ["x", "y"])
    ledger, asked = restored(Past("j1", two, ["1-0"], {0: None}, [done("j1", 0)]))
    assert [each for each in asked if not isinstance(each, Finish)] == []  # nothing is started, nothing is removed
    assert ledger.keys["x"].result.location == ref("j1", 0)
    assert ledger.keys["y"].pending and not ledger.jobs["j1"].stalled
    out = ledger.handle(done("j1", 1))
    assert [type(each) for each in out] == [Finish, Close]
    assert set(out[-1].keep) == {ref("j1", 0), ref("j1", 1)}


def test_what_is_said_twice_counts_once():
    """1. It is noted; 2. the proxy dies before the store has forgotten it; 3. it is heard again."""
    ledger, _ = restored(Past("j1", plan({"x": (), "y": ("x",)}, ["x", "y"]), ["1-0"], {0: None}, [done("j1", 0)]))
    assert ledger.handle(done("j1", 0)) == []


def test_a_job_that_is_over_is_cleaned_up_and_keeps_its_values():
    ledger, asked = restored(Past("j1", plan({"x": ()}, ["x"]), [], {0: None}, [done("j1", 0)]))
    assert asked[-1] == Close("j1", [ref("j1", 0)])
    assert not ledger.jobs and not ledger.keys["x"].pending


def test_starts_that_nobody_was_given_are_launched():
    wide = plan({"a": (), "b": (), "z": ("a", "b")}, ["z"])
    _, asked = restored(Past("j1", wide, ["1-0"], {0: None}))
    assert asked == [Launch("j1", [(1, None)])]


def test_a_value_of_an_earlier_job_is_given_to_those_that_wait_for_it():
    first = Past("j1", plan({"x": ()}, ["x"]), [], {0: None}, [done("j1", 0)])
    second = Past("j2", plan({"x": (), "y": ("x",)}, ["y"], externals=["x"]))
    _, asked = restored(first, second)
    assert [each for each in asked if isinstance(each, Launch)] == [Launch("j2", [(0, ref("j1", 0))])]


def test_a_value_that_was_given_stays_for_as_long_as_it_may_be_read_again():
    past = Past("j2", plan({"s": (), "y": ("s",)}, ["y"], externals=["s"]), ["1-0"], {0: ref("exports", 1)})
    ledger, asked = restored(past)
    assert asked == []  # not asked for: whoever had brought it is dead
    out = ledger.handle(done("j2", 1))
    assert Free([ref("exports", 1)]) in out


def test_what_waits_for_a_value_that_died_with_the_process_is_left_out():
    graph = plan({"s": (), "x": (), "y": ("s", "x")}, ["x", "y"], externals=["s"])
    x = graph.visible["x"]
    ledger, asked = restored(Past("j1", graph, ["1-0"], {x: None}, [done("j1", x)]))
    assert "y" not in ledger.keys and ledger.keys["x"].result is not None
    assert not any(isinstance(each, Import | Launch) for each in asked)
    assert not ledger.jobs  # whoever is at work in it is fenced


@pytest.mark.parametrize("lost", ["x", "y"])
def test_a_value_that_is_lost_is_left_out(lost):
    two = plan({"x": (), "y": ("x",)}, ["x", "y"])
    past = Past("j1", two, [], {0: None}, [done("j1", 0, 1)], missing={ref("j1", two.visible[lost])})
    ledger, asked = restored(past)
    assert list(ledger.keys) == [key for key in ("x", "y") if key != lost]
    assert not ledger.jobs and not any(isinstance(each, Launch) for each in asked)


def test_errors_and_what_depends_on_them_are_left_out():
    two = plan({"x": (), "y": ("x",), "z": ()}, ["x", "y", "z"])
    x, z = two.visible["x"], two.visible["z"]
    ledger, _ = restored(Past("j1", two, ["1-0"], {x: None, z: None}, [Erred("j1", x, b"error")]))
    assert list(ledger.keys) == ["z"] and ledger.keys["z"].pending


def test_of_two_jobs_that_made_a_key_the_last_one_counts():
    first = Past("j1", plan({"x": ()}, ["x"]), [], {0: None}, [done("j1", 0)])
    second = Past("j2", plan({"x": ()}, ["x"]), ["1-0"], {0: None})
    ledger, asked = restored(first, second)
    assert ledger.keys["x"].job == "j2" and ledger.keys["x"].pending
    assert Close("j1", []) in asked


def test_an_alias_goes_where_its_target_goes():
    first = Past("j1", plan({"x": ()}, ["x"]), [], {0: None}, [done("j1", 0)])
    second = Past("j2", plan({"z": ()}, ["z"], pointers={"same": "x", "lost": "nothing"}), ["1-0"], {0: None})
    ledger, _ = restored(first, second)
    assert ledger.keys["same"].result == ledger.keys["x"].result
    assert "lost" not in ledger.keys


@pytest.mark.fault(24)
def test_what_waits_for_scattered_data_goes_on_if_that_is_there():
    """1. A job waits for room; 2. the process dies; 3. its input was kept."""
    one = plan({"x": ("data",)}, ["x"], externals=["data"])
    past = Past("j1", one, [], {})
    ledger = Ledger()
    ledger.handle(Kept("data", ref("exports", 1)))
    asked = [each for event in resume([past], ["data"]) for each in ledger.handle(event)]
    (launch,) = [each for each in asked if isinstance(each, Launch)]
    assert launch.starts == [(one.externals["data"], ref("exports", 1))]
    assert not any(isinstance(each, Import) for each in asked)
    assert list(restored(past)[0].keys) == []  # without it, whoever asks for x has it planned again
