# All targets need only Python 3.11 or later, make and pip. The first one that runs creates a virtual
# environment in .venv and installs the packages in requirements.lock; Node is one of them, and it
# installs the packages in js/package-lock.json for the targets that run JavaScript.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JS_READY := js/node_modules/.ready
PEERS_READY := bench/browser/node_modules/.ready
SEEDS ?= 2000
ROUNDS ?= 1
HUNT_ROUNDS ?= 200
SHARDS ?= 1
FUZZ_SECONDS ?= 3600

# Tests and benchmarks start hundreds of processes: compile each file once, not once in each of them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo fleet test environments autobahn check bench bench-browser bench-fairness soak simulate faults fuzz hunt-js vectors lock clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(JS_READY): js/package-lock.json $(READY)
	@$(BIN)/python -m tests.javascript.node npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

$(PEERS_READY): bench/browser/package-lock.json $(JS_READY)
	@$(BIN)/python -m tests.javascript.node npm ci --prefix ../bench/browser --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

demo: $(READY)  ## Hundreds of devices disconnect, reconnect and converge
	@$(BIN)/gregor demo

fleet: $(READY)  ## The demo with two nodes, PostgreSQL and Redis from wheels; SHARDS=2
	@$(BIN)/python -m demo --shards $(SHARDS)

test: $(READY) $(JS_READY)  ## All tests, in 20 to 40 minutes
	$(BIN)/pytest -n 5 --dist loadgroup

environments: $(READY)  ## Tests with PgBouncer, nginx and others from Debian; root or sudo
	@tests/environments/install
	$(BIN)/pytest -n 2 --dist loadgroup -m environments tests/environments

autobahn: $(READY)  ## The WebSocket against the test suite of Autobahn; needs Python 2.7
	@tests/autobahn/install
	@$(BIN)/python -m tests.autobahn $(CASES)

check: $(READY) $(JS_READY)  ## Style, types and the fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 -m "not slow and not environments"

bench: $(READY)  ## Benchmarks, each beside a baseline from the same run
	@$(BIN)/python -m bench

bench-browser: $(PEERS_READY)  ## The client in Chromium, beside TinyBase and Centrifuge
	@$(BIN)/python -m tests.javascript.node npm run check --silent --prefix ../bench/browser
	@$(BIN)/python -m bench browser

bench-fairness: $(READY)  ## An ack beside each kind of abuser, and alone
	@$(BIN)/python -m bench fairness

soak: $(READY)  ## Ten minutes of 50 abusers and 200 honest devices
	@$(BIN)/python -m bench soak

simulate: $(READY)  ## Simulations with random seeds; SEEDS=100000
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS)

faults: $(READY)  ## Each fault, injected into a real fleet; ROUNDS=20
	@$(BIN)/python -m tests.faults --rounds $(ROUNDS)

fuzz: $(READY)  ## What peers send, fuzzed guided by coverage; FUZZ_SECONDS=600
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

hunt-js: $(READY) $(JS_READY)  ## The JavaScript client: rounds in a browser, histories; HUNT_ROUNDS=200
	@$(BIN)/python -m tests.javascript.hunt --rounds $(HUNT_ROUNDS)

vectors: $(READY)  ## Regenerate the vectors of clients in spec/vectors
	@$(BIN)/python -m tests.vectors

COMPILE := .venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --annotation-style line --no-emit-index-url --no-emit-find-links pyproject.toml

lock:  ## Regenerate requirements.lock and that of the image from pyproject.toml
	@$(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install --quiet uv
	@$(COMPILE) --all-extras -o requirements.lock
	@$(COMPILE) --extra server --extra postgresql --extra redis --extra nats --extra cli --constraint requirements.lock -o deploy/requirements.lock
	@rm -rf .venv-lock

clean:  ## Remove the installed packages and caches
	rm -rf $(VENV) .autobahn js/node_modules js/dist bench/browser/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis
