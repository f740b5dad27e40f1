# `make` alone lists the targets. Everything happens inside $(VENV); the Python of the system is only asked to create it.

VENV ?= .venv
ARGS ?=
PY := $(VENV)/bin/python
# pip itself refuses to install outside an environment, whatever a recipe may get wrong
export PIP_REQUIRE_VIRTUALENV := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONPATH PYTHONHOME

PACKAGING := setup.cfg pyproject.toml constraints.txt
# slow tests share one worker, so they run one after the other while the fast ones use the second core
XDIST := -n 2 --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help venv quickstart test test-all lint format types clean

help:
	@echo "make quickstart [ARGS=...]  the main job on the shapes world, into quickstart/ (ARGS=--help lists what can be set)"
	@echo "make test                   the fast tests"
	@echo "make test-all               the fast and the slow tests (several processes, kill and resume, wheel)"
	@echo "make lint | format | types  ruff check and format --check | ruff format and fixes | mypy on the wheel"
	@echo "make clean                  remove $(VENV), builds and caches; results in quickstart/ stay"

$(VENV)/bin/pip:
	@found=; for python in $(or $(PYTHON),python3.11 python3 python3.12 python3.13); do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "make: no Python >= 3.11 here (python3 is: $$(python3 --version 2>&1)). Install one (Debian, Ubuntu: apt install python3.11 python3.11-venv)" >&2; \
	    echo "      or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	if ! $$found -c 'import ensurepip, venv' >/dev/null 2>&1; then \
	    version=$$($$found -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	    echo "make: $$found cannot create environments here. Debian and Ubuntu ship that apart: sudo apt install python$$version-venv" >&2; exit 1; \
	fi; \
	echo "creating $(VENV) with $$($$found --version)"; $$found -m venv $(VENV)

# what running needs, and what developing needs; the second holds the first
$(VENV)/.installed: $(PACKAGING) | $(VENV)/bin/pip
	$(PY) -m pip install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(PACKAGING) | $(VENV)/bin/pip
	$(PY) -m pip install -c constraints.txt -e ".[dev,deepspeed,serving,ray]"
	@touch $(VENV)/.installed $@

venv: $(VENV)/.installed-dev

quickstart: $(VENV)/.installed
	$(PY) -m rationalrewards.quickstart $(ARGS)

test: $(VENV)/.installed-dev
	$(PY) -m pytest $(XDIST) -m "not slow" $(ARGS)

test-all: $(VENV)/.installed-dev
	$(PY) -m pytest $(XDIST) $(ARGS)

lint: $(VENV)/.installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(VENV)/.installed-dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# mypy cannot follow the import hook of an editable install, so it reads the wheel, which also shows that py.typed ships
types: $(VENV)/.installed-dev
	rm -rf build
	$(PY) -m pip install -q --no-deps --no-build-isolation --no-index --target build/types .
	MYPYPATH=build/types $(PY) -m mypy -p rationalrewards

clean:
	if [ -f $(VENV)/pyvenv.cfg ]; then rm -rf $(VENV); fi
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
