"""How a sweep's jobs compare: ranks, what differs between them, and groups over seeds."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from linear_lab import UserError
from linear_lab.sweep.inventory import KEYS, fields, is_steering, read_jobs
from linear_lab.sweep.plan import overrides, read_plan, read_settings
from linear_lab.sweep.results import read_results
from linear_lab.terminal.layout import python, quoted, short

if TYPE_CHECKING:
    import polars as pl

SAME_DATA = ("data.batch_size", "data.order_seed")  # of the data's keys those that change no part of them

_read: dict[Path, "tuple[pl.DataFrame, Any, Board]"] = {}  # of which jobs, what was asked, and what was read


class Job(NamedTuple):
    """A job by itself.

    Attributes:
        folder: its run folder, which need not be there.
        value: of the metric by which it is ranked.
        typed: its overrides in the order typed; None where nothing tells them.
    """

    folder: Path
    value: float | None
    typed: list[str] | None

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.folder.name

    @property
    def command(self) -> str | None:
        """The command that trains it alone, to the same digits; None where nothing tells its overrides."""
        if self.typed is None:
            return None
        typed = [quoted(item) for item in self.typed if not is_steering(item)]
        return " ".join([python(), "-m", "linear_lab.train", *typed])


@dataclass
class Board:
    """What a sweep has found so far.

    Attributes:
        folder: the sweep's.
        metric: by which jobs are ranked.
        mode: min | max, whether a lower or a higher metric is better.
        jobs: as `read_jobs` returns them, and ``value``: the final model's metric; None unless the job was completed
            and the metric is finite.
        notes: what a reader has to know.
    """

    folder: Path
    metric: str
    mode: str
    jobs: "pl.DataFrame"
    notes: list[str]

    @cached_property
    def ranked(self) -> "pl.DataFrame":
        """Jobs with their ``rank``, best first; equal values share one, as in 1, 1, 3; those without follow."""
        import polars as pl

        ranks = (pl.col("value") * self.sign).rank("min").cast(pl.Int64)
        return self.jobs.with_columns(rank=ranks).sort("rank", nulls_last=True, maintain_order=True)

    @cached_property
    def best(self) -> Job | None:
        """The winner: of equal ones the first planned. None before a job is completed."""
        first = self.ranked.head(1).to_dicts()
        return self.job(first[0]) if first and first[0]["rank"] else None

    def job(self, row: dict[str, Any]) -> Job:
        """Return a row of the table by itself."""
        typed = row["typed"]
        if typed is None and row["planned"] is not None:
            typed = overrides(read_plan(self.folder).filter(name=row["name"]))[0].to_list()  # with + and ~
        return Job(self.folder / row["name"], row["value"], typed)

    @property
    def counts(self) -> dict[str, int]:
        """How many jobs have which status."""
        return dict(self.jobs.group_by("status", maintain_order=True).len().iter_rows())

    @property
    def sign(self) -> int:
        """What a metric is multiplied with to have the least first."""
        return -1 if self.mode == "max" else 1

    @property
    def keys(self) -> list[str]:
        """Keys of overrides, in the order typed."""
        return [name.removeprefix(KEYS) for name in self.jobs.columns if name.startswith(KEYS)]

    @cached_property
    def differing(self) -> list[str]:
        """Those whose values differ between jobs."""
        import polars as pl

        known = self.jobs.filter(pl.col("typed").is_not_null() | pl.col("planned").is_not_null())
        return [key for key in self.keys if known[KEYS + key].n_unique() > 1]

    @cached_property
    def groups(self) -> "pl.DataFrame":
        """Jobs that differ in their seeds alone; best mean first, those that lost none before the others.

        Columns: ``rank``, ``n`` completed jobs, ``lost`` ones that diverged or failed, ``mean``, ``standard_deviation``
        (``sqrt(sum((v - mean)^2) / (n - 1))``, None if n is 1), ``best``, ``worst``, and the keys of the first job. No
        rows unless a group has two seeds.
        """
        import polars as pl

        jobs = self.jobs.filter(pl.col("group").is_not_null())
        seed = pl.col("seed").cast(pl.String)
        if KEYS + "seed" in jobs.columns:
            seed = pl.coalesce(seed, KEYS + "seed")
        found = pl.col("value").is_not_null()
        jobs = jobs.with_columns(seed_=seed).sort(found, descending=True, maintain_order=True)
        jobs = jobs.unique(["group", "seed_"], keep="first", maintain_order=True)  # one config typed in two ways
        best, worst = (pl.col("value").min(), pl.col("value").max())[:: self.sign]
        keys = [pl.col(KEYS + key).first() for key in self.keys]
        value, lost = pl.col("value"), pl.col("status").is_in(["diverged", "failed"])
        groups = jobs.group_by("group", maintain_order=True).agg(
            found.sum().alias("n"), lost.sum().alias("lost"), pl.len(), value.mean().alias("mean"),
            value.std().alias("standard_deviation"), best.alias("best"), worst.alias("worst"), *keys,
        )  # fmt: skip
        if not (groups["len"] > 1).any() or not groups["n"].sum():
            return groups.clear().with_columns(rank=pl.lit(None, pl.Int64))
        order = groups.with_columns(flawed=pl.col("lost") > 0, signed=pl.col("mean") * self.sign)
        ranks = pl.when(pl.col("n") > 0).then(pl.struct("flawed", "signed")).rank("min")
        return order.with_columns(rank=ranks.cast(pl.Int64)).sort("rank", nulls_last=True, maintain_order=True)


def of_stack(folder: Path) -> str | None:
    """Say of a job without a run folder that it was trained in a stack, and how to train it alone; None if it was not.

    Raises:
        UserError: if the results of the sweep's stacks cannot be read.
    """
    import polars as pl

    columns: list[str | pl.Expr] = ["status", "error", pl.col("job").struct.field("overrides")]
    found = read_results(folder.parent, columns, pl.col("name") == folder.name)
    if found is None or found.is_empty():
        return None
    status, error, typed = found.row(0)
    if status == "failed":
        return f"this job failed: {error}"
    command = Job(folder, None, typed).command
    return f"this job was trained in a stack, which leaves no run folder; train it alone: {command}"


def read(folder: str | Path, metric: str | None = None, mode: str | None = None) -> Board:
    """Read what a sweep has found so far; a folder without jobs gives an empty board.

    Args:
        folder: the sweep's.
        metric: to rank by, as the records name it; None takes the sweep's own.
        mode: min | max; None takes the sweep's own, and for another metric what makes sense: max for an accuracy.

    Raises:
        UserError: for a metric that no job has measured, and for another mode.
    """
    import polars as pl

    folder = Path(folder)
    jobs, notes = read_jobs(folder)
    settings = read_settings(folder)
    asked = settings, metric, mode
    if folder in _read and _read[folder][0] is jobs and _read[folder][1] == asked:
        return _read[folder][2]
    told = [settings, *jobs.select("metric", "mode").drop_nulls().head(1).to_dicts()]
    own = next((item["metric"] for item in told if isinstance(item.get("metric"), str)), "val/loss")
    own_mode = next((item["mode"] for item in told if item.get("mode") in ("min", "max")), "min")
    measured = fields(jobs, "metrics")
    if metric is not None and metric not in measured:
        remedy = f"choose one of {', '.join(measured)}" if measured else "none has measured anything yet"
        raise UserError(f"metric={metric}: no job of {short(folder)} has measured it; {remedy}")
    if mode not in (None, "min", "max"):
        raise UserError(f"mode={mode}: choose min or max")
    if own not in measured and own.replace("val/", "train/") in measured:
        own = own.replace("val/", "train/")  # there is no val part: it is what decided which weights are best
    if metric not in (None, own):
        own_mode = "max" if str(metric).endswith("accuracy") else "min"
    chosen = metric or own
    value = pl.col("metrics").struct.field(chosen) if chosen in measured else pl.lit(None, pl.Float64)
    _read.pop(folder, None)
    board = Board(
        folder, chosen, mode or own_mode,
        jobs.with_columns(value=pl.when(pl.col("status") == "completed").then(value).cast(pl.Float64)), [*notes],
    )  # fmt: skip
    other = [key for key in board.differing if key.startswith("data") and key not in SAME_DATA]
    other += [key for key in board.differing if key.startswith("loss") and board.metric.endswith("/loss")]
    if other:
        board.notes.append(f"jobs differ in {', '.join(other)}: losses of other data, or other losses, do not compare")
    _read[folder] = jobs, asked, board
    return board
