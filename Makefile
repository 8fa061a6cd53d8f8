# `make audit` and `make test` are all that a user needs; each prepares what is missing.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# The first interpreter that runs and is new enough; `make PYTHON=/path/to/python` overrides it.
FIND_PYTHON = for p in python3.11 python3.12 python3.13 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$p" && break; done
PYTHON ?= $(shell $(FIND_PYTHON))

VENV := .venv
BENCH := .bench-venv
PIP := -m pip --disable-pip-version-check --no-input install --quiet -c constraints.txt
# Both declare torchvision, which must match torch build for build: installed without dependencies.
TORCHATTACKS := torchattacks==3.5.1
ZENNIT := zennit==0.5.1

# What to add to the command: make audit ARGS="--preset full", make bench ARGS=--quick
ARGS ?=

.PHONY: help audit test test-all bench bench-attacks bench-explanations train system clean

help:
	@echo 'make audit     audit the bundled models; writes a run folder with report.html'
	@echo 'make test      ruff, format, mypy, and all but the slow tests'
	@echo 'make test-all  the same with the slow tests'
	@echo 'make bench     foible against Foolbox, torchattacks, ART and captum, in $(BENCH)'
	@echo 'make train     train all bundled networks and choose the bundled images again'
	@echo 'make clean     remove both environments and all caches'

audit: $(VENV)/.for-use
	$(VENV)/bin/foible audit $(ARGS)

test: $(VENV)/.for-work system
	scripts/check

test-all: $(VENV)/.for-work system
	scripts/check --all

bench: bench-attacks bench-explanations

bench-attacks bench-explanations: bench-%: $(BENCH)/.for-bench
	$(BENCH)/bin/python benchmarks/$*.py $(ARGS)

train: $(VENV)/.for-use
	$(VENV)/bin/python recipes/train_bundled.py standard
	$(VENV)/bin/python recipes/train_bundled.py hardened
	$(VENV)/bin/python recipes/make_sample.py
	$(VENV)/bin/python recipes/train_autoencoder.py
	$(VENV)/bin/python recipes/train_masks.py

system:
	@scripts/system

clean:
	rm -rf $(VENV) $(BENCH) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment is as new as its stamp: changed dependencies are installed again, and only they.
$(VENV)/.for-use: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo 'foible needs Python 3.11 or newer: install it, or give PYTHON=/path/to/python' >&2; exit 1; }
	@test -x $(VENV)/bin/python || { echo "Making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@echo 'Installing foible and what it needs (PyTorch is large; this is done once)'
	$(VENV)/bin/python $(PIP) -e .
	@touch $@

$(VENV)/.for-work: $(VENV)/.for-use
	$(VENV)/bin/python $(PIP) -e '.[dev]'
	$(VENV)/bin/python $(PIP) --no-deps '$(ZENNIT)'
	@touch $@

$(BENCH)/.for-bench: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo 'foible needs Python 3.11 or newer: install it, or give PYTHON=/path/to/python' >&2; exit 1; }
	@test -x $(BENCH)/bin/python || { echo "Making $(BENCH) with $(PYTHON)"; $(PYTHON) -m venv $(BENCH); }
	$(BENCH)/bin/python $(PIP) -e '.[bench]'
	$(BENCH)/bin/python $(PIP) --no-deps '$(TORCHATTACKS)'
	@touch $@
