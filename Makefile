# One word per job. `make test` and `make demo` set everything up from a fresh clone; a second run does not reinstall.
PYTHON ?= python3
VENV ?= .venv
TORCH := torch==2.13.0
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install test check format demo serve talk bench prometheus dashboards aot roofline recipe-smoke clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## create the virtual environment and install everything at exact versions

# Two steps, in this order: docs/decisions/0001-lift-upstream-pins.md says why.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Duologue needs Python 3.11 or newer; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install $(TORCH)
	$(PIP) install --no-deps -r requirements.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

test: $(STAMP) ## run the whole test suite, or with ARGS what they say to pytest
	$(BIN)/python -m $(if $(ARGS),pytest $(ARGS),tests)

check: $(STAMP) ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## rewrite files in the house format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

demo: $(STAMP) ## hold a spoken conversation with the embedded model, without a microphone
	$(BIN)/python -m client.demo $(ARGS)

serve: $(STAMP) ## start the server on http://127.0.0.1:8998
	$(BIN)/duologue-server $(ARGS)

talk: $(STAMP) ## talk with a microphone to a running server
	$(BIN)/duologue talk $(ARGS)

bench: $(STAMP) ## measure against named peers, each in one run: a frame, callers held, delay, journal, metrics, learner
	for each in frame_step capacity delay journal metrics learner; do $(BIN)/python -m benchmarks.$$each $(ARGS) || exit 1; done

prometheus: ## fetch Prometheus for the tests of rules and dashboards
	deploy/prometheus/get.sh

dashboards: $(STAMP) ## write Grafana's dashboards from their pages
	$(BIN)/python deploy/grafana/make_dashboards.py

aot: $(STAMP) ## compile every GPU kernel, without a GPU, and compare with the golden file
	$(BIN)/python -m kernels.aot --check

roofline: $(STAMP) ## model what a frame costs on a GPU; into docs/
	$(BIN)/python -m kernels.roofline --write docs

recipe-smoke: $(STAMP) ## make a toy model with every stage of the recipe, in a few minutes
	$(BIN)/python -m recipes.mini.run --size smoke --work build/recipe-smoke

clean: ## remove the virtual environment and everything that was generated
	rm -rf $(VENV) demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
