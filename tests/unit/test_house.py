"""The house keeps its own rules: the tree, the docstrings, the floors, the support window, the skips."""

from __future__ import annotations

import ast
import configparser
import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from dask_serverless._compatibility import SUPPORT_WINDOW, check_support_window

ROOT = Path(__file__).parents[2]
PACKAGES = ("dask_serverless", "lambda_worker", "fargate_storage")
TOP_LEVEL = {
    *PACKAGES,
    *("cdk", "tests", "docs", "setup.cfg"),
    *("pyproject.toml", "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "STYLE.md", "LICENSE", "CHANGELOG.md"),
    *("examples", "benchmarks", "Makefile", ".ci", ".gitignore"),
}
#: Parts of an outsider, and the modules that may know them (import-linter sees only whole outsiders).
KNOWN_TO = {
    "dask._task_spec": {
        "dask_serverless.own_annotations",
        "dask_serverless.bodies",
        "dask_serverless.dask_graph",
        "dask_serverless.literals",
        "dask_serverless.shuffles",
        "dask_serverless.replay",
        "dask_serverless.stubs",
        "lambda_worker.stored_literals",
        "lambda_worker.task_runner",
    },
    "dask._expr": {
        "dask_serverless.own_annotations",
        "dask_serverless.dask_graph",
        "dask_serverless.explaining",
        "dask_serverless.plain_layers",
        "dask_serverless.stubs",
    },
}


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.Module) -> Iterator[str]:
    """Every absolute name that a module imports, anywhere in it: modules and what is taken from them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_top_level_is_what_was_agreed():
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        found = {line.split("/")[0] for line in listing}
    except (OSError, subprocess.CalledProcessError):  # no git, or not a checkout
        ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
        names = (path.name for path in ROOT.iterdir() if path.name != ".git")
        found = {name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)}
    assert found == TOP_LEVEL


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_every_public_module_says_what_it_is_for(path):
    if not path.name.startswith("_") or path.name == "__init__.py":
        assert ast.get_docstring(ast.parse(path.read_text())), f"{module_name(path)} has no docstring"


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_parts_of_outsiders_are_known_to_one_module(path):
    names = set(imported(ast.parse(path.read_text())))
    for outsider, friends in KNOWN_TO.items():
        known = any(name == outsider or name.startswith(f"{outsider}.") for name in names)
        assert not known or module_name(path) in friends, f"{module_name(path)} must not know {outsider}"


#: Calls that may wait for ever when they are told nothing else.
WAITS = {"acquire", "communicate", "get", "join", "readline", "result", "wait"}


def unbounded_waits(source: str) -> list[int]:
    """Return the lines of calls that wait, know no bound, and do not say (``# bound: ...``) what ends them."""
    lines = source.splitlines()
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in WAITS
        and not (node.args or node.keywords)
        and not any("# bound: " in line for line in lines[max(0, node.lineno - 2) : node.end_lineno])
    ]


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_every_wait_has_a_bound_or_says_what_ends_it(path):
    assert not unbounded_waits(path.read_text()), f"{module_name(path)} waits without a bound"


def test_a_wait_without_a_bound_is_found():
    assert unbounded_waits("queue.get()\nqueue.get(timeout=1)\ndone.result()  # bound: it is done\nlock.wait(5)") == [1]


def test_every_floor_of_the_worker_is_in_the_contract():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    layers = config["importlinter:contract:floors"]["layers"]
    named = set(re.findall(r"lambda_worker\.\w+", layers))
    found = {f"lambda_worker.{path.stem}" for path in (ROOT / "lambda_worker").glob("[!_]*.py")}
    assert found <= named, f"not in setup.cfg's floors: {sorted(found - named)}"


def test_the_support_window_is_declared_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {item.name: item.specifier for item in map(Requirement, project["dependencies"])}
    for name, (first, too_new) in SUPPORT_WINDOW.items():
        assert required[name] == SpecifierSet(f">={first},<{too_new}")


@pytest.mark.parametrize("version", ["2024.1.0", "2027.1.0"])
def test_outside_the_window_the_import_fails_by_name(version):
    with pytest.raises(ImportError, match=f"dask-serverless needs dask>=.*, but {version} is installed: pip install"):
        check_support_window(lambda name: version)


def test_inside_the_window_nothing_happens():
    check_support_window()
    check_support_window(lambda name: "2026.9.1")


def test_importing_the_package_does_not_start_dask_distributed():
    program = "import sys, dask_serverless.config; sys.exit('distributed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_the_handler_is_light_to_import():
    """A cold start is billed: what the first task or invocation needs is loaded then."""
    heavy = "aiobotocore boto3 botocore dask distributed numpy tornado"
    program = f"import sys, lambda_worker.handler; print(*sys.modules.keys() & set({heavy.split()}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("ci, status", [("", 0), ("true", 1)])
@pytest.mark.parametrize("where", ["test", "module"])
def test_unexpected_skips_fail_only_in_ci(tmp_path, ci, status, where):
    for name in ("conftest.py", "expected_skips.txt"):
        shutil.copy(ROOT / "tests" / name, tmp_path)
    body = "pytest.skip('no luck')" if where == "test" else "pass"
    head = "pytest.skip('no luck', allow_module_level=True)" if where == "module" else ""
    (tmp_path / "test_it.py").write_text(
        f"import pytest\n{head}\ndef test_skips():\n    {body}\ndef test_runs():\n    pass\n"
    )
    (tmp_path / "test_other.py").write_text("def test_runs():\n    pass\n")

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "."]
        return subprocess.run(command, cwd=tmp_path, env=os.environ | {"CI": ci}, capture_output=True, text=True)

    done = run()
    assert done.returncode == status, done.stdout
    assert ("unexpected skips" in done.stdout) == bool(status)
    with (tmp_path / "expected_skips.txt").open("a") as file:
        file.write("no l.ck\n")
    assert run().returncode == 0


def test_links_between_documents_lead_somewhere():
    documents = [
        *ROOT.glob("*.md"),
        *(path for name in ("docs", "cdk", "benchmarks") for path in (ROOT / name).rglob("*.md")),
    ]
    broken = [
        f"{document.relative_to(ROOT)}: {target}"
        for document in documents
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text())
        if "://" not in target and not (document.parent / target).exists()
    ]
    assert not broken


def test_every_decision_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    decisions = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    assert [path.name for path in decisions if path.name not in index] == []
    numbers = [path.name[:4] for path in decisions]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("document", ["README.md"])
def test_python_in_documents_is_python(document):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, document, "exec")


def test_the_ci_script_can_be_run():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
