# `python3` and `make` are enough: everything else is installed into .venv, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
PYTEST_ARGS ?=

.PHONY: demo test quick matrix check docs

demo: $(STAMP)
	$(BIN)/accelerate launch peftkit/run.py recipe=lora_imdb

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

quick: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal \
	    -m "not slow and not network" $(PYTEST_ARGS)

# every strategy on every architecture, held in every way: much longer than the tests
matrix: $(STAMP)
	PEFTKIT_MATRIX=whole $(BIN)/python -m pytest tests/strategies/test_behavior_matrix.py -k contract -n 2 \
	    --matrix-to=benchmarks/measurements/matrix_whole.json $(PYTEST_ARGS)
	$(BIN)/python benchmarks/tables.py

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# docs/_build/html/index.html; warnings are errors, and nothing is loaded from a network
docs: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# torch first and alone: where the package index offers a CPU build of the pinned version, it is taken
# before anything asks for the CUDA libraries.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[test]'
	touch $(STAMP)
