"""Clusters and the lives of clients, after docs.dask.org/en/stable/deploying-python.html."""

from __future__ import annotations

import asyncio
import os

from dask.distributed import Client, wait
from distributed.exceptions import WorkerStartTimeoutError

from tests.compatibility.programs import program


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
        "Cluster" in cluster.get_logs(),
        "Scheduler" in cluster.get_logs(workers=False),
        list(cluster.get_logs(scheduler=False, workers=False)),
    )


@program
def logs_of_the_scheduler_and_workers(client):
    return type(client.get_scheduler_logs()).__name__, type(client.get_worker_logs()).__name__


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
    raises=WorkerStartTimeoutError,
    differs="ValueError at once, since no time would help, where LocalCluster waits and raises WorkerStartTimeoutError",
)
def waiting_for_too_many(client):
    client.wait_for_workers(50, timeout=0.3)


@program(
    raises=WorkerStartTimeoutError,
    differs="ValueError at once, since no time would help, where LocalCluster waits and raises WorkerStartTimeoutError",
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


@program(own_cluster=True)
def restarting_workers(client):
    addresses = list(client.scheduler_info()["workers"])
    return set(client.restart_workers(addresses[:1], timeout=10).values()), client.submit(inc, 1).result()


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
    raises=RuntimeError, differs="TypeError at once, with the nearest name, where LocalCluster fails to start a nanny"
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


@program(differs="a directory of the sandbox's own, as in Lambda, where LocalCluster shares the machine's")
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


@program(differs="workers are executors, which have no Dask worker each: one entry stands for the fleet")
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


@program(differs="the main thread of its executor, where LocalCluster has a pool of threads")
def the_thread_of_a_task(client):
    import threading

    return client.submit(lambda: threading.current_thread() is threading.main_thread()).result()
