"""What becomes of jobs that the metadata server has forgotten: each begins again, but not for ever."""

from __future__ import annotations

import pytest

from dask_serverless.job_events import Close, Done, Finish, Import, Launch, Released, Result, Submitted
from dask_serverless.jobs import Ledger
from dask_serverless.oblivion import BeginAgain, GiveUp, Oblivion
from dask_serverless.plan import number
from lambda_worker.core.wire import Ref

pytestmark = pytest.mark.fault(22)


def test_every_job_begins_again_the_newest_first():
    verdicts = Oblivion(3).judge({"j1": ["x", "y"], "j2": ["z"]})
    assert verdicts == [BeginAgain("j2", ["z"]), BeginAgain("j1", ["x", "y"])]


def test_a_key_that_is_forgotten_too_often_is_given_up_and_others_are_not():
    oblivion = Oblivion(2)
    for times in range(2):
        assert oblivion.judge({f"j{times}": ["x"]}) == [BeginAgain(f"j{times}", ["x"])]
    assert oblivion.judge({"j8": ["x", "new"], "j9": ["other"]}) == [BeginAgain("j9", ["other"]), GiveUp("j8", 3)]


def test_a_key_that_had_its_value_meanwhile_counts_from_the_beginning():
    oblivion = Oblivion(1)
    oblivion.judge({"j1": ["x", "y"]})
    assert oblivion.judge({"j2": ["y"]}) == [GiveUp("j2", 2)]
    assert oblivion.judge({"j3": ["x"]}) == [BeginAgain("j3", ["x"])]


def test_nobody_begins_again_where_that_is_not_allowed():
    assert Oblivion(0).judge({"j1": ["x"]}) == [GiveUp("j1", 1)]


def test_a_ledger_goes_on_with_what_is_finished():
    """Of a chain x -> y -> z, x is done: y and z are planned anew, and x is what the new job is given."""
    ledger, ref = Ledger(), Ref("j1/0/a/1", 0, 100_000)
    graph, keys = number({"x": (), "y": ("x",)}, ["x", "y"])
    ledger.handle(Submitted("j1", graph, {key: n for n, key in enumerate(keys)}, {}, {}))
    ledger.handle(Done("j1", [Result(0, ref, 100_000, b"", "array", 0.0, 1.0)]))
    second, names = number({"y": (), "z": ("y",)}, ["z"], externals={"y"})
    ledger.handle(Submitted("j2", second, {"z": names.index("z")}, {"y": names.index("y")}, {}))
    pending = {job: [key for keys in each.keys.values() for key in keys] for job, each in ledger.jobs.items()}
    out = []
    for verdict in Oblivion(1).judge(pending):
        for key in verdict.keys:
            out += ledger.handle(Released(key))
    # Nobody asks for y as if Dask workers had made it, and the value of x stays where it is.
    assert out == [Close("j2", []), Close("j1", [ref])]
    assert ledger.keys["x"].result.location == ref and list(ledger.keys) == ["x"]
    again, names = number({"x": (), "y": ("x",)}, ["y"], externals={"x"})
    numbers = {name: n for n, name in enumerate(names)}
    out = ledger.handle(Submitted("j3", again, {"y": numbers["y"]}, {"x": numbers["x"]}, {}))
    assert out == [Launch("j3", [(numbers["x"], ref)])]
    assert not any(isinstance(each, Import | Finish) for each in out)
