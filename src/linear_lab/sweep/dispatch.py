"""Launching jobs by one of Hydra's launchers, until each has ended or failed."""

import io
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig
from rich.console import Console

from linear_lab import UserError
from linear_lab.runs.folder import RESULT, is_held
from linear_lab.sweep import page, results
from linear_lab.sweep.inventory import ENDED, read_record
from linear_lab.sweep.launchers import LocalLauncher, StackedLauncher
from linear_lab.sweep.plan import Job
from linear_lab.terminal import layout


class Launches:
    """The launches of a sweep's command.

    A launcher may lose jobs with a process that was killed. Those that never began are launched again; those that had
    begun one by one, so that one that kills its process takes no other with it.

    Args:
        folder: the sweep's.
        screen: the terminal.
        config: of the command.
        context: what Hydra hands to its plugins, ``hydra_context`` and ``task_function``.

    Attributes:
        launcher: Hydra's, by the config.
        stacked: the launcher, if it trains stacks.
        errors: of the jobs that failed while this process ran, by name.
        steering: overrides that each launch has besides those of its job.
        processes: how many jobs run at once.
    """

    def __init__(self, folder: Path, screen: Console, config: DictConfig, **context: Any) -> None:
        self.folder, self.screen, self.config, self.context = folder, screen, config, context
        self.launcher = Plugins.instance().instantiate_launcher(config=config, **context)
        self.stacked = self.launcher if isinstance(self.launcher, StackedLauncher) else None
        self.in_process = isinstance(self.launcher, LocalLauncher)
        self.has_pool = "n_jobs" in config.hydra.launcher  # joblib
        self.processes: Any = config.hydra.launcher.get("n_jobs", 1 if self.in_process else os.cpu_count() or 1)
        self.errors: dict[str, str] = {}
        self.steering: Sequence[str] = ()
        self.before: dict[str, int | None] = {}

    def check(self) -> None:
        """Raise UserError for an argument of the launcher that is out of its range."""
        if self.stacked:
            self.stacked.check()
        if type(self.processes) is not int or self.processes == 0:
            raise UserError(f"hydra.launcher.n_jobs={self.processes}: must be a number from 1, or -1 for all cores")
        if self.processes < 0:
            import joblib

            self.processes = joblib.effective_n_jobs(self.processes)

    @property
    def stopped(self) -> bool:
        """Whether nothing more is to be launched."""
        return bool(self.config.fail_fast and self.errors)

    @contextmanager
    def stacking(self) -> Iterator[None]:
        """Wait until no other process trains stacks in the sweep's folder, and keep others from doing so."""
        if results.is_stacking(self.folder):
            self.screen.print("waiting  another command trains stacks of this sweep")
        with results.stacking(self.folder):
            yield

    def run(self, jobs: list[Job]) -> None:
        """Launch jobs until each has ended, failed, or is run by another process."""
        self.before = {job.name: self.recorded_at(job) for job in jobs}
        left, singly = jobs, False
        while left and not self.stopped:
            if self.in_process:
                self.run_in_process(left)
                left = self.missing(jobs)
                continue
            batch = left[:1] if singly else left
            error = self.launch(batch)
            now = self.missing(jobs)
            if error and len(now) == len(left) and not any(map(self.has_begun, now)):
                raise UserError(f"launch: no job could be started ({error}); try launch=local")
            for job in batch:
                if job in now and not error:
                    self.errors[job.name] = "it did not run"
                elif job in now and singly:
                    self.errors[job.name] = f"its process was lost ({error})"
            left = self.missing(jobs)
            left.sort(key=self.has_begun, reverse=True)
            singly = any(map(self.has_begun, left))

    def run_in_process(self, jobs: Iterable[Job]) -> None:
        """Run jobs one by one in this process, but for those that another process has begun meanwhile."""
        for job in jobs:
            while self.missing([job]) and not self.stopped:
                if results.is_stacking(self.folder) and not self.stacked:
                    with self.stacking():  # it may train this job
                        continue
                error = self.launch([job])
                if self.missing([job]) and (self.stacked or not results.is_stacking(self.folder)):
                    self.errors[job.name] = error or "it did not run"

    def launch(self, jobs: list[Job]) -> str | None:
        """Launch jobs; returns the error of a launcher that lost some."""
        where = f"hydra.sweep.dir={layout.in_quotes(str(self.folder))}"
        # Hydra would write the config before the job locks its folder, over that of a job that has ended
        common = [*self.steering, where, "hydra.output_subdir=null"]
        batch = [[*job.overrides, *common, f"hydra.sweep.subdir={layout.in_quotes(job.name)}"] for job in jobs]
        launcher = self.launcher
        if self.has_pool:  # joblib would start all processes however few jobs there are, and none for n_jobs=1
            config = self.config.copy()
            config.hydra.launcher.n_jobs = min(self.processes, max(len(jobs), 2))
            launcher = Plugins.instance().instantiate_launcher(config=config, **self.context)
        try:
            returned = launcher.launch(batch, initial_job_idx=0)
        except Exception as error:  # of any class, where a process of the launcher was lost
            if isinstance(error, UserError) and self.in_process:  # such as a full disk
                raise
            while any(is_held(self.folder / job.name) for job in jobs):  # others may still run
                time.sleep(0.5)
            return f"{type(error).__name__}: {error}".splitlines()[0]
        self.errors |= {
            job.name: error_of(result)
            for job, result in zip(jobs, returned, strict=True)
            if result.status == JobStatus.FAILED
        }
        if self.in_process:
            page.write_page(self.folder, sparingly=True)
        return None

    def missing(self, jobs: Iterable[Job]) -> list[Job]:
        """Return the jobs that this process has to run: not ended, nor failed here, nor run by another process."""
        return [
            job
            for job in jobs
            # the lock first: a job that ends between the two looks has then ended
            if job.name not in self.errors and not is_held(self.folder / job.name) and not self.has_ended(job)
        ]

    def has_ended(self, job: Job) -> bool:
        """Tell whether a job has ended with the config that it has now."""
        record = read_record(self.folder / job.name / RESULT)
        if record.get("status") in ENDED and record.get("config_hash") == job.hash:
            return True
        return results.has_ended(self.folder, job.name, job.hash)

    def has_begun(self, job: Job) -> bool:
        """Tell whether a job has written its record since this command began."""
        return self.recorded_at(job) != self.before[job.name]

    def recorded_at(self, job: Job) -> int | None:
        try:
            return (self.folder / job.name / RESULT).stat().st_mtime_ns
        except OSError:
            return None


def error_of(result: JobReturn) -> str:
    """Return the error of a failed job; Hydra prints it before it raises it, and `Watch` shows it anyway."""
    with redirect_stderr(io.StringIO()):
        try:
            return f"returned {result.return_value}"
        except Exception as error:
            return str(error)
