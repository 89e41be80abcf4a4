"""What goes wrong in tasks and around them, as a user sees it: typed, named, in time; and then all goes on."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import dask
import numpy as np
import psutil
import pytest
from dask import delayed
from distributed import CancelledError, Client, as_completed, fire_and_forget, wait

from dask_serverless import ServerlessCluster
from lambda_worker.core.errors import (
    ExecutorLost,
    GraphError,
    MissingModule,
    PlatformError,
    StoreUnavailable,
    UnpicklableResult,
    UnpicklableTask,
    ValueTooLarge,
)
from tests.waiting import until

#: A typed error within seconds, on two busy cores.
SECONDS_MAX = 20


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A place for temporary files that nobody else uses; short, for the sockets in it."""
    tmp_path_factory.getbasetemp()  # pytest's own place must exist before ours stands for it
    directory = tempfile.mkdtemp(prefix="t", dir="/tmp")
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"], tempfile.tempdir = directory, directory
    yield Path(directory)
    assert not left_in(Path(directory))
    tempfile.tempdir = None
    if before is None:
        del os.environ["TMPDIR"]
    else:
        os.environ["TMPDIR"] = before
    shutil.rmtree(directory)


def left_in(directory):
    """Return the files left there, but for the locks that Dask's own scratch space keeps."""
    files = (path for path in directory.rglob("*") if not path.is_dir() or path.name.startswith("dsl-"))
    return [path for path in files if path.parent.name != "dask-scratch-space"]


def family():
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def listening():
    """Return every address that this process or a child of it listens on."""
    found = set()
    for process in family():
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN or (connection.type == socket.SOCK_DGRAM):
                    found.add((process.pid, connection.laddr.ip, connection.laddr.port))
    return found


@pytest.fixture(scope="module")
def cluster(place):
    """One cluster for everything here, watched all the while, and looked for after its end."""
    children = {each.pid for each in family()}
    ports = listening()
    threads = {thread.name for thread in threading.enumerate()}
    beyond, stop = set(), threading.Event()

    def watch():
        while not stop.wait(0.2):
            beyond.update(ip for _, ip, _ in listening() if ip not in ("127.0.0.1", "::1"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with ServerlessCluster(n_workers=2, dashboard_address=":0", memory_limit="512 MiB", timeout="4s") as cluster:
        yield cluster
    stop.set()
    watcher.join()
    assert not beyond, "nothing listens beyond loopback"
    gc.collect()
    until(lambda: {each.pid for each in family()} <= children, "no process is left")
    until(lambda: listening() <= ports, "no socket is left")
    until(lambda: not left_in(place), f"no file is left of {left_in(place)}")
    left = {thread.name for thread in threading.enumerate()} - threads
    assert not [name for name in left if name.startswith(("serverless", "dask-serverless", "executor"))]


@pytest.fixture(autouse=True)
def still_works(request):
    """Whatever a test did to the cluster, it answers afterwards."""
    client = request.getfixturevalue("client") if "client" in request.fixturenames else None
    yield
    if client is not None:
        assert client.submit(sum, [1, 2], pure=False).result(timeout=SECONDS_MAX) == 3


def inc(number):
    return number + 1


def boom(number=0):
    raise LookupError(f"no such thing: {number}")


# --- sandboxes that die


def leave():
    os._exit(3)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def segfault():
    import faulthandler

    faulthandler.disable()
    ctypes.string_at(0)


def system_exit():
    sys.exit(3)


def fill_memory():
    held = []
    while True:
        held.append(bytearray(os.urandom(1)) * 50_000_000)


def oversleep():
    time.sleep(60)


DEATHS = [
    (leave, "exit status 3"),
    (kill, "killed"),
    (segfault, "segmentation fault"),
    (system_exit, "exit status 3|SystemExit"),
    (fill_memory, "(?i)memory"),
    (oversleep, r"timed out after 4\.00 seconds"),
]


@pytest.mark.fault(14)
@pytest.mark.parametrize(("death", "cause"), DEATHS, ids=[death.__name__ for death, _ in DEATHS])
def test_a_sandbox_that_dies_names_the_task_and_the_cause(client, death, cause):
    future = client.submit(death, key=f"{death.__name__}-key", pure=False)
    with pytest.raises(ExecutorLost, match=cause) as caught:
        future.result(timeout=SECONDS_MAX)
    assert f"'{death.__name__}-key'" in str(caught.value)


def test_the_task_that_killed_is_named_though_it_is_not_visible(client):
    def deadly(number):
        os._exit(4)

    graph = {"a": (inc, 1), "deadly": (deadly, "a"), "end": (inc, "deadly")}
    with pytest.raises(ExecutorLost, match="'deadly'.*exit status 4"):
        client.get(graph, "end", sync=False).result(timeout=SECONDS_MAX)


def test_advice_comes_with_it(client):
    with pytest.raises(ExecutorLost, match="memory_limit="):
        client.submit(fill_memory, pure=False).result(timeout=SECONDS_MAX)
    with pytest.raises(ExecutorLost, match="timeout="):
        client.submit(oversleep, pure=False).result(timeout=SECONDS_MAX)


@pytest.mark.fault(14)
def test_jobs_beside_one_that_dies_go_on(client):
    fine = client.map(lambda n: time.sleep(0.05) or n, range(10), pure=False)
    dead = client.submit(kill, pure=False)
    with pytest.raises(ExecutorLost):
        dead.result(timeout=SECONDS_MAX)
    assert client.gather(fine) == list(range(10))


# --- the user's exceptions


class Special(Exception):
    """With arguments of its own."""

    def __init__(self, one, two):
        super().__init__(one, two)
        self.two = two


@pytest.mark.fault(15)
def test_exceptions_keep_type_message_and_traceback(client):
    def deeper():
        raise Special("one", 2)

    def outer():
        deeper()

    future = client.submit(outer, pure=False)
    with pytest.raises(Special) as caught:
        future.result(timeout=SECONDS_MAX)
    assert caught.value.args == ("one", 2) and caught.value.two == 2
    frames = [frame.name for frame in traceback.extract_tb(future.traceback())]
    assert frames[0] == "outer" and frames[-1] == "deeper"
    assert isinstance(future.exception(), Special)


def test_an_exception_that_is_no_exception(client):
    def interrupted():
        raise BaseExceptionGroup("both", [LookupError(1), GeneratorExit()])

    with pytest.raises(BaseException, match="both|GeneratorExit"):
        client.submit(interrupted, pure=False).result(timeout=SECONDS_MAX)


@pytest.mark.fault(15)
def test_an_exception_that_cannot_be_pickled_still_says_what_it_said(client):
    def unusual():
        class Unusual(Exception):
            def __init__(self, lock):
                super().__init__("something unusual")
                self.lock = lock

        raise Unusual(threading.Lock())

    with pytest.raises(Exception, match="something unusual"):
        client.submit(unusual, pure=False).result(timeout=SECONDS_MAX)


def test_dependents_err_with_the_roots_exception_and_siblings_finish(client):
    root = client.submit(boom, 7, pure=False)
    child = client.submit(inc, root)
    grandchild = client.submit(inc, child)
    sibling = client.submit(inc, 1, pure=False)
    for future in (root, child, grandchild):
        with pytest.raises(LookupError, match="no such thing: 7"):
            future.result(timeout=SECONDS_MAX)
    assert sibling.result(timeout=SECONDS_MAX) == 2


def test_in_one_graph_too(client):
    bad = delayed(boom, pure=False)(8)
    good = delayed(inc, pure=False)(1)
    failed, worse, fine = client.compute([bad, delayed(inc)(bad), delayed(inc)(good)])
    assert fine.result(timeout=SECONDS_MAX) == 3
    for future in (failed, worse):
        with pytest.raises(LookupError, match="no such thing: 8"):
            future.result(timeout=SECONDS_MAX)


def test_an_error_goes_down_a_long_line_of_jobs(cluster, client, tmp_path):
    """Each `submit` is a job of its own, and waits for the one before it."""
    go = tmp_path / "go"

    def wait_and_fail():
        while not go.exists():
            time.sleep(0.01)
        raise LookupError("far up")

    line = [client.submit(wait_and_fail, pure=False)]
    for _ in range(500):
        line.append(client.submit(inc, line[-1]))
    until(lambda: line[-1].key in cluster.scheduler.tasks, "the scheduler has them all")
    go.touch()
    with pytest.raises(LookupError, match="far up"):
        line[-1].result(timeout=SECONDS_MAX)
    with pytest.raises(LookupError, match="far up"):
        line[0].result(timeout=SECONDS_MAX)


def test_retries(client, tmp_path):
    def flaky(path):
        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) < 3:
            raise LookupError("not yet")
        return "now"

    assert client.submit(flaky, str(tmp_path / "a"), retries=2).result(timeout=SECONDS_MAX) == "now"
    with pytest.raises(LookupError, match="not yet"):
        client.submit(flaky, str(tmp_path / "b"), retries=1).result(timeout=SECONDS_MAX)
    assert (tmp_path / "b").read_text() == "xx"


def test_client_retry(client, tmp_path):
    ready = tmp_path / "ready"

    def once_ready():
        if not ready.exists():
            raise LookupError("not ready")
        return 1

    future = client.submit(once_ready, pure=False)
    child = client.submit(inc, future)
    with pytest.raises(LookupError, match="not ready"):
        child.result(timeout=SECONDS_MAX)
    ready.touch()
    child.retry()
    assert child.result(timeout=SECONDS_MAX) == 2
    assert future.result(timeout=SECONDS_MAX) == 1


# --- what cannot be sent or stored


@pytest.mark.fault(16)
def test_a_result_that_cannot_be_pickled(client):
    with pytest.raises(UnpicklableResult, match=r"'a-lock'.*_thread\.lock"):
        client.submit(threading.Lock, key="a-lock", pure=False).result(timeout=SECONDS_MAX)


def test_a_task_that_the_client_cannot_pickle(client):
    lock = threading.Lock()
    with pytest.raises(TypeError, match="Could not serialize"):
        client.submit(lambda: lock, pure=False).result(timeout=SECONDS_MAX)


class OnlyOnce:
    """Travels from the client to the scheduler, and no further."""

    def __init__(self, travelled=False):
        self.travelled = travelled

    def __reduce__(self):
        if self.travelled:
            raise TypeError("I have travelled enough")
        return OnlyOnce, (True,)


def test_a_task_that_only_the_executors_pickling_refuses(client):
    graph = {"fine": (inc, 1), "stays": (isinstance, OnlyOnce(), object)}
    futures = client.get(graph, ["stays"], sync=False)
    with pytest.raises(UnpicklableTask, match="'stays'.*travelled enough"):
        futures[0].result(timeout=SECONDS_MAX)


@pytest.mark.fault(33)
def test_a_module_that_executors_do_not_have(client):
    directory = Path(tempfile.mkdtemp(dir="/tmp"))  # put on the path only after executors got theirs
    (directory / "only_at_home.py").write_text("def function():\n    return 1\n")
    sys.path.insert(0, str(directory))
    try:
        import only_at_home

        future = client.submit(only_at_home.function, key="far-from-home")
        with pytest.raises(MissingModule, match="'far-from-home'.*'only_at_home'") as caught:
            future.result(timeout=SECONDS_MAX)
        assert isinstance(caught.value, ModuleNotFoundError) and caught.value.name == "only_at_home"
    finally:
        sys.path.remove(str(directory))
        sys.modules.pop("only_at_home", None)
        shutil.rmtree(directory)


def test_a_cycle_names_its_keys(client):
    future = client.get({"x": (inc, "y"), "y": (inc, "z"), "z": (inc, "x")}, "x", sync=False)
    with pytest.raises((GraphError, RuntimeError), match="(?i)cycle") as caught:
        future.result(timeout=SECONDS_MAX)
    assert all(f"'{key}'" in str(caught.value) for key in "xyz")


def test_an_alias_of_itself_is_no_hang(client):
    from dask._task_spec import Alias

    with pytest.raises(Exception) as caught:  # noqa: B017 - any answer will do, but there must be one
        client.get({"self": Alias("self", "self")}, "self", sync=False).result(timeout=5)
    assert not isinstance(caught.value, TimeoutError)


def test_an_unknown_argument_is_refused_by_name_before_anything_starts(place):
    before = {each.pid for each in family()}
    with pytest.raises(TypeError, match="n_workrs.*n_workers"):
        ServerlessCluster(n_workrs=2)
    assert {each.pid for each in family()} <= before


# --- large things


def test_a_task_with_a_large_closure(client):
    table = np.arange(500_000)

    def pick(n):
        return int(table[n])

    assert client.submit(pick, 400_000).result(timeout=SECONDS_MAX) == 400_000
    assert client.gather(client.map(pick, range(5))) == list(range(5))


def test_a_graph_larger_than_a_payload_travels_by_reference(client):
    pieces = [delayed(len, pure=False)(os.urandom(1000)) for _ in range(1000)]
    assert client.compute(delayed(sum)(pieces)).result(timeout=SECONDS_MAX) == 1_000_000


def test_many_submits_in_a_loop(cluster, client):
    before = cluster.stats()["round_trips"]
    futures = [client.submit(inc, n, pure=False) for n in range(300)]
    assert client.gather(futures) == list(range(1, 301))
    trips = cluster.stats()["round_trips"] - before
    assert trips < 20 * 300, f"{trips} round trips for 300 tasks"


# --- letting go


@pytest.mark.fault(27)
def test_a_running_future_is_cancelled(client, tmp_path):
    started, ended = tmp_path / "started", tmp_path / "ended"

    def slow():
        started.touch()
        time.sleep(1)
        ended.touch()

    future = client.submit(slow, pure=False)
    until(started.exists, "the task runs")
    future.cancel()
    with pytest.raises(CancelledError):
        future.result(timeout=SECONDS_MAX)
    until(ended.exists, "as in Dask, a thread is not interrupted")


@pytest.mark.fault(27)
def test_a_pending_future_is_cancelled_and_never_runs(cluster, client, tmp_path):
    go, ran, started = tmp_path / "go", tmp_path / "ran", [tmp_path / "0", tmp_path / "1"]

    def blocker(here):
        here.touch()
        while not go.exists():
            time.sleep(0.01)

    blockers = client.map(blocker, started, pure=False)
    until(lambda: all(each.exists() for each in started), "there is no room for more")
    waiting = client.submit(ran.touch, pure=False)
    child = client.submit(lambda value, path: path.touch(), blockers[0], ran, pure=False)
    keys = {waiting.key, child.key}
    until(lambda: keys <= cluster.scheduler.tasks.keys(), "the scheduler has them")
    client.cancel([waiting, child])
    until(lambda: not keys & cluster.scheduler.tasks.keys(), "the scheduler has let them go")
    go.touch()
    wait(blockers, timeout=SECONDS_MAX)
    assert waiting.cancelled() and child.cancelled()
    assert client.submit(inc, 1, pure=False).result(timeout=SECONDS_MAX) == 2
    assert not ran.exists()


def test_a_cancelled_key_may_be_submitted_again(client, tmp_path):
    go = tmp_path / "go"

    def slow(n):
        while not go.exists():
            time.sleep(0.01)
        return n

    for _ in range(3):
        go.unlink(missing_ok=True)
        future = client.submit(slow, 1, key="again")
        child = client.submit(inc, future, key="again-child")
        client.cancel([child, future])
        del future, child  # a client gives the old, cancelled ones back as long as they live
        go.touch()
        assert client.submit(inc, 1, pure=False).result(timeout=SECONDS_MAX) == 2  # all messages have come
        future = client.submit(slow, 1, key="again")
        child = client.submit(inc, future, key="again-child")
        assert child.result(timeout=SECONDS_MAX) == 2
        del future, child


def test_released_futures_free_the_store(cluster, client):
    client.submit(inc, 1, pure=False).result(timeout=SECONDS_MAX)
    before = cluster.stats()
    # Random, and so the same size in the store, however slow that was found to be.
    futures = client.map(lambda n: np.random.default_rng(n).random(1_000_000), range(8), pure=False)
    sums = [client.submit(np.sum, future) for future in futures]
    assert client.gather(sums) == [np.random.default_rng(n).random(1_000_000).sum() for n in range(8)]
    assert cluster.stats()["store_bytes"] > before["store_bytes"] + 50_000_000
    del futures, sums

    def back():
        now = cluster.stats()
        few = now["store_keys"] <= before["store_keys"] + 2
        return few and now["store_bytes"] < before["store_bytes"] + 5_000_000

    until(back, "the store is as it was")


@pytest.mark.fault(27)
def test_errors_and_cancelled_jobs_leave_nothing_in_the_store(cluster, client):
    client.submit(inc, 1, pure=False).result(timeout=SECONDS_MAX)
    before = cluster.stats()["store_keys"]
    for how in (boom, kill, threading.Lock):
        with pytest.raises(Exception):  # noqa: B017 - looked at above
            client.submit(how, pure=False).result(timeout=SECONDS_MAX)
    future = client.submit(time.sleep, 0.5, pure=False)
    future.cancel()
    del future
    until(lambda: cluster.stats()["store_keys"] <= before + 2, "the store is as it was")


# --- the rest of a client


def test_scatter_map_gather_as_completed_wait(client):
    small, large = client.scatter([1, np.arange(200_000)])
    added = client.map(lambda n, one, table: int(n + one + table[-1]), range(10), one=small, table=large)
    assert sorted(future.result() for future in as_completed(added, timeout=SECONDS_MAX)) == [
        200_000 + n for n in range(10)
    ]
    done, not_done = wait(added, timeout=SECONDS_MAX)
    assert len(done) == 10 and not not_done
    assert client.gather({"key": added[3]}) == {"key": 200_003}
    bad = [*client.map(inc, range(3)), client.submit(boom, pure=False)]
    assert client.gather(bad, errors="skip") == [1, 2, 3]
    np.testing.assert_array_equal(large.result(timeout=SECONDS_MAX), np.arange(200_000))


def test_a_future_inside_a_collection(client):
    futures = client.map(inc, range(5))
    assert client.submit(sum, futures).result(timeout=SECONDS_MAX) == 15
    assert delayed(sum)(futures).compute() == 15


@pytest.mark.fault(26)
def test_fire_and_forget(client, tmp_path):
    done = tmp_path / "done"
    fire_and_forget(client.submit(done.touch, pure=False))
    until(done.exists, "it was done")


@pytest.mark.fault(47)
def test_two_clusters_at_once(cluster, client):
    with ServerlessCluster(n_workers=1, dashboard_address=None) as other, Client(other, set_as_default=False) as second:
        here = client.map(inc, range(20), pure=False)
        there = second.map(inc, range(100, 120), pure=False)
        assert client.gather(here) == list(range(1, 21))
        assert second.gather(there) == list(range(101, 121))
        with pytest.raises(ExecutorLost):
            second.submit(kill).result(timeout=SECONDS_MAX)
        assert client.submit(inc, 1, pure=False).result(timeout=SECONDS_MAX) == 2


# --- clusters of their own


@pytest.fixture
def mortal(place):
    with ServerlessCluster(n_workers=2, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            yield cluster, client


def processes_of(cluster, what):
    pids = {cluster._local.service.pid} if what == "service" else {cluster._local.tier.pids[what]}
    return [each for each in family() if each.pid in pids]


@pytest.mark.fault(35)
def test_a_value_larger_than_the_limit_names_task_size_and_limit():
    with (
        dask.config.set({"serverless.storage.object-bytes-max": "1 MiB", "serverless.storage.overflow": False}),
        ServerlessCluster(n_workers=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        future = client.submit(lambda: np.ones(3 * 2**20, dtype="uint8"), key="three")
        with pytest.raises(ValueTooLarge, match=r"'three'.*3,145,\d{3}.*1,048,576"):
            future.result(timeout=SECONDS_MAX)
        assert client.submit(inc, 1).result(timeout=SECONDS_MAX) == 2


@pytest.mark.fault(18)
def test_a_metadata_server_that_is_killed_as_often_as_it_is_started(mortal):
    """More often than it is started again; `test_metadata_loss` has what becomes of fewer deaths."""
    cluster, client = mortal
    pending = client.submit(time.sleep, 60, pure=False)
    waiting = client.submit(inc, pending)
    until(lambda: cluster.stats()["invocations"] + cluster.stats()["mails"], "the task runs")
    tier = cluster._local.tier
    while not tier._given_up:
        killed = tier.pids["metadata"]
        os.kill(killed, signal.SIGKILL)
        until(lambda killed=killed: tier.pids["metadata"] != killed or tier._given_up, "it is started again, or not")
    for future in (pending, waiting):
        with pytest.raises(StoreUnavailable, match="storage server|server at|metadata"):
            future.result(timeout=SECONDS_MAX)
    with pytest.raises(StoreUnavailable):
        client.submit(inc, 1, pure=False).result(timeout=SECONDS_MAX)
    before = time.monotonic()
    client.close()
    cluster.close()
    assert time.monotonic() - before < 20


def test_a_lambda_service_that_is_killed(mortal):
    cluster, client = mortal
    pending = client.submit(time.sleep, 60, pure=False)
    until(lambda: cluster.stats()["invocations"], "the task runs")
    (process,) = processes_of(cluster, "service")
    process.kill()
    with pytest.raises(PlatformError, match="Lambda"):
        pending.result(timeout=SECONDS_MAX)
    with pytest.raises(PlatformError, match="Lambda"):
        client.submit(inc, 1, pure=False).result(timeout=SECONDS_MAX)
    before = time.monotonic()
    client.close()
    cluster.close()
    assert time.monotonic() - before < 20
