"""What a sweep's page shows: curves over the learning rate, a map, paths on one surface, least squares."""

import functools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.optim import SGD

from linear_lab.data import LinearData
from linear_lab.fitting.build import build
from linear_lab.fitting.process import restored_process
from linear_lab.models import LinearModule, SupervisedModule
from linear_lab.runs.folder import CONFIG, LAST
from linear_lab.sweep.board import markdown
from linear_lab.sweep.inventory import KEYS
from linear_lab.sweep.ranking import Board
from linear_lab.theory.least_squares import Reference, reference
from linear_lab.tracking.figures import canvas, loss_surface
from linear_lab.tracking.figures.canvas import Array
from linear_lab.tracking.figures.heatmap import Map
from linear_lab.tracking.figures.selection import least_squares_line, surface
from linear_lab.tracking.tensorboard import RunLogger, event_files
from linear_lab.tracking.tracker import coefficients

LEAST_SQUARES = "_least_squares"  # a folder beside the jobs
ROWS = 200  # of the leaderboard that are shown
PATHS = 50  # that are drawn: of the best jobs
POINTS = 2000  # of an optimizer's curve
FEWEST = 3  # distinct values of both numbers that make a map


def log_page(board: Board, folder: Path) -> None:
    """Write the events of both runs, the page's into ``folder``, each in place of those that were there."""
    ended = board.ranked.filter(pl.col("status").is_in(["completed", "diverged"]) & pl.col("problem").is_not_null())
    alike = ended.filter(pl.col("problem") == pl.col("problem").first())
    config = next(filter(None, (read_config(board.folder / name) for name in alike.filter("folder")["name"])), None)
    wanted = bool(alike["pictures"].any())
    step = len(ended)
    with restored_process(board.folder):
        data, model, known = None, None, Reference()
        if config:
            data, model = build(OmegaConf.create(config))
            known = least_squares_reference(data, model)
        with replaced_events(folder) as logger:
            logger.log_text("leaderboard", markdown(board, ROWS), step)
            drawn = pictures(alike, board) if wanted else {}
            if wanted and data and model and (of_jobs := paths_of(alike, board)):
                drawn["paths"] = loss_surface.paths(surface(data, model), least_squares_line(known), of_jobs)
            for tag, png in drawn.items():
                logger.log_picture(f"sweep/{tag}", png, step)
        if data is None or model is None or not known.optimum or len(alike) < len(ended):
            shutil.rmtree(board.folder / LEAST_SQUARES, ignore_errors=True)  # of when jobs fitted the same data still
            return
        with replaced_events(board.folder / LEAST_SQUARES) as logger:
            numbers = at_the_optimum(data, model, known)
            for at in (0, alike["steps"].max()):
                logger.log_metrics(numbers, at)  # type: ignore[arg-type]


@functools.cache  # YAML takes its time, and a page is written often
def read_config(folder: Path) -> dict[str, Any] | None:
    """Read a job's config; None if it cannot be read."""
    try:
        plain = yaml.load((folder / CONFIG).read_text(), yaml.CSafeLoader)  # OmegaConf's own, in Python, is slow
        config: Any = OmegaConf.to_container(OmegaConf.create(plain), resolve=True)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException):
        return None
    return dict(config)


def least_squares_reference(data: LinearData, model: SupervisedModule) -> Reference:
    """Compute least squares, without the weight decay that some job may have."""
    plain = SGD(model.parameters(), lr=1.0)
    return reference(model.network, model.loss, plain, *data.raw["train"], data.schema.x_units, data.schema.y_units)


def pictures(jobs: pl.DataFrame, board: Board) -> dict[str, bytes]:
    """Draw jobs that fit the same data, as PNG files by name."""
    drawn = {}
    curves: dict[str, list[tuple[float, float | None]]] = {}
    for (name,), rows in jobs.filter(pl.col("lr").is_not_null()).group_by("optimizer", maintain_order=True):
        thinned = rows.sort("lr").gather_every(-(-len(rows) // POINTS))
        curves[str(name)] = list(thinned.select("lr", "value").iter_rows())
    if curves:
        drawn["lr"] = canvas.rates(curves, board.metric)
    if found := mapped(jobs, board):
        drawn["map"] = found.render(f"{board.metric} of {len(jobs):,} runs")
    return drawn


def mapped(jobs: pl.DataFrame, board: Board) -> Map | None:
    """Make the map of a grid of two numbers; None for other sweeps. Several seeds in one place show their median."""
    keys = [key for key in board.differing if key != "seed"]
    if len(keys) != 2:
        return None
    x, y = keys
    numbers = {axis: pl.col(KEYS + key).cast(pl.Float64, strict=False) for axis, key in zip("xy", keys, strict=True)}
    cells = jobs.select("value", "stable_lr", lost=pl.col("status") == "diverged", **numbers)
    if not cells.select(pl.all_horizontal(pl.col("x", "y").is_finite().fill_null(value=False)).all()).item():
        return None
    cells = cells.group_by("x", "y").agg(pl.col("value").median(), pl.col("lost").all(), pl.col("stable_lr").median())
    places = [np.sort(np.array(cells[axis].unique())) for axis in "xy"]
    if min(map(len, places)) < FEWEST or 2 * len(cells) < len(places[0]) * len(places[1]):  # as of a search
        return None
    at = tuple(np.searchsorted(axis, cells[name].to_numpy()) for axis, name in zip(places[::-1], "yx", strict=True))
    values, lost = np.full((len(places[1]), len(places[0])), np.nan), np.zeros((len(places[1]), len(places[0])), bool)
    values[at], lost[at] = cells["value"].cast(pl.Float64).to_numpy(), cells["lost"].to_numpy()
    stable = np.zeros((0, 2))
    if "optimizer.lr" in keys and cells["stable_lr"].is_not_null().all():
        other = "y" if x == "optimizer.lr" else "x"
        line = cells.group_by(other).agg(pl.col("stable_lr").median()).sort(other)
        stable = line.select(*(("stable_lr", other) if other == "y" else (other, "stable_lr"))).to_numpy()
    return Map(places[0], places[1], values, lost, (x.rpartition(".")[2], y.rpartition(".")[2], board.metric), stable)


def paths_of(jobs: pl.DataFrame, board: Board) -> dict[str, list[Array]]:
    """Return the paths of the optimizers of the best jobs that have run folders, by optimizer."""
    found: dict[str, list[Array]] = {}
    for name, optimizer in jobs.filter("folder").head(PATHS).select("name", "optimizer").iter_rows():
        path = path_of(board.folder / name)
        if path is not None and len(path):
            found.setdefault(optimizer, []).append(path)
    return found


def path_of(folder: Path) -> Array | None:
    """Return weight and bias along the optimizer's path, ``(N, 2)``; None if they were not followed."""
    try:
        checkpoint = torch.load(folder / LAST, weights_only=True, map_location="cpu")
        return torch.as_tensor(checkpoint["callbacks"]["Dashboard"]["path"], dtype=torch.float64).numpy()[:, 1:]
    except (OSError, RuntimeError, LookupError, ValueError):  # not yet there, or of a run without pictures
        return None


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
    assert isinstance(model, LinearModule)
    optimum, features = known.optimum, data.in_features
    model.network.weight.copy_(optimum.solution[:features].T)
    if model.network.bias is not None:
        model.network.bias.copy_(optimum.solution[features])
    bias = None if optimum.bias is None else optimum.bias.tolist()
    parameters = {"weight": optimum.weight.tolist(), "bias": bias}
    losses = {f"{part}/loss": model.loss(model(x), y).item() for part, (x, y) in data.parts.items()}
    return losses | {"train/excess": 0.0} | coefficients("param", parameters, data.schema.x, data.schema.y)
