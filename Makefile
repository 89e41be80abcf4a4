# One command each; `make` alone lists them. Needs Python 3.11 or newer with venv, and no root.
#
# An active virtual environment is used as it is; otherwise one is made in .venv. With PYTHON=python3.12
# (or any other interpreter) an environment of that name is made and used: .venv-python3.12.

.DEFAULT_GOAL := help
.SUFFIXES:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
NEWEST := sys.version_info >= (3, 11)

ifneq ($(PYTHON),)
    ENVIRONMENT := .venv-$(notdir $(PYTHON))
else ifneq ($(VIRTUAL_ENV),)
    ENVIRONMENT := $(VIRTUAL_ENV)
else
    ENVIRONMENT := .venv
endif
# The first interpreter that is new enough.
CANDIDATES := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)
BIN := $(ENVIRONMENT)/bin
# The stamps name this directory, for an environment that serves more than one clone.
STAMP := $(ENVIRONMENT)/.dask-serverless$(subst /,-,$(CURDIR))
PYTEST_ARGS ?=
# Tests mostly wait for processes: two at a time take little more than half the time.
JOBS ?= 2
parallel = $(if $(filter-out 1,$(JOBS)),-n $(JOBS) --dist $(1))
TESTS := tests/unit tests/contract tests/process tests/end_to_end

.PHONY: help quickstart test nightly lint chaos bench bench-ablation bench-factors bench-latency bench-giant bench-wide clean

help:
	@echo "make quickstart  run examples/parallel_svc.py on a cluster of Lambda executors on this machine"
	@echo "make test        lint, types, import contracts, then all tests (PYTEST_ARGS=... for pytest; JOBS=1: one at a time)"
	@echo "make nightly     20,000 simulated clusters in which things go wrong (NIGHTLY_ARGS=\"--first 20000\" for others)"
	@echo "make lint        only lint, types and import contracts"
	@echo "make chaos       kill a sandbox every half second for ten minutes, and check a cluster's answers"
	@echo "                 (CHAOS_ARGS=\"--seconds 60 --kinds all\": and cut, delay, spoil and fill what it stands on)"
	@echo "make bench       compare with LocalCluster, Ray, Lithops and cubed, and with our engine without its parts; hours"
	@echo "                 (BENCH_ARGS=--quick: minutes; BENCH_ARGS=\"--write docs/benchmarks.md\": into the documentation)"
	@echo "make bench-ablation only the second: what grouping, holding, splitting ... are worth (BENCH_ARGS=...)"
	@echo "make bench-factors  the same, calculated for hundreds of Lambdas in AWS; a minute"
	@echo "make bench-latency  one small task at a time, against LocalCluster"
	@echo "make bench-giant    giant graphs and large values, with everybody's memory (BENCH_ARGS=\"--tasks 1000000\")"
	@echo "make bench-wide     10,000 naps, 500 and 1,000 at once, against the ideal (BENCH_ARGS=\"--at-once 100\")"
	@echo "make clean       remove environments, caches and build products"

$(BIN)/python:
	@set -e; for python in $(CANDIDATES); do \
	    if $$python -c 'import sys; sys.exit(not ($(NEWEST)))' 2>/dev/null; then \
	        echo "==> making a virtual environment in $(ENVIRONMENT) with $$($$python --version)"; \
	        exec $$python -m venv "$(ENVIRONMENT)"; \
	    fi; \
	done; \
	echo "error: Python 3.11 or newer is needed, and none of these runs or is new enough: $(CANDIDATES)" >&2; exit 1

$(STAMP)-examples: pyproject.toml | $(BIN)/python
	@echo "==> installing the package and what the example needs into $(ENVIRONMENT)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[examples]'
	@touch "$@"

$(STAMP)-test: pyproject.toml | $(BIN)/python
	@echo "==> installing the package, its tests' needs and the linters into $(ENVIRONMENT)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,lint,examples]'
	@touch "$@" "$(STAMP)-examples"

quickstart: $(STAMP)-examples
	@echo "==> running examples/parallel_svc.py"
	@$(BIN)/python examples/parallel_svc.py $(EXAMPLE_ARGS)

lint: $(STAMP)-test
	@echo "==> ruff check"
	@$(BIN)/ruff check .
	@echo "==> ruff format --check"
	@$(BIN)/ruff format --check .
	@echo "==> mypy"
	@$(BIN)/mypy
	@echo "==> import contracts"
	@$(BIN)/lint-imports --no-logo

# Chaos runs alone: how much a kill costs depends on what else uses the machine.
# Processes of their own: what the first one's tests leave in it (default clients, configuration) is not for LocalCluster's workers.
test: lint
	@echo "==> pytest: compatibility with LocalCluster"
	@$(BIN)/python -m pytest tests/compatibility $(call parallel,load) $(PYTEST_ARGS)
	@echo "==> pytest"
	@$(BIN)/python -m pytest $(wildcard $(TESTS)) $(call parallel,loadfile) $(PYTEST_ARGS)
	@echo "==> pytest: chaos"
	@$(BIN)/python -m pytest tests/chaos $(PYTEST_ARGS)

chaos: $(STAMP)-test
	@echo "==> running tests/chaos"
	@$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

nightly: $(STAMP)-test
	@echo "==> dask serverless simulate --seeds 20000"
	@$(BIN)/dask serverless simulate --seeds 20000 $(NIGHTLY_ARGS)

$(STAMP)-bench: pyproject.toml | $(BIN)/python
	@echo "==> installing the package, and what it is compared with, into $(ENVIRONMENT)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]' || { \
	    echo "==> not all could be installed: going on without the peers" >&2; \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[examples]' 'dask[dataframe]'; }
	@touch "$@" "$(STAMP)-examples"

bench: $(STAMP)-bench
	@echo "==> running the benchmarks"
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-ablation: $(STAMP)-bench
	@echo "==> running the ablation"
	@$(BIN)/python -m benchmarks --parts ablation $(BENCH_ARGS)

bench-latency: $(STAMP)-examples
	@echo "==> running benchmarks/latency.py"
	@$(BIN)/python benchmarks/latency.py $(BENCH_ARGS)

bench-factors: $(STAMP)-examples
	@echo "==> running benchmarks.factors"
	@$(BIN)/python -m benchmarks.factors $(BENCH_ARGS)

bench-wide: $(STAMP)-examples
	@echo "==> running benchmarks.wide"
	@$(BIN)/python -m benchmarks.wide $(BENCH_ARGS)

bench-giant: $(STAMP)-examples
	@echo "==> running benchmarks/giant.py"
	@$(BIN)/python benchmarks/giant.py $(BENCH_ARGS)

clean:
	@echo "==> removing environments made here, caches and build products"
	@rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
