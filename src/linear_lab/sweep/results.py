"""What a stack leaves: results.parquet in the sweep's folder, a row for each job with the fields of result.json."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from linear_lab import UserError
from linear_lab.runs import atomic

if TYPE_CHECKING:
    import polars as pl

RESULTS, HISTORY = "results.parquet", "history.parquet"
LOCK = f".{RESULTS}.lock"
STACKING = ".stack.lock"  # held by the process that trains stacks in the sweep's folder
VERSION = {"linear_lab.results": "1"}  # of the columns
NEEDED = {"name", "status"}  # columns that each table of results has
UNREADABLE = ".unreadable"  # behind the name of a file that was put aside


def read_results(
    folder: Path,
    columns: "Sequence[str | pl.Expr] | None" = None,
    where: "pl.Expr | None" = None,
    name: str = RESULTS,
) -> "pl.DataFrame | None":
    """Read the results of a sweep's stacks; None where there are none.

    Args:
        folder: the sweep's.
        columns: those that are wanted; None takes all.
        where: which rows; None takes all.
        name: of the file.

    Raises:
        UserError: if the file cannot be read, or is of another version.
    """
    import polars as pl

    path = folder / name
    if not path.exists():
        return None
    with reading(path):
        if {key: pl.read_parquet_metadata(path).get(key) for key in VERSION} != VERSION:
            raise UserError(f"{path}: made by another version of linear_lab, or another program; {remedy(folder)}")
        if name == RESULTS and not pl.read_parquet_schema(path).keys() >= NEEDED:
            raise UserError(f"{path}: it is no table of results; {remedy(folder)}")
        found = pl.scan_parquet(path)
        found = found if where is None else found.filter(where)
        return (found if columns is None else found.select(columns)).collect()


def schema(folder: Path) -> "dict[str, pl.DataType]":
    """Return names and types of the columns; none where there are no results.

    Raises:
        UserError: as `read_results`.
    """
    import polars as pl

    with reading(folder / RESULTS):
        return dict(pl.read_parquet_schema(folder / RESULTS)) if (folder / RESULTS).exists() else {}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say of results that cannot be read which file that is, and what to do."""
    import polars as pl

    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read ({why}); {remedy(path.parent)}") from error


def remedy(folder: Path) -> str:
    """Say what to do with results that cannot be read."""
    return f"overwrite=true with name={folder.name} puts the file aside and trains its jobs again"


def put_aside(folder: Path) -> None:
    """Rename results that cannot be read, so that their jobs are trained again."""
    readable(folder, RESULTS)


def readable(folder: Path, name: str) -> "pl.DataFrame | None":
    """Read a whole file of results; one that cannot be read is put aside."""
    try:
        return read_results(folder, name=name)
    except UserError:
        (folder / name).replace(folder / (name + UNREADABLE))
        return None


def add(folder: Path, rows: "pl.DataFrame", name: str = RESULTS) -> None:
    """Add rows to the results, in place of those with the same name; atomically, and one process after the other.

    What cannot be read by now is put aside: what was trained meanwhile must not be lost with it.

    Raises:
        UserError: if the disk is full, or does not let itself be written.
    """
    import polars as pl

    path = folder / name
    with (folder / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        earlier = readable(folder, name)
        if earlier is not None:
            others = earlier.join(rows.select("name"), on="name", how="anti", maintain_order="left")
            rows = pl.concat([others, rows], how="diagonal_relaxed")
        write(path, rows)


def write(path: Path, rows: "pl.DataFrame") -> None:
    """Replace a file of results; within the lock.

    Raises:
        UserError: if the disk is full, or does not let itself be written.
    """
    import polars as pl

    with atomic.writing(path, atomic.ROOM_REMEDY) as part:
        try:
            rows.write_parquet(part, metadata=VERSION)
        except pl.exceptions.PolarsError as error:  # as which polars tells a full disk
            raise OSError(str(error).splitlines()[0].rpartition("error: ")[2]) from error


def forget(folder: Path, names: "pl.Series") -> None:
    """Take rows out of the results: of jobs that shall be trained afresh."""
    import polars as pl

    among = pl.col("name").is_in(names.implode())
    if len(names) and (found := read_results(folder, ["name"], among)) is not None and len(found):
        with (folder / LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            left = read_results(folder, where=~among)
            assert left is not None
            write(folder / RESULTS, left)


def has_ended(folder: Path, name: str, config_hash: str) -> bool:
    """Tell whether a job has ended in a stack."""
    import polars as pl

    job = (pl.col("name") == name) & (pl.col("config_hash") == config_hash) & (pl.col("status") != "failed")
    found = read_results(folder, ["name"], job)
    return found is not None and not found.is_empty()


@contextmanager
def stacking(folder: Path) -> Iterator[None]:
    """Hold the sweep's folder for the stacks of this process; wait while another one trains some."""
    file = os.open(folder / STACKING, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def is_stacking(folder: Path) -> bool:
    """Tell whether some process trains stacks in a sweep's folder now."""
    return atomic.is_locked(folder / STACKING)
