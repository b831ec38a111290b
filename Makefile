# People and CI type the same verbs. `make demo` and `make test` do all the set-up themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := ostraka services observability loadtest benchmarks deploy tests
PYTEST_ARGS ?=
ARGS ?=

export HF_HUB_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test check protos format up down status loadtest eval bench placement simulate chaos mutants read-rules llm llm-model clean

help:  ## list the verbs
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(INSTALLED)  ## create .venv and install the pinned dependencies

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Ostraka needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing pinned dependencies into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,llm]'
	@touch $@

demo: setup  ## start a mesh, ingest real documents, ask, break it, heal it
	@$(BIN)/ostraka demo $(ARGS)

test: setup llm-model  ## the whole suite
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

check: setup  ## lint, types, generated code, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@rm -rf build/stubs && PYTHON=$(BIN)/python sh protos/generate.sh build/stubs >/dev/null 2>&1
	@for f in build/stubs/ostraka/v1/*; do cmp "$$f" "ostraka/v1/$$(basename "$$f")" \
	  || { echo "the committed stubs differ from the contract; run make protos and commit the result" >&2; exit 1; }; done
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/unit/test_architecture.py

protos: setup  ## regenerate the stubs from the contract
	PYTHON=$(BIN)/python sh protos/generate.sh

format: setup  ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

up: setup  ## start a development mesh in the background
	@$(BIN)/ostraka up $(ARGS)

down: setup  ## stop it
	@$(BIN)/ostraka down $(ARGS)

status: setup  ## what the mesh says of itself
	@$(BIN)/ostraka status $(ARGS)

loadtest: setup  ## 60 s of open-loop load against a running or freshly started mesh; exit 1 on an SLO breach
	@$(BIN)/python -m loadtest $(ARGS)

eval: setup  ## embed SciFact whole and measure nDCG@10 through the router (about 5 minutes)
	@$(BIN)/python -m benchmarks.scifact $(ARGS)

bench: setup  ## search throughput against an empty RPC of the same run
	@$(BIN)/python -m benchmarks.search $(ARGS)

placement: setup  ## shards asked, recall and balance by hash and by cells, into docs/placement.md
	@$(BIN)/python -m benchmarks.placement $(ARGS)

simulate: setup  ## the replication protocol under faults: make simulate SEEDS=2000
	@$(BIN)/python -m tests.simulation --seeds $(or $(SEEDS),2000) $(ARGS)

chaos: setup  ## real processes in network namespaces under faults: make chaos MINUTES=30 SEED=7 (needs root)
	@$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),1) $(if $(SEED),--seed $(SEED)) $(ARGS)

mutants: setup  ## break the replication protocol on purpose and see who notices, into docs/mutants.md
	@$(BIN)/python -m tests.simulation.mutant_table $(ARGS)

read-rules: setup  ## five read rules on the same faults, into docs/read-rules.md: make read-rules SEEDS=200
	@$(BIN)/python -m tests.simulation.read_rules --seeds $(or $(SEEDS),200) $(ARGS)

llm-model: setup
	@$(BIN)/python -m deploy.smollm2 fetch

llm: llm-model  ## fetch SmolLM2-135M and serve it as an OpenAI-compatible endpoint
	@$(BIN)/python -m deploy.smollm2 serve $(ARGS)

clean:  ## remove everything that make made, data included
	@test ! -x $(BIN)/ostraka || $(BIN)/ostraka down >/dev/null 2>&1 || true
	rm -rf $(VENV) .mesh .cache build reports .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
