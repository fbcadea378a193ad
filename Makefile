PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
DEV := .venv/dev.installed
JAX := benchmarks/peers/.venv/installed
WHEELS := $(wildcard .gpu-wheels/*.whl)
GROUPS := cluster dev loggers mutants notebook
FREEZE := $(BIN)/pip freeze --exclude pip --exclude setuptools --exclude linear_lab | sed 's/+cpu//'
ARGS ?=
LOGDIR ?= outputs

# If PYTHON=... names another interpreter than that of .venv, .venv is made again.
ifneq ($(origin PYTHON),file)
ifneq ($(PYTHON),$(shell cat $(INSTALLED) 2>/dev/null))
.PHONY: $(INSTALLED)
endif
endif

# make accepts any variable: without this check, `make train lr=0.01` would train with the default learning rate.
UNKNOWN := $(filter-out ARGS LOGDIR PYTHON BIN INSTALLED DEV JAX WHEELS FREEZE GROUPS SHELL MAKE%,\
  $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name))))
ifneq ($(UNKNOWN),)
$(error make accepts ARGS, LOGDIR and PYTHON only; pass overrides in ARGS: \
make $(MAKECMDGOALS) ARGS="$(strip $(ARGS) $(foreach name,$(sort $(UNKNOWN)),$(patsubst args=%,%,$(name)=$($(name)))))")
endif

.DEFAULT_GOAL := help
.PHONY: help train sweep steps evaluate predict export leaderboard dashboard screenshots test test-all coverage mutants docs cluster wheel loggers \
  notebook notebook-test notebook-save check style types structure format bench gpu gpu-wheels peers digits lock clean

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

export: $(INSTALLED)  ## export a run as a file that predicts without linear_lab (ARGS="run=outputs/runs/<id>")
	@$(BIN)/python -m linear_lab.export $(ARGS)

dashboard: $(INSTALLED)  ## open TensorBoard on all runs (LOGDIR=outputs/runs/<id> for one)
	@exec $(BIN)/python -m linear_lab.dashboard "$(LOGDIR)" $(ARGS)

screenshots: $(DEV)  ## take the pictures of the dashboard in README again (needs Chromium)
	@$(BIN)/python docs/screenshots.py

test: $(DEV)  ## run the quick tests, in three minutes (ARGS="-k resume")
	@$(BIN)/python -m pytest $(ARGS)

# The slow tests wait for processes, so that one worker more than there are cores saves time.
test-all: $(DEV)  ## run the tests marked slow too, in eight minutes
	@$(BIN)/python -m pytest --slow --numprocesses=$$(($$(getconf _NPROCESSORS_ONLN) + 1)) $(ARGS)

# The test that is left out limits the size of files, which hits the files of coverage too.
coverage: $(DEV)  ## run all tests, and show the lines and branches of src that none of them reaches
	@$(BIN)/coverage erase
	@$(BIN)/python -m coverage run -m pytest --slow --deselect tests/test_results.py::test_a_full_disk_is_told_and_leaves_the_rows_there_were
	@$(BIN)/coverage combine --quiet && $(BIN)/coverage report
mutants: $(DEV) .venv/mutants.installed  ## change src one expression at a time, and show the changes that no test notices
	@$(BIN)/python tests/mutants.py $(ARGS)

docs: $(DEV)  ## run every command of README and docs/, and compare its output with that on the page
	@$(BIN)/python -m pytest -m docs $(ARGS)

cluster: $(DEV) .venv/cluster.installed  ## install Ray, and run the tests of Ray and of Slurm's local executor
	@$(BIN)/python -m pytest -n0 --slow -m cluster $(ARGS)

wheel: $(DEV)  ## build sdist and wheel, install the wheel in another environment, and run its commands
	@$(BIN)/python -m pytest -n0 -m wheel $(ARGS)

loggers: $(DEV) .venv/loggers.installed  ## install wandb and MLflow, and run their tests
	@$(BIN)/python -m pytest -n0 -m loggers $(ARGS)

notebook: $(INSTALLED) .venv/notebook.installed  ## open the tutorial in JupyterLab, which it installs
	@exec $(BIN)/jupyter lab --ip=127.0.0.1 notebooks/backpropagation.ipynb $(ARGS)

notebook-test: $(DEV) .venv/notebook.installed  ## execute the tutorial, compare its numbers, and move its slider
	@$(BIN)/python -m pytest -n0 -m notebook $(ARGS)

notebook-save: $(INSTALLED) .venv/notebook.installed  ## execute the tutorial, and keep its outputs in the file
	@$(BIN)/python notebooks/execute.py

check: style types structure test  ## format, lint, types, structure and tests (CI also runs docs, cluster, wheel, loggers, notebook-test)

style: $(DEV)
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/lint-imports --no-logo

types: $(DEV)
	@$(BIN)/mypy

structure: $(DEV)  ## measure lines, longest function, import circles and so on, and compare them with goals
	@$(BIN)/python benchmarks/structure.py

format: $(DEV)  ## format the code, and fix what the linter can fix
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

bench: $(DEV)  ## measure speed, compared with peers, in ten minutes (ARGS=--quick, trainer=gpu or --write)
	@$(MAKE) --no-print-directory peers || echo "JAX could not be installed, so its rows will say that it is missing" >&2
	@$(BIN)/python benchmarks $(ARGS)

# With the wheels of gpu-wheels, PYTHON itself is used, which has PyTorch and Lightning, and .venv is not made.
gpu: $(if $(WHEELS),.gpu-wheels/site,$(DEV))  ## run all that wants a GPU, in eight minutes (ARGS="trainer=cpu side=64" tries it without one)
	@$(if $(WHEELS),PYTHONPATH="$(CURDIR)/.gpu-wheels/site:$(CURDIR)/src" $(PYTHON),$(BIN)/python) benchmarks/gpu.py $(ARGS)

gpu-wheels:  ## collect the wheels that make gpu needs on a machine without a network
	@$(PYTHON) benchmarks/gpu_wheels.py $(ARGS)

.gpu-wheels/site: $(WHEELS)
	@rm -rf $@ && $(PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --target $@ $^
	@touch $@

peers: $(JAX)  ## install JAX, with which bench compares, into a separate environment

$(JAX): benchmarks/peers/requirements.txt
	@rm -rf $(@D) && $(PYTHON) -m venv $(@D)
	@$(@D)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

digits: $(DEV)  ## count the correct digits of certified coefficients, for the optimum and for training
	@$(BIN)/python benchmarks/certified.py

# All is resolved at once, so that the versions agree and any groups can be installed together; then each group's lock gets
# what the group adds to requirements.lock.
lock: pyproject.toml  ## write the lock files again from pyproject.toml
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --upgrade pip
	@$(BIN)/pip install --quiet torch==2.13.0  # newer versions install gigabytes of CUDA
	@$(BIN)/pip install --quiet . hatchling editables $(addprefix --group ,$(GROUPS))
	@$(FREEZE) > .venv/all.lock && $(BIN)/pip uninstall --quiet --yes --requirement .venv/all.lock
	@$(BIN)/pip install --quiet --constraint .venv/all.lock . hatchling editables
	@$(FREEZE) > requirements.lock
	@for group in $(GROUPS); do \
	$(BIN)/pip install --quiet --constraint .venv/all.lock --group $$group && \
	$(FREEZE) | grep -vxFf requirements.lock > requirements-$$group.lock && \
	$(BIN)/pip uninstall --quiet --yes --requirement requirements-$$group.lock || exit 1; done

clean:  ## delete .venv and caches, but not outputs
	@rm -rf .venv .coverage* mutants benchmarks/peers/.venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(INSTALLED): requirements.lock pyproject.toml
	@echo "installing into .venv (once; later calls skip this)"
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@echo '$(PYTHON)' > $@

# The packages that some targets need besides: those of the tests, of the loggers and so on.
.venv/%.installed: requirements-%.lock $(INSTALLED)
	@echo "installing $< into .venv (once)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@
