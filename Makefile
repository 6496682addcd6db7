# Two commands do everything on a fresh machine with Python 3.11: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# uv installs, where it can do what pip is set to do, and pip elsewhere: see tools/install.py.
INSTALL := $(BIN)/python tools/install.py -c constraints.txt
READY_DEMO := $(VENV)/.ready-demo
READY := $(VENV)/.ready
# One thread a process: trials run side by side, one a core.
export OMP_NUM_THREADS := 1
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
# uv compiles no bytecode at set-up. Python does when a module is first imported, so it must be allowed to write.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo check test quick test-chaos test-cluster test-postgres lint bench bench-train bench-scale gpu-check clean
setup: $(READY)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(READY_DEMO): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[demo]'
	touch $@

# All that the demo needs is among it.
$(READY): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[search,dev]'
	touch $@ $(READY_DEMO)

demo: $(READY_DEMO)
	$(BIN)/tinynet search --preset demo

# In a minute on two cores: ruff, pyright and, beside them, the quick tests of every package.
check: $(READY)
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint quick

# The tests marked quick; what they leave out is listed at their end.
quick: $(READY)
	$(BIN)/python -m pytest --quick

test: $(READY) lint
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# The kill table: a search killed at every named point and at random; 20 minutes on two CPU cores.
test-chaos: $(READY)
	$(BIN)/python -m pytest -m chaos tests/chaos

# A secured cluster of three hosts (network namespaces: needs root and PostgreSQL), one of them cut off: a quarter of an hour.
test-cluster: $(READY)
	$(BIN)/python -m pytest -m hosts tests/hosts

# Of the tests those on a real PostgreSQL server, which has to be installed: apt-get install postgresql.
test-postgres: $(READY)
	$(BIN)/python -m pytest -m postgres tests/tracking

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(READY)
	$(BIN)/python -m benchmarks.run

# Training against timm's parts and the machine's floor: some ten minutes on two CPU cores.
bench-train: $(READY)
	$(BIN)/python -m benchmarks.run train_speed train_data

# The driver's own cost as searches grow, on trials that take no time, with a real MLflow server: some five minutes.
bench-scale: $(READY)
	$(BIN)/python -m benchmarks.run search_scale

# Everything that needs a GPU, in under eight minutes.
gpu-check: $(READY)
	$(BIN)/python -m benchmarks.gpu.check

clean:
	rm -rf $(VENV) searches
