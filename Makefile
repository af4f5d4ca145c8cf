# RepSync: run it, test it, check it. `make` alone lists the targets.

PYTHON ?= python3
ARGS ?=
RUNS ?= 100000

VENV := .venv
PY := $(VENV)/bin/python
JS := tests/js
PAGE := dashboard
# Stamps say which lock is installed; a changed lock is newer than its stamp and is installed again.
RUN_STAMP := $(VENV)/.stamp-run
DEV_STAMP := $(VENV)/.stamp-dev
FUZZ_STAMP := $(VENV)/.stamp-fuzz
JS_STAMP := $(JS)/node_modules/.stamp
CHARTS := $(PAGE)/dist/uPlot.js
NPM_CI := npm ci --loglevel=error --ignore-scripts --no-audit --no-fund

PIP_INSTALL := $(PY) -m pip install -qq --disable-pip-version-check --require-hashes
# `universal` resolves for every platform and Python from 3.11 on, and lists the hashes of all files.
UV_COMPILE := $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --custom-compile-command "make lock"

# The dev lock holds everything of the run-time lock in the same versions: where it is installed,
# `make run` uses it instead of installing anything.
RUN_DEPS := $(if $(wildcard $(DEV_STAMP)),$(DEV_STAMP),$(RUN_STAMP))

# An environment whose interpreter is gone or too old is built anew.
ifneq ($(shell $(PY) -c 'import sys; print(sys.version_info >= (3, 11))' 2>/dev/null),True)
REBUILD := rebuild
endif

.DEFAULT_GOAL := help
.PHONY: help run demo test lint fmt lock clean setup js charts rebuild
# Two installations into one environment must not overlap, so -j has no effect here.
.NOTPARALLEL:

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' Makefile

run: $(RUN_DEPS) charts ## Start the server on this machine, with the settings of .env if there is one
	@before="$$(export -p)"; set -a; [ ! -f .env ] || . ./.env; eval "$$before"; exec $(PY) -m server

demo: $(RUN_DEPS) charts ## Start it with lifters who train, for the page at / to move; ARGS="--pace 2"
	@$(PY) -m server demo $(ARGS)

test: js setup ## Run the tests; ARGS="-k presence" passes options to pytest
	@$(PY) -m pytest -n 2 $(ARGS)

lint: setup ## Check style, types and the direction of imports
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

fmt: setup ## Format the code and mend what can be mended
	$(VENV)/bin/ruff check --fix-only
	$(VENV)/bin/ruff format

.PHONY: bench soak chaos fuzz
bench: $(RUN_DEPS) ## Measure speed and memory beside other servers; ARGS="--quick" for a short look
	@$(PY) benchmarks/bench.py $(ARGS)

soak: setup ## Ten minutes of joins, edits, drops and errors, then everything back where it was
	@SOAK_S=600 $(PY) -m pytest -n 0 tests/system/test_soak.py

chaos: setup ## Half an hour of instances, Redis and MongoDB that die and freeze under load
	@CHAOS_S=$${CHAOS_S:-1800} $(PY) -m pytest -n 0 -rP tests/chaos/test_chaos.py

fuzz: $(FUZZ_STAMP) ## Throw odd inputs at every door; RUNS=10000 for fewer, ARGS=updates for one
	@$(PY) -m tests.fuzz --runs $(RUNS) $(ARGS)

lock: setup ## Write the lock files from pyproject.toml; ARGS=--upgrade takes newer versions
	$(UV_COMPILE) pyproject.toml $(ARGS) --output-file requirements.txt
	$(UV_COMPILE) pyproject.toml $(ARGS) --group dev \
		--constraint requirements.txt --output-file requirements-dev.txt
	$(UV_COMPILE) $(ARGS) --group pyproject.toml:fuzz \
		--constraint requirements-dev.txt --output-file requirements-fuzz.txt

clean: ## Remove what was installed and cached; data/ stays
	rm -rf $(VENV) $(JS)/node_modules $(PAGE)/node_modules $(PAGE)/dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	rm -rf .fuzz/*/corpus .fuzz/*/log .fuzz/*/last
	find . -name .git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

setup: $(DEV_STAMP)

$(VENV)/pyvenv.cfg: $(REBUILD)
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "RepSync needs Python 3.11 or newer, and '$(PYTHON)' was not found." \
			"Install it or name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "RepSync needs Python 3.11 or newer, and '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1)." \
			"Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -m venv --clear $(VENV)

$(RUN_STAMP): requirements.txt $(VENV)/pyvenv.cfg
	@echo "Installing requirements.txt into $(VENV)"
	@$(PIP_INSTALL) -r requirements.txt
	@touch $@

$(DEV_STAMP): requirements-dev.txt $(VENV)/pyvenv.cfg
	@echo "Installing requirements-dev.txt into $(VENV)"
	@$(PIP_INSTALL) -r requirements-dev.txt
	@touch $@

$(FUZZ_STAMP): requirements-fuzz.txt $(DEV_STAMP)
	@echo "Installing requirements-fuzz.txt into $(VENV)"
	@$(PIP_INSTALL) -r requirements-fuzz.txt
	@touch $@

# The JavaScript clients need Node. On a developer's machine they may be missing, in CI they may not.
js:
	@if command -v node >/dev/null && command -v npm >/dev/null; then \
		$(MAKE) --silent --no-print-directory $(JS_STAMP) $(CHARTS); \
	elif [ -n "$$CI" ]; then \
		echo "Node.js with npm was not found: CI must run the JavaScript client tests." >&2; exit 1; \
	else \
		echo "Node.js with npm was not found: the JavaScript client tests are skipped."; \
	fi

$(JS_STAMP): $(JS)/package-lock.json
	@echo "Installing the JavaScript clients into $(JS)/node_modules"
	@cd $(JS) && $(NPM_CI)
	@touch $@

# The page's chart library. Where it cannot be had the page draws simpler charts.
charts:
	@if command -v node >/dev/null && command -v npm >/dev/null; then \
		$(MAKE) --silent --no-print-directory $(CHARTS) || \
			echo "The chart library was not installed: the page draws simpler charts."; \
	fi

# Its smallest file is a plain script; a line is added that makes it a module.
$(CHARTS): $(PAGE)/package.json $(PAGE)/package-lock.json
	@echo "Installing the page's chart library into $(PAGE)/dist"
	@cd $(PAGE) && $(NPM_CI) --fetch-retries=1 && npm run build --silent
