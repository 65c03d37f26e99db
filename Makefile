# Two commands are enough on a machine with Python 3.11 or newer, pip and make: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers

.PHONY: help demo test test-unit lint bench clean

help:
	@echo "make demo       install, then train a small Gemma 3 through sessions that are killed on purpose, and prove the result"
	@echo "make test       install what the tests need, and run them"
	@echo "make test-unit  run only those that start no process (under a minute)"
	@echo "make lint       ruff, mypy strict, import-linter"
	@echo "make bench      measure side by side with the peers (minutes; see docs/performance.md)"

demo: $(VENV)/installed-train
	@$(BIN)/gemma-orch demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-unit: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not integration and not chain"

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/installed-dev $(PEERS)/installed
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) $(PEERS) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "gemma-orch needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# torch first and alone, so that its pinned build is taken whatever the index offers as newest.
$(VENV)/installed-train: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed-train
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# What the measurements are compared with asks for other versions than ours, so it lives apart; nothing but `make bench` needs it.
$(PEERS)/installed: benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet torch==2.13.0
	$(PEERS)/bin/python -m pip install --quiet --no-deps --requirement $<
	@touch $@
