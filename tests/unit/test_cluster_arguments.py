"""What `ServerlessCluster` accepts, warns of and refuses: all before anything is started."""

import inspect
import math
import warnings
from pathlib import Path

import dask
import pytest
from distributed import Client, LocalCluster, Nanny, Worker
from distributed.core import Status
from distributed.security import Security

from dask_serverless import ServerlessCluster
from dask_serverless.backend import python_path
from dask_serverless.cluster_arguments import (
    adaptive_bounds,
    ceiling_of,
    check_dask_worker_options,
    check_environment,
    dashboard_addresses,
    load_settings,
)
from dask_serverless.config import Settings
from dask_serverless.stock_scheduler import scheduler_options

MiB = 2**20


class Stop(Exception):
    """The arguments were accepted."""


@pytest.fixture
def make(monkeypatch):
    """Make a cluster up to the point where it would be started."""
    made = []

    class Backend:
        def __init__(self, name, ceiling, settings, environment, local_directory, tls, persistent):
            made.append(self)
            self.name, self.ceiling, self.settings = name, ceiling, settings
            self.environment, self.local_directory, self.tls = environment, local_directory, tls
            raise Stop

    class Cluster(ServerlessCluster):
        _backend_class = Backend

    def make(*args, **kwargs):
        with pytest.raises(Stop):
            Cluster(*args, **kwargs)
        return made[-1]

    make.cluster = Cluster
    return make


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --- as LocalCluster


def test_the_same_names_at_the_same_places_as_local_cluster():
    theirs = [
        each for each in inspect.signature(LocalCluster).parameters.values() if each.kind is each.POSITIONAL_OR_KEYWORD
    ]
    ours = [
        each
        for each in inspect.signature(ServerlessCluster).parameters.values()
        if each.kind is each.POSITIONAL_OR_KEYWORD
    ]
    assert [each.name for each in ours] == [each.name for each in theirs]
    assert [each.default for each in ours] == [each.default for each in theirs]


def test_every_name_of_local_cluster_worker_and_nanny_is_accepted(make):
    names = set()
    for cls in (LocalCluster, Worker, Nanny):
        names |= {
            each.name
            for each in inspect.signature(cls.__init__).parameters.values()
            if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL) and each.name != "self"
        }
    assert len(names) > 60
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make(**{name: None})


def test_the_ceiling_is_the_cpu_count_unless_told(make, monkeypatch):
    monkeypatch.setattr("dask.system.CPU_COUNT", 7)
    assert make().ceiling == 7
    assert make(n_workers=3).ceiling == 3
    assert make("name", 3).ceiling == 3
    assert make(n_workers=0).ceiling == 0


def test_threads_share_the_cores_with_executors_as_in_local_cluster(make, monkeypatch):
    monkeypatch.setattr("dask.system.CPU_COUNT", 7)
    cluster = make(threads_per_worker=2)
    assert (cluster.ceiling, cluster.settings.executor_threads) == (3, 2)
    assert make(threads_per_worker=9).ceiling == 1
    assert make(n_workers=7, threads_per_worker=2).ceiling == 7
    with dask.config.set({"serverless.workers.count": 5}):
        assert make(threads_per_worker=2).ceiling == 5
    with dask.config.set({"serverless.executor.threads": 2}):
        assert make().settings.executor_threads == 2


def test_usual_calls_do_not_warn(make):
    make(n_workers=2, threads_per_worker=1, processes=True, memory_limit="auto", dashboard_address=None)
    make(name="name", security=Security(), host="127.0.0.1", scheduler_port=0, silence_logs=False)


# --- warned of


@pytest.mark.parametrize(
    ("argument", "value", "reason"),
    [
        ("processes", False, "always processes"),
        ("worker_class", Worker, "Lambda functions"),
        ("worker_dashboard_address", ":0", "no dashboard"),
        ("nthreads", 2, "use threads_per_worker"),
        ("lifetime", "1 hour", "invocation"),
        ("nanny", True, "option of Dask workers"),
        ("contact_address", "tcp://a:1", "option of Dask workers"),
        ("proxy_address", "10.0.0.1", "part of the cluster"),
        ("num_fargate_nodes", 5, "storage_shards"),
        ("num_lambda_invokers", 5, "by itself"),
        ("use_fargate", True, "storage_shards"),
    ],
)
def test_what_means_nothing_here_is_warned_of_once_with_the_reason(make, argument, value, reason):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make(**{argument: value})
    [warning] = caught
    assert warning.category is UserWarning
    assert repr(argument) in str(warning.message) and reason in str(warning.message)


# --- refused


def refused(make, **kwargs):
    with pytest.raises((TypeError, ValueError)) as caught:
        make.cluster(**kwargs)
    return caught.type, str(caught.value)


def test_an_unknown_name_is_refused_with_the_nearest(make):
    kind, text = refused(make, n_wrokers=2)
    assert kind is TypeError
    assert "'n_wrokers'" in text and "did you mean 'n_workers'?" in text


def test_an_unknown_option_of_the_scheduler_is_refused(make):
    kind, text = refused(make, scheduler_kwargs={"idle_timeuot": 1})
    assert kind is TypeError
    assert "scheduler_kwargs has 'idle_timeuot'" in text and "did you mean 'idle_timeout'?" in text


def test_a_name_like_no_other_is_refused_without_a_guess(make):
    assert refused(make, xyzzy=1) == (
        TypeError,
        "ServerlessCluster() got an unexpected keyword argument 'xyzzy'",
    )


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("n_workers", -1),
        ("n_workers", 2.5),
        ("n_workers", "two"),
        ("n_workers", True),
        ("n_workers", 10**6),
        ("dask_workers", -1),
        ("dask_workers", True),
        ("dask_workers", 1.5),
        ("dask_workers", 10**6),
        ("dask_worker_options", [("nthreads", 2)]),
        ("resources", ["GPU"]),
        ("threads_per_worker", 0),
        ("threads_per_worker", "many"),
        ("memory_limit", "lots"),
        ("memory_limit", "1 MiB"),
        ("memory_limit", "64 GiB"),
        ("memory_limit", True),
        ("memory_limit", -1),
        ("timeout", "soon"),
        ("timeout", "1 hour"),
        ("timeout", 0),
        ("preload", 7),
        ("preload", ["not a module"]),
        ("storage_shards", 0),
        ("storage_shards", 1.5),
        ("storage_max_memory", "1 MiB"),
        ("security", "tls"),
        ("environment", ["A=1"]),
        ("env", "A=1"),
        ("local_directory", 3),
        ("scheduler_kwargs", "port"),
        ("dashboard_address", "nonsense:port"),
        ("dashboard_address", "a:b:c"),
    ],
)
def test_a_bad_value_is_refused_naming_argument_and_value(make, argument, value):
    _, text = refused(make, **{argument: value})
    assert argument in text and repr(value) in text


def test_a_refused_cluster_leaves_no_thread_and_no_unclosed_warning(make):
    import gc
    import threading

    before = threading.active_count()
    refused(make, memory_limit="lots")
    gc.collect()
    assert threading.active_count() == before


# --- meanings


@pytest.mark.parametrize(
    ("memory_limit", "expected"),
    [("1 GiB", 1024), (512 * MiB, 512), ("auto", 2048), ("1024MiB", 1024), (float(1024 * MiB), 1024)],
)
def test_memory_limit_is_the_memory_of_one_lambda(memory_limit, expected):
    assert load_settings(memory_limit=memory_limit).lambda_memory == expected * MiB


def test_memory_limit_as_a_fraction_of_this_machine(monkeypatch):
    monkeypatch.setattr("dask_serverless.cluster_arguments.MEMORY_LIMIT", 8192 * MiB)
    assert load_settings(memory_limit=0.25).lambda_memory == 2048 * MiB


@pytest.mark.parametrize("memory_limit", [0, None])
def test_no_memory_limit_is_lambdas_largest(memory_limit):
    with pytest.warns(UserWarning, match="always has a limit"):
        assert load_settings(memory_limit=memory_limit).lambda_memory == 10240 * MiB


def test_options_of_dask_workers(make):
    assert check_dask_worker_options(None) == {}
    assert check_dask_worker_options({"nthreads": 2}, {"GPU": 1}) == {"nthreads": 2, "resources": {"GPU": 1}}
    assert check_dask_worker_options({"resources": {"A": 2}}, {"B": 1}) == {"resources": {"A": 2}}
    for options, error, text in [
        ({"nthread": 2}, TypeError, "did you mean 'nthreads'"),
        ({"security": None}, ValueError, "give security= to the cluster"),
        ({"name": "mine"}, ValueError, "names are given by the cluster"),
        ({"resources": {"GPU": -1}}, ValueError, "resources has 'GPU': -1"),
        ({"resources": {"GPU": "many"}}, ValueError, "resources has 'GPU': 'many'"),
    ]:
        kind, message = refused(make, dask_worker_options=options)
        assert kind is error and text in message


def test_what_scale_and_adapt_mean():
    settings = Settings.load(lambda_memory=128 * MiB, executor_threads=2)
    assert ceiling_of(3, None, None, settings) == 3
    assert ceiling_of(None, "640 MiB", 7, settings) == 5
    assert ceiling_of(None, None, 7, settings) == 4
    with pytest.raises(ValueError, match="more than 10000"):
        ceiling_of(None, "2 TiB", None, settings)
    assert adaptive_bounds((0, None, None), (math.inf, None, None), 4, settings) == (0, 4)
    assert adaptive_bounds((6, None, None), (math.inf, None, None), 4, settings) == (6, 6)
    assert adaptive_bounds((None, 1, "256 MiB"), (None, 19, "1 GiB"), 4, settings) == (2, 8)
    assert adaptive_bounds((None, 3, None), (None, 5, None), 4, settings) == (2, 2)
    for least, most, text in [((-1,), (3,), "negative"), ((4,), (3,), "exceed"), ((0,), (10**6,), "10000")]:
        with pytest.raises(ValueError, match=text):
            adaptive_bounds((*least, None, None), (*most, None, None), 4, settings)


def test_arguments_stand_above_the_configuration():
    import dask

    with dask.config.set({"serverless.lambda.memory": "512 MiB", "serverless.storage.shards": 3}):
        settings = load_settings(memory_limit="1 GiB")
    assert (settings.lambda_memory, settings.storage_shards) == (1024 * MiB, 3)


def test_a_bad_configuration_is_named_by_its_key():
    import dask

    with dask.config.set({"serverless.lambda.memory": "lots"}):
        with pytest.raises(ValueError, match="^serverless.lambda.memory is 'lots'"):
            load_settings(n_workers=2)


def test_one_module_to_preload_needs_no_list():
    assert load_settings(preload="json").lambda_preload == ("json",)


def test_environment_in_both_spellings():
    assert check_environment({"A": 1}, {"A": "0", "B": "2"}) == {"A": "1", "B": "2"}
    assert check_environment({"DASK_SERVERLESS__LAMBDA__MEMORY": "1 GiB"}, None)
    with pytest.raises(ValueError, match="DASK_SERVERLESS_SECRET"):
        check_environment({"DASK_SERVERLESS_SECRET": "x"}, None)


@pytest.mark.parametrize(
    ("dashboard_address", "host", "expected"),
    [
        (":8787", None, [("127.0.0.1", 8787)]),
        (8787, None, [("127.0.0.1", 8787)]),
        ("8787", None, [("127.0.0.1", 8787)]),
        (":0", None, [("127.0.0.1", 0)]),
        ("localhost:8787", None, [("localhost", 8787)]),
        ("0.0.0.0:8787", None, [("0.0.0.0", 8787)]),
        (":8787", "10.0.0.5", [("10.0.0.5", 8787)]),
        (":8787", "tcp://10.0.0.5:8786", [("10.0.0.5", 8787)]),
        (":8787", "tls://[::1]:8786", [("::1", 8787)]),
        (":8787,:8788", None, [("127.0.0.1", 8787), ("127.0.0.1", 8788)]),
        (None, None, [("127.0.0.1", 0)]),
        ("", None, [("127.0.0.1", 0)]),
    ],
)
def test_the_dashboard_listens_where_the_scheduler_does(dashboard_address, host, expected):
    assert dashboard_addresses(dashboard_address, host) == expected


def options(**kwargs):
    given = dict.fromkeys(
        ("host", "protocol", "interface", "blocked_handlers", "service_kwargs", "scheduler_kwargs", "dashboard_address")
    )
    return scheduler_options(**{**given, "port": 0, "security": Security(), **kwargs})


def test_the_scheduler_listens_on_loopback_unless_told():
    assert (options()["host"], options()["protocol"]) == ("127.0.0.1", "tcp://")
    assert options(host="10.0.0.5")["host"] == "10.0.0.5"
    assert options(interface="lo")["host"] is None
    inside = options(protocol="inproc", port=1234)  # and on loopback, for who is not inside
    assert (inside["protocol"], inside["host"]) == (["inproc://", "tcp://"], [None, "127.0.0.1"])
    assert inside["port"] == [0, 1234]


def test_security_and_host_choose_the_protocol():
    assert options(security=Security(require_encryption=True))["protocol"] == "tls://"
    assert options(host="tls://10.0.0.5")["protocol"] == "tls://"


def test_scheduler_kwargs_come_last_but_do_not_open_the_dashboard():
    got = options(scheduler_kwargs={"idle_timeout": "1 hour", "dashboard_address": ":8080"})
    assert got["idle_timeout"] == "1 hour"
    assert got["dashboard_address"] == [("127.0.0.1", 8080)]


def test_executors_import_from_where_the_user_does(monkeypatch, tmp_path):
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "/nowhere", str(tmp_path), str(Path(__file__).parent)])
    assert python_path() == (str(tmp_path), str(Path(__file__).parent))


# --- a cluster that was made but not started


async def test_before_and_without_a_start():
    cluster = ServerlessCluster(n_workers=3, asynchronous=True, dashboard_address=":0", name="n")
    assert cluster.status == Status.created
    assert "n" in repr(cluster) and "workers=3" in repr(cluster)
    assert "Executors at once" in cluster._repr_html_()
    assert cluster.scheduler_address == "<Not Connected>"
    cluster.scale(5)
    assert cluster.ceiling == 5
    await cluster.close()
    assert cluster.status == Status.closed
    await cluster.close()
    with pytest.raises(ValueError, match="closed"):
        await cluster._start()
    with pytest.raises(RuntimeError, match="closed"):
        await Client(cluster, asynchronous=True)


async def test_scale_and_adapt_set_the_ceiling():
    cluster = ServerlessCluster(n_workers=3, asynchronous=True, memory_limit="1 GiB")
    await cluster.scale(memory="5 GiB")
    assert cluster.ceiling == 5
    await cluster.scale(cores=7)
    assert cluster.ceiling == 7
    adaptive = cluster.adapt(minimum=1, maximum=4)
    assert (adaptive.minimum, adaptive.maximum, cluster.ceiling) == (1, 4, 4)
    assert "Adaptive" in cluster._scaling_status()
    assert cluster.adapt().maximum == 4 and adaptive.periodic_callback is None
    assert cluster.adapt(maximum=math.inf, maximum_memory="2 GiB").maximum == 2
    cluster._adaptive.stop()
    assert "Manual" in cluster._scaling_status()
    for bad in ({"minimum": 5, "maximum": 2}, {"minimum": -1}, {"maximum": -1}):
        with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
            cluster.adapt(**bad)
    for bad in (-1, 1.5):
        with pytest.raises((TypeError, ValueError), match=str(bad)):
            cluster.scale(bad)
    await cluster.close()
