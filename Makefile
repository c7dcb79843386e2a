# Everything here sets up .venv by itself; only python3 (3.11 or newer), pip and make are needed.
VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
EXTRAS := torch,jax,optimistix,examples,test,dev

# The problems here are small: threads inside one product cost more than they bring, and two test workers share the cores.
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test test-all test-gpu check bench bench-docs docs clean

help:
	@echo "make demo      power flow of the IEEE cases on three backends, and a short digits run"
	@echo "make test      the test-suite, as CI runs it"
	@echo "make test-all  also the exhaustive tests, with ten times the random examples"
	@echo "make test-gpu  the tests that compare a GPU with the CPU; needs torch and jax built for it"
	@echo "make check     format, lint, types"
	@echo "make bench     the benchmarks beside other libraries, reduced, as tables and JSON in output/"
	@echo "make bench-docs  all of them, an hour or so; writes docs/benchmarks.md and its figures"
	@echo "make docs      the documentation, in site/; warnings are errors"
	@echo "make clean     remove .venv, caches and output/"

$(READY): pyproject.toml constraints.txt
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

demo: $(READY)
	$(PYTHON) examples/power_flow.py
	$(PYTHON) examples/deq_digits.py --backend torch --epochs 5

test: $(READY)
	HYPOTHESIS_PROFILE=ci $(PYTHON) -m pytest -n 2

test-all: $(READY)
	HYPOTHESIS_PROFILE=thorough $(PYTHON) -m pytest -n 2 -m "not gpu"

test-gpu: $(READY)
	XLA_PYTHON_CLIENT_PREALLOCATE=false $(PYTHON) -m pytest -m gpu

check: $(READY)
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

bench: $(READY)
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS),bench]'
	$(PYTHON) -m benchmarks.run --jobs 2 --limit 20 --output output/benchmarks.json
	$(PYTHON) -m benchmarks.compiled --sizes 1 10 100

bench-docs: $(READY)
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS),bench]'
	$(PYTHON) -m benchmarks.run --full --output output/benchmarks-full.json
	$(PYTHON) -m benchmarks.report output/benchmarks-full.json --docs docs

docs: $(READY)
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS),docs]'
	$(PYTHON) -m mkdocs build --strict

clean:
	rm -rf $(VENV) output build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
