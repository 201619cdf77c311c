# Each target makes what it needs: the virtual environment is laid down on first use, and again when the requirements,
# or the Python that is asked for, have changed. `make` alone lists the targets.

PYTHON ?= python3
VENV ?= .venv
UV_VERSION := 0.13.9

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

# What is given on the command line reaches a recipe by the environment, as it was written: make expands nothing in it,
# and no shell reads it. USER and PORT count only where they are given here, since every shell has a USER.
export USER_GIVEN := $(if $(filter command,$(origin USER)),$(value USER))
export PORT_GIVEN := $(if $(filter command,$(origin PORT)),$(value PORT))
# bash has a RANDOM of its own
export RANDOM_GIVEN := $(value RANDOM)
GIVEN := ARGS CMD ENV_FILE EXAMPLES FORCE IMAGE KILLS KIND_NODE_IMAGE ONLY PODS PORT PROFILE PYTHON QUICK RANDOM ROLLOUT_S SEED TASK TYPE USER VENV
$(foreach name,$(GIVEN),$(if $(filter-out undefined,$(origin $(name))),$(eval override $(name) := $$(value $(name)))$(eval export $(name))))

# The words of ARGS as the arguments of a recipe: quotes count as in a shell, and nothing in them is carried out.
SET_ARGS = [ -z "$${ARGS:-}" ] || { words=$$("$$PYTHON" -I -S deploy/environment.py words) && eval "set -- $$words" || exit 1; }

# These two are also names of targets and parts of commands.
ALLOWED := a b c d e f g h i j k l m n o p q r s t u v w x y z A B C D E F G H I J K L M N O P Q R S T U V W X Y Z 0 1 2 3 4 5 6 7 8 9 . _ / + - @
without = $(if $(2),$(call without,$(subst $(firstword $(2)),,$(1)),$(wordlist 2,$(words $(2)),$(2))),$(1))
path = $(if $(filter-out -%,$(firstword $($(1)))),$(if $(call without,$($(1)),$(ALLOWED)),,1))
$(foreach name,PYTHON VENV,$(if $(call path,$(name)),,$(error $(name) is '$($(name))', expected a path of letters, digits and . _ / + - @, without a dash at its beginning)))

# The stamps carry the version, so that another PYTHON gets a new environment instead of a mixture of both.
VERSION := $(shell $(PYTHON) -I -S -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
RUNTIME := $(VENV)/.runtime-$(VERSION)
LOCAL := $(VENV)/.local-$(VERSION)
DEV := $(VENV)/.dev-$(VERSION)
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
BYTECODE := .cache/bytecode
COMPILED := $(BYTECODE)/.begun-$(VERSION)
# Tests with real servers mostly wait, so several files run at once. Each process has servers, namespaces and databases of its own.
SIDE_BY_SIDE := --dist=loadfile --numprocesses
# The parts of `make test`, and where each reports.
# Those that mostly wait come first, so that the others have both cores meanwhile. The flow is two parts: its threads wait
# for each other most of the time, and as one process it would take longest of all.
PARTS := flow-1 flow-2 forwarder cli adapters deploy local top core simulation
REPORTS := .cache/reports
SUITES := $(wildcard tests/core tests/flow tests/simulation tests/adapters tests/forwarder tests/local tests/cli \
	tests/deploy tests/test_*.py)

# A folder that is there is emptied only if it is a virtual environment.
OURS = [ ! -e $(VENV) ] || [ -e $(VENV)/pyvenv.cfg ] || [ -z "$$(ls -A $(VENV))" ] || \
	{ echo "VENV is $(VENV): this is no virtual environment, and is left as it is" >&2; exit 1; }

.PHONY: help demo local run proto test test-race test-real otelcol test-cov test-313 check fmt lint types layers e2e torture bench fuzz mutants rows lock distclean
.PHONY: setup-user build deploy logs test-event status doctor ui k8s-status redis-cli clean

help: ## show this list
	@awk -F ':.*## ' '/^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\n  ARGS="..." is passed on; PYTHON=python3.13 VENV=.venv-3.13 uses another Python beside the first.\n'

##@ To begin with

demo: $(LOCAL) ## the whole system on this machine, with a fixed set of events and a table at the end
	@$(SET_ARGS); $(BIN)/python ottoscaler.py demo "$$@"

local: $(LOCAL) ## the whole system on this machine, until Ctrl-C, for events of your own
	@$(SET_ARGS); $(BIN)/python ottoscaler.py local "$$@"

run: $(RUNTIME) ## the controller, configured by environment variables or ENV_FILE
	@$(SET_ARGS); OTTO_PYTHON=$(BIN)/python deploy/dev.sh run "$$@"

test: $(COMPILED) ## the tests that need neither a server nor root; those of the flow with hostile thread switching
ifeq ($(strip $(ARGS)),)
	@echo "make test: about 4 minutes on 2 idle cores; the output of each suite comes when it has ended"
	@rm -rf $(REPORTS) && mkdir -p $(REPORTS)
	@# side by side, since many of them wait for servers
	@begin=$$SECONDS status=0; \
		$(MAKE) --jobs=4 --keep-going --output-sync=target REPORT=$(REPORTS)/ $(PARTS:%=suite-%) || status=$$?; \
		$(BIN)/python -m tests.summary $(REPORTS) $$((SECONDS - begin)) $(PARTS); exit $$status
else
	@$(SET_ARGS); $(PYTEST) -m "not e2e" $(SUITES) "$$@"
	@echo "make test: with ARGS threads of the flow are switched as usual; 'make test-race' switches them every microsecond"
endif

# Bytecode is kept, of the tests too, also where the environment forbids it: each suite, and each command that is tested
# as a process, would compile everything again. In a folder of its own, so that no test finds it in the checkout.
# Python then looks only there, so the folder begins with what is compiled beside the installed packages.
suite-% test-race test-real simulate e2e torture: export PYTHONDONTWRITEBYTECODE :=
suite-% test-race test-real simulate e2e torture: export PYTHONPYCACHEPREFIX := $(CURDIR)/$(BYTECODE)
# Development mode without its allocator, which looks for faults of C extensions and takes a fifth of the time.
suite-flow-% test-race: export PYTHONDEVMODE := 1
suite-flow-% test-race: export PYTHONMALLOC := pymalloc
suite-flow-% test-race: export OTTO_SWITCH_INTERVAL := 1e-6
FLOW_1 := $(wildcard tests/flow/test_[a-l]*.py)
suite-flow-1: SUITE = $(FLOW_1)
suite-flow-2: SUITE = $(filter-out $(FLOW_1),$(wildcard tests/flow/test_*.py))
suite-top: SUITE = $(wildcard tests/test_*.py)
suite-%: SUITE = tests/$*
suite-%: $(COMPILED)
	$(PYTEST) -m "not e2e and not real and not full" $(SUITE) $(if $(REPORT),--junitxml=$(REPORT)$*.xml)

$(COMPILED): $(DEV)
	@rm -rf $(BYTECODE)/tmp && mkdir -p $(@D)
	@$(BIN)/python -m tests.bytecode $(BYTECODE)
	@touch $@

##@ Development

test-race: $(COMPILED) ## the tests of the flow in development mode, a thread switch every microsecond
	@$(SET_ARGS); $(PYTEST) -m "not e2e and not full" $(wildcard tests/flow) "$$@"

test-real: $(COMPILED) ## the contract suites against real servers (TEST_KUBECONFIG, redis-server), and the tests that take long; OTTO_CI=1 forbids to skip
	@$(SET_ARGS); $(PYTEST) $(SIDE_BY_SIDE)=2 -m "(real or full) and not e2e" tests "$$@"

otelcol: ## build the OpenTelemetry collector that the test of traces takes, from Go modules
	@cd tests/otelcol && CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=readonly GOWORK=off go build -o ../../.cache/otelcol .

test-cov: $(DEV) ## the tests with branch coverage: core 100 %, all 95 %
	@mkdir -p .cache/coverage
	@$(SET_ARGS); $(PYTEST) -m "not e2e" --cov --cov-report= $(SUITES) "$$@"
	$(BIN)/coverage report --fail-under=95
	$(BIN)/coverage report --include='ottoscaler/core/*' --fail-under=100

test-313: ## the tests in the image python:3.13-slim, if there is a Docker daemon
	@$(SET_ARGS); .ci/test-313 "$$@"

# The order of sets has to be the same for the same seed, too.
simulate: $(COMPILED) ## several controllers in a world of faults; SEED=... EXAMPLES=... plays the same again
	@$(SET_ARGS); seed=$${SEED:-$$(date +%s)} examples=$${EXAMPLES:-1000}; echo "make simulate SEED=$$seed EXAMPLES=$$examples"; \
		PYTHONHASHSEED=0 SIMULATE_SEED=$$seed SIMULATE_EXAMPLES=$$examples $(PYTEST) -p no:randomly tests/simulation "$$@"

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

e2e: $(COMPILED) ## the process itself against a real Kubernetes (TEST_KUBECONFIG) and a real Redis
	@$(SET_ARGS); $(PYTEST) $(SIDE_BY_SIDE)=3 -m e2e tests/e2e "$$@"

torture: $(COMPILED) ## the controller killed KILLS times (100) with work in flight; its servers, network, rights and clocks fail too; SEED=... again; ARGS="--only=denied,html": only these faults
	@$(SET_ARGS); $(BIN)/python -m tests.torture "$$@"

bench: $(DEV) ## the product beside its peers on servers of its own; QUICK=1: counts only; ONLY=idle,ends: some scenarios
	@$(SET_ARGS); $(BIN)/python -m tests.bench $(if $(QUICK),--quick) $(if $(ONLY),"--only=$$ONLY") "$$@"

fuzz: $(DEV) ## a million random events through the pure core; ARGS="COUNT SEED" for others
	@$(SET_ARGS); $(BIN)/python -m tests.fuzz "$$@"

mutants: $(DEV) ## break the code on purpose and see the tests notice; `RANDOM=100 SEED=7`: 100 changes at random
	@$(SET_ARGS); $(BIN)/python -m tests.mutants $(if $(RANDOM),"--random=$$RANDOM_GIVEN" "--seed=$${SEED:-1}") "$$@"

rows: $(DEV) ## the promises to the outside, and the tests that hold each of them up
	@$(SET_ARGS); $(BIN)/python -m tests.rows "$$@"

proto: $(DEV) ## make the Python code of ottoscaler/proto again
	$(BIN)/python -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. --grpc_python_out=. ottoscaler/proto/log_streaming.proto

lock: ## write the lock files again from pyproject.toml (ARGS=--upgrade for newer versions)
	@rm -rf .cache/lock && $(PYTHON) -m venv .cache/lock
	@.cache/lock/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@.cache/lock/bin/python -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
		[open(f".cache/lock/{name}.in", "w").write("\n".join(extras[name])) for name in ("local", "logs", "traces")]'
	@# production first: the others keep to its versions
	@$(SET_ARGS); for set in "requirements.txt pyproject.toml" \
		"ottoscaler/local/requirements.txt .cache/lock/local.in --constraint requirements.txt --no-annotate" \
		"ottoscaler/forwarder/requirements.txt .cache/lock/logs.in --constraint requirements.txt --no-annotate" \
		"ottoscaler/adapters/traces-requirements.txt .cache/lock/traces.in --constraint requirements.txt --no-annotate" \
		"requirements-dev.txt pyproject.toml --extra dev --extra local --extra logs --extra traces --constraint requirements.txt \
			--constraint ottoscaler/local/requirements.txt --constraint ottoscaler/forwarder/requirements.txt \
			--constraint ottoscaler/adapters/traces-requirements.txt"; do \
		.cache/lock/bin/uv pip compile --quiet --output-file $$set --universal --python-version 3.11 \
			--generate-hashes --no-strip-extras --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" "$$@"; \
	done
	@rm -rf .cache/lock

distclean: ## remove the virtual environment and the caches, nothing else
	@$(OURS)
	rm -rf $(VENV) .cache .hypothesis .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

##@ A developer's own environment: ENV_FILE names it, and is not needed where there is only one

setup-user: ## USER=<name> [PORT=<port>]: make or reuse a developer's Redis, Kind cluster, namespace and env file
	@deploy/setup-user.sh "$$USER_GIVEN" "$$PORT_GIVEN"

build: ## the image
	@deploy/dev.sh build

deploy: ## check the env file, bring image and manifests into the cluster, and wait until the controller is ready
	@deploy/dev.sh deploy

logs: ## follow the controller's log (ARGS="--tail=20" instead)
	@$(SET_ARGS); deploy/dev.sh logs "$$@"

test-event: $(RUNTIME) ## send an event (PODS=3 TASK=<task id> TYPE=scale_up CMD="..." IMAGE=... PROFILE=...), unless the controller would refuse it
	@OTTO_PYTHON=$(BIN)/python deploy/dev.sh test-event

status: $(RUNTIME) ## Redis, cluster, controller, workers and the last results at a glance
	@OTTO_PYTHON=$(BIN)/python deploy/dev.sh status

doctor: $(RUNTIME) ## check Redis, the cluster, the policy and the clocks; what is wrong comes first, with what to do
	@$(SET_ARGS); OTTO_PYTHON=$(BIN)/python deploy/dev.sh doctor "$$@"

ui: ## open the status page of the newest controller, until Ctrl-C
	@deploy/dev.sh ui

k8s-status: ## all that is in the namespace, and its last events
	@deploy/dev.sh k8s-status

redis-cli: ## talk to the environment's Redis (ARGS="XLEN otto:scale:events")
	@$(SET_ARGS); deploy/dev.sh redis-cli "$$@"

clean: ## remove the environment: cluster, image, env file; the shared Redis only on "yes" or with FORCE=1
	@deploy/dev.sh clean

# pip shows a line for each package that it collects: the installation takes up to a minute, and must not look stuck.
INSTALL = PYTHONPYCACHEPREFIX= PYTHONUNBUFFERED=1 $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --require-hashes \
	--requirement $(1) | awk '/^Collecting / {print "  " $$2; fflush()}'

$(RUNTIME): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Python 3.11 or later is needed, and '$(PYTHON)' is not: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(OURS)
	@echo "Making $(VENV) with Python $(VERSION)"
	@$(PYTHON) -m venv --clear $(VENV)
	@echo "Installing what the controller needs into $(VENV)"
	@$(call INSTALL,requirements.txt)
	@touch $@

$(LOCAL): ottoscaler/local/requirements.txt ottoscaler/forwarder/requirements.txt $(RUNTIME)
	@echo "Installing the embedded Redis and the log handler of local and demo into $(VENV)"
	@$(call INSTALL,ottoscaler/local/requirements.txt)
	@$(call INSTALL,ottoscaler/forwarder/requirements.txt)
	@touch $@

$(DEV): requirements-dev.txt $(RUNTIME)
	@echo "Installing the development tools into $(VENV)"
	@$(call INSTALL,requirements-dev.txt)
	@touch $@
