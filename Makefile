SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
# The first of these that runs and has a supported version; set PYTHON=… to choose another.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
  $$name -c '$(SUPPORTED)' 2>/dev/null && echo $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCE ?= auto
# More threads in each process would wait for each other, and without bytecode files each would compile all modules again.
TEST_ENVIRONMENT := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
# One more than processors, as tests wait a third of their time; one that has TensorFlow takes a gigabyte.
PROCESSES = $$($(BIN)/python -c 'import os; print(min(os.cpu_count() + 1, 4))')
PYTEST = $(TEST_ENVIRONMENT) $(BIN)/python -m pytest --dist=worksteal --numprocesses=$(PROCESSES)
TSC := npx --yes --package typescript@5.9.3 tsc

# What running needs; an environment with all of development has it, too.
RUNNING := $(VENV)/$(if $(wildcard $(VENV)/.installed),.installed,.running)

.PHONY: run port test test-long quick matrix lock test-docker check docs bench install setup clean

# The shell takes the name from here as it is, with spaces, quotes and all.
run: export WORKER_SOURCE := $(value SOURCE)
run: port $(RUNNING)  ## ingest images and serve them on port 8000
	@$(BIN)/python -m service --check
	@status=0; $(BIN)/python -m worker ingest "$$WORKER_SOURCE" || status=$$?; \
	  [ $$status -eq 0 ] || [ $$status -eq 3 ] || exit $$status
	@echo
	@echo "Open http://127.0.0.1:$${IMAGE_SEARCH_PORT:-8000} in a browser, or try, in another terminal:"
	@echo "  curl -F image=@examples/flower.png 'http://127.0.0.1:$${IMAGE_SEARCH_PORT:-8000}/search?top_k=3&thumbnails=false'"
	@echo "  curl http://127.0.0.1:$${IMAGE_SEARCH_PORT:-8000}/health"
	@echo "Your own images, in an index of their own: make run SOURCE=path/to/folder IMAGE_SEARCH_INDEX=photos"
	@echo
	@exec $(BIN)/python -m service

# Before anything is installed, with the Python that is there.
port:
	@$(SUPPORTED_PYTHON)
	@$(PYTHON) -m service.listening

test: setup  ## run the tests
	$(PYTEST) --durations=15

quick: setup  ## run the tests that need half a second or less each
	$(PYTEST) -m "not docker and not long and not slow"

test-long: setup  ## run the tests that take long: kills at random, several machines, a strained store
	$(PYTEST) -m long --durations=15

matrix: setup  ## run the quick tests with each supported Python that is installed
	$(TEST_ENVIRONMENT) $(BIN)/nox -- --numprocesses=$(PROCESSES) -m "not docker and not long and not slow"

# For every platform and supported Python, with the hash of each file.
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes $(UPGRADE) \
  --no-header --no-annotate --no-emit-index-url --no-emit-find-links

lock:  ## write the lock files anew: what pyproject.toml asks for, in the versions that they have
	@[ -x $(BIN)/uv ] || { $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet uv; }
	$(COMPILE) --group build --extra dev --extra bench pyproject.toml client/pyproject.toml --output-file requirements.lock
	$(COMPILE) --constraint requirements.lock --group build --extra service --extra video pyproject.toml client/pyproject.toml \
	  --output-file requirements-run.lock
	$(COMPILE) --constraint requirements.lock --extra service pyproject.toml --output-file requirements-service.lock
	$(COMPILE) --constraint requirements.lock --extra gpu pyproject.toml --output-file requirements-gpu.lock

test-docker: setup  ## build the images and test them on a Docker engine
	$(BIN)/python -m pytest -m docker

docs: setup  ## build the documentation into build/docs, with every link checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

check: setup docs  ## linter, formatter, strict types, import rules, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose*.yml
	@if $(TSC) --version >/dev/null 2>&1; then \
	  echo "$(TSC)" && $(TSC); \
	else \
	  echo "SKIPPED: TypeScript needs npx, and a network once: the page's types were not checked"; \
	fi

bench: setup  ## measure speed and memory against the goals; OTHER=FOLDER has another commit to compare with
	$(BIN)/python -m benchmarks.bench $(SOURCE:auto=sample) $(if $(OTHER),--other $(OTHER))

install: $(RUNNING)  ## install what running needs

setup: $(VENV)/.installed  ## install that and what development needs

SUPPORTED_PYTHON = $(or $(PYTHON),false) -c '$(SUPPORTED)' || \
  { echo "error: Python 3.11, 3.12 or 3.13 is needed; set PYTHON=path/to/python" >&2; exit 1; }

$(VENV)/.installed: requirements.lock
$(VENV)/.running: requirements-run.lock
$(VENV)/.installed $(VENV)/.running: pyproject.toml client/pyproject.toml VERSION
	@$(SUPPORTED_PYTHON)
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python tools/install.py $(filter %.lock,$^)
	@echo "installing this checkout itself"
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable . --editable ./client
	@$(PIP) check >/dev/null || { $(PIP) check; echo "error: the lock file is stale: make lock" >&2; exit 1; }
	@touch $@

clean:  ## remove the environment and caches, not the data
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
