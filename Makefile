# Everything needs only Python 3.11 or later, make and pip: the first target that is called makes
# a virtual environment in .venv and installs into it what requirements.lock names.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SEEDS ?= 2000
ROUNDS ?= 1
SHARDS ?= 1

.PHONY: help demo fleet test check bench simulate faults lock clean
.DEFAULT_GOAL := help

help:  ## What can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

demo: $(READY)  ## Hundreds of devices drop off, come back, and agree
	@$(BIN)/gregor demo

fleet: $(READY)  ## The same with two nodes over PostgreSQL and Redis from wheels; SHARDS=2
	@$(BIN)/gregor demo --nodes 2 --shards $(SHARDS)

test: $(READY)  ## Everything that is proved, in under 12 minutes
	$(BIN)/pytest -n 2 --dist loadgroup

check: $(READY)  ## Style, types and the fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 -m "not slow"

bench: $(READY)  ## How fast it is, beside the limits measured in the same run
	@$(BIN)/gregor bench

simulate: $(READY)  ## The seeded world, SEEDS=100000 of it
	@$(BIN)/python -m gregor.testing.simulation --seeds $(SEEDS)

faults: $(READY)  ## Every plug of a fleet, pulled ROUNDS=20 times
	@$(BIN)/python -m tests.faults --rounds $(ROUNDS)

lock:  ## Write requirements.lock anew from pyproject.toml
	@$(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install --quiet uv
	@.venv-lock/bin/uv pip compile --quiet --all-extras --universal --python-version 3.11 --no-header --annotation-style line --no-emit-index-url --no-emit-find-links pyproject.toml -o requirements.lock
	@rm -rf .venv-lock

clean:  ## Remove what was made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
