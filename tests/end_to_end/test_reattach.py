"""A process is killed with its scheduler and proxy; another one takes its persistent cluster over and finishes."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import dask
import psutil
import pytest
from dask.base import tokenize
from distributed import Client, Future
from distributed.client import FutureCancelledError

from dask_serverless import ServerlessCluster
from dask_serverless.errors import ClusterInUse
from tests.end_to_end import overnight
from tests.waiting import until

ROOT = Path(__file__).parents[2]
SECONDS_MAX = 40.0


class Program:
    """A process with a persistent cluster, which is in the middle of something."""

    def __init__(self, directory, story, name="night", **options):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OPTIONS": json.dumps(options)}
        code = f"from tests.end_to_end import overnight; overnight.main({str(directory)!r}, {name!r}, {story!r})"
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        said = self.process.stdout.readline()  # it ends when the process does
        assert said, "the program has ended"
        self.said = json.loads(said)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(SECONDS_MAX)
        self.process.stdout.close()
        self.process.stdin.close()

    def left(self):
        """Return the processes that were not ended."""
        return [pid for pid in self.said["processes"] if runs(pid)]


def runs(pid):
    """Tell whether a process runs; a zombie, whose parent was killed, does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def start(tmp_path):
    programs = []

    def start(story, **options):
        programs.append(Program(tmp_path, story, **options))
        return programs[-1]

    with dask.config.set(overnight.options(tmp_path)):
        yield start
        for program in programs:
            program.kill()
            until(lambda: not program.left(), "everything has ended", SECONDS_MAX)  # noqa: B023
    assert not list(tmp_path.glob("night*"))


def take_over(**options):
    return ServerlessCluster(name="night", persistent=True, n_workers=2, dashboard_address=None, **options)


def open_gate(directory):
    (directory / "gate").touch()


@pytest.mark.fault(25, 26)
def test_what_was_finished_is_served_and_what_was_not_goes_on(start, tmp_path):
    program = start("in_the_middle")
    program.kill()
    with take_over() as cluster, Client(cluster) as client:
        assert cluster.scheduler_address == program.said["address"]  # where other clients look for it
        finished = client.get(overnight.graph(tmp_path), ["quick-4", "quick-5"])
        assert finished == ["Q4(0)", "Q5(0)"]
        everything = client.get(overnight.graph(tmp_path), "all", sync=False)
        open_gate(tmp_path)
        assert everything.result(SECONDS_MAX) == "A(4)"
        assert cluster.stats()["tasks_planned"] == 0  # nothing has begun anew
        assert set(Counter(overnight.runs(tmp_path)).values()) == {1}


@pytest.mark.fault(25)
def test_it_finishes_while_nobody_looks(start, tmp_path):
    program = start("in_the_middle")
    program.kill()
    open_gate(tmp_path)
    until(lambda: sum("S" in name for name in overnight.runs(tmp_path)) > 1, "executors go on by themselves")
    with take_over() as cluster, Client(cluster) as client:
        assert client.get(overnight.graph(tmp_path), "all", sync=False).result(SECONDS_MAX) == "A(4)"
        assert set(Counter(overnight.runs(tmp_path)).values()) == {1}


@pytest.mark.fault(25)
def test_what_was_noted_and_not_begun_is_begun(start, tmp_path):
    """Killed between the note of a job and its opening: the successor opens it, and what comes later goes on, too."""
    start("noted_only").kill()
    with take_over() as cluster, Client(cluster) as client:
        noted = client.submit(overnight.step, str(tmp_path), "N", "", key="noted")
        assert noted.result(SECONDS_MAX) == "N(0)"
        assert client.submit(sum, [1, 2]).result(SECONDS_MAX) == 3
        assert overnight.runs(tmp_path) == ["N"] and cluster.stats()["tasks_planned"] == 1


@pytest.mark.fault(25)
def test_it_is_taken_over_again_and_again(start, tmp_path):
    first = start("in_the_middle")
    first.kill()
    second = start("in_the_middle")  # it asks for the same keys
    second.kill()
    assert second.said["processes"][:2] == first.said["processes"][:2]
    with take_over() as cluster, Client(cluster) as client:
        open_gate(tmp_path)
        futures = client.get(overnight.graph(tmp_path), ["all", "quick-5"], sync=False)
        assert [future.result(SECONDS_MAX) for future in futures] == ["A(4)", "Q5(0)"]
        assert set(Counter(overnight.runs(tmp_path)).values()) == {1}
        assert client.submit(sum, [1, 2]).result() == 3  # and new work is done


@pytest.mark.fault(2, 25)
def test_who_died_when_nobody_looked_is_tried_again(start, tmp_path):
    program = start("in_the_middle")
    program.kill()
    sandboxes = program.said["processes"][-2:]
    os.kill(sandboxes[0], signal.SIGKILL)
    until(lambda: not runs(sandboxes[0]), "an executor has died")
    open_gate(tmp_path)
    with take_over() as cluster, Client(cluster) as client:
        assert client.get(overnight.graph(tmp_path), "all", sync=False).result(SECONDS_MAX) == "A(4)"
        ran = Counter(overnight.runs(tmp_path))
        assert ran["Q4"] == ran["Q5"] == 1  # which had their values


@pytest.mark.fault(25)
def test_datasets_are_published_still(start, tmp_path):
    start("with_datasets").kill()
    with take_over() as cluster, Client(cluster) as client:
        assert sorted(client.list_datasets()) == ["large", "small", "waiting"]
        assert client.get_dataset("small").result(SECONDS_MAX) == "D(0)"
        assert client.get_dataset("large").result(SECONDS_MAX) == bytes(300_000)
        open_gate(tmp_path)
        assert client.get_dataset("waiting").result(SECONDS_MAX) == "W(0)"
        client.unpublish_dataset("small")
        assert sorted(client.list_datasets()) == ["large", "waiting"]
        assert set(Counter(overnight.runs(tmp_path)).values()) == {1}


@pytest.mark.fault(24, 25)
def test_what_builds_on_scattered_data_goes_on_or_begins_again_with_it(start, tmp_path):
    start("with_scattered_data").kill()
    with take_over() as cluster, Client(cluster) as client:
        open_gate(tmp_path)
        data = client.scatter(bytes(1000), hash=True)
        running = client.submit(overnight.step, str(tmp_path), "R0", "gate", data, key="running-0")
        assert running.result(SECONDS_MAX) == "R0(1)"  # of the data that it was given, there is a copy
        later = client.submit(overnight.step, str(tmp_path), "L", "", data, running, key="later")
        assert later.result(SECONDS_MAX) == "L(2)"
        assert Counter(overnight.runs(tmp_path)) == {"R0": 1, "R1": 1, "L": 1}


@pytest.mark.fault(24, 25)
def test_scattered_data_that_nobody_was_given_is_there_still(start, tmp_path):
    start("with_untouched_data").kill()
    data = bytes(range(250)) * 4_000
    name = f"bytes-{tokenize(data)}"
    with take_over() as cluster, Client(cluster) as client:
        tasks = cluster.scheduler.tasks
        assert {"small", "direct", name} <= tasks.keys() and "gone" not in tasks
        large, small = Future(name, client), Future("small", client)
        open_gate(tmp_path)
        assert client.submit(len, large).result(SECONDS_MAX) == 1_000_000  # read by an executor
        assert large.result(SECONDS_MAX) == data
        assert client.submit(bytes, Future("array", client)).result(SECONDS_MAX) == bytes(300_000)
        pinned = client.submit(len, small, workers=["serverless"], pure=False)
        assert (pinned.result(SECONDS_MAX), small.result(SECONDS_MAX)) == (10, list(range(10)))
        waiting = client.submit(overnight.step, str(tmp_path), "W", "", large, small, key="waiting")
        assert waiting.result(SECONDS_MAX) == "W(2)"
        assert [each.result(SECONDS_MAX) for each in client.get_dataset("data")] == [list(range(10)), "D" * 200_000]
        dispatcher = cluster._proxy.dispatcher
        assert cluster.stats()["overflow_bytes"] > 1_500_000
        client.unpublish_dataset("data")
        for each in (large, small, waiting, pinned):
            each.release()
        cluster._proxy.holders.drop("serverless-predecessor")
        until(lambda: not dispatcher.backend.store.noted(), "no note is left of it")
        gc.collect()  # futures of this test that nothing but a cycle holds are held towards the scheduler, too
        until(lambda: not cluster.stats()["overflow_bytes"], "nor any of the data")


@pytest.mark.fault(24, 25)
def test_scattered_data_outlives_one_process_after_the_other(start, tmp_path):
    start("with_untouched_data").kill()
    name = f"bytes-{tokenize(bytes(range(250)) * 4_000)}"
    second = start("idle")
    second.kill()
    with take_over() as cluster, Client(cluster) as client:
        open_gate(tmp_path)
        assert client.submit(sum, Future(name, client)).result(SECONDS_MAX) == sum(range(250)) * 4_000


@pytest.mark.fault(24)
def test_without_an_overflow_scattered_data_dies_with_the_process(start, tmp_path):
    start("with_untouched_data", **{"serverless.storage.overflow": False}).kill()
    with take_over() as cluster, Client(cluster) as client:
        assert "small" not in cluster.scheduler.tasks
        with pytest.raises(FutureCancelledError, match="len"):
            client.submit(len, Future("small", client), key="len").result(SECONDS_MAX)


@pytest.mark.fault(25)
def test_a_large_graph_goes_on(start, tmp_path):
    start("with_a_large_graph").kill()
    with take_over() as cluster, Client(cluster) as client:
        total = client.get(overnight.large_graph(tmp_path), "total", sync=False)
        open_gate(tmp_path)
        assert total.result(SECONDS_MAX) == 600 * (256 * 2_000 + 4_000)
        assert overnight.runs(tmp_path) == ["F"]
        assert cluster.stats()["tasks_planned"] == 0
        dispatcher = cluster._proxy.dispatcher
        total.release()
        until(lambda: dispatcher.backend.store.noted() == {}, "no note is left of it")


@pytest.mark.fault(25)
def test_what_nobody_asks_for_is_let_go(start, tmp_path):
    start("in_the_middle", **{"serverless.persistent.timeout": "2 s"}).kill()
    with dask.config.set({"serverless.persistent.timeout": "2 s"}), take_over() as cluster, Client(cluster) as client:
        kept = client.get(overnight.graph(tmp_path), "quick-4", sync=False)
        assert kept.result(SECONDS_MAX) == "Q4(0)"
        until(lambda: set(cluster.scheduler.tasks) == {"quick-4"}, "the others are forgotten")
        until(lambda: not cluster._proxy.dispatcher.ledger.jobs, "and what was under way is cancelled")


def test_the_name_of_a_process_that_lives_is_taken(start):
    program = start("idle")
    with pytest.raises(ClusterInUse, match=f"'night' belongs to process {program.said['pid']}, which lives"):
        take_over()
    program.kill()
    with ServerlessCluster.from_name("night") as cluster:
        assert "workers=3," in repr(cluster), "as many as it was scaled to"
        assert ServerlessCluster.from_name("night") is cluster
        with pytest.raises(ClusterInUse, match="belongs to this process"):
            take_over()
    with pytest.raises(ValueError, match="no process has left a persistent one"):
        ServerlessCluster.from_name("night")


@pytest.mark.fault(25)
def test_nothing_stays_if_nobody_comes(start, tmp_path):
    program = start("in_the_middle", **{"serverless.persistent.timeout": "1 s"})
    program.kill()
    until(lambda: not program.left() and not (tmp_path / "night").exists(), "everything has ended", SECONDS_MAX)
    with take_over() as cluster, Client(cluster) as client:  # the name is free
        open_gate(tmp_path)
        assert client.get(overnight.graph(tmp_path), "quick-4") == "Q4(0)"
        assert Counter(overnight.runs(tmp_path))["Q4"] == 2


def test_what_has_ended_meanwhile_is_not_taken_over(start, tmp_path, caplog):
    program = start("in_the_middle")
    program.kill()
    os.kill(program.said["processes"][1], signal.SIGKILL)
    until(lambda: not runs(program.said["processes"][1]), "the Lambda service has ended")
    with caplog.at_level(logging.WARNING, "dask_serverless"), take_over() as cluster, Client(cluster) as client:
        assert "its Lambda service has ended: it begins anew" in caplog.text
        assert client.get(overnight.graph(tmp_path), "quick-4") == "Q4(0)"
        assert Counter(overnight.runs(tmp_path))["Q4"] == 2


@pytest.mark.fault(22, 25)
def test_the_metadata_server_had_died_before(start, tmp_path):
    """What the store had forgotten was noted again: the next process finds values, and what is under way."""
    program = start("forgotten")
    program.kill()
    with take_over() as cluster, Client(cluster) as client:
        assert client.get(overnight.graph(tmp_path), ["quick-4", "quick-5"]) == ["Q4(0)", "Q5(0)"]
        everything = client.get(overnight.graph(tmp_path), "all", sync=False)
        open_gate(tmp_path)
        assert everything.result(SECONDS_MAX) == "A(4)"
        assert cluster.stats()["tasks_planned"] == 0  # nothing has begun once more
        ran = Counter(overnight.runs(tmp_path))
        assert ran["Q4"] == ran["Q5"] == 1


@pytest.mark.fault(22, 25)
def test_the_metadata_server_dies_when_nobody_looks(start, tmp_path, caplog):
    """Nobody was there to write down again what it knew: the cluster begins anew, and says so."""
    program = start("in_the_middle")
    program.kill()
    os.kill(program.said["processes"][2], signal.SIGKILL)
    with caplog.at_level(logging.WARNING, "dask_serverless"), ServerlessCluster.from_name("night") as cluster:
        assert "its metadata server (which was started again, and knows nothing)" in caplog.text
        with Client(cluster) as client:
            open_gate(tmp_path)
            assert client.get(overnight.graph(tmp_path), ["quick-4", "all"]) == ["Q4(0)", "A(4)"]
    until(lambda: not program.left(), "nothing of the old one is left", SECONDS_MAX)


def test_settings_of_what_runs_stay(start, caplog):
    start("idle").kill()
    with caplog.at_level(logging.WARNING, "dask_serverless"), take_over(memory_limit="512 MiB") as cluster:
        assert "goes on with its own settings of serverless.lambda.memory" in caplog.text
        assert cluster.settings.lambda_memory == 2 * 2**30
