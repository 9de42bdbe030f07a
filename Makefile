# Needs Python >= 3.11 and pip; uses uv where it is installed. Everything lands in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cksum pyproject.toml | cut -d ' ' -f 1)

.PHONY: demo test test-all lint types clean

demo: $(STAMP)
	$(BIN)/jaxguard demo --out demo

test: lint types
	$(BIN)/python -m pytest

test-all: lint types
	$(BIN)/python -m pytest -m ''

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
	rm -rf $(VENV) demo .pytest_cache .ruff_cache
