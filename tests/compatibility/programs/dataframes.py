"""Dask dataframes, after docs.dask.org/en/stable/dataframe.html and its API page."""

from __future__ import annotations

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask.dataframe.utils import AttributeNotImplementedError

from tests.compatibility.programs import program


def frame(rows=120, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "id": rng.integers(0, 20, rows),
            "name": rng.choice(["Alice", "Bob", "Charlie", None], rows),
            "x": rng.random(rows),
            "y": rng.normal(size=rows),
            "when": pd.date_range("2026-01-01", periods=rows, freq="6h"),
        }
    )


def table(rows=120, seed=0, npartitions=4):
    return dd.from_pandas(frame(rows, seed), npartitions=npartitions)


def ordered(result, *by):
    """Sort rows whose order Dask does not promise."""
    return result.sort_values(list(by) or list(result.columns)).reset_index(drop=True)


@program
def the_first_example():
    index = pd.date_range("2021-09-01", periods=2400, freq="1h")
    df = dd.from_pandas(pd.DataFrame({"a": np.arange(2400), "b": list("abcaddbe" * 300)}, index=index), npartitions=10)
    return df.a.mean().compute(), df["2021-10-01":"2021-10-09 5:00"].compute(), df.b.unique().compute(), df.divisions


@program
def roundtrip():
    return table().compute(), table().x.compute(), table().index.compute(), len(table())


@program
def timeseries():
    df = dask.datasets.timeseries(end="2000-01-03", freq="1h", partition_freq="1D", seed=1)
    return df.compute(), df.groupby("name").x.std().compute().sort_index(), df.x.resample("6h").mean().compute()


@program
def from_a_dictionary():
    df = dd.from_dict({"a": range(10), "b": list("abcdefghij")}, npartitions=3)
    return df[df.a > 3].compute()


@program
def from_functions():
    def make(n, power):
        return pd.DataFrame({"n": [n, n**power]})

    return dd.from_map(make, range(4), power=2).compute(), dd.from_map(make, [1, 2], [3, 4]).compute()


@program
def from_delayed():
    parts = [dask.delayed(frame)(10, seed) for seed in range(3)]
    return dd.from_delayed(parts, meta=frame(1), verify_meta=False).x.sum().compute()


@program
def to_delayed():
    return dask.compute(*[dask.delayed(len)(part) for part in table().to_delayed()])


@program
def from_arrays():
    x = dask.array.arange(20, chunks=5).reshape(10, 2)
    return dd.from_dask_array(x, columns=["a", "b"]).compute(), table()[["x", "y"]].to_dask_array(
        lengths=True
    ).compute()


@program
def selection():
    df = table()
    return dask.compute(
        df[df.x > 0.5], df.loc[10:20], df.loc[:, ["x", "y"]], df.loc[5], df.query("x > 0.5 and id < 10"),
        df[["x"]].iloc[:, 0], df.partitions[1], df.x[df.y > 0], df.isin({"id": [1, 2]}), df.nlargest(3, "x"),
    )  # fmt: skip


@program
def head_and_tail():
    df = table()
    return (
        df.head(),
        df.tail(3),
        df.head(60, npartitions=2),
        df.x.head(2),
        df.sample(frac=0.2, random_state=1).compute().shape,
    )


@program
def too_short_a_head():
    return table(8).head(6)


@program
def columns():
    df = table()
    df["z"] = df.x + df.y
    df = df.assign(w=lambda d: d.z * 2).rename(columns={"x": "ex"}).drop(columns="y")
    return df.compute(), list(df.columns), df.dtypes


@program(raises=KeyError)
def a_column_that_is_not_there():
    return table()["nothing"].compute()


@program
def a_division_by_zero():
    df = table()
    return (df.x / (df.id * 0)).compute()


@program
def aggregations():
    df = table()[["id", "x", "y"]]
    return dask.compute(
        df.sum(), df.mean(), df.std(), df.var(), df.min(), df.max(), df.count(), df.x.median_approximate(),
        df.x.prod(), df.idxmax(), df.x.sem(), df.nunique(), df.all(), df.any(), df.skew(), df.x.kurtosis(),
    )  # fmt: skip


@program
def aggregations_along_rows():
    df = table()[["x", "y"]]
    return dask.compute(
        df.sum(axis=1), df.mean(axis=1), df.max(axis=1), df.apply(lambda r: r.x - r.y, axis=1, meta=("d", "f8"))
    )


@program
def describe():
    return (
        table()[["x", "y"]].describe().compute(),
        table().name.describe().compute(),
        table().describe(include="all").compute(),
    )


@program
def correlation():
    df = table()[["x", "y", "id"]]
    return dask.compute(df.corr(), df.cov(), df.x.corr(df.y), df.x.autocorr(2))


@program
def groupby():
    df = table()
    return [
        each.sort_index()
        for each in dask.compute(
            df.groupby("name").x.mean(), df.groupby("name")[["x", "y"]].sum(), df.groupby(["name", "id"]).x.count(),
            df.groupby("id").size(), df.groupby(df.id % 3).y.max(), df.groupby("name", dropna=False).x.sum(),
            df.groupby("name").x.nunique(), df.groupby("id").first().x, df.groupby("id").y.var(),
        )
    ]  # fmt: skip


@program
def groupby_with_several_aggregations():
    df = table()
    result = df.groupby("name").agg({"x": ["mean", "std", "min"], "y": "sum", "id": list}).compute()
    result[("id", "list")] = result[("id", "list")].map(sorted)
    named = df.groupby("name").agg(total=("x", "sum"), most=("y", "max"))
    return result.sort_index(), named.compute().sort_index()


@program
def groupby_with_an_aggregation_of_ones_own():
    spread = dd.Aggregation(
        "spread",
        lambda s: (s.max(), s.min()),
        lambda high, low: (high.max(), low.min()),
        lambda high, low: high - low,
    )
    return table().groupby("name").agg({"x": spread}).compute().sort_index()


@program
def groupby_with_many_outputs():
    df = table()
    return (
        df.groupby("id").x.sum(split_out=3).compute().sort_index(),
        df.groupby("id").agg({"x": "mean"}, split_out=2, split_every=2).compute().sort_index(),
    )


@program
def groupby_apply():
    df = table()
    result = df.groupby("id").apply(lambda g: g.x.max() - g.x.min(), meta=("spread", "f8"))
    return result.compute().sort_index(), df.groupby("id").x.transform(
        lambda s: s - s.mean(), meta=("x", "f8")
    ).compute().sort_index()


@program
def groupby_rolling_and_cumulative():
    df = table()
    return (
        df.groupby("id").x.cumsum().compute().sort_index(),
        df.groupby("id").cumcount().compute().sort_index(),
        df.groupby("id").x.ffill().compute().sort_index(),
    )


@program
def value_counts():
    df = table()
    return (
        dask.compute(df.name.nunique(), df.id.nunique()),
        ordered(df.id.value_counts().compute().reset_index()),
        df.name.value_counts(normalize=True, dropna=False).compute().sort_index(),
    )


@program
def duplicates():
    df = table()
    return (
        ordered(df[["id", "name"]].drop_duplicates().compute()),
        sorted(df.id.unique().compute()),
        ordered(df[["id"]].drop_duplicates(split_out=2).compute()),
    )


@program
def merge():
    left, right = table()[["id", "x"]], dd.from_pandas(pd.DataFrame({"id": range(25), "z": range(25)}), npartitions=2)
    return [ordered(left.merge(right, on="id", how=how).compute()) for how in ("inner", "left", "right", "outer")]


@program
def merge_with_pandas():
    return ordered(table()[["id", "x"]].merge(pd.DataFrame({"id": range(9), "z": range(9)}), on="id").compute())


@program
def merge_by_shuffling_with_tasks():
    left, right = table(), table(60, 1, 3)
    return ordered(
        left[["id", "x"]].merge(right[["id", "y"]], on="id", shuffle_method="tasks", broadcast=False).compute()
    )


@program
def merge_by_shuffling_p2p():
    left, right = table(), table(60, 1, 3)
    return ordered(
        left[["id", "x"]].merge(right[["id", "y"]], on="id", shuffle_method="p2p", broadcast=False).compute()
    )


@program
def merge_with_an_indicator_and_suffixes():
    left, right = table(40), table(30, 1)
    merged = left[["id", "x"]].merge(right[["id", "x"]], on="id", how="outer", suffixes=("_l", "_r"), indicator=True)
    return ordered(merged.compute())


@program
def join_on_the_index():
    left, right = table()[["x"]], table(80, 1, 3)[["y"]]
    return (
        left.join(right, how="left").compute(),
        left.merge(right, left_index=True, right_index=True).compute(),
        dd.concat([left, right], axis=1).compute(),
    )


@program
def merge_asof():
    left, right = (
        table(20)[["when", "x"]].set_index("when", sorted=True),
        table(20, 1)[["when", "y"]].set_index("when", sorted=True),
    )
    return dd.merge_asof(left, right, left_index=True, right_index=True).compute()


@program
def concatenation():
    a, b = table(20), table(20, 1)
    return dd.concat([a, b]).compute(), dd.concat([a, b], interleave_partitions=True).compute()


@program
def set_index():
    df = table().set_index("x")
    return df.compute(), df.divisions, df.loc[0.2:0.4].compute(), df.npartitions


@program
def set_index_with_divisions_and_tasks():
    df = table().set_index("id", divisions=[0, 7, 14, 19], shuffle_method="tasks")
    return ordered(df.reset_index().compute()), df.divisions


@program
def sort_values():
    return (
        table().sort_values("x").compute(),
        table().sort_values(["id", "x"], ascending=False).compute(),
        table().sort_values("x", shuffle_method="p2p").compute(),
    )


@program
def shuffle():
    df = table().shuffle("id")
    return ordered(df.compute()[["id", "x"]]), df.map_partitions(
        lambda p: p.id.nunique()
    ).compute().sum() == df.id.nunique().compute()


@program
def shuffle_with_tasks():
    return ordered(table().shuffle("id", shuffle_method="tasks", npartitions=6).compute()[["id", "x"]])


@program
def shuffle_on_disk():
    return ordered(table().shuffle("id", shuffle_method="disk").compute()[["id", "x"]])


@program
def rolling():
    df = table()
    return dask.compute(
        df.x.rolling(5).mean(), df[["x", "y"]].rolling(3, center=True).sum(), df.x.rolling(4, min_periods=1).max(),
        df.set_index("when", sorted=True).x.rolling("1D").mean(),
    )  # fmt: skip


@program
def map_partitions():
    df = table()
    return dask.compute(
        df.map_partitions(len),
        df.map_partitions(lambda part, add: part.assign(x=part.x + add), 5),
        df.map_partitions(
            lambda part, partition_info=None: part.assign(n=partition_info["number"] if partition_info else 0)
        ),
        df.x.map_partitions(lambda s: s * 2, meta=("x", "f8")),
        df.map_partitions(lambda a, b: a.x + b.x, df),
    )


@program(raises=ValueError)
def map_partitions_with_a_wrong_meta():
    return table().map_partitions(lambda p: p.assign(z=1), meta=frame(1).iloc[:0]).compute().columns.tolist()


@program
def map_overlap():
    return table().x.map_overlap(lambda s: s.rolling(3).mean(), 2, 0).compute()


@program
def reduction():
    return table().x.reduction(lambda s: pd.Series([s.max()]), aggregate=lambda s: s.max(), meta=("x", "f8")).compute()


@program
def apply_and_map():
    df = table()
    return dask.compute(
        df.name.map({"Alice": 1, "Bob": 2}, meta=("name", "f8")), df.x.apply(lambda v: v + 1, meta=("x", "f8")),
        df.x.map(lambda v: v * 2, meta=("x", "f8")), df[["x", "y"]].map(abs), df.x.combine_first(df.y),
    )  # fmt: skip


@program
def apply_without_meta():
    return table().x.apply(lambda v: v + 1).compute()


@program
def strings():
    name = table().name
    return dask.compute(
        name.str.upper(), name.str.len(), name.str.contains("li"), name.str.cat(name, sep="-"), name.str[:2],
        name.str.split("l", n=1, expand=True), name.fillna("nobody"),
    )  # fmt: skip


@program
def dates():
    when = table().when
    return dask.compute(
        when.dt.day,
        when.dt.dayofweek,
        when.dt.floor("1D"),
        when.dt.strftime("%d.%m."),
        when.max() - when.min(),
        dd.to_datetime(when.astype(str)),
    )


@program(raises=AttributeNotImplementedError)
def unknown_categories():
    return table().name.astype("category").cat.categories


@program
def missing_values():
    df = table()
    return dask.compute(
        df.dropna(),
        df.name.isna(),
        df.fillna({"name": "?"}),
        df.x.where(df.x > 0.5),
        df.x.mask(df.x > 0.5, 0),
        df.name.ffill(),
        df.notnull(),
    )


@program
def pivot():
    df = table().categorize(columns=["name"])
    return df.pivot_table(index="id", columns="name", values="x", aggfunc="mean").compute().sort_index(), dd.melt(
        df[["id", "x", "y"]], id_vars="id"
    ).compute().shape


@program
def replaces_and_clips():
    df = table()
    return dask.compute(
        df.replace({"Alice": "A"}),
        df.x.clip(0.2, 0.8),
        df.x.between(0.2, 0.4),
        df.round(1),
        df.astype({"id": "f4"}),
        df.explode("name"),
    )


@program
def csv(path):
    table()[["id", "name", "x"]].to_csv(str(path / "part-*.csv"), index=False)
    df = dd.read_csv(str(path / "part-*.csv"))
    return (
        sorted(each.name for each in path.iterdir()),
        df.compute().reset_index(drop=True),
        df.groupby("name").x.mean().compute().sort_index(),
    )


@program
def csv_in_one_file_and_blocks(path):
    table()[["id", "x"]].to_csv(str(path / "all.csv"), single_file=True, index=False)
    df = dd.read_csv(str(path / "all.csv"), blocksize=500, include_path_column=False)
    return df.npartitions, df.compute().reset_index(drop=True), len(df)


@program(raises=ValueError)
def csv_that_changes_its_mind(path):
    (path / "a.csv").write_text("x\n" + "1\n" * 100 + "text\n")
    return dd.read_csv(str(path / "a.csv"), sample=20, blocksize=100).compute()


@program(raises=OSError)
def csv_that_is_not_there(path):
    return dd.read_csv(str(path / "nothing-*.csv"))


@program
def parquet(path):
    table().to_parquet(str(path / "table"))
    df = dd.read_parquet(str(path / "table"), columns=["id", "x"], filters=[("x", ">", 0.5)])
    return (
        sorted(each.name for each in (path / "table").iterdir()),
        df.compute(),
        dd.read_parquet(str(path / "table")).compute(),
    )


@program
def parquet_by_directories(path):
    table().to_parquet(str(path / "table"), partition_on=["id"], write_index=False)
    return ordered(dd.read_parquet(str(path / "table"))[["x", "id"]].astype({"id": "i8"}).compute(), "x")


@program
def parquet_with_metadata_and_divisions(path):
    table().set_index("when", sorted=True).to_parquet(str(path / "t"), write_metadata_file=True)
    df = dd.read_parquet(str(path / "t"), calculate_divisions=True, index="when")
    return df.divisions, df.x.sum().compute(), len(df)


@program(raises=FileNotFoundError)
def parquet_that_is_not_there(path):
    return dd.read_parquet(str(path / "nothing"))


@program
def json(path):
    table()[["id", "x"]].to_json(str(path / "part-*.json"))
    return dd.read_json(str(path / "part-*.json")).compute().reset_index(drop=True)


@program
def sql(path):
    import sqlite3

    with sqlite3.connect(path / "base") as connection:
        frame()[["id", "x"]].to_sql("t", connection)
    load = dask.delayed(lambda name: pd.read_sql("select * from t", sqlite3.connect(name)))
    return dd.from_delayed([load(str(path / "base"))]).x.sum().compute()


@program
def repartition():
    df = table(npartitions=6)
    return (
        df.repartition(npartitions=2).compute(),
        df.repartition(divisions=[0, 50, 119]).divisions,
        df.repartition(npartitions=9).compute().shape,
    )


@program
def persisting(client):
    df = client.persist(table())
    kept = table().persist()
    return df.x.sum().compute(), kept.groupby("id").x.sum().compute().sort_index(), len(kept), kept.npartitions


@program
def several_at_once():
    df = table()
    return dask.compute(df.x.sum(), {"y": df.y.max()}, [df.id.min(), 3])


@program
def iteration():
    df = table(10, npartitions=2)
    return [tuple(row) for row in df.itertuples()], [i for i, _ in df.iterrows()], list(df.x), [c for c in df]


@program
def an_empty_frame():
    df = table()
    none = df[df.x > 2]
    return (
        none.compute(),
        none.x.sum().compute(),
        len(none),
        none.x.mean().compute(),
        none.groupby("id").x.sum().compute(),
    )


@program(raises=KeyError)
def an_error_in_a_partition():
    def fail(part):
        raise KeyError(f"{len(part)} rows")

    return table(npartitions=1).map_partitions(fail, meta=("x", "f8")).compute()


@program(raises=KeyError)
def an_error_at_construction():
    return table().groupby("nothing").x.mean().compute()


@program
def a_warning_from_pandas():
    def warn(part):
        import warnings

        warnings.warn("from a partition", UserWarning, stacklevel=1)
        return part

    return table(npartitions=1).map_partitions(warn).x.sum().compute()


@program
def futures_of_frames(client):
    parts = client.map(frame, [10, 10], [1, 2])
    df = dd.from_delayed(parts)
    return df.compute(), client.submit(lambda part: part.x.sum(), parts[0]).result()


@program
def frames_as_results(client):
    return (
        client.submit(frame).result(),
        client.compute(table()).result(),
        client.gather(client.compute([table().x, table().y])),
    )


@program
def frames_can_be_changed(client):
    df = client.submit(frame).result()
    df.loc[0, "x"] = 5.0
    df["new"] = 1
    array = df.x.to_numpy()
    return df, array.flags.writeable


@program
def arrow_strings():
    df = dd.from_pandas(
        pd.DataFrame({"s": pd.array(["a", None, "b"], dtype="string[pyarrow]"), "n": pd.array([1, None, 3], "Int64")}),
        npartitions=2,
    )
    return df.compute(), df.n.sum().compute(), df.s.str.upper().compute(), df.dtypes


@program
def explain_and_repr():
    df = table()
    return repr(df.x.sum()).split("(")[0], str(df.dtypes), df.npartitions, df.known_divisions


@program
def align_and_arithmetic_between_frames():
    a, b = table(50)[["x"]], table(60, 1, 3)[["x"]]
    return (a + b).compute(), (a.x * 2 + b.x.mean()).compute()


@program
def to_bag_and_records():
    return table(10)[["id", "x"]].to_bag().compute(), len(table(10).to_records(lengths=True).compute())


@program
def to_timestamp_and_tz():
    when = table().when.dt.tz_localize("UTC").dt.tz_convert("Europe/Berlin")
    return when.compute(), when.dt.hour.value_counts().compute().sort_index()
