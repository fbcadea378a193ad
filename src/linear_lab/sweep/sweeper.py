"""A sweep from its command to its exit code: what is missing is launched, what failed is listed."""

import os
import signal
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from linear_lab import UserError
from linear_lab.runs import atomic
from linear_lab.runs.folder import RESULT, Run, is_held
from linear_lab.sweep import board, page, results
from linear_lab.sweep.composer import composer_of
from linear_lab.sweep.dispatch import Launches
from linear_lab.sweep.inventory import ENDED, STEERING, is_steering, read_jobs, read_record
from linear_lab.sweep.live import Watch
from linear_lab.sweep.mistakes import changed, differences
from linear_lab.sweep.plan import grid, plan_jobs, plan_lock, planned_jobs, write_plan
from linear_lab.terminal import layout

if TYPE_CHECKING:
    import polars as pl

STOP = ".stop"  # in the sweep's folder after a failure under fail_fast: jobs that find it do not start
MOST = 100_000  # jobs of a grid that are launched one by one
SHOWN = 20  # jobs that did not end well
FIXED = STEERING | {"output_root"}  # what cannot differ between the jobs of a sweep


class GridSweeper(Sweeper):
    """Hydra's sweeper of all combinations, resumed by name.

    Args:
        params: overrides that a file in conf/sweep gives; those that are typed replace them.
    """

    def __init__(self, params: dict[str, str] | None = None) -> None:
        self.params = params or {}
        self.unkept: dict[str, str] = {}  # why jobs could not be trained alone, by name

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over, and build the launcher."""
        self.config: Any = config
        self.hydra_context: Any = hydra_context
        self.folder = Path(str(config.hydra.sweep.dir)).absolute()
        launcher: Any = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )
        self.launcher: Any = launcher
        self.screen = layout.screen()
        self.launches = Launches(self.folder, launcher, self.screen)
        self.composer = composer_of(hydra_context, config)

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs that are missing, and show what the sweep has found.

        Raises:
            SystemExit: 1 if jobs failed, 130 after Ctrl-C, 143 after SIGTERM.
        """
        self.watch = Watch(self.screen, self.folder)
        handler = signal.signal(signal.SIGTERM, ended)
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        params = [f"{key}={value}" for key, value in self.params.items()]
        try:
            overrides = parser.parse_overrides([*params, *arguments])
            for override in overrides:
                line = str(override.input_line)
                if override.is_sweep_override() and override.get_key_element().partition("/")[0] in FIXED:
                    raise UserError(f"{line}: cannot differ between the jobs of a sweep; give one value")
                shown = line.encode(errors="surrogateescape").decode(errors="replace")
                if shown != line:  # no table takes that
                    raise UserError(f"{shown}: it is not UTF-8; rename the file, or train a run of its own without -m")
            self.check()
            steering = [str(item.input_line) for item in overrides if is_steering(str(item.input_line))]
            # what Hydra itself shall do is no part of a job's config
            self.composer.steering = [item for item in steering if not item.startswith("hydra")]
            self.launches.steering, self.launches.fail_fast = steering, self.config.fail_fast
            with suppress(FileExistsError):  # hydra.sweep.dir= may name any
                atomic.make(self.folder)
            (self.folder / STOP).unlink(missing_ok=True)
            with self.watch:
                self.run([item for item in overrides if not is_steering(str(item.input_line))])
        except UserError as error:
            with suppress(OSError):
                self.folder.rmdir()  # if it was made for this command
            raise layout.failure(error) from error
        except (KeyboardInterrupt, SystemExit) as end:
            code = getattr(end, "code", None) or 130
            if code != 1:  # a mistake or a full disk, which has been told
                self.screen.print("interrupted; what has ended stays, the rest is still to do\n")
            self.conclude(arguments, interrupted=True)
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
        self.launches.check()

    def run(self, overrides: list[Override]) -> None:
        """Plan all combinations, and launch what has not ended."""
        if self.launches.stacks:
            limit, remedy = self.launcher.limit, "set hydra.launcher.limit=<number> to train as many"
        else:
            limit, remedy = MOST, "launch=stacked trains as many at once"
        self.run_jobs(self.plan(grid(overrides, limit, remedy)))

    def plan(self, typed: "pl.DataFrame", named: Collection[str] = ()) -> "pl.DataFrame":
        """Plan jobs, and refuse those whose config changed, unless they shall be overwritten.

        Raises:
            UserError: naming the jobs and the differences.
        """
        import polars as pl

        if self.config.overwrite:
            results.read_or_put_aside(self.folder)
        results.read_results(self.folder, ["name"])  # refuses what cannot be read
        found, _ = read_jobs(self.folder)
        recorded = found.filter(pl.col("config_hash").is_not_null())
        planned = found.filter(pl.col("planned").is_not_null()).select("name", config_hash="planned")
        others = planned.join(
            recorded.select("name"), on="name", how="anti"
        )  # an interrupted overwrite has another plan
        jobs = plan_jobs(typed, self.composer, pl.concat([others, recorded.select("name", "config_hash")]), named)
        layout.raise_if_interrupted()
        before = recorded.select("name", "folder", "trained", before="config_hash")
        changed = jobs.join(before, on="name").filter(pl.col("config_hash") != pl.col("before"))
        trained = changed.filter("trained")  # the rest failed before
        if len(trained) and not self.config.overwrite:
            raise UserError(
                f"name={self.folder.name}: {len(trained)} of {len(jobs)} jobs were trained with another config; "
                f"{trained['name'][0]}: {self.difference(trained.head(1))}; "
                "train them afresh with overwrite=true, or choose another name="
            )
        for name in changed.filter("folder")["name"]:
            with Run(self.folder / name).lock() as run:
                run.clear()
        results.forget(self.folder, changed["name"])
        if self.watch.names is None:  # what is refused has changed nothing
            with plan_lock(self.folder):
                atomic.replace(self.folder / "multirun.yaml", OmegaConf.to_yaml(self.config).encode())
        write_plan(self.folder, jobs, str(self.config.metric), str(self.config.mode))
        self.watch.show(jobs["name"])
        if not self.launches.stacks:  # whose jobs wait together, and end together
            board.write_sparingly(self.folder)
        return jobs

    def difference(self, job: "pl.DataFrame") -> str:
        """Say in what the config of a job, a row of `plan`, differs from the one that it was trained with."""
        import polars as pl

        columns = ("folder", "trained", "before")
        now = self.composer(planned_jobs(job.drop(columns))[0].overrides)
        if job["folder"][0]:
            return changed(self.folder / job["name"][0], now)
        typed = pl.col("job").struct.field("overrides")
        told = results.read_results(self.folder, [typed], pl.col("name") == job["name"][0])  # a stack has trained it
        assert told is not None
        before = self.composer(told["overrides"][0].to_list())
        return ", ".join(differences(before, now)) or "what its overrides give has changed, by conf/ or a relative path"

    def run_jobs(self, planned: "pl.DataFrame") -> None:
        """Train jobs until each has ended, failed, or is trained by another process; stacks first."""
        left = self.left(planned)
        if self.launches.stacks and self.launcher.history and (ended := len(planned) - len(left)):
            self.launcher.notes.append(f"history  {ended} jobs ended before; another name= keeps the history of all")
        if self.launches.stacks and len(left) > 1:
            with self.launches.alone_in_folder():
                left = self.left(planned)  # another command may have trained them meanwhile
                if len(left) > 1:
                    self.launcher.train_stacks(self.folder, left, self.composer, self.watch.stacked)
            self.watch.stack = None
            self.launches.errors |= self.failures(planned)
            left = self.left(planned)
        self.launches.run(planned_jobs(left))
        if self.launches.stacks:
            self.keep_best(planned)

    def failures(self, planned: "pl.DataFrame") -> dict[str, str]:
        """Return the errors of those jobs that have failed in stacks."""
        import polars as pl

        failed = results.read_results(self.folder, ["name", "error"], pl.col("status") == "failed")
        if failed is None:
            return {}
        return dict(failed.join(planned.select("name"), on="name", how="semi").iter_rows())

    def left(self, planned: "pl.DataFrame") -> "pl.DataFrame":
        """Return the jobs that are to be trained by this process, as `missing` does, of a whole plan."""
        import polars as pl

        with os.scandir(self.folder) as entries:  # the locks first: a job that ends meanwhile has then ended
            held = [entry.name for entry in entries if entry.is_dir() and is_held(Path(entry.path))]
        found, _ = read_jobs(self.folder)
        ended = found.filter(pl.col("status").is_in(ENDED)).select("name", "config_hash")
        left = planned.join(ended, on=["name", "config_hash"], how="anti", maintain_order="left")
        return left.filter(~left["name"].is_in([*held, *self.launches.errors]))

    def keep_best(self, planned: "pl.DataFrame") -> None:
        """Train the best jobs of stacks alone, for all that a run leaves; and write HPARAMS rows of others."""
        import polars as pl

        found = board.read(self.folder)
        best = found.ranked.filter(pl.col("rank").is_not_null()).head(self.launcher.keep)
        rows = planned.join(best.filter(~pl.col("folder")).select("name"), on="name", how="semi", maintain_order="left")
        for job in planned_jobs(rows):
            record = read_record(self.folder / job.name / RESULT)
            if record.get("config_hash", job.hash) != job.hash:
                continue  # it was trained alone, and has gone on otherwise since
            if not is_held(self.folder / job.name) and not self.launches.stopped:
                lost = self.launches.launch([job])
                if why := lost or self.launches.errors.get(job.name):
                    self.unkept[job.name] = why
        if found.best:
            from linear_lab.sweep.best_jobs import disagreements, write_rows

            self.launcher.notes += disagreements(self.folder, rows["name"], self.composer)
            with plan_lock(self.folder):
                write_rows(board.read(self.folder), self.composer, self.launcher.rows)

    def conclude(self, arguments: Sequence[str], *, interrupted: bool = False) -> bool:
        """Show the leaderboard and what failed; returns whether something did."""
        import polars as pl

        found = board.write(self.folder)
        page.write_page(self.folder)
        board.show(self.screen, found)
        names = pl.Series([], dtype=pl.String) if self.watch.names is None else self.watch.names
        mine = found.jobs.filter(pl.col("name").is_in(names.implode()))
        left = mine.filter(~pl.col("status").is_in(ENDED) & (pl.col("status") != "running"))
        for name in mine.filter(pl.col("status") == "running")["name"]:
            self.screen.print(f"running  {name}: another process trains it", soft_wrap=True)
        for name, status, error in left.select("name", "status", "error").head(SHOWN).iter_rows():
            why = self.launches.errors.get(name) or error or ""
            self.screen.print(f"{status}  {name}{f': {why}' if why else ''}", soft_wrap=True)
        if len(left) > SHOWN:
            self.screen.print(f"... {len(left) - SHOWN} more in {layout.short(self.folder / board.TABLE)}")
        for name, why in self.unkept.items():
            self.screen.print(f"not trained alone  {name}: {why}", soft_wrap=True)
        for note in getattr(self.launcher, "notes", ()):
            self.screen.print(note, soft_wrap=True)
        commands = board.commands(found) | {
            "look": f"make dashboard LOGDIR={layout.quoted(str(layout.short(self.folder)))}",
            "address": layout.ADDRESS,
        }
        if len(left) or self.unkept or interrupted:
            paths = [self.folder / name / "train.log" for name in left["name"].head(SHOWN)]
            logs = [path for path in paths if path.exists()]
            commands |= {"log": layout.quoted(str(layout.short(logs[0])))} if logs else {}
            commands["go on"] = self.command(arguments)
        layout.show_commands(self.screen, commands)
        return bool(len(left) or self.unkept)

    def command(self, arguments: Sequence[str]) -> str:
        """Write the command that goes on with this sweep."""
        typed = [*arguments, *self.config.hydra.overrides.hydra]
        typed = [item for item in typed if not item.startswith(("name=", "overwrite=", "hydra.mode="))]
        named = any(item.startswith("hydra.sweep.dir=") for item in typed)
        return layout.sweeping(typed if named else [f"name={self.folder.name}", *typed])


def ended(signum: int, frame: FrameType | None) -> None:
    """End the sweep at a signal that comes between its jobs."""
    raise SystemExit(128 + signum)
