# `make train` and `make test` each do everything from a bare checkout: virtual environment, install, run.
#
#   make train ARGS="--epochs 5"     options of `staticgrad train`
#   make test PYTHON=python3.12      another Python (3.11 to 3.14); the environment is made anew for it
#   make test PYTEST_ARGS="-x -k csv"

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PYTEST_ARGS ?= -n 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
NEEDS := needs Python 3.11 to 3.14; give one, as in: make test PYTHON=python3.12

.PHONY: train test docs lint types bench clean remake

train: $(VENV)/.installed-cli
	$(BIN)/staticgrad train $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# The code blocks of README.md and docs/ alone.
docs: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/test_docs.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A type checker cannot follow the hook of an editable install that puts graph/ and kernels/ inside the package: it
# reads a folder of links which has the layout of the installed package.
types: $(VENV)/.installed-dev
	rm -rf $(VENV)/types
	mkdir -p $(VENV)/types/staticgrad
	ln -s $(CURDIR)/staticgrad/* $(CURDIR)/graph $(CURDIR)/kernels $(VENV)/types/staticgrad/
	cd $(VENV)/types && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml \
		--cache-dir $(CURDIR)/.mypy_cache -p staticgrad

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.graphs $(ARGS)

clean:
	rm -rf $(VENV) build dist runs *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: an install is repeated when pyproject.toml has changed since.
$(VENV)/.installed-cli: pyproject.toml $(VENV)/.made
	$(PIP) -e '.[cli]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.made
	$(PIP) -e '.[dev]'
	@touch $(VENV)/.installed-cli $@

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || { echo '$(NEEDS)' >&2; exit 1; }
	$(PYTHON) -m venv $(if $(REMAKE),--clear) $(VENV)
	@touch $@

# A Python that was asked for by name and differs from the one of the environment.
ifneq ($(origin PYTHON),file)
version = $(shell test -n "$$(command -v $1)" && $1 -c 'import sys; print(sys.version)')
ifneq ($(call version,$(PYTHON)),$(call version,$(BIN)/python))
REMAKE := yes
$(VENV)/.made: remake
endif
endif
