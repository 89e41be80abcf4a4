"""Which starts wait for the sandbox that has their inputs, for how long, and that nobody waits for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_serverless.patience import STARTS_MAX, WAITING_MAX, WORTH_SECONDS, Patience
from dask_serverless.whereabouts import Whereabouts
from lambda_worker.core.policy import Policy
from lambda_worker.core.wire import Ref

MB = 10**6
POLICY = Policy(bytes_per_second=100e6)


def ref(writer: str, nbytes: int = 100 * MB, job: str = "x", task: int = 7) -> Ref:
    return Ref(f"{job}/{task}/{writer}/1", 0, nbytes)


def numbers(starts):
    return [start for start, _ in starts]


class Story:
    """Two sandboxes: what `a` wrote is in A, and what `b` wrote is in B; these linger, or are at work."""

    def __init__(self, policy: Policy = POLICY) -> None:
        self.live: set[str] = set()
        self.whereabouts = Whereabouts()
        self.patience = Patience(policy, self.whereabouts, lambda job, executor: executor in self.live)
        for name in "ab":
            self.ended(name)

    def ended(self, name: str) -> None:
        self.whereabouts.retired("x", name, name.upper(), f"x/{name}/1")
        self.whereabouts.ended("other", name)

    def busy(self, name: str) -> None:
        self.whereabouts.posted(f"x/{name}/1", "other", name)

    def choose(self, starts, children=None, now=0.0, job="y", room=True, sent=True):
        choice = self.patience.choose(job, children or [[99]] * 100, starts, now, lambda: room)
        if sent:
            self.patience.sent(choice)
        return choice


@pytest.fixture
def story():
    return Story()


def test_where_nobody_is_at_work_all_begin_at_once_each_where_its_input_is(story):
    choice = story.choose([(0, ref("a")), (1, ref("b")), (2, ref("stranger"))])
    assert numbers(choice.now) == [0, 1, 2] and not choice.later
    assert choice.near == {0: "A", 1: "B", 2: "B"}  # what is nowhere goes along


def test_who_has_its_input_where_somebody_is_at_work_waits_no_longer_than_it_takes_to_read(story):
    story.busy("b")
    starts = [(0, ref("a")), (1, ref("b")), (2, ref("b"))]
    choice = story.choose(starts, now=5.0)
    assert (numbers(choice.now), choice.near, numbers(choice.later)) == ([0], {0: "A"}, [1, 2])
    assert choice.seconds == pytest.approx(2.001)
    assert (choice.begins, choice.nbytes) == (True, 200 * MB)
    choice = story.choose(choice.later, now=6.0)
    assert (choice.now, choice.seconds, choice.begins) == ([], pytest.approx(1.001), False)
    choice = story.choose(choice.later, now=7.1)
    assert (numbers(choice.now), choice.near, choice.later) == ([1, 2], {}, [])


def test_as_soon_as_it_is_free_it_goes_there(story):
    story.busy("b")
    later = story.choose([(1, ref("b"))]).later
    story.ended("b")
    choice = story.choose(later, now=0.5)
    assert (numbers(choice.now), choice.near) == ([1], {1: "B"})
    story.busy("b")
    assert story.choose(later, now=10.0).later, "who waits once more has not waited before"


def test_before_there_is_room_nobodys_patience_runs_out(story):
    story.busy("b")
    starts = [(0, ref("a")), (1, ref("b"))]
    for now in (0.0, 5.0):
        choice = story.choose(starts, now=now, room=False)
        assert (numbers(choice.now), choice.near, numbers(choice.later)) == ([0], {0: "A"}, [1])
        assert choice.seconds == 0 and choice.begins == (now == 0.0)
    assert story.choose(choice.later, now=5.5).seconds == pytest.approx(1.001)
    assert story.choose(choice.later, now=6.0, room=False).later, "it goes on from then"
    assert numbers(story.choose(choice.later, now=6.6).now) == [1]


def test_a_look_at_some_of_those_who_wait_changes_nothing_for_the_others(story):
    story.busy("a")
    story.busy("b")
    assert story.choose([(0, ref("a")), (1, ref("b"))], now=0.0).begins
    choice = story.choose([(2, ref("b"))], now=0.9)
    assert choice.later and not choice.begins
    assert numbers(story.choose([(0, ref("a"))], now=1.1).now) == [0]


def test_who_has_waited_in_vain_does_not_wait_for_the_same_again(story):
    story.busy("b")
    assert story.choose([(0, ref("b"))], now=0.0).later
    assert story.choose([(0, ref("b"))], now=2.0).now
    assert story.choose([(1, ref("b"))], now=2.1).now
    story.ended("b")
    assert story.choose([(2, ref("b"))], now=2.2).near == {2: "B"}
    story.busy("b")
    assert story.choose([(3, ref("b"))], now=2.3).later


def test_of_more_starts_than_can_be_looked_at_none_waits(story):
    story.busy("b")
    starts = [(number, ref("b")) for number in range(STARTS_MAX + 1)]
    children = [[STARTS_MAX + 1]] * len(starts)
    assert story.choose(starts[1:], children).later
    assert len(story.choose(starts, children).now) == len(starts)
    assert repr(story.patience) == "<Patience of 0 of 1 jobs>"


def test_who_has_written_it_and_is_still_at_work_has_it(story):
    story.live.add("c")
    assert numbers(story.choose([(0, ref("c"))]).later) == [0]
    story.live.discard("c")  # it ended, or died, and said nothing
    assert numbers(story.choose([(0, ref("c"))]).now) == [0]


def test_the_dead_are_not_waited_for(story):
    story.busy("b")
    story.whereabouts.died("x/b/1")
    choice = story.choose([(0, ref("b"))])
    assert (numbers(choice.now), choice.near) == ([0], {})


def test_small_inputs_go_along_with_the_large_ones_next_to_them(story):
    story.busy("b")
    small = 1 * MB
    starts = [(0, ref("a")), (1, ref("b", small)), (5, ref("b")), (6, ref("a", small))]
    choice = story.choose(starts)
    assert (numbers(choice.now), numbers(choice.later)) == ([0, 1], [5, 6])
    assert choice.near == {0: "A", 1: "A"}


def test_also_if_they_come_later(story):
    assert numbers(story.choose([(0, ref("a")), (5, ref("b"))]).now) == [0, 5]
    story.busy("b")
    choice = story.choose([(1, ref("b", MB)), (6, ref("a", MB))])
    assert (numbers(choice.now), choice.near, numbers(choice.later)) == ([1], {1: "A"}, [6])
    assert choice.seconds == pytest.approx(1.001)  # what is next to it would have to be read


def test_what_was_large_among_small_ones_is_small_among_large_ones(story):
    assert story.choose([(5, ref("b", 10 * MB))]).near == {5: "B"}
    assert story.choose([(4, ref("a", 100 * MB))]).near == {4: "A"}
    assert story.choose([(6, ref("b", 10 * MB))]).near == {6: "A"}


def test_what_others_need_as_well_waits_for_nobody(story):
    story.busy("b")
    children = [[10], [10, 11], [11], [11], []]
    choice = story.choose([(0, ref("a")), (1, None), (2, ref("b")), (3, None), (4, None)], children)
    assert (numbers(choice.now), numbers(choice.later)) == ([0, 1, 4], [2, 3])
    assert choice.near == {0: "A", 1: "A", 4: "A"}


@pytest.mark.parametrize(
    "policy", [Policy(bytes_per_second=100e6, group=False), Policy(bytes_per_second=100 * MB / WORTH_SECONDS * 2)]
)
def test_for_little_nobody_waits_nor_where_tasks_do_not_stay_with_their_inputs(policy):
    story = Story(policy)
    story.busy("b")
    choice = story.choose([(0, ref("b"))])
    assert (numbers(choice.now), choice.later) == ([0], ())


def test_where_somebody_is_just_being_sent_nobody_else_is(story):
    starts = [(0, ref("b"))]
    first = story.choose(starts, job="j1", sent=False)
    assert first.near == {0: "B"}
    assert story.choose(starts, job="j2").later
    assert story.choose([(1, ref("b"))], job="j1").later
    story.patience.sent(first)
    assert story.choose(starts, job="j2").near == {0: "B"}


def test_only_so_many_jobs_wait(story):
    story.busy("b")
    for number in range(WAITING_MAX):
        assert story.choose([(0, ref("b"))], job=f"j{number}").later
    assert story.choose([(0, ref("b"))], job="one more").now
    assert repr(story.patience) == f"<Patience of {WAITING_MAX} of {WAITING_MAX + 1} jobs>"
    story.patience.forget("j0")
    assert story.choose([(0, ref("b"))], job="one more").later
    assert story.choose([(0, ref("b"))], job="j1", now=9.0).now
    assert story.choose([(0, ref("b"))], job="and another").later, "who has waited for long enough waits no more"


INPUTS = st.none() | st.builds(
    ref, st.sampled_from(["a", "b", "c", "stranger"]), st.sampled_from([1, MB, 10 * MB, 100 * MB])
)


@given(
    st.dictionaries(st.integers(0, 30), INPUTS, min_size=1),
    st.lists(st.lists(st.integers(31, 35), max_size=3), min_size=31, max_size=31),
    st.sets(st.sampled_from("ab")),
)
def test_each_start_begins_once_and_in_time(starts, children, busy):
    story = Story()
    story.live.add("c")
    for name in busy:
        story.busy(name)
    waiting, now, begun = list(starts.items()), 0.0, []
    all_of_it = POLICY.travel_seconds(sum(value.nbytes for value in starts.values() if value is not None))
    for _ in range(2 + len(starts)):
        choice = story.choose(waiting, children, now)
        assert sorted(numbers([*choice.now, *choice.later])) == sorted(numbers(waiting))
        assert choice.near.keys() <= set(numbers(choice.now))
        assert not set(choice.near.values()) & {name.upper() for name in busy}
        begun += numbers(choice.now)
        if not choice.later:
            break
        assert 0 < choice.seconds
        waiting, now = choice.later, now + choice.seconds + 1e-9
    assert sorted(begun) == sorted(starts)
    assert now <= all_of_it + 1e-6
