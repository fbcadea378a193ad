"""A sweep's own page in TensorBoard: what its jobs have found, side by side."""

import atexit
import fcntl
import functools
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.optim import SGD
from yaml import YAMLError

from linear_lab import console
from linear_lab.assembly import build, restored_process
from linear_lab.dashboard import figures, surfaces
from linear_lab.dashboard.callbacks import coefficients
from linear_lab.dashboard.figures import Array
from linear_lab.dashboard.hparams import class_name
from linear_lab.dashboard.logger import RunLogger, event_files
from linear_lab.dashboard.pictures import least_squares_line, surface
from linear_lab.dashboard.texts import markdown_table
from linear_lab.data import LinearData
from linear_lab.model import LinearModule
from linear_lab.optimum import Reference, reference
from linear_lab.run import CONFIG, LAST, OVERRIDES, RESULT

PAGE, LEAST_SQUARES = "_sweep", "_least_squares"  # folders beside the jobs; no job's name begins so
SHARE = 0.05  # of a sweep's time that may go into its page while jobs run
ROWS = 200  # of the leaderboard that are shown

log = logging.getLogger(__name__)


@dataclass
class Job:
    """What a job has left: its record, its config, and the overrides that were typed."""

    folder: Path
    record: dict[str, Any]
    config: dict[str, Any]
    overrides: dict[str, str]

    def value(self, metric: str) -> float | None:
        """The final model's metric, if the job was completed."""
        found: float | None = self.record.get("metrics", {}).get(metric)
        return found if self.record["status"] == "completed" else None

    @property
    def problem(self) -> dict[str, Any]:
        """What must agree for two losses to be the same function of weight and bias."""
        data = {key: value for key, value in self.config["data"].items() if key not in ("batch_size", "order_seed")}
        return {"data": data, "loss": self.config["loss"], "bias": self.config["model"].get("bias") is False}

    @property
    def has_pictures(self) -> bool:
        """Whether the job was to make pictures."""
        return bool((self.config["logger"] or {}).get("pictures"))

    @functools.cached_property
    def path(self) -> Array | None:
        """Weight and bias along the optimizer's way, ``(N, 2)``; None if they were not followed."""
        try:
            checkpoint = torch.load(self.folder / LAST, weights_only=True, map_location="cpu")
            return np.array(checkpoint["callbacks"]["Dashboard"]["path"])[:, 1:]
        except (OSError, RuntimeError, LookupError, ValueError):  # not yet there, or of a run without pictures
            return None


@contextmanager
def page(folder: str | Path) -> Iterator[None]:
    """Bring the page up to date after the block, which is a job, and when the process ends."""
    folder = Path(folder)
    at_exit(folder)
    yield
    started = time.monotonic()
    last_ended, last_took = _written.get(folder, (0.0, 0.0))
    if started - last_ended >= last_took / SHARE:
        write_page(folder)
        _written[folder] = time.monotonic(), time.monotonic() - started


@contextmanager
def refresh(folder: str | Path) -> Iterator[None]:
    """Bring the page up to date after the block, if the run that it trains is a sweep's job that went on."""
    yield
    if (Path(folder).parent / PAGE).is_dir():
        write_page(Path(folder).parent)


_written: dict[Path, tuple[float, float]] = {}  # when the page was written last, and how long that took


@functools.cache  # once a sweep
def at_exit(folder: Path) -> None:
    """Write the page once more when the process ends: Hydra calls nothing after a job that failed."""
    atexit.register(write_page, folder, show=True)


def write_page(folder: Path, *, show: bool = False) -> None:
    """Write the page of a sweep's folder anew; a process that finds another one writing leaves it to that.

    Pictures: the learning rate against the final metric, and the optimizers' paths on one loss surface. Text: the
    leaderboard. Beside it the least-squares solution as a run of its own, for a line in each chart. Only where jobs
    have event files, and for the jobs that fit the same data.
    """
    jobs = read_jobs(folder)
    if not any(event_files(job.folder) for job in jobs):
        return
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with restored_process(folder):
            log_page(folder, jobs)
    except BlockingIOError:
        return
    except Exception:
        log.warning("the page of %s could not be written", folder, exc_info=True)
    finally:
        os.close(lock)
    if show:
        commands = console.looking(folder) | {"address": console.ADDRESS}  # its jobs are runs of other names
        console.show_commands(console.terminal(), commands)


def read_jobs(folder: Path) -> list[Job]:
    """Read what the jobs of a sweep have left; those without a record did not start."""
    found = [read_job(path, path.stat().st_mtime_ns) for path in folder.glob(f"*/{RESULT}")]
    return sorted((job for job in found if job), key=lambda job: [int(k) for k in re.findall(r"^\d+", job.folder.name)])


@functools.cache  # YAML takes its time, and a page is written often
def read_job(path: Path, written: int) -> Job | None:
    """Read a job by its record and the time when that was written; None if it cannot be read."""
    try:
        record = json.loads(path.read_text())
        config: Any = OmegaConf.to_container(OmegaConf.load(path.parent / CONFIG), resolve=True)
        typed: Any = OmegaConf.to_container(OmegaConf.load(path.parent / OVERRIDES))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException):
        return None
    overrides = dict(item.partition("=")[::2] for item in typed)
    overrides.pop("resume", None)
    return Job(path.parent, record, config, overrides)


def log_page(folder: Path, jobs: list[Job]) -> None:
    """Write the events of both runs, each in place of those that were there."""
    ended = [job for job in jobs if job.record["status"] in ("completed", "diverged")]
    alike = [job for job in ended if job.problem == ended[0].problem]
    with replaced_events(folder / PAGE) as logger:
        logger.log_text("leaderboard", leaderboard(jobs, alike), len(ended))
        if not alike:
            return
        data, model = build(OmegaConf.create(alike[0].config))
        known = least_squares_reference(data, model)
        if any(job.has_pictures for job in alike):
            for tag, png in pictures(alike, data, model, known).items():
                logger.log_picture(f"sweep/{tag}", png, len(ended))
    if not known.optimum or len(alike) < len(ended):
        shutil.rmtree(folder / LEAST_SQUARES, ignore_errors=True)  # of when the jobs fitted the same data still
    else:
        with replaced_events(folder / LEAST_SQUARES) as logger:
            numbers = at_the_optimum(data, model, known)
            for step in (0, max(job.record["steps"] for job in alike)):
                logger.log_metrics(numbers, step)


def least_squares_reference(data: LinearData, model: LinearModule) -> Reference:
    """Compute least squares, without the weight decay that some job may have."""
    plain = SGD(model.parameters(), lr=1.0)
    return reference(model.linear, model.loss, plain, *data.raw["train"], data.schema.x_units, data.schema.y_units)


def pictures(jobs: list[Job], data: LinearData, model: LinearModule, known: Reference) -> dict[str, bytes]:
    """Draw jobs that fit the same data, as PNG files by name."""
    metric = jobs[0].config["metric"]
    curves: dict[str, list[tuple[float, float | None]]] = {}
    paths: dict[str, list[Array]] = {}
    for job in jobs:
        optimizer, path = job.config["optimizer"], job.path
        if "lr" in optimizer:
            curves.setdefault(class_name(optimizer), []).append((optimizer["lr"], job.value(metric)))
        if path is not None and len(path):
            paths.setdefault(class_name(optimizer), []).append(path)
    drawn = {"lr": figures.rates(curves, metric)} if curves else {}
    if paths:
        drawn["paths"] = surfaces.paths(surface(data, model), least_squares_line(known), paths)
    return drawn


@contextmanager
def replaced_events(folder: Path) -> Iterator[RunLogger]:
    """Log into a new event file, which takes the place of the older ones."""
    older = event_files(folder)
    logger = RunLogger(str(folder))
    try:
        yield logger
    finally:
        logger.close()
    for path in older:
        path.unlink()


@torch.no_grad()
def at_the_optimum(data: LinearData, model: LinearModule, known: Reference) -> dict[str, float]:
    """Measure the least-squares solution as a run is measured."""
    assert known.optimum
    optimum, features = known.optimum, data.in_features
    model.linear.weight.copy_(optimum.solution[:features].T)
    if model.linear.bias is not None:
        model.linear.bias.copy_(optimum.solution[features])
    bias = None if optimum.bias is None else optimum.bias.tolist()
    parameters = {"weight": optimum.weight.tolist(), "bias": bias}
    losses = {f"{part}/loss": model.loss(model(x), y).item() for part, (x, y) in data.parts.items()}
    return losses | {"train/excess": 0.0} | coefficients("param", parameters, data.schema.x, data.schema.y)


def short(value: float | None) -> str:
    """Four digits: the page breaks wide tables within words."""
    return "-" if value is None else f"{value:.4g}"


def leaderboard(jobs: list[Job], alike: list[Job]) -> str:
    """Write the jobs as a Markdown table, best first: what differs, metric, excess loss, steps, status.

    Only those ``alike`` are ranked: losses of other data, or other losses, do not compare.
    """
    metric, mode = jobs[0].config["metric"], jobs[0].config.get("mode", "min")
    sign = 1 if mode == "min" else -1
    values = {job.folder: job.value(metric) for job in jobs}
    completed = [job for job in alike if values[job.folder] is not None]
    ranked = sorted(completed, key=lambda job: sign * (values[job.folder] or 0.0))
    ranks = {job.folder: str(rank) for rank, job in enumerate(ranked, start=1)}
    ranked += [job for job in jobs if job.folder not in ranks]
    keys = list(dict.fromkeys(key for job in jobs for key in job.overrides))
    differing = [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]
    rows = [
        [
            ranks.get(job.folder, "-"),
            *(job.overrides.get(key, "-") for key in differing),
            short(values[job.folder]),
            short(None if values[job.folder] is None else job.record.get("excess_loss")),
            str(job.record.get("steps", "-")),
            job.record["status"],
            job.folder.name,
        ]
        for job in ranked[:ROWS]
    ]
    headings = ["rank", *(key.removeprefix("optimizer.") for key in differing), metric]
    headings += ["excess loss", "steps", "status", "job"]
    left = f"\n\n{len(jobs) - ROWS} more jobs are not shown." if len(jobs) > ROWS else ""
    return markdown_table(headings, rows) + left
