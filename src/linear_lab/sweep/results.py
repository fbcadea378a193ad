"""The results of stacks: results.parquet in the sweep's folder has one row per job, with the fields of result.json."""

import fcntl
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from linear_lab import UserError
from linear_lab.runs import atomic
from linear_lab.text import first_line

RESULTS, HISTORY = "results.parquet", "history.parquet"
LOCK = f".{RESULTS}.lock"
STACKING = ".stack.lock"  # held by the process that trains stacks in the sweep's folder
VERSION = {"linear_lab.results": "1"}  # metadata of the file: the version of its columns
REQUIRED = {"name", "status"}  # columns that every table of results has
NUMBERS = {"seed", "steps", "seconds", "excess_loss", "stable_lr", "steps_above_1_percent", "job.lr"}
KINDS: dict[str, Any] = {
    **dict.fromkeys(("job", "metrics", "rows", "best", "initial"), pl.Struct),
    **dict.fromkeys(("name", "status", "error", "config_hash", "data"), pl.String),
    **dict.fromkeys((f"job.{name}" for name in ("metric", "mode", "group", "problem", "optimizer", "tags")), pl.String),
    **{"job.overrides": pl.List(pl.String), "job.pictures": pl.Boolean},
}
UNREADABLE = ".unreadable"  # suffix of a damaged file that was renamed
NAME = r"^[A-Za-z0-9][A-Za-z0-9._=+-]*$"  # a job's folder name, which has the characters of `atomic.sanitized`
REMEDY = "train the sweep with name={} and overwrite=true, which renames the file and trains its jobs again"


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file, which is created if missing; without ``wait``, raise BlockingIOError if it is held."""
    with open(path, "a", opener=atomic.no_link) as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def read_results(
    folder: Path, columns: Sequence[str | pl.Expr] | None = None, where: pl.Expr | None = None, name: str = RESULTS
) -> pl.DataFrame | None:
    """Read columns and rows of a sweep's results, by default all of them; None if the file does not exist.

    Raises:
        UserError: if the file cannot be read, or has another version.
    """
    path, remedy = folder / name, REMEDY.format(folder.name)
    if not path.exists():
        return None
    with _reading(path):
        if {key: pl.read_parquet_metadata(path).get(key) for key in VERSION} != VERSION:
            raise UserError(f"{path}: another version of linear_lab, or another program, wrote it; {remedy}")
        if name == RESULTS and not has_result_types(pl.read_parquet_schema(path)):
            raise UserError(f"{path}: it is not a table of results; {remedy}")
        rows = pl.scan_parquet(path).filter(True if where is None else where)
        read = rows.select(columns or pl.all()).collect()
        if "name" in read.columns:
            check_names(read["name"])
        return read


def schema(folder: Path) -> dict[str, pl.DataType]:
    """Read the names and types of the columns; {} if there are no results; raises the errors of `read_results`."""
    with _reading(folder / RESULTS):
        return dict(pl.read_parquet_schema(folder / RESULTS)) if (folder / RESULTS).exists() else {}


def has_result_types(columns: Mapping[str, pl.DataType]) -> bool:
    """Return whether columns have the types of results; a column of nulls may have any type."""
    structs = {name: kind.fields for name, kind in columns.items() if isinstance(kind, pl.Struct)}
    kinds = {**columns, **{f"{name}.{field.name}": field.dtype for name in structs for field in structs[name]}}
    return columns.keys() >= REQUIRED and all(
        kind in (pl.Null, pl.List(pl.Null))
        or (kind.is_numeric() if name in NUMBERS or name.startswith("metrics.") else kind == KINDS.get(name, kind))
        for name, kind in kinds.items()
    )


def check_names(names: pl.Series) -> None:
    """Raise ValueError if a name cannot be that of a job's folder, such as ``../x``."""
    wrong = names.filter(~names.str.contains(NAME).fill_null(False))
    if len(wrong):
        raise ValueError(f"{wrong[0]!r} cannot be the name of a job")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        remedy = REMEDY.format(path.parent.name)
        raise UserError(f"{path}: cannot be read ({first_line(error)}); {remedy}") from error


def read_or_put_aside(folder: Path, name: str = RESULTS) -> pl.DataFrame | None:
    """Read a file of results; rename it and return None if it cannot be read, so that its jobs are trained again."""
    try:
        return read_results(folder, name=name)
    except UserError:
        (folder / name).replace(folder / (name + UNREADABLE))
        return None


def add(folder: Path, rows: pl.DataFrame, name: str = RESULTS) -> None:
    """Add rows to the results, replacing those with the same names; an unreadable file is renamed first."""
    with locked(folder / LOCK):
        earlier = read_or_put_aside(folder, name)
        if earlier is not None:
            others = earlier.join(rows.select("name"), on="name", how="anti", maintain_order="left")
            rows = pl.concat([others, rows], how="diagonal_relaxed")
        write(folder / name, rows)


def write(path: Path, rows: pl.DataFrame) -> None:
    """Write a table atomically; raise UserError if the disk is full. The caller holds the lock."""
    content = io.BytesIO()
    rows.write_parquet(content, metadata=VERSION)
    atomic.replace(path, content.getbuffer())


def remove_rows(folder: Path, names: pl.Series) -> None:
    """Remove the rows of jobs, which are then trained again."""
    chosen = pl.col("name").is_in(names.implode())
    rows = read_results(folder, ["name"], chosen) if len(names) else None
    if rows is not None and len(rows):
        with locked(folder / LOCK):
            others = read_results(folder, where=~chosen)
            assert others is not None
            write(folder / RESULTS, others)


def has_ended(folder: Path, name: str, config_hash: str) -> bool:
    """Return whether a job with this config has ended in a stack."""
    job = (pl.col("name") == name) & (pl.col("config_hash") == config_hash) & (pl.col("status") != "failed")
    rows = read_results(folder, ["name"], job)
    return rows is not None and not rows.is_empty()


def stacking(folder: Path) -> AbstractContextManager[None]:
    """Hold the lock for training stacks in a sweep's folder; wait while another process holds it."""
    return locked(folder / STACKING)


def is_stacking(folder: Path) -> bool:
    return atomic.is_locked(folder / STACKING)
