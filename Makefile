# All commands for readers, for rerunning the study and for CI; `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
PROFILE ?= smoke
# Notebooks that run in parallel: one per core, or, of those that use a GPU, RUNS_PER_GPU on each GPU; empty: as many as
# d3d/study/graph.py finds sensible.
CORES ?= all
RUNS_PER_GPU ?=
# Seeds to run, such as "0 1"; empty: all. A machine without permanent storage runs all experiments of a few seeds at a
# time.
SEEDS ?=
# A folder of profiles: `make study` submits its runs as jobs of a cluster with these settings; empty: runs them here.
CLUSTER ?=
BIN := .venv/bin
# Prints one line per finished notebook; reruns what is older than its stamp (see Snakefile) and what a killed run left
# incomplete. flock replaces Snakemake's own lock, because it is released when its holder is killed.
FLAGS := --quiet host reason rules --rerun-triggers mtime --rerun-incomplete --nolock
LOCK := $(if $(shell command -v flock),flock --nonblock --conflict-exit-code 75 --close .venv/lock)
# A variable's value as one word of the shell, whatever it holds: make expands nothing in it, nor does the shell.
quoted = '$(subst ','\'',$(value $(1)))'
# Recipes get their variables from make, which would expand their values again to export them.
unexport PROFILE SEEDS CORES RUNS_PER_GPU CLUSTER
SMOKE := smoke
define snakemake
set -o pipefail; \
  $(LOCK) $(BIN)/python -m d3d.study.graph --cores=$(call quoted,CORES) --runs-per-gpu=$(call quoted,RUNS_PER_GPU) \
  $(if $(value $(3)),--cluster=$(call quoted,$(3))) \
  -- $(BIN)/snakemake $(FLAGS) $(if $(value $(3)),--quiet host reason) --config profile=$(call quoted,$(1)) $(if $(value SEEDS),seeds=$(call quoted,SEEDS)) -- $(2) 2>&1 \
  | $(BIN)/python -m d3d.study.follow || \
  { [ $$? -ne 75 ] || echo "another make is running a study in this folder: wait for it or stop it"; exit 1; }
endef
# One test process per core, each on one thread (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal
export PATH := $(CURDIR)/$(BIN):$(PATH)
# One environment for make, notebooks and tests, isolated from packages of the user and of other projects.
export PYTHONNOUSERSITE := 1
unexport PYTHONPATH

.PHONY: help book study test test-all test-slurm bench lint pdf serve readme cells clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/lock: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "Python 3.11 to 3.13 is needed, this is %d.%d: make PYTHON=python3.12 …" % v)'
	@echo "creating .venv from requirements.lock (once; PyTorch with CUDA takes several GB)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || { echo "python3 needs its venv module: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@cp requirements.lock $@

book: .venv/lock ## run missing and stale experiments of the smoke study, execute the chapters, build book/_build/html
	@$(call snakemake,SMOKE,book)
	@$(BIN)/python -m d3d report claims
	@echo "book: $(CURDIR)/book/_build/html/index.html"

study: .venv/lock ## run missing and stale experiments of PROFILE=NAME, a file of notebooks/params (default smoke), into results/NAME; with CLUSTER=slurm as jobs of a cluster
	@$(call snakemake,PROFILE,study,CLUSTER)

test: .venv/lock ## run the fast tests, as before every commit
	@$(PYTEST) -m "not slow"

test-all: .venv/lock ## run all tests, also the slow ones: killed runs, whole workflows, the browser
	@$(PYTEST)

test-slurm: .venv/lock ## run a small study as jobs of a real SLURM, started on this machine for the test (needs root)
	@$(BIN)/python -m tests.slurm

bench: .venv/lock ## measure speed relative to other implementations; prints it and writes records to results/local/bench
	@$(BIN)/python benchmarks/bench.py

lint: .venv/lock ## check code and notebooks with ruff, and that notebooks have no outputs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/nbstripout --verify notebooks/*/*.ipynb

pdf: .venv/lock ## print the built book into book/_build/d3d-reproduced.pdf (needs Chromium)
	@$(BIN)/python -m d3d.report.pdf

serve: ## serve the built book at http://localhost:8000
	@$(BIN)/python -m http.server --bind localhost --directory book/_build/html 8000

readme: .venv/lock ## write the verdicts and pictures of README.md from the records
	@$(BIN)/python -m d3d report readme
	@$(BIN)/python -m d3d.pictures

cells: .venv/lock ## write the parameter cells of the notebooks from the schema
	@$(BIN)/python -m d3d.study.experiments

clean: ## remove the built book and the smoke results, not .venv or published studies
	rm -rf book/_build book/chapters book/generated results/smoke .snakemake
