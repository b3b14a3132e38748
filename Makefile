# From a bare machine: `make demo` shows the whole job on drawn scenes, `make test` runs all checks.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two test processes, one thread each: the libraries' own threads would only get in each other's way.
WORKERS ?= 2

.PHONY: setup demo test fast browser lint bench clean

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

# Everything, the slow tests included.
test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "" -n $(WORKERS)

# Without the slow tests.
fast: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

HAS_CHROMIUM := command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null

# The page in a real browser. On Debian, as root, it installs Chromium where there is none; else say what is missing.
browser: setup
	@$(HAS_CHROMIUM) || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null \
		|| { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; }
	@$(HAS_CHROMIUM) || { echo "make: no Chromium; install the package chromium" >&2; exit 1; }
	$(BIN)/pip install -q 'playwright>=1.45'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/web

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Every stage's speed, against the plain design and the machine's limit; leave the machine alone meanwhile.
bench: setup
	$(BIN)/python benchmarks/speed.py

clean:
	rm -rf $(VENV) demo .pytest_cache .ruff_cache .mypy_cache .hypothesis
