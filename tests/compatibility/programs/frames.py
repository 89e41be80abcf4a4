"""More of dask.dataframe, after docs.dask.org/en/stable/dataframe-api.html."""

from __future__ import annotations

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd

from tests.compatibility.programs import program
from tests.compatibility.programs.dataframes import frame, ordered, table


def series_in_time(periods=96, npartitions=4):
    index = pd.date_range("2026-01-01", periods=periods, freq="1h", name="when")
    return dd.from_pandas(
        pd.DataFrame({"x": np.arange(periods, dtype=float), "k": np.arange(periods) % 3}, index=index),
        npartitions=npartitions,
    )


def named():
    data = frame()
    return data.assign(name=pd.Categorical(data.name.fillna("nobody")))


@program
def quantiles():
    df = table()
    return (
        df.x.quantile(0.5, method="dask").compute(), df.x.quantile([0.1, 0.9]).compute(),
        df[["x", "y"]].quantile(0.25).compute(), df.x.median_approximate().compute(),
        df.x.repartition(npartitions=1).median().compute(),
    )  # fmt: skip


@program
def set_index_sorted():
    df = dd.from_pandas(frame(40).sort_values("when"), npartitions=4, sort=False)
    indexed = df.set_index("when", sorted=True)
    return indexed.divisions, indexed.compute(), indexed.loc["2026-01-03":"2026-01-05"].compute()


@program
def categories():
    df = dd.from_pandas(named().astype({"name": object}), npartitions=4).astype({"name": "category"})
    known = dd.from_pandas(named(), npartitions=4)
    return (
        df.name.cat.known, known.name.cat.known, list(known.name.cat.categories), known.name.cat.codes.compute(),
        known.groupby("name", observed=True).x.sum().compute(), known.name.cat.as_unknown().cat.known,
        known.name.cat.rename_categories(str.upper).compute(), known.name.cat.add_categories(["Zoe"]).dtype,
    )  # fmt: skip


@program
def memory_and_shape():
    df = table()
    return (
        df.shape[1], dask.compute(df.shape[0]), len(df), df.ndim, df.size.compute(),
        df.memory_usage(deep=False).compute(),
        df.memory_usage_per_partition().compute(), list(df.columns), df.npartitions,
    )  # fmt: skip


@program
def crosses_partitions():
    df = series_in_time()
    return dask.compute(
        df.x.shift(5), df.x.diff(3), df.x.cumsum(), df.x.cummax(),
        df.x.rolling(7).mean(), df.x.where(df.x % 5 == 0).ffill(),
        df.x.where(df.x % 5 == 0).bfill(),
    )  # fmt: skip


@program
def resampling():
    df = series_in_time()
    return (
        df.resample("6h").sum().compute(), df.x.resample("1D").agg(["min", "max"]).compute(),
        df.x.resample("12h").count().compute(),
    )  # fmt: skip


@program
def windows_in_time():
    df = series_in_time()
    return dask.compute(
        df.x.rolling("5h").sum(), df.rolling(4, center=True).max(),
        df.x.rolling("3h", min_periods=2).std(), df.x.rolling(3).apply(np.median, raw=True),
    )  # fmt: skip


@program
def slices_in_time():
    df = series_in_time()
    return (
        df.loc["2026-01-02"].compute(), df.loc["2026-01-02 06:00":"2026-01-03"].x.sum().compute(),
        df.index.hour.compute(), df.index.day.value_counts().compute().sort_index(),
        df.partitions[1].compute(), df.get_partition(0).index.min().compute(),
    )  # fmt: skip


@program
def frequencies_changed():
    df = series_in_time()
    return df.repartition(freq="1D").divisions, df.x.shift(1, freq="1h").compute()


@program
def times_as_values():
    df = table()
    return (
        df.when.dt.year.compute(), df.when.dt.floor("D").nunique().compute(), df.when.max().compute(),
        (df.when - df.when.min()).dt.total_seconds().sum().compute(), df.when.dt.day_name().value_counts().compute(),
        dd.to_datetime(df.when.astype(str)).compute(), df.when.dt.strftime("%Y").unique().compute(),
    )  # fmt: skip


@program
def merges_of_every_kind():
    left, right = table(40), table(40, seed=1).rename(columns={"x": "x2", "y": "y2"})
    return [
        ordered(left.merge(right[["id", "x2"]], on="id", how=how).compute(), "id", "x", "x2")
        for how in ("inner", "left", "right", "outer")
    ]


@program
def merges_that_are_small_or_sorted():
    big, small = table(80), pd.DataFrame({"id": range(5), "label": list("abcde")})
    by_index = big.set_index("id")
    return (
        ordered(big.merge(dd.from_pandas(small, npartitions=1), on="id", how="inner", broadcast=True).compute(), "x"),
        ordered(by_index.join(dd.from_pandas(small.set_index("id"), npartitions=2)).compute().reset_index(), "x"),
        ordered(big.merge(small, left_on="id", right_on="id", how="left").compute(), "x"),
        ordered(big.merge(by_index, left_on="id", right_index=True, suffixes=("_l", "_r")).compute(), "x_l", "x_r"),
    )


@program
def groups_of_every_kind():
    by = table().groupby("id")
    return dask.compute(
        by.x.sum(), by.agg({"x": ["mean", "std"], "y": "max"}), by.size(),
        by.x.nunique(), by.x.first(), by.x.last(),
    )  # fmt: skip


@program
def groups_by_several_things():
    df = table()
    by = df.groupby("id")
    return (
        by[["x", "y"]].cov().compute(),
        by.y.idxmax().compute(), by.x.transform("mean", meta=("x", float)).compute().sort_index(),
        df.groupby(["id", "name"], dropna=False).x.count().compute().sort_index(),
        df.groupby(df.id % 2).x.median().compute(), by.x.value_counts().compute().sum(),
    )  # fmt: skip


@program
def groups_in_many_partitions():
    df = table()
    return (
        df.groupby("id").x.sum(split_out=3).compute().sort_index(), df.groupby("id").x.mean(split_every=2).compute(),
        df.groupby("id", sort=True).agg({"x": list}).compute().index.tolist(),
        df.groupby("id").x.sum(split_out=2, shuffle_method="tasks").compute().sort_index(),
    )  # fmt: skip


@program
def an_aggregation_of_three_steps():
    spread = dd.Aggregation(
        "spread",
        lambda chunk: (chunk.min(), chunk.max()),
        lambda low, high: (low.min(), high.max()),
        lambda low, high: high - low,
    )
    return table().groupby("id").agg({"x": spread}).compute()


@program
def frames_shuffled_and_sorted():
    df = table()
    return (
        df.sort_values("x").compute(), df.sort_values(["id", "x"], ascending=False).compute(),
        ordered(df.shuffle("id", npartitions=3).compute(), "x"), df.set_index("x").compute(),
        df.set_index("id", npartitions=3).index.compute().is_monotonic_increasing, df.nlargest(3, "x").compute(),
        df.x.nsmallest(2).compute(),
    )  # fmt: skip


@program
def frames_by_peer_to_peer():
    with dask.config.set({"dataframe.shuffle.method": "p2p"}):
        df = table()
        return (
            ordered(df.shuffle("id").compute(), "x"), df.set_index("x").y.compute(), df.sort_values("y").compute(),
            ordered(df.merge(df[["id"]].drop_duplicates(), on="id").compute(), "x"),
            df.drop_duplicates(subset=["id"], split_out=2).id.compute().sort_values().tolist(),
        )  # fmt: skip


@program
def reshaped():
    df = dd.from_pandas(named(), npartitions=4)
    long = df[["id", "x", "y"]].melt(id_vars=["id"], value_vars=["x", "y"])
    return (
        ordered(long.compute(), "value"),
        df.pivot_table(index="id", columns="name", values="x", aggfunc="sum").compute(),
        dd.get_dummies(df[["name"]]).compute(),
        df.assign(pair=df.id.map(lambda n: [n, n], meta=("pair", object))).explode("pair")[["id", "pair"]].compute(),
    )  # fmt: skip


@program
def where_masks_and_isin():
    df = table()
    return (
        df.x.where(df.x > 0.5, 0).compute(), df.x.mask(df.x > 0.5).compute(), df[df.id.isin([1, 2])].compute(),
        df.query("x > 0.5 and id < 10").compute(), df.eval("z = x + y").z.compute(),
        df.x.between(0.2, 0.4).sum().compute(),
        df.x.clip(0, 0.5).compute(),
        df.assign(z=lambda d: d.x * 2, w=1).compute(),
    )  # fmt: skip


@program
def columns_changed():
    df = table()
    df["z"] = df.x + 1
    del df["y"]
    return (
        df.rename(columns={"x": "X"}).compute(), df.drop(columns=["z"]).compute(), df.pop("z").compute(),
        df.add_prefix("p_").columns.tolist(), df.astype({"id": "f4"}).dtypes, df.select_dtypes("number").compute(),
        df.reset_index(drop=True).compute(), df.index.to_series().compute().sum(),
    )  # fmt: skip


@program
def texts():
    df = table()
    names = df.name.fillna("nobody")
    return dask.compute(
        names.str.upper(), names.str.len(), names.str.contains("li"),
        names.str.split("l", n=1, expand=True), names.str.cat(names, sep="-"),
        names.str[0],
        names.str.extract("(.)b", expand=False), names.str.replace("o", "0"),
    )  # fmt: skip


@program
def functions_over_partitions():
    df = table()

    def label(part, by, partition_info=None):
        return part.assign(n=partition_info["number"] * by)

    return (
        df.map_partitions(len).compute(), df.map_partitions(label, 2, meta=df._meta.assign(n=1)).n.compute(),
        df.map_partitions(lambda part: part.x.sum(), meta=("x", float)).compute(),
        df.map_overlap(lambda part: part[["x"]].rolling(3).sum(), 2, 0).compute(),
        dd.map_partitions(lambda a, b: a.x + b.y, df, df, meta=("s", float)).compute(),
        df.x.reduction(lambda s: s.sum(), aggregate=lambda s: s.max()).compute(),
        df.apply(lambda row: row.x + row.y, axis=1, meta=(None, float)).compute(),
    )  # fmt: skip


@program
def csv_files(path):
    df = table()
    names = df.to_csv(str(path / "part-*.csv"), index=False)
    back = dd.read_csv(str(path / "part-*.csv"), parse_dates=["when"], include_path_column=False)
    df.repartition(npartitions=1).to_csv(str(path / "one"), single_file=True, index=False)
    return (
        len(names), back.x.sum().compute(), back.dtypes, back.compute().reset_index(drop=True),
        dd.read_csv(str(path / "one"), usecols=["id"]).id.sum().compute(),
    )  # fmt: skip


@program
def parquet_files(path):
    df = table()
    df.to_parquet(str(path / "p"), write_index=False)
    back = dd.read_parquet(str(path / "p"), columns=["id", "x"], filters=[("id", "<", 10)])
    later = df.to_parquet(str(path / "later"), compute=False)
    return (
        back.compute().sort_values("x").reset_index(drop=True), dd.read_parquet(str(path / "p")).id.max().compute(),
        later.compute() is None, len(dd.read_parquet(str(path / "later"))),
        dd.read_parquet(str(path / "p"), split_row_groups=True).npartitions,
    )  # fmt: skip


@program
def json_and_text_files(path):
    df = table(20, npartitions=2)
    df[["id", "x"]].to_json(str(path / "j-*.json"), orient="records", lines=True)
    return ordered(dd.read_json(str(path / "j-*.json"), orient="records", lines=True).compute(), "x")


@program
def orc_files(path):
    df = table(20, npartitions=2)[["id", "x"]]
    df.to_orc(str(path / "orc"), write_index=False)
    return ordered(dd.read_orc(str(path / "orc")).compute(), "x")


@program
def conversions():
    df = table(20, npartitions=2)
    return (
        df[["x", "y"]].to_dask_array(lengths=True).compute(), df.x.values.compute(),
        df.to_bag(format="dict").count().compute(),
        [part.compute().shape for part in df.to_delayed()],
        dd.from_dask_array(df.x.to_dask_array(lengths=True)).compute(),
        df.to_records(lengths=True).compute()["id"], df.iloc[:, [0, 2]].compute(), df.index.compute(),
    )  # fmt: skip


@program
def made_up_frames():
    df = dask.datasets.timeseries(
        start="2026-01-01", end="2026-01-03", freq="6h", partition_freq="1D", dtypes={"x": float, "n": int}, seed=1
    )
    return df.compute(), df.x.mean().compute()


@program
def frames_from_many_sources():
    def make(n, size=3):
        return pd.DataFrame({"n": [n] * size})

    return (
        dd.from_map(make, [1, 2], size=2).compute(), dd.from_delayed([dask.delayed(make)(3)], meta=make(0)).compute(),
        dd.from_dict({"a": [1, 2, 3]}, npartitions=2).compute(), dd.concat([table(8), table(8, seed=1)]).compute(),
        dd.from_array(np.arange(6).reshape(3, 2), columns=["a", "b"], chunksize=2).compute(),
        dd.concat([table(8)[["x"]], table(8)[["y"]]], axis=1, interleave_partitions=True).compute(),
    )  # fmt: skip


@program
def statistics_of_frames():
    df = table()[["x", "y", "id"]]
    return dask.compute(
        df.describe(), df.cov(), df.corr(), df.x.skew(),
        df.x.kurtosis(),
        df.sem(), df.mode(), df.x.autocorr(2),
        df.nunique(), df.idxmin(),
        df.x.std(ddof=0), df.prod(), df.any(), df.all(), df.count(),
    )  # fmt: skip


@program
def missing_and_duplicate_rows():
    df = table()
    return (
        df.dropna(subset=["name"]).compute(), df.name.isna().sum().compute(),
        df.fillna({"name": "none"}).name.compute(),
        df.drop_duplicates(subset="id").id.compute().sort_values().tolist(),
        df.id.unique().compute().sort_values().tolist(),
        df.isnull().any().compute(), df.x.replace(df.x.max().compute(), 0).max().compute(),
    )  # fmt: skip


@program(raises=KeyError)
def a_merge_by_a_column_that_is_not_there():
    return table().merge(table(), on="nothing").compute()


@program(raises=ZeroDivisionError)
def an_error_in_an_applied_function():
    return table().x.map(lambda value: 1 / 0, meta=("x", float)).compute()


@program(raises=NotImplementedError)
def what_dask_does_not_do():
    return table().set_index(["id", "x"]).compute()


@program
def frames_in_futures(client):
    df = client.persist(table())
    futures = client.futures_of(df)
    parts = client.gather(client.map(len, futures))
    return parts, client.submit(lambda *parts: sum(map(len, parts)), *futures).result(), df.x.sum().compute()


@program
def several_results_of_one_pass():
    df = table()
    low, high, mean = dask.compute(df.x.min(), df.x.max(), df.x.mean())
    return low, high, mean, dask.persist(df.x.sum())[0].compute()


@program
def a_pipeline_of_steps():
    df = series_in_time()
    return (
        df[df.x > 10]
        .assign(half=lambda d: d.x / 2)
        .groupby("k")
        .agg({"half": "mean", "x": "sum"})
        .reset_index()
        .sort_values("k")
        .compute()
    )
