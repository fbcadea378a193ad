"""What a sweep has left on disk, as one table: plan, results of stacks, and records of run folders."""

import json
import math
import os
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linear_lab import UserError
from linear_lab.runs.folder import RESULT, is_held
from linear_lab.sweep import results
from linear_lab.sweep.plan import COLUMNS, PLAN, read_plan
from linear_lab.sweep.results import RESULTS

if TYPE_CHECKING:
    import polars as pl

ENDED = ("completed", "diverged", "pruned")  # what is not run again
STEERING = {"name", "overwrite", "fail_fast", "launch", "sweep", "resume", "hydra"}  # keys that no job is trained with
NUMBERS = ("seed", "steps", "seconds", "excess_loss", "stable_lr")  # of a record
WHOLE = ("seed", "steps")  # those of them that are whole ones
TEXTS = ("status", "error", "config_hash")
OF_JOB = ("metric", "mode", "group", "problem", "optimizer", "lr", "pictures")  # of what it says of its job
KEYS = "key:"  # before the names of columns that hold what was typed for a key

# As read last, by the stamps of the files: a sweep is read often, and by two threads
_records: dict[Path, tuple[tuple[int, int, int], dict[str, Any]]] = {}
_jobs: dict[Path, "tuple[Any, pl.DataFrame, list[str]]"] = {}
_reading = threading.Lock()


@cache
def is_steering(override: str) -> bool:
    """Tell what steers the sweep from what a job is trained with.

    >>> [is_steering(item) for item in ("launch=joblib", "hydra/launcher=ray", "optimizer.lr=0.1", "+names=1")]
    [True, True, False, False]
    """
    key = override.lstrip("+~").partition("=")[0]
    return key.partition("/")[0].partition(".")[0] in STEERING


def finite(value: Any) -> float | None:
    """Return a finite number, None for anything else."""
    with suppress(OverflowError):
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    return None


def read_jobs(folder: Path) -> "tuple[pl.DataFrame, list[str]]":
    """Read all jobs of a sweep: in the order planned, then those that no plan tells.

    Returns:
        a row for each job, and what is the matter with what was read. Columns:

        - ``name``; ``planned``, the fingerprint that the plan has; ``folder``, whether the job has one, with a record;
        - `TEXTS` and `NUMBERS` as the record or the results have them, and ``trained``, whether training has begun;
          ``status`` is waiting, running, interrupted, completed, diverged, pruned, failed, or unreadable;
        - ``metrics``, a struct of the final model's; `OF_JOB`; ``typed``, the list of overrides, if it is known;
        - for each key that was typed ``key:<key>``, its value as text.
    """
    with _reading:
        records, stamps = read_folders(folder)
        stamps = (*(stamp(folder / name) for name in (PLAN, RESULTS)), stamps)
        if folder not in _jobs or _jobs[folder][0] != stamps:
            _jobs.pop(folder, None)  # first, since a million jobs take room
            _jobs[folder] = stamps, *put_together(folder, records)
        return _jobs[folder][1:]


def stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what a file has another of when it was written anew; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def put_together(folder: Path, records: "pl.DataFrame") -> "tuple[pl.DataFrame, list[str]]":
    """Read plan and results, and add the records of run folders; see `read_jobs`."""
    import polars as pl

    notes: list[str] = []
    try:
        planned = read_plan(folder)
        if planned["name"].has_nulls():
            raise UserError(f"{PLAN} cannot be read (it names no jobs)")
    except UserError as error:
        notes.append(f"{error}, so jobs that never started are not listed")
        planned = pl.DataFrame(schema=dict.fromkeys(COLUMNS, pl.String))
    try:
        stacked = read_stacked(folder, planned)
    except UserError as error:
        notes.append(str(error))
        stacked = empty()
    # What has ended in a stack is compared by the numbers that it has there, as the others of that stack are.
    ended = pl.col("status").is_in(ENDED)
    alone = records.filter(ended).select("name", "config_hash", alone=True)
    stacked = stacked.join(alone, on=["name", "config_hash"], how="left", maintain_order="left")
    stacked = stacked.with_columns(folder=pl.col("alone").fill_null(False)).drop("alone")
    records = records.join(stacked.filter(ended), on="name", how="anti")
    stacked = stacked.join(records.select("name"), on="name", how="anti", maintain_order="left")
    found = pl.concat([empty(), stacked, records], how="diagonal_relaxed")
    others = found.join(planned.select("name"), on="name", how="anti").select("name")
    others = others.sort(pl.col("name").str.split("-").list.first().str.len_chars(), "name")  # 2-sgd, 10-sgd
    order = pl.concat([planned.select("name"), others])
    of_plan = planned.select("name", "problem", planned="config_hash", group="group")
    jobs = order.join(found, on="name", how="left", maintain_order="left")
    jobs = jobs.join(of_plan, on="name", how="left", maintain_order="left", suffix=" of plan")
    jobs = jobs.with_columns(
        *(pl.coalesce(name, f"{name} of plan").alias(name) for name in ("group", "problem")),
        pl.col("status").fill_null("waiting"), pl.col("folder", "trained").fill_null(False),
    ).drop("group of plan", "problem of plan")  # fmt: skip
    return with_keys(jobs, planned), notes


def read_stacked(folder: Path, planned: "pl.DataFrame") -> "pl.DataFrame":
    """Read what is wanted of the results of stacks; overrides only of jobs that no plan tells.

    Raises:
        UserError: if they cannot be read.
    """
    import polars as pl

    columns = results.schema(folder)
    if not columns:
        return empty()
    job = columns.get("job")
    names = [field.name for field in job.fields] if isinstance(job, pl.Struct) else []
    of_job = [pl.col("job").struct.field(name) for name in OF_JOB if name in names]
    own = [name for name in ("name", *TEXTS, *NUMBERS, "metrics") if name in columns]
    found = results.read_results(folder, [*own, *of_job])
    assert found is not None
    found = found.with_columns(trained=pl.col("status") != "failed")
    unknown = found.join(planned.select("name"), on="name", how="anti")["name"]
    if len(unknown):
        typed = [pl.col("name"), pl.col("job").struct.field("overrides").alias("typed")]
        told = results.read_results(folder, typed, pl.col("name").is_in(unknown.implode()))
        assert told is not None
        found = found.join(told, on="name", how="left", maintain_order="left")
    return found


def empty() -> "pl.DataFrame":
    """Return the table of no jobs."""
    import polars as pl

    kinds: dict[str, Any] = {
        "name": pl.String,
        "folder": pl.Boolean,
        "trained": pl.Boolean,
        "typed": pl.List(pl.String),
    }
    kinds |= dict.fromkeys((*TEXTS, *OF_JOB), pl.String) | dict.fromkeys((*NUMBERS, "lr"), pl.Float64)
    return pl.DataFrame(schema=kinds | {"seed": pl.Int64, "steps": pl.Int64, "pictures": pl.Boolean})


def fields(frame: "pl.DataFrame", column: str) -> list[str]:
    """Return the names of a struct's fields; none if there is no such column."""
    import polars as pl

    kind = frame.schema.get(column)
    return [field.name for field in kind.fields] if isinstance(kind, pl.Struct) else []


def with_keys(jobs: "pl.DataFrame", planned: "pl.DataFrame") -> "pl.DataFrame":
    """Add what was typed for each key: by the record, or else by the plan."""
    import polars as pl

    keys: dict[str, list[str]] = {}
    for column in planned.columns:
        if column not in COLUMNS and not is_steering(column):
            keys.setdefault(column.lstrip("+~"), []).append(column)  # x=1 of one command, ++x=2 of another
    of_plan = planned.select("name", *(pl.coalesce(columns).alias(KEYS + key) for key, columns in keys.items()))
    told = jobs.filter((pl.col("folder") | pl.col("planned").is_null()) & pl.col("typed").is_not_null())
    rows = [
        {"name": name} | {KEYS + key: value for key, value in as_keys(typed).items()}
        for name, typed in told.select("name", "typed").iter_rows()
    ]
    known = pl.DataFrame(rows, infer_schema_length=None) if rows else pl.DataFrame(schema={"name": pl.String})
    silent = jobs.join(told.select("name"), on="name", how="anti").select("name")
    every = pl.concat([of_plan.join(silent, on="name", how="semi"), known], how="diagonal_relaxed")
    return jobs.join(every, on="name", how="left", maintain_order="left")


def as_keys(typed: list[str]) -> dict[str, str]:
    """Return overrides by their keys, but for those that only steer the sweep."""
    return dict(item.lstrip("+~").partition("=")[::2] for item in typed if not is_steering(item))


def read_folders(folder: Path) -> "tuple[pl.DataFrame, Any]":
    """Read the records of all run folders of a sweep; returns also what changes where one does."""
    import polars as pl

    rows = []
    with os.scandir(folder) as found:
        names = [entry.name for entry in found if entry.name[0] not in "_." and entry.is_dir()]
    names = [name for name in names if is_utf8(name)]  # the others are none of ours
    for name in names:
        of_job, of_record = paths(folder, name)
        record = read_record(of_record)
        if not record:
            continue
        if record["status"] == "running" and not is_held(of_job):
            record = record | {"status": "interrupted"}  # killed
        rows.append({"name": name, "folder": True} | record)
    stamps = tuple((row["name"], row["status"], _records[paths(folder, row["name"])[1]][0]) for row in rows)
    if not rows:
        return empty(), stamps
    return pl.concat([empty(), pl.DataFrame(rows, infer_schema_length=None)], how="diagonal_relaxed"), stamps


@cache  # a sweep is read often, and making paths would take most of the time
def paths(folder: Path, name: str) -> tuple[Path, Path]:
    """Return a job's folder and its record."""
    return folder / name, folder / name / RESULT


def read_record(path: Path) -> dict[str, Any]:
    """Read what is wanted of a record; one that cannot be read says so, and one that is not there is empty."""
    now = stamp(path)
    if now is None:
        return {}
    if path not in _records or _records[path][0] != now:
        try:
            record = as_row(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            record = {"status": "unreadable", "error": f"{RESULT} cannot be read: {error}", "trained": False}
        _records[path] = now, record
    return _records[path][1]


def as_row(record: Any) -> dict[str, Any]:
    """Take from a record what a sweep wants of it.

    Raises:
        ValueError: if it is none.
        TypeError: likewise.
    """
    kinds = {"status": str, "metrics": dict, "job": dict}
    if not isinstance(record, dict) or any(
        not isinstance(record.get(key, kind()), kind) for key, kind in kinds.items()
    ):
        raise ValueError("it is no record of a run")
    job = record.get("job", {})
    typed = job.get("overrides")
    if "status" not in record or not (typed is None or are_texts(typed)):
        raise ValueError("it is no record of a run")
    row: dict[str, Any] = {name: text(record.get(name)) for name in TEXTS}
    row |= {name: finite(record.get(name)) for name in NUMBERS}
    row |= {name: None if row[name] is None or abs(row[name]) >= 2**63 else int(row[name]) for name in WHOLE}
    row |= {name: text(job.get(name)) for name in OF_JOB}
    row |= {"lr": finite(job.get("lr")), "pictures": job.get("pictures") is True}
    metrics = {str(text(name)): finite(value) for name, value in record.get("metrics", {}).items()}
    known = typed if typed is None or all(map(is_utf8, typed)) else None  # others could not be typed again
    return row | ({"metrics": metrics} if metrics else {}) | {"typed": known, "trained": "initial" in record}


def text(value: Any) -> str | None:
    """Return a text such as a table holds; None for anything else."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else None


def is_utf8(value: str) -> bool:
    """Whether a text can be written, unlike some names of files."""
    return text(value) == value


def are_texts(value: Any) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
