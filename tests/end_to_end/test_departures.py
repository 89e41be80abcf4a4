"""A client goes away without saying goodbye: its work waits for it, but not for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import dask
import pytest
import redis
from distributed import Client, fire_and_forget, wait

from dask_serverless import ServerlessCluster
from tests.end_to_end import overnight
from tests.waiting import until

ROOT = Path(__file__).parents[2]
SECONDS_MAX = 40.0
pytestmark = pytest.mark.fault(26)

#: What the client does that goes away: it has two values, one of them stored, and waits for what stands behind a gate.
PROGRAM = """
import sys
from distributed import Client, fire_and_forget
from tests.end_to_end import overnight
from tests.end_to_end.test_departures import submit

directory, address = sys.argv[1:]
client = Client(address)
futures = submit(client, directory)
fire_and_forget(client.submit(overnight.step, directory, "F", "later", key="forgotten"))
print(client.gather(futures[:2])[0], flush=True)
print(futures[2].result(), flush=True)
"""


def submit(client, directory):
    """Ask for the same keys, whoever asks."""
    quick = client.get(overnight.graph(directory), "quick-4", sync=False)
    large = client.submit(bytes, 300_000, key="large")
    wait([quick, large], timeout=SECONDS_MAX)  # before all places are taken by those that wait
    return [quick, large, client.get(overnight.graph(directory), "all", sync=False)]


@pytest.fixture
def make():
    clusters = []

    def make(grace):
        with dask.config.set({"serverless.client-grace": grace}):
            clusters.append(ServerlessCluster(n_workers=3, dashboard_address=None))
        return clusters[-1]

    yield make
    for cluster in clusters:
        cluster.close()


@pytest.fixture
def start(tmp_path):
    """Start the client that goes away, and return it in the middle of its work."""
    programs = []

    def start(cluster):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), cluster.scheduler_address]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        programs.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True))
        assert programs[-1].stdout.readline() == "Q4(0)\n"
        until(lambda: any(name.startswith("S") for name in overnight.runs(tmp_path)), "it is in the middle")
        # Sent a few milliseconds later, on another connection than what was gathered: without it, it goes as all else.
        until(lambda: "fire-and-forget" in told(cluster).get("forgotten", ((), ()))[1], "what is to be forgotten is")
        return programs[-1]

    yield start
    for program in programs:
        program.kill()
        program.wait(SECONDS_MAX)
        program.stdout.close()


def kill(program):
    program.send_signal(signal.SIGKILL)
    program.wait(SECONDS_MAX)


def users(cluster):
    """Name the clients that are connected."""
    return list(cluster.scheduler.client_comms)


def told(cluster):
    """Tell of each key how it stands, and who wants it."""
    tasks = cluster.scheduler.tasks.values()
    return {ts.key: (ts.state, [each.client_key for each in ts.who_wants or ()]) for ts in tasks}


def stored(cluster):
    """Name the values that are in the storage tier (an outfit is none: it is there if this process is configured)."""
    config = cluster._local.tier.config("")
    names = []
    for url in config.shards:
        with redis.Redis.from_url(url, password=config.password) as server:
            names += server.scan_iter("*object:*")
    return [name for name in names if b"{outfit}" not in name]


def executors(cluster, but_for):
    """Name what the storage tier knows of executors that are at work, but for those of one job."""
    config = cluster._local.tier.config("")
    with redis.Redis.from_url(config.metadata, password=config.password) as server:
        return [name for name in server.scan_iter("*:record:*") if f"{{{but_for}}}".encode() not in name]


def test_whoever_comes_back_after_a_kill_finds_the_work_going_on(make, start, tmp_path):
    cluster = make("1 hour")
    kill(start(cluster))
    until(lambda: not users(cluster), "the scheduler has noticed")
    planned = cluster.stats()["tasks_planned"]
    (tmp_path / "gate").touch()
    until(lambda: cluster.scheduler.tasks["all"].state == "memory", "it is finished while nobody looks", SECONDS_MAX)
    with Client(cluster) as client:
        quick, large, everything = client.gather(submit(client, tmp_path))
    assert (quick, large, everything) == ("Q4(0)", bytes(300_000), "A(4)")
    runs = Counter(overnight.runs(tmp_path))
    assert {runs[name] for name in runs if name != "F"} == {1}
    assert cluster.stats()["tasks_planned"] == planned
    until(
        lambda: cluster.scheduler.tasks.keys() == {"forgotten"},
        lambda: f"who came back has said goodbye: {told(cluster)}",
    )


def test_after_the_grace_all_is_cancelled_but_what_was_to_be_forgotten(make, start, tmp_path):
    cluster = make("1 s")
    program = start(cluster)
    assert stored(cluster)
    kill(program)
    until(lambda: cluster.scheduler.tasks.keys() == {"forgotten"}, lambda: f"the grace is over: {told(cluster)}")
    until(lambda: len(cluster._proxy.dispatcher.ledger.jobs) == 1, "its jobs are over, but for one")
    until(lambda: not stored(cluster), "what it had in the storage tier is gone")
    (forgotten,) = cluster._proxy.dispatcher.ledger.jobs
    until(
        lambda: not executors(cluster, forgotten),
        "who is still at work on them is fenced: a moment after they are over",
    )
    (tmp_path / "gate").touch()
    with Client(cluster) as client:
        assert client.submit(sum, (1, 2), pure=False).result(SECONDS_MAX) == 3
        assert "A" not in overnight.runs(tmp_path)
        (tmp_path / "later").touch()
        until(lambda: not cluster.scheduler.tasks, "what was to be forgotten has been done")
    assert "F" in overnight.runs(tmp_path)


def test_without_a_grace_it_is_cancelled_at_once(make, start):
    cluster = make(0)
    kill(start(cluster))
    until(lambda: not users(cluster), "the scheduler has noticed")
    assert cluster.scheduler.tasks.keys() == {"forgotten"}


def test_a_client_that_stands_still_goes_on(make, start, tmp_path):
    cluster = make("1 hour")
    program = start(cluster)
    program.send_signal(signal.SIGSTOP)
    (tmp_path / "gate").touch()
    until(lambda: cluster.scheduler.tasks["all"].state == "memory", "it is finished meanwhile", SECONDS_MAX)
    program.send_signal(signal.SIGCONT)
    assert program.stdout.readline() == "A(4)\n"
    assert program.wait(SECONDS_MAX) == 0
    runs = Counter(overnight.runs(tmp_path))
    assert {runs[name] for name in runs if name != "F"} == {1}
    until(lambda: cluster.scheduler.tasks.keys() == {"forgotten"}, "it has said goodbye")


def test_a_client_whose_connection_breaks_submits_again(make, tmp_path):
    cluster = make("1 hour")
    with Client(cluster.scheduler_address) as client:  # over the network, as from another process
        futures = submit(client, str(tmp_path))
        until(lambda: any(name.startswith("S") for name in overnight.runs(tmp_path)), "it is in the middle")
        planned = cluster.stats()["tasks_planned"]
        comm = cluster.scheduler.client_comms[client.id]
        cluster.loop.add_callback(comm.abort)
        until(lambda: futures[2].cancelled() and client.status == "running", "it is connected again")
        (tmp_path / "gate").touch()
        assert client.gather(submit(client, str(tmp_path))) == ["Q4(0)", bytes(300_000), "A(4)"]
        assert set(Counter(overnight.runs(tmp_path)).values()) == {1}
        assert cluster.stats()["tasks_planned"] == planned


def test_who_says_goodbye_is_not_waited_for(make, tmp_path):
    cluster = make("1 hour")
    with Client(cluster.scheduler_address) as client:
        kept = submit(client, str(tmp_path))
        fire_and_forget(client.submit(overnight.step, str(tmp_path), "F", "later", key="forgotten"))
        until(lambda: any(name.startswith("S") for name in overnight.runs(tmp_path)), "it is in the middle")
    until(lambda: cluster.scheduler.tasks.keys() == {"forgotten"}, "all of it is cancelled")
    del kept
    (tmp_path / "later").touch()
    (tmp_path / "gate").touch()


def test_a_cancelled_key_is_cancelled_also_after_a_departure(make, start, tmp_path):
    cluster = make("1 hour")
    kill(start(cluster))
    until(lambda: not users(cluster), "the scheduler has noticed")
    with Client(cluster) as client:
        futures = submit(client, tmp_path)
        client.cancel(futures)
        until(lambda: cluster.scheduler.tasks.keys() == {"forgotten"}, "nobody holds it any more")
        client.restart()
        assert not cluster.scheduler.tasks
