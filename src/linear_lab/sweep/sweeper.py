"""A sweep from its command to its exit code: what is missing is launched, what failed is listed."""

import functools
import gc
import signal
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from linear_lab import UserError, files, terminal
from linear_lab.run import RESULT, Run, is_held
from linear_lab.sweep import board, page
from linear_lab.sweep.composer import composer_of
from linear_lab.sweep.plan import Job, changed, known_names, plan, write_plan
from linear_lab.sweep.pool import end_with_parent
from linear_lab.sweep.records import ENDED, STEERING, forget_stacks, is_steering, read_jobs, read_record
from linear_lab.sweep.watch import Watch

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
        launcher: Any = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )
        self.launcher: Any = launcher
        # by its name: Hydra imports its own plugins twice
        self.in_process = any(kind.__name__ == "BasicLauncher" for kind in type(self.launcher).__mro__)
        self.processes: Any = getattr(self.launcher, "joblib", {}).get("n_jobs", 1)  # of joblib, as configured
        self.composer = composer_of(hydra_context, config)
        if hasattr(launcher, "leaves_rest"):
            launcher.leaves_rest = True  # of its stacks: here jobs are run one by one, with what that wants
            launcher.composer = self.composer

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs that are missing, and show what the sweep has found.

        Raises:
            SystemExit: 1 if jobs failed, 130 after Ctrl-C, 143 after SIGTERM.
        """
        self.screen = terminal.screen()
        self.watch = Watch(self.screen, self.folder)
        handler = signal.signal(signal.SIGTERM, ended)
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        params = [f"{key}={value}" for key, value in self.params.items()]
        try:
            overrides = parser.parse_overrides([*params, *arguments])
            for override in overrides:
                if override.is_sweep_override() and override.get_key_element().partition("/")[0] in FIXED:
                    raise UserError(f"{override.input_line}: cannot differ between the jobs of a sweep; give one value")
            self.check()
            self.steering = [str(item.input_line) for item in overrides if is_steering(str(item.input_line))]
            # what Hydra itself shall do is no part of a job's config
            self.composer.steering = [item for item in self.steering if not item.startswith("hydra")]
            self.fail_fast = self.config.fail_fast
            with suppress(FileExistsError):  # hydra.sweep.dir= may name any
                files.make(self.folder)
            (self.folder / STOP).unlink(missing_ok=True)
            with self.watch:
                self.run([item for item in overrides if not is_steering(str(item.input_line))])
        except UserError as error:
            with suppress(OSError):
                self.folder.rmdir()  # if it was made for this command
            raise terminal.failure(error) from error
        except (KeyboardInterrupt, SystemExit) as end:
            code = getattr(end, "code", None) or 130
            if code != 1:  # a mistake or a full disk, which has been told
                self.screen.print("interrupted; what has ended stays, the rest is still to do\n")
            self.conclude(arguments)
            raise SystemExit(code) from None
        finally:
            signal.signal(signal.SIGTERM, handler)
        if self.conclude(arguments):
            raise SystemExit(1)

    def check(self) -> None:
        """Refuse values of what steers the sweep.

        Raises:
            UserError: naming key and value.
        """
        for key in ("overwrite", "fail_fast"):
            if type(self.config[key]) is not bool:
                raise UserError(f"{key}={self.config[key]}: choose true or false")
        if self.config.mode not in ("min", "max"):
            raise UserError(f"mode={self.config.mode}: choose min or max")
        if hasattr(self.launcher, "check"):
            self.launcher.check()
        if type(self.processes) is not int or self.processes == 0:
            raise UserError(f"hydra.launcher.n_jobs={self.processes}: must be a number from 1, or -1 for all cores")
        if self.processes < 0:
            import joblib

            self.processes = joblib.effective_n_jobs(self.processes)

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
        _, found, _ = read_jobs(self.folder)
        jobs = plan(grid, self.composer, known_names(self.folder, found), named)
        terminal.heed()
        records = {job.name: job.record for job in found}
        others = [job for job in jobs if records.get(job.name, {}).get("config_hash", job.hash) != job.hash]
        trained = [job for job in others if "initial" in records[job.name]]  # the rest failed before
        if trained and not self.config.overwrite:
            raise UserError(
                f"name={self.folder.name}: {len(trained)} of {len(jobs)} jobs were trained with another config; "
                f"{trained[0].name}: {changed(self.folder, trained[0])}; "
                "train them afresh with overwrite=true, or choose another name="
            )
        for job in others:
            with Run(self.folder / job.name).lock() as run:
                run.clear()
        if not self.watch.names:  # what is refused has changed nothing
            files.replace(self.folder / "multirun.yaml", OmegaConf.to_yaml(self.config).encode())
        write_plan(self.folder, jobs, str(jobs[0].config["metric"]), str(jobs[0].config["mode"]))
        self.watch.show(job.name for job in jobs)
        board.write(self.folder)
        return jobs

    def run_jobs(self, jobs: list[Job]) -> None:
        """Launch jobs until each has ended or failed, or another process trains it.

        A launcher may lose jobs with a process that was killed. Those that never began are launched again; those that
        had begun one by one, so that one that kills its process takes no other with it.
        """
        left = self.missing(jobs)
        self.before = {job.name: self.stamp(job) for job in jobs}
        if left and hasattr(self.launcher, "leaves_rest"):
            if lost := self.launch(left):
                self.launcher.notes.append(f"stacks  {lost}")
            left = self.missing(jobs)
        alone = False
        while left and not (self.fail_fast and self.errors):
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
            if self.missing([job]) and not (self.fail_fast and self.errors):
                lost = self.launch([job])
                if self.missing([job]):
                    self.errors[job.name] = lost or "it did not run"

    def launch(self, jobs: list[Job]) -> str | None:
        """Launch jobs; returns what the launcher stumbled over."""
        if hasattr(self.launcher, "joblib"):
            self.launcher.joblib["initializer"] = end_with_parent
            # it would start all processes, whatever there is to do; and none for one
            self.launcher.joblib["n_jobs"] = min(self.processes, max(len(jobs), 2))
        where = f"hydra.sweep.dir={terminal.in_quotes(str(self.folder))}"
        # Hydra would write the config before the job holds its folder, over that of one that has ended
        ours = [*self.steering, where, "hydra.output_subdir=null"]
        batch = [[*job.overrides, *ours, f"hydra.sweep.subdir={terminal.in_quotes(job.name)}"] for job in jobs]
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
            if job.name not in self.errors and not self.has_ended(job) and not is_held(self.folder / job.name)
        ]

    def has_ended(self, job: Job) -> bool:
        """Tell whether a job has ended with the config that it has now."""
        record = read_record(self.folder / job.name / RESULT)
        return record.get("status") in ENDED and record.get("config_hash") == job.hash

    def begun(self, job: Job) -> bool:
        """Tell whether a job has written its record since this command began."""
        return self.stamp(job) != self.before[job.name]

    def stamp(self, job: Job) -> int | None:
        """When a job has written its record, in nanoseconds."""
        try:
            return (self.folder / job.name / RESULT).stat().st_mtime_ns
        except OSError:
            return None

    def conclude(self, arguments: Sequence[str]) -> bool:
        """Show the leaderboard and what failed; returns whether something did."""
        found = board.write(self.folder)
        forget_stacks(self.folder)
        page.write_page(self.folder)
        board.show(self.screen, found)
        names = set(self.watch.names)
        mine = [job for job in found.jobs if job.name in names]
        elsewhere = [job for job in mine if job.status == "running"]
        left = [job for job in mine if job.status not in (*ENDED, "running")]
        for job in elsewhere:
            self.screen.print(f"running  {job.name}: another process trains it", soft_wrap=True)
        for job in left:
            why = self.errors.get(job.name) or job.record.get("error") or ""
            self.screen.print(f"{job.status}  {job.name}{f': {why}' if why else ''}", soft_wrap=True)
        for note in getattr(self.launcher, "notes", ()):
            self.screen.print(note, soft_wrap=True)
        commands = board.commands(found) | {
            "look": f"make dashboard LOGDIR={terminal.quoted(str(terminal.short(self.folder)))}",
            "address": terminal.ADDRESS,
        }
        if left:
            logs = [job.folder / "train.log" for job in left if (job.folder / "train.log").exists()]
            commands |= {"log": terminal.quoted(str(terminal.short(logs[0])))} if logs else {}
            commands["go on"] = self.command(arguments)
        terminal.show_commands(self.screen, commands)
        return bool(left)

    def command(self, arguments: Sequence[str]) -> str:
        """Write the command that goes on with this sweep."""
        typed = [*arguments, *self.config.hydra.overrides.hydra]
        typed = [item for item in typed if not item.startswith(("name=", "overwrite=", "hydra.mode="))]
        named = any(item.startswith("hydra.sweep.dir=") for item in typed)
        return terminal.sweeping(typed if named else [f"name={self.folder.name}", *typed])


@functools.cache  # after each job it would keep their configs for ever
def freeze() -> None:
    """Have the collector not look at the modules again."""
    gc.freeze()


def ended(signum: int, frame: FrameType | None) -> None:
    """End the sweep at a signal that comes between its jobs."""
    raise SystemExit(128 + signum)
