# make test, make demo, make bench: each sets up what it needs. PYTHON=python3.12 chooses another one.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PY = $(abspath $(BIN)/python)

.PHONY: all programs venv tools native test demo bench lint wheel clean

all: native

# Debian packages that tests and benchmarks use, where we may install them.
programs:
	@sh .ci/programs

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || sh .ci/programs python3-venv
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check 'setuptools>=77' 'cffi>=1.15' uvloop
	@touch $@

# What only tests and lint use: the demo and the benchmarks do not wait for it.
$(VENV)/.tools: $(VENV)/.ready
	$(BIN)/pip install -q --disable-pip-version-check pytest hypothesis pytest-timeout pytest-xdist gunicorn uvicorn mypy ruff build
	@touch $@

venv: $(VENV)/.ready

tools: $(VENV)/.tools

native: venv
	$(PY) setup.py -q build_native --werror

test: programs native tools
	$(PY) -m pytest tests -n 2 --dist loadfile

demo: native
	@sh .ci/programs gcc libc6-dev lighttpd wrk
	$(PY) -m bench.demo

bench: programs native
	$(PY) -m bench all --quick

lint: native tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p neatsock -p bench -p replicas

wheel: tools
	$(BIN)/python -m build

clean:
	rm -rf build dist *.egg-info $(VENV) neatsock/_native neatsock/_abi.py .pytest_cache .mypy_cache .ruff_cache .hypothesis
