# Everything runs in .venv, which is made when it is missing: Python 3.11 or newer and make are enough.
#   make demo      learn dictionaries from photographs, beside scikit-learn's own
#   make test      the tests                  (PYTEST_ARGS="-k fista" to choose)
#   make test-oldest, make test-newest         the tests on the oldest and newest versions
#   make test-big  fits of several gigabytes, for minutes
#   make fuzz      bad input, drawn anew     (FUZZ_CASES=5000 of each class)
#   make lint      ruff and mypy
#   make doctest   the examples in docstrings, guide and README
#   make docs      the HTML pages, in docs/_build/html, examples run; a warning is an error
#   make clean     remove what was built, .venv included

# The Python that makes .venv: the first of these that fits (PYTHON=python3.12 to choose). Each is
# run: pyenv puts names on the path whose Python is not active, and Debian leaves out ensurepip.
PYTHONS := python3 python3.13 python3.12 python3.11
FITS := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in $(PYTHONS); do \
	$$python -c '$(FITS)' 2>/dev/null && echo $$python && break; done)
NO_PYTHON = Python 3.11 or newer with the modules venv and ensurepip is needed, and none of \
	$(PYTHONS) is one. Install it (on Debian and Ubuntu: python3-venv), or name one: make PYTHON=/path/to/python

VENV ?= .venv
CONSTRAINTS ?= constraints.txt
JOBS ?= 2
PYTEST_ARGS ?=
FUZZ_CASES ?= 1000

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c $(CONSTRAINTS)
# One thread for each process: those of tests share the cores already, and threads of the examples
# that wait for each other on a busy machine take many times as long.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
export MPLBACKEND := Agg

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: demo test fuzz test-big test-oldest test-newest lint doctest docs clean help

help:
	@sed -n '2,10s/^# *//p' Makefile

demo: $(VENV)/.installed-plot
	$(BIN)/python examples/quickstart.py

test: $(VENV)/.installed-test
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

fuzz: $(VENV)/.installed-test
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) -m slow --fuzz-cases=$(FUZZ_CASES) \
		$(PYTEST_ARGS) tests/promises/test_fuzz.py

test-big: $(VENV)/.installed-test
	$(ONE_THREAD) $(BIN)/python -m pytest -m big -s $(PYTEST_ARGS) tests/training/test_streaming.py

# NumPy 1.24 has wheels for no newer Python.
test-oldest:
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt PYTHONS=python3.11

test-newest:
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=/dev/null

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

doctest: $(VENV)/.installed-test
	$(ONE_THREAD) $(BIN)/python -m pytest --doctest-modules --doctest-glob='*.rst' \
		--ignore=docs/conf.py --ignore=docs/_build --ignore=docs/generated --ignore=docs/auto_examples sklearn_vsc docs
	@echo 'The code of the README:'
	sed -n '/^```python/,/^```/p' README.md | sed '/^```/d' \
		| $(ONE_THREAD) $(BIN)/python -W error -

docs: $(VENV)/.installed-docs
	$(ONE_THREAD) $(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest docs/_build docs/auto_examples docs/generated build dist .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	$(or $(PYTHON),$(error $(NO_PYTHON))) -m venv $(VENV)
	@touch $@

$(VENV)/.installed-%: $(VENV)/.created pyproject.toml $(CONSTRAINTS)
	@echo 'Installing sklearn-vsc with its "$*" extra into $(VENV) (minutes, the first time) ...'
	$(PIP_INSTALL) -e '.[$*]'
	@touch $@
