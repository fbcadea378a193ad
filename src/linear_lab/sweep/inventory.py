"""Reads a sweep's folder as one table of jobs, from the plan, the results of stacks, and the records of run folders."""

import functools
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from linear_lab import UserError
from linear_lab.runs import record
from linear_lab.runs.folder import RESULT, is_held
from linear_lab.runs.record import ENDED
from linear_lab.sweep import PLAN, results
from linear_lab.sweep.plan import COLUMNS, EMPTY, read_plan

# top-level keys that control the sweep, and are not part of a job's overrides
STEERING = {"name", "overwrite", "fail_fast", "launch", "sweep", "resume", "trust", "hydra"}
NUMBERS = ("seed", "steps", "seconds", "excess_loss", "stable_lr")  # numeric fields of a record
TEXTS = ("status", "error", "config_hash")  # text fields of a record
OF_JOB = ("metric", "mode", "group", "problem", "optimizer", "lr", "tags", "pictures")  # fields of a record's `job`
KEYS = "key:"  # prefix of the columns that hold the typed values of keys
SCHEMA: dict[str, Any] = {
    **{"name": pl.String, "folder": pl.Boolean, "trained": pl.Boolean, "typed": pl.List(pl.String)},
    **dict.fromkeys((*TEXTS, *OF_JOB), pl.String),
    **dict.fromkeys((*NUMBERS, "lr"), pl.Float64),
    **dict.fromkeys(("seed", "steps"), pl.Int64),
    "pictures": pl.Boolean,
}
Stamp = tuple[int, int, int]

# A cache, since two threads read the table often: by folder, the stamps of its files, the jobs, and the notes.
_jobs: dict[Path, tuple[Any, pl.DataFrame, list[str]]] = {}
_reading = threading.Lock()


def is_steering(override: str) -> bool:
    """Return whether an override controls the sweep, rather than being one of a job's overrides.

    >>> [is_steering(item) for item in ("launch=joblib", "hydra/launcher=ray", "optimizer.lr=0.1", "+names=1")]
    [True, True, False, False]
    """
    key = override.lstrip("+~").partition("=")[0]
    return key.partition("/")[0].partition(".")[0] in STEERING


def read_jobs(folder: Path) -> tuple[pl.DataFrame, list[str]]:
    """Read all jobs of a sweep, in the order of the plan.

    Returns:
        a table with one row per job, and notes about files that could not be read. The columns are:

        - ``name``; ``planned``, the fingerprint in the plan; ``folder``, whether a run folder has the job's record;
        - `TEXTS` and `NUMBERS`, from the record or the results of stacks, and ``trained``, whether training has begun;
          ``status`` is waiting, running, interrupted, completed, diverged, pruned, failed, or unreadable;
        - ``metrics``, a struct of the final model's metrics; `OF_JOB`; ``typed``, the list of overrides, from a record
          or from the results of a job that is not planned, else null;
        - ``key:<key>`` for each typed key, its value as text; ``key:tags`` if a job was trained with tags.
    """
    with _reading:
        records, stamps = _read_folders(folder)
        stamps = [stamp(folder / PLAN), stamp(folder / results.RESULTS), *stamps]
        if folder not in _jobs or _jobs[folder][0] != stamps:
            _jobs.pop(folder, None)  # frees memory before the new table is made, which may have a million rows
            _jobs[folder] = stamps, *_read_all(folder, records)
        return _jobs[folder][1:]


def stamp(path: Path) -> Stamp | None:
    """Return modification time, size and inode of a file, which change when it is replaced; None if it is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read_all(folder: Path, records: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    notes, planned, stacked = [], EMPTY, pl.DataFrame(schema=SCHEMA)
    try:
        planned = read_plan(folder)
    except UserError as error:
        notes.append(f"{error}, so jobs that never started are not listed")
    try:
        stacked = read_stacked(folder, planned)
    except UserError as error:
        notes.append(str(error))
    # A job that was trained in a stack and alone gets the numbers of its stack, for comparison with the other jobs.
    ended = pl.col("status").is_in(ENDED)
    also_alone = records.filter(ended).select("name", "config_hash", folder=True)
    stacked = stacked.drop("folder", strict=False)
    stacked = stacked.join(also_alone, on=["name", "config_hash"], how="left", maintain_order="left")
    records = records.join(stacked.filter(ended), on="name", how="anti")
    stacked = stacked.join(records, on="name", how="anti", maintain_order="left")
    jobs = pl.concat([pl.DataFrame(schema=SCHEMA), stacked, records], how="diagonal_relaxed")
    jobs = jobs.sort(pl.col("name").str.split("-").list.first().str.len_chars(), "name")  # 2-sgd before 10-sgd
    of_plan = planned.select("name", planned="config_hash", planned_group="group", planned_problem="problem")
    jobs = of_plan.join(jobs, on="name", how="full", coalesce=True, maintain_order="left_right")
    filled = [pl.coalesce(name, f"planned_{name}") for name in ("group", "problem")]
    filled += [pl.col("status").fill_null("waiting"), pl.col("folder", "trained").fill_null(False)]
    jobs = jobs.with_columns(filled).drop("planned_group", "planned_problem")
    return _with_keys(jobs, planned), notes


def read_stacked(folder: Path, planned: pl.DataFrame) -> pl.DataFrame:
    """Read the results of stacks. To save memory, read overrides only for jobs that are not in the plan."""
    schema = results.schema(folder)
    if not schema:
        return pl.DataFrame(schema=SCHEMA)
    of_job = {name: pl.col("job").struct.field(name) for name in fields(schema, "job")}
    columns: list[str | pl.Expr] = [name for name in ("name", *TEXTS, *NUMBERS, "metrics") if name in schema]
    columns += [of_job[name] for name in OF_JOB if name in of_job]
    columns.append((pl.col("status") != "failed").alias("trained"))
    if "overrides" in of_job:
        is_planned = pl.col("name").is_in(planned["name"].implode())
        columns.append(pl.when(~is_planned).then(of_job["overrides"]).alias("typed"))
    stacked = results.read_results(folder, columns)
    assert stacked is not None
    return stacked


def fields(schema: Mapping[str, pl.DataType], column: str) -> list[str]:
    """Return the names of the fields of a struct column; an empty list if there is no such column."""
    kind = schema.get(column)
    return [field.name for field in kind.fields] if isinstance(kind, pl.Struct) else []


def _with_keys(jobs: pl.DataFrame, planned: pl.DataFrame) -> pl.DataFrame:
    """Add a column per typed key, with the values of the record, or else of the plan."""
    columns: dict[str, list[str]] = {}
    for column in planned.columns:
        if column not in COLUMNS and not is_steering(column):
            columns.setdefault(column.lstrip("+~"), []).append(column)  # one command may type x=1, another ++x=2
    of_plan = planned.select("name", *(pl.coalesce(names).alias(KEYS + key) for key, names in columns.items()))
    recorded = jobs.filter((pl.col("folder") | pl.col("planned").is_null()) & pl.col("typed").is_not_null())
    rows = []
    for name, typed in recorded.select("name", "typed").iter_rows():
        pairs = (item.lstrip("+~").partition("=")[::2] for item in typed if not is_steering(item))
        rows.append({"name": name} | {KEYS + key: value for key, value in pairs})
    of_records = pl.DataFrame(rows or {"name": []}, infer_schema_length=None)
    keys = pl.concat([of_plan.join(recorded, on="name", how="anti"), of_records], how="diagonal_relaxed")
    jobs = jobs.join(keys, on="name", how="left", maintain_order="left").drop(KEYS + "tags", strict=False)
    return jobs.with_columns(jobs["tags"].alias(KEYS + "tags")) if jobs["tags"].is_not_null().any() else jobs


def _read_folders(folder: Path) -> tuple[pl.DataFrame, list[Any]]:
    """Read the records of all run folders of a sweep, and return them with a list that changes whenever one does."""
    rows: list[dict[str, Any]] = []
    stamps: list[Any] = []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name[0] not in "_." and entry.is_dir()]
    for name in names:
        version = stamp(folder / name / RESULT)
        row = _read_record(folder / name / RESULT, version)
        if not row or not name.isprintable():  # no job's folder has a name with control characters
            continue
        if row["status"] == "running" and not is_held(folder / name):
            row = row | {"status": "interrupted"}  # its process was killed
        rows.append({"name": name, "folder": True} | row)
        stamps.append((name, row["status"], version))
    tables = [pl.DataFrame(schema=SCHEMA), pl.DataFrame(rows, infer_schema_length=None)]
    return pl.concat(tables, how="diagonal_relaxed"), stamps


def read_record(path: Path) -> dict[str, Any]:
    """Read the fields of a record that a sweep needs; {} if it is missing, status ``unreadable`` if it is damaged."""
    return _read_record(path, stamp(path))


@functools.lru_cache(1 << 18)
def _read_record(path: Path, version: Stamp | None) -> dict[str, Any]:
    if version is None:
        return {}
    try:
        job_record = record.read(path)
        if job_record.status is None:
            raise ValueError("it has no status")
    except (OSError, ValueError) as error:
        return {"status": "unreadable", "error": f"{RESULT} cannot be read: {error}", "trained": False}
    job = job_record.job or record.Job()
    row = {name: getattr(job_record, name) for name in (*TEXTS, *NUMBERS)}
    row |= {name: getattr(job, name) for name in OF_JOB}
    row |= {"trained": job_record.initial is not None, "typed": job.overrides}
    return row | ({"metrics": job_record.metrics} if job_record.metrics else {})
