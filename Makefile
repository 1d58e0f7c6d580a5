# The two commands: `make demo` and `make test`. Both do their own set-up.
# Elsewhere: make demo PYTHON=python3.12 PIP_FLAGS="--index-url https://…"

PYTHON    ?= python3
PIP_FLAGS ?=
VENV      := .venv
BIN       := $(VENV)/bin
STAMP     := $(VENV)/.installed
SOURCES   := src tests benchmarks docs/build.py

.DEFAULT_GOAL := help
.PHONY: help demo test lint types contracts unit docs clean

help: ## Show this list.
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

# A fresh machine: a virtual environment with exactly the versions of constraints.txt.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "whet needs Python 3.11 or newer"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## Watch a small diffusion LM solve fresh problems five ways; table and page.
	$(BIN)/whet benchmark decode --model tiny-dlm --n 210 --watch 2 \
	  --decoders greedy threshold pbs soar dparallel:model=tiny-dlm-dparallel,entropy_threshold=0.1 \
	  --out runs/demo --name demo

test: lint types contracts unit ## Lint, types, import contracts and tests.

lint: $(STAMP) ## Style and format.
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: $(STAMP) ## mypy --strict on the package.
	$(BIN)/mypy

contracts: $(STAMP) ## Imports go down only.
	$(BIN)/lint-imports

unit: $(STAMP) ## The tests, on two processes.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

docs: $(STAMP) ## The docs site, in site/.
	$(BIN)/python docs/build.py
	$(BIN)/mkdocs build --strict --quiet

clean: ## Remove what the targets above made.
	rm -rf $(VENV) site build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
