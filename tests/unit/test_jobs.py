"""The ledger: given these events, these instructions, this state."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from dask_serverless.job_events import (
    Admitted,
    Close,
    Delegating,
    Done,
    Erred,
    Fail,
    Finish,
    Free,
    Import,
    Imported,
    ImportFailed,
    JobFailed,
    Kept,
    Launch,
    Lost,
    Released,
    Retired,
    Room,
)
from dask_serverless.jobs import Ledger
from dask_serverless.plan import number
from lambda_worker.core.wire import Ref
from tests.unit.ledger_story import ERROR, Story, ref, result, same, submitted


@pytest.fixture
def story():
    return Story()


@pytest.fixture
def one(story):
    """One job of one key ``x``, under way at executor ``e``."""
    story.submit("j1", {"x": ()}, ["x"])
    story.tell(Admitted("j1", ["e"]))
    return story


# --- a job begins


def test_a_submitted_job_launches_all_its_starts_at_once(story):
    assert story.submit("j1", {"a": (), "b": (), "c": ("a", "b")}, ["c"]) == [Launch("j1", [(0, None), (1, None)])]
    assert story.ledger.stalled() == []


def test_a_job_that_waits_for_another_begins_when_the_value_is_there(story):
    story.submit("j1", {"x": ()}, ["x"])
    assert story.submit("j2", {"y": ("x",)}, ["y"], externals=["x"]) == []
    assert story.ledger.stalled() == []
    out = story.done("j1", "x")
    assert same(
        out,
        [
            Finish("x", story.result("j1", "x")),
            Launch("j2", [(0, story.ref("j1", "x"))]),
            Close("j1", [story.ref("j1", "x")]),
        ],
    )


def test_a_value_that_is_there_already_is_given_with_the_launch(one):
    one.done("j1", "x")
    assert one.submit("j2", {"y": ("x",)}, ["y"], externals=["x"]) == [Launch("j2", [(0, one.ref("j1", "x"))])]


def test_values_that_are_there_already_come_in_one_launch(story):
    """A graph on top of a thousand persisted chunks is one admission, not a thousand."""
    chunks = [f"chunk-{n}" for n in range(5)]
    story.submit("j1", {chunk: () for chunk in chunks}, chunks)
    story.done("j1", *chunks)
    launched = story.submit("j2", {"own": (), "sum": (*chunks, "own")}, ["sum"], externals=chunks)
    assert [type(each) for each in launched] == [Launch]
    assert len(launched[0].starts) == 6


def test_values_that_come_together_come_in_one_launch(story):
    chunks = [f"chunk-{n}" for n in range(5)]
    story.submit("j1", {chunk: () for chunk in chunks}, chunks)
    story.submit("j2", {"sum": chunks}, ["sum"], externals=chunks)
    launched = [each for each in story.done("j1", *chunks) if isinstance(each, Launch)]
    assert [len(each.starts) for each in launched] == [5]


def test_only_what_hangs_on_a_value_waits_for_it(story):
    story.submit("j1", {"x": ()}, ["x"])
    out = story.submit("j2", {"y": ("x",), "z": ()}, ["y", "z"], externals=["x"])
    assert out == [Launch("j2", [(story.numbers["j2"]["z"], None)])]


def test_a_job_on_an_erred_key_errs_without_a_launch(one):
    one.tell(Erred("j1", 0, ERROR))
    assert one.submit("j2", {"y": ("x",)}, ["y"], externals=["x"]) == [Fail("y", ERROR), Close("j2", [])]


def test_an_erred_key_spares_what_does_not_need_it(one):
    one.tell(Erred("j1", 0, ERROR))
    out = one.submit("j2", {"y": ("x",), "z": ()}, ["y", "z"], externals=["x"])
    assert Fail("y", ERROR) in out
    assert [len(each.starts) for each in out if isinstance(each, Launch)] == [1]
    assert "j2" in one.ledger.jobs


def test_an_unknown_key_is_imported_once_for_all_who_wait(story):
    assert story.submit("j1", {"y": ("far",)}, ["y"], externals=["far"]) == [Import("far")]
    assert story.submit("j2", {"z": ("far",)}, ["z"], externals=["far"]) == []
    assert story.ledger.stalled() == []
    where = ref("exports", 1)
    assert same(story.tell(Imported("far", where)), [Launch("j1", [(0, where)]), Launch("j2", [(0, where)])])


def test_an_import_that_fails_fails_what_needs_it(story):
    story.submit("j1", {"y": ("far",), "z": ()}, ["y", "z"], externals=["far"])
    assert story.tell(ImportFailed("far", ERROR)) == [Fail("y", ERROR)]
    assert story.done("j1", "z")[-1] == Close("j1", [story.ref("j1", "z")])


def test_an_import_that_nobody_wants_any_more_is_freed(story):
    story.submit("j1", {"y": ("far",)}, ["y"], externals=["far"])
    assert story.tell(Released("y")) == [Close("j1", [])]
    story.tell(Released("far"))
    where = ref("exports", 1)
    if "far" not in story.ledger.keys:
        assert story.tell(Imported("far", where)) == [Free([where])]


def test_the_second_of_two_imports_is_freed(story):
    story.submit("j1", {"y": ("far",)}, ["y"], externals=["far"])
    assert story.tell(Released("far")) == [Import("far")], "j1 still needs it"
    first, second = ref("exports", 1), ref("exports", 2)
    assert story.tell(Imported("far", first)) == [Launch("j1", [(0, first)])]
    assert story.tell(Imported("far", second)) == [Free([second])]
    assert story.tell(Released("far")) == [], "an executor of j1 that dies would read it again"
    assert story.done("j1", "y")[-2:] == [Free([first]), Close("j1", [story.ref("j1", "y")])]


def test_a_value_that_its_own_job_may_read_again_goes_with_the_job(story):
    """1. x is read, and released; 2. who read it dies; 3. the next attempt reads x again."""
    story.submit("j1", {"x": (), "y": ("x",), "z": ("y",)}, ["x", "z"])
    story.tell(Admitted("j1", ["e"]))
    story.done("j1", "x")
    assert story.tell(Released("x")) == []
    assert story.done("j1", "z")[-1] == Close("j1", [story.ref("j1", "z")]), "x is not kept"


def test_a_second_result_that_an_arrival_may_have_mentioned_stays_while_its_job_is_open(story):
    """1. An executor dies; 2. its next attempt makes x again, and tells the proxy and a child where it is."""
    story.submit("j1", {"x": (), "y": ("x",), "z": ()}, ["x", "y", "z"])
    story.tell(Admitted("j1", ["e"]))
    story.done("j1", "x")
    story.done("j1", "z")
    assert story.done("j1", "x", writer="b") == []
    assert story.done("j1", "z", writer="b") == [Free([story.ref("j1", "z", "b")])], "it has no child"


def test_a_key_let_go_while_a_job_waits_for_it_is_asked_for_again(story):
    story.submit("j1", {"x": ()}, ["x"])
    story.submit("j2", {"y": ("x",)}, ["y"], externals=["x"])
    assert story.tell(Released("x")) == [Close("j1", []), Import("x")]
    assert story.tell(ImportFailed("x", ERROR)) == [Fail("y", ERROR), Close("j2", [])]


def test_a_key_that_only_closed_jobs_waited_for_is_not_asked_for_again(story):
    """Otherwise the answer to that request, an error, meets whoever submits the same key next."""
    story.submit("j1", {"x": ()}, ["x"])
    story.submit("j2", {"y": ("x",)}, ["y"], externals=["x"])
    assert story.tell(Released("y")) == [Close("j2", [])]
    assert story.tell(Released("x")) == [Close("j1", [])]
    assert story.ledger.keys == {}


def test_a_late_answer_to_an_import_does_not_touch_a_key_that_a_job_makes_now(story):
    story.submit("j1", {"y": ("x",)}, ["y"], externals=["x"])
    story.tell(Released("y"), Released("x"))
    story.submit("j2", {"x": ()}, ["x"])
    assert story.tell(ImportFailed("x", ERROR)) == []
    assert story.ledger.keys["x"].pending
    late = ref("exports", 1)
    assert story.tell(Imported("x", late)) == [Free([late])]
    assert story.done("j2", "x")[0] == Finish("x", story.result("j2", "x"))


# --- results


def test_a_result_finishes_its_key_and_the_last_one_closes_the_job(story):
    story.submit("j1", {"x": (), "y": ()}, ["x", "y"])
    assert story.done("j1", "x") == [Finish("x", story.result("j1", "x"))]
    assert story.done("j1", "y") == [
        Finish("y", story.result("j1", "y")),
        Close("j1", [story.ref("j1", "x"), story.ref("j1", "y")]),
    ]
    assert story.ledger.jobs == {}


def test_the_first_result_stays_and_the_object_of_the_second_is_freed(story):
    story.submit("j1", {"x": (), "y": ()}, ["x", "y"])
    story.done("j1", "x", writer="a")
    assert story.done("j1", "x", writer="b") == [Free([story.ref("j1", "x", "b")])]
    assert story.ledger.keys["x"].result == story.result("j1", "x", "a")


def test_the_same_result_told_twice_is_not_freed(story):
    story.submit("j1", {"x": (), "y": ()}, ["x", "y"])
    story.done("j1", "x")
    assert story.done("j1", "x") == []


def test_an_inline_result_leaves_nothing_to_keep_or_free(one):
    inline = result("j1", 0, location=b"value")
    assert one.tell(Done("j1", [inline])) == [Finish("x", inline), Close("j1", [])]
    assert one.tell(Released("x")) == []


def test_two_keys_of_one_task_finish_together_and_share_its_object(story):
    story.submit("j1", {"x": ()}, ["x"], also={"alias": "x"})
    made = story.result("j1", "x")
    assert story.done("j1", "x") == [Finish("x", made), Finish("alias", made), Close("j1", [made.location])]
    assert story.tell(Released("x")) == []
    assert story.tell(Released("alias")) == [Free([made.location])]


def test_a_key_that_two_jobs_make_has_one_result(story):
    """Two clients submitted it while neither knew of the other."""
    story.submit("j1", {"x": ()}, ["x"])
    story.submit("j2", {"x": (), "y": ("x",)}, ["x", "y"])
    finished = [each for each in story.done("j1", "x") + story.done("j2", "x", "y") if isinstance(each, Finish)]
    assert Counter(each.key for each in finished) == {"x": 1, "y": 1}
    out = story.tell(Released("x"), Released("y"))
    assert {each for free in out if isinstance(free, Free) for each in free.refs} >= {finished[0].result.location}


def test_a_pointer_to_a_value_that_is_there_finishes_at_once(one):
    one.done("j1", "x")
    out = one.submit("j2", {}, [], pointers={"p": "x"})
    assert same(out, [Finish("p", one.result("j1", "x")), Close("j2", [])])


def test_a_pointer_waits_for_its_target_and_takes_its_error(one):
    assert one.submit("j2", {}, [], pointers={"p": "x"}) == [Close("j2", [])]
    out = one.tell(Erred("j1", 0, ERROR))
    assert same(out, [Fail("x", ERROR), Fail("p", ERROR), Close("j1", [])])


def test_a_pointer_to_an_unknown_key_finishes_with_the_import(story):
    assert story.submit("j1", {}, [], pointers={"p": "far"}) == [Import("far"), Close("j1", [])]
    (finish,) = story.tell(Imported("far", b"value"))
    assert (finish.key, finish.result.location) == ("p", b"value")


def test_a_pointer_keeps_the_object_when_its_target_is_let_go(one):
    one.submit("j2", {}, [], pointers={"p": "x"})
    one.done("j1", "x")
    assert one.tell(Released("x")) == []
    assert one.tell(Released("p")) == [Free([one.ref("j1", "x")])]


# --- errors


def test_an_erred_task_fails_exactly_the_pending_keys_below_it(story):
    parents = {"a": (), "b": ("a",), "c": ("b",), "d": ("c",), "side": ("a",), "other": ()}
    wanted = ["b", "d", "side", "other"]
    story.submit("j1", parents, wanted)
    story.done("j1", "b")
    _, keys = number(parents, wanted)
    assert story.tell(Erred("j1", keys.index("c"), ERROR)) == [Fail("d", ERROR)], "b is done; side and other go on"
    assert story.done("j1", "side", "other")[-1] == Close(
        "j1", [story.ref("j1", key) for key in ("b", "side", "other")]
    )


def test_an_error_told_twice_fails_once(story):
    story.submit("j1", {"x": (), "y": ()}, ["x", "y"])
    assert story.tell(Erred("j1", 0, ERROR), Erred("j1", 0, ERROR)) == [Fail("x", ERROR)]


def test_an_error_goes_on_to_jobs_that_wait(one):
    one.submit("j2", {"y": ("x",)}, ["y"], externals=["x"])
    one.submit("j3", {"z": ("y",)}, ["z"], externals=["y"])
    failed = [each.key for each in one.tell(Erred("j1", 0, ERROR)) if isinstance(each, Fail)]
    assert failed == ["x", "y", "z"]
    assert one.ledger.jobs == {}


def test_an_error_goes_down_a_line_of_any_length(one):
    """As in ``for _ in range(5000): future = client.submit(step, future)``."""
    before = "x"
    for n in range(5000):
        one.submit(f"k{n}", {f"y{n}": (before,)}, [f"y{n}"], externals=[before])
        before = f"y{n}"
    out = one.tell(Erred("j1", 0, ERROR))
    assert sum(isinstance(each, Fail) for each in out) == 5001
    assert one.ledger.jobs == {}


def test_a_line_of_pointers_of_any_length_is_followed(one):
    before = "x"
    for n in range(5000):
        one.submit(f"k{n}", {}, [], pointers={f"y{n}": before})
        before = f"y{n}"
    assert sum(isinstance(each, Finish) for each in one.done("j1", "x")) == 5001


def test_a_lost_executor_fails_the_jobs_pending_keys_once(story):
    story.submit("j1", {"x": (), "y": (), "z": ()}, ["x", "y", "z"])
    story.tell(Admitted("j1", ["e", "f"]))
    story.done("j1", "x")
    assert story.tell(Lost("j1", "e", ERROR)) == [
        Fail("y", ERROR),
        Fail("z", ERROR),
        Close("j1", [story.ref("j1", "x")]),
    ]
    assert story.tell(Lost("j1", "e", ERROR), Lost("j1", "f", ERROR)) == []


def test_an_executor_that_retired_cannot_be_lost_any_more(one):
    one.tell(Admitted("j1", ["f"]), Retired("j1", "f"))
    assert one.tell(Lost("j1", "f", ERROR)) == [], "Lambda reported a doubled invocation"
    assert one.ledger.keys["x"].pending


def test_a_failed_job_takes_the_error_to_all_its_keys(one):
    assert one.tell(JobFailed("j1", ERROR)) == [Fail("x", ERROR), Close("j1", [])]


# --- what is let go


def test_a_key_released_while_pending_takes_no_result(story):
    story.submit("j1", {"x": (), "y": ()}, ["x", "y"])
    assert story.tell(Released("x")) == []
    assert story.done("j1", "x") == [Free([story.ref("j1", "x")])]


def test_the_last_key_released_closes_the_job(story):
    story.submit("j1", {"x": (), "y": ()}, ["x", "y"])
    assert story.tell(Released("x"), Released("y")) == [Close("j1", [])]


def test_one_of_two_names_of_a_task_may_be_released(story):
    story.submit("j1", {"x": ()}, ["x"], also={"alias": "x"})
    assert story.tell(Released("alias")) == []
    assert story.done("j1", "x") == [Finish("x", story.result("j1", "x")), Close("j1", [story.ref("j1", "x")])]


def test_a_released_value_is_freed_once(one):
    one.done("j1", "x")
    assert one.tell(Released("x")) == [Free([one.ref("j1", "x")])]
    assert one.tell(Released("x")) == []
    assert one.ledger.keys == {}


def test_close_keeps_exactly_what_is_still_held(story):
    story.submit("j1", {"x": (), "y": (), "z": ()}, ["x", "y", "z"])
    story.done("j1", "x", "y")
    story.tell(Released("x"))
    assert story.done("j1", "z")[-1] == Close("j1", [story.ref("j1", "y"), story.ref("j1", "z")])


def test_an_erred_key_released_leaves_nothing(one):
    one.tell(Erred("j1", 0, ERROR))
    assert one.tell(Released("x")) == []
    assert one.ledger.keys == {}


# --- room


def test_refused_starts_are_launched_again_when_an_executor_retires(story):
    story.submit("j1", {"x": (), "y": ()}, ["x", "y"])
    assert story.tell(Admitted("j1", ["e"], [(1, None)])) == []
    assert story.ledger.stalled() == []
    assert story.tell(Retired("j1", "e")) == [Launch("j1", [(1, None)])]


@pytest.mark.parametrize("event", [Room(), Retired("j0", "other")])
def test_refused_starts_are_launched_again_when_there_is_room(one, event):
    one.submit("j2", {"y": ()}, ["y"])
    assert one.tell(Admitted("j2", [], [(0, None)])) == []
    assert one.tell(event) == [Launch("j2", [(0, None)])]
    assert one.tell(Room()) == [], "one attempt at a time"


def test_an_urgent_job_does_not_stand_in_line(one):
    one.submit("j2", {"y": ()}, ["y"])
    one.tell(Admitted("j2", [], [(0, None)]))
    assert one.submit("j3", {"z": ()}, ["z"]) == []
    urgent = dataclasses.replace(submitted("j4", {"u": ()}, ["u"]), urgent=True)
    assert one.tell(urgent) == [Launch("j4", [(0, None)])]
    assert one.tell(Admitted("j4", ["e4"])) == [Launch("j2", [(0, None)])], "those in line may try, as ever"


def test_room_that_appeared_while_a_launch_was_under_way_is_not_forgotten(one):
    """The store refused, then ``e`` retired, then we heard of the second, then of the first."""
    one.submit("j2", {"y": ()}, ["y"])
    one.tell(Retired("j1", "e"))
    assert one.tell(Admitted("j2", [], [(0, None)])) == [Launch("j2", [(0, None)])]


def test_room_for_one_is_not_asked_for_by_everybody(one):
    """A hundred jobs wait; one executor retires: not a hundred requests to the store, of which 99 are refused."""
    for n in range(100):
        if one.submit(f"k{n}", {f"y{n}": ()}, [f"y{n}"]):  # who comes later may wait without asking
            one.tell(Admitted(f"k{n}", [], [(0, None)]))
    asked = one.tell(Retired("j1", "e"))
    assert asked[0] == Launch("k0", [(0, None)]), "the oldest first"
    assert len(asked) < 10
    asked = one.tell(Admitted("k0", ["f"], []))
    assert asked and asked[0].job == "k1", "there may be more room"


# --- patience


def two_wait(story):
    """Jobs j2 of y and j3 of z wait for room where their inputs are."""
    for name, key in (("j2", "y"), ("j3", "z")):
        story.submit(name, {key: ()}, [key])
        story.tell(Admitted(name, [], [], [(0, None)]))


def test_starts_that_wait_for_room_where_their_inputs_are_stand_in_nobodys_way(one):
    one.submit("j2", {"y": (), "z": ()}, ["y", "z"])
    assert one.tell(Admitted("j2", ["f"], [], [(1, None)])) == []
    assert one.submit("j3", {"u": ()}, ["u"]) == [Launch("j3", [(0, None)])]
    assert one.tell(Admitted("j3", ["g"])) == []
    assert one.ledger.stalled() == []
    assert one.tell(Room()) == [Launch("j2", [(1, None)])]
    assert one.tell(Admitted("j2", [], [], [(1, None)])) == [], "nothing has changed"
    assert one.tell(Retired("j1", "e")) == [Launch("j2", [(1, None)])]
    assert one.tell(Admitted("j2", ["h"])) == []
    assert one.tell(Room()) == []


def test_those_who_wait_look_at_new_room_one_after_the_other_before_those_in_line(one):
    two_wait(one)
    one.submit("j4", {"u": ()}, ["u"])
    one.tell(Admitted("j4", [], [(0, None)]))
    assert one.tell(Room()) == [Launch("j2", [(0, None)])]
    assert one.tell(Admitted("j2", [], [], [(0, None)])) == [Launch("j3", [(0, None)])]
    assert one.tell(Admitted("j3", ["f"])) == [Launch("j4", [(0, None)])]
    assert one.tell(Admitted("j4", [], [(0, None)])) == []


def test_room_that_appears_while_those_who_wait_look_is_looked_at_by_all_of_them_after_that(one):
    """However often room appears, everybody has a turn, also those in line."""
    two_wait(one)
    one.submit("j4", {"u": ()}, ["u"])
    one.tell(Admitted("j4", [], [(0, None)]))
    assert one.tell(Room()) == [Launch("j2", [(0, None)])]
    assert one.tell(Room(), Room()) == [], "one at a time"
    assert one.tell(Admitted("j2", [], [], [(0, None)])) == [Launch("j3", [(0, None)])]
    again = one.tell(Admitted("j3", [], [], [(0, None)]))
    assert again == [Launch("j4", [(0, None)]), Launch("j2", [(0, None)])]
    one.tell(Admitted("j4", ["g"]))
    assert one.tell(Admitted("j2", [], [], [(0, None)])) == [Launch("j3", [(0, None)])]
    assert one.tell(Admitted("j3", [], [], [(0, None)])) == []


def test_where_one_who_looks_is_refused_there_is_room_for_nobody(one):
    one.submit("j2", {"y": (), "v": ()}, ["y", "v"])
    one.tell(Admitted("j2", [], [(0, None)], [(1, None)]))
    one.submit("j3", {"z": ()}, ["z"])
    one.tell(Admitted("j3", [], [(0, None)]))
    assert one.tell(Room()) == [Launch("j2", [(0, None), (1, None)])]
    assert one.tell(Admitted("j2", [], [(0, None)], [(1, None)])) == []
    assert one.tell(Room()) == [Launch("j2", [(0, None), (1, None)])]


def test_starts_that_become_ready_while_a_job_looks_are_looked_at_together_after_that(story):
    story.submit("j1", {key: () for key in "uvwx"}, list("uvwx"))
    story.tell(Admitted("j1", ["e"]))
    reads = {f"of {key}": (key,) for key in "uvwx"}
    story.submit("j2", reads, list(reads), externals=list("uvwx"))
    first = story.done("j1", "u")[-1]
    assert story.tell(Admitted("j2", [], [], first.starts)) == []
    second = story.done("j1", "v")[-1]
    assert isinstance(second, Launch) and len(second.starts) == 2
    assert not [each for key in "wx" for each in story.done("j1", key) if isinstance(each, Launch)], "one at a time"
    (third,) = story.tell(Admitted("j2", [], [], second.starts))
    assert third.job == "j2" and len(third.starts) == 4


def test_room_that_appeared_while_somebody_began_to_wait_is_looked_at(one):
    one.submit("j2", {"y": ()}, ["y"])
    one.tell(Retired("j1", "e"))
    assert one.tell(Admitted("j2", [], [], [(0, None)])) == [Launch("j2", [(0, None)])]


def test_who_looks_and_is_given_up_keeps_nobody_from_looking(one):
    two_wait(one)
    one.tell(Room(), Released("y"))
    assert one.tell(Room()) == [Launch("j3", [(0, None)])], "its end makes room"


def test_starts_that_nobody_waits_for_any_more_are_not_launched(story):
    story.submit("j1", {"x": (), "y": ()}, ["x", "y"])
    story.tell(Admitted("j1", ["e"], [(1, None)]))
    story.tell(Released("x"), Released("y"))
    assert story.tell(Room()) == []


# --- late, and stalled


LATE = [
    Admitted("j1", ["f"]),
    Admitted("j1", [], [(0, None)]),
    Erred("j1", 0, ERROR),
    Delegating("j1", ["f"]),
    Retired("j1", "e"),
    Lost("j1", "e", ERROR),
    JobFailed("j1", ERROR),
    Room(),
    Released("never known"),
    ImportFailed("never known", ERROR),
]


@pytest.mark.parametrize("event", LATE, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("end", ["done", "released", "erred"])
def test_late_events_of_a_closed_job_do_nothing(one, event, end):
    if end == "done":
        one.done("j1", "x")
    else:
        one.tell(Released("x") if end == "released" else Erred("j1", 0, ERROR))
    known = dict(one.ledger.keys)
    assert one.tell(event) == []
    assert one.ledger.keys == known and one.ledger.jobs == {}


def test_a_late_result_of_a_closed_job_is_freed(one):
    one.tell(Released("x"))
    assert one.done("j1", "x") == [Free([one.ref("j1", "x")])]


def test_a_job_that_nobody_works_on_is_stalled(one):
    assert one.ledger.stalled() == []
    one.tell(Retired("j1", "e"))
    assert one.ledger.stalled() == ["j1"]


def test_executors_heard_of_late_or_early_count_right(one):
    one.tell(Delegating("j1", ["f"]), Retired("j1", "e"))
    assert one.ledger.stalled() == [], "f is at work"
    one.tell(Retired("j1", "g"), Retired("j1", "f"), Delegating("j1", ["g"]))
    assert one.ledger.stalled() == ["j1"], "g had ended before we heard that it began"


@pytest.mark.fault(24)
def test_data_that_is_kept_has_a_place_before_anybody_asks():
    ledger = Ledger()
    kept = Ref("exports/1", -1, 100_000)
    assert ledger.handle(Kept("data", kept)) == []
    assert ledger.held() == [kept]
    out = ledger.handle(submitted("j1", {"x": ("data",)}, ["x"], externals=["data"]))
    assert [type(each) for each in out] == [Launch]  # nobody is asked for it
    assert ledger.handle(Kept("data", Ref("exports/2", -1, 100_000))) == [Free([Ref("exports/2", -1, 100_000)])]
    assert ledger.handle(Released("data")) == []  # the job may read it once more
    out = ledger.handle(Released("x"))
    assert Free([kept]) in out and ledger.held() == []


def test_what_is_held_is_known_by_the_job_that_made_it():
    ledger = Ledger()
    refs = [Ref(name, 0, 100_000) for name in ("j1/0/a/1", "j10/0/a/1", "exports/1")]
    for kept in refs:
        ledger.handle(Kept(kept.name, kept))
    assert ledger.held_of("j1") == refs[:1] and ledger.held_of("j2") == []
    assert all(map(ledger.holds, refs))
    ledger.handle(Released("j1/0/a/1"))
    assert ledger.held_of("j1") == [] and not ledger.holds(refs[0])
