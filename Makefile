PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
JAX := benchmarks/peers/.venv/installed
JUPYTER := $(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements-notebook.lock
ARGS ?=
LOGDIR ?= outputs

# Another interpreter than the one that made .venv makes it anew; without PYTHON=... the one there is stays.
ifneq ($(origin PYTHON),file)
ifneq ($(PYTHON),$(shell cat $(INSTALLED) 2>/dev/null))
.PHONY: $(INSTALLED)
endif
endif

# make takes any variable in silence: `make train lr=0.01` would train at the default rate.
UNKNOWN := $(filter-out ARGS LOGDIR PYTHON BIN INSTALLED JAX JUPYTER SHELL MAKE%,\
  $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name))))
ifneq ($(UNKNOWN),)
$(error make knows ARGS, LOGDIR and PYTHON; what the command is to get goes into ARGS: \
make $(MAKECMDGOALS) ARGS="$(strip $(ARGS) $(foreach name,$(sort $(UNKNOWN)),$(patsubst args=%,%,$(name)=$($(name)))))")
endif

.DEFAULT_GOAL := help
.PHONY: help train sweep steps evaluate predict export leaderboard dashboard screenshots test cluster wheel loggers notebook notebook-test notebook-save \
  check style types structure format bench peers digits lock clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'ARGS="optimizer=adam optimizer.lr=0.1" passes overrides on; PYTHON=python3.12 chooses the interpreter'

train: $(INSTALLED)  ## train a run (ARGS="optimizer=adam ...")
	@$(BIN)/python -m linear_lab.train $(ARGS)

sweep: $(INSTALLED)  ## train many runs (ARGS="name=study1 optimizer=sgd,adam ...")
	@$(BIN)/python -m linear_lab.train -m $(ARGS)

leaderboard: $(INSTALLED)  ## rank the runs of a sweep again (ARGS="sweep=outputs/sweeps/<name>")
	@$(BIN)/python -m linear_lab.leaderboard $(ARGS)

steps: $(INSTALLED)  ## show the seven steps of backpropagation on the tutorial's example
	@$(BIN)/python -m linear_lab.train experiment=notebook $(ARGS)

evaluate: $(INSTALLED)  ## measure a run again (ARGS="run=outputs/runs/<id>")
	@$(BIN)/python -m linear_lab.evaluate $(ARGS)

predict: $(INSTALLED)  ## predict with a run (ARGS="run=outputs/runs/<id> x=[5,6]")
	@$(BIN)/python -m linear_lab.predict $(ARGS)

export: $(INSTALLED)  ## write a run as a file that predicts by itself (ARGS="run=outputs/runs/<id>")
	@$(BIN)/python -m linear_lab.export $(ARGS)

dashboard: $(INSTALLED)  ## open TensorBoard on all runs (LOGDIR=outputs/runs/<id> for one)
	@exec $(BIN)/python -m linear_lab.dashboard "$(LOGDIR)" $(ARGS)

screenshots: $(INSTALLED)  ## take the pictures of the dashboard that README shows anew (wants Chromium)
	@$(BIN)/python docs/screenshots.py

test: $(INSTALLED)  ## run the tests (ARGS="-k resume")
	@$(BIN)/python -m pytest $(ARGS)

cluster: $(INSTALLED)  ## run the tests of Slurm's local executor and of Ray, which it installs
	@$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements-cluster.lock
	@$(BIN)/python -m pytest -n0 -m cluster $(ARGS)

wheel: $(INSTALLED)  ## build sdist and wheel, install the wheel elsewhere, and run its commands
	@$(BIN)/python -m pytest -n0 -m wheel $(ARGS)
loggers: $(INSTALLED)  ## run the tests of wandb and MLflow, which it installs
	@$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements-loggers.lock
	@$(BIN)/python -m pytest -n0 -m loggers $(ARGS)

notebook: $(INSTALLED)  ## open the tutorial in JupyterLab, which it installs
	@$(JUPYTER)
	@exec $(BIN)/jupyter lab --ip=127.0.0.1 notebooks/backpropagation.ipynb $(ARGS)

notebook-test: $(INSTALLED)  ## execute the tutorial, compare its numbers, and move its slider
	@$(JUPYTER)
	@$(BIN)/python -m pytest -n0 -m notebook $(ARGS)

notebook-save: $(INSTALLED)  ## execute the tutorial and keep its outputs in the file
	@$(JUPYTER)
	@$(BIN)/python notebooks/execute.py

check: style types structure test  ## everything that CI checks

style: $(INSTALLED)
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/lint-imports --no-logo

types: $(INSTALLED)
	@$(BIN)/mypy

structure: $(INSTALLED)  ## lines, longest function, import circles and so on, beside their goals
	@$(BIN)/python benchmarks/structure.py

format: $(INSTALLED)  ## format the code, and mend what the linter can
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

bench: $(INSTALLED)  ## start, steps, rows, sweeps, tables, the dashboard, against peers; ARGS=trainer=gpu or --quick
	@$(MAKE) --no-print-directory peers || echo "JAX could not be installed: its rows will say so" >&2
	@$(BIN)/python benchmarks $(ARGS)

peers: $(JAX)  ## install JAX, which bench compares with, into an environment of its own

$(JAX): benchmarks/peers/requirements.txt
	@rm -rf $(@D) && $(PYTHON) -m venv $(@D)
	@$(@D)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

digits: $(INSTALLED)  ## digits of certified coefficients that the optimum and training reach
	@$(BIN)/python benchmarks/certified.py

lock: pyproject.toml  ## write requirements.lock anew from pyproject.toml
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet torch==2.13.0  # a newer one is gigabytes of CUDA
	@$(BIN)/python -c 'import tomllib; d = tomllib.load(open("pyproject.toml", "rb")); \
	print(*d["project"]["dependencies"], *d["dependency-groups"]["dev"], *d["build-system"]["requires"], "editables", sep="\n")' \
	| $(BIN)/pip install --quiet --requirement /dev/stdin
	@$(BIN)/pip freeze --exclude pip --exclude setuptools | sed 's/+cpu//' > requirements.lock
	@$(BIN)/pip install --quiet --constraint requirements.lock hydra-ray-launcher
	@$(BIN)/pip freeze --exclude pip --exclude setuptools | sed 's/+cpu//' | grep -vxFf requirements.lock > requirements-cluster.lock
	@$(BIN)/pip uninstall --quiet --yes --requirement requirements-cluster.lock
	@$(BIN)/python -c 'import tomllib; d = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	print(*d["wandb"], *d["mlflow"], sep="\n")' \
	| $(BIN)/pip install --quiet --constraint requirements.lock --constraint requirements-cluster.lock --requirement /dev/stdin
	@$(BIN)/pip freeze --exclude pip --exclude setuptools | sed 's/+cpu//' | grep -vxFf requirements.lock > requirements-loggers.lock
	@$(BIN)/pip uninstall --quiet --yes --requirement requirements-loggers.lock
	@$(BIN)/python -c 'import tomllib; d = tomllib.load(open("pyproject.toml", "rb")); print(*d["dependency-groups"]["notebook"], sep="\n")' \
	| $(BIN)/pip install --quiet --constraint requirements.lock --constraint requirements-cluster.lock \
	  --constraint requirements-loggers.lock --requirement /dev/stdin
	@$(BIN)/pip freeze --exclude pip --exclude setuptools | sed 's/+cpu//' | grep -vxFf requirements.lock > requirements-notebook.lock

clean:  ## remove .venv and caches; outputs stay
	@rm -rf .venv benchmarks/peers/.venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(INSTALLED): requirements.lock pyproject.toml
	@echo "installing into .venv (once; later calls skip this)"
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@echo '$(PYTHON)' > $@
