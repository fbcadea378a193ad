"""Hydra launchers that run jobs one after the other in this process, and that also train jobs in stacks."""

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, configure_log, run_job
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from linear_lab import UserError
from linear_lab.compat import without_collection
from linear_lab.runs.log import log_to_file
from linear_lab.sweep.composer import Composer, Patcher

if TYPE_CHECKING:
    import polars as pl

LOG = "stacks.log"  # in the sweep's folder: messages of the libraries while stacks are trained


class LocalLauncher(Launcher):
    """Runs one job after the other in this process.

    Hydra's own launcher composes the config of each job separately, which takes 0.2 s per job; this one composes once
    per choice of groups.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        loader = hydra_context.config_loader
        self.patcher = Patcher(lambda lines: loader.load_sweep_config(config, lines), loader.get_group_options)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        jobs = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            cfg = self.compose(overrides)
            with open_dict(cfg):
                cfg.hydra.job.id = cfg.hydra.job.num = number
            jobs.append(run_job(self.task_function, cfg, "hydra.sweep.dir", "hydra.sweep.subdir", self.hydra_context))
            configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
            gc.collect()  # a Trainer is part of a reference cycle: memory would grow by 0.4 MB per job
        return jobs

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Compose the config of a job; the result equals that of Hydra's ``load_sweep_config``."""
        patches = [self.patcher.parse(line) for line in overrides]
        cfg = self.patcher.config(patches)
        of_hydra = [patch.line for patch in patches if patch.key.startswith(("hydra.", "hydra/"))]
        of_task = [patch for patch in patches if patch.line not in of_hydra]
        with open_dict(cfg):
            dirname = cfg.hydra.job.config.override_dirname
            lines = sorted(patch.line for patch in of_task if patch.key not in dirname.exclude_keys)
            cfg.hydra.job.override_dirname = dirname.item_sep.join(lines).replace("=", dirname.kv_sep)
            cfg.hydra.overrides.task = [patch.line for patch in of_task]
            cfg.hydra.overrides.hydra = [*self.config.hydra.overrides.hydra, *of_hydra]
        return cfg


class StackedLauncher(LocalLauncher):
    """Trains jobs that differ in numbers alone as a stack, by `train_stacks`, and other jobs as LocalLauncher does.

    conf/hydra/launcher/stacked.yaml describes the arguments. ``notes`` are lines to print at the end of the sweep.
    """

    def __init__(self, keep: int, rows: int, memory: int, compile: bool | str, history: int, limit: int) -> None:
        self.keep, self.rows, self.memory = keep, rows, memory
        self.compile, self.history, self.limit = compile, history, limit
        self.notes: list[str] = []

    def check(self) -> None:
        for name, low in (("keep", 0), ("rows", 0), ("memory", 1), ("history", 0), ("limit", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise UserError(f"hydra.launcher.{name}={value}: must be a whole number of at least {low}")
        if self.compile not in (True, False, "auto"):
            raise UserError(f"hydra.launcher.compile={self.compile}: choose auto, true or false")

    def train_stacks(
        self, folder: Path, jobs: "pl.DataFrame", composer: Composer, progress: Callable[[int, int, int, int], None]
    ) -> None:
        """Train those of the jobs, rows of the sweep's plan, that can be stacked."""
        if self.config.hydra.sweeper.get("prune"):
            self.notes = [f"one by one  {len(jobs)} jobs: hydra.sweeper.prune=true"]
            return
        with without_collection():
            from linear_lab.sweep.stacks import Stacks
        stacks = Stacks(folder, self.memory << 20, self.compile, self.history, progress)
        try:
            with log_to_file(folder / LOG):
                stacks.train(jobs, composer)
        finally:
            self.notes = stacks.summary()
