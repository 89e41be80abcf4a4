"""dask-ml and scikit-learn, after ml.dask.org."""

from __future__ import annotations

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
from sklearn.exceptions import NotFittedError

from tests.compatibility.programs import program


def samples(n=200, features=5, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features))
    y = (x @ np.arange(1, features + 1) > 0).astype("i8")
    return x, y


def chunked(n=200, chunks=50):
    x, y = samples(n)
    return da.from_array(x, chunks=(chunks, -1)), da.from_array(y, chunks=chunks)


@program
def parallel_post_fit():
    from dask_ml.wrappers import ParallelPostFit
    from sklearn.linear_model import LogisticRegression

    model = ParallelPostFit(LogisticRegression()).fit(*samples())
    x, y = chunked()
    return dask.compute(model.predict(x), model.predict_proba(x)), model.score(x, y)


@program
def parallel_post_fit_on_frames():
    from dask_ml.wrappers import ParallelPostFit
    from sklearn.preprocessing import StandardScaler
    from sklearn.tree import DecisionTreeRegressor

    x, y = samples()
    frame = dd.from_pandas(pd.DataFrame(x, columns=list("abcde")), npartitions=3)
    tree = ParallelPostFit(DecisionTreeRegressor(max_depth=3, random_state=0)).fit(frame.compute(), y)
    scaled = ParallelPostFit(StandardScaler()).fit(x).transform(chunked()[0])
    return tree.predict(frame).compute(), scaled.compute()


@program
def incremental():
    from dask_ml.wrappers import Incremental
    from sklearn.linear_model import SGDClassifier

    x, y = chunked()
    model = Incremental(SGDClassifier(random_state=0), shuffle_blocks=False, random_state=0)
    model.fit(x, y, classes=[0, 1])
    model.partial_fit(x, y)
    return model.coef_, model.predict(x).compute(), model.score(x, y)


@program
def incremental_naive_bayes():
    from dask_ml.wrappers import Incremental
    from sklearn.naive_bayes import GaussianNB

    x, y = chunked()
    model = Incremental(GaussianNB(), shuffle_blocks=False).fit(x, y, classes=[0, 1])
    return model.theta_, model.predict_proba(x).compute()


@program
def scalers():
    from dask_ml.preprocessing import MinMaxScaler, QuantileTransformer, RobustScaler, StandardScaler

    x, _ = chunked()
    one = x.rechunk((-1, -1))
    return [
        scaler.fit_transform(data).compute()
        for scaler, data in (
            (StandardScaler(), x), (MinMaxScaler(), x),
            (RobustScaler(), one), (QuantileTransformer(n_quantiles=20), one),
        )
    ]  # fmt: skip


@program
def inverse_transforms():
    from dask_ml.preprocessing import StandardScaler

    x, _ = chunked()
    scaler = StandardScaler().fit(x)
    return scaler.inverse_transform(scaler.transform(x)).compute(), scaler.mean_, scaler.scale_


@program
def encoders():
    from dask_ml.preprocessing import Categorizer, DummyEncoder, LabelEncoder, OrdinalEncoder

    frame = dd.from_pandas(pd.DataFrame({"a": list("xyzx") * 3, "b": range(12)}), npartitions=3)
    known = Categorizer(columns=["a"]).fit_transform(frame)
    labels = LabelEncoder().fit(da.arange(10, chunks=5))
    return (
        known.compute(), DummyEncoder(columns=["a"]).fit_transform(known).compute(),
        OrdinalEncoder(columns=["a"]).fit_transform(known).compute(),
        labels.transform(da.arange(5, chunks=3)).compute(),
    )  # fmt: skip


@program
def polynomial_features():
    from dask_ml.preprocessing import PolynomialFeatures

    return PolynomialFeatures(2).fit_transform(chunked()[0]).compute()


@program
def blocks_of_functions():
    from dask_ml.preprocessing import BlockTransformer

    return BlockTransformer(np.tanh).fit_transform(chunked()[0]).compute()


@program
def imputing():
    from dask_ml.impute import SimpleImputer

    x, _ = chunked()
    return SimpleImputer().fit_transform(da.where(x > 1, np.nan, x)).compute()


@program
def train_test_split():
    from dask_ml.model_selection import train_test_split

    return dask.compute(*train_test_split(*chunked(), random_state=0, shuffle=True))


@program
def shuffle_split_and_folds():
    from dask_ml.model_selection import KFold, ShuffleSplit

    x, _ = chunked()
    return [dask.compute(*pair) for pair in KFold(n_splits=4).split(x)], [
        dask.compute(*pair) for pair in ShuffleSplit(n_splits=2, random_state=0).split(x)
    ]


@program
def grid_search():
    from dask_ml.model_selection import GridSearchCV
    from sklearn.linear_model import LogisticRegression

    search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2).fit(*samples())
    return search.best_params_, search.cv_results_["mean_test_score"], search.best_score_


@program
def randomised_search():
    from dask_ml.model_selection import RandomizedSearchCV
    from sklearn.tree import DecisionTreeClassifier

    search = RandomizedSearchCV(
        DecisionTreeClassifier(random_state=0), {"max_depth": [1, 2, 3]}, n_iter=2, cv=2, random_state=0
    )
    return search.fit(*samples()).best_params_


@program(rtol=1e-4)
def logistic_regression():
    from dask_ml.linear_model import LogisticRegression

    x, y = chunked()
    model = LogisticRegression(solver="newton", max_iter=5).fit(x, y)
    return model.coef_, model.predict(x).compute(), model.score(x, y)


@program(rtol=1e-4)
def linear_regression():
    from dask_ml.linear_model import LinearRegression

    x, _ = chunked()
    return LinearRegression(solver="gradient_descent", max_iter=5).fit(x, x.sum(axis=1)).predict(x).compute()


@program(rtol=1e-3)
def regression_by_admm():
    from dask_ml.linear_model import LogisticRegression

    return LogisticRegression(solver="admm", max_iter=3).fit(*chunked()).coef_


@program(rtol=1e-6)
def principal_components():
    from dask_ml.decomposition import PCA, TruncatedSVD

    x, _ = chunked()
    return PCA(2, svd_solver="full").fit(x).explained_variance_, TruncatedSVD(2, algorithm="tsqr").fit(
        x
    ).singular_values_


@program(rtol=1e-6)
def k_means():
    from dask_ml.cluster import KMeans

    x, _ = chunked()
    model = KMeans(n_clusters=2, init=x[:2].compute(), max_iter=5, random_state=0).fit(x)
    return model.cluster_centers_, model.labels_.compute()


@program
def pipelines():
    from dask_ml.preprocessing import StandardScaler
    from dask_ml.wrappers import Incremental
    from sklearn.linear_model import SGDClassifier
    from sklearn.pipeline import make_pipeline

    x, y = chunked()
    model = make_pipeline(StandardScaler(), Incremental(SGDClassifier(random_state=0), shuffle_blocks=False))
    model.fit(x, y, incremental__classes=[0, 1])
    return model.predict(x).compute()


@program
def joblib_on_dask(client):
    import joblib

    with joblib.parallel_config(backend="dask"):
        return joblib.Parallel()(joblib.delayed(pow)(n, 2) for n in range(10))


@program
def forests_through_joblib(client):
    import joblib
    from sklearn.ensemble import RandomForestClassifier

    x, y = samples()
    with joblib.parallel_config(backend="dask"):
        return RandomForestClassifier(10, random_state=0).fit(x, y).predict(x)


@program
def models_as_futures(client):
    from sklearn.linear_model import LinearRegression

    x, y = samples()
    models = [client.submit(LinearRegression().fit, x, y * n) for n in range(1, 4)]
    return [model.coef_ for model in client.gather(models)]


@program
def features_by_hashing_text():
    import dask.bag as db
    from dask_ml.feature_extraction.text import CountVectorizer, HashingVectorizer

    words = db.from_sequence(["to be or", "not to be"] * 4, npartitions=2)
    return HashingVectorizer(n_features=16).fit_transform(words).compute(), CountVectorizer().fit_transform(
        words
    ).compute().shape


@program(raises=NotFittedError)
def a_model_that_was_not_fitted():
    from dask_ml.wrappers import ParallelPostFit
    from sklearn.linear_model import LogisticRegression

    return ParallelPostFit(LogisticRegression()).predict(chunked()[0])
