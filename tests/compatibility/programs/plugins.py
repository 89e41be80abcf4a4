"""Plugins, callbacks and files for workers, after distributed.dask.org/en/stable/plugins.html."""

from __future__ import annotations

import os
import threading
import time

from dask.distributed import Client, get_worker, wait
from distributed import (
    CondaInstall,
    Environ,
    InstallPlugin,
    NannyPlugin,
    PipInstall,
    SchedulerPlugin,
    UploadDirectory,
    UploadFile,
    WorkerPlugin,
)

from tests.compatibility.programs import program


def inc(n):
    return n + 1


def until(condition, seconds=3):
    """Wait for what comes by itself, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


@program(covers=("WorkerPlugin", "WorkerPlugin.setup", "Client.register_plugin"))
def a_worker_plugin_in_tasks(client):
    class Plugin(WorkerPlugin):
        name = "in-tasks"

        def setup(self, worker):
            self.value = worker.my_value = 7

    def use():
        worker = get_worker()
        return worker.plugins["in-tasks"].value, worker.my_value

    client.register_plugin(Plugin())
    try:
        return client.submit(use, pure=False).result()
    finally:
        client.unregister_worker_plugin("in-tasks")


@program(covers=("WorkerPlugin.setup", "Client.run"))
def a_worker_plugin_where_run_looks(client):
    class Plugin(WorkerPlugin):
        name = "where-run-looks"

        def setup(self, worker):
            self.value = 8

    registered = client.register_plugin(Plugin())
    try:
        seen = client.run(lambda dask_worker: dask_worker.plugins["where-run-looks"].value)
        return {each["status"] for each in registered.values()}, set(seen.values())
    finally:
        client.unregister_worker_plugin("where-run-looks")


@program(
    differs="an executor is set up before its first task, where LocalCluster sets up all its workers at once",
    covers=("WorkerPlugin.teardown", "Client.unregister_worker_plugin"),
)
def a_worker_plugin_that_goes(client, path):
    class Plugin(WorkerPlugin):
        name = "goes"

        def __init__(self, directory):
            self.directory = directory

        def setup(self, worker):
            open(os.path.join(self.directory, f"setup-{worker.name}"), "w").close()

        def teardown(self, worker):
            open(os.path.join(self.directory, f"teardown-{worker.name}"), "w").close()

    client.register_plugin(Plugin(str(path)))
    client.unregister_worker_plugin("goes")
    return sorted(each.name.split("-")[0] for each in path.iterdir())


@program
def a_worker_plugin_torn_down(client, path):
    class Plugin(WorkerPlugin):
        name = "torn-down"

        def __init__(self, directory):
            self.directory = directory

        def teardown(self, worker):
            open(os.path.join(self.directory, "gone"), "w").close()

    client.register_plugin(Plugin(str(path)))
    client.unregister_worker_plugin("torn-down")
    return [each.name for each in path.iterdir()]


@program(
    differs="the first transition in an executor is from `waiting`: it never sees a task as `released`",
    covers=("WorkerPlugin.transition",),
)
def a_worker_plugin_that_watches(client, path):
    class Plugin(WorkerPlugin):
        name = "watches"

        def __init__(self, name):
            self.file = name

        def transition(self, key, start, finish, **kwargs):
            if key == "watched":
                with open(self.file, "a") as file:
                    file.write(f"{start} {finish}\n")

    client.register_plugin(Plugin(str(path / "transitions")))
    try:
        client.submit(inc, 1, key="watched").result()
        return (path / "transitions").read_text().splitlines()[:3]
    finally:
        client.unregister_worker_plugin("watches")


@program(covers=("WorkerPlugin.idempotent",))
def a_worker_plugin_registered_twice(client, path):
    class Plugin(WorkerPlugin):
        name = "twice"
        idempotent = True

        def __init__(self, value, name):
            self.value, self.file = value, name

        def setup(self, worker):
            with open(self.file, "a") as file:
                file.write(f"{self.value}")

    client.register_plugin(Plugin(1, str(path / "setups")))
    client.register_plugin(Plugin(2, str(path / "setups")))
    try:
        return set((path / "setups").read_text())
    finally:
        client.unregister_worker_plugin("twice")


@program(raises=ZeroDivisionError, covers=("WorkerPlugin.setup",))
def a_worker_plugin_that_fails(client):
    class Plugin(WorkerPlugin):
        name = "fails"

        def setup(self, worker):
            1 / 0  # noqa: B018

    return client.register_plugin(Plugin())


@program(raises=TypeError)
def what_is_no_plugin(client):
    return client.register_plugin(object())


@program(raises=ValueError)
def a_plugin_that_is_not_there(client):
    return client.unregister_worker_plugin("nobody")


@program(covers=("Client.register_worker_callbacks",))
def callbacks_for_workers(client, path):
    def setup(dask_worker):
        with open(os.path.join(directory, "called"), "w") as file:
            file.write(type(dask_worker.address).__name__)

    directory = str(path)
    client.register_worker_callbacks(setup)
    return (path / "called").read_text()


@program(covers=("NannyPlugin", "NannyPlugin.setup", "NannyPlugin.teardown", "NannyPlugin.restart"))
def a_nanny_plugin(client, path):
    class Plugin(NannyPlugin):
        name = "nanny"
        restart = False

        def __init__(self, name):
            self.file = name

        def setup(self, nanny):
            with open(self.file, "a") as file:
                file.write("setup ")

        def teardown(self, nanny):
            with open(self.file, "a") as file:
                file.write("teardown ")

    registered = client.register_plugin(Plugin(str(path / "out")))
    statuses = {each["status"] for each in registered.values()}
    client.unregister_worker_plugin("nanny", nanny=True)

    def said():
        # One executor tells the answer; another, which had the plugin, takes it off before its next task.
        client.run(os.getpid)
        found = set((path / "out").read_text().split())
        return found if "teardown" in found else None

    return statuses, until(said, seconds=20)


@program
def a_scheduler_plugin_that_counts(client):
    class Plugin(SchedulerPlugin):
        name = "that-counts"

        def __init__(self):
            self.finished = []

        def transition(self, key, start, finish, *args, **kwargs):
            if finish == "memory" and str(key).startswith("that-counts"):
                self.finished.append(key)

    client.register_plugin(Plugin())
    wait(futures := client.map(inc, range(3), key="that-counts"))
    seen = client.run_on_scheduler(lambda dask_scheduler: sorted(dask_scheduler.plugins["that-counts"].finished))
    client.unregister_scheduler_plugin("that-counts")
    gone = client.run_on_scheduler(lambda dask_scheduler: "that-counts" in dask_scheduler.plugins)
    return seen == sorted(each.key for each in futures), gone


@program(
    differs="the plugin sees the keys that a client asked for, and not those between, which executors keep",
    covers=("SchedulerPlugin.transition",),
)
def a_scheduler_plugin_sees_tasks_between(client):
    import dask

    class Plugin(SchedulerPlugin):
        name = "between"

        def __init__(self):
            self.finished = set()

        def transition(self, key, start, finish, *args, **kwargs):
            if finish == "memory":
                self.finished.add(key)

    client.register_plugin(Plugin())
    first = dask.delayed(inc)(1, dask_key_name="between-first")
    dask.delayed(inc)(first, dask_key_name="between-last").compute()
    seen = client.run_on_scheduler(lambda dask_scheduler: sorted(map(str, dask_scheduler.plugins["between"].finished)))
    client.unregister_scheduler_plugin("between")
    return seen


@program
def a_scheduler_plugin_sees_clients_and_graphs(client, cluster):
    class Plugin(SchedulerPlugin):
        name = "sees-clients"

        def __init__(self):
            self.seen = []

        async def start(self, scheduler):
            self.seen.append("start")

        def add_client(self, scheduler, client):
            self.seen.append("add_client")

        def remove_client(self, scheduler, client):
            self.seen.append("remove_client")

        def update_graph(self, scheduler, *, keys, **kwargs):
            self.seen.append(("update_graph", sorted(keys)))

        async def restart(self, scheduler):
            self.seen.append("restart")

    client.register_plugin(Plugin())
    with Client(cluster, set_as_default=False) as other:
        other.submit(inc, 1, key="by-another").result()
    until(
        lambda: client.run_on_scheduler(
            lambda dask_scheduler: "remove_client" in dask_scheduler.plugins["sees-clients"].seen
        )
    )
    seen = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.plugins["sees-clients"].seen)
    client.unregister_scheduler_plugin("sees-clients")
    return seen


@program(own_cluster=True, covers=("SchedulerPlugin.restart", "SchedulerPlugin.log_event"))
def a_scheduler_plugin_sees_restarts_and_events(client):
    class Plugin(SchedulerPlugin):
        name = "sees-restarts"

        def __init__(self):
            self.seen = []

        def restart(self, scheduler):
            self.seen.append("restart")

        def log_event(self, topic, msg):
            if topic == "to-plugins":
                self.seen.append(msg)

    client.register_plugin(Plugin())
    client.log_event("to-plugins", {"a": 1})
    client.restart(timeout=20)
    return client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.plugins["sees-restarts"].seen)


@program(own_cluster=True)
def a_scheduler_plugin_is_closed(cluster, client, path):
    class Plugin(SchedulerPlugin):
        name = "is-closed"

        def __init__(self, directory):
            self.directory = directory

        async def before_close(self):
            open(os.path.join(self.directory, "before_close"), "w").close()

        async def close(self):
            open(os.path.join(self.directory, "close"), "w").close()

    client.register_plugin(Plugin(str(path)))
    client.close()
    cluster.close()
    return sorted(each.name for each in path.iterdir())


@program(covers=("Worker",))
def a_scheduler_plugin_sees_workers(client, cluster):
    class Plugin(SchedulerPlugin):
        name = "sees-workers"

        def __init__(self):
            self.seen = []

        def add_worker(self, scheduler, worker):
            if scheduler.workers[worker].name == "beside":
                self.seen.append("add_worker")

        def remove_worker(self, scheduler, worker, **kwargs):
            if "add_worker" in self.seen:
                self.seen.append("remove_worker")

        def valid_workers_downscaling(self, scheduler, workers):
            return list(workers)

    async def beside(address):
        from distributed import Worker

        async with Worker(address, name="beside", nthreads=1, dashboard_address=None):
            pass

    client.register_plugin(Plugin())
    client.sync(beside, cluster.scheduler_address)
    until(lambda: client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.plugins["sees-workers"].seen)) == 2)
    seen = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.plugins["sees-workers"].seen)
    client.unregister_scheduler_plugin("sees-workers")
    return seen


@program(covers=("SchedulerPlugin.idempotent",))
def a_scheduler_plugin_registered_twice(client):
    class Plugin(SchedulerPlugin):
        name = "scheduler-twice"
        idempotent = True

        def __init__(self, value):
            self.value = value

    client.register_plugin(Plugin(1))
    client.register_plugin(Plugin(2))
    value = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.plugins["scheduler-twice"].value)
    client.unregister_scheduler_plugin("scheduler-twice")
    return value


@program(raises=ValueError)
def a_scheduler_plugin_that_fails(client):
    class Plugin(SchedulerPlugin):
        name = "scheduler-fails"

        def start(self, scheduler):
            raise ValueError("no start")

    return client.register_plugin(Plugin())


@program(own_cluster=True)
def environment_variables_by_a_plugin(client):
    client.register_plugin(Environ({"FROM_ENVIRON": "1"}))
    return client.submit(lambda: os.environ.get("FROM_ENVIRON"), pure=False).result()


@program(
    covers=("UploadDirectory",),
)
def a_directory_by_a_plugin(client, path):
    (path / "package_by_plugin").mkdir()
    (path / "package_by_plugin" / "__init__.py").write_text("ANSWER = 44\n")
    client.register_plugin(UploadDirectory(str(path / "package_by_plugin"), update_path=True))

    def use():
        import package_by_plugin

        return package_by_plugin.ANSWER

    return client.submit(use, pure=False).result()


@program(covers=("UploadFile",))
def a_file_by_a_plugin(client, path):
    (path / "module_by_plugin.py").write_text("ANSWER = 45\n")
    client.register_plugin(UploadFile(str(path / "module_by_plugin.py")))

    def use():
        import module_by_plugin

        return module_by_plugin.ANSWER

    return client.submit(use, pure=False).result()


@program(
    covers=("Client.upload_file",),
)
def a_zip_file_uploaded(client, path):
    import zipfile

    with zipfile.ZipFile(path / "zipped_package.zip", "w") as archive:
        archive.writestr("zipped_package/__init__.py", "ANSWER = 46\n")
    client.upload_file(str(path / "zipped_package.zip"))

    def use():
        import zipped_package

        return zipped_package.ANSWER

    return client.submit(use, pure=False).result()


@program(raises=FileNotFoundError)
def a_file_that_is_not_there(client, path):
    return client.upload_file(str(path / "nothing.py"))


@program
def a_data_file_uploaded(client, path):
    (path / "uploaded.txt").write_text("words")
    client.upload_file(str(path / "uploaded.txt"), load=False)
    return "uploaded.txt" in {
        name
        for names in client.run(lambda dask_worker: os.listdir(dask_worker.local_directory)).values()
        for name in names
    }


@program
def what_an_install_plugin_does(client, path):
    name = str(path / "installed")

    def install():
        with open(name, "a") as file:
            file.write("x")

    client.register_plugin(InstallPlugin(install, restart_workers=False))
    return set((path / "installed").read_text())


@program(covers=("PipInstall",), raises=RuntimeError)
def packages_that_cannot_be_installed(client):
    plugin = PipInstall(["./no-such-directory-here"], pip_options=["--no-index", "--disable-pip-version-check"])
    return client.register_plugin(plugin)


@program
def a_preload_of_a_plugin_by_a_thread(client):
    """A plugin registered beside running tasks harms none of them."""

    class Plugin(SchedulerPlugin):
        name = "beside-tasks"

    futures = client.map(inc, range(20), pure=False)
    thread = threading.Thread(target=client.register_plugin, args=(Plugin(),))
    thread.start()
    result = client.gather(futures)
    thread.join()
    client.unregister_scheduler_plugin("beside-tasks")
    return result


@program(covers=("CondaInstall",), raises=RuntimeError)
def packages_of_conda_where_there_is_none(client, path):
    import sys

    hidden = {"conda": None, "conda.cli": None, "conda.cli.python_api": None}
    saved = {name: sys.modules.get(name) for name in hidden}
    sys.modules.update(hidden)  # the scheduler installs first, and lives in this process under both
    try:
        return client.register_plugin(CondaInstall(["nothing"]))
    finally:
        for name, module in saved.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
