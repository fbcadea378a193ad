"""A sweep from its command to its exit code: jobs that have not ended are launched, those that failed are listed."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from linear_lab import UserError
from linear_lab.runs import atomic
from linear_lab.runs.folder import RESULT, Run
from linear_lab.runs.record import ENDED
from linear_lab.sweep import NO_METRIC, STOP, board, page, results
from linear_lab.sweep.composer import composer_of
from linear_lab.sweep.dispatch import Launches
from linear_lab.sweep.inventory import STEERING, is_steering, read_jobs, read_record
from linear_lab.sweep.launchers import StackedLauncher
from linear_lab.sweep.live import Watch
from linear_lab.sweep.mistakes import changed, differences
from linear_lab.sweep.plan import grid, overrides, plan_jobs, plan_lock, write_plan
from linear_lab.terminal import layout
from linear_lab.terminal.signals import raise_if_interrupted

MOST = 100_000  # jobs of a grid that are launched one by one
SHOWN = 20  # jobs that did not end well
FIXED = STEERING | {"output_root", "tags"}  # keys that cannot differ between the jobs of a sweep


class GridSweeper:
    """Trains all combinations of the swept values; a sweep of the same name is resumed.

    ``params`` are overrides that a file in conf/sweep gives; those that are typed replace them.
    """

    def __init__(
        self, params: Mapping[str, str] | None, *, hydra_context: HydraContext, config: DictConfig, **context: Any
    ) -> None:
        HydraConfig.instance().set_config(config.copy())  # for the page: typed classes, and where --config-dir lies
        self.config, self.loader = config, hydra_context.config_loader
        self.params = [f"{key}={value}" for key, value in (params or {}).items()]
        self.folder = Path(str(config.hydra.sweep.dir)).absolute()
        self.screen = layout.screen()
        self.launches = Launches(self.folder, self.screen, config, hydra_context=hydra_context, **context)
        self.composer = composer_of(hydra_context, config)
        self.watch = Watch(self.screen, self.folder)
        self.not_kept: dict[str, str] = {}  # why best jobs of stacks could not be trained alone, by name

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs that have not ended, and show the leaderboard; exits with 1 if jobs failed."""
        try:
            overrides = self.parse(arguments)
            self.check()
            atomic.make(self.folder, exist_ok=True)  # hydra.sweep.dir= may name any folder
            (self.folder / STOP).unlink(missing_ok=True)
            with self.watch:
                self.run(overrides)
        except UserError as error:
            with suppress(OSError):
                self.folder.rmdir()  # if it was made for this command
            raise layout.failure(error) from error
        except (KeyboardInterrupt, SystemExit) as end:
            code = getattr(end, "code", None) or 130
            if code != 1:  # 1: a mistake or a full disk, which has been shown
                self.screen.print("interrupted; what has ended stays, the rest is still to do\n")
            self.conclude(arguments, interrupted=True)
            raise SystemExit(code) from None
        if self.conclude(arguments):
            raise SystemExit(1)

    def parse(self, arguments: list[str]) -> list[Override]:
        """Return the overrides of jobs; those that steer the sweep go to the launches, and to the composer."""
        parser = OverridesParser.create(config_loader=self.loader)
        overrides, steering = [], []
        for override in parser.parse_overrides([*self.params, *arguments]):
            line = str(override.input_line)
            if override.is_sweep_override() and override.get_key_element().partition("/")[0] in FIXED:
                raise UserError(f"{line}: cannot differ between the jobs of a sweep; give one value")
            printable = line.encode(errors="surrogateescape").decode(errors="replace")
            if printable != line:  # polars takes UTF-8 only
                raise UserError(f"{printable}: it is not UTF-8; rename the file, or train a run of its own without -m")
            if is_steering(line):
                steering.append(line)
            else:
                overrides.append(override)
        self.launches.steering = steering
        self.composer.steering = [line for line in steering if not line.startswith("hydra")]  # Hydra's are in no config
        return overrides

    def check(self) -> None:
        for key in ("overwrite", "fail_fast"):
            if type(self.config[key]) is not bool:
                raise UserError(f"{key}={self.config[key]}: choose true or false")
        if self.config.mode not in ("min", "max"):
            raise UserError(f"mode={self.config.mode}: choose min or max")
        self.launches.check()

    def run(self, overrides: list[Override]) -> None:
        """Plan all combinations, and train those that have not ended."""
        limit, remedy = MOST, "launch=stacked trains as many at once"
        if stacked := self.launches.stacked:
            limit, remedy = stacked.limit, "set hydra.launcher.limit=<number> to train as many"
        self.run_jobs(self.plan(grid(overrides, limit, remedy)))

    def plan(self, typed: pl.DataFrame, named: Collection[str] = ()) -> pl.DataFrame:
        """Plan jobs, and refuse those whose config changed, unless they shall be overwritten."""
        if self.config.overwrite:
            results.read_or_put_aside(self.folder)
        results.read_results(self.folder, ["name"])  # refuses results that cannot be read
        rows, _ = read_jobs(self.folder)
        recorded = rows.filter(pl.col("config_hash").is_not_null())
        # an interrupted overwrite=true has planned another config than the recorded one, which counts and comes last
        earlier = rows.sort(pl.col("config_hash").is_not_null(), maintain_order=True)
        earlier = earlier.select("name", config_hash=pl.coalesce("config_hash", "planned"))
        jobs = plan_jobs(typed, self.composer, earlier, named)
        raise_if_interrupted()
        before = recorded.select("name", "folder", "trained", before="config_hash")
        outdated = jobs.join(before, on="name").filter(pl.col("config_hash") != pl.col("before"))
        trained = outdated.filter("trained")  # the rest failed before
        if len(trained) and not self.config.overwrite:
            raise UserError(
                f"name={self.folder.name}: {len(trained)} of {len(jobs)} jobs were trained with another config; "
                f"{trained['name'][0]}: {self.difference(trained.head(1))}; "
                "train them afresh with overwrite=true, or choose another name="
            )
        for name in outdated.filter("folder")["name"]:
            atomic.refuse_link(self.folder / name)
            with Run(self.folder / name).lock() as run:
                run.clear()
        results.forget(self.folder, outdated["name"])
        if self.watch.names.is_empty():  # the first jobs of this command; a command that is refused changes nothing
            with plan_lock(self.folder):
                atomic.replace(self.folder / "multirun.yaml", OmegaConf.to_yaml(self.config).encode())
        write_plan(self.folder, jobs, self.config.metric or NO_METRIC, self.config.mode)
        self.watch.show(jobs["name"])
        if not self.launches.stacked:  # jobs of a stack wait together, and end together
            board.write_sparingly(self.folder)
        return jobs

    def difference(self, job: pl.DataFrame) -> str:
        """Say in what the config of a job, a row of `plan`, differs from the one that it was trained with."""
        config = self.composer(overrides(job.drop("folder", "trained", "before"))[0].to_list())
        if job["folder"][0]:
            return changed(self.folder / job["name"][0], config)
        typed = pl.col("job").struct.field("overrides")
        in_stack = results.read_results(self.folder, [typed], pl.col("name") == job["name"][0])
        assert in_stack is not None
        before = self.composer(in_stack["overrides"][0].to_list())
        return ", ".join(differences(before, config)) or "conf/, or a relative path, has changed"

    def run_jobs(self, planned: pl.DataFrame) -> None:
        """Train jobs until each has ended, failed, or is trained by another process; stacks first."""
        if stacked := self.launches.stacked:
            self.train_stacks(planned, stacked)
        self.launches.run(planned)
        if stacked:
            self.keep_best(planned, stacked)

    def train_stacks(self, planned: pl.DataFrame, launcher: StackedLauncher) -> None:
        left = self.launches.jobs_to_run(planned)
        if launcher.history and (ended := len(planned) - len(left)):
            launcher.notes.append(f"history  {ended} jobs ended before; another name= keeps the history of all")
        if len(left) < 2:
            return
        with self.launches.stacking():
            left = self.launches.jobs_to_run(planned)  # another command may have trained them meanwhile
            if len(left) > 1:
                launcher.train_stacks(self.folder, left, self.composer, self.watch.stacked)
        self.watch.stack = None
        failed = results.read_results(self.folder, ["name", "error"], pl.col("status") == "failed")
        if failed is not None:
            self.launches.errors |= dict(failed.join(planned, on="name", how="semi").iter_rows())

    def keep_best(self, planned: pl.DataFrame, launcher: StackedLauncher) -> None:
        """Train the best jobs of stacks alone, for all that a run leaves; and write HPARAMS rows of others."""
        leaderboard = board.read(self.folder)
        best = leaderboard.ranked.filter(pl.col("rank").is_not_null()).head(launcher.keep).filter(~pl.col("folder"))
        jobs = planned.join(best, on="name", how="semi", maintain_order="left")
        # a folder with another config: the job was trained alone, and resumed with more epochs since
        hashes = [read_record(self.folder / name / RESULT).get("config_hash") for name in jobs["name"]]
        other = pl.Series(hashes, dtype=pl.String) != jobs["config_hash"]
        self.launches.launch(jobs.filter(~other.fill_null(False)))
        self.not_kept |= {name: self.launches.errors[name] for name in jobs["name"] if name in self.launches.errors}
        if leaderboard.best:
            from linear_lab.sweep.best_jobs import disagreements, write_rows  # imports torch

            launcher.notes += disagreements(self.folder, jobs["name"], self.composer)
            with plan_lock(self.folder):
                write_rows(board.read(self.folder), self.composer, launcher.rows)

    def conclude(self, arguments: Sequence[str], *, interrupted: bool = False) -> bool:
        """Show the leaderboard, what failed, and what to do next; returns whether a job did not end well."""
        leaderboard = board.write(self.folder)
        page.write_page(self.folder)
        board.show(self.screen, leaderboard)
        jobs = leaderboard.jobs.filter(pl.col("name").is_in(self.watch.names.implode()))
        left = jobs.filter(~pl.col("status").is_in([*ENDED, "running"]))
        lines = [f"running  {name}: another process trains it" for name in jobs.filter(status="running")["name"]]
        for name, status, error in left.select("name", "status", "error").head(SHOWN).iter_rows():
            why = self.launches.errors.get(name) or error
            lines.append(f"{status}  {name}: {why}" if why else f"{status}  {name}")
        if len(left) > SHOWN:
            lines.append(f"... {len(left) - SHOWN} more in {layout.short(self.folder / board.TABLE)}")
        lines += [f"not trained alone  {name}: {why}" for name, why in self.not_kept.items()]
        lines += self.launches.stacked.notes if self.launches.stacked else []
        for line in lines:
            self.screen.print(line, soft_wrap=True)
        commands = board.commands(leaderboard)
        commands["look"] = layout.dashboard(self.folder)
        commands |= {"address": layout.ADDRESS} if layout.is_served(self.folder) else {}
        failed = bool(len(left) or self.not_kept)
        if failed or interrupted:
            logs = [self.folder / name / "train.log" for name in left["name"].head(SHOWN)]
            if log := next((path for path in logs if path.exists()), None):
                commands["log"] = layout.quoted(str(layout.short(log)))
            commands["go on"] = self._command(arguments)
        layout.show_commands(self.screen, commands)
        return failed

    def _command(self, arguments: Sequence[str]) -> str:
        typed = [*arguments, *self.config.hydra.overrides.hydra]
        typed = [item for item in typed if not item.startswith(("name=", "overwrite=", "hydra.mode="))]
        named = any(item.startswith("hydra.sweep.dir=") for item in typed)
        typed = typed if named else [f"name={self.folder.name}", *typed]
        return " ".join([layout.module("train"), "-m", *map(layout.quoted, typed)])
