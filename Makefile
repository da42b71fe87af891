# make demo and make test set up what they need, in .venv; nothing but make, git and Python 3.11 has to be there.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
  "$$python" -c '$(ENOUGH)' 2>/dev/null && command -v "$$python" && break; done || echo python3)
BIN := .venv/bin
STAMP := .venv/installed
LOWEST := .venv-lowest

.PHONY: help demo test test-slow test-slurm test-lowest lowest-versions check format docs all-checks setup clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 17

demo: $(STAMP) ## adapt the small built-in backbone to the built-in data set, and print the table
	$(BIN)/mwa-train

test: $(STAMP) ## all tests but the slow ones
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(STAMP) ## the slow tests, but for those on a real SLURM
	$(BIN)/python -m pytest -m slow --ignore tests/slurm

test-slurm: $(STAMP) ## the tests on a real SLURM, which they install as root on Debian
	INSTALL_SLURM=1 $(BIN)/python -m pytest -m slow tests/slurm

test-lowest: $(LOWEST)/installed ## the tests but the slow ones, on the oldest dependencies that pyproject.toml allows
	$(LOWEST)/bin/python -m pytest -m "not slow"

lowest-versions: $(STAMP) ## write requirements/lowest.txt anew, after a change of what pyproject.toml asks for
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --upgrade --resolution lowest-direct --python-version 3.11 --extra test --no-annotate \
	  --custom-compile-command "make lowest-versions" --output-file requirements/lowest.txt pyproject.toml

check: $(STAMP) ## lint, formatting, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(STAMP) ## format the code and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP) ## the documentation as a site with an API reference, in build/site; a broken link is an error
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/constraints.txt -e '.[docs]'
	$(BIN)/python scripts/site_pages.py build/pages
	$(BIN)/zensical build --clean --strict

all-checks: check docs test test-slow test-slurm test-lowest ## everything that there is, about an hour

setup: $(STAMP) ## install into .venv

# The tested versions, so that a newcomer gets what was tested. The code to compare with comes without its dependencies.
$(STAMP): pyproject.toml requirements/constraints.txt requirements/parity.txt
	@"$(PYTHON)" -c '$(ENOUGH)' 2>/dev/null || { \
	  echo "make: Python 3.11 or newer is needed, and $(PYTHON) is not: give it with make PYTHON=/path/to/python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/constraints.txt -e '.[test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/parity.txt
	@touch $(STAMP)

# The code to compare with is left out: it has bounds of its own, and what it says of ours does not depend on them.
$(LOWEST)/installed: pyproject.toml requirements/lowest.txt
	"$(PYTHON)" -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c requirements/lowest.txt -e '.[test]'
	@touch $@

clean: ## remove the environments and what the tools left; runs in ./logs stay
	rm -rf .venv $(LOWEST) build dist .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find mwa_lightning tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
