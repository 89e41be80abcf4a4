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


@program
def metrics_of_classification():
    from dask_ml.metrics import accuracy_score

    _, y = chunked()
    other = da.where(da.arange(200, chunks=50) % 5 == 0, 1 - y, y)
    later = accuracy_score(y, other, sample_weight=da.arange(200, chunks=50), compute=False)
    return accuracy_score(y, other), accuracy_score(y, other, normalize=False), type(later).__name__, later.compute()


@program
def metrics_of_regression():
    from dask_ml.metrics import mean_absolute_error, mean_squared_error, mean_squared_log_error

    x, _ = chunked()
    truth, guess = abs(x[:, 0]), abs(x[:, 0] + x[:, 1] / 10)
    return (
        mean_absolute_error(truth, guess),
        mean_squared_error(truth, guess),
        mean_squared_log_error(truth, guess),
    )


@program
def distances():
    from dask_ml.metrics import euclidean_distances, pairwise_distances, pairwise_distances_argmin_min

    x, _ = chunked()
    few = x[:3].compute()
    return dask.compute(
        euclidean_distances(x, few), pairwise_distances(x, few, metric="cityblock"),
        *pairwise_distances_argmin_min(x, few),
    )  # fmt: skip


@program
def naive_bayes():
    from dask_ml.naive_bayes import GaussianNB

    x, y = chunked()
    model = GaussianNB(classes=np.array([0, 1])).fit(x, y)
    return dask.compute(model.theta_, model.class_prior_, model.predict(x), model.predict_proba(x))


@program
def made_up_data():
    from dask_ml.datasets import make_blobs, make_classification, make_counts, make_regression

    return dask.compute(
        make_classification(n_samples=40, n_features=4, chunks=10, random_state=0),
        make_blobs(n_samples=40, chunks=10, random_state=0),
        make_regression(n_samples=40, n_features=4, chunks=10, random_state=0),
        make_counts(n_samples=40, n_features=4, chunks=10, random_state=0),
    )


@program
def column_transformers():
    from dask_ml.wrappers import ParallelPostFit
    from sklearn.compose import make_column_transformer
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    frame = pd.DataFrame({"x": np.arange(12.0), "y": np.arange(12.0) ** 2, "kind": list("abca") * 3})
    transformer = make_column_transformer(
        (StandardScaler(), ["x", "y"]), (OneHotEncoder(sparse_output=False, handle_unknown="ignore"), ["kind"])
    )
    fitted = ParallelPostFit(transformer).fit(frame)
    return fitted.transform(dd.from_pandas(frame, npartitions=3)).compute()


@program
def one_hot_encoding():
    from dask_ml.preprocessing import OneHotEncoder

    words = da.from_array(np.array(list("abcabc"))[:, None], chunks=(2, -1))
    encoder = OneHotEncoder(sparse_output=False).fit(words)
    return encoder.transform(words).compute(), [list(each) for each in encoder.categories_]


@program
def ensembles_of_blocks():
    from dask_ml.ensemble import BlockwiseVotingClassifier, BlockwiseVotingRegressor
    from sklearn.linear_model import LinearRegression, LogisticRegression

    x, y = chunked()
    votes = BlockwiseVotingClassifier(LogisticRegression(), classes=[0, 1])
    votes.fit(x, y)
    means = BlockwiseVotingRegressor(LinearRegression())
    means.fit(x, x.sum(axis=1))
    return votes.predict(x).compute(), means.predict(x).compute()


@program(rtol=1e-3)
def poisson_regression():
    from dask_ml.linear_model import PoissonRegression

    x, _ = chunked()
    return PoissonRegression(solver="newton", max_iter=3).fit(x, da.fabs(x[:, 0]).round()).coef_


@program
def nearest_centres():
    from dask_ml.metrics import pairwise_distances_argmin_min

    x, _ = chunked()
    return [each.compute() for each in pairwise_distances_argmin_min(x, x[:4].compute())]


@program(rtol=1e-6)
def incremental_principal_components():
    from dask_ml.decomposition import IncrementalPCA

    x, _ = chunked()
    return abs(IncrementalPCA(n_components=2, batch_size=50, svd_solver="full").fit(x).components_)


@program
def post_fit_with_a_meta():
    from dask_ml.wrappers import ParallelPostFit
    from sklearn.linear_model import LogisticRegression

    model = ParallelPostFit(
        LogisticRegression(), predict_meta=np.array([1]), predict_proba_meta=np.array([[0.1, 0.2]]), scoring="accuracy"
    ).fit(*samples())
    x, y = chunked()
    return model.predict(x).dtype, model.predict(x).sum().compute(), model.score(x, y)


@program(raises=ValueError)
def wrong_features_for_a_model():
    from dask_ml.wrappers import ParallelPostFit
    from sklearn.linear_model import LogisticRegression

    model = ParallelPostFit(LogisticRegression(), predict_meta=np.array([1])).fit(*samples(features=3))
    return model.predict(chunked()[0]).compute()


@program
def boosted_trees_by_scikit_learn(client):
    from sklearn.ensemble import GradientBoostingRegressor

    x, y = samples()
    futures = client.map(
        lambda n: GradientBoostingRegressor(n_estimators=n, random_state=0).fit(x, y).predict(x[:5]), [1, 3]
    )
    return client.gather(futures)


@program
def joblib_with_arrays_and_batches(client):
    import joblib

    with joblib.parallel_config(backend="dask"):
        sums = joblib.Parallel(batch_size=3)(joblib.delayed(np.sum)(np.full(10, n)) for n in range(7))
        generated = list(joblib.Parallel(return_as="generator")(joblib.delayed(abs)(-n) for n in range(4)))
    return sums, generated


@program(raises=ZeroDivisionError)
def joblib_that_fails(client):
    import joblib

    with joblib.parallel_config(backend="dask"):
        return joblib.Parallel()(joblib.delayed(divmod)(1, n) for n in (1, 0))
