# Needs Python >= 3.11 and pip; uses uv where it is installed. Everything lands in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cksum pyproject.toml | cut -d ' ' -f 1)

# Libraries are compiled once, at their first import, and not by each of the processes that tests start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all test-newest newest environment environment-newest tpu test-tpu lint types clean

demo: $(STAMP)
	$(BIN)/jaxguard demo --out demo

test: lint types
	$(BIN)/python -m pytest

# Types are checked beside the tests: both leave a core idle at times.
test-all: lint
	@$(BIN)/basedpyright > $(VENV)/types.log 2>&1 & types=$$!; \
	$(BIN)/python -m pytest -m ''; tests=$$?; \
	wait $$types; code=$$?; cat $(VENV)/types.log; exit $$((tests | code))

# What depends most on JAX, on Python 3.12 with the newest JAX, where such an interpreter is at hand.
CONTRACT := tests/kernels/test_kernel_contract.py
NEWEST := $(CONTRACT)::test_on_eight_devices_it_is_the_same $(CONTRACT)::test_it_lowers_everywhere \
  tests/graph/test_groups.py tests/journeys/test_training_gate.py \
  tests/fleet/test_stream.py::test_what_does_not_fit_the_memory_is_scored_in_parts_or_says_how_much_it_takes \
  tests/test_cli_scan.py::test_a_single_file_leaves_nothing_behind

# A target in an environment of Python 3.12.
define on-newest
@for python in python3.12 $$(command -v uv > /dev/null && uv python find 3.12 2> /dev/null) $$(ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.12.*/bin/python 2> /dev/null); do \
  if $$python -c '' 2> /dev/null; then \
    exec $(MAKE) --no-print-directory $(1) VENV=.venv-3.12 PYTHON=$$python; \
  fi; \
done; echo '$@: skipped, found no Python 3.12 (python3.12, uv, pyenv)'
endef

environment-newest:
	$(call on-newest,environment)

test-newest:
	$(call on-newest,newest)

environment: $(STAMP)

newest: $(STAMP)
	$(BIN)/python -m pytest $(NEWEST)

# Every hot program is compiled for TPUs, on a CPU: libtpu, some 700 MB, lies beside the environment and is no part of it.
TPU := .venv-tpu
define with-libtpu
@wheel="$$($(BIN)/python experiments/tpu.py --wheel)"; \
if { command -v uv > /dev/null && uv pip install --quiet --python $(BIN)/python --no-deps --target $(TPU) "$$wheel"; } \
  || $(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(TPU) "$$wheel"; then \
  PYTHONPATH=$(TPU) $(BIN)/python -m pytest -n 0 tests/test_tpu.py && PYTHONPATH=$(TPU) $(BIN)/python experiments/tpu.py $(1); \
else echo "$@: skipped, $$wheel cannot be installed here"; fi
endef

tpu: $(STAMP)
	$(call with-libtpu)

test-tpu: $(STAMP)
	$(call with-libtpu,--quick)

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
	  $(BIN)/python -m pip install --quiet --no-compile --editable . --group dev; \
	fi
	@touch $@

clean:
	rm -rf $(VENV) .venv-3.12 $(TPU) demo .pytest_cache .ruff_cache
