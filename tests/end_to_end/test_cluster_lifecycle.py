"""A cluster starts, works and ends without a trace: sync and async, in good days and bad."""

import asyncio
import contextlib
import gc
import importlib
import inspect
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import urllib.request
import warnings
from pathlib import Path

import psutil
import pytest
from distributed import Client, worker_client
from distributed.core import Status
from distributed.deploy import Adaptive
from distributed.exceptions import WorkerStartTimeoutError

from dask_serverless import ServerlessCluster
from lambda_worker.core.errors import PlatformError, ServerlessError
from tests.waiting import until

OPTIONS = {"n_workers": 2, "dashboard_address": ":0"}


class FakeProxy:
    """Accepts what a proxy is told; for tests of the cluster alone."""

    def __init__(self, scheduler, backend):
        self.scheduler, self.backend = scheduler, backend
        self.ceilings, self.failures = [], []
        self.closed = 0

    async def start(self):
        pass

    async def close(self):
        self.closed += 1

    def stats(self):
        return {"tasks_run": 7}

    def set_ceiling(self, ceiling):
        self.ceilings.append(ceiling)

    def backend_failed(self, error):
        self.failures.append(error)


class Alone(ServerlessCluster):
    """A cluster without a proxy."""

    _proxy_class = FakeProxy


def traces():
    """Return what a cluster might leave behind."""
    files = {
        path for path in Path(tempfile.gettempdir()).iterdir() if path.name.startswith(("dask-serverless", "dsl-"))
    }
    children = {child.pid for child in psutil.Process().children(recursive=True) if child.status() != "zombie"}
    listening = {
        connection.laddr for connection in psutil.Process().net_connections() if connection.status == psutil.CONN_LISTEN
    }
    threads = {thread.name for thread in threading.enumerate() if thread.name.startswith("dask-serverless")}
    return {"files": files, "children": children, "listening": listening, "threads": threads}


@pytest.fixture(autouse=True)
def no_traces(monkeypatch, tmp_path):  # tmp_path: pytest's own place must exist before ours stands for it
    # A place of our own, since other programs make temporary files too; short, for the sockets in it.
    directory = tempfile.mkdtemp(prefix="t", dir="/tmp")
    monkeypatch.setenv("TMPDIR", directory)
    monkeypatch.setattr(tempfile, "tempdir", directory)
    before = traces()
    yield

    def left():
        gc.collect()
        return {kind: found - before[kind] for kind, found in traces().items() if found - before[kind]}

    until(lambda: not left(), f"nothing is left behind: {left()}")
    shutil.rmtree(directory)


def addresses_listened_on():
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections():
                if connection.status == psutil.CONN_LISTEN:
                    yield connection.laddr.ip
                elif connection.type == socket.SOCK_DGRAM and connection.laddr:
                    yield connection.laddr.ip


# --- with the real proxy


def test_sync():
    with ServerlessCluster(**OPTIONS) as cluster:
        assert cluster.status == Status.running
        with Client(cluster) as client:
            assert client.submit(sum, [1, 2]).result(timeout=30) == 3
            client.wait_for_workers(2, timeout=10)
            stats = cluster.stats()
        assert stats["tasks_run"] == 1 and stats["invocations"] == 1 and stats["sandboxes_cold"] == 1
        for name in ("executors", "objects_written", "round_trips", "store_keys", "store_bytes", "gb_seconds"):
            assert isinstance(stats[name], (int, float))
        assert set(addresses_listened_on()) == {"127.0.0.1"}
    assert cluster.status == Status.closed
    assert cluster.close() is None


async def test_async():
    async with ServerlessCluster(**OPTIONS, asynchronous=True) as cluster:
        async with Client(cluster, asynchronous=True) as client:
            assert await client.submit(sum, [1, 2]) == 3
            await client.wait_for_workers(2)
            assert (await cluster.stats())["tasks_run"] == 1
            assert {"Cluster", "Scheduler", "Executors"} <= set(await cluster.get_logs())
    assert cluster.status == Status.closed
    await cluster.close()


def test_two_at_once():
    with ServerlessCluster(**OPTIONS) as first, ServerlessCluster(**OPTIONS) as second:
        with Client(first) as one, Client(second) as other:
            futures = [one.submit(sum, [1, 2]), other.submit(sum, [3, 4])]
            assert [future.result(timeout=30) for future in futures] == [3, 7]
        assert first.scheduler_address != second.scheduler_address
        assert first.dashboard_link != second.dashboard_link
        assert first.stats()["tasks_run"] == second.stats()["tasks_run"] == 1


def test_closing_while_computing_does_not_hang():
    cluster = ServerlessCluster(**OPTIONS)
    client = Client(cluster)
    futures = client.map(time.sleep, [60] * 4, pure=False)
    until(lambda: cluster.stats()["invocations"])
    before = time.monotonic()
    cluster.close()
    assert time.monotonic() - before < 15
    assert all(future.status in ("pending", "cancelled", "error", "lost") for future in futures)
    client.close()


def test_client_shutdown_closes_the_cluster():
    cluster = ServerlessCluster(**OPTIONS)
    Client(cluster).shutdown()
    assert cluster.status == Status.closed
    cluster.close()


def test_shutdown_by_a_client_that_only_knows_the_address():
    cluster = ServerlessCluster(**OPTIONS)
    Client(cluster.scheduler_address).shutdown()
    until(lambda: cluster.status == Status.closed)
    cluster.close()


def test_modules_of_the_users_path_and_environment_reach_executors(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("VALUE = 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def read():
        import only_here

        return only_here.VALUE, os.environ["GREETING"]

    with ServerlessCluster(**OPTIONS, environment={"GREETING": "hello"}) as cluster, Client(cluster) as client:
        assert client.submit(read).result(timeout=30) == (42, "hello")


def test_printing_in_a_task_is_in_the_logs():
    with ServerlessCluster(**OPTIONS) as cluster, Client(cluster) as client:
        client.submit(print, "seen by nobody else").result(timeout=30)
        assert "seen by nobody else" in cluster.get_logs()["Executors"]


def run_program(program, timeout=90):
    program = f"if __name__ == '__main__':\n{textwrap.indent(textwrap.dedent(program), '    ')}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=timeout, env=environment
    )


@pytest.mark.parametrize("how", ["pass", "raise SystemExit(0)", "client.close()"])
def test_the_interpreters_end_closes_what_the_user_forgot(how):
    done = run_program(f"""
        from distributed import Client, worker_client
        from dask_serverless import ServerlessCluster
        cluster = ServerlessCluster(n_workers=2, dashboard_address=":0")
        client = Client(cluster)
        assert client.submit(sum, [1, 2]).result(timeout=30) == 3
        {how}
    """)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_interpreters_end_with_an_asynchronous_cluster():
    done = run_program("""
        import asyncio
        from dask_serverless import ServerlessCluster
        async def main():
            return await ServerlessCluster(n_workers=2, dashboard_address=":0", asynchronous=True)
        cluster = asyncio.run(main())
    """)
    assert done.returncode == 0


# --- the cluster alone


def test_busy_dashboard_port_warns_and_another_is_taken():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with Alone(n_workers=2, dashboard_address=f":{port}") as cluster:
                assert f":{port}/" not in cluster.dashboard_link
        assert any(f"Port {port} is already in use" in str(each.message) for each in caught)


def test_the_dashboard_answers_and_so_does_its_page_on_stealing():
    with Alone(**OPTIONS) as cluster:
        assert cluster.dashboard_link.startswith("http://127.0.0.1:")
        for page in ("status", "stealing", "individual-workers"):
            with urllib.request.urlopen(cluster.dashboard_link.replace("status", page)) as response:
                assert response.status == 200


@pytest.mark.fault(41)
@pytest.mark.parametrize("dashboard_address", [None, ":0", "127.0.0.1:0"])
@pytest.mark.parametrize("protocol", [None, "inproc"])
def test_nothing_listens_beyond_loopback(dashboard_address, protocol):
    with Alone(n_workers=2, dashboard_address=dashboard_address, protocol=protocol):
        assert set(addresses_listened_on()) <= {"127.0.0.1"}


def test_this_scheduler_does_not_steal_or_queue_and_the_configuration_is_untouched():
    import dask

    before = dask.config.get("distributed.scheduler")
    with Alone(**OPTIONS) as cluster:
        assert "stealing" not in cluster.scheduler.periodic_callbacks
        assert cluster.scheduler.WORKER_SATURATION == float("inf")
    assert dask.config.get("distributed.scheduler") == before


def test_scale_reaches_proxy_and_lambda():
    with Alone(**OPTIONS) as cluster:
        cluster.scale(5)
        assert until(lambda: cluster._proxy.ceilings) == [5]
        assert "workers=5" in repr(cluster)


def test_wait_for_more_than_there_can_be_is_refused_early():
    with Alone(**OPTIONS) as cluster:
        with pytest.raises(ValueError, match=r"wait_for_workers\(3\).*at most 2.*scale\(3\)"):
            cluster.wait_for_workers(3)
        for bad in (0, -1, 1.5, True, "2"):
            with pytest.raises(ValueError, match="positive integer"):
                cluster.wait_for_workers(bad)
        with pytest.raises(TimeoutError):  # the fake proxy brings no fleet
            cluster.wait_for_workers(2, timeout="200ms")


def test_waiting_for_too_many_with_a_timeout_is_dasks_own_error():
    with ServerlessCluster(**OPTIONS) as cluster, Client(cluster) as client:
        for waiting in (client, cluster):
            with pytest.raises(WorkerStartTimeoutError, match="Only 2/50 workers arrived after 0.2"):
                waiting.wait_for_workers(50, timeout=0.2)
        cluster.scale(50)
        client.wait_for_workers(50, timeout=10)


def test_scaling_shows_in_what_dask_says_of_its_workers():
    with ServerlessCluster(**OPTIONS, memory_limit="1 GiB") as cluster, Client(cluster) as client:
        assert sum(client.nthreads().values()) == 2
        for count, shown in ((7, 7), (0, 1), (3, 3)):  # a Dask worker has a thread at least
            cluster.scale(count)
            until(lambda shown=shown: sum(client.nthreads().values()) == shown)
            until(lambda shown=shown: [e["nthreads"] for e in cluster.scheduler_info["workers"].values()] == [shown])
            assert cluster.scheduler.total_nthreads == shown
            assert cluster.scheduler.host_info["127.0.0.1"]["nthreads"] == shown
        assert client.scheduler_info(n_workers=-1)["total_memory"] == 3 * 2**30
        assert client.submit(sum, [1, 2]).result(timeout=30) == 3
        # A fleet worker that takes the old one's place has the new size, too.
        client.restart()
        assert sum(client.nthreads().values()) == 3


def test_adapt_sets_the_ceiling_and_scale_ends_it():
    with Alone(**OPTIONS) as cluster:
        adaptive = cluster.adapt()
        assert isinstance(adaptive, Adaptive) and (adaptive.minimum, adaptive.maximum) == (0, 2)
        assert "Adaptive" in cluster._scaling_status()
        adaptive = cluster.adapt(minimum=1, maximum=9, interval="200 ms", wait_count=5, target_duration="1s")
        assert (adaptive.minimum, adaptive.maximum, cluster.ceiling) == (1, 9, 9)
        assert (adaptive.interval, adaptive.wait_count, adaptive.target_duration) == (0.2, 5, 1)
        assert adaptive.plan == adaptive.requested == adaptive.observed == set() and not adaptive.log
        assert cluster.sync(adaptive.target) == 9 and cluster.sync(adaptive.adapt) is None
        cluster.scale(dask_workers=0)
        assert adaptive.state == "running" and cluster.ceiling == 9
        cluster.scale(4)
        assert adaptive.state == "stopped" and "Manual" in cluster._scaling_status() and cluster.ceiling == 4
        for bad in ({"minimum": 5, "maximum": 4}, {"minimum": -1}, {"maximum": 10**6}):
            with pytest.raises(ValueError, match="adapt"):
                cluster.adapt(**bad)
        assert cluster.ceiling == 4
        with pytest.raises(ValueError, match="n_workers=1000000"):
            cluster.scale(10**6)


def test_a_cluster_is_found_by_its_name_in_its_own_process():
    with Alone(**OPTIONS, name="mine") as cluster:
        assert Alone.from_name("mine") is ServerlessCluster.from_name("mine") is cluster
    with pytest.raises(ValueError, match=r"no cluster named 'mine' in this process.*scheduler_file"):
        ServerlessCluster.from_name("mine")


def test_a_scheduler_file_for_clients_elsewhere(tmp_path):
    path = str(tmp_path / "scheduler.json")
    with ServerlessCluster(**OPTIONS, scheduler_kwargs={"scheduler_file": path}):
        done = run_program(f"""
            from distributed import Client, worker_client
            with Client(scheduler_file={path!r}) as client:
                print(client.submit(sum, [1, 2]).result(timeout=30))
        """)
        assert (done.stdout, done.stderr, done.returncode) == ("3\n", "", 0)


async def test_as_jupyterlab_makes_and_shows_clusters():
    """The way of its Dask extension: a class by module and name, keywords with hyphens, asynchronous."""
    kwargs = {"n-workers": 2, "dashboard-address": ":0"}
    factory = importlib.import_module("dask_serverless").ServerlessCluster
    cluster = await factory(**{name.replace("-", "_"): value for name, value in kwargs.items()}, asynchronous=True)
    try:

        def model():
            workers = cluster.scheduler_info["workers"].values()
            return (
                cluster.scheduler_address.partition("://")[0],
                bool(cluster.dashboard_link),
                len(workers),
                sum(each["nthreads"] for each in workers),
                sum(each["memory_limit"] for each in workers),
            )

        assert model() == ("tcp", True, 1, 2, 4 * 2**30)
        answer = cluster.scale(5)
        assert inspect.isawaitable(answer) and await answer is None
        while model()[3] != 5:
            await asyncio.sleep(0.02)
        adaptive = cluster.adapt(minimum=1, maximum=6)
        assert (adaptive.minimum, adaptive.maximum) == (1, 6)
        assert cluster.name and "ServerlessCluster" in repr(cluster) and "ServerlessCluster" in cluster._repr_html_()
    finally:
        await cluster.close()
    assert cluster.status == Status.closed


def test_the_widget_of_notebooks(capsys):
    ipywidgets = pytest.importorskip("ipywidgets")
    with Alone(**OPTIONS) as cluster:
        widget = cluster._widget()
        assert isinstance(widget, ipywidgets.Tab) and cluster._widget() is widget
        status, scaling = widget.children
        assert "Executors at once" in status.value
        shown, accordion = scaling.children
        (count, scale), (minimum, maximum, adapt) = (box.children for box in accordion.children)
        count.value = 6
        scale.click()
        assert cluster.ceiling == 6 and "Executors at once: 6" in shown.value and "Manual" in shown.value
        minimum.value, maximum.value = 1, 8
        adapt.click()
        assert cluster.ceiling == 8 and "Adaptive" in shown.value
        count.value = 3
        scale.click()
        assert cluster.ceiling == 3 and "Manual" in shown.value
        cluster._ipython_display_()
        assert "Alone(" in capsys.readouterr().out


def a_free_port():
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return any_port.getsockname()[1]


@pytest.mark.parametrize(
    "where",
    [{"interface": "lo"}, {"host": "tcp://127.0.0.1"}, {"scheduler_port": a_free_port(), "protocol": "tcp"}],
    ids=["interface", "host", "port"],
)
def test_where_the_scheduler_listens_tasks_find_it(where):
    def work():
        with worker_client() as client:
            return client.submit(abs, -3, pure=False).result(), client.scheduler.address

    with ServerlessCluster(**OPTIONS, **where) as cluster, Client(cluster) as client:
        assert client.submit(work).result(timeout=30) == (3, cluster.scheduler_address)
        if port := where.get("scheduler_port"):
            assert cluster.scheduler_address == f"tcp://127.0.0.1:{port}"


def test_attributes_of_local_cluster_that_programs_read():
    with ServerlessCluster(**OPTIONS, name="read") as cluster:
        assert cluster.name == "read" and cluster.loop.asyncio_loop.is_running() and not cluster.asynchronous
        assert cluster.scheduler.address == cluster.scheduler_address == cluster.scheduler_comm.address
        assert cluster.plan == cluster.requested == cluster.observed == set(cluster.workers) == {"serverless"}
        client = cluster.get_client()
        assert cluster.get_client() is client and client.cluster is cluster
        client.close()
        assert set(cluster.get_logs(cluster=True, scheduler=False, workers=False)) == {"Cluster"}
    assert cluster.workers == {}


def test_stats_have_every_counter_from_the_beginning():
    with Alone(**OPTIONS) as cluster:
        stats = cluster.stats()
        assert stats["tasks_run"] == 7
        assert stats["invocations"] == stats["executors"] == stats["gb_seconds"] == 0
    with pytest.raises(RuntimeError, match="closed"):
        cluster.stats()


def test_representations():
    with Alone(**OPTIONS, name="demo", memory_limit="1 GiB") as cluster:
        assert repr(cluster) == f"Alone('demo', '{cluster.scheduler_address}', workers=2, threads=2, memory=2.00 GiB)"
        html = cluster._repr_html_()
        assert "Executors at once" in html and "running" in html and cluster.dashboard_link in html
        assert cluster.plan == cluster.requested == cluster.observed == set()
    repr(cluster), cluster._repr_html_()


def test_logs_are_silenced_and_given_back():
    handler = logging.StreamHandler()
    logger = logging.getLogger("distributed")
    logger.addHandler(handler)
    try:
        with Alone(**OPTIONS, silence_logs=logging.ERROR):
            assert handler.level == logging.ERROR
        assert handler.level == logging.NOTSET
    finally:
        logger.removeHandler(handler)


@pytest.mark.fault(18)
def test_a_dead_storage_server_is_reported_to_the_proxy_once():
    with Alone(**OPTIONS) as cluster:
        tier = cluster._local.tier
        while not tier._given_up:  # a few times, it is started again
            killed = tier.pids["metadata"]
            os.kill(killed, signal.SIGKILL)
            until(lambda killed=killed: tier.pids["metadata"] != killed or tier._given_up)
        failures = cluster._proxy.failures
        until(lambda: failures)
        cluster.sync(cluster._check_health)  # another look finds nothing new to say
        [failure] = failures
        assert isinstance(failure, PlatformError) and "metadata" in str(failure)
        assert "metadata" in cluster.get_logs(scheduler=False, workers=False)["Cluster"]


def test_a_dead_lambda_service_is_reported_to_the_proxy():
    with Alone(**OPTIONS) as cluster:
        os.kill(cluster._local.service.pid, signal.SIGKILL)
        failures = cluster._proxy.failures
        until(lambda: failures)
        assert isinstance(failures[0], PlatformError) and "Lambda" in str(failures[0])


# --- starts that fail


def failing(stage):
    class Failing(FakeProxy):
        async def start(self):
            if stage == "proxy":
                raise ServerlessError("the proxy would not")

    class Cluster(ServerlessCluster):
        _proxy_class = Failing

    return Cluster


def test_a_missing_server_is_a_typed_error_and_leaves_nothing(tmp_path):
    import dask

    server = tmp_path / "not-a-server"
    server.write_text("#!/bin/sh\nexit 3\n")
    server.chmod(0o700)
    with dask.config.set({"serverless.storage.server": str(server)}):
        with pytest.raises(PlatformError, match="server"):
            Alone(**OPTIONS)


def test_a_failing_proxy_is_cleaned_up_after():
    with pytest.raises(ServerlessError, match="the proxy would not"):
        failing("proxy")(**OPTIONS)


async def test_a_failing_proxy_is_cleaned_up_after_async():
    cluster = failing("proxy")(**OPTIONS, asynchronous=True)
    with pytest.raises(ServerlessError, match="the proxy would not"):
        await cluster
    assert cluster.status == Status.closed
    await cluster.close()


def test_a_scheduler_that_cannot_listen():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        with pytest.raises(RuntimeError, match="Cluster failed to start"):
            Alone(**OPTIONS, scheduler_port=busy.getsockname()[1])


async def test_a_start_that_is_cancelled():
    cluster = Alone(**OPTIONS, asynchronous=True)
    task = asyncio.ensure_future(cluster._start())
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cluster.status == Status.closed


async def test_closing_while_starting():
    cluster = Alone(**OPTIONS, asynchronous=True)
    task = asyncio.ensure_future(cluster._start())
    await asyncio.sleep(0.2)
    await cluster.close()
    await task
    assert cluster.status == Status.closed


# --- closing


async def test_many_close_at_once():
    cluster = await Alone(**OPTIONS, asynchronous=True)
    await asyncio.gather(*(cluster.close() for _ in range(5)))
    assert cluster.status == Status.closed
    assert cluster._proxy.closed == 1


async def test_a_close_that_times_out_still_closes():
    cluster = await Alone(**OPTIONS, asynchronous=True)
    with pytest.raises(TimeoutError):
        await cluster.close(timeout=0.001)
    await cluster.close()
    assert cluster.status == Status.closed


def test_a_proxy_that_fails_to_close_does_not_keep_the_rest_open(caplog):
    class Stubborn(FakeProxy):
        async def close(self):
            raise RuntimeError("no")

    class Cluster(ServerlessCluster):
        _proxy_class = Stubborn

    Cluster(**OPTIONS).close()
    assert "the proxy did not close cleanly" in caplog.text


def test_with_in_async_mode_is_refused():
    async def main():
        cluster = Alone(**OPTIONS, asynchronous=True)
        with pytest.raises(TypeError, match="async with"):
            with cluster:
                pass
        await cluster.close()

    asyncio.run(main())


async def test_an_unclosed_cluster_warns():
    cluster = Alone(**OPTIONS, asynchronous=True)
    with pytest.warns(ResourceWarning, match="unclosed cluster Alone"):
        del cluster
        gc.collect()
