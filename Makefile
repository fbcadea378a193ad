PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
DEV := .venv/dev.installed
JAX := benchmarks/peers/.venv/installed
GROUPS := dev cluster loggers
FREEZE := $(BIN)/pip freeze --exclude pip --exclude setuptools --exclude linear_lab | sed 's/+cpu//'
ARGS ?=
LOGDIR ?= outputs

# Another interpreter than the one that made .venv makes it anew; without PYTHON=... the one there is stays.
ifneq ($(origin PYTHON),file)
ifneq ($(PYTHON),$(shell cat $(INSTALLED) 2>/dev/null))
.PHONY: $(INSTALLED)
endif
endif

# make takes any variable in silence: `make train lr=0.01` would train at the default rate.
UNKNOWN := $(filter-out ARGS LOGDIR PYTHON BIN INSTALLED DEV JAX FREEZE GROUPS SHELL MAKE%,\
  $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name))))
ifneq ($(UNKNOWN),)
$(error make knows ARGS, LOGDIR and PYTHON; what the command is to get goes into ARGS: \
make $(MAKECMDGOALS) ARGS="$(strip $(ARGS) $(foreach name,$(sort $(UNKNOWN)),$(patsubst args=%,%,$(name)=$($(name)))))")
endif

.DEFAULT_GOAL := help
.PHONY: help train sweep steps evaluate predict export leaderboard dashboard screenshots test docs cluster wheel loggers check style types structure format \
  bench peers digits lock clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
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

screenshots: $(DEV)  ## take the pictures of the dashboard that README shows anew (wants Chromium)
	@$(BIN)/python docs/screenshots.py

test: $(DEV)  ## run the tests (ARGS="-k resume")
	@$(BIN)/python -m pytest $(ARGS)

docs: $(DEV)  ## run every command of README and docs/, and compare what it prints with what the page says
	@$(BIN)/python -m pytest -m docs $(ARGS)

cluster: $(DEV) .venv/cluster.installed  ## run the tests of Slurm's local executor and of Ray, which it installs
	@$(BIN)/python -m pytest -n0 -m cluster $(ARGS)

wheel: $(DEV)  ## build sdist and wheel, install the wheel elsewhere, and run its commands
	@$(BIN)/python -m pytest -n0 -m wheel $(ARGS)

loggers: $(DEV) .venv/loggers.installed  ## run the tests of wandb and MLflow, which it installs
	@$(BIN)/python -m pytest -n0 -m loggers $(ARGS)

check: style types structure test  ## everything that CI checks

style: $(DEV)
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/lint-imports --no-logo

types: $(DEV)
	@$(BIN)/mypy

structure: $(DEV)  ## lines, longest function, import circles and so on, beside their goals
	@$(BIN)/python benchmarks/structure.py

format: $(DEV)  ## format the code, and mend what the linter can
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

bench: $(DEV)  ## start, steps, rows, sweeps, tables, the dashboard, against peers; ARGS=trainer=gpu or --quick
	@$(MAKE) --no-print-directory peers || echo "JAX could not be installed: its rows will say so" >&2
	@$(BIN)/python benchmarks $(ARGS)

peers: $(JAX)  ## install JAX, which bench compares with, into an environment of its own

$(JAX): benchmarks/peers/requirements.txt
	@rm -rf $(@D) && $(PYTHON) -m venv $(@D)
	@$(@D)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

digits: $(DEV)  ## digits of certified coefficients that the optimum and training reach
	@$(BIN)/python benchmarks/certified.py

# All is resolved at once, so that the versions agree and any groups can be installed together; then each group's lock gets
# what the group adds to requirements.lock.
lock: pyproject.toml  ## write requirements.lock and requirements-*.lock anew from pyproject.toml
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --upgrade pip
	@$(BIN)/pip install --quiet torch==2.13.0  # a newer one is gigabytes of CUDA
	@$(BIN)/pip install --quiet . hatchling editables $(addprefix --group ,$(GROUPS))
	@$(FREEZE) > .venv/all.lock && $(BIN)/pip uninstall --quiet --yes --requirement .venv/all.lock
	@$(BIN)/pip install --quiet --constraint .venv/all.lock . hatchling editables
	@$(FREEZE) > requirements.lock
	@for group in $(GROUPS); do \
	$(BIN)/pip install --quiet --constraint .venv/all.lock --group $$group && \
	$(FREEZE) | grep -vxFf requirements.lock > requirements-$$group.lock && \
	$(BIN)/pip uninstall --quiet --yes --requirement requirements-$$group.lock || exit 1; done

clean:  ## remove .venv and caches; outputs stay
	@rm -rf .venv benchmarks/peers/.venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(INSTALLED): requirements.lock pyproject.toml
	@echo "installing into .venv (once; later calls skip this)"
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@echo '$(PYTHON)' > $@

# What some targets want besides: the tests, the notebook and so on.
.venv/%.installed: requirements-%.lock $(INSTALLED)
	@echo "installing $< into .venv (once)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@
