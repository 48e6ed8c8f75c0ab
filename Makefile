PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH := .venv-bench
BENCH_READY := $(BENCH)/.ready
NEWEST := .venv-newest
TRAINERS := .venv-trainers
TRAINERS_READY := $(TRAINERS)/.ready
DOCS := .venv-docs
DOCS_READY := $(DOCS)/.ready
LOCK := requirements.lock
# The lock also pins what isolated builds use.
INSTALL := -m pip install --quiet -c $(LOCK) --build-constraint $(LOCK)

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup demo test faults soak scale servers integrations environments trainers check format bench docs lock newest clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

setup: $(READY) ## make .venv and install everything into it

$(READY): pyproject.toml $(LOCK)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c $(LOCK) --upgrade pip
	$(BIN)/python $(INSTALL) -e ".[all]" --group dev
	@touch $@

demo: $(READY) ## fine-tune a sentiment model, train a trading agent, load both back from the registry
	$(BIN)/python examples/demo.py

test: $(READY) ## run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not alone"
	$(BIN)/python -m pytest -m alone

faults: $(READY) ## run the fault matrix alone: killed processes, broken servers, full disks
	$(BIN)/python -m pytest tests/faults -n 2 --dist worksteal -m "not alone"
	$(BIN)/python -m pytest tests/faults -m alone

soak: $(READY) ## ten minutes of random kills, then count every point; 64 trainers at once; the large rows of the fault matrix
	$(BIN)/python tests/faults/soak.py
	$(BIN)/python tests/faults/scale.py 16 64
	SOAK=1 $(BIN)/python -m pytest tests/faults/test_processes_killed.py tests/faults/test_processes_together.py \
		tests/faults/test_damaged_journals.py tests/huggingface/test_model_environment.py

scale: $(READY) ## 1, 4, 16 and 64 trainers at once against one server with PostgreSQL; 1 and 8 on local SQLite
	$(BIN)/python tests/faults/scale.py
	$(BIN)/python tests/faults/scale.py --sqlite

servers: $(READY) ## deliver to MLflow servers of other versions: 2.22, 3.0, 3.10 and the newest
	$(BIN)/python scripts/other_servers.py

integrations: $(READY) ## run Lightning, XGBoost, LightGBM, Ray and Optuna through the plugin and our callbacks, with faults
	$(BIN)/python scripts/integrations.py

environments: $(READY) ## train in environments and with agents of other packages: SuperSuit, EnvPool, FinRL, SBX
	$(BIN)/python scripts/other_packages.py

trainers: $(TRAINERS_READY) ## test what the lock leaves out: ZeRO-3 of DeepSpeed in two processes, and SetFit
	$(TRAINERS)/bin/python -m pytest tests/huggingface/test_other_trainers.py -v

$(TRAINERS_READY): pyproject.toml $(LOCK)
	$(PYTHON) -m venv $(TRAINERS)
	$(TRAINERS)/bin/python -m pip install --quiet -c $(LOCK) --upgrade pip
	$(TRAINERS)/bin/python $(INSTALL) -e ".[huggingface]" --group trainers
	@touch $@

check: $(READY) ## lint, format check, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BENCH_READY) ## measure side by side with wandb, trackio, … and write benchmarks/RESULTS.md (ROWS=1,4 for some rows)
	$(BENCH)/bin/python -m benchmarks $(if $(ROWS),--rows $(ROWS))

$(BENCH_READY): pyproject.toml $(LOCK)
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet -c $(LOCK) --upgrade pip
	$(BENCH)/bin/python $(INSTALL) -e ".[all]" --group bench
	@touch $@

docs: $(DOCS_READY) ## build the documentation site in site/, and fail at a dead link
	$(DOCS)/bin/zensical build --clean --strict

$(DOCS_READY): pyproject.toml $(LOCK)
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet -c $(LOCK) --upgrade pip
	$(DOCS)/bin/python $(INSTALL) --group docs
	@touch $@

lock: $(READY) ## write requirements.lock; UPGRADE="peft mlflow" moves these, UPGRADE=all moves everything
	$(BIN)/python scripts/lock.py $(if $(UPGRADE),--upgrade $(UPGRADE))

newest: ## run the tests on the newest version of everything, and say which versions differ from the lock
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade pip
	$(NEWEST)/bin/python -m pip install --quiet -c constraints.txt -e ".[all]" --group dev
	@echo "newer than the lock:"
	$(NEWEST)/bin/python scripts/lock.py --compare
	$(NEWEST)/bin/python -m pytest -n 2 --dist worksteal -m "not alone"
	$(NEWEST)/bin/python -m pytest -m alone

clean: ## remove the environments and caches
	rm -rf $(VENV) $(BENCH) $(NEWEST) $(TRAINERS) $(DOCS) site .venv-servers .venv-environments .venv-integrations .mypy_cache
	rm -rf .ruff_cache .pytest_cache
