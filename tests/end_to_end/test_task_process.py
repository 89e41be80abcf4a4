"""The process that a task finds itself in: what it may take for granted, and what it may break."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import uuid

import numpy as np
import pytest
from distributed import Client

from dask_serverless import ServerlessCluster
from tests.waiting import until

SECONDS_MAX = 20


def test_sandboxes_draw_different_numbers(tmp_path):
    """They are copies of one process, which has imported `random` and numpy before."""

    def draw(number):
        (tmp_path / str(number)).touch()
        while len(list(tmp_path.iterdir())) < 4:  # so that each task has a sandbox of its own
            time.sleep(0.01)
        uniform, normal = np.random.rand(), np.random.default_rng().normal()
        return os.getpid(), random.random(), uniform, normal, uuid.uuid4().hex, os.path.basename(tempfile.mktemp())

    with ServerlessCluster(n_workers=4, dashboard_address=None) as cluster, Client(cluster) as client:
        drawn = client.gather(client.map(draw, range(4), pure=False))
    for values in zip(*drawn, strict=True):
        assert len(set(values)) == 4, values


def test_the_program_and_its_place(client):
    def look():
        import __main__

        return sys.argv, os.getcwd(), __main__.__name__, hasattr(__main__, "Zygote"), os.environ["OMP_NUM_THREADS"]

    assert client.submit(look, pure=False).result(timeout=SECONDS_MAX) == (
        sys.argv,
        os.getcwd(),
        "__main__",
        False,
        "1",
    )


def test_a_task_does_not_find_the_clusters_secrets_in_its_environment(cluster, client):
    backend = cluster._local.backend
    values = client.submit(lambda: list(os.environ.values()), pure=False).result(timeout=SECONDS_MAX)
    assert not [each for each in values if backend.secret.hex() in each or backend.store_config.password in each]


def pool(method):
    import multiprocessing

    with multiprocessing.get_context(method).Pool(2) as workers:
        return workers.map(abs, [-1, -2])


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_processes_in_tasks(client, method):
    assert client.submit(pool, method, pure=False).result(timeout=SECONDS_MAX) == [1, 2]


def test_programs_in_tasks(client):
    def shell():
        return subprocess.check_output([sys.executable, "-c", "print(7)"], text=True)

    assert client.submit(shell, pure=False).result(timeout=SECONDS_MAX) == "7\n"


def test_a_forked_child_that_exits_does_not_report_for_its_parent(client):
    def fork():
        child = os.fork()
        if child == 0:
            os._exit(3)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert client.submit(fork, pure=False).result(timeout=SECONDS_MAX) == 3


def test_a_thread_may_outlive_its_task(client, tmp_path):
    def leave_behind():
        threading.Thread(target=lambda: time.sleep(0.2) or (tmp_path / "done").touch()).start()

    client.submit(leave_behind, pure=False).result(timeout=SECONDS_MAX)
    until((tmp_path / "done").exists, "it went on")


CLOSE = {
    "stdout": lambda: sys.stdout.close(),
    "stderr": lambda: sys.stderr.close(),
    "descriptors": lambda: (os.close(1), os.close(2)),
}


@pytest.mark.parametrize("close", CLOSE.values(), ids=CLOSE)
def test_output_that_a_task_closes_is_open_for_the_next(client, close):
    def print_and_log():
        import logging

        print("printed")
        print("said", file=sys.stderr)
        logging.getLogger("task").warning("logged")

    for _ in range(4):
        client.submit(close, pure=False).result(timeout=SECONDS_MAX)
        client.submit(print_and_log, pure=False).result(timeout=SECONDS_MAX)


def test_odd_output(client, capfd):
    def odd():
        os.write(1, b"\xff\xfe no text\n")
        print("\udcff, a lone surrogate")
        print("x" * 3_000_000)

    assert client.submit(odd, pure=False).result(timeout=SECONDS_MAX) is None
    assert client.submit(sum, [1, 2], pure=False).result(timeout=SECONDS_MAX) == 3
