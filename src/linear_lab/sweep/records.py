"""What a sweep has left on disk: its plan and its jobs' records, both JSON, so that a thousand are read in a moment."""

import functools
import json
import math
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linear_lab.run import RESULT, is_held
from linear_lab.terminal import python, quoted

PLAN = "sweep.json"
STACKS = "_stacks"  # in the sweep's folder, while stacks are trained
ORDER = "jobs.json"  # in a stack's own: its jobs, in the order of the stack
ENDED = ("completed", "diverged", "pruned")  # what is not run again
# What is wanted of a record; the lists of parameters in it may be long
KEPT = ("status", "error", "seed", "metrics", "excess_loss", "steps", "seconds", "config_hash", "job", "initial")
STEERING = {"name", "overwrite", "fail_fast", "launch", "sweep", "resume", "hydra"}  # keys that no job is trained with


@dataclass
class Job:
    """A job of a sweep.

    Attributes:
        folder: its run folder, which need not be there yet.
        record: what result.json says, without the parameters; empty before the job starts.
        typed: its overrides in the order typed; None where nothing tells them.
        status: waiting | running | interrupted | completed | diverged | pruned | failed | unreadable.
        value: the final model's metric; None unless the job was completed and the metric is finite.
    """

    folder: Path
    record: dict[str, Any]
    typed: list[str] | None
    status: str
    value: float | None = None

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.folder.name

    @functools.cached_property
    def overrides(self) -> dict[str, str]:
        """Its overrides by their keys, but for those that only steer the sweep."""
        return dict(item.lstrip("+~").partition("=")[::2] for item in self.typed or [] if not is_steering(item))

    @property
    def command(self) -> str | None:
        """The command that trains it alone, to the same digits; None where nothing tells its overrides."""
        if self.typed is None:
            return None
        typed = [quoted(item) for item in self.typed if not is_steering(item)]
        return " ".join([python(), "-m", "linear_lab.train", *typed])


@functools.cache
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


def read_jobs(folder: Path) -> tuple[dict[str, Any], list[Job], list[str]]:
    """Read the plan, the jobs in the order planned, then those that no plan tells, and what is the matter with them."""
    plan, notes = read_plan(folder)
    planned: dict[str, list[str]] = plan.get("jobs", {})
    with os.scandir(folder) as found:
        others = [entry.name for entry in found if entry.name not in planned and entry.name[0] not in "_."]
    others.sort(key=lambda name: (len(name.partition("-")[0]), name))  # 2-sgd, 10-sgd
    jobs = []
    for name in [*planned, *others]:
        of_job, of_record = paths(folder, name)
        record = read_record(of_record)
        status = record.get("status", "waiting")
        if status == "running" and not is_held(of_job):
            status = "interrupted"  # killed
        if record or name in planned:
            typed = record.get("job", {}).get("overrides", planned.get(name))
            jobs.append(Job(of_job, record, typed, status))
    return plan, jobs, notes


@functools.cache  # a sweep is read often, and making paths would take most of the time
def paths(folder: Path, name: str) -> tuple[Path, Path]:
    """Return a job's folder and its record."""
    return folder / name, folder / name / RESULT


def read_plan(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Read the plan, and say what is the matter with it; an empty one where there is none, as in older sweeps."""
    try:
        plan = json.loads((folder / PLAN).read_bytes())
        if not all(are_texts(overrides) for overrides in plan["jobs"].values()):
            raise ValueError("it is no plan of a sweep")
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        return {}, [f"{PLAN} cannot be read ({error}), so jobs that never started are not listed"]
    return plan, []


_records: dict[
    Path, tuple[tuple[int, int, int], dict[str, Any]]
] = {}  # as read last, by what a new file has another of


def read_record(path: Path) -> dict[str, Any]:
    """Read what is wanted of a record; one that cannot be read says so, and one that is not there is empty."""
    try:
        stat = path.stat()
    except OSError:
        return {}
    stamp = stat.st_mtime_ns, stat.st_size, stat.st_ino
    if path not in _records or _records[path][0] != stamp:
        try:
            found = json.loads(path.read_bytes())
            record = {key: found[key] for key in KEPT if key in found}
            kinds = {"status": str, "metrics": dict, "job": dict}
            odd = [key for key, kind in kinds.items() if not isinstance(record.get(key, kind()), kind)]
            if odd or "status" not in record or not are_texts(record.get("job", {}).get("overrides", [])):
                raise ValueError("it is no record of a run")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            record = {"status": "unreadable", "error": f"{RESULT} cannot be read: {error}"}
        _records[path] = stamp, record
    return _records[path][1]


def forget_stacks(folder: Path) -> None:
    """Take away what stacks have kept to go on from, once all their jobs have ended, whoever trained them."""
    for path in folder.glob(f"{STACKS}/*/{ORDER}"):
        jobs = [paths(folder, key.partition(" ")[0]) for key in json.loads(path.read_bytes())]
        if all(read_record(of_record).get("status") in ENDED and not is_held(of_job) for of_job, of_record in jobs):
            shutil.rmtree(path.parent, ignore_errors=True)
    with suppress(OSError):  # there is none, or another process trains a stack now
        (folder / STACKS).rmdir()


def are_texts(value: Any) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
