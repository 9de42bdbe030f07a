# Needs Python >= 3.11 and pip; uses uv where it is installed. Everything lands in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cksum pyproject.toml | cut -d ' ' -f 1)

.PHONY: demo test test-all test-newest newest lint types clean

demo: $(STAMP)
	$(BIN)/jaxguard demo --out demo

test: lint types
	$(BIN)/python -m pytest

test-all: lint types
	$(BIN)/python -m pytest -m ''

# A part of the suite on Python 3.12 with the newest JAX, where such an interpreter is at hand.
NEWEST := tests/fleet/test_stream.py tests/graph/test_groups.py tests/kernels/test_kernel_contract.py tests/scores \
  tests/checkpoints/test_safetensors.py tests/checkpoints/test_orbax.py tests/journeys/test_training_gate.py

test-newest:
	@for python in python3.12 $$(ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.12.*/bin/python 2> /dev/null); do \
	  if $$python -c '' 2> /dev/null; then \
	    exec $(MAKE) --no-print-directory newest VENV=.venv-3.12 PYTHON=$$python; \
	  fi; \
	done; echo 'test-newest: skipped, no Python 3.12 found'

newest: $(STAMP)
	$(BIN)/python -m pytest $(NEWEST)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/basedpyright

$(STAMP):
	@if command -v uv > /dev/null; then \
	  uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
	  uv pip install --quiet --python $(BIN)/python --editable . --group dev; \
	else \
	  $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1' && \
	  $(BIN)/python -m pip install --quiet --editable . --group dev; \
	fi
	@touch $@

clean:
	rm -rf $(VENV) .venv-3.12 demo .pytest_cache .ruff_cache
