# Every target makes its own environment first; nothing has to be installed by hand.
PYTHON ?= python3# 3.11 or newer
VENV ?= .venv
ARGS ?=# handed on, e.g. make demo ARGS="--help", make test ARGS="-k anderson"
WORKERS ?= 2
TORCH ?= torch# pip's requirement for bench-torch; on Linux this one is a CUDA build, gigabytes

BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: help demo test check mesh bench bench-torch notebooks clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(VENV)/.train ## train a small multiscale DEQ on Fashion-MNIST (minutes)
	$(BIN)/python -m experiments.demo $(ARGS)

test: $(VENV)/.dev ## the whole suite
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup $(ARGS)

check: $(VENV)/.dev ## format, lint, types (seconds)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

mesh: $(VENV)/.dev ## the suites on 8 simulated devices, Auto and Explicit axes
	$(BIN)/python -m pytest -q -n $(WORKERS) -m mesh $(ARGS)

bench: ## the benchmarks, against other libraries too, as ratios within one run
	@$(MAKE) -s VENV=.venv-bench .venv-bench/.bench
	TORCH_PYTHON=$(wildcard .venv-torch/bin/python) .venv-bench/bin/python -m benchmarks.run $(ARGS)

bench-torch: .venv-torch/.torch ## torchdeq, which bench then measures as well

notebooks: $(VENV)/.notebooks ## execute all notebooks (ARGS=--overwrite keeps what they show)
	$(BIN)/jupytext --quiet --update --to ipynb notebooks/*.py
	$(BIN)/python -m pytest -q -n $(WORKERS) --nbmake --nbmake-timeout=600 notebooks/*.ipynb $(ARGS)

clean: ## remove environments, builds and caches
	rm -rf .venv* build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# $(VENV)/.EXTRA says that the extra is installed as pyproject.toml asks today.
$(VENV)/.%: pyproject.toml setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "jaxdeq needs Python 3.11 or newer; '$(PYTHON)' is not. Try: make PYTHON=python3.13 ..." >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq -e '.[$*]'
	@touch $@

.venv-torch/.torch:
	$(PYTHON) -m venv .venv-torch
	.venv-torch/bin/python -m pip install -qq $(TORCH) torchdeq
	@touch $@
