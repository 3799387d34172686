# make demo   the two stories of the README, from raw files to evaluated models (under 5 minutes on 2 cores)
# make test   the whole test suite (about 12 minutes on 2 cores)
# make check  linters and types          make gpu / bench-gpu   CUDA tests / benchmarks, on a machine with a GPU
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test check bench gpu bench-gpu schema clean

demo: $(VENV)/.core
	$(BIN)/python scripts/demo.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python scripts/benchmarks/run.py

# These two run with the machine's own Python and its CUDA build of torch, and say what it lacks.
# OUT, where it is set: a folder in which the figures are kept too.
gpu:
	$(PYTHON) scripts/needs.py pytest pytest-timeout
	$(PYTHON) -m pytest -m cuda $$(grep -rl --include="*.py" "mark\.cuda" tests)

bench-gpu:
	$(PYTHON) scripts/needs.py
	$(PYTHON) scripts/benchmarks/gpu.py --save $(if $(OUT),--out $(OUT))

schema: $(VENV)/.core
	$(BIN)/python scripts/schema.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone: where a CPU build is on hand the pinned version takes it, and nothing pulls a larger one.
$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -q -c constraints.txt torch
	$(PIP) install -q -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) install -q -c constraints.txt -e '.[dev,data]'
	touch $@

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache
