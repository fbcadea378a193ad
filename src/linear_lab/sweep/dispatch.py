"""Launching jobs by one of Hydra's launchers, until each has ended or failed."""

import functools
import gc
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.utils import JobStatus
from rich.console import Console

from linear_lab import UserError
from linear_lab.runs.folder import RESULT, is_held
from linear_lab.sweep import page, results
from linear_lab.sweep.inventory import ENDED, read_record
from linear_lab.sweep.plan import PlannedJob as Job
from linear_lab.sweep.workers import end_with_parent
from linear_lab.terminal import layout


class Launches:
    """The launches of a sweep's command.

    A launcher may lose jobs with a process that was killed. Those that never began are launched again; those that had
    begun one by one, so that one that kills its process takes no other with it.

    Args:
        folder: the sweep's.
        launcher: of Hydra, set up.
        screen: the terminal.

    Attributes:
        errors: of the jobs that failed in this process's time, by name.
        steering: overrides that each launch has besides those of its job.
        fail_fast: whether to launch nothing after a failure.
        stacks: whether the launcher trains stacks.
        in_process: whether it runs jobs in this process.
        processes: how many it runs at once, where joblib does.
    """

    def __init__(self, folder: Path, launcher: Any, screen: Console) -> None:
        self.folder, self.launcher, self.screen = folder, launcher, screen
        self.errors: dict[str, str] = {}
        self.steering: Sequence[str] = ()
        self.fail_fast = False
        self.stacks = hasattr(launcher, "train_stacks")
        # by its name: Hydra imports its own plugins twice
        self.in_process = any(kind.__name__ == "BasicLauncher" for kind in type(launcher).__mro__)
        self.processes: Any = getattr(launcher, "joblib", {}).get("n_jobs", 1)  # as configured
        self.before: dict[str, int | None] = {}

    def check(self) -> None:
        """Refuse what the launcher's arguments cannot be.

        Raises:
            UserError: naming key and value.
        """
        if hasattr(self.launcher, "check"):
            self.launcher.check()
        if type(self.processes) is not int or self.processes == 0:
            raise UserError(f"hydra.launcher.n_jobs={self.processes}: must be a number from 1, or -1 for all cores")
        if self.processes < 0:
            import joblib

            self.processes = joblib.effective_n_jobs(self.processes)

    @property
    def stopped(self) -> bool:
        """Whether nothing more is to be launched."""
        return bool(self.fail_fast and self.errors)

    @contextmanager
    def alone_in_folder(self) -> Iterator[None]:
        """Wait until no other process trains stacks in the sweep's folder, and keep others from doing so."""
        if results.is_stacking(self.folder):
            self.screen.print("waiting  another command trains stacks of this sweep")
        with results.stacking(self.folder):
            yield

    def run(self, left: list[Job]) -> None:
        """Launch jobs until none is left."""
        self.before = {job.name: self.stamp(job) for job in left}
        jobs, alone = left, False
        while left and not self.stopped:
            if self.in_process:
                self.run_here(left)
                left = self.missing(jobs)
                continue
            batch = left[:1] if alone else left
            lost = self.launch(batch)
            now = self.missing(jobs)
            if lost and len(now) == len(left) and not any(map(self.begun, now)):
                raise UserError(f"launch: no job could be started ({lost}); try launch=local")
            for job in batch:
                if job in now and not lost:
                    self.errors[job.name] = "it did not run"
                elif job in now and lost and alone:
                    self.errors[job.name] = f"its process was lost ({lost})"
            left = self.missing(jobs)
            alone = any(map(self.begun, left))
            left.sort(key=self.begun, reverse=True)

    def run_here(self, jobs: Iterable[Job]) -> None:
        """Run jobs one by one in this process; one that another process has taken up meanwhile is left to that."""
        for job in jobs:
            while self.missing([job]) and not self.stopped:
                if results.is_stacking(self.folder) and not self.stacks:
                    with self.alone_in_folder():  # it may train this job
                        continue
                lost = self.launch([job])
                if self.missing([job]) and (self.stacks or not results.is_stacking(self.folder)):
                    self.errors[job.name] = lost or "it did not run"

    def launch(self, jobs: list[Job]) -> str | None:
        """Launch jobs; returns what the launcher stumbled over."""
        if hasattr(self.launcher, "joblib"):
            self.launcher.joblib["initializer"] = end_with_parent
            # it would start all processes, whatever there is to do; and none for one
            self.launcher.joblib["n_jobs"] = min(self.processes, max(len(jobs), 2))
        where = f"hydra.sweep.dir={layout.in_quotes(str(self.folder))}"
        # Hydra would write the config before the job holds its folder, over that of one that has ended
        ours = [*self.steering, where, "hydra.output_subdir=null"]
        batch = [[*job.overrides, *ours, f"hydra.sweep.subdir={layout.in_quotes(job.name)}"] for job in jobs]
        try:
            returned = self.launcher.launch(batch, initial_job_idx=0)
        except Exception as error:  # whatever a launcher raises where a process of its was lost
            if isinstance(error, UserError) and self.in_process:  # of a launcher of ours, such as a full disk
                raise
            while any(is_held(self.folder / job.name) for job in jobs):  # it may have left the others running
                time.sleep(0.5)
            return f"{type(error).__name__}: {error}".splitlines()[0]
        for job, result in zip(jobs, returned, strict=True):
            if result.status == JobStatus.FAILED:
                self.errors[job.name] = str(result._return_value)
        if self.in_process:
            page.write_page(self.folder, sparingly=True)
            gc.collect()  # a Trainer is a circle of references: memory would grow until Python looks for such
            freeze()
        return None

    def missing(self, jobs: Iterable[Job]) -> list[Job]:
        """Return the jobs that are to be run by this process: not ended, nor failed here, nor run by another one."""
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

    def begun(self, job: Job) -> bool:
        """Tell whether a job has written its record since this command began."""
        return self.stamp(job) != self.before[job.name]

    def stamp(self, job: Job) -> int | None:
        """When a job has written its record, in nanoseconds."""
        try:
            return (self.folder / job.name / RESULT).stat().st_mtime_ns
        except OSError:
            return None


@functools.cache  # after each job it would keep their configs for ever
def freeze() -> None:
    """Have the collector not look at the modules again."""
    gc.freeze()
