# Each target makes what it needs: the virtual environment is laid down on first use, and again when the requirements,
# or the Python that is asked for, have changed. `make` alone lists the targets.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
UV_VERSION := 0.13.9
export PYTHON

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

# The stamps carry the version, so that another PYTHON gets a new environment instead of a mixture of both.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
RUNTIME := $(VENV)/.runtime-$(VERSION)
DEV := $(VENV)/.dev-$(VERSION)
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes
PYTEST := $(BIN)/python -m pytest
SUITES := $(wildcard tests/core tests/flow tests/simulation tests/adapters tests/local tests/cli tests/deploy tests/test_*.py)

.PHONY: help demo run test test-race test-real test-cov test-313 check fmt lint types layers e2e torture bench fuzz mutants rows lock distclean
.PHONY: setup-user build deploy logs test-event status k8s-status redis-cli clean

help: ## show this list
	@awk -F ':.*## ' '/^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\n  ARGS="..." is passed on; PYTHON=python3.13 VENV=.venv-3.13 uses another Python beside the first.\n'

##@ To begin with

demo: $(RUNTIME) ## the whole system on this machine, with a fixed set of events and a table at the end
	@$(BIN)/python ottoscaler.py demo $(ARGS)

run: $(RUNTIME) ## the controller, configured by environment variables or ENV_FILE
	@$(BIN)/python ottoscaler.py run $(ARGS)

test: $(DEV) ## the tests that need neither a server nor root; the flow twice, the second time with hostile thread switching
ifeq ($(strip $(ARGS)),)
	@# side by side, since most of them wait for servers; the slowest first
	@$(MAKE) --jobs=3 --keep-going --output-sync=target suite-cli suite-adapters suite-local suite-flow suite-simulation test-race suite-deploy suite-core suite-top
else
	$(PYTEST) -m "not e2e" $(SUITES) $(ARGS)
	@echo "make test: with ARGS the second pass over the flow is left out; 'make test-race' runs it"
endif

suite-top: SUITE = $(wildcard tests/test_*.py)
suite-%: SUITE = tests/$*
suite-%: $(DEV)
	$(PYTEST) -m "not e2e" $(SUITE)

##@ Development

test-race: $(DEV) ## the tests of the flow in development mode, a thread switch every microsecond
	PYTHONDEVMODE=1 OTTO_SWITCH_INTERVAL=1e-6 $(PYTEST) -m "not e2e" $(wildcard tests/flow) $(ARGS)

test-real: $(DEV) ## the contract suites against real servers (TEST_KUBECONFIG, redis-server); OTTO_CI=1 forbids to skip
	$(PYTEST) -m "real and not e2e" tests $(ARGS)

test-cov: $(DEV) ## the tests with branch coverage: core 100 %, all 95 %
	@mkdir -p .cache/coverage
	$(PYTEST) -m "not e2e" --cov --cov-report= $(SUITES) $(ARGS)
	$(BIN)/coverage report --fail-under=95
	$(BIN)/coverage report --include='ottoscaler/core/*' --fail-under=100

test-313: ## the tests in the image python:3.13-slim, if there is a Docker daemon
	@.ci/test-313 $(ARGS)

# The order of sets has to be the same for the same seed, too.
simulate: $(DEV) ## several controllers in a world of faults; SEED=... EXAMPLES=... plays the same again
	@seed=$(or $(SEED),$$(date +%s)) examples=$(or $(EXAMPLES),1000); echo "make simulate SEED=$$seed EXAMPLES=$$examples"; \
		PYTHONHASHSEED=0 SIMULATE_SEED=$$seed SIMULATE_EXAMPLES=$$examples $(PYTEST) -p no:randomly tests/simulation $(ARGS)

check: lint types layers ## format, lint, types, layers: what must hold before a commit

lint: $(DEV) ## format and rules, nothing changed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(DEV) ## mypy, twice: the script and the package have the same name
	$(BIN)/mypy ottoscaler deploy/environment.py
	$(BIN)/mypy --follow-imports=silent ottoscaler.py

layers: $(DEV) ## imports point down, third parties stay in their place, sizes
	$(PYTEST) -q tests/test_layers.py

fmt: $(DEV) ## format, and repair what ruff can repair
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

e2e: $(DEV) ## the process itself against a real Kubernetes (TEST_KUBECONFIG) and a real Redis
	$(PYTEST) -m e2e tests/e2e $(ARGS)

torture: $(DEV) ## the controller killed KILLS times (100) with work in flight, its servers and network too; SEED=... again
	$(BIN)/python -m tests.torture $(ARGS)

bench: $(DEV) ## the product beside its peers on servers of its own; QUICK=1: counts only; ONLY=idle,ends: some scenarios
	$(BIN)/python -m tests.bench $(if $(QUICK),--quick) $(if $(ONLY),--only=$(ONLY)) $(ARGS)

fuzz: $(DEV) ## a million random events through the pure core; ARGS="COUNT SEED" for others
	$(BIN)/python -m tests.fuzz $(ARGS)

mutants: $(DEV) ## break the code on purpose and see the tests notice; RANDOM=100 SEED=...: so many changes at random
	$(BIN)/python -m tests.mutants $(if $(RANDOM),--random=$(RANDOM) --seed=$(or $(SEED),1)) $(ARGS)

rows: $(DEV) ## the promises to the outside, and the tests that hold each of them up
	$(BIN)/python -m tests.rows $(ARGS)

lock: ## write the requirements files anew from pyproject.toml (ARGS=--upgrade for newer versions)
	@rm -rf .cache/lock && $(PYTHON) -m venv .cache/lock
	@.cache/lock/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@for set in "requirements.txt" "requirements-dev.txt --extra dev --constraint requirements.txt"; do \
		.cache/lock/bin/uv pip compile pyproject.toml --quiet --output-file $$set --universal --python-version 3.11 \
			--generate-hashes --no-strip-extras --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" $(ARGS); \
	done
	@rm -rf .cache/lock

distclean: ## remove the virtual environment and the caches, nothing else
	rm -rf $(VENV) .cache .hypothesis .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

##@ A developer's own environment: ENV_FILE names it, and is not needed where there is only one

# every shell has a USER, and many a PORT: they count only when given on the command line
setup-user: USER_GIVEN = $(if $(filter command,$(origin USER)),$(USER))
setup-user: PORT_GIVEN = $(if $(filter command,$(origin PORT)),$(PORT))
setup-user: ## USER=<name> [PORT=<port>]: make or reuse a developer's Redis, Kind cluster, namespace and env file
	@deploy/setup-user.sh '$(USER_GIVEN)' '$(PORT_GIVEN)'

build: ## the image
	@deploy/dev.sh build

deploy: ## bring image and manifests into the cluster, and wait until the controller is ready
	@deploy/dev.sh deploy

logs: ## follow the controller's log (ARGS="--tail=20" instead)
	@deploy/dev.sh logs $(ARGS)

test-event: $(RUNTIME) ## send an event (PODS=3 TASK=<task id> TYPE=scale_up)
	@OTTO="$(BIN)/python ottoscaler.py" deploy/dev.sh test-event

status: $(RUNTIME) ## Redis, cluster, controller, workers and the last results at a glance
	@OTTO="$(BIN)/python ottoscaler.py" deploy/dev.sh status

k8s-status: ## all that is in the namespace, and its last events
	@deploy/dev.sh k8s-status

redis-cli: ## talk to the environment's Redis (ARGS="XLEN otto:scale:events")
	@deploy/dev.sh redis-cli $(ARGS)

clean: ## remove the environment: cluster, image, env file; the shared Redis only when told so (FORCE=1)
	@deploy/dev.sh clean

$(RUNTIME): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Python 3.11 or later is needed, and '$(PYTHON)' is not: make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "Making $(VENV) with Python $(VERSION)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP_INSTALL) -r requirements.txt
	@touch $@

$(DEV): requirements-dev.txt $(RUNTIME)
	@echo "Adding the development tools to $(VENV)"
	@$(PIP_INSTALL) -r requirements-dev.txt
	@touch $@
