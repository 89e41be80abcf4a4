"""What goes wrong in tasks, and what a client is told of it; after distributed.dask.org/en/stable/api.html."""

from __future__ import annotations

import concurrent.futures
import threading
import traceback
import warnings

from dask.distributed import wait
from distributed.client import (
    FutureCancelledError,
)

from tests.compatibility.programs import (
    UNPICKLABLE,
    program,
)
from tests.compatibility.programs.futures import add, div, inc


@program(raises=ZeroDivisionError)
def an_exception(client):
    return client.submit(div, 1, 0).result()


@program
def an_exception_looked_at(client):
    future = client.submit(div, 1, 0)
    error = future.exception()
    return (
        error,
        future.status,
        future.done(),
        future.cancelled(),
        [f.name for f in traceback.extract_tb(future.traceback())],
    )


@program
def no_exception(client):
    future = client.submit(inc, 1)
    return future.exception(), future.traceback(), future.status


@program(raises=ZeroDivisionError)
def exceptions_travel_down(client):
    a = client.submit(div, 1, 0)
    b = client.submit(inc, a)
    return client.submit(inc, b).result()


@program
def an_exception_with_a_cause(client):
    def fail():
        try:
            {}["missing"]
        except KeyError as error:
            raise RuntimeError("higher") from error

    future = client.submit(fail)
    error = future.exception()
    return error, repr(error.__cause__), repr(error.__context__)


@program
def an_exception_with_notes(client):
    def fail():
        error = ValueError("x")
        error.add_note("a note")
        raise error

    return getattr(client.submit(fail).exception(), "__notes__", None)


class Peculiar(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")
        self.a, self.b = a, b


@program(raises=Peculiar)
def an_exception_that_does_not_unpickle(client):
    def fail():
        raise Peculiar(1, 2)

    return client.submit(fail).result()


@program
def an_exception_that_does_not_pickle(client):
    def fail():
        raise ValueError("lock", threading.Lock())

    error = client.submit(fail).exception()
    return type(error).__name__


@program
def an_exception_group(client):
    def fail():
        raise ExceptionGroup("several", [ValueError(1), KeyError(2)])

    error = client.submit(fail).exception()
    return type(error).__name__, str(error), [repr(each) for each in error.exceptions]


@program
def a_long_exception_message(client):
    def fail():
        raise ValueError("x" * 100_000)

    return len(str(client.submit(fail).exception()))


@program
def base_exceptions(client):
    class Own(BaseException):
        pass

    def fail():
        raise Own("own")

    error = client.submit(fail).exception()
    return type(error).__name__, str(error)


@program
def stop_iteration(client):
    return repr(client.submit(next, iter([])).exception())


@program(covers=("Future.result",), raises=TypeError, differs=UNPICKLABLE)
def a_generator_function(client):
    def generate():
        yield 1

    return client.submit(generate).result()


@program(covers=("Future.result",), raises=TypeError, differs=UNPICKLABLE)
def a_result_that_does_not_pickle(client):
    return client.submit(threading.Lock).result()


@program(raises=TypeError)
def an_argument_that_does_not_pickle(client):
    return client.submit(type, threading.Lock()).result()


@program(raises=ValueError)
def a_result_that_does_not_unpickle(client):
    class Broken:
        def __reduce__(self):
            return (int, ("no number",))

    return client.submit(Broken).result()


@program(raises=TypeError)
def scatter_what_does_not_pickle(client):
    return client.scatter(threading.Lock())


@program
def recursion_in_a_task(client):
    def deep(n):
        return 0 if n == 0 else 1 + deep(n - 1)

    return client.submit(deep, 500).result()


@program
def an_exception_as_a_result(client):
    return client.submit(ValueError, "a value").result()


@program(raises=TimeoutError)
def a_timeout_raised_by_a_task(client):
    def fail():
        raise TimeoutError("mine")

    return client.submit(fail).result()


@program(raises=concurrent.futures.CancelledError)
def a_cancelled_error_raised_by_a_task(client):
    def fail():
        raise concurrent.futures.CancelledError("mine")

    return client.submit(fail).result()


@program(raises=ZeroDivisionError)
def an_error_is_kept(client):
    first = client.submit(div, 1, 0, key="kept-error")
    wait(first)
    return client.submit(div, 1, 1, key="kept-error").result()


@program
def an_error_let_go(client):
    first = client.submit(div, 1, 0, key="let-go")
    wait(first)
    first.release()
    del first
    client.run_on_scheduler(lambda: None)
    client.submit(inc, 1).result()
    return client.submit(div, 1, 1, key="let-go").result()


@program(raises=ZeroDivisionError, covers=("Client.recreate_error_locally",))
def an_error_recreated_here(client):
    return client.recreate_error_locally(client.submit(div, 1, 0))


@program(covers=("Client.recreate_task_locally",))
def a_task_recreated_here(client):
    future = client.submit(add, 1, 2, c=3)
    wait(future)
    return client.recreate_task_locally(future)


@program(covers=("TimeoutError", "CancelledError"))
def errors_of_dask_and_of_python():
    import distributed

    return distributed.TimeoutError is TimeoutError, issubclass(FutureCancelledError, distributed.CancelledError)


@program(raises=MemoryError)
def a_memory_error_raised_by_a_task(client):
    def fail():
        raise MemoryError("too much")

    return client.submit(fail).result()


@program(raises=UnicodeDecodeError)
def errors_with_many_arguments(client):
    return client.submit(bytes.decode, b"\xff", "utf-8").result()


@program
def file_errors(client, path):
    error = client.submit(open, str(path / "nothing")).exception()
    return type(error).__name__, error.errno, error.filename == str(path / "nothing")


@program
def warnings_as_errors_in_tasks(client):
    def work():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                warnings.warn("serious", stacklevel=1)
            except UserWarning as error:
                return str(error)

    return client.submit(work).result()
