# Everything runs in .venv, made on first use from any Python >= 3.11: no root, no server, no edit needed.
# PYTHON=/path/to/python chooses the interpreter, PYTEST_ARGS adds to pytest's command line, WORKERS=N tests run
# side by side: they wait more than they compute. BENCH_ARGS="--fresh" begins a broken-off benchmark anew.

BIN := .venv/bin
WORKERS ?= 3
export PYTHON

.PHONY: help demo test faults check bench bench-quick clean venv-demo venv-test

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

demo: venv-demo ## embedded server, master and slave: 99 jobs, shown live
	@$(BIN)/jobsched demo

test: check ## all checks, then the test suite with a sample of the faults
	$(BIN)/python -m pytest -m "not faults" -n $(WORKERS) $(PYTEST_ARGS)

faults: check ## the same with every fault there is
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

check: venv-test ## lint, format, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: venv-test ## measure ours and every peer, write docs/performance.md; goes on where it was broken off
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-quick: venv-test ## measure ours alone, in a minute
	$(BIN)/python -m benchmarks --quick $(BENCH_ARGS)

clean: ## remove .venv and caches
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

venv-demo:
	@tools/venv.sh embedded

venv-test:
	@tools/venv.sh embedded,test
