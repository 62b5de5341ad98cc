# `make` lists what there is. ARGS goes to the program behind a target: make train ARGS="--run.rounds=20"
VENV ?= .venv
ARGS ?=
BIN := $(abspath $(VENV))/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder
export VENV
export PYTHONDONTWRITEBYTECODE := # programs that tests start would compile fedddp each time

.DEFAULT_GOAL := help
.PHONY: help setup train check test lint format docs tensorboard benchmark gpu clean

help: ## this list
	@echo "make TARGET [ARGS=...]"
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make or update the virtual environment (launch/setup.sh; does nothing when up to date)
	@launch/setup.sh

train: setup ## the quickstart: four clients, one per rank, on the embedded digits
	launch/quickstart.sh $(ARGS)

check: lint ## lint, types and the quick tests: before each commit
	$(PYTEST) -m "not slow" $(ARGS)

test: setup ## all tests
	$(PYTEST) $(ARGS)

lint: setup ## ruff and pyright, changing nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

format: setup ## ruff, changing files
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: setup ## the documentation as a site, in build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

tensorboard: setup ## TensorBoard over runs/
	launch/tensorboard.sh $(ARGS)

benchmark: setup ## a round of 100 small clients against a bare PyTorch loop
	$(BIN)/python -m benchmarks.run --workload w2 --against pytorch $(ARGS)

gpu: setup ## the tests and measurements that need a GPU, a table at the end
	$(BIN)/python -m benchmarks.gpu $(ARGS)

clean: ## remove caches and build leftovers (runs/ and the environment stay)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .coverage
	find fedddp tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
