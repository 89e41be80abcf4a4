"""Configuration: precedence, units, and early refusal with the key and the value in the message."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from datetime import timedelta

import dask.config
import pytest
import yaml

from dask_serverless.config import DEFAULTS, SCHEMA_FILE, Settings, _keys


def test_defaults_are_the_documented_ones():
    settings = Settings.load()
    assert settings.workers_count >= 1
    assert settings.lambda_memory == 2 * 2**30
    assert settings.lambda_timeout == 900
    assert [size // 2**30 for size in settings.lambda_memory_classes] == [1, 2, 4, 8, 10]
    assert settings.lambda_classes_timeout == 900
    assert settings.lambda_preload[0] == "numpy"
    assert settings.storage_shards == 1
    assert settings.storage_server is None
    assert settings.storage_max_memory > 0
    assert settings.storage_object_bytes_max == 10 * 2**30
    assert settings.storage_ttl == 86_400
    assert settings.executor_inline_bytes_max == 64 * 2**10
    assert settings.executor_payload_bytes_max == 256 * 2**10
    assert settings.executor_lease == 15
    assert settings.lambda_price_gb_second == pytest.approx(1.66667e-5)
    assert settings.lambda_price_request == pytest.approx(2e-7)


def test_every_key_has_one_field_and_one_schema_entry():
    defaults = set(_keys(DEFAULTS))
    assert {item.metadata["key"] for item in fields(Settings)} == defaults

    def schema_keys(tree, prefix=""):
        for name, entry in tree["properties"].items():
            if "properties" in entry:
                yield from schema_keys(entry, f"{prefix}{name}.")
            else:
                assert entry.get("description"), f"{prefix}{name} has no description"
                yield f"{prefix}{name}"

    assert set(schema_keys(yaml.safe_load(SCHEMA_FILE.read_text()))) == defaults


def test_keyword_beats_configuration_beats_default():
    with dask.config.set({"serverless.lambda.memory": "1 GiB"}):
        assert Settings.load().lambda_memory == 2**30
        assert Settings.load(lambda_memory="3 GiB").lambda_memory == 3 * 2**30
        assert Settings.load(lambda_memory=None).lambda_memory == 2**30
    assert Settings.load().lambda_memory == 2 * 2**30


def test_environment_beats_user_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("serverless:\n  lambda:\n    memory: 1 GiB\n    timeout: 1 minute\n")
    environment = os.environ | {"DASK_CONFIG": str(tmp_path), "DASK_SERVERLESS__LAMBDA__MEMORY": "512 MiB"}
    program = (
        "from dask_serverless.config import Settings; s = Settings.load(); print(s.lambda_memory, s.lambda_timeout)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(512 * 2**20), "60.0"]


def test_units_are_accepted_as_dask_accepts_them():
    settings = Settings.load(lambda_timeout=timedelta(minutes=2), executor_lease=5, storage_max_memory=2**30)
    assert (settings.lambda_timeout, settings.executor_lease, settings.storage_max_memory) == (120, 5, 2**30)


@pytest.mark.parametrize(
    "field, value, key",
    [
        ("workers_count", 0, "workers.count"),
        ("workers_count", True, "workers.count"),
        ("workers_count", "many", "workers.count"),
        ("lambda_memory", 2048, "lambda.memory"),
        ("lambda_memory", "64 MiB", "lambda.memory"),
        ("lambda_memory", "11 GiB", "lambda.memory"),
        ("lambda_memory", "much", "lambda.memory"),
        ("lambda_timeout", "16 minutes", "lambda.timeout"),
        ("lambda_timeout", "soon", "lambda.timeout"),
        ("lambda_timeout", float("nan"), "lambda.timeout"),
        ("lambda_classes_timeout", "1 hour", "lambda.classes-timeout"),
        ("lambda_preload", "numpy", "lambda.preload"),
        ("lambda_preload", ["not a module"], "lambda.preload"),
        ("lambda_price_request", -1, "lambda.price-request"),
        ("storage_shards", 1.5, "storage.shards"),
        ("storage_server", "/nowhere/redis-server", "storage.server"),
        ("executor_payload_bytes_max", "6 MiB", "executor.payload-bytes-max"),
        ("executor_lease", 0, "executor.lease"),
    ],
)
def test_a_bad_value_is_refused_with_its_key(field, value, key):
    with pytest.raises(ValueError) as refusal:
        Settings.load(**{field: value})
    assert f"serverless.{key} is {value!r}, but must be " in str(refusal.value)


def test_values_are_checked_against_each_other():
    with pytest.raises(ValueError, match="executor.inline-bytes-max .* must not exceed .*payload-bytes-max"):
        Settings.load(executor_inline_bytes_max="512 KiB")
    with pytest.raises(ValueError, match="executor.lease .* must not exceed .*storage.ttl"):
        Settings.load(storage_ttl="2 s")


def test_unknown_names_are_refused_or_warned_of():
    with pytest.raises(TypeError, match="no setting 'lambda_memroy'; did you mean 'lambda_memory'"):
        Settings.load(lambda_memroy="1 GiB")
    with dask.config.set({"serverless.lambda.memroy": "1 GiB"}):
        with pytest.warns(UserWarning, match="serverless.lambda.memroy.*did you mean 'serverless.lambda.memory'"):
            Settings.load()


def test_settings_do_not_change():
    settings = Settings.load()
    with pytest.raises(FrozenInstanceError):
        settings.workers_count = 3
