"""What is learned of key prefixes: executors observe, the proxy adds up, the next job begins by it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from dask.utils import key_split
from hypothesis import given
from hypothesis import strategies as st

from dask_serverless.beginnings import JOBS_MAX, Beginnings
from dask_serverless.config import Settings
from dask_serverless.experience import REPORTING_JOBS_MAX, TOLD_TASKS_MIN, Experience, share_expected
from dask_serverless.plan import Sharing
from dask_serverless.plan.prefixes import OTHERS, Prefixes, number_prefixes
from dask_serverless.statistics import MEMORY_TASKS, Expectation, Learned, Statistics
from lambda_worker.core.observed import REPORT_SECONDS, SHORT_EVERY, SHORT_SECONDS, Observed
from lambda_worker.core.policy import Policy
from lambda_worker.core.schedule import PREFIXES_MAX, SEGMENT_TASKS, Assignment, Edges

SHORT = SHORT_SECONDS / 10


# -- prefixes -------------------------------------------------------------------------------------


def prefix_of_each(prefixes, tasks):
    found = []
    for run in prefixes.runs:
        whole = run or [0, min(SEGMENT_TASKS, tasks - len(found))]
        for number, count in zip(whole[::2], whole[1::2], strict=True):
            found += [number] * count
    return [prefixes.names[number] for number in found]


names = st.sampled_from(["inc", "add-chunk", "read", "x"])
tokens = st.sampled_from(["0" * 8, "5f" * 16, "a1" * 16, "123e4567-e89b-12d3-a456-426614174000"])
made_keys = st.builds("{}-{}".format, names, tokens)
keys_of_any_kind = st.one_of(
    made_keys, st.tuples(made_keys, st.integers(0, 9)), st.text(min_size=1), st.integers(), st.binary(min_size=1)
)


def split(key):
    try:
        return key_split(key)
    except Exception:
        return "Other"


@given(st.lists(keys_of_any_kind, max_size=20), st.integers(1, 100))
def test_prefixes_are_those_of_dask(keys, times):
    keys = keys * times
    prefixes = number_prefixes(keys, split)
    assert prefix_of_each(prefixes, len(keys)) == [split(key[0] if isinstance(key, tuple) else key) for key in keys]
    assert sum(prefixes.counts) == len(keys)


def test_a_key_is_split_once_if_only_its_token_is_new():
    asked = []

    def counting(key):
        asked.append(key)
        return key_split(key)

    keys = [f"{'inc' if number % 2 else 'sum'}-{number:032x}" for number in range(1000)]
    prefixes = number_prefixes(keys, counting)
    assert (prefixes.names, prefixes.counts) == (["sum", "inc"], [500, 500])
    assert len(asked) == 2


def test_too_many_prefixes_become_one():
    prefixes = number_prefixes([f"name{chr(97 + n % 26)}{chr(97 + n // 26)}-1" for n in range(200)], key_split)
    assert len(prefixes.names) == PREFIXES_MAX
    assert prefixes.names[-1] == OTHERS
    assert prefixes.counts[-1] == 200 - (PREFIXES_MAX - 1)


def test_what_is_not_run_is_not_counted():
    prefixes = number_prefixes(["x-1", "inc-1", "inc-2", "x-2"], key_split, externals={0, 3})
    assert dict(zip(prefixes.names, prefixes.counts, strict=True)) == {"x": 0, "inc": 2}


def test_a_job_of_one_prefix_carries_nothing():
    prefixes = number_prefixes([("inc-1", number) for number in range(1000)], key_split)
    assert prefixes.runs == [[]] * 4
    edges = Edges(0, [[]], [[]])
    assert len(edges.to_bytes()) < len(Edges(0, [[]], [[]], prefixes=[1, 1]).to_bytes())


@pytest.mark.parametrize("classes", [{}, {1: 2}])
@pytest.mark.parametrize("prefixes", [(), [0, 1, 3, 1]])
def test_edges_carry_prefixes(classes, prefixes):
    edges = Edges(0, [[], []], [[], []], classes=classes, prefixes=prefixes)
    again = Edges.from_bytes(edges.to_bytes())
    assert (again.classes, list(again.prefixes)) == (classes, list(prefixes))


def test_an_assignment_carries_what_was_learned():
    assignment = Assignment("j", "e", 1, [0], learned={3: (0.5, 100.0)}, settle=2.5)
    again = Assignment.from_bytes(assignment.to_bytes())
    assert (again.learned, again.settle) == ({3: [0.5, 100.0]}, 2.5)


# -- what an executor observes --------------------------------------------------------------------


def observed_of(*runs, learned=None):
    tasks = sum(runs[1::2])
    return Observed({0: Edges(0, [[]] * tasks, [[]] * tasks, prefixes=runs)}, learned or {})


def test_long_tasks_are_all_observed_by_prefix():
    observed = observed_of(0, 3, 1, 2)
    for task, seconds in enumerate([9.0, 1.0, 3.0, 0.5, 0.5]):
        assert observed.note(task, seconds, nbytes=10 * task, now=0.0)
    assert observed.take() == {0: [2, 4.0, 10.0, 30, 500, 0], 1: [2, 1.0, 0.5, 70, 2500, 0]}


def test_of_short_tasks_one_counts_for_many():
    observed = observed_of(0, 256)
    noted = sum(observed.note(task, SHORT, 0, 0.0) for task in range(200))
    assert noted == 2 + (200 - 2) // SHORT_EVERY
    (sums,) = observed.take().values()
    assert 200 - SHORT_EVERY <= sums[0] < 200
    assert math.isclose(sums[1] / sums[0], SHORT)


def test_a_long_task_among_short_ones_is_seen():
    observed = observed_of(0, 100, 1, 1)
    for task in range(100):
        observed.note(task, SHORT, 0, 0.0)
    assert observed.note(100, 5.0, 0, 0.0)
    assert observed.take()[1] == [1, 5.0, 25.0, 0, 0, 0]


def test_the_first_task_counts_only_if_there_is_no_other():
    observed = observed_of(0, 1, 1, 1)
    observed.note(0, 2.0, 0, 0.0)
    observed.note(1, 1.0, 0, 0.0)
    assert observed.take() == {0: [1, 2.0, 4.0, 0, 0, 1], 1: [1, 1.0, 1.0, 0, 0, 0]}
    assert observed.take() == {}


def test_the_last_short_task_counts_if_no_other_of_its_prefix_did():
    observed = observed_of(0, 10, 1, 1)
    for task in range(11):
        observed.note(task, SHORT, 0, 0.0)
    assert observed.take()[1][:2] == [1, SHORT]


def test_who_runs_for_long_is_due_to_report():
    observed = observed_of(0, 10)
    observed.note(0, 1.0, 0, now=100.0)
    observed.note(1, 1.0, 0, now=101.0)
    assert not observed.due
    observed.note(2, 1.0, 0, now=100.0 + REPORT_SECONDS)
    assert observed.due
    observed.take()
    assert not observed.due
    observed.note(3, 1.0, 0, now=101.0 + REPORT_SECONDS)
    assert not observed.due


def test_what_was_learned_stands_until_a_task_of_the_prefix_has_run_here():
    observed = observed_of(0, 10, 1, 10, learned={0: (2.0, 50.0), 1: (3.0, 0.0)})
    assert observed.seconds([0, 10]) == 5.0
    assert observed.nbytes(0) == 50.0
    observed.note(0, 0.001, 0, 0.0)  # as fast as that: the others will be, too
    assert observed.seconds([1, 10]) == 3.001


def test_a_slow_first_task_does_not_make_the_others_slow():
    observed = observed_of(0, 10, learned={0: (0.001, 0.0)})
    observed.note(0, 2.0, 0, 0.0)
    assert observed.seconds([1]) == 0.001
    observed.note(1, 2.0, 0, 0.0)  # but a second one does
    assert observed.seconds([2]) > 0.4


def test_tasks_of_an_unknown_prefix_take_as_long_as_others_did():
    observed = observed_of(0, 10, 1, 10)
    assert observed.seconds([1, 11]) == 0.0
    observed.note(0, 2.0, 0, 0.0)
    assert observed.seconds([1, 11, 300]) == 6.0  # 300: its segment is not here
    assert observed.known() == {0: (2.0, 0)}


def test_the_estimate_for_many_tasks_looks_at_few():
    class Counting(dict):
        looks = 0

        def get(self, *args):
            Counting.looks += 1
            return super().get(*args)

    tasks = 256
    here = Counting({0: Edges(0, [[]] * tasks, [[]] * tasks, prefixes=[0, 128, 1, 128])})
    observed = Observed(here, {0: (1.0, 0.0), 1: (3.0, 0.0)})
    assert observed.seconds(range(tasks)) == 128 + 3 * 128
    assert Counting.looks <= 8


# -- what the proxy keeps -------------------------------------------------------------------------


def sums(tasks, seconds, nbytes=0.0, first_only=0):
    return [tasks, tasks * seconds, tasks * seconds**2, tasks * nbytes, tasks * nbytes**2, first_only]


def test_reports_add_up():
    statistics = Statistics()
    statistics.take("inc", sums(3, 1.0))
    statistics.take("inc", sums(1, 5.0, 400.0))
    learned = statistics.of("inc")
    assert (learned.tasks, learned.seconds, learned.nbytes) == (4, 2.0, 100.0)
    assert math.isclose(learned.seconds_spread, math.sqrt(3))


def test_the_past_fades():
    statistics = Statistics()
    statistics.take("inc", sums(1_000_000, 1.0))
    statistics.take("inc", sums(MEMORY_TASKS, 3.0))
    assert statistics.of("inc").seconds == 2.0


def test_a_first_task_only_counts_until_others_are_known():
    statistics = Statistics()
    statistics.take("inc", sums(1, 4.0, first_only=1))
    assert statistics.of("inc").first_only
    statistics.take("inc", sums(1, 2.0, first_only=1))
    assert statistics.of("inc").seconds == 3.0
    statistics.take("inc", sums(1, 0.5))
    assert statistics.of("inc").seconds == 0.5
    statistics.take("inc", sums(1, 4.0, first_only=1))
    assert statistics.of("inc").seconds == 0.5


def test_prefixes_are_bounded_and_those_used_last_stay():
    statistics = Statistics(prefixes_max=2)
    for name in ["a", "b"]:
        statistics.take(name, sums(1, 1.0))
    assert statistics.of("a")
    statistics.take("c", sums(1, 1.0))
    assert len(statistics) == 2
    assert statistics.of("b") is None
    assert statistics.of("a") and statistics.of("c")


@pytest.mark.parametrize("prefix, tasks", [(OTHERS, 3), ("inc", 0)])
def test_nothing_is_learned_from(prefix, tasks):
    statistics = Statistics()
    statistics.take(prefix, sums(tasks, 1.0))
    assert len(statistics) == 0


# -- how a job begins -----------------------------------------------------------------------------

STARTS = Prefixes(["inc", "sum"], [64, 1], [[0, 64, 1, 1]])


def begun(seconds, job="j2", starts=64, places=8, prefixes=STARTS, spread=()):
    experience = Experience()
    for name, each in seconds.items():
        experience.statistics.take(name, sums(100, each))
    for name, tasks, each in spread:
        experience.statistics.take(name, sums(tasks, each))
    experience.log.begin(job, sum(prefixes.counts), ["key"])
    experience.begin(job, prefixes)
    return experience, experience.share_out(job, starts, 64, places).groups


def test_without_experience_every_start_may_be_long():
    assert begun({})[1] == 8


def test_a_job_known_to_be_tiny_begins_with_one_executor():
    assert begun({"inc": 1e-5, "sum": 1e-5})[1] == 1


def test_a_job_known_to_be_long_begins_with_all():
    assert begun({"inc": 1.0, "sum": 1e-5})[1] == 8


def test_each_task_of_which_nothing_is_known_may_be_long():
    assert begun({"inc": 1e-5})[1] == 1
    many = Prefixes(["inc", "new"], [64, 5], [[0, 64, 1, 5]])
    assert begun({"inc": 1e-5}, prefixes=many)[1] == 5


def test_a_prefix_that_means_different_things_is_not_trusted_to_be_short():
    short_and_long = [("inc", 900, 1e-5), ("inc", 2, 10.0)]
    experience, executors = begun({"sum": 1e-5}, spread=short_and_long)
    assert experience.statistics.of("inc").seconds < 0.03
    assert executors == 8


def test_ten_thousand_tasks_that_do_nothing_are_work_as_well():
    nothing = Prefixes(["inc", "sum"], [5_000, 5_000], [[0, 5_000, 1, 5_000]])
    assert begun({"inc": 1e-9, "sum": 1e-9}, prefixes=nothing)[1] == 5


def test_the_work_below_the_starts_counts():
    below = Prefixes(["inc", "fit"], [64, 64], [[0, 64, 1, 64]])
    assert begun({"inc": 1e-5, "fit": 0.1}, prefixes=below)[1] == 8


def test_some_of_the_starts_are_worth_a_part():
    def executors(seconds, starts):
        expected = Expectation(seconds, 0, 0.02, {0: Learned(64, seconds / 64, 0, 0, 0)}, tasks=64)
        return share_expected(expected, STARTS, starts, all_starts=64, places=1000).groups

    assert executors(1.28, starts=64) == 64
    assert executors(1.28, starts=8) == 8
    assert executors(0.64, starts=8) == 4


def test_how_a_job_began_is_in_its_log_with_the_numbers():
    experience, _ = begun({"inc": 0.5})
    (sample,) = experience.log.last.samples
    assert sample.numbers == {
        "executors": 8,
        "starts": 64,
        "places": 8,
        "seconds": 32.0,
        "unknown_tasks": 1,
        "start_seconds": 0.0,
    }


def test_executors_are_told_what_is_known_by_number_unless_the_job_is_small():
    experience, _ = begun({"sum": 2.0})
    assert experience.told("j2") == {1: (2.0, 0.0)}
    experience.begin("small", Prefixes(["sum"], [TOLD_TASKS_MIN - 1], [[]]))
    assert experience.told("small") == {}
    assert experience.told("an errand") == {}


def test_a_report_is_learned_from_and_names_tasks_by_key():
    experience = Experience()
    experience.log.begin("j1", 65, ["key"])
    experience.begin("j1", STARTS)
    report = [{1: sums(2, 3.0)}, {"store": 1}, [["store", 1, {"task": 7, "nbytes": 5}]], 1.0]
    experience.take("j1", "e1", report, 5.0, lambda job, task: f"{job}:{task}")
    assert experience.statistics.of("sum").seconds == 3.0
    page = experience.log.job("j1")
    assert page.observed == {"sum": (2.0, 3.0, 0.0)}
    assert page.samples[0].numbers == {"key": "j1:7", "nbytes": 5}


def test_a_report_of_a_job_that_nobody_remembers_is_no_harm():
    experience = Experience()
    experience.take("gone", "e1", [{0: sums(1, 1.0)}, {}, [], 1.0], 5.0)
    assert len(experience.statistics) == 0


def test_jobs_are_forgotten_in_time():
    experience = Experience()
    for number in range(2 * REPORTING_JOBS_MAX):
        experience.begin(f"j{number}", STARTS)
    assert not experience.knows("j0")
    assert len(experience._prefixes) == REPORTING_JOBS_MAX


# -- when executors begin ---------------------------------------------------------------------------


def began(beginnings, job, times, executors=None):
    names = [f"1-{number}" for number in range(executors or len(times))]
    beginnings.expect(job, names)
    for name, at in zip(names, times, strict=False):
        beginnings.began(job, name, at)
        beginnings.began(job, name, 100.0)  # later reports of the same executor say nothing new


def test_how_fast_executors_begin_is_learned_from_jobs_whose_executors_were_all_heard():
    beginnings = Beginnings()
    began(beginnings, "j1", [1.0 + 0.01 * number for number in range(7)])
    began(beginnings, "j2", [1.0 + 0.01 * number for number in range(10)], executors=11)
    assert beginnings.seconds == 0.0  # too few, and one that was never heard
    began(beginnings, "j3", [1.0 + 0.02 * number for number in range(10)])
    assert math.isclose(beginnings.seconds, 0.02)
    began(beginnings, "j4", [3.0] * 10)
    assert math.isclose(beginnings.seconds, 0.01)
    beginnings.began("j4", "1-3", 9.0)
    beginnings.began("nobody's", "1-3", 9.0)
    assert math.isclose(beginnings.seconds, 0.01)


def test_new_sandboxes_say_nothing_of_those_that_are_warm():
    beginnings = Beginnings()
    began(beginnings, "j1", [*(1.0 + number for number in range(30)), *[None] * 4])
    assert beginnings.seconds == 0.0
    began(beginnings, "j2", [*(1.0 + 0.01 * number for number in range(30)), *[None] * 3])
    assert math.isclose(beginnings.seconds, 0.01)


def test_jobs_that_are_never_heard_of_are_forgotten():
    beginnings = Beginnings()
    for number in range(JOBS_MAX + 1):
        beginnings.expect(f"j{number}", map(str, range(8)))
    for number in range(8):
        beginnings.began("j0", str(number), float(number))
    assert beginnings.seconds == 0.0


def test_a_job_is_shared_out_by_how_fast_executors_began_before():
    experience = Experience()
    experience.statistics.take("inc", sums(100, 0.1))
    experience.statistics.take("sum", sums(100, 0.1))
    experience.begin("j2", STARTS)
    assert experience.share_out("j2", 64, 64, 8).lead == 0.0
    began(experience.beginnings, "j1", [0.2 * number for number in range(8)])
    sharing = experience.share_out("j2", 64, 64, 8)
    assert sharing.groups == 8
    assert math.isclose(sharing.lead, 0.2)
    assert sharing.slack == pytest.approx(0.001)  # small values travel in a millisecond
    assert sharing.estimate.seconds[0] == pytest.approx(0.1, rel=1e-3)


def test_who_waits_for_its_inputs_is_in_the_log():
    experience = Experience()
    experience.note_wait("nobody's", 1, 1, 1.0)
    experience.log.begin("j1", 65, ["key"])
    experience.note_wait("j1", 20, 10**9, 0.93)
    assert "wait        1  start tasks waited for whoever was at work" in str(experience.log.last)
    assert "proxy: starts=20, nbytes=1000000000, seconds=0.93" in str(experience.log.last)


def test_an_executor_of_many_threads_does_as_much_more_while_it_is_alone():
    experience = Experience(Policy(threads=4))
    experience.statistics.take("inc", sums(100, 0.1))
    experience.statistics.take("sum", sums(100, 0.1))
    experience.begin("j2", STARTS)
    began(experience.beginnings, "j1", [0.2 * number for number in range(8)])
    sharing = experience.share_out("j2", 64, 64, 8)
    assert (sharing.groups, sharing.threads) == (4, 4)  # 6.4 s of work are 1.6 s; a fifth would find nothing left
    assert sharing.ends(100.0, 2) == pytest.approx([50.4])


def test_large_values_are_worth_uneven_groups():
    experience = Experience()
    experience.statistics.take("inc", sums(100, 0.1, 2**30))
    experience.statistics.take("sum", sums(100, 0.1, 2**30))
    experience.begin("j2", STARTS)
    sharing = experience.share_out("j2", 64, 64, 8)
    assert sharing.slack == pytest.approx(1.001)
    assert sharing.estimate.nbytes[:65] == [2**30] * 65


def test_who_knows_too_little_shares_out_evenly():
    experience = Experience()
    experience.statistics.take("inc", sums(100, 0.1))
    began(experience.beginnings, "j1", [0.2 * number for number in range(8)])
    experience.begin("j2", STARTS)
    assert experience.share_out("j2", 64, 64, 8) == Sharing(8, fair=8)
    assert experience.share_out("j2", 16, 64, 8) == Sharing(8, fair=2)


def test_what_a_request_costs_counts_most_for_small_executors():
    settings = Settings.load(lambda_memory="128 MiB")
    small = Policy(request_seconds=settings.request_gb_seconds * 2**30 / settings.lambda_memory)
    assert small.request_seconds == pytest.approx(0.096, rel=1e-3)
    assert Policy(ceiling=100).shares(ready=100, seconds_per_task=0.1) == 20
    assert replace(small, ceiling=100).shares(ready=100, seconds_per_task=0.1) == 10
    prefixes = Prefixes(["inc"], [64], [[]])
    for policy, executors in ((Policy(), 8), (small, 1)):
        experience = Experience(policy)
        experience.statistics.take("inc", sums(100, 0.01))
        experience.begin("j1", prefixes)
        assert experience.share_out("j1", 64, 64, 8).groups == executors, policy
