"""The promises of `lambda_worker.ports` about executors that linger, and what is sent to them.

``a`` retires and lingers under the name ``room``; ``b`` is who comes by mail.
"""

import threading
import time

from lambda_worker.core.schedule import Assignment
from lambda_worker.ports import Lingering, Standing, Succession
from tests.waiting import until

LONG = 60.0
MAIL = b"mail"


def record(executor, attempt=1, starts=(0,)):
    return Assignment("job", executor, attempt, list(starts))


def lingering(store, *names, seconds=LONG):
    """Open a job; an executor of each name retires, in this order, and lingers under it."""
    store.open_job("job", {0: b"segment"})
    assert store.admit([record(name) for name in names], None) == len(names)
    for name in names:
        assert store.arrive("job", name, 1, retire=True, lingering=Lingering(name, seconds)).retired


def post(store, *executors, mail=MAIL, ceiling=None):
    return store.admit_and_post([record(each) for each in executors], [mail] * len(executors), ceiling)


def test_who_lingers_takes_the_mail_of_a_new_record(store):
    lingering(store, "room")
    assert post(store, "b") == ["room"]
    assert store.recall("job", "b") is not None
    assert store.take_mail("room", LONG) == MAIL


def test_whoever_finds_nobody_is_to_be_invoked(store):
    lingering(store)
    assert post(store, "b", "c") == ["", ""]


def test_each_mail_goes_to_another_one_the_latest_first(store):
    lingering(store, "early", "late")
    assert post(store, "b", "c", "d") == ["late", "early", ""]


def test_who_is_preferred_gets_the_mail_if_it_lingers(store):
    lingering(store, "one", "two", "three")
    records = [record(each) for each in "bcde"]
    preferred = ["two", "", "elsewhere", "two"]
    assert store.admit_and_post(records, [MAIL] * 4, None, False, preferred) == ["two", "three", "one", ""]
    assert store.take_mail("two", LONG) == MAIL


def test_who_lingers_is_for_whom_it_is_preferred_even_if_that_one_comes_last(store):
    """Whoever came first would read elsewhere what is there, and so would that one."""
    lingering(store, "one", "two")
    records = [record(each) for each in "bcde"]
    preferred = ["gone", "", "two", "one"]
    assert store.admit_and_post(records, [MAIL] * 4, None, False, preferred) == ["", "", "two", "one"]


def test_who_is_preferred_for_mail_is_not_sent_away_by_what_is_invoked(store):
    lingering(store, "one", "two")
    records = [record(each) for each in "bc"]
    assert store.admit_and_post(records, [b"", MAIL], None, False, ["one", "one"]) == ["", "one"]


def test_who_was_preferred_for_what_found_no_room_lingers_still(store):
    lingering(store, "one")
    records = [record(each) for each in "bc"]
    assert store.admit_and_post(records, [MAIL] * 2, 1, False, ["gone", "one"]) == [""]
    assert post(store, "d") == ["one"]


def test_who_is_preferred_is_not_sent_away_for_what_is_invoked(store):
    lingering(store, "one", "two")
    assert store.admit_and_post([record("b")], [b""], None, False, ["one"]) == [""]
    assert post(store, "c") == ["one"], "the other one was sent away"


def test_mail_wakes_who_waits_for_it(make_store):
    proxy, sandbox = make_store(), make_store()
    lingering(proxy, "room")
    taken = []
    thread = threading.Thread(target=lambda: taken.append(sandbox.take_mail("room", LONG)))
    thread.start()
    assert post(proxy, "b") == ["room"]
    thread.join(10)
    assert taken == [MAIL]


def test_who_has_left_is_sent_nothing(store):
    lingering(store, "room")
    assert store.take_mail("room", 0.01) == b""
    assert post(store, "b") == [""]


def test_mail_of_the_last_moment_is_taken(store):
    """1. Nothing comes for as long as it lingers; 2. mail is sent; 3. it leaves, and finds the mail."""
    lingering(store, "room")
    assert post(store, "b") == ["room"]
    assert store.take_mail("room", 0.0) == MAIL


def test_whose_time_is_over_is_sent_nothing_even_if_it_has_not_left(store):
    lingering(store, "room", seconds=0.001)
    begun = time.monotonic()
    until(lambda: time.monotonic() - begun > 0.005)
    assert post(store, "b") == [""]


def test_a_record_without_mail_sends_one_away(store):
    lingering(store, "room", "roomy")
    assert store.admit([record("b")], None) == 1
    assert store.take_mail("roomy", LONG) == b""
    assert post(store, "c") == ["room"]


def test_no_mail_above_the_ceiling(store):
    lingering(store, "room")
    assert post(store, "b", "c", ceiling=1) == ["room"]
    assert store.recall("job", "c") is None


def test_a_repeated_call_sends_nothing_twice_and_hears_the_same(store):
    lingering(store, "room", "roomy")
    assert post(store, "b") == ["roomy"]
    assert post(store, "b") == ["roomy"]
    assert store.take_mail("roomy", LONG) == MAIL
    assert post(store, "c") == ["room"]


def test_an_executor_that_delegates_sends_mail_too(store):
    lingering(store, "room")
    store.admit_and_post([record("giver", starts=(0, 1))], [MAIL], None)
    store.take_mail("room", LONG)
    assert store.arrive("job", "giver", 1, lingering=Lingering("giver", LONG)).standing is Standing.OK  # not retired
    assert store.delegate_and_post("job", "giver", 1, [record("b", starts=(1,))], [MAIL], 10) == [""]
    lingering(store, "another")
    assert store.delegate_and_post("job", "giver", 1, [record("c", starts=(0,))], [MAIL], 10) == ["another"]
    assert store.delegate_and_post("job", "nobody", 1, [record("d")], [MAIL], 10) == []


def test_mail_that_nobody_took_is_taken_back_once_and_for_all(store):
    lingering(store, "room")
    post(store, "b")
    assert store.take_back("room") == MAIL
    assert store.take_back("room") == MAIL  # asked again, because the reply was lost
    assert store.take_mail("room", 0.01) == b""


def test_mail_that_was_taken_is_not_taken_back(store):
    lingering(store, "room")
    post(store, "b")
    store.take_mail("room", LONG)
    assert store.take_back("room") == b""


def test_mail_whose_way_out_broke_is_found_again(make_store):
    """Its connection breaks after the server has moved the mail: the repetition finds it, and does not wait."""
    store = make_store()
    lingering(store, "room")
    post(store, "b")
    assert store.take_mail("room", LONG) == MAIL
    assert store.take_mail("room", 0.01) == MAIL
    # Who lingers again has done with it.
    assert store.arrive("job", "b", 1, retire=True, lingering=Lingering("room", LONG)).retired
    assert store.take_mail("room", 0.01) == b""


def test_who_is_fenced_succeeded_or_has_no_time_does_not_linger(store):
    lingering(store)
    store.admit([record("a"), record("b")], None)
    assert not store.arrive("job", "nobody", 1, retire=True, lingering=Lingering("nobody", LONG)).retired
    assert store.arrive("job", "a", 1, retire=True, lingering=Lingering("a", 0.0)).retired
    succession = Succession(record("c"), b"events")
    assert store.arrive("job", "b", 1, retire=True, succession=succession).retired
    assert post(store, "d") == [""]


def test_all_are_sent_home_and_who_is_at_work_will_not_linger(store):
    lingering(store, "room", "roomy")
    post(store, "b")  # takes `roomy`
    store.send_home()
    assert store.take_mail("room", LONG) == b""
    assert store.arrive("job", "b", 1, retire=True, lingering=Lingering("roomy", LONG)).retired
    assert post(store, "c") == [""]
    assert store.arrive("job", "c", 1, retire=True, lingering=Lingering("c", LONG)).retired  # it came afterwards
    assert post(store, "d") == ["c"]


def test_what_is_left_of_mail_is_nothing(store):
    lingering(store, "room")
    before = store.usage()["store_keys"]
    post(store, "b")
    store.take_mail("room", LONG)
    store.arrive("job", "b", 1, retire=True, lingering=Lingering("room", LONG))
    store.take_mail("room", 0.01)
    assert store.usage()["store_keys"] <= before
