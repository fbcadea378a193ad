"""Launches the jobs of a sweep with one of Hydra's launchers, until each has ended or failed."""

import io
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import polars as pl
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig
from rich.console import Console

from linear_lab import UserError
from linear_lab.runs.atomic import refuse_link
from linear_lab.runs.folder import RESULT, is_held
from linear_lab.runs.record import ENDED
from linear_lab.sweep import page, plan, results
from linear_lab.sweep.inventory import read_jobs, stamp
from linear_lab.sweep.launchers import LocalLauncher, StackedLauncher
from linear_lab.terminal import layout


class Launches:
    """Launches jobs for one sweep command.

    Attributes:
        stacked: the launcher if it trains stacks, else None.
        processes: the number of jobs that run at once.
        steering: overrides of the sweep, which are added to those of each job.
        errors: error messages of the jobs that failed in this command, by name.
    """

    def __init__(self, folder: Path, screen: Console, config: DictConfig, **context: Any) -> None:
        self.folder, self.screen, self.config, self.context = folder, screen, config, context
        self.launcher = Plugins.instance().instantiate_launcher(config=config, **context)
        self.stacked = self.launcher if isinstance(self.launcher, StackedLauncher) else None
        self.in_process = isinstance(self.launcher, LocalLauncher)
        self.has_pool = "n_jobs" in config.hydra.launcher  # joblib
        self.processes: Any = config.hydra.launcher.get("n_jobs", 1 if self.in_process else os.cpu_count() or 1)
        self.steering: Sequence[str] = ()
        self.errors: dict[str, str] = {}

    def check(self) -> None:
        """Raise UserError for an argument of the launcher that is out of range."""
        if self.stacked:
            self.stacked.check()
        if type(self.processes) is not int or self.processes == 0:
            raise UserError(f"hydra.launcher.n_jobs={self.processes}: must be at least 1, or -1 for all cores")
        if self.processes < 0:
            import joblib

            self.processes = joblib.effective_n_jobs(self.processes)

    @property
    def stopped(self) -> bool:
        """Whether to launch no more jobs, since one has failed with fail_fast=true."""
        return bool(self.config.fail_fast and self.errors)

    @contextmanager
    def stacking(self) -> Iterator[None]:
        """Hold the lock for training stacks in the sweep's folder; wait while another process holds it."""
        if results.is_stacking(self.folder):
            self.screen.print("waiting  another command trains stacks of this sweep")
        with results.stacking(self.folder):
            yield

    def run(self, planned: pl.DataFrame) -> None:
        """Launch jobs until each has ended, has failed, or is run by another process.

        When a worker process is killed, the launcher may lose several jobs. The lost jobs that had not begun are
        launched again together; those that had begun are launched one by one, since one of them may be the cause.
        """
        before: dict[str, Any] = {}  # by job, the stamp of its record before its first launch
        skipped: set[str] = set()  # jobs that a launch did not run, as another process may have run them then
        while len(left := self.jobs_to_run(planned)) and not self.stopped:
            if results.is_stacking(self.folder) and not self.stacked:
                with self.stacking():  # that process may train these jobs
                    continue
            stamps = self._stamps(left)
            before = stamps | before
            begun = [name for name in stamps if stamps[name] != before[name]]
            batch = left.filter(name=begun[0]) if begun else left
            error = self.launch(batch)
            missing = self.jobs_to_run(batch)
            if error and begun:
                self.errors |= dict.fromkeys(missing["name"], f"its process ended unexpectedly ({error})")
            elif error and self._stamps(missing) == stamps:
                raise UserError(f"launch: the launcher started no job ({error}); try launch=local")
            elif not error:
                self.errors |= dict.fromkeys(skipped.intersection(missing["name"]), "it did not run")
                skipped.update(missing["name"])

    def _stamps(self, jobs: pl.DataFrame) -> dict[str, Any]:
        return {name: stamp(self.folder / name / RESULT) for name in jobs["name"]}

    def launch(self, jobs: pl.DataFrame) -> str | None:
        """Launch planned jobs; returns the error of a launcher that failed, and may have lost some of them."""
        common = [*self.steering, f"hydra.sweep.dir={layout.in_quotes(str(self.folder))}"]
        names = jobs["name"].to_list()
        for name in names:
            refuse_link(self.folder / name)
        typed = zip(names, plan.overrides(jobs).to_list(), strict=True)
        batch = [[*lines, *common, f"hydra.sweep.subdir={layout.in_quotes(name)}"] for name, lines in typed]
        launcher = self.launcher
        if self.has_pool:  # start no more processes than there are jobs, but two: joblib starts none for n_jobs=1
            config = self.config.copy()
            config.hydra.launcher.n_jobs = min(self.processes, max(len(jobs), 2))
            launcher = Plugins.instance().instantiate_launcher(config=config, **self.context)
        size = 1 if self.in_process else len(names)  # in this process, free the result of each job before the next one
        for at in range(0, len(names), size):
            try:
                returned = launcher.launch(batch[at : at + size], initial_job_idx=0)
                for name, job in zip(names[at:], returned, strict=False):
                    if job.status == JobStatus.FAILED:
                        self.errors[name] = _error_of(job)
            except Exception as error:  # a launcher that lost a process may raise any exception
                if not self.in_process:
                    while any(is_held(self.folder / name) for name in names):  # jobs in other processes may still run
                        time.sleep(0.5)
                    return _describe(error)
                self.errors[names[at]] = _describe(error)
            if self.stopped:
                break
            if self.in_process:
                page.write_page(self.folder, if_due=True)
        return None

    def jobs_to_run(self, planned: pl.DataFrame) -> pl.DataFrame:
        """Return the jobs that have not ended, have not failed in this command, and are not run by another process."""
        with os.scandir(self.folder) as entries:  # locks first, then records: a job that ends in between is not missed
            held = [entry.name for entry in entries if entry.is_dir() and is_held(Path(entry.path))]
        rows, _ = read_jobs(self.folder)
        ended = rows.filter(pl.col("status").is_in(ENDED)).select("name", "config_hash")
        left = planned.join(ended, on=["name", "config_hash"], how="anti", maintain_order="left")
        return left.filter(~pl.col("name").is_in([*held, *self.errors]))


def _error_of(job: JobReturn) -> str:
    with redirect_stderr(io.StringIO()):  # Hydra prints the error too, but `Watch` shows it already
        try:
            return str(job.return_value)
        except Exception as error:
            return _describe(error)


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}".splitlines()[0]
