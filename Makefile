# `make demo` rewrites a real model and shows the result; `make test` runs every check, and of slow ones and sweeps over many
# models the part of today (`make test-all` runs all); `make quick` what tells most in two minutes on two slow cores.
# `make test-trainers` runs what trains with Lightning and others for minutes, broken off and resumed.
# All set up a virtual environment first and need only Python >= 3.11, pip and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

PYTEST := $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal

.PHONY: demo test test-all test-trainers quick lint format clean

demo: $(VENV)/cli.done
	$(BIN)/rewriter rewrite resnet18 --model-kwargs drop_rate=0.2

test: lint
	$(PYTEST) --sample -m "not trainers"

test-all: lint $(VENV)/trainers.done
	$(PYTEST)

test-trainers: $(VENV)/trainers.done
	$(PYTEST) -m trainers

quick: lint
	$(PYTEST) --quick

lint: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/test.done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV)

$(VENV)/cli.done: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --editable ".[cli]"
	touch $@

$(VENV)/trainers.done: $(VENV)/test.done
	PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --editable ".[trainers]"
	touch $@

$(VENV)/test.done: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --editable ".[test]"
	touch $@
