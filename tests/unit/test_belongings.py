"""What an executor has at hand, while several of its threads read inputs."""

from dask._task_spec import TaskRef

from lambda_worker.belongings import Belongings
from lambda_worker.cache import Cache
from lambda_worker.core.errors import ValueLost
from lambda_worker.core.instructions import Forget
from lambda_worker.core.wire import Ref


def belongings():
    return Belongings("job", {}, Cache(0), constants=None)


def test_an_input_that_cannot_be_read_is_why_a_task_errs():
    mine = belongings()
    mine.values[0] = "here"
    mine.unreadable[1] = ValueLost("it is gone")
    assert mine.why_unreadable([0]) is None
    assert mine.why_unreadable([0, 1]) is mine.unreadable[1]


def test_who_hears_late_that_an_input_is_lost_does_not_fail_who_has_it():
    """Two tasks miss a value. It is made again for the first; only then the second's thread hears that it is lost."""
    mine = belongings()
    mine.values[1] = "made again"
    mine.remade(1)
    mine.unreadable[1] = ValueLost("it is gone")
    assert mine.why_unreadable([1]) is None


def test_what_is_stored_stays_in_the_sandbox_when_its_executor_has_ended():
    cache = Cache(1_000)
    mine = Belongings("job", {}, cache, constants=None)
    mine.values |= {0: "stored", 1: "not stored"}
    mine.locations[0] = Ref("job/0", 0, 10)
    mine.clear()
    assert not mine.values and cache.take("job/0") == "stored" and cache.nbytes == 0


def test_a_reference_into_the_scheduler_is_not_kept_for_later_tasks():
    """Kept in a warm sandbox, an actor would go on being wanted there when all others have let go of it."""
    cache = Cache(1_000)
    mine = Belongings("job", {}, cache, constants=None)
    for task, value in enumerate(["a value", TaskRef("an-actor")]):
        mine.values[task], mine.locations[task] = value, Ref(f"job/{task}", 0, 10)
    mine.forget(Forget([0, 1]))
    assert cache.get("job/0") == "a value"
    assert "job/1" not in cache
