"""What surrounds tasks: plugins, uploaded files, configuration, `client.run`, logs, restarts."""

from __future__ import annotations

import asyncio
import logging
import os
import zipfile

import dask
import pytest
from distributed import Client, Event, WorkerPlugin, get_client, get_worker
from distributed.diagnostics.plugin import Environ, InstallPlugin, NannyPlugin, UploadDirectory

from dask_serverless import ServerlessCluster
from dask_serverless.local_lambda import LocalLambda
from tests.waiting import until


@pytest.fixture(scope="module")
def cluster():
    with ServerlessCluster(n_workers=2, dashboard_address=None) as cluster:
        yield cluster


class Counts(WorkerPlugin):
    """Counts its tasks, and says whose process it is in."""

    name = "counts"

    def __init__(self, start=0):
        self.count = start

    def setup(self, worker):
        self.worker = worker
        worker.found_by_tasks = self.count

    def teardown(self, worker):
        del worker.found_by_tasks


def count_up(n):
    plugin = get_worker().plugins["counts"]
    plugin.count += 1
    return os.getpid(), plugin.count, get_worker().found_by_tasks, plugin.worker is get_worker()


def test_a_plugin_is_in_every_executor_and_keeps_its_state(client):
    client.register_plugin(Counts(start=10))
    seen = client.gather([client.submit(count_up, n, pure=False) for n in range(20)])
    by_process = {}
    for pid, count, found, same in seen:
        assert pid != os.getpid() and found == 10 and same
        by_process.setdefault(pid, []).append(count)
    for counts in by_process.values():  # each process has a plugin of its own, which outlives executors
        assert sorted(counts) == list(range(11, 11 + len(counts)))

    client.register_plugin(Counts(start=100))  # in the place of the first
    assert client.submit(count_up, 0, pure=False).result()[1:] == (101, 100, True)

    client.unregister_worker_plugin("counts")
    with pytest.raises(KeyError, match="counts"):
        client.submit(count_up, 0, pure=False).result()
    assert not client.submit(lambda: hasattr(get_worker(), "found_by_tasks"), pure=False).result()
    with pytest.raises(ValueError, match="The worker plugin counts does not exist"):
        client.unregister_worker_plugin("counts")


def test_the_users_process_wears_nothing(client):
    class Marks(WorkerPlugin):
        name = "marks"

        def setup(self, worker):
            os.environ["MARKED"] = str(os.getpid())

    client.register_plugin(Marks())
    assert "MARKED" not in os.environ
    assert client.submit(lambda: os.environ["MARKED"] == str(os.getpid()), pure=False).result()
    client.unregister_worker_plugin("marks")


def test_what_runs_in_the_users_process_wears_it_then(client):
    address = next(iter(client.scheduler_info()["workers"]))
    client.register_plugin(Counts(start=5))
    here = client.submit(count_up, 0, workers=[address], pure=False).result()
    assert here == (os.getpid(), 6, 5, True)
    client.unregister_worker_plugin("counts")


def test_a_setup_that_fails_is_raised_where_it_is_registered_and_tasks_go_on(client):
    class Fails(WorkerPlugin):
        name = "fails"

        def setup(self, worker):
            raise ValueError("not in this process")

    with pytest.raises(ValueError, match="not in this process"):
        client.register_plugin(Fails())
    assert client.submit(lambda: "fails" in get_worker().plugins, pure=False).result()  # as on a Dask worker
    until(lambda: any("worker plugin fails failed" in line for line in worker_log(client)), "the log says so")
    client.unregister_worker_plugin("fails")


def worker_log(client):
    (entries,) = client.get_worker_logs().values()
    return [line for _, line in entries]


def test_a_plugin_may_be_asynchronous_and_speak_to_the_scheduler(client):
    class Asks(WorkerPlugin):
        name = "asks"

        async def setup(self, worker):
            await asyncio.sleep(0)
            self.answer = await worker.scheduler.who_has(keys=["nothing"])

    client.register_plugin(Asks())
    assert client.submit(lambda: dict(get_worker().plugins["asks"].answer), pure=False).result() == {"nothing": ()}
    # The client that it made on the event loop serves tasks as well.
    assert client.submit(lambda: get_client().submit(sum, [1, 2]).result(), pure=False).result() == 3
    client.unregister_worker_plugin("asks")


def test_a_plugin_hears_of_tasks(client):
    class Hears(WorkerPlugin):
        name = "hears"

        def setup(self, worker):
            self.worker = worker

        def transition(self, key, start, finish, **kwargs):
            if finish == "error":
                self.worker.log_event("heard", (key, start, repr(self.worker.state.tasks[key].exception)))
            elif key.startswith("mine"):
                self.worker.log_event("heard", (key, start, finish))

    client.register_plugin(Hears())
    client.submit(lambda: 1, key="mine").result()
    assert client.submit(lambda: 1 / 0, key="mine-2").exception()
    client.unregister_worker_plugin("hears")
    heard = [each for _, each in client.get_events("heard")]
    assert heard == [
        ("mine", "waiting", "ready"),
        ("mine", "ready", "executing"),
        ("mine", "executing", "memory"),
        ("mine-2", "waiting", "ready"),
        ("mine-2", "ready", "executing"),
        ("mine-2", "executing", repr(ZeroDivisionError("division by zero"))),
    ]


def test_nanny_plugins_are_set_up_in_executors(client):
    class Writes(NannyPlugin):
        name = "writes"

        def setup(self, nanny):
            with open(os.path.join(nanny.local_directory, "written"), "w") as file:
                file.write(f"{os.getpid()}")

    def read():
        with open(os.path.join(get_worker().local_directory, "written")) as file:
            return file.read() == str(os.getpid())

    client.register_plugin(Writes())
    assert client.submit(read, pure=False).result()
    client.unregister_worker_plugin("writes", nanny=True)


def test_environment_variables(client):
    before = client.submit(os.getpid, pure=False).result()
    client.register_plugin(Environ({"FROM_ENVIRON": 1}))
    assert client.submit(os.getenv, "FROM_ENVIRON", pure=False).result() == "1"
    assert client.submit(os.getpid, pure=False).result() != before  # as a nanny restarts its worker for it
    assert "FROM_ENVIRON" not in os.environ


def test_a_directory_is_uploaded(client, tmp_path):
    package = tmp_path / "an_uploaded_package"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import ANSWER\n")
    (package / "inner.py").write_text("ANSWER = 43\n")
    client.register_plugin(UploadDirectory(str(package)))

    def use():
        import an_uploaded_package

        return an_uploaded_package.ANSWER

    assert client.submit(use, pure=False).result() == 43


def test_uploaded_modules_are_loaded_anew_in_warm_executors(client, tmp_path):
    path = tmp_path / "a_changing_module.py"

    def use(n):
        import a_changing_module

        return a_changing_module.answer()

    for answer in (1, 2, 3):
        path.write_text(f"def answer():\n    return {answer}\n")
        client.upload_file(str(path))
        assert set(client.gather(client.map(use, range(8), pure=False))) == {answer}


def test_an_archive_is_uploaded(client, tmp_path):
    path = str(tmp_path / "archive.zip")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("in_an_archive/__init__.py", "ANSWER = 44\n")
    client.upload_file(path)

    def use():
        import in_an_archive

        return in_an_archive.ANSWER

    assert client.submit(use, pure=False).result() == 44


def test_a_file_larger_than_an_outfit_is_uploaded_once(client, tmp_path):
    path = tmp_path / "large.txt"
    path.write_text("x" * 1_000_000)
    client.upload_file(str(path), load=False)

    def size():
        return os.path.getsize(os.path.join(get_worker().local_directory, "large.txt"))

    assert set(client.gather([client.submit(size, pure=False) for _ in range(4)])) == {1_000_000}


class Installs(InstallPlugin):
    """An installer that needs no network: what `PipInstall` and `CondaInstall` are, but for what they call."""

    def __init__(self, directory, restart_workers):
        def install():
            with open(os.path.join(directory, f"installed-{os.getpid()}"), "w"):
                pass

        super().__init__(install, restart_workers=restart_workers)


@pytest.mark.parametrize("restart", [False, True])
def test_software_is_installed_in_executors(client, tmp_path, restart):
    client.register_plugin(Installs(str(tmp_path), restart))
    pid = client.submit(os.getpid, pure=False).result()
    assert {f"installed-{os.getpid()}", f"installed-{pid}"} <= set(os.listdir(tmp_path))


def test_what_run_changes_tasks_see_in_every_executor(client):
    def change():
        import json

        json.changed_by_run = os.getpid()

    def look(n):
        import json

        return json.changed_by_run == os.getpid()

    client.run(change)
    assert all(client.gather(client.map(look, range(16), pure=False)))


def test_run_answers_as_under_a_local_cluster(client):
    async def later(n):
        await asyncio.sleep(0)
        return n + 1

    address = next(iter(client.scheduler_info()["workers"]))
    assert client.run(max, 1, 3) == {address: 3}
    assert client.run(later, 1) == {address: 2}
    assert client.run(later, 1, wait=False) is None
    assert client.run(lambda dask_worker: dask_worker.nthreads) == {address: 1}
    assert client.run(os.getpid)[address] != os.getpid()
    assert list(client.run(os.getpid, nanny=True).values()) != [os.getpid()]
    with pytest.raises(ZeroDivisionError):
        client.run(lambda: 1 / 0)
    (error,) = client.run(lambda: 1 / 0, on_error="return").values()
    assert isinstance(error, ZeroDivisionError)
    assert client.run(lambda: 1 / 0, on_error="ignore") == {}
    with pytest.raises(Exception, match="Combination not supported"):
        client.run(max, 1, 3, wait=False)


def test_run_cannot_end_the_users_process(client):
    with pytest.raises(Exception, match=r"run-_exit.* died"):
        client.run(os._exit, 1)
    assert client.submit(sum, [1, 2], pure=False).result() == 3


def test_run_and_plugins_do_not_wait_for_tasks(client):
    """A Dask worker answers while its threads are busy; so the cluster does, above its ceiling."""
    busy = [client.submit(lambda: Event("go on").wait(timeout=30), pure=False) for _ in range(4)]
    assert list(client.run(max, 1, 2).values()) == [2]
    client.register_plugin(Counts())
    client.unregister_worker_plugin("counts")
    Event("go on", client=client).set()
    assert all(client.gather(busy))


def test_logs_are_forwarded(client):
    class Keep(logging.Handler):
        def __init__(self):
            super().__init__()
            self.seen = []

        def emit(self, record):
            self.seen.append((record.name, record.getMessage()))

    keep = Keep()
    logging.getLogger("forwarded").addHandler(keep)
    client.forward_logging("forwarded", level=logging.WARNING)
    try:
        client.submit(lambda: logging.getLogger("forwarded.below").warning("in a %s", "task"), pure=False).result()
        until(lambda: keep.seen, "the record arrives")
        logging.getLogger("forwarded").warning("here")  # not sent round again
        assert keep.seen == [("forwarded.below", "in a task"), ("forwarded", "here")]
        client.unforward_logging("forwarded")
        client.submit(lambda: logging.getLogger("forwarded.below").warning("no more"), pure=False).result()
        assert len(keep.seen) == 2
    finally:
        logging.getLogger("forwarded").removeHandler(keep)


def test_what_executors_say_is_in_the_workers_log(client, cluster):
    def speak():
        print("printed in a task")
        logging.getLogger("a-task").error("logged in a task")

    client.submit(speak, pure=False).result()
    until(lambda: any("printed in a task" in line for line in worker_log(client)), "the log has it")
    (entries,) = client.get_worker_logs().values()
    assert ("ERROR", True) in {(level, "logged in a task" in line) for level, line in entries}
    (newest,) = client.get_worker_logs(n=1).values()
    assert len(newest) == 1
    assert "printed in a task" in "".join(map(str, cluster.get_logs().values()))


def test_the_configuration_is_that_of_the_users_process():
    with dask.config.set({"mine.setting": [1, 2], "array.chunk-size": "7 MiB", "mine.api-key": "secret"}):
        cluster = ServerlessCluster(n_workers=1, dashboard_address=None)
    with cluster, Client(cluster) as client:

        def look():
            return dask.config.get("mine"), dask.config.get("array.chunk-size")

        assert client.submit(look).result() == ({"setting": [1, 2]}, "7 MiB")


@pytest.fixture
def sandboxes(cluster):
    service = cluster._local.service
    assert isinstance(service, LocalLambda)
    return service.sandboxes


def dirty():
    import json

    json.dirtied = True


def is_dirty():
    import json

    return hasattr(json, "dirtied")


def test_a_restart_gives_fresh_processes_that_wear_the_outfit(client, recwarn, caplog):
    client.register_plugin(Counts(start=7))
    client.run(dirty)
    held = client.submit(is_dirty, pure=False)
    assert held.result()
    pids = set(client.gather([client.submit(os.getpid, pure=False) for _ in range(8)]))
    client.restart(timeout=30)
    assert held.status == "cancelled"
    assert not client.submit(is_dirty, pure=False).result()
    assert client.submit(count_up, 0, pure=False).result()[1] == 8
    assert not pids & set(client.gather([client.submit(os.getpid, pure=False) for _ in range(8)]))
    assert "nanny" not in caplog.text
    client.unregister_worker_plugin("counts")


def test_a_restart_ends_what_hangs(client):
    hangs = client.submit(lambda: Event("never").wait(timeout=60), pure=False)
    until(lambda: any(client.processing().values()), "the scheduler has heard of it before the restart")
    client.restart(timeout=30)
    assert hangs.status == "cancelled"
    assert client.gather(client.map(lambda n: n + 1, range(4), pure=False)) == [1, 2, 3, 4]


def test_workers_restart_and_their_tasks_run_again(client, tmp_path):
    def once_slow(path):
        if not os.path.exists(path):
            with open(path, "w"):
                pass
            Event("never").wait(timeout=60)
        return "again"

    pending = client.submit(once_slow, str(tmp_path / "begun"), pure=False)
    done = client.submit(max, 1, 2)
    assert done.result() == 2
    until(lambda: (tmp_path / "begun").exists())
    (address,) = client.scheduler_info()["workers"]
    assert client.restart_workers([address], timeout=30) == {address: "OK"}
    assert pending.result(timeout=30) == "again"
    assert done.result() == 2
