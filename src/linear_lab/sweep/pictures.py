"""What a sweep's page shows: curves over the learning rate, paths on one surface, least squares beside the jobs."""

import functools
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.optim import SGD

from linear_lab.assembly import build, restored_process
from linear_lab.dashboard import figures, surfaces
from linear_lab.dashboard.callbacks import coefficients
from linear_lab.dashboard.figures import Array
from linear_lab.dashboard.logger import RunLogger, event_files
from linear_lab.dashboard.pictures import least_squares_line, surface
from linear_lab.data import LinearData
from linear_lab.models import SupervisedModule
from linear_lab.optimum import Reference, reference
from linear_lab.run import CONFIG, LAST
from linear_lab.sweep.board import Board, Job, markdown
from linear_lab.sweep.plan import of_job

LEAST_SQUARES = "_least_squares"  # a folder beside the jobs
ROWS = 200  # of the leaderboard that are shown
PATHS = 50  # that are drawn: of the best jobs


@dataclass
class Way:
    """What a job was to do, and the way that its optimizer took."""

    folder: Path
    problem: str  # what must agree for two losses to be the same function of weight and bias
    optimizer: str
    lr: float | None
    pictures: bool  # whether the job was to make some

    @functools.cached_property
    def path(self) -> Array | None:
        """Weight and bias along the optimizer's way, ``(N, 2)``; None if they were not followed."""
        try:
            checkpoint = torch.load(self.folder / LAST, weights_only=True, map_location="cpu")
            return torch.as_tensor(checkpoint["callbacks"]["Dashboard"]["path"], dtype=torch.float64).numpy()[:, 1:]
        except (OSError, RuntimeError, LookupError, ValueError):  # not yet there, or of a run without pictures
            return None


def way_of(job: Job) -> Way | None:
    """Take from a job's record what it was to do; in an older one it does not stand, so its config is read."""
    known = job.record.get("job", {})
    if "problem" not in known:
        config = read_config(job.folder, job.record.get("seconds", 0.0))
        if config is None:
            return None
        known = of_job(config, [], "")
    return Way(job.folder, *(known[name] for name in ("problem", "optimizer", "lr", "pictures")))


@functools.cache  # YAML takes its time, and a page is written often
def read_config(folder: Path, seconds: float) -> dict[str, Any] | None:
    """Read a job's config, anew where the record tells another time; None if it cannot be read."""
    try:
        plain = yaml.load((folder / CONFIG).read_text(), yaml.CSafeLoader)  # OmegaConf's own, in Python, is slow
        config: Any = OmegaConf.to_container(OmegaConf.create(plain), resolve=True)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException):
        return None
    return dict(config)


def log_page(board: Board, folder: Path) -> None:
    """Write the events of both runs, the page's into ``folder``, each in place of those that were there."""
    ended = [job for job in board.jobs if job.status in ("completed", "diverged")]
    known_ways = [(job, way_of(job)) for job in ended]
    ways = [(job, way) for job, way in known_ways if way]
    alike = [(job, way) for job, way in ways if way.problem == ways[0][1].problem]
    configs = (read_config(job.folder, job.record.get("seconds", 0.0)) for job, _ in alike)
    config = next((config for config in configs if config), None)
    with restored_process(board.folder):
        with replaced_events(folder) as logger:
            logger.log_text("leaderboard", markdown(board, ROWS), len(ended))
            if config is None:
                return
            data, model = build(OmegaConf.create(config))
            known = least_squares_reference(data, model)
            if any(way.pictures for _, way in alike):
                for tag, png in pictures(alike, board, data, model, known).items():
                    logger.log_picture(f"sweep/{tag}", png, len(ended))
        if not known.optimum or len(alike) < len(ways):
            shutil.rmtree(
                board.folder / LEAST_SQUARES, ignore_errors=True
            )  # of when the jobs fitted the same data still
            return
        with replaced_events(board.folder / LEAST_SQUARES) as logger:
            numbers = at_the_optimum(data, model, known)
            for step in (0, max(job.record["steps"] for job, _ in alike)):
                logger.log_metrics(numbers, step)


def least_squares_reference(data: LinearData, model: SupervisedModule) -> Reference:
    """Compute least squares, without the weight decay that some job may have."""
    plain = SGD(model.parameters(), lr=1.0)
    return reference(model.network, model.loss, plain, *data.raw["train"], data.schema.x_units, data.schema.y_units)


def pictures(
    jobs: list[tuple[Job, Way]], board: Board, data: LinearData, model: SupervisedModule, known: Reference
) -> dict[str, bytes]:
    """Draw jobs that fit the same data, as PNG files by name."""
    curves: dict[str, list[tuple[float, float | None]]] = {}
    paths: dict[str, list[Array]] = {}
    for job, way in jobs:
        if way.lr is not None:
            curves.setdefault(way.optimizer, []).append((way.lr, job.value))
    sign = -1 if board.mode == "max" else 1
    best = sorted(jobs, key=lambda one: math.inf if one[0].value is None else sign * one[0].value)[:PATHS]
    for _, way in best:
        if way.path is not None and len(way.path):
            paths.setdefault(way.optimizer, []).append(way.path)
    drawn = {"lr": figures.rates(curves, board.metric)} if curves else {}
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
def at_the_optimum(data: LinearData, model: SupervisedModule, known: Reference) -> dict[str, float]:
    """Measure the least-squares solution as a run is measured."""
    assert known.optimum
    optimum, features = known.optimum, data.in_features
    model.network.weight.copy_(optimum.solution[:features].T)
    if model.network.bias is not None:
        model.network.bias.copy_(optimum.solution[features])
    bias = None if optimum.bias is None else optimum.bias.tolist()
    parameters = {"weight": optimum.weight.tolist(), "bias": bias}
    losses = {f"{part}/loss": model.loss(model(x), y).item() for part, (x, y) in data.parts.items()}
    return losses | {"train/excess": 0.0} | coefficients("param", parameters, data.schema.x, data.schema.y)
