"""A sweep from its command to its exit code: what is missing is launched, what failed is listed."""

import gc
import os
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf

from linear_lab import UserError, terminal
from linear_lab.run import FREE, RESULT, is_held
from linear_lab.sweep import board, page
from linear_lab.sweep.plan import Composer, Job, changed, known_names, plan, write_plan
from linear_lab.sweep.records import STEERING, finite, is_steering, read_jobs
from linear_lab.sweep.watch import Watch

ENDED = ("completed", "diverged", "pruned")  # what is not run again
STOP = ".stop"  # in the sweep's folder after a failure under fail_fast: jobs that find it do not start
FIXED = STEERING | {"output_root"}  # what cannot differ between the jobs of a sweep


class GridSweeper(Sweeper):
    """Hydra's sweeper of all combinations, resumed by name.

    Args:
        params: overrides that a file in conf/sweep gives; those that are typed replace them.
    """

    def __init__(self, params: dict[str, str] | None = None) -> None:
        self.params = params or {}
        self.errors: dict[str, str] = {}  # of the jobs that failed in this process's time, by name

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over, and build the launcher."""
        self.config: Any = config
        self.hydra_context: Any = hydra_context
        self.folder = Path(str(config.hydra.sweep.dir)).absolute()
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )
        self.processes = int(getattr(self.launcher, "joblib", {}).get("n_jobs", 1))  # of joblib, as configured

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs that are missing, and show what the sweep has found.

        Raises:
            SystemExit: 1 if jobs failed, 130 after Ctrl-C, 143 after SIGTERM.
        """
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        params = [f"{key}={value}" for key, value in self.params.items()]
        try:
            overrides = parser.parse_overrides([*params, *arguments])
            for override in overrides:
                if override.is_sweep_override() and override.get_key_element().partition("/")[0] in FIXED:
                    raise UserError(f"{override.input_line}: cannot differ between the jobs of a sweep; give one value")
            self.steering = [str(item.input_line) for item in overrides if is_steering(str(item.input_line))]
            self.fail_fast = bool(self.config.fail_fast)
            (self.folder / STOP).unlink(missing_ok=True)
            OmegaConf.save(self.config, self.folder / "multirun.yaml")
            self.screen = terminal.screen()
            with Watch(self.screen, self.folder) as self.watch:
                self.run([item for item in overrides if not is_steering(str(item.input_line))])
        except UserError as error:
            raise terminal.failure(error) from error
        except (KeyboardInterrupt, SystemExit) as end:
            self.conclude(arguments)
            code = getattr(end, "code", None) or 130
            if code != 1:  # a mistake or a full disk, which has been told
                self.screen.print("interrupted; what has ended stays, the rest is still to do")
            raise SystemExit(code) from None
        if self.conclude(arguments):
            raise SystemExit(1)

    def run(self, overrides: list[Override]) -> None:
        """Plan all combinations, and launch what has not ended."""
        for override in overrides:
            if override.is_sweep_override() and not override.is_discrete_sweep():
                raise UserError(f"{override.input_line}: has no end of values to try; type some, or add sweep=search")
        ((*grid,),) = BasicSweeper.split_arguments(overrides, None)
        if not grid:
            raise UserError("the sweep has no job: one of its ranges is empty")
        self.run_jobs(self.plan(grid))

    def plan(self, grid: Sequence[Sequence[str]], named: Collection[str] = ()) -> list[Job]:
        """Plan jobs, and refuse those whose config changed, unless they shall be overwritten.

        Raises:
            UserError: naming the jobs and the differences.
        """
        loader, choices = self.hydra_context.config_loader, self.config.hydra.runtime.choices
        name = self.config.hydra.job.config_name
        composer = Composer(
            lambda overrides: loader.load_configuration(name, overrides, run_mode=RunMode.RUN),
            lambda key: bool(loader.get_group_options(key)),
            lambda group: str(choices.get(group)),
            self.config.hydra.runtime.cwd,
        )
        _, found, _ = read_jobs(self.folder)
        jobs = plan(grid, composer, known_names(self.folder, found), named)
        records = {job.name: job.record for job in found}
        others = [job for job in jobs if records.get(job.name, {}).get("config_hash", job.hash) != job.hash]
        if others and not self.config.overwrite:
            raise UserError(
                f"name={self.folder.name}: {len(others)} of {len(jobs)} jobs were trained with another config; "
                f"{others[0].name}: {changed(self.folder, others[0])}; "
                "train them afresh with overwrite=true, or choose another name="
            )
        write_plan(self.folder, jobs, str(jobs[0].config["metric"]), str(jobs[0].config["mode"]))
        self.watch.show(job.name for job in jobs)
        board.write(self.folder)
        return jobs

    def run_jobs(self, jobs: list[Job]) -> None:
        """Launch jobs until each has ended or failed, or another process trains it.

        A launcher may lose jobs with a process that was killed. Those that never began are launched again; those that
        had begun one by one, so that one that kills its process takes no other with it.
        """
        in_process = type(self.launcher).__name__ == "BasicLauncher"
        left, alone = self.missing(jobs), in_process
        while left and not (self.fail_fast and self.errors):
            batch = left[:1] if alone else left
            lost = self.launch(batch)
            now = self.missing(jobs)
            if lost and len(now) == len(left) and not any(map(self.begun, now)):
                raise UserError(f"launch: no job could be started ({lost}); try launch=local")
            for job in batch:
                if job in now and (alone or not lost):
                    self.errors[job.name] = f"its process was lost ({lost})" if lost else "it did not run"
            left = self.missing(jobs)
            alone = in_process or any(map(self.begun, left))
            left.sort(key=self.begun, reverse=True)

    def launch(self, jobs: list[Job]) -> str | None:
        """Launch jobs; returns what the launcher stumbled over."""
        if hasattr(self.launcher, "joblib"):  # it would start all processes, whatever there is to do; and none for one
            self.launcher.joblib["n_jobs"] = min(self.processes, max(len(jobs), 2))
        where = f"hydra.sweep.dir={quoted(str(self.folder))}"
        batch = [[*job.overrides, *self.steering, where, f"hydra.sweep.subdir={quoted(job.name)}"] for job in jobs]
        try:
            returned = self.launcher.launch(batch, initial_job_idx=0)
        except Exception as error:  # whatever a launcher raises where a process of its was lost
            while any(is_held(self.folder / job.name) for job in jobs):  # it may have left the others running
                time.sleep(0.5)
            return f"{type(error).__name__}: {error}".splitlines()[0]
        for job, result in zip(jobs, returned, strict=True):
            if result.status == JobStatus.FAILED:
                self.errors[job.name] = str(result._return_value)
        if type(self.launcher).__name__ == "BasicLauncher":
            page.write_page(self.folder, sparingly=True)
            gc.collect()  # a Trainer is a circle of references: memory would grow until Python looks for such
            gc.freeze()  # what is left is not looked at again, which keeps this short
        return None

    def missing(self, jobs: Iterable[Job]) -> list[Job]:
        """Return the jobs that are to be run by this process: not ended, nor failed here, nor run by another one."""
        ended = {(job.name, job.record.get("config_hash")) for job in read_jobs(self.folder)[1] if job.status in ENDED}
        return [
            job
            for job in jobs
            if (job.name, job.hash) not in ended  # one to be overwritten has another hash
            and job.name not in self.errors
            and not is_held(self.folder / job.name)
        ]

    def begun(self, job: Job) -> bool:
        """Tell whether a job has a record."""
        return (self.folder / job.name / RESULT).exists()

    def conclude(self, arguments: Sequence[str]) -> bool:
        """Show the leaderboard and what failed; returns whether something did."""
        found = board.write(self.folder)
        page.write_page(self.folder)
        board.show(self.screen, found)
        mine = [job for job in found.jobs if job.name in self.watch.names]
        elsewhere = [job for job in mine if job.status == "running"]
        left = [job for job in mine if job.status not in (*ENDED, "running")]
        for job in elsewhere:
            self.screen.print(f"running  {job.name}: another process trains it", soft_wrap=True)
        for job in left:
            why = self.errors.get(job.name) or job.record.get("error") or ""
            self.screen.print(f"{job.status}  {job.name}{f': {why}' if why else ''}", soft_wrap=True)
        commands = {"look": f"make dashboard LOGDIR={terminal.short(self.folder)}", "address": terminal.ADDRESS}
        if left:
            logs = [job.folder / "train.log" for job in left if (job.folder / "train.log").exists()]
            commands |= {"log": str(terminal.short(logs[0]))} if logs else {}
            commands["go on"] = self.command(arguments)
        terminal.show_commands(self.screen, commands)
        return bool(left)

    def command(self, arguments: Sequence[str]) -> str:
        """Write the command that goes on with this sweep."""
        typed = [*arguments, *self.config.hydra.overrides.hydra]
        typed = [item for item in typed if not item.startswith(("name=", "overwrite=", "hydra.mode=", "hydra.sweep."))]
        return terminal.sweeping(self.folder.name, typed)


class SearchSweeper(GridSweeper):
    """A search with Optuna: each trial is a job, drawn with what the ones before it have found.

    Args:
        params: as `GridSweeper`; ranges among them.
        trials: how many there shall be in the end.
        seed: of the draws.
        prune: whether jobs that are worse than the others at the same epoch are stopped; read by the jobs.
        at_once: trials drawn and run together; None takes as many as the launcher has workers.
    """

    def __init__(self, params: dict[str, str], trials: int, seed: int, prune: bool, at_once: int | None = None) -> None:
        super().__init__(params)
        self.trials, self.seed, self.at_once = trials, seed, at_once

    def run(self, overrides: list[Override]) -> None:
        """Ask for trials, run them, tell their results, until there are as many as wanted."""
        from linear_lab.sweep.search import Search
        from linear_lab.sweep.space import space

        for key, value in (("trials", self.trials), ("at_once", self.at_once or 1)):
            if type(value) is not int or value < 1:
                raise UserError(f"hydra.sweeper.{key} must be a whole number from 1, got {value}")
        fixed, searched = space(overrides)
        if not searched:
            raise UserError("sweep=search: no key has a range to search; try 'optimizer.lr=tag(log,interval(1e-4,1))'")
        deciding = [item for item in fixed if item.partition("=")[0].partition(".")[0] not in FREE]
        search = Search(
            self.folder, deciding, searched,
            metric=self.config.metric, mode=self.config.mode, trials=self.trials, seed=self.seed,
        )  # fmt: skip
        self.watch.total = self.trials
        try:
            while (asked := search.ask(self.workers())) and not (self.fail_fast and self.errors):
                jobs = {number: self.plan([[*fixed, *drawn]], searched)[0] for number, drawn in asked}
                for number, job in jobs.items():
                    search.name(number, job.name)
                self.run_jobs(list({job.name: job for job in jobs.values()}.values()))
                found = {job.name: job for job in board.read(self.folder).jobs}
                for number, job in jobs.items():
                    it = found[job.name]
                    search.tell(number, {"status": it.status, "metrics": {str(self.config.metric): finite(it.value)}})
        finally:
            search.close()

    def workers(self) -> int:
        """How many trials are run at once."""
        if self.at_once:
            return self.at_once
        if hasattr(self.launcher, "joblib"):
            return self.processes
        return 1 if type(self.launcher).__name__ == "BasicLauncher" else os.cpu_count() or 1


def quoted(text: str) -> str:
    """Quote a text for Hydra's grammar."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
