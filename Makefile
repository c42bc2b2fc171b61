# Two commands on a fresh Debian or Ubuntu machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Neighbours in a file share what is slow to make, so each process is handed long pieces, and takes from the other's end.
PARALLEL := -n 2 --dist worksteal
# A cache in which no kernel ever is, and no way to fetch one: a test that needs one fails here, and is to be marked.
NO_KERNEL := THINBOX_CACHE=$(CURDIR)/.pytest_cache/no-kernel http_proxy=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9

.PHONY: help setup demo test test-fast test-newest check bench mutants attacks study kernels rounds programs suites docs docs-commands clean
help: ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

setup: $(STAMP) ## make .venv with thinbox and its dependencies

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "thinbox needs Python 3.11 or newer"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "python3-venv is missing: apt install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[record,plot,dev]'
	@touch $@

demo: $(STAMP) ## boot a kernel, run programs isolated, see an exploit killed
	$(BIN)/python examples/demo.py

test: $(STAMP) ## run all tests, on two cores (fetches a kernel if there is none)
	$(BIN)/python -m pytest $(PARALLEL)

test-fast: $(STAMP) ## run the tests that need no kernel, in a minute; nothing is fetched
	$(NO_KERNEL) $(BIN)/python -m pytest $(PARALLEL) -m 'not guest and not slow'

test-newest: $(STAMP) ## a short run on the newest kernel of Debian's archive, which is fetched; three minutes
	$(BIN)/python -m pytest -m newest tests/kernel/test_newest.py

check: $(STAMP) ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP) ## thinbox's own speed, as ratios
	$(BIN)/thinbox bench

mutants: $(STAMP) ## break modules in small ways, and say what no test noticed (an hour)
	$(BIN)/python -m benchmarks.mutation

attacks: $(STAMP) ## the matrix of attacks, in docs/attacks.md
	$(BIN)/thinbox attack --all --jobs 2 --json docs/attacks.json --document docs/attacks.md

study: $(STAMP) ## measure what isolation does to every call, and write docs/study.md (20 minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[plot]'
	$(BIN)/python -m benchmarks.study

kernels: $(STAMP) ## what works on which kernel: the table of docs/kernels.md (of what is known; KERNELS="…" adds)
	PYTHONPATH=. $(BIN)/python -m benchmarks.kernels $(KERNELS)

rounds: $(STAMP) ## what plans change for the tests' container images: the table of docs/plan.md
	PYTHONPATH=. $(BIN)/python -m benchmarks.rounds

programs: $(STAMP) ## run real programs of Debian and PyPI un-isolated and isolated: the table of docs/programs.md (hours)
	PYTHONPATH=. $(BIN)/python -m benchmarks.programs

suites: $(STAMP) ## run test suites of others un-isolated and isolated: the tables of docs/suites.md (hours)
	PYTHONPATH=. $(BIN)/python -m benchmarks.suites

docs: $(STAMP) ## build the site of the documents in build/site; a broken link or anchor fails
	$(BIN)/python -c 'import material' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(BIN)/python -m tools.site

docs-commands: $(STAMP) ## write the pages of commands (docs/commands) and the man pages (man) anew
	$(BIN)/python -m tools.write_commands

clean: ## remove .venv and caches of tools (not the user's cache)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist
