"""What a sweep keeps of the best jobs of its stacks: whether they agree with those trained alone, and HPARAMS rows."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf

from linear_lab.models.supervised import build
from linear_lab.runs.fingerprints import leaves
from linear_lab.runs.folder import RESULT
from linear_lab.sweep.composer import Composer
from linear_lab.sweep.inventory import ENDED
from linear_lab.sweep.ranking import Board
from linear_lab.sweep.results import read_results
from linear_lab.tracking import hparams

ROWS = "_rows"  # in the sweep's folder: a folder with a HPARAMS row for each of its best jobs
TOLERANCE = {"64": 1e-10, "64-true": 1e-10}  # of parameters, relative to their norm, by precision; else:
OF_FLOAT32 = 1e-5


def disagreements(folder: Path, names: pl.Series, composer: Composer) -> Iterator[str]:
    """Say which jobs have learned otherwise alone than in their stack, by more than rounding explains."""
    found = read_results(folder, where=pl.col("name").is_in(names.implode()))
    if found is None or "parameters" not in found.columns:
        return
    for row in found.iter_rows(named=True):
        path = folder / row["name"] / RESULT
        alone: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}  # left out by fail_fast
        both = row["status"], alone.get("status")
        if "completed" not in both or not set(both) <= set(ENDED) or not given(row["parameters"] or {}):
            continue
        precision = str(composer(row["job"]["overrides"])["trainer"]["precision"])
        difference, tolerance = distance(row["parameters"], alone["parameters"]), TOLERANCE.get(precision, OF_FLOAT32)
        if not difference <= tolerance:
            yield (
                f"differs  {row['name']}: trained alone its parameters are others than in its stack, by "
                f"{difference:.1g} of their norm, more than {tolerance:g}"
            )


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return how far parameters are apart, relative to the norm of the latter."""
    both = zip(leaves(given(one)), leaves(given(other)), strict=True)
    pairs = [(math.nan if a is None else a, math.nan if b is None else b) for (_, a), (_, b) in both]  # None: infinite
    return math.dist(*zip(*pairs, strict=True)) / max(math.hypot(*(b for _, b in pairs)), 1e-300)


def given(parameters: dict[str, Any]) -> dict[str, Any]:
    """Leave out parameters that are not there, as the bias of a model without."""
    return {name: values for name, values in sorted(parameters.items()) if values is not None}


def write_rows(board: Board, composer: Composer, count: int) -> None:
    """Write HPARAMS rows of the best jobs of stacks; those that were trained alone have their own."""
    if (board.folder / ROWS).is_dir():
        shutil.rmtree(board.folder / ROWS)
    else:
        (board.folder / ROWS).unlink(missing_ok=True)
    ended = pl.col("status").is_in(ENDED)  # the others have nothing to show
    chosen = board.ranked.filter(ended).head(count).filter(~pl.col("folder")).select("name")
    found = read_results(board.folder, where=pl.col("name").is_in(chosen["name"].implode()))
    if found is None:
        return
    for row in chosen.join(found, on="name", maintain_order="left").iter_rows(named=True):
        folder, metric = board.folder / ROWS / row["name"], row["job"]["metric"]
        if metric not in row["metrics"]:  # there is no val part
            metric = metric.replace("val/", "train/")
        folder.mkdir(parents=True)
        cfg = composer.config(row["job"]["overrides"])
        config: Any = OmegaConf.to_container(cfg)
        spec: Any = OmegaConf.to_container(cfg.optimizer, resolve=True)
        get_class(spec["_target_"])  # imports it
        optimizer = build(spec, torch.optim.Optimizer, [torch.zeros(1, requires_grad=True)])
        final, best = row["metrics"], (row["best"] or {}).get("metrics") or row["initial"] or {}
        numbers = hparams.metrics(
            metric, final["train/loss"], row["excess_loss"], final[metric], best.get(metric),
            row["steps_above_1_percent"],
        )  # fmt: skip
        columns = hparams.hyperparameters(config, optimizer, row["rows"]["train"])
        hparams.write_row(folder, columns, numbers, row["steps"], row["status"])
