"""Where tasks run, and what workers are given; after distributed.dask.org/en/stable/api.html."""

from __future__ import annotations

import operator
import os
import threading
import time

import dask
from dask.distributed import Reschedule, wait

from tests.compatibility.programs import (
    RUN_IS_ELSEWHERE,
    program,
)
from tests.compatibility.programs.futures import inc, slowly


@program
def priorities(client):
    futures = [client.submit(inc, n, priority=n) for n in range(3)]
    return client.gather(futures), client.gather(client.map(inc, range(2), priority=-5))


@program
def annotations(client):
    with dask.annotate(priority=5, retries=1, custom="mine"):
        x = dask.delayed(inc)(1)
    with dask.annotate(allow_other_workers=True, priority=lambda key: 1):
        future = client.submit(inc, 7)
    return x.compute(), future.result()


@program
def who_has_what(client):
    futures = client.map(inc, range(3), key=["who-a", "who-b", "who-c"])
    wait(futures)
    who = client.who_has(futures)
    sizes = client.nbytes(summary=False)
    held = [key for keys in client.has_what().values() for key in keys]
    return (
        sorted(who), {len(addresses) for addresses in who.values()},
        {type(each).__name__ for each in client.has_what().values()},
        [held.count(key) for key in who], {sizes[key] for key in who},
    )  # fmt: skip


@program
def how_many_threads(client):
    return sum(client.nthreads().values()), sum(client.ncores().values())


@program(
    covers=("Client.scheduler_info", "Client.nthreads"),
    differs="LocalCluster has a Dask worker for each process; here one fleet worker stands for all executors",
)
def how_many_workers(client):
    return len(client.scheduler_info()["workers"]), sorted(client.nthreads().values())


@program
def what_is_being_processed(client):
    wait(client.submit(inc, 1))
    return client.processing() and {len(keys) for keys in client.processing().values()}, type(
        client.call_stack()
    ).__name__


@program
def what_is_being_processed_now(client):
    future = client.submit(slowly, 1, seconds=0.6, key="in-process")
    deadline = time.monotonic() + 0.5
    while not any(client.processing().values()) and time.monotonic() < deadline:
        pass
    return [keys for keys in client.processing().values() if keys], future.result()


@program
def run_on_workers(client):
    return sorted(set(client.run(operator.add, 1, 2).values())), set(
        client.run(lambda dask_worker: type(dask_worker.address).__name__).values()
    )


@program(raises=ZeroDivisionError)
def run_fails(client):
    return client.run(lambda: 1 / 0)


@program
def run_returns_errors(client):
    return {str(each) for each in client.run(lambda: 1 / 0, on_error="return").values()}, client.run(
        lambda: 1 / 0, on_error="ignore"
    )


@program
def run_a_coroutine(client):
    async def work(n):
        return n + 1

    return set(client.run(work, 1).values())


@program
def versions(client):
    found = client.get_versions(check=True)
    return sorted(found), found["client"]["host"]["python"], set(found["scheduler"]) == set(found["client"])


@program
def uploaded_modules(client, path):
    (path / "uploaded_module.py").write_text("def answer():\n    return 42\n")
    client.upload_file(str(path / "uploaded_module.py"))

    def use():
        import uploaded_module

        return uploaded_module.answer()

    return client.submit(use, pure=False).result()


@program(
    covers=("WorkerPlugin", "Client.register_plugin"),
)
def worker_plugins(client):
    from distributed import WorkerPlugin

    class Plugin(WorkerPlugin):
        name = "mine"

        def setup(self, worker):
            self.value = worker.my_value = 7

    def use():
        from distributed import get_worker

        return get_worker().plugins["mine"].value, get_worker().my_value

    client.register_plugin(Plugin())
    result = client.submit(use, pure=False).result()
    client.unregister_worker_plugin("mine")
    return result


@program
def scheduler_plugins(client):
    from distributed import SchedulerPlugin

    class Plugin(SchedulerPlugin):
        name = "counts"
        finished = 0

        def transition(self, key, start, finish, *args, **kwargs):
            self.finished += finish == "memory" and str(key).startswith("counted")

    client.register_plugin(Plugin())
    wait(client.map(inc, range(3), key="counted"))
    return client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.plugins["counts"].finished)


@program(
    covers=("Reschedule",),
)
def rescheduled(client, path):
    def work(name):
        if not os.path.exists(name):
            open(name, "w").close()
            raise Reschedule
        return "second time"

    return client.submit(work, str(path / "marker")).result()


@program
def resources_that_nobody_has(client):
    try:
        return client.submit(inc, 1, resources={"GPU": 1}, pure=False).result(timeout=0.5)
    except TimeoutError as error:  # two timers race in the client, and have different texts
        return type(error).__name__


@program
def workers_that_are_not_there(client):
    try:
        return client.submit(inc, 1, workers=["tcp://127.0.0.1:1"], pure=False).result(timeout=0.5)
    except TimeoutError as error:  # two timers race in the client, and have different texts
        return type(error).__name__


@program
def workers_that_are_not_there_but_may_be_others(client):
    return client.submit(inc, 1, workers=["tcp://127.0.0.1:1"], allow_other_workers=True, pure=False).result(timeout=5)


@program
def a_worker_by_address(client):
    address = list(client.scheduler_info()["workers"])[0]
    future = client.submit(inc, 1, workers=[address], pure=False)
    return future.result(), list(client.who_has(future).values())[0] == (address,)


@program(
    covers=("Client.run",),
)
def environment_variables_reach_tasks(client):
    def export():
        os.environ["FROM_RUN"] = "1"

    client.run(export)
    return client.submit(lambda: os.environ.get("FROM_RUN"), pure=False).result()


@program(
    covers=("Client.run",),
)
def what_run_changes_tasks_see(client):
    def change():
        import json

        json.changed_by_run = 5

    def look():
        import json

        return getattr(json, "changed_by_run", None)

    client.run(change)
    return client.gather(client.map(lambda n: look(), range(4), pure=False))


@program(covers=("Client.run",), differs=RUN_IS_ELSEWHERE)
def tasks_run_where_run_runs(client):
    def nap_where(n):  # long enough for more than one executor
        time.sleep(0.3)
        return os.getpid()

    workers = set(client.run(os.getpid).values())
    tasks = set(client.gather(client.map(nap_where, range(6), pure=False)))
    return tasks <= workers, os.getpid() in workers


@program(
    covers=("UploadDirectory",),
)
def uploaded_directories(client, path):
    from distributed.diagnostics.plugin import UploadDirectory

    (path / "uploaded_package").mkdir()
    (path / "uploaded_package" / "__init__.py").write_text("ANSWER = 43\n")
    client.register_plugin(UploadDirectory(str(path / "uploaded_package"), update_path=True))

    def use():
        import uploaded_package

        return uploaded_package.ANSWER

    return client.submit(use, pure=False).result()


@program(
    covers=("Client.upload_file",),
)
def an_uploaded_module_that_changes(client, path):
    def use():
        import changing_module

        return changing_module.ANSWER

    results = []
    for answer in (1, 2):
        (path / "changing_module.py").write_text(f"ANSWER = {answer}  # {'x' * answer}\n")
        client.upload_file(str(path / "changing_module.py"))
        results.append(client.submit(use, pure=False).result())
    return results


@program(
    covers=("Client.forward_logging",),
)
def logs_forwarded_from_tasks(client):
    import logging

    class Keep(logging.Handler):
        def __init__(self):
            super().__init__()
            self.seen, self.arrived = [], threading.Event()

        def emit(self, record):
            self.seen.append((record.name, record.getMessage()))
            self.arrived.set()

    handler = Keep()
    logging.getLogger("forwarded").addHandler(handler)
    client.forward_logging("forwarded", level=logging.INFO)
    try:
        client.submit(lambda: logging.getLogger("forwarded").warning("from a task"), pure=False).result()
        handler.arrived.wait(1)
        return handler.seen
    finally:
        client.unforward_logging("forwarded")
        logging.getLogger("forwarded").removeHandler(handler)


@program
def submit_to_workers_by_name(client):
    name = next(iter(client.scheduler_info()["workers"].values()))["name"]
    return client.submit(inc, 1, workers=name, pure=False).result(timeout=5)


@program
def compute_and_persist_on_workers(client):
    addresses = list(client.scheduler_info()["workers"])
    x = dask.delayed(inc)(1)
    return client.compute(x, workers=addresses).result(timeout=5), client.persist(
        x, workers=addresses, allow_other_workers=True
    ).compute()


@program
def annotated_with_workers(client):
    with dask.annotate(workers=list(client.scheduler_info()["workers"])):
        x = dask.delayed(inc)(1)
    return x.compute(optimize_graph=False)


@program
def memory_samples(client):
    from distributed.diagnostics import MemorySampler

    sampler = MemorySampler()
    with sampler.sample("mine", client=client, interval=0.1):
        client.submit(slowly, 1, seconds=0.3, pure=False).result()
    return list(sampler.to_pandas().columns)


@program
def active_memory_manager(client):
    client.amm.start()
    running = client.amm.running()
    return client.amm.run_once(), running, client.submit(inc, 1, pure=False).result()


@program
def futures_with_annotations_of_every_kind(client):
    with dask.annotate(
        retries=2, priority=3, allow_other_workers=True, workers=list(client.scheduler_info()["workers"])
    ):
        first = client.submit(inc, 1, pure=False)
        second = dask.delayed(inc)(2)
    return first.result(), client.compute(second, optimize_graph=False).result()


@program(raises=TypeError)
def annotations_of_a_wrong_kind():
    with dask.annotate(retries="many"):
        pass


@program
def annotations_reach_the_scheduler(client):
    with dask.annotate(priority=7, retries=2, note="mine"):
        future = client.submit(inc, 1, key="annotated")
    wait(future)
    return client.run_on_scheduler(
        lambda dask_scheduler: {
            name: value
            for name, value in sorted((dask_scheduler.tasks["annotated"].annotations or {}).items())
            if name != "span"
        }
    )


@program
def priorities_decide_the_order(client, path):
    def note(n, name):
        with open(name, "a") as file:
            file.write(f"{n} ")
        time.sleep(0.01)

    client.gather([client.submit(note, n, str(path / "order"), priority=n) for n in range(4)])
    return sorted((path / "order").read_text().split())


@program
def an_annotated_executor_of_workers(client):
    with dask.annotate(executor="default"):
        return client.submit(inc, 1, pure=False).result(timeout=5)
