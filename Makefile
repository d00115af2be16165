# `make` alone lists what there is. Needs Python 3.11 or newer, make and git; the rest goes into .venv.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# The first of these that runs and is new enough; or say: make PYTHON=/path/to/python3.11 test
PYTHON ?= $(shell for python in python3.11 python3 python; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo "$$python" && break; done)
# Pinned and first, because an unpinned torch may bring gigabytes for a GPU that is not there.
TORCH ?= torch==2.13.0
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

# Annotated types and shapes are checked at every call, which takes two to three times as long: `make
# test` does it in the examples of the docstrings, which reach most of them; test-shapes everywhere.
SHAPES := --jaxtyping-packages=pyro_vae,beartype.beartype
FAST = -m "not slow" -n $(WORKERS) --dist worksteal

# The tensors here are small: a second thread in one operation waits longer than it works.
export OMP_NUM_THREADS ?= 1
export MPLBACKEND := Agg

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "pyro_vae needs Python 3.11 or newer and found none; say: make PYTHON=/path/to/python3.11"; \
		exit 1; fi
	@echo "==> making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "==> installing $(TORCH) into it (the largest part; a minute or more, once)"
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt "$(TORCH)"
	@echo "==> installing pyro_vae, its extras and what tests it, at the versions of constraints.txt"
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e ".[all,test]"
	@touch $@

.PHONY: install
install: $(STAMP) ## Make .venv with everything in it (the targets below do this by themselves)

.PHONY: demo
demo: $(STAMP) ## Compare amortized, per-datum and global guides on the digits; results in demo/
	@echo "==> comparing guides on scikit-learn's digits; tables, figures and models go to demo/"
	@$(BIN)/pyro-vae compare digits --epochs 150 --out demo

.PHONY: test
test: lint ## Lint, types and the fast tests: unit, doctests, README, examples at small size
	@echo "==> checking types with mypy, beside doctests with shapes checked, on $(WORKERS) processes"
	@$(BIN)/mypy & types=$$!; \
	$(BIN)/python -m pytest pyro_vae $(SHAPES) $(FAST) || { wait $$types || true; exit 1; }; \
	wait $$types
	@echo "==> running fast tests, README blocks and examples, on $(WORKERS) processes"
	@$(BIN)/python -m pytest tests $(FAST)

.PHONY: test-shapes
test-shapes: $(STAMP) ## The fast tests with annotated types and shapes checked at every call
	@echo "==> running fast tests with shapes checked, on $(WORKERS) processes"
	@$(BIN)/python -m pytest $(SHAPES) $(FAST)

.PHONY: test-isa
test-isa: $(STAMP) ## The fast tests under another instruction set, whose sums are rounded otherwise
	@echo "==> running fast tests under the instruction set of any x86-64 or ARM, on $(WORKERS) processes"
	@# The compiler keeps code that it made for another instruction set: hence a cache of its own.
	@ATEN_CPU_CAPABILITY=default TORCHINDUCTOR_CACHE_DIR=$(CURDIR)/build/compiled-isa \
		$(BIN)/python -m pytest $(FAST)

.PHONY: test-threads
test-threads: $(STAMP) ## The fast tests in one process, with two threads in each operation
	@echo "==> running fast tests with two threads, in one process"
	@OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m "not slow"

.PHONY: test-slow
test-slow: $(VENV)/docs ## The tests that train models, and a notebook
	@echo "==> running slow tests, on $(WORKERS) processes"
	@$(BIN)/python -m pytest -m slow -n $(WORKERS) --dist worksteal

.PHONY: trust
trust: $(STAMP) ## Log p(y) by the ladder against independent answers: 20 programs, 5 guides (SIZE=500 data each, PROGRAMS=all); tables in build/trust
	@$(BIN)/python -m tests.trust --size $(or $(SIZE),500) --workers $(WORKERS) $(PROGRAMS)

.PHONY: corpus
corpus: $(STAMP) ## Programs in the idioms of Pyro's users: what is right, refused or wrong (an hour; PROGRAMS="vae lda")
	@$(BIN)/python -W ignore -m tests.corpus $(PROGRAMS)

$(VENV)/docs: $(STAMP)
	@echo "==> installing what builds the pages"
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $@

.PHONY: docs
docs: $(VENV)/docs ## Build the pages, tutorials run afresh; open docs/_build/html/index.html
	@echo "==> building docs/_build/html, and running what its pages show"
	@$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

.PHONY: docs-serve
docs-serve: docs ## Build the pages and serve them at http://localhost:8000
	@echo "==> http://localhost:8000 (Ctrl-C ends it)"
	@$(BIN)/python -m http.server --bind localhost --directory docs/_build/html 8000

.PHONY: figures
figures: $(STAMP) ## Draw the figures of the pages anew, from the examples (half an hour)
	@for example in examples/*.py; do \
		echo "==> $$example"; $(BIN)/python "$$example" --out docs/figures; done

.PHONY: replications
replications: $(STAMP) ## Recompute published results; writes replications/RESULTS.md (under an hour)
	@$(BIN)/python -m replications replications

.PHONY: audits
audits: $(STAMP) ## Check other packages' numbers, each in an environment in build/; writes replications/AUDITS.md
	@$(BIN)/python -m replications audits

.PHONY: bench
bench: $(STAMP) ## Time what is said to be fast, as ratios in one run; writes benchmarks/RESULTS.md (DEVICE=cuda: on a GPU)
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e ".[bench]" || echo "NumPyro is left out"
	@$(BIN)/python benchmarks/run.py $(if $(DEVICE),--device $(DEVICE))

.PHONY: lint
lint: $(STAMP) ## Check style and format with ruff
	@echo "==> checking style and format with ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

.PHONY: format
format: $(STAMP) ## Format, and mend what ruff can mend
	@echo "==> formatting with ruff"
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: types
types: $(STAMP) ## Check types with mypy --strict
	@echo "==> checking types with mypy"
	@$(BIN)/mypy

# An environment of its own in build/: what a user has who installs the wheel, or other versions.
.PHONY: release
release: $(STAMP) ## Build wheel and sdist in dist/, and try the wheel in environments with and without extras
	@rm -rf dist && $(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e ".[release]"
	@echo "==> building dist/"
	@$(BIN)/python -m hatchling build
	@for extras in "" "[all,onnx]"; do \
		echo "==> trying pyro-vae$$extras in an empty environment"; \
		rm -rf build/try && $(PYTHON) -m venv build/try; \
		build/try/bin/pip install -qq --disable-pip-version-check -c constraints.txt \
			"$(TORCH)" "$$(echo dist/*.whl)$$extras"; \
		(cd build && try/bin/python -I ../tests/helpers/minimum.py $$extras); done

.PHONY: test-lowest
test-lowest: $(STAMP) ## The fast tests with the lowest versions that pyproject.toml promises
	@rm -rf build/lowest && $(PYTHON) -m venv build/lowest
	@$(BIN)/python tests/helpers/versions.py > build/lowest/constraints.txt
	@echo "==> installing the lowest versions"
	@build/lowest/bin/pip install -qq --disable-pip-version-check -c build/lowest/constraints.txt -e ".[all,test]"
	@build/lowest/bin/python -m pytest -o filterwarnings=default $(FAST)

.PHONY: test-newest
test-newest: ## The fast tests with the newest versions there are: make PYTHON=python3.13 test-newest
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null || { \
		echo "the newest versions need Python 3.12 or newer, and '$(PYTHON)' is not one that runs here;" \
		"install one, and say: make PYTHON=python3.13 test-newest (or PYTHON=/path/to/python3.13)"; exit 1; }
	@rm -rf build/newest && $(PYTHON) -m venv build/newest
	@echo "==> installing the newest versions, on $$($(PYTHON) --version)"
	@build/newest/bin/pip install -qq --disable-pip-version-check -e ".[all,test]"
	@build/newest/bin/python -m pytest $(FAST)

.PHONY: coverage
coverage: $(STAMP) ## The share of lines that the fast tests run, and into CONTRIBUTING.md with it
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt coverage
	@rm -rf build/coverage && mkdir -p build/coverage
	@$(BIN)/python -m coverage run -m pytest -q $(FAST)
	@$(BIN)/python -m coverage combine -q
	@$(BIN)/python -m coverage report --skip-covered --sort=cover
	@sed -i "s/[0-9]*% when last measured/$$($(BIN)/python -m coverage report --format=total)% when last measured/" CONTRIBUTING.md

.PHONY: clean
clean: ## Remove .venv, demo/ and every cache
	@echo "==> removing $(VENV), demo/ and caches"
	@rm -rf $(VENV) demo build dist docs/_build docs/reference .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
