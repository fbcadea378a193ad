"""The content of a sweep's page: curves over the learning rate, a map, paths on a loss surface, least squares."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import polars as pl
import torch
from omegaconf import OmegaConf
from torch.optim import SGD

from linear_lab.data import LinearData
from linear_lab.fitting.build import build, without_unread
from linear_lab.fitting.process import restored_process
from linear_lab.fitting.trust import check_targets
from linear_lab.models import LinearModule, SupervisedModule
from linear_lab.runs.atomic import check_room, refuse_link
from linear_lab.runs.folder import CONFIG, LAST, Trust
from linear_lab.sweep.board import markdown
from linear_lab.sweep.inventory import KEYS
from linear_lab.sweep.mistakes import read_config
from linear_lab.sweep.ranking import Ranking
from linear_lab.theory.least_squares import Optimum
from linear_lab.theory.reference import Reference, reference
from linear_lab.tracking.pictures import loss_surface
from linear_lab.tracking.pictures.canvas import Array
from linear_lab.tracking.pictures.of_run import least_squares_line, surface
from linear_lab.tracking.pictures.of_sweep import Map, rates
from linear_lab.tracking.tensorboard import RunLogger, event_files
from linear_lab.tracking.tracker import coefficients

LEAST_SQUARES = "_least_squares"  # a folder beside those of the jobs
ROWS = 200  # most rows of the leaderboard
PATHS = 50  # most paths that are drawn
POINTS = 2000  # most points per curve
MIN_VALUES = 3  # fewest distinct values on each axis of a map


def log_page(board: Ranking, folder: Path, trust: Trust = None) -> None:
    """Replace the events of the page, in ``folder``, and those of least squares, in the folder beside it.

    Raises:
        UserError: if a job's config names a class that is not allowed; see `check_targets`.
    """
    ended = board.ranked.filter(pl.col("status").is_in(["completed", "diverged"]) & pl.col("problem").is_not_null())
    jobs = ended.filter(pl.col("problem") == pl.col("problem").first())
    configs = ((name, read_config(board.folder / name)) for name in jobs.filter("folder")["name"])
    name, config = next((item for item in configs if item[1]), ("", None))
    with_pictures = bool(jobs["pictures"].any())
    if config:
        check_targets(config, board.folder / name / CONFIG, trust)
    with restored_process(board.folder):
        parts, least_squares = None, Reference()
        if config:
            data, model = build(without_unread(OmegaConf.create(config)))
            if isinstance(data, LinearData) and isinstance(model, SupervisedModule):
                parts = data, model
                plain = SGD(model.parameters(), lr=1.0)  # its weight decay is 0, whatever that of the jobs is
                units = data.schema.x_units, data.schema.y_units
                least_squares = reference(model.network, model.loss, plain, *data.raw["train"], *units)
        with replaced_events(folder) as logger:
            logger.log_text("leaderboard", markdown(board, ROWS), len(ended))
            drawn = pictures(jobs, board) if with_pictures else {}
            if with_pictures and parts and (paths := paths_of(jobs, board)):
                drawn["paths"] = loss_surface.paths(surface(*parts), least_squares_line(least_squares), paths)
            for tag, png in drawn.items():
                logger.log_picture(f"sweep/{tag}", png, len(ended))
        if parts is None or not least_squares.optimum or len(jobs) < len(ended):
            shutil.rmtree(board.folder / LEAST_SQUARES, ignore_errors=True)  # jobs on other data may have been added
            return
        with replaced_events(board.folder / LEAST_SQUARES) as logger:
            metrics = metrics_of_optimum(*parts, least_squares.optimum)
            for step in (0, jobs["steps"].max()):
                logger.log_metrics(metrics, step)  # type: ignore[arg-type]


def pictures(jobs: pl.DataFrame, board: Ranking) -> dict[str, bytes]:
    """Draw the pictures of jobs that fit the same data; returns PNG files by name."""
    drawn = {}
    curves: dict[str, list[tuple[float, float | None]]] = {}
    for (name,), rows in jobs.filter(pl.col("lr").is_not_null()).group_by("optimizer", maintain_order=True):
        thinned = rows.sort("lr").gather_every(-(-len(rows) // POINTS))
        curves[str(name)] = list(thinned.select("lr", "value").iter_rows())
    if curves:
        drawn["lr"] = rates(curves, board.metric)
    if heatmap := map_of(jobs, board):
        drawn["map"] = heatmap.render(f"{board.metric} of {len(jobs):,} runs")
    return drawn


def map_of(jobs: pl.DataFrame, board: Ranking) -> Map | None:
    """Return the map of a sweep over two numbers, with the median over seeds; None for any other sweep."""
    keys = [key for key in board.differing if key not in ("seed", "tags")]
    if len(keys) != 2:
        return None
    x, y = keys
    numbers = {axis: pl.col(KEYS + key).cast(pl.Float64, strict=False) for axis, key in zip("xy", keys, strict=True)}
    cells = jobs.select("value", "stable_lr", lost=pl.col("status") == "diverged", **numbers)
    if not cells.select(pl.all_horizontal(pl.col("x", "y").is_finite().fill_null(value=False)).all()).item():
        return None
    cells = cells.group_by("x", "y").agg(pl.col("value").median(), pl.col("lost").all(), pl.col("stable_lr").median())
    columns, rows = (cells.select(axis).unique().sort(axis) for axis in "xy")
    if min(len(columns), len(rows)) < MIN_VALUES or 2 * len(cells) < len(columns) * len(rows):  # not a grid: a search
        return None
    places = rows.join(columns, how="cross", maintain_order="left_right")
    places = places.join(cells, on=["x", "y"], how="left", maintain_order="left")
    values = places["value"].cast(pl.Float64).to_numpy().reshape(len(rows), len(columns))
    lost = places["lost"].fill_null(value=False).to_numpy().reshape(len(rows), len(columns))
    stable = np.zeros((0, 2))
    if "optimizer.lr" in keys and cells["stable_lr"].is_not_null().all():
        other = "y" if x == "optimizer.lr" else "x"
        line = cells.group_by(other).agg(pl.col("stable_lr").median()).sort(other)
        stable = line.select(*(("stable_lr", other) if other == "y" else (other, "stable_lr"))).to_numpy()
    names = x.rpartition(".")[2], y.rpartition(".")[2], board.metric
    return Map(columns["x"].to_numpy(), rows["y"].to_numpy(), values, lost, names, stable)


def paths_of(jobs: pl.DataFrame, board: Ranking) -> dict[str, list[Array]]:
    """Return the paths of the best jobs with run folders, by optimizer: weight and bias, ``(N, 2)`` float64."""
    paths: dict[str, list[Array]] = {}
    for name, optimizer in jobs.filter("folder").head(PATHS).select("name", "optimizer").iter_rows():
        with suppress(OSError, RuntimeError, LookupError, ValueError):  # none yet, or no pictures
            checkpoint = torch.load(board.folder / name / LAST, weights_only=True, map_location="cpu")
            path = torch.as_tensor(checkpoint["callbacks"]["Tracker"]["path"], dtype=torch.float64).numpy()[:, 1:]
            paths.setdefault(optimizer, []).append(path)
    return paths


@contextmanager
def replaced_events(folder: Path) -> Iterator[RunLogger]:
    """Yield a logger that writes a new event file; after the block, delete the older event files."""
    refuse_link(folder)
    check_room(folder.parent)  # on a full disk, TensorBoard's thread would print a traceback
    older = event_files(folder)
    logger = RunLogger(str(folder))
    try:
        yield logger
    finally:
        logger.close()
    for path in older:
        path.unlink()


@torch.no_grad()
def metrics_of_optimum(data: LinearData, model: SupervisedModule, optimum: Optimum) -> dict[str, float]:
    """Return the metrics of the least-squares solution, under the names that runs log."""
    assert isinstance(model, LinearModule)
    model.network.weight.copy_(optimum.solution[: data.in_features].T)
    if model.network.bias is not None:
        model.network.bias.copy_(optimum.solution[data.in_features])
    losses = {f"{part}/loss": model.loss(model(x), y).item() for part, (x, y) in data.parts.items()}
    return losses | {"train/excess": 0.0} | coefficients("param", optimum.learned(), data.schema.x, data.schema.y)
