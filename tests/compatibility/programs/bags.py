"""Dask bags, after docs.dask.org/en/stable/bag.html."""

from __future__ import annotations

import json
import operator
import random

import dask
import dask.bag as db

from tests.compatibility.programs import program

PEOPLE = [
    {"name": name, "age": 20 + n % 30, "city": ["Ulm", "Pisa", "Bergen"][n % 3]}
    for n, name in enumerate(["Ada", "Bo", "Cy", "Di", "Ed", "Fay"] * 5)
]


def people():
    return db.from_sequence(PEOPLE, npartitions=5)


@program
def the_first_example():
    b = db.from_sequence([1, 2, 3, 4, 5, 6], npartitions=2)
    return b.map(lambda n: n * 2).filter(lambda n: n > 4).compute(), b.take(2), b.count().compute(), list(b)


@program
def maps():
    b = db.from_sequence(range(10), npartitions=3)
    return dask.compute(
        b.map(operator.add, b), b.map(operator.add, 5), b.map(str),
        db.zip(b, b).starmap(operator.add), b.map_partitions(lambda part: [sum(part)]), db.map(max, b, b.max()),
    )  # fmt: skip


@program
def plucks_and_flattens():
    b = db.from_sequence([{"a": [1, 2], "b": 3}, {"a": [4], "b": 5}], npartitions=2)
    return dask.compute(
        b.pluck("a").flatten(), b.pluck("c", default=0), b.pluck(["a", "b"]), b.remove(lambda d: d["b"] == 3)
    )


@program(raises=KeyError)
def pluck_what_is_not_there():
    return db.from_sequence([{"a": 1}], npartitions=1).pluck("c").compute()


@program
def reductions():
    b = db.from_sequence(range(50), npartitions=7)
    return dask.compute(
        b.sum(), b.max(), b.min(), b.mean(), b.std(), b.var(), b.count(), b.any(), b.all(), b.reduction(sum, sum)
    )


@program
def frequencies_and_distinct():
    b = people()
    return (
        sorted(b.pluck("city").frequencies().compute()),
        sorted(b.pluck("city").distinct().compute()),
        sorted(each["city"] for each in b.distinct(key="city").compute()),
        b.topk(3, key="age").pluck("age").compute(),
    )


@program
def folds():
    b = db.from_sequence(range(20), npartitions=4)
    return (
        b.fold(operator.add).compute(),
        b.fold(lambda acc, n: acc | {n % 3}, lambda a, c: a | c, initial=set()).compute(),
        sorted(b.foldby(lambda n: n % 2, operator.add, 0, operator.add, 0).compute()),
        b.accumulate(operator.add).compute(),
    )


@program
def groupby():
    b = db.from_sequence(range(30), npartitions=4)
    return sorted((key, sorted(group)) for key, group in b.groupby(lambda n: n % 4).compute())


@program
def groupby_with_tasks():
    return sorted(
        (k, sorted(g))
        for k, g in db.from_sequence(range(30), npartitions=4).groupby(lambda n: n % 4, shuffle="tasks").compute()
    )


@program
def joins_and_products():
    a, b = db.from_sequence(range(5), npartitions=2), db.from_sequence("ab", npartitions=1)
    return a.join([2, 3, 9], lambda n: n).compute(), sorted(a.product(b).compute()), db.concat([a, b]).compute()


@program
def sampling():
    from dask.bag import random as sample

    b = db.from_sequence(range(100), npartitions=5)
    return (
        b.random_sample(0.2, random_state=42).compute(),
        len(sample.choices(b, k=5).compute()),
        len(sample.sample(b, k=5).compute()),
    )


@program
def files(path):
    people().map(json.dumps).to_textfiles(str(path / "*.json"))
    names = sorted(each.name for each in path.iterdir())
    read = db.read_text(str(path / "*.json")).map(json.loads)
    return names, read.pluck("age").sum().compute(), read.filter(lambda p: p["city"] == "Ulm").pluck("name").take(3)


@program
def compressed_files(path):
    db.from_sequence(["ä", "b", "c"], npartitions=2).to_textfiles(str(path / "*.txt.gz"))
    return db.read_text(str(path / "*.txt.gz")).str.strip().compute(), db.read_text(
        str(path / "*.gz"), include_path=True
    ).count().compute()


@program
def strings():
    b = db.from_sequence(["Ada Lovelace", "Bo Derek"], npartitions=2)
    return b.str.upper().compute(), b.str.split(" ").compute(), b.str.match("*Lo*").compute()


@program
def to_frames():
    df = people().to_dataframe(meta={"name": "object", "age": "i8", "city": "object"})
    return df.groupby("city").age.mean().compute().sort_index(), len(people().to_dataframe())


@program
def to_and_from_delayed():
    b = db.from_sequence(range(10), npartitions=3)
    return dask.compute(*b.to_delayed()), db.from_delayed([dask.delayed(list)(range(n)) for n in range(3)]).compute()


@program
def futures_into_bags(client):
    futures = client.map(list, [range(2), range(3)])  # held: a bag does not hold them
    return db.from_delayed(futures).sum().compute()


@program
def repartition():
    b = db.from_sequence(range(20), npartitions=10)
    return b.repartition(npartitions=3).map_partitions(lambda part: [len(list(part))]).compute(), b.npartitions


@program
def ranges_and_empty_ones():
    return (
        db.range(10, npartitions=3).compute(),
        db.from_sequence([]).compute(),
        db.from_sequence([], npartitions=1).count().compute(),
    )


@program
def the_sum_of_what_was_filtered_away():
    return db.range(10, npartitions=3).filter(lambda n: n > 100).sum().compute()


@program(raises=ValueError)
def the_maximum_of_nothing():
    return db.range(10, npartitions=1).filter(lambda n: n > 100).max().compute()


@program(raises=ZeroDivisionError)
def an_error():
    return db.from_sequence([1, 0], npartitions=1).map(lambda n: 1 / n).compute()


@program(raises=AssertionError)
def unequal_partitions():
    return db.zip(db.range(4, npartitions=2), db.range(6, npartitions=3)).compute()


@program
def generators_inside_partitions():
    def some(part):
        for n in part:
            if n % 2:
                yield n

    return db.range(10, npartitions=3).map_partitions(some).map(lambda n: n * 10).compute()


@program
def persisting():
    b = db.range(20, npartitions=4).map(lambda n: n + 1).persist()
    return b.sum().compute(), b.max().compute()


@program
def a_seeded_walk():
    def walk(seed):
        generator = random.Random(seed)
        return sum(generator.choice([-1, 1]) for _ in range(100))

    return db.range(10, npartitions=3).map(walk).compute()


@program
def word_count(path):
    (path / "text").write_text("to be or not to be\n" * 20)
    words = db.read_text(str(path / "text"), blocksize=100).str.strip().str.split().flatten()
    return sorted(words.frequencies().compute())


@program
def items_and_scalars():
    total = db.range(5, npartitions=2).sum()
    return total.apply(str).compute(), total.to_delayed().compute()
