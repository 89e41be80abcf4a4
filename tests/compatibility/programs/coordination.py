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


@program
def a_queue_that_is_closed(client):
    queue = Queue("closed-queue")
    queue.put(1)
    queue.close()
    client.submit(inc, 1, pure=False).result()
    return Queue("closed-queue").qsize()


@program
def a_queue_in_batches_and_in_time(client):
    queue = Queue("batches", maxsize=5)
    for n in range(3):
        queue.put(n, timeout="1s")
    return queue.get(timeout=1), queue.get(batch=1), queue.get(batch=True), queue.qsize()


@program
def one_queue_of_two_clients(client, cluster):
    with Client(cluster, set_as_default=False) as other:
        Queue("of-two", client=client).put({"n": [1, 2]})
        return Queue("of-two", client=other).get(timeout=2)


@program
def a_queue_that_waits_for_a_task(client):
    queue = Queue("from-a-later-task")
    future = client.submit(lambda queue: queue.put("late"), queue, pure=False)
    return queue.get(timeout=5), future.result()


@program
def a_lock_that_is_held(client):
    lock = Lock("held")
    with lock:
        return lock.locked(), lock.acquire(blocking=False), Lock("held").locked(), lock.get_value()


@program
def a_lock_that_is_closed(client):
    lock = Lock("closed-lock")
    lock.acquire()
    lock.release()
    return lock.close()


@program(raises=ValueError)
def a_lock_that_cannot_wait_and_wait(client):
    return Lock("cannot").acquire(blocking=False, timeout=1)


@program
def a_counter_under_a_lock(client, path):
    (path / "count").write_text("0")

    def work(n, name):
        with Lock("for-the-counter"):
            with open(name) as file:
                count = int(file.read())
            time.sleep(0.01)
            with open(name, "w") as file:
                file.write(str(count + 1))

    client.gather(client.map(work, range(6), name=str(path / "count")))
    return (path / "count").read_text()


@program
def a_lock_that_goes_with_its_task(client):
    def work():
        lock = Lock("left-behind")
        lock.acquire()
        lock.release()
        return 1

    client.submit(work).result()
    return Lock("left-behind").acquire(timeout=3)


@program
def several_locks_at_once(client):
    locks = MultiLock(names=["m-a", "m-b", "m-c"])
    taken = locks.acquire(num_locks=2), locks.locked()
    locks.release()
    return taken, locks.locked(), MultiLock(["m-a"]).acquire(timeout=1)


@program
def several_locks_in_tasks(client, path):
    def work(n, name):
        with MultiLock(["in-tasks-a", "in-tasks-b"]):
            with open(name, "a") as file:
                file.write("<")
                file.flush()
                time.sleep(0.01)
                file.write(">")

    client.gather(client.map(work, range(4), name=str(path / "out")))
    return (path / "out").read_text()


@program(raises=ValueError)
def several_locks_that_were_not_taken(client):
    return MultiLock(["m-never"]).release()


@program
def an_event_of_two_clients(client, cluster):
    with Client(cluster, set_as_default=False) as other:
        Event("of-two", client=client).set()
        seen = Event("of-two", client=other).wait(timeout=2)
        Event("of-two", client=other).clear()
        return seen, Event("of-two", client=client).is_set()


@program
def an_event_given_to_a_task(client):
    event = Event("given")
    future = client.submit(lambda event: event.wait(timeout=5), event, pure=False)
    event.set()
    return future.result()


@program
def a_semaphore_with_many_leases(client):
    semaphore = Semaphore(max_leases=2, name="many")
    with semaphore:
        inside = semaphore.get_value()
    return inside, semaphore.get_value(), repr(semaphore).count("many")


@program
def a_semaphore_in_time(client):
    semaphore = Semaphore(max_leases=1, name="in-time")
    return semaphore.acquire(), semaphore.acquire(timeout="100ms"), semaphore.release(), semaphore.acquire(timeout=1)


@program
def a_semaphore_that_is_closed(client):
    semaphore = Semaphore(max_leases=1, name="is-closed")
    semaphore.acquire()
    semaphore.release()
    return semaphore.close()


@program
def no_more_tasks_than_leases(client, path):
    semaphore = Semaphore(max_leases=1, name="no-more")

    def work(n, semaphore, name):
        with semaphore, open(name, "a") as file:
            file.write("<")
            file.flush()
            time.sleep(0.01)
            file.write(">")

    client.gather(client.map(work, range(4), semaphore=semaphore, name=str(path / "out")))
    return (path / "out").read_text()


@program
def a_variable_that_is_deleted(client):
    variable = Variable("deleted")
    variable.set(1)
    variable.delete()
    client.submit(inc, 1, pure=False).result()
    try:
        return variable.get(timeout=0.1)
    except TimeoutError as error:
        return type(error).__name__


@program
def a_variable_keeps_its_future(client):
    future = client.submit(inc, 41, key="kept-by-a-variable")
    Variable("keeps").set(future)
    client.submit(inc, 1, pure=False).result()
    del future
    result = Variable("keeps").get(timeout=2).result(timeout=2)
    Variable("keeps").delete()
    return result


@program(raises=ZeroDivisionError)
def a_variable_with_a_failed_future(client):
    Variable("failed").set(client.submit(lambda: 1 / 0, key="fails-in-a-variable"))
    return Variable("failed").get(timeout=2).result(timeout=2)


@program(raises=TypeError)
def a_variable_that_does_not_pickle(client):
    return Variable("does-not-pickle").set(threading.Lock())


@program(raises=TypeError)
def a_queue_of_what_does_not_pickle(client):
    return Queue("does-not-pickle").put(threading.Lock())


@program
def a_task_that_waits_for_a_variable(client):
    future = client.submit(lambda: Variable("for-a-waiting-task").get(timeout=5), pure=False)
    Variable("for-a-waiting-task").set("here")
    return future.result()


@program
def as_completed_in_a_task(client):
    def work():
        from distributed import as_completed

        with worker_client() as inner:
            return sorted(future.result() for future in as_completed(inner.map(inc, range(3))))

    return client.submit(work).result()


@program
def scatter_in_a_task(client):
    def work():
        with worker_client() as inner:
            future = inner.scatter([1, 2, 3])
            return inner.gather(inner.map(inc, future))

    return client.submit(work).result()


@program
def wait_in_a_task(client):
    def work():
        from distributed import wait

        with worker_client() as inner:
            done, not_done = wait(inner.map(inc, range(3)), timeout=5)
            return len(done), len(not_done)

    return client.submit(work).result()


@program(raises=ZeroDivisionError)
def an_error_of_a_task_in_a_task(client):
    def work():
        with worker_client() as inner:
            return inner.submit(lambda: 1 / 0).result()

    return client.submit(work).result()


@program
def persist_in_a_task(client):
    def work():
        with worker_client() as inner:
            kept = inner.persist(dask.delayed(inc)(5))
            return inner.compute(kept).result()

    return client.submit(work).result()


@program
def a_worker_client_that_does_not_secede(client):
    def work():
        with worker_client(separate_thread=False) as inner:
            return inner.submit(inc, 1).key.split("-")[0]

    return client.submit(work).result()


@program(raises=ValueError)
def a_worker_outside_a_task():
    return get_worker()


@program
def a_client_outside_a_task(client, cluster):
    return get_client() is client, get_client(cluster.scheduler_address, resolve_address=False) is client


@program(raises=ValueError)
def seceding_outside_a_task():
    return secede()


@program
def a_client_with_its_address_in_a_task(client, cluster):
    def work(address):
        return get_client(address, timeout="5s").submit(inc, 1).key.split("-")[0]

    return client.submit(work, cluster.scheduler_address).result()


@program
def futures_made_in_a_task_and_asked_for_outside(client):
    def work():
        with worker_client() as inner:
            inner.publish_dataset(inner.submit(inc, 4), name="made-in-a-task")

    client.submit(work).result()
    result = client.get_dataset("made-in-a-task").result()
    client.unpublish_dataset("made-in-a-task")
    return result


@program
def a_callback_in_a_task(client):
    def work():
        seen = []
        with worker_client() as inner:
            future = inner.submit(inc, 1, pure=False)
            called = threading.Event()
            future.add_done_callback(lambda each: (seen.append(each.status), called.set()))
            called.wait(5)
        return seen

    return client.submit(work).result()


@program
def tasks_as_deep_as_ten(client):
    def down(n):
        if n == 0:
            return 0
        with worker_client() as inner:
            return 1 + inner.submit(down, n - 1).result()

    return client.submit(down, 6).result()


@program
def a_data_frame_computed_in_a_task(client):
    def work():
        import dask.dataframe as dd
        import pandas as pd

        return dd.from_pandas(pd.DataFrame({"x": range(10)}), npartitions=2).x.sum().compute()

    return client.submit(work).result()


@program
def a_task_in_an_async_task(client):
    async def work():
        from distributed import get_worker

        return type(get_worker().address).__name__

    return client.submit(work).result()


@program(raises=RuntimeError)
def an_async_task_that_fails_late(client):
    import asyncio

    async def work():
        await asyncio.sleep(0.02)
        raise RuntimeError("late")

    return client.submit(work).result()


@program
def async_tasks_beside_each_other(client):
    import asyncio

    async def work(n):
        await asyncio.sleep(0.05)
        return n

    return client.gather(client.map(work, range(6)))
