# From a bare machine: `make demo` shows the whole job on drawn scenes, `make test` runs all checks.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two test processes, one thread each: the libraries' own threads would only get in each other's way.
WORKERS ?= 2

.PHONY: setup demo test fast chromium browser lint types bench accuracy pictures clean

setup: $(STAMP)

# Without a GPU torch's smaller CPU build is asked for first; where it is not to be had, whatever build fits.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "make: got $$($(PYTHON) --version), expected Python 3.10 or later; say PYTHON=python3.11, for example" >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -c 'import torch' 2>/dev/null || command -v nvidia-smi >/dev/null || $(BIN)/pip install -q torch==2.13.0 || true
	$(BIN)/pip install -q -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/semanticgan demo --out demo

# Everything but what needs a browser, the slow tests included.
test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not browser" -n $(WORKERS)

# Without the slow tests.
fast: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

HAS_CHROMIUM := command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null
# Where there is no network it ends soon.
APT := apt-get -qq -o Acquire::Retries=0 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20

# What the browser tests need. On Debian, as root, Chromium is installed where there is none; else it says what is missing.
chromium: setup
	@$(HAS_CHROMIUM) || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null \
		|| { $(APT) update && DEBIAN_FRONTEND=noninteractive $(APT) install -y --no-install-recommends chromium fonts-dejavu-core >/dev/null; } || true
	@$(HAS_CHROMIUM) || { echo "make: no Chromium; install the package chromium" >&2; exit 1; }
	@$(BIN)/python -c 'import playwright' 2>/dev/null || $(BIN)/pip install -q 'playwright>=1.45'

# The page in a real browser.
browser: chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/web

# The pictures in the README, from what make demo has left in demo/.
pictures: chromium
	$(BIN)/python benchmarks/pictures.py demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Needs torch's annotations as they are in the version that setup asks for, so it is no part of the tests.
types: setup
	$(BIN)/mypy

# Every stage's speed, against the plain design and the machine's limit; leave the machine alone meanwhile.
bench: setup
	$(BIN)/python benchmarks/speed.py

# The comparison with other methods, in an environment of its own: all cells in turn, for days, or what ARGS says, such as
# ARGS="--task skin --method unet --labels 40 --seed 1". What has a result is not done again.
BASELINES := .venv-baselines
ARGS ?= --queue

accuracy: $(BASELINES)/.installed
	$(BASELINES)/bin/python benchmarks/accuracy.py $(ARGS)

$(BASELINES)/.installed: pyproject.toml
	test -x $(BASELINES)/bin/pip || $(PYTHON) -m venv --clear $(BASELINES)
	$(BASELINES)/bin/pip install -q -e '.[baselines]'
	touch $@

clean:
	rm -rf $(VENV) $(BASELINES) demo .pytest_cache .ruff_cache .mypy_cache .hypothesis
