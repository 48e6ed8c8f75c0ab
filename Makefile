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
RELEASE := .venv-release
RELEASE_READY := $(RELEASE)/.ready
LOCK := requirements.lock
# Files of `make fast`: all of these but those that start delivery processes, databases or fresh interpreters by the dozen.
FAST := $(filter-out $(addsuffix .py,$(addprefix tests/test_,cli cli_runs docs tour demo_page session environment undocumented_uses imports datasets \
	walk_forward callback_run checkpoints new_framework) $(addprefix tests/delivery/test_,hostile_journals s3 lead \
	connections process other_servers promotion sessions store_contract plain_stores)), $(wildcard tests/test_*.py \
	tests/delivery/test_*.py)) tests/contents tests/mlflow_plugin/test_addresses.py tests/huggingface/test_metric_names.py
# What `make coverage` runs: everything but the fault matrix, whose trainers are killed before they can write what they ran.
COVERED := tests --ignore tests/faults --ignore tests/integrations/test_ray_tune.py

# The lock also pins what isolated builds use.
INSTALL := -m pip install --quiet -c $(LOCK) --build-constraint $(LOCK)

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup demo test faults soak scale servers integrations environments trainers check format bench docs lock newest clean fast matrix wheel coverage

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
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "not alone"
	$(BIN)/python -m pytest -m alone

fast: $(READY) ## run the pure and local tests: less than a minute
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not alone and not server" $(FAST) --ignore tests/contents/test_output.py

coverage: $(READY) ## measure which lines and branches the tests reach, child processes included
	rm -f .coverage*
	-$(BIN)/coverage run -m pytest -q -n 3 --dist worksteal -m "not alone" $(COVERED)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

matrix: $(READY) ## run the core and callback tests on Python 3.12 and 3.13, and on the oldest versions we allow (ON=floors for one)
	$(BIN)/python scripts/matrix.py $(ON)

wheel: $(RELEASE_READY) ## build the wheel and the sdist into dist/, hold that they are reproducible, try them on each Python
	$(RELEASE)/bin/python scripts/wheel.py

$(RELEASE_READY): pyproject.toml $(LOCK)
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install --quiet -c $(LOCK) --upgrade pip
	$(RELEASE)/bin/python $(INSTALL) --group build --group release
	@touch $@

faults: $(READY) ## run the fault matrix alone: killed processes, broken servers, full disks
	$(BIN)/python -m pytest tests/faults -n 3 --dist worksteal -m "not alone"
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

check: $(READY) ## lint, format check, spelling, types (ours, and as users see them), CI's files, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/mypy --strict --config-file= tests/typing
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
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
	$(NEWEST)/bin/python -m pytest -n 3 --dist worksteal -m "not alone"
	$(NEWEST)/bin/python -m pytest -m alone

clean: ## remove the environments and caches
	rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage* dist site
