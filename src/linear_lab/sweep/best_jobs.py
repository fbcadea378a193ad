"""The best jobs of stacks: compare those that were also trained alone, and write HPARAMS rows for the others."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import torch
from omegaconf import OmegaConf

from linear_lab.fitting.trust import check_targets
from linear_lab.models.supervised import build_from_spec
from linear_lab.runs import record
from linear_lab.runs.atomic import refuse_link
from linear_lab.runs.fingerprints import leaves
from linear_lab.runs.folder import RESULT
from linear_lab.runs.record import ENDED
from linear_lab.sweep.composer import Composer
from linear_lab.sweep.ranking import Ranking
from linear_lab.sweep.results import RESULTS, read_results
from linear_lab.tracking import hparams

ROWS = "_rows"  # in the sweep's folder: one folder, with an HPARAMS row, per best job without a run folder
TOLERANCE = {"64": 1e-10, "64-true": 1e-10}  # largest relative difference of parameters, by precision; else 1e-5


def disagreements(folder: Path, names: pl.Series, composer: Composer) -> Iterator[str]:
    """Yield a message for each job whose parameters differ from those of its stack by more than `TOLERANCE`."""
    rows = read_results(folder, where=pl.col("name").is_in(names.implode()))
    if rows is None or "parameters" not in rows.columns:
        return
    for row in rows.iter_rows(named=True):
        path = folder / row["name"] / RESULT
        alone = record.read(path) if path.exists() else record.Record()  # fail_fast=true may have skipped the job
        statuses = {row["status"], alone.status}
        if "completed" not in statuses or not statuses <= {*ENDED} or not _present(row["parameters"] or {}):
            continue
        precision = str(composer(row["job"]["overrides"])["trainer"]["precision"])
        difference, tolerance = distance(row["parameters"], alone.parameters), TOLERANCE.get(precision, 1e-5)
        if not difference <= tolerance:
            yield (
                f"differs  {row['name']}: trained alone, its parameters differ from those of its stack by "
                f"{difference:.1g} of their norm, more than {tolerance:g}"
            )


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return ``|a - b| / |b|``, with the Euclidean norm of all parameters of a model."""
    pairs = zip(leaves(_present(one)), leaves(_present(other)), strict=True)
    a, b = zip(*([math.nan if x is None else x for _, x in pair] for pair in pairs), strict=True)  # None: not finite
    return math.dist(a, b) / max(math.hypot(*b), 1e-300)


def _present(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: values for name, values in sorted(parameters.items()) if values is not None}  # the bias may be None


def write_rows(board: Ranking, composer: Composer, count: int) -> None:
    """Write HPARAMS rows of the ``count`` best jobs, except those with a run folder, which has its own row."""
    refuse_link(board.folder / ROWS)
    if (board.folder / ROWS).is_dir():
        shutil.rmtree(board.folder / ROWS)
    else:
        (board.folder / ROWS).unlink(missing_ok=True)
    ended = pl.col("status").is_in(ENDED)  # the other jobs have no results
    best = board.ranked.filter(ended).head(count).filter(~pl.col("folder")).select("name")
    rows = read_results(board.folder, where=pl.col("name").is_in(best["name"].implode()))
    if rows is None:
        return
    for row in best.join(rows, on="name", maintain_order="left").iter_rows(named=True):
        folder, metric = board.folder / ROWS / row["name"], row["job"]["metric"]
        if metric not in row["metrics"]:  # the data have no val part
            metric = metric.replace("val/", "train/")
        folder.mkdir(parents=True)
        cfg = composer.config(row["job"]["overrides"])
        config: Any = OmegaConf.to_container(cfg)
        spec: Any = OmegaConf.to_container(cfg.optimizer, resolve=True)
        check_targets({"optimizer": spec}, board.folder / RESULTS)
        optimizer = build_from_spec(spec, torch.optim.Optimizer, [torch.zeros(1, requires_grad=True)])
        final, at_best = row["metrics"], (row["best"] or {}).get("metrics") or row["initial"] or {}
        above = row["steps_above_1_percent"]
        losses = (metric, final["train/loss"], row["excess_loss"], final[metric], at_best.get(metric))
        columns = hparams.hyperparameters(config, optimizer, row["rows"]["train"])
        hparams.write_row(folder, columns, hparams.metrics(*losses, above), row["steps"], row["status"])
