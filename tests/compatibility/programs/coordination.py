"""Coordination primitives, and tasks that start tasks; after docs.dask.org/en/stable/futures.html."""

from __future__ import annotations

import threading
import time

import dask
from dask.distributed import (
    Client,
    Event,
    Lock,
    MultiLock,
    Queue,
    Semaphore,
    Variable,
    get_client,
    get_worker,
    rejoin,
    secede,
    worker_client,
)

from tests.compatibility.programs import program


def inc(n):
    return n + 1


@program
def a_variable(client):
    variable = Variable("v")
    variable.set(5)
    first = Variable("v").get()
    variable.set({"a": [1]})
    return first, variable.get(timeout="1s"), variable.delete()


@program
def a_variable_with_a_future(client, cluster):
    Variable("vf").set(client.submit(inc, 1))
    with Client(cluster, set_as_default=False) as other:
        return Variable("vf", client=other).get().result()


@program(raises=TimeoutError)
def a_variable_that_was_never_set(client):
    return Variable("never").get(timeout=0.1)


@program
def a_queue(client):
    queue = Queue("q")
    for n in range(5):
        queue.put(n)
    return queue.qsize(), queue.get(), queue.get(batch=2), queue.get(batch=True), queue.qsize()


@program
def a_queue_of_futures(client):
    queue = Queue("qf")
    for future in client.map(inc, range(3)):
        queue.put(future)
    return client.gather([queue.get() for _ in range(3)])


@program(raises=TimeoutError)
def a_full_queue(client):
    queue = Queue("full", maxsize=1)
    queue.put(1)
    queue.put(2, timeout=0.1)


@program(raises=TimeoutError)
def an_empty_queue(client):
    return Queue("empty").get(timeout=0.1)


@program
def a_lock(client):
    lock = Lock("l")
    first = lock.acquire(), lock.locked(), Lock("l").acquire(timeout=0.1)
    lock.release()
    with lock:
        return first, lock.locked()


@program(raises=RuntimeError)
def a_lock_that_was_not_taken(client):
    Lock("not-taken").release()


@program
def several_locks(client):
    with MultiLock(["a", "b"]):
        return MultiLock(["b", "c"]).acquire(timeout=0.1), MultiLock(["d"]).acquire(timeout=1)


@program
def an_event(client):
    event = Event("e")
    before = event.is_set(), event.wait(timeout=0.05)
    event.set()
    return before, event.wait(timeout=1), event.is_set(), event.clear()


@program
def a_semaphore(client):
    semaphore = Semaphore(2, "s")
    taken = semaphore.acquire(), semaphore.acquire(), semaphore.acquire(timeout=0.1)
    semaphore.release()
    return taken, semaphore.get_value(), semaphore.acquire(timeout=1), semaphore.close()


@program(raises=ValueError)
def a_semaphore_of_another_size(client):
    semaphore = Semaphore(2, "size")
    semaphore.acquire()
    return Semaphore(3, "size").acquire(timeout=0.1)


@program
def a_lock_in_tasks(client, path):
    lock = Lock("in-tasks")

    def work(name, n):
        with lock:
            with open(name, "a") as file:
                file.write(f"<{n}")
                file.write(">")
        return n

    return sorted(client.gather(client.map(work, [str(path / "out")] * 4, range(4)))), len((path / "out").read_text())


@program
def a_lock_by_name_in_a_task(client):
    def work():
        with Lock("by-name"):
            return 1

    return client.submit(work).result()


@program
def an_event_in_tasks(client):
    def waits():
        return Event("go").wait(timeout=5)

    def sets():
        Event("go").set()
        return 1

    return client.gather([client.submit(waits), client.submit(sets)])


@program
def a_variable_in_a_task(client):
    Variable("for-task").set(7)
    return client.submit(lambda: Variable("for-task").get(timeout=3)).result()


@program
def a_queue_from_a_task(client):
    queue = Queue("from-task")

    def work(queue):
        queue.put("hello")
        return 1

    client.submit(work, queue).result()
    return queue.get(timeout=3)


@program
def a_semaphore_in_tasks(client):
    semaphore = Semaphore(1, "in-tasks")

    def work(n, semaphore):
        with semaphore:
            return n

    return client.gather(client.map(work, range(4), semaphore=semaphore))


@program
def tasks_that_submit_tasks(client):
    def work(n):
        with worker_client() as inner:
            return sum(inner.gather(inner.map(inc, range(n))))

    return client.submit(work, 4).result()


@program
def tasks_that_get_a_client(client):
    def work(n):
        inner = get_client()
        futures = inner.map(inc, range(n))
        secede()
        results = inner.gather(futures)
        rejoin()
        return sum(results)

    return client.submit(work, 4).result()


@program
def recursion_through_tasks(client):
    def fibonacci(n):
        if n < 2:
            return n
        with worker_client() as inner:
            a, b = inner.submit(fibonacci, n - 1), inner.submit(fibonacci, n - 2)
            return sum(inner.gather([a, b]))

    return client.submit(fibonacci, 4).result()


@program
def a_client_in_a_task(client, cluster):
    address = cluster.scheduler_address

    def work(n):
        with Client(address, set_as_default=False) as inner:
            return inner.submit(inc, n).result()

    return client.submit(work, 4).result()


@program
def scattering_in_a_task(client):
    def work():
        with worker_client() as inner:
            return inner.gather(inner.submit(sum, inner.scatter([[1, 2]])[0]))

    return client.submit(work).result()


@program
def compute_in_a_task(client):
    def work(n):
        return dask.array.ones(n, chunks=5).sum().compute()

    return client.submit(work, 20).result()


@program
def the_worker_of_a_task(client):
    def work():
        worker = get_worker()
        return type(worker.address).__name__, worker.name is not None, worker.get_current_task()

    return client.submit(work, key="the-current-task").result()


@program
def state_kept_on_a_worker(client):
    def work():
        worker = get_worker()
        worker.kept = getattr(worker, "kept", 0) + 1
        return worker.kept

    return client.submit(work, pure=False).result()


@program
def a_future_given_back_by_a_task(client):
    def work():
        with worker_client() as inner:
            return inner.submit(inc, 1)

    return type(client.submit(work).result()).__name__


@program
def async_tasks(client):
    async def work(n):
        import asyncio

        await asyncio.sleep(0)
        return n * 2

    return client.gather(client.map(work, range(4)))


@program(raises=KeyError)
def async_tasks_that_fail(client):
    async def work(n):
        raise KeyError(n)

    return client.submit(work, 4).result()


@program
def threads_in_tasks(client):
    def work():
        seen = []
        thread = threading.Thread(target=seen.append, args=(1,))
        thread.start()
        thread.join()
        return seen

    return client.submit(work).result()


@program
def processes_in_tasks(client):
    def work():
        import subprocess
        import sys

        return subprocess.run([sys.executable, "-c", "print(1 + 1)"], capture_output=True, text=True).stdout

    return client.submit(work).result()


@program
def a_thread_in_the_client(client):
    results = []
    threads = [threading.Thread(target=lambda n=n: results.append(client.submit(inc, n).result())) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(results)


@program
def stopping_a_long_task_by_a_variable(client):
    Variable("stop").set(False)

    def work():
        for _ in range(200):
            if Variable("stop").get(timeout=1):
                return "stopped"
            time.sleep(0.01)
        return "ran on"

    future = client.submit(work)
    Variable("stop").set(True)
    return future.result()


@program
def a_published_data_set_in_a_task(client):
    client.publish_dataset(5, name="for-tasks")

    def work():
        return get_client().get_dataset("for-tasks")

    result = client.submit(work).result()
    client.unpublish_dataset("for-tasks")
    return result


@program
def configuration_in_a_task(client):
    with dask.config.set({"mine": 1}):
        return client.submit(lambda: dask.config.get("mine", None)).result()
