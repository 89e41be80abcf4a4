"""Which clients are welcome: those whose pickles executors can read, whatever else they have."""

from __future__ import annotations

import pytest

from dask_serverless.handshake import refusal

OURS = {"python": "3.11.7.final.0", "cloudpickle": "3.1.1", "dask": "2026.8.0"}


@pytest.mark.parametrize(
    "theirs",
    [
        OURS,
        {**OURS, "python": "3.11.0.final.0"},
        {**OURS, "cloudpickle": "3.0.0"},
        {**OURS, "dask": "2024.1.0"},  # the scheduler warns of it
        {**OURS, "cloudpickle": None},
        {},
        None,
    ],
)
def test_a_client_that_executors_can_read_is_welcome(theirs):
    assert refusal(theirs, OURS) == ""


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"python": "3.10.2.final.0"}, "has Python 3.10, .* have Python 3.11: .* Run the client with Python 3.11"),
        ({"python": "4.11.0.final.0"}, "has Python 4.11, .* have Python 3.11"),
        ({"cloudpickle": "2.2.1"}, r"cloudpickle 2.2, .* cloudpickle 3.1: .* pip install 'cloudpickle==3.1.\*'"),
    ],
)
def test_any_other_is_refused_with_what_to_do(theirs, said):
    with pytest.raises(ImportError, match=said):
        raise ImportError(refusal({**OURS, **theirs}, OURS))
