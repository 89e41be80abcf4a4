"""Searches that fit many models step by step, after ml.dask.org/incremental-hyper-parameter-search.html.

dask-ml persists its models through ``dask.persist`` from a coroutine of its own, which Dask refuses since it has
`admin.async-client-fallback`; a scheduler that is a function, ``client.get``, is what its users have to set.
"""

from __future__ import annotations

import dask
import numpy as np
from sklearn.linear_model import SGDClassifier

from tests.compatibility.programs import program
from tests.compatibility.programs.machine_learning import chunked

PARAMETERS = {"alpha": [1e-4, 1e-3, 1e-2, 1e-1], "average": [True, False]}


def searched(client, search, **options):
    """Fit a search, and return what does not depend on time."""
    x, y = chunked()
    with dask.config.set(scheduler=client.get):
        search.fit(x, y, classes=[0, 1], **options)
    calls = [(each["model_id"], each["partial_fit_calls"], each["score"]) for each in search.history_]
    return (
        search.best_params_, search.best_score_, sorted(calls), sorted(search.cv_results_),
        np.sort(search.cv_results_["test_score"]), search.best_estimator_.coef_, search.score(x, y),
        np.asarray(search.predict(x)),
    )  # fmt: skip


@program
def incremental_search(client):
    from dask_ml.model_selection import IncrementalSearchCV

    model = SGDClassifier(random_state=0)
    return searched(client, IncrementalSearchCV(model, PARAMETERS, n_initial_parameters=3, max_iter=3, random_state=0))


@program
def incremental_search_that_loses_patience(client):
    from dask_ml.model_selection import IncrementalSearchCV

    model = SGDClassifier(random_state=0)
    return searched(
        client,
        IncrementalSearchCV(
            model, PARAMETERS, n_initial_parameters=2, max_iter=6, patience=2, tol=0.5, random_state=0, decay_rate=None
        ),
    )


@program
def inverse_decay_search(client):
    from dask_ml.model_selection import InverseDecaySearchCV

    model = SGDClassifier(random_state=0)
    return searched(client, InverseDecaySearchCV(model, PARAMETERS, n_initial_parameters=4, max_iter=4, random_state=0))


@program
def successive_halving(client):
    from dask_ml.model_selection import SuccessiveHalvingSearchCV

    model = SGDClassifier(random_state=0)
    return searched(
        client,
        SuccessiveHalvingSearchCV(model, PARAMETERS, n_initial_parameters=4, n_initial_iter=1, random_state=0),
    )


@program
def hyperband(client):
    from dask_ml.model_selection import HyperbandSearchCV

    search = HyperbandSearchCV(SGDClassifier(random_state=0), PARAMETERS, max_iter=4, random_state=0)
    result = searched(client, search)
    return result, sorted(search.metadata), search.metadata["n_models"], search.metadata_["partial_fit_calls"]


@program(raises=RuntimeError)
def a_search_under_dasks_own_setting(client):
    from dask_ml.model_selection import IncrementalSearchCV

    search = IncrementalSearchCV(
        SGDClassifier(random_state=0), PARAMETERS, n_initial_parameters=2, max_iter=2, random_state=0, decay_rate=None
    )
    return search.fit(*chunked(), classes=[0, 1])


@program
def grid_search_of_a_pipeline():
    from dask_ml.model_selection import GridSearchCV
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    from tests.compatibility.programs.machine_learning import samples

    pipeline = Pipeline([("scale", StandardScaler()), ("model", SGDClassifier(random_state=0))])
    search = GridSearchCV(pipeline, {"model__alpha": [1e-4, 1e-2], "scale__with_std": [True, False]}, cv=2)
    search.fit(*samples())
    return search.best_params_, search.cv_results_["mean_test_score"], search.predict(samples()[0])


@program
def grid_search_with_several_scores():
    from dask_ml.model_selection import GridSearchCV

    from tests.compatibility.programs.machine_learning import samples

    search = GridSearchCV(
        SGDClassifier(random_state=0), {"alpha": [1e-4, 1e-2]}, cv=2, scoring=["accuracy", "f1"], refit="f1"
    ).fit(*samples())
    return search.best_params_, search.cv_results_["mean_test_accuracy"], search.cv_results_["mean_test_f1"]


@program
def grid_search_by_scikit_learn_through_joblib(client):
    import joblib
    from sklearn.model_selection import GridSearchCV

    from tests.compatibility.programs.machine_learning import samples

    with joblib.parallel_config(backend="dask"):
        search = GridSearchCV(SGDClassifier(random_state=0), {"alpha": [1e-4, 1e-2]}, cv=2).fit(*samples())
    return search.best_params_, search.cv_results_["mean_test_score"]


@program
def cross_validation_through_joblib(client):
    import joblib
    from sklearn.model_selection import cross_val_score

    from tests.compatibility.programs.machine_learning import samples

    with joblib.parallel_config(backend="dask", scatter=[samples()[0]]):
        return cross_val_score(SGDClassifier(random_state=0), *samples(), cv=3)
