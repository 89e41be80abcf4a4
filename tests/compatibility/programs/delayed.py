"""Delayed, after docs.dask.org/en/stable/delayed.html."""

from __future__ import annotations

import dataclasses
import operator
from typing import NamedTuple

import dask
import numpy as np
from dask import delayed

from tests.compatibility.programs import program


def inc(n):
    return n + 1


def add(a, b):
    return a + b


@delayed
def double(n):
    return 2 * n


@program
def the_first_example():
    output = []
    for x in [1, 2, 3, 4, 5]:
        a = delayed(inc)(x)
        b = double(x)
        output.append(delayed(add)(a, b))
    return delayed(sum)(output).compute()


@program
def a_decorator_with_arguments():
    @delayed(pure=True, nout=2)
    def both(n):
        return n, -n

    a, b = both(3)
    return dask.compute(a, b, a + b), both(3).key == both(3).key


@program
def impure_by_default():
    return delayed(inc)(1).key == delayed(inc)(1).key, delayed(inc, pure=True)(1).key == delayed(inc, pure=True)(1).key


@program
def names_of_ones_own():
    x = delayed(inc)(1, dask_key_name="mine")
    return x.key, x.compute(), delayed(5, name="five").key, delayed(inc)(x, dask_key_name=("t", 1)).compute()


@program(raises=TypeError)
def iterating_without_a_length():
    a, b = delayed(divmod)(7, 2)
    return a


@program
def iterating_with_a_length():
    a, b = delayed(divmod, nout=2)(7, 2)
    return dask.compute(a, b), len(delayed(divmod, nout=2)(7, 2))


@program(raises=TypeError)
def the_truth_of_a_delayed():
    return bool(delayed(1))


@program
def operators():
    x, y = delayed(7), delayed(2)
    return dask.compute(
        x + y,
        x - y,
        x * y,
        x / y,
        x // y,
        x % y,
        x**y,
        -x,
        x > y,
        x == 7,
        x & y,
        x | y,
        x << 1,
        10 - x,
        abs(-x),
        x != y,
    )


@program
def indexing_and_attributes():
    x = delayed({"a": [1, 2, 3], "b": "text"})
    array = delayed(np.arange)(6)
    return dask.compute(x["a"][1], x["b"].upper(), x.get("c", 5), array.reshape(2, 3).T.shape, array[::2], array.sum())


@program(
    raises=AttributeError,
)
def an_attribute_that_is_not_there():
    return delayed(5).nothing.compute()


@program(raises=TypeError)
def setting_an_item():
    x = delayed([1, 2])
    x[0] = 5
    return x.compute()


class Counter:
    def __init__(self, n=0):
        self.n = n

    def add(self, by):
        return Counter(self.n + by)

    @property
    def value(self):
        return self.n


@program
def classes_and_methods():
    counter = delayed(Counter)(5)
    later = counter.add(2).add(3)
    return later.value.compute(), later.n.compute(), type(counter.compute()).__name__


@program
def methods_of_objects():
    counter = Counter(3)
    return (
        delayed(counter.add)(2).value.compute(),
        delayed(counter).add(1).n.compute(),
        delayed(counter).compute() is counter,
    )


@program
def containers():
    a, b = delayed(1), delayed(inc)(1)
    return dask.compute([a, {"b": b, "t": (a, [b])}], {a.compute(): b}), delayed(
        [a, {"k": (b,)}, {b.compute()}]
    ).compute()


class Point(NamedTuple):
    x: object
    y: object


@dataclasses.dataclass
class Record:
    x: object
    y: object = 5


@program
def named_tuples_and_dataclasses():
    a = delayed(inc)(1)
    return (
        delayed(Point(a, 2)).compute(),
        delayed(Record(a)).compute(),
        delayed(lambda r: r.x)(Record(a, a)).compute(),
        dask.compute(Point(a, a)),
    )


@program
def slices_of_delayed():
    return delayed(lambda s: s)(slice(delayed(1), delayed(inc)(4), None)).compute()


@program
def no_traversal():
    a = delayed(inc)(1)
    x = delayed([a, 1], traverse=False)
    return type(x.compute()[0]).__name__, dask.compute([a, 5], traverse=False)[0][1]


@program
def keyword_arguments():
    return delayed(dict)(a=delayed(1), b=[delayed(inc)(1)]).compute(), delayed(sorted)(
        [3, 1], reverse=delayed(True)
    ).compute()


@program
def a_diamond():
    top = delayed(list)((1, 2))
    return delayed(divmod)(delayed(sum)(top), delayed(max)(top)).compute()


@program
def a_long_chain():
    x = delayed(inc)(0)
    for _ in range(300):
        x = delayed(inc)(x)
    return x.compute()


@program
def a_tree():
    level = [delayed(n) for n in range(64)]
    while len(level) > 1:
        level = [delayed(operator.add)(a, b) for a, b in zip(level[::2], level[1::2], strict=True)]
    return level[0].compute()


@program
def a_grid():
    rows = [[delayed(n)] for n in range(8)]
    for _ in range(8):
        rows = [[delayed(add)(rows[n][0], rows[(n + 1) % 8][0])] for n in range(8)]
    return dask.compute(rows)


@program
def a_wide_fan():
    top = delayed(inc)(1)
    return delayed(sum)([delayed(add)(top, n) for n in range(200)]).compute()


@program
def shared_work_is_done_once(path):
    def work(name):
        with open(name, "a") as file:
            file.write("x")
        return 1

    x = delayed(work)(str(path / "count"))
    return dask.compute(x + 1, x + 2), len((path / "count").read_text())


@program
def delayed_of_delayed():
    return delayed(delayed(5)).compute(), delayed(inc)(delayed(delayed(5))).compute()


@program
def delayed_returning_delayed():
    return type(delayed(lambda: delayed(5))().compute()).__name__


@program
def a_delayed_function_called_in_a_task():
    return delayed(lambda n: double(n).compute())(4).compute()


@program
def compute_in_a_task():
    def work(n):
        return sum(dask.compute(*[delayed(inc)(i) for i in range(n)]))

    return delayed(work)(4).compute()


@program
def compute_in_a_task_with_another_scheduler():
    def work(n):
        return sum(dask.compute(*[delayed(inc)(i) for i in range(n)], scheduler="sync"))

    return delayed(work)(4).compute()


@program
def collections_as_arguments():
    x = dask.array.arange(10, chunks=5)
    return (
        delayed(np.sum)(x).compute(),
        delayed(lambda d: d["x"].sum())({"x": x}).compute(),
        delayed(type)(x).compute().__name__,
    )


@program(raises=TypeError)
def an_error():
    return delayed(add)(1, "a").compute()


@program(
    raises=ZeroDivisionError,
)
def an_error_below():
    return delayed(inc)(delayed(inc)(delayed(operator.truediv)(1, 0))).compute()


@program(
    raises=ValueError,
)
def the_first_of_two_errors():
    return dask.compute(delayed(inc)(1), delayed(int)("no number"))


@program
def an_error_of_ones_own():
    class Own(Exception):
        pass

    def fail():
        raise Own("mine")

    try:
        delayed(fail)().compute()
    except Exception as error:
        return type(error).__name__, str(error), type(error).__mro__[1].__name__


@program
def a_warning():
    def careful():
        import warnings

        warnings.warn("careful", UserWarning, stacklevel=1)
        return 1

    return delayed(careful)().compute()


@program
def persisting(client):
    x = delayed(inc)(1).persist()
    y = client.persist([delayed(inc)(2), delayed(inc)(3)])
    return x.compute(), dask.compute(*y), delayed(add)(x, y[0]).compute()


@program
def optimised():
    x = delayed(inc)(delayed(inc)(1))
    (y,) = dask.optimize(x)
    return y.compute(), x.compute(optimize_graph=False), dask.optimize(x, x)[0].compute()


@program
def bind_checkpoint_and_wait_on():
    from dask.graph_manipulation import bind, checkpoint, clone, wait_on

    x, y = delayed(inc)(1), delayed(inc)(2)
    return bind(x, y).compute(), checkpoint(x, y).compute(), clone(x).compute(), dask.compute(*wait_on(x, y))


@program
def a_custom_collection():
    from dask.base import DaskMethodsMixin

    class Pair(DaskMethodsMixin):
        def __init__(self, graph, keys):
            self.graph, self.keys = graph, keys

        def __dask_graph__(self):
            return self.graph

        def __dask_keys__(self):
            return self.keys

        def __dask_postcompute__(self):
            return tuple, ()

        def __dask_postpersist__(self):
            return lambda graph, *a, **k: Pair(graph, self.keys), ()

        def __dask_tokenize__(self):
            return tuple(self.keys)

        __dask_optimize__ = staticmethod(lambda graph, keys, **k: graph)
        __dask_scheduler__ = staticmethod(dask.threaded.get)

    pair = Pair({"pair-a": (inc, 1), "pair-b": (add, "pair-a", 5)}, ["pair-a", "pair-b"])
    return pair.compute(), dask.compute(pair, delayed(3))


@program
def none_and_odd_values():
    return dask.compute(
        delayed(None),
        delayed(lambda: None)(),
        delayed(...),
        delayed(b"bytes"),
        delayed(1 + 2j),
        delayed(float("nan")),
        delayed(frozenset({1})),
    )


@program
def strings_that_look_like_keys():
    a = delayed(inc)(1, dask_key_name="a")
    return delayed(lambda x, y: (x, y))("a", a).compute(), delayed(list)(["a", ("a", 0)]).compute()


@program
def large_arguments():
    x = np.arange(300_000)
    return delayed(np.sum)(x).compute(), delayed(np.sum)(delayed(x)).compute()


@program
def globals_and_closures():
    offset = 10

    def shift(n):
        return n + offset + len(operator.__name__)

    offset = 20
    return delayed(shift)(1).compute()


@program
def recursion():
    def fibonacci(n):
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    return delayed(fibonacci)(12).compute()
