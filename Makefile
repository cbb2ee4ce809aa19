# Everything a person needs to set Naiad up, run it and check it. Running a step again is quick:
# stamp files in .venv remember what pyproject.toml and constraints.txt asked for last time.
#
#   PYTHON=python3.12      the interpreter for a new .venv (3.11 or newer)
#   ARGS="--http-port 80"  more options for `naiad serve` or the benchmarks
#   PYTEST_ARGS="-k onnx"  more options for pytest

PYTHON ?= python3
PYTEST_ARGS ?= -n auto
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# The same folder that `naiad fetch` uses by itself; it is outside the tree and outlives it.
CACHE := $(or $(NAIAD_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/naiad)
REPOSITORY := $(CACHE)/examples

# Where this is set, each server of a test compiles all of Naiad's modules anew: a third of its start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help serve models test lint types arrows tests test-gpu bench bench-gpu clean

say = @printf '\n== %s\n'

help: ## Show these lines
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

serve: models ## Set up, fetch the example models, start the server
	$(say) "Server with the models in $(REPOSITORY)"
	@exec $(BIN)/naiad serve --model-repository "$(REPOSITORY)" $(ARGS)

models: .venv/installed ## Fetch the example models into a cache outside the tree
	$(say) "Example models: fetched once, checked by sha256"
	@$(BIN)/naiad fetch --source model_repository --into "$(REPOSITORY)" --cache "$(CACHE)"

test: lint types arrows tests ## Set up and run every check: lint, types, import rules, tests

lint: .venv/installed-dev ## Style and likely mistakes (ruff)
	$(say) "Lint: ruff check"
	@$(BIN)/ruff check
	$(say) "Format: ruff format --check"
	@$(BIN)/ruff format --check

types: .venv/installed-dev ## Types (mypy, strict)
	$(say) "Types: mypy"
	@$(BIN)/mypy --num-workers 2

arrows: .venv/installed-dev ## Which package may import which (import-linter)
	$(say) "Import rules: lint-imports"
	@$(BIN)/lint-imports

tests: .venv/installed-dev models ## Tests (pytest)
	$(say) "Tests: pytest"
	@$(BIN)/pytest $(PYTEST_ARGS)

test-gpu: .venv/installed-dev ## Tests that need an NVIDIA GPU; `make test` skips them without one
	$(say) "CUDA for Python"
	@$(PIP) install --quiet -c constraints.txt --group gpu
	$(say) "Tests on the GPU: pytest"
	@$(BIN)/pytest -n0 tests/gpu tests/unit/llm/gpu

bench-gpu: .venv/installed-dev ## A language model's speed on a GPU, with random weights; see docs/llm_gpu.md
	$(say) "Benchmark on the GPU"
	@$(BIN)/python -m benchmarks.llm_gpu $(ARGS)

bench: .venv/installed-dev models ## Load tests; see docs/performance.md
	$(say) "Benchmarks"
	@$(BIN)/python -m benchmarks $(ARGS)

clean: ## Remove what was built here; the cache of models stays
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find server backends ensembles proto tests -name __pycache__ -type d -prune -exec rm -rf {} +

# pip reads dependency groups from 25.1 on.
.venv/created:
	$(say) "Environment: .venv with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Naiad needs Python 3.11 or newer; $(PYTHON) is: $$($(PYTHON) --version 2>&1)"; \
		echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv .venv
	@$(PIP) install --quiet --upgrade -c constraints.txt 'pip>=25.1'
	@touch $@

.venv/installed: .venv/created pyproject.toml constraints.txt
	$(say) "Install: Naiad with its ONNX and LLM backends and what the examples need"
	@$(PIP) install -c constraints.txt -e '.[onnx,llm,torch,examples]'
	@touch $@

# Most of the modules of these packages are never imported: Python compiles those that are.
.venv/installed-dev: .venv/installed
	$(say) "Install: what the checks need"
	@$(PIP) install --no-compile -c constraints.txt --group dev
	@touch $@
