"""Ranks the jobs of a sweep, finds the keys in which they differ, and averages over seeds."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from linear_lab import UserError
from linear_lab.sweep.inventory import KEYS, fields, is_steering, read_jobs
from linear_lab.sweep.plan import overrides, read_plan, read_settings
from linear_lab.sweep.results import read_results
from linear_lab.terminal.layout import module, quoted, short

MODES = ("min", "max")
SAME_DATA = ("data.batch_size", "data.order_seed")  # keys of data that change no row


class RankedJob(NamedTuple):
    """A ranked job."""

    folder: Path  # its run folder, which need not exist
    value: float | None  # the value of the metric
    typed: list[str] | None  # its overrides in the order typed; None if they are unknown

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def command(self) -> str | None:
        """The command that trains the job alone; None if its overrides are unknown."""
        if self.typed is None:
            return None
        typed = [quoted(item) for item in self.typed if not is_steering(item)]
        settings = read_settings(self.folder.parent)
        return " ".join([module("train", settings.config_dir if settings else None), *typed])


@dataclass
class Ranking:
    """The jobs of a sweep, and their order by a metric.

    ``jobs`` is the table of `read_jobs` with one more column, ``value``: the metric of the final model, which is null
    unless the job was completed and the metric is finite.
    """

    folder: Path
    metric: str
    mode: str  # min if a lower metric is better, max if a higher one is
    jobs: pl.DataFrame
    notes: list[str]  # lines to print below the leaderboard

    @cached_property
    def ranked(self) -> pl.DataFrame:
        """Jobs with their ``rank``, best first; equal values share a rank, as in 1, 1, 3; jobs without a value last."""
        ranks = (pl.col("value") * self.sign).rank("min").cast(pl.Int64)
        return self.jobs.with_columns(rank=ranks).sort("rank", nulls_last=True, maintain_order=True)

    @cached_property
    def best(self) -> RankedJob | None:
        """The best job, the first in the plan among equal ones; None if no job is completed."""
        first = self.ranked.head(1).filter(pl.col("rank").is_not_null())
        if first.is_empty():
            return None
        name, value, typed, planned = first.select("name", "value", "typed", "planned").row(0)
        if typed is None and planned is not None:
            typed = overrides(read_plan(self.folder).filter(name=name))[0].to_list()  # with + and ~
        return RankedJob(self.folder / name, value, typed)

    @property
    def counts(self) -> dict[str, int]:
        return dict(self.jobs.group_by("status", maintain_order=True).len().iter_rows())

    @property
    def sign(self) -> int:
        """1 or -1: the best job has the smallest product of sign and value."""
        return -1 if self.mode == "max" else 1

    @property
    def keys(self) -> list[str]:
        """The typed keys, in the order typed."""
        return [name.removeprefix(KEYS) for name in self.jobs.columns if name.startswith(KEYS)]

    @cached_property
    def differing(self) -> list[str]:
        """The keys whose values differ between jobs whose overrides are known, and tags if a job has some."""
        typed = self.jobs.filter(pl.col("typed").is_not_null() | pl.col("planned").is_not_null())
        return [key for key in self.keys if key == "tags" or typed[KEYS + key].n_unique() > 1]

    @cached_property
    def groups(self) -> pl.DataFrame:
        """Groups of jobs that differ in their seeds alone: best mean first, but groups with a lost job come last.

        The columns are ``rank``; ``n``, the number of completed jobs; ``lost``, the number of jobs that diverged or
        failed; ``mean``; ``standard_deviation``, ``sqrt(sum((v - mean)^2) / (n - 1))``, null if n is 1; ``best``;
        ``worst``; and the keys of the first job. There are no rows unless some group has two seeds.
        """
        value, lost = pl.col("value"), pl.col("status").is_in(["diverged", "failed"])
        jobs = self.jobs.filter(pl.col("group").is_not_null())
        seed = pl.col("seed").cast(pl.String)
        seed = pl.coalesce(seed, KEYS + "seed") if KEYS + "seed" in jobs.columns else seed
        jobs = jobs.with_columns(seed_=seed).sort(value.is_not_null(), descending=True, maintain_order=True)
        jobs = jobs.unique(["group", "seed_"], keep="first", maintain_order=True)  # one config can be typed in two ways
        best, worst = (value.min(), value.max())[:: self.sign]
        numbers = {"mean": value.mean(), "standard_deviation": value.std(), "best": best, "worst": worst}
        keys = [pl.col(KEYS + key).first() for key in self.keys]
        counts = value.is_not_null().sum().alias("n"), lost.sum().alias("lost"), pl.len()
        groups = jobs.group_by("group", maintain_order=True).agg(*counts, *keys, **numbers)
        if not (groups["len"] > 1).any() or not groups["n"].sum():
            return groups.clear().with_columns(rank=pl.lit(None, pl.Int64))
        order = pl.struct(pl.col("lost") > 0, pl.col("mean") * self.sign)
        ranks = pl.when(pl.col("n") > 0).then(order).rank("min").cast(pl.Int64)
        return groups.with_columns(rank=ranks).sort("rank", nulls_last=True, maintain_order=True)


def stacked_job_message(folder: Path) -> str | None:
    """Return the error message for a job that was trained in a stack and has no run folder; None for any other job."""
    columns: list[str | pl.Expr] = ["status", "error", pl.col("job").struct.field("overrides")]
    rows = read_results(folder.parent, columns, pl.col("name") == folder.name)
    if rows is None or rows.is_empty():
        return None
    status, error, typed = rows.row(0)
    if status == "failed":
        return f"this job failed: {error}"
    command = RankedJob(folder, None, typed).command
    return f"this job was trained in a stack, which leaves no run folder; train it alone: {command}"


_boards: dict[Path, tuple[pl.DataFrame, Any, Ranking]] = {}  # a cache by folder: the jobs, the arguments, the result


def read(folder: str | Path, metric: str | None = None, mode: str | None = None) -> Ranking:
    """Read the jobs of a sweep and rank them; a folder without jobs gives an empty ranking.

    By default, metric and mode are those of the sweep; for another metric, the mode is ``max`` if it is an accuracy.
    Raises UserError for a metric that no job has measured, and for another mode.
    """
    folder = Path(folder)
    jobs, notes = read_jobs(folder)
    settings = read_settings(folder)
    arguments = settings, metric, mode
    last = _boards.get(folder)
    if last and last[0] is jobs and last[1] == arguments:
        return last[2]
    measured = fields(jobs.schema, "metrics")
    if metric is not None and metric not in measured:
        remedy = f"choose one of {', '.join(measured)}" if measured else "no job has measured anything yet"
        raise UserError(f"metric={metric}: no job of {short(folder)} has measured it; {remedy}")
    if mode not in (None, *MODES):
        raise UserError(f"mode={mode}: choose min or max")
    recorded = jobs.select("metric", "mode").filter(pl.col("metric").is_not_null() & pl.col("mode").is_in(MODES))
    defaults = {"metric": "val/loss", "mode": "min"} | (recorded.row(0, named=True) if len(recorded) else {})
    defaults |= settings.model_dump() if settings else {}
    default = defaults["metric"]
    if default not in measured and default.replace("val/", "train/") in measured:
        default = default.replace("val/", "train/")  # without a val part, runs are judged by the train part
    metric = metric or default
    if metric != default:
        defaults["mode"] = "max" if metric.endswith("accuracy") else "min"
    value = pl.col("metrics").struct.field(metric) if metric in measured else pl.lit(None, pl.Float64)
    value = pl.when(pl.col("status") == "completed").then(value).cast(pl.Float64)
    _boards.pop(folder, None)  # frees memory before the new one is made, which may have a million jobs
    board = Ranking(folder, metric, mode or defaults["mode"], jobs.with_columns(value=value), [*notes])
    other = [key for key in board.differing if key.startswith("data") and key not in SAME_DATA]
    other += [key for key in board.differing if key.startswith("loss") and board.metric.endswith("/loss")]
    if other:
        board.notes.append(f"jobs differ in {', '.join(other)}, so their losses are not comparable")
    _boards[folder] = jobs, arguments, board
    return board
