# Two commands do everything on a fresh machine with Python >= 3.10 and make:  make demo,  make test.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
WORKERS ?= 2
THREADS ?= 2
export OMP_NUM_THREADS ?= $(THREADS)
# Tests run in WORKERS processes of one thread each.  Each takes neighbours, which share what they prepare, and work of
# another when its own is done.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: help demo test test-slow test-browser lint bench checkpoint clean

help:
	@echo "make demo       set up .venv, then train, sample, evaluate and report on the 8x8 digits (runs/demo)"
	@echo "make test       set up .venv, then the test-suite (under 5 minutes)"
	@echo "make test-slow  the long statistical, training and fault runs"
	@echo "make test-browser  the report page in headless Chromium, which apt-get installs where it is not"
	@echo "make lint       ruff and mypy"
	@echo "make bench      the benchmark programs; results in benchmarks/results/"
	@echo "make checkpoint train the checkpoints that ship inside the package"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "sde-toolkit needs Python >= 3.10, got %d.%d; try: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/sde-toolkit demo --workdir=runs/demo

test: $(STAMP)
	$(PYTEST) -m 'not slow and not browser'

test-slow: $(STAMP)
	$(PYTEST) -m 'slow and not browser'

test-browser: $(STAMP)
	@tests/browser/install.sh
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,browser]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/browser

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks

checkpoint: $(STAMP)
	$(BIN)/sde-toolkit train --config=digits --workdir=runs/digits-checkpoint
	$(BIN)/sde-toolkit export --workdir=runs/digits-checkpoint --output=sde_toolkit/checkpoints/digits.safetensors
	$(BIN)/sde-toolkit train --config=digits_classes --workdir=runs/digits-classes
	$(BIN)/sde-toolkit export --workdir=runs/digits-classes --output=sde_toolkit/checkpoints/digits_classes.safetensors
	OMP_NUM_THREADS=1 $(BIN)/sde-toolkit train --config=mnist --workdir=runs/mnist
	$(BIN)/sde-toolkit export --workdir=runs/mnist --output=sde_toolkit/checkpoints/mnist.safetensors

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache
