"""Clusters and the lives of clients, after docs.dask.org/en/stable/deploying-python.html."""

from __future__ import annotations

import asyncio
import os

from dask.distributed import Client, wait
from distributed.exceptions import WorkerStartTimeoutError

from tests.compatibility.programs import log_of, program


def inc(n):
    return n + 1


@program
def a_client_of_the_cluster(cluster):
    with cluster.get_client() as client:
        return client.submit(inc, 1).result(), client.cluster is cluster


@program
def attributes(cluster):
    return (
        type(cluster.name).__name__,
        cluster.status.name,
        cluster.asynchronous,
        cluster.scheduler_address[:6],
        cluster.dashboard_link[:7],
    )


@program
def texts(cluster):
    return (
        "Cluster(" in repr(cluster),
        "workers=2" in repr(cluster),
        "threads=2" in repr(cluster),
        "<div" in cluster._repr_html_(),
    )


@program
def information(cluster, client):
    info = cluster.scheduler_info
    return sorted(set(info) - {"started"}), sum(each["nthreads"] for each in info["workers"].values()), info["type"]


@program
def logs(cluster):
    return (
        "Cluster" in log_of(lambda: cluster.get_logs()),
        "Scheduler" in log_of(lambda: cluster.get_logs(workers=False)),
        list(log_of(lambda: cluster.get_logs(scheduler=False, workers=False))),
    )


@program
def logs_of_the_scheduler_and_workers(client):
    logs = log_of(lambda: client.get_scheduler_logs()), log_of(lambda: client.get_worker_logs())
    return [type(each).__name__ for each in logs]


@program
def waiting_for_workers(cluster, client):
    client.wait_for_workers(1, timeout=5)
    cluster.wait_for_workers(2, timeout=5)
    return True


@program
def waiting_for_two_workers(client):
    client.wait_for_workers(2, timeout=2)
    return True


@program(raises=ValueError)
def waiting_for_a_wrong_number(client):
    client.wait_for_workers(0)


@program(
    covers=("Client.wait_for_workers",),
    raises=WorkerStartTimeoutError,
)
def waiting_for_too_many(client):
    client.wait_for_workers(50, timeout=0.3)


@program(
    covers=("LocalCluster.wait_for_workers",),
    raises=WorkerStartTimeoutError,
)
def waiting_for_too_many_by_the_cluster(cluster):
    cluster.wait_for_workers(50, timeout=0.3)


@program(own_cluster=True)
def scaling(cluster, client):
    cluster.scale(3)
    first = client.gather(client.map(inc, range(10)))
    cluster.scale(1)
    second = client.gather(client.map(inc, range(10, 20)))
    return first, second


@program(own_cluster=True)
def scaling_to_nothing_and_back(cluster, client):
    cluster.scale(0)
    future = client.submit(inc, 1)
    wait_failed = False
    try:
        wait(future, timeout=0.5)
    except TimeoutError:
        wait_failed = True
    cluster.scale(1)
    return wait_failed, future.result()


@program(own_cluster=True)
def adapting(cluster, client):
    adaptive = cluster.adapt(minimum=0, maximum=2, interval="100ms")
    return client.gather(client.map(inc, range(5))), adaptive.minimum, adaptive.maximum


@program(own_cluster=True)
def restarting(client):
    before = client.submit(inc, 1)
    wait(before)
    client.restart(timeout=10)
    return before.status, client.submit(inc, 2).result(), client.submit(inc, 1).result()


@program(
    covers=("Client.restart_workers",),
    own_cluster=True,
)
def restarting_workers(client):
    addresses = list(client.scheduler_info()["workers"])
    return set(client.restart_workers(addresses[:1], timeout=30).values()), client.submit(inc, 1).result()


@program(own_cluster=True)
def retiring_workers(client):
    future = client.submit(inc, 1)
    wait(future)
    addresses = list(client.scheduler_info()["workers"])
    client.retire_workers(addresses[:1])
    return future.result(timeout=4)


@program(own_cluster=True)
def closing(cluster):
    client = Client(cluster, set_as_default=False)
    client.submit(inc, 1).result()
    cluster.close()
    status = cluster.status.name
    cluster.close()
    client.close()
    return status, repr(cluster).split("(")[1][:0]


@program(own_cluster=True)
def shutting_down(cluster, client):
    client.submit(inc, 1).result()
    client.shutdown()
    return client.status, cluster.status.name


@program(own_cluster=True)
def a_client_of_a_closed_cluster(cluster):
    cluster.close()
    try:
        return Client(cluster, timeout=1)
    except RuntimeError as error:  # and the text of the cluster
        return str(error).partition("Cluster")[0]


@program
def an_asynchronous_cluster(cluster):
    async def work():
        kind = type(cluster)
        async with kind(n_workers=1, dashboard_address=None, asynchronous=True) as own:
            async with Client(own, asynchronous=True, set_as_default=False) as client:
                return await client.submit(inc, 1), own.status.name

    return asyncio.run(work())


@program(
    covers=("LocalCluster",),
    raises=RuntimeError,
    differs="TypeError at once, with the nearest name, where LocalCluster fails to start a nanny",
)
def arguments_that_do_not_exist(cluster):
    try:
        type(cluster)(n_wrokers=1, dashboard_address=None)
    except TypeError as error:
        return type(error).__name__


@program
def scaling_by_memory_and_cores(cluster):
    return type(cluster.scale(2)).__name__


@program
def the_environment_of_tasks(client):
    return client.submit(lambda: "PATH" in os.environ).result(), client.submit(os.getcwd).result() == os.getcwd()


@program
def time_zone_and_locale(client):
    import locale
    import time

    return client.submit(lambda: (time.tzname, locale.getpreferredencoding())).result()


@program
def variables_set_before_the_cluster_are_seen(client):
    return client.submit(os.environ.get, "HOME").result() == os.environ.get("HOME")


@program(
    covers=("LocalCluster",),
    differs="a directory of the sandbox's own, as in Lambda, where LocalCluster shares the machine's",
)
def temporary_files(client):
    import tempfile

    def work():
        with tempfile.NamedTemporaryFile() as file:
            return os.path.dirname(file.name)

    return client.submit(work).result()


@program
def what_tasks_import(client):
    def work():
        import json

        return json.dumps({"a": 1})

    return client.submit(work).result()


@program
def recursion_limits(client):
    import sys

    return client.submit(sys.getrecursionlimit).result()


@program
def standard_output_of_tasks(client):
    return client.submit(print, "hidden").result()


@program
def the_scheduler_object(cluster):
    return type(cluster.scheduler).__name__, cluster.scheduler.address == cluster.scheduler_address


@program
def the_workers_of_the_cluster(cluster):
    return type(cluster.workers).__name__, sorted(map(str, cluster.plan))[:0], len(cluster.requested) >= 0


@program(
    covers=("LocalCluster.workers",),
    differs="workers are executors, which have no Dask worker each: one entry stands for the fleet",
)
def how_many_workers_the_cluster_has(cluster):
    return len(cluster.workers)


@program(own_cluster=True)
def a_cluster_as_a_context(cluster):
    with cluster as same:
        with Client(same, set_as_default=False) as client:
            result = client.submit(inc, 1).result()
    return result, cluster.status.name


@program(raises=OSError)
def a_wrong_address():
    return Client("tcp://127.0.0.1:9", timeout=0.3)


@program
def a_client_with_a_name(cluster):
    with Client(cluster, name="named", set_as_default=False) as client:
        return client.id.startswith("Client-named"), client.submit(inc, 1).result()


@program(covers=("LocalCluster",), differs="the main thread of its executor, where LocalCluster has a pool of threads")
def the_thread_of_a_task(client):
    import threading

    return client.submit(lambda: threading.current_thread() is threading.main_thread()).result()


@program(covers=("Client.write_scheduler_file", "Client"), own_cluster=True)
def a_client_by_a_scheduler_file(client, path):
    client.write_scheduler_file(str(path / "scheduler.json"))
    with Client(scheduler_file=str(path / "scheduler.json"), set_as_default=False) as other:
        return other.submit(inc, 1).result(), other.scheduler_info()["id"] == client.scheduler_info()["id"]


@program
def a_client_by_the_configuration(cluster):
    import dask

    with dask.config.set({"scheduler-address": cluster.scheduler_address}):
        with Client(set_as_default=False) as client:
            return client.submit(inc, 1).result(), client.scheduler.address == cluster.scheduler_address


@program
def a_client_in_another_thread(cluster):
    import concurrent.futures

    def work(address):
        with Client(address, set_as_default=False) as client:
            return client.submit(inc, 1).result()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(work, cluster.scheduler_address).result(timeout=10)


@program
def a_client_in_another_process(cluster, path):
    import subprocess
    import sys

    (path / "program.py").write_text(
        "import sys\n"
        "from distributed import Client\n"
        "def inc(n):\n    return n + 1\n"
        "if __name__ == '__main__':\n"
        "    with Client(sys.argv[1]) as client:\n"
        "        print(client.gather(client.map(inc, range(3))))\n"
    )
    command = [sys.executable, str(path / "program.py"), cluster.scheduler_address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return done.stdout, done.returncode


@program
def a_function_instead_of_a_client(cluster):
    return cluster.get_client().submit(inc, 1).result()


@program(covers=("LocalCluster.adapt", "Adaptive", "Adaptive.stop"), own_cluster=True)
def adapting_no_longer(cluster, client):
    adaptive = cluster.adapt(minimum=1, maximum=2)
    adaptive.stop()
    cluster.scale(1)
    return client.submit(inc, 1).result(timeout=5)


@program(own_cluster=True)
def adapting_by_memory_and_cores(cluster, client):
    cluster.adapt(minimum_cores=1, maximum_cores=2)
    return client.gather(client.map(inc, range(3)))


@program(differs="ValueError at once, where LocalCluster takes no notice", covers=("LocalCluster.adapt",))
def adapting_to_less_than_nothing(cluster):
    return cluster.adapt(minimum=3, maximum=1)


@program
def the_plan_of_a_cluster(cluster):
    return type(cluster.plan).__name__, type(cluster.requested).__name__, type(cluster.observed).__name__


@program(covers=("LocalCluster.sync",))
def a_coroutine_of_the_cluster(cluster):
    async def work(n):
        return n + 1

    return cluster.sync(work, 1)


@program(covers=("rpc", "connect"))
def speaking_to_the_scheduler(client, cluster):
    from distributed import connect, rpc

    async def work():
        async with rpc(cluster.scheduler_address) as scheduler:
            first = (await scheduler.identity())["type"]
        comm = await connect(cluster.scheduler_address)
        await comm.write({"op": "identity", "reply": True})
        second = (await comm.read())["type"]
        await comm.close()
        return first, second

    return client.sync(work)


@program(covers=("Worker",))
def a_dask_worker_beside(client, cluster):
    async def beside():
        from distributed import Worker

        async with Worker(cluster.scheduler_address, name="beside", nthreads=1, dashboard_address=None):
            future = client.submit(inc, 1, workers="beside", pure=False)
            data = await client.scatter([10], workers=["beside"], asynchronous=True)
            both = client.submit(sum, [future, data[0]], pure=False)
            return await future._result(), await both._result()

    return client.sync(beside)


@program
def several_clusters_at_once(cluster):
    kind = type(cluster)
    with kind(n_workers=1, dashboard_address=None) as other, Client(other, set_as_default=False) as client:
        with Client(cluster, set_as_default=False) as first:
            return client.submit(inc, 1).result(), first.submit(inc, 2).result(), other.name != cluster.name


@program(covers=("LocalCluster",))
def arguments_of_a_cluster(cluster):
    kind = type(cluster)
    with kind(
        n_workers=1, threads_per_worker=1, processes=True, memory_limit="512 MiB", silence_logs=False,
        dashboard_address=None, name="mine", scheduler_port=0, host="127.0.0.1",
    ) as own, Client(own, set_as_default=False) as client:  # fmt: skip
        return own.name, client.submit(inc, 1).result(), sum(client.nthreads().values())


@program(
    covers=("LocalCluster.from_name",),
    raises=NotImplementedError,
    differs="finds a cluster of this process, or raises ValueError; LocalCluster cannot be found by name",
)
def a_cluster_by_its_name(cluster):
    return type(cluster).from_name("mine")


@program(covers=("Security", "Security.temporary"))
def a_cluster_with_certificates(cluster):
    from distributed import Security

    kind = type(cluster)
    with kind(n_workers=1, dashboard_address=None, security=Security.temporary()) as own:
        with Client(own, set_as_default=False) as client:
            return own.scheduler_address[:6], client.submit(inc, 1).result()


@program(covers=("Security", "Security.require_encryption"), raises=RuntimeError)
def a_client_that_requires_certificates(cluster):
    from distributed import Security

    return Client(cluster.scheduler_address, security=Security(require_encryption=True), timeout=2)


@program(
    covers=("KilledWorker",),
    differs="an `ExecutorKilled`, which is a `KilledWorker` too, after as many tries; it says what Lambda said",
    own_cluster=True,
)
def a_task_that_kills_its_process(client):
    return type(client.submit(os._exit, 1).exception(timeout=12)).__name__


@program
def the_life_of_a_client(cluster):
    client = Client(cluster, set_as_default=False)
    states = [client.status]
    client.close()
    client.close()
    return [*states, client.status]


@program
def the_names_of_a_client(client):
    return client.id.startswith("Client-"), client.cluster is not None


@program
def a_local_client_in_a_task(client):
    def work():
        from distributed import local_client

        with local_client() as inner:
            return inner.submit(inc, 1).result()

    return client.submit(work).result()


@program(
    covers=("LocalCluster.scale_up", "LocalCluster.scale_down", "LocalCluster.start_worker"),
    unsupported="AttributeError: Lambda starts and stops executors; `scale` and `adapt` set how many there may be",
)
def starting_workers_by_hand(cluster):
    return callable(cluster.scale_up), callable(cluster.scale_down), callable(cluster.start_worker)
