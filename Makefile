# Commands on a fresh machine: `make demo`, `make test`, `make test-fast` and `make docs`. Each makes .venv by itself.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-fast check docs clean

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "fedsim needs Python 3.11 or newer, found " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

demo: .venv/.ready
	$(BIN)/python -m experiments.demo

# What starts no process and computes no longer than a second or so.
test-fast: .venv/.ready
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n auto --dist worksteal -m "not (process or ray or flower or slow)"

# Tests start hundreds of processes, each of which would compile the package anew without its bytecode.
test: check
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n auto --dist worksteal

check: .venv/.ready
	$(BIN)/ruff check
	$(BIN)/mypy

# The documentation as a site, with a reference made of the docstrings, in site/; a warning fails.
docs: .venv/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean:
	rm -rf .venv site
