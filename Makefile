# Two commands on a fresh Debian or Ubuntu machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test check bench attacks study rounds docs clean
help: ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

setup: $(STAMP) ## make .venv with thinbox and its dependencies

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "thinbox needs Python 3.11 or newer"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "python3-venv is missing: apt install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[record,plot,dev]'
	@touch $@

demo: $(STAMP) ## boot a kernel, run programs isolated, see an exploit killed
	$(BIN)/python examples/demo.py

test: $(STAMP) ## run the tests (fetches a kernel if there is none)
	$(BIN)/python -m pytest

check: $(STAMP) ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP) ## thinbox's own speed, as ratios
	$(BIN)/thinbox bench

attacks: $(STAMP) ## the matrix of attacks, in docs/attacks.md
	$(BIN)/thinbox attack --all --jobs 2 --json docs/attacks.json --document docs/attacks.md

study: $(STAMP) ## measure what isolation does to every call, and write docs/study.md (20 minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[plot]'
	$(BIN)/python -m benchmarks.study

rounds: $(STAMP) ## what plans change for the tests' container images: the table of docs/plan.md
	PYTHONPATH=. $(BIN)/python -m benchmarks.rounds

docs: $(STAMP) ## check that the documents' commands and links hold
	$(BIN)/python -m pytest tests/test_documents.py

clean: ## remove .venv and caches of tools (not the user's cache)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist
