# `make demo` and `make test` need Python 3.10 or newer, pip and make. The first target makes .venv/ from
# requirements.lock; later ones reuse it until the lock changes. Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
PYTEST = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo bench test test-slow test-browser test-gpu fuzz lint format clean

help:
	@echo "make demo       compress the shipped teacher to a half and a quarter, compare in runs/demo/report.html"
	@echo "make bench      fast path against reference path, to runs/bench/; see docs/benchmarks/README.md"
	@echo "make test       the test suite        make test-slow, make test-gpu: the tests it omits"
	@echo "make test-browser  the reports in Chromium (part of test-slow)"
	@echo "make fuzz       2,000 damaged network files, each opened or refused (part of test-slow)"
	@echo "make lint       style checks          make format: fix what can be fixed automatically"
	@echo "make clean      remove .venv and caches, but not runs/"

setup: $(READY)

# Debian's python3 has no ensurepip unless python3-venv is installed; then the system's pip installs into the environment.
$(READY): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV) \
	  || { $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(PY) install --quiet pip; }
	@echo "Installing the pinned packages into $(VENV) (once; torch is the largest)"
	$(PY) -m pip install --disable-pip-version-check -r requirements.lock
	@touch $(READY)

demo: $(READY)
	$(PY) -m scripts.demo

bench: $(READY)
	$(PY) -m benchmarks $(BENCH_ARGS)

test: $(READY)
	$(PYTEST) -n $(WORKERS)

test-slow: $(READY)
	$(PYTEST) -m slow

test-gpu: $(READY)
	$(PYTEST) -m gpu

test-browser: $(READY)
	$(PYTEST) -m browser

fuzz: $(READY)
	$(PYTEST) -m slow tests/compat/test_fuzz.py -s

lint: $(READY)
	$(PY) -m ruff check --no-cache .
	$(PY) -m ruff format --check .

format: $(READY)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf $(VENV) build .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
