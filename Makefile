# The targets set up their environment: on a new machine with Python 3.11, `make demo` and
# `make test` are enough.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Installs with uv if uv supports pip's settings, else with pip: see tools/install.py.
INSTALL := $(BIN)/python tools/install.py -c constraints.txt
READY_DEMO := $(VENV)/.ready-demo
READY_CHECK := $(VENV)/.ready-check
READY := $(VENV)/.ready
# One thread per process: trials run concurrently, one per core.
export OMP_NUM_THREADS := 1
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
# uv does not compile bytecode during set-up. Python does when it first imports a module, so
# bytecode must be writable.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo check test quick test-chaos test-cluster test-heads test-postgres lint docs \
	bench bench-train bench-scale bench-demo gpu-check clean
setup: $(READY)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(READY_DEMO): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[demo]'
	touch $@

# For `make check`: the packages of a search, linters and pytest.
$(READY_CHECK): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[search,dev]'
	touch $@ $(READY_DEMO)

# For `make test`: also the packages of the storage, tracking, deployment and documentation tests.
$(READY): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[search,dev,dev-deploy,dev-docs]'
	touch $@ $(READY_CHECK) $(READY_DEMO)

demo: $(READY_DEMO)
	$(BIN)/tinynet search --preset demo

# Runs linters and the quick tests of every package in parallel; one minute on two cores.
check: $(READY_CHECK)
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint quick

# Runs the tests marked quick; lists the skipped files at the end.
quick: $(READY_CHECK)
	$(BIN)/python -m pytest --quick

test: $(READY)
	$(MAKE) --no-print-directory lint PYRIGHT_FLAGS=--warnings
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# The kill table: kills a search at every named point and at random; 20 minutes on two CPU cores.
test-chaos: $(READY)
	$(BIN)/python -m pytest -m chaos tests/chaos
	$(BIN)/python -m benchmarks.docs_tables

# A secured cluster of three hosts, one of which gets disconnected; 15 minutes. The hosts are
# network namespaces, which require root; also requires PostgreSQL.
test-cluster: $(READY)
	$(BIN)/python -m pytest -m hosts tests/hosts

# Heads of Ray that start slowly or are killed during a search; five minutes.
test-heads: $(READY)
	$(BIN)/python -m pytest -m heads tests/deploy

# Runs the tests that require a real PostgreSQL server: apt-get install postgresql.
test-postgres: $(READY)
	$(BIN)/python -m pytest -m postgres tests/tracking

# Without the extras dev-deploy and dev-docs, pyright warns about imports that it cannot resolve.
# `make test` installs the extras and turns warnings into errors.
lint: $(READY_CHECK)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/check_language.py
	$(BIN)/pyright $(PYRIGHT_FLAGS)

# The documentation as a site in site/; a broken link or anchor is an error.
docs: $(READY)
	$(BIN)/python tools/write_reference.py
	$(BIN)/zensical build --strict --clean

bench: $(READY)
	$(BIN)/python -m benchmarks.run

# Compares training with timm's components and with the limits of the hardware; about ten minutes on
# two CPU cores.
bench-train: $(READY)
	$(BIN)/python -m benchmarks.run train_speed train_data

# Measures the driver's overhead for growing searches, with trials that take no time and a real
# MLflow server; about five minutes.
bench-scale: $(READY)
	$(BIN)/python -m benchmarks.run search_scale

# Records the output of the demo and draws its frontier; four minutes.
bench-demo: $(READY)
	$(BIN)/python -m benchmarks.demo_output

# Runs everything that requires a GPU, in less than eight minutes.
gpu-check: $(READY)
	$(BIN)/python -m benchmarks.gpu.check

clean:
	rm -rf $(VENV) searches
