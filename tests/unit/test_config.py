"""Configuration: precedence, units, and early refusal with the key and the value in the message."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import FrozenInstanceError, fields
from datetime import timedelta
from pathlib import Path

import dask.config
import pytest
import yaml

from dask_serverless.cluster_arguments import _SETTINGS
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
    assert (settings.executor_lease, settings.executor_linger) == (15, 0.2)
    assert (settings.dask_workers_count, settings.dask_workers_threads) == (0, 1)
    assert settings.dask_workers_memory is None
    assert settings.client_grace == 30
    assert (settings.persistent_timeout, settings.persistent_directory) == (600, None)
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
        ("storage_overflow", "yes", "storage.overflow"),
        ("storage_overflow_directory", "here", "storage.overflow-directory"),
        ("storage_overflow_directory", f"{__file__}/below", "storage.overflow-directory"),
        ("storage_ttl", "9 s", "storage.ttl"),
        ("storage_overflow_max", "1 KiB", "storage.overflow-max"),
        ("executor_payload_bytes_max", "6 MiB", "executor.payload-bytes-max"),
        ("executor_lease", 0, "executor.lease"),
        ("executor_linger", "-1 ms", "executor.linger"),
        ("executor_linger", "3 s", "executor.linger"),
        ("budget_dollars", 0, "budget.dollars"),
        ("budget_dollars", "5 USD", "budget.dollars"),
        ("budget_executions_per_task", 0, "budget.executions-per-task"),
        ("dask_workers_count", -1, "dask-workers.count"),
        ("dask_workers_count", 1000, "dask-workers.count"),
        ("dask_workers_threads", 0, "dask-workers.threads"),
        ("dask_workers_memory", "1 KiB", "dask-workers.memory"),
        ("client_grace", "-1 s", "client-grace"),
        ("persistent_timeout", 0, "persistent.timeout"),
        ("persistent_directory", "here", "persistent.directory"),
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
        Settings.load(storage_ttl="12 s")


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


def test_the_whole_precedence_for_every_key(tmp_path):
    """Keyword, then environment, then the user's file, then the default: each key, one by one."""
    other = {  # by key: values that are acceptable, for file, environment and keyword
        "workers.count": (3, 4, 5),
        "lambda.function-name": ("a", "b", "c"),
        "lambda.memory": (2**28, 2**29, 2**30),
        "lambda.timeout": (10.0, 20.0, 30.0),
        "lambda.memory-classes": ([2**31], [2**32], [2**33]),
        "lambda.classes-timeout": (40.0, 50.0, 60.0),
        "lambda.preload": (["json"], ["math"], ["cmath"]),
        "lambda.price-gb-second": (1.0, 2.0, 3.0),
        "lambda.price-request": (1.0, 2.0, 3.0),
        "storage.server": (sys.executable, "/bin/sh", "/bin/ls"),
        "storage.shards": (2, 3, 4),
        "storage.max-memory": (2**27, 2**28, 2**29),
        "storage.metadata-max-memory": (2**27, 2**28, 2**29),
        "storage.object-bytes-max": (1000, 2000, 3000),
        "storage.overflow": (False, True, False),
        "storage.overflow-directory": tuple(f"{tempfile.gettempdir()}/{name}" for name in "abc"),
        "storage.overflow-max": (2**27, 2**28, 2**29),
        "storage.bytes-per-second": (1000, 2000, 3000),
        "storage.shard-bytes-per-second": (1000, 2000, 3000),
        "storage.ttl": (100.0, 200.0, 300.0),
        "storage.patience": (2.0, 3.0, 4.0),
        "storage.allowed-failures": (0, 1, 2),
        "executor.inline-bytes-max": (100, 200, 300),
        "executor.payload-bytes-max": (100_000, 200_000, 300_000),
        "executor.lease": (2.0, 3.0, 4.0),
        "executor.linger": (0.1, 0.2, 0.3),
        "executor.threads": (2, 3, 4),
        "executor.allowed-failures": (0, 1, 2),
        "policy.hold": (False, True, False),
        "policy.group": (False, True, False),
        "policy.split": (False, True, False),
        "policy.cache": (False, True, False),
        "policy.prefetch": (False, True, False),
        "policy.compress": (False, True, False),
        "policy.inline": (False, True, False),
        "policy.locality": (False, True, False),
        "policy.speculation": (True, False, True),
        "budget.dollars": (1.0, 2.0, 3.0),
        "budget.executions-per-task": (2, 3, 4),
        "dask-workers.count": (1, 2, 3),
        "dask-workers.threads": (2, 3, 4),
        "dask-workers.memory": (2**27, 2**28, 2**29),
        "client-grace": (1.0, 0.0, 3.0),
        "persistent.timeout": (1.0, 2.0, 3.0),
        "persistent.directory": ("/a", "/b", "/c"),
    }
    items = {item.metadata["key"].removeprefix("serverless."): item for item in fields(Settings)}
    assert set(items) == set(other)
    mine: dict = {}
    for key, (in_file, _, _) in other.items():
        *sections, name = key.split(".")
        place = mine
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = in_file
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"serverless": mine}))
    names = {key: "DASK_SERVERLESS__" + key.replace(".", "__").replace("-", "_").upper() for key in other}

    def load(environment, **overrides):
        config: dict = {}
        variables = {names[key]: repr(other[key][1]) for key in environment}
        dask.config.refresh(config=config, defaults=[DEFAULTS], paths=[str(tmp_path)], env=variables)
        with dask.config.set({"serverless": config["serverless"]}):
            return Settings.load(**overrides)

    def as_given(value):
        return tuple(value) if isinstance(value, list) else value

    for key, (in_file, in_environment, given) in other.items():
        name = items[key].name
        assert getattr(load([]), name) == as_given(in_file), key
        assert getattr(load([key]), name) == as_given(in_environment), key
        assert getattr(load([key], **{name: given}), name) == as_given(given), key


def test_the_packaged_defaults_obey_the_schema():
    def check(value, schema, where):
        kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
        allowed = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        fits = any(value is None if kind == "null" else isinstance(value, kinds[kind]) for kind in allowed)
        assert fits, f"{where} is {value!r}, the schema says {allowed}"
        for name, part in schema.get("properties", {}).items():
            check(value[name], part, f"{where}.{name}")
        if value is not None and "minimum" in schema:
            assert value >= schema["minimum"], where

    schema = yaml.safe_load(SCHEMA_FILE.read_text())["properties"]["serverless"]
    check(DEFAULTS["serverless"], schema, "serverless")


def test_every_key_is_documented_as_the_schema_describes_it():
    """`docs/configuration.md` is written by this function's words: run it to see what is missing."""
    written = CONFIGURATION.read_text()
    assert documentation() in written, f"docs/configuration.md is not up to date; it should have:\n{documentation()}"


CONFIGURATION = Path(__file__).parents[2] / "docs" / "configuration.md"


def documentation():
    """Return the table of every key: name, default, argument of the cluster, meaning."""
    schema = yaml.safe_load(SCHEMA_FILE.read_text())
    arguments = {field: f"`{argument}`" for argument, field in _SETTINGS.items()}

    def descriptions(tree, prefix=""):
        for name, entry in tree["properties"].items():
            if "properties" in entry:
                yield from descriptions(entry, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", " ".join(entry["description"].split())

    described = dict(descriptions(schema))
    lines = ["| key | default | argument | meaning |", "|---|---|---|---|"]
    for item in fields(Settings):
        key = item.metadata["key"]
        default = dask.config.get(key, config=dict(DEFAULTS))
        shown = "null" if default is None else ", ".join(default) if isinstance(default, list) else str(default)
        lines.append(f"| `{key}` | `{shown}` | {arguments.get(item.name, '')} | {described[key]} |")
    return "\n".join(lines)
