"""Converts a trained stack to rows of results, with the fields of result.json, and to rows of the history."""

from typing import Any

import numpy as np
import polars as pl
from torch import Tensor

from linear_lab.fitting.divergence import explain
from linear_lab.stacked.columns import SEED, Array, Group
from linear_lab.stacked.loop import Loop
from linear_lab.stacked.prepare import Prepared
from linear_lab.stacked.step import Parameters, StackSpec

MAX_PARAMETERS = 64  # models with more have none in the results


def struct(fields: dict[str, pl.Series], where: Array | None = None) -> pl.Series:
    """Return a column of structs, null unless ``where``; NaN and infinity become null, as in result.json."""
    frame = finite(pl.DataFrame(fields))
    records = pl.struct(frame.columns)
    return frame.select(_=records if where is None else pl.when(pl.Series(where)).then(records)).to_series()


def finite(frame: pl.DataFrame) -> pl.DataFrame:
    """Replace NaN and infinity in floating columns by null."""
    numbers = pl.selectors.float()
    return frame.with_columns(pl.when(numbers.is_finite()).then(numbers))


def column(values: Tensor, jobs: int) -> pl.Series:
    return pl.Series(values[:jobs].detach().cpu().numpy())


def nulls(jobs: int, dtype: Any) -> pl.Series:
    return pl.repeat(None, jobs, dtype=dtype, eager=True)


def parameter_column(plan: StackSpec, parameters: Parameters, jobs: int) -> dict[str, pl.Series]:
    """Return the column ``parameters``, in the units of the data file; {} for models with many parameters."""
    if sum(values[0].numel() for values in parameters.values()) > MAX_PARAMETERS:
        return {}
    tensors: dict[str, Any] = {
        name.removeprefix("network."): values[:jobs].detach().cpu().double() for name, values in parameters.items()
    }
    if plan.module.learned().keys() == {"weight", "bias"}:
        weight, bias = plan.data.schema.tensors_in_file_units(tensors["weight"], tensors.get("bias"))
        tensors = {"weight": weight, "bias": bias}
    fields = {}
    for name, values in tensors.items():
        dtype: Any = pl.Float64
        for _ in range(1 if values is None else values.ndim - 1):
            dtype = pl.List(dtype)
        fields[name] = nulls(jobs, dtype) if values is None else pl.Series(values.numpy()).cast(dtype)
    return {"parameters": struct(fields)}


def measured(loop: Loop, parameters: Parameters, jobs: int) -> dict[str, pl.Series]:
    """Return the columns ``metrics``, ``parameters`` and ``excess_loss``."""
    excess = loop.excesses(parameters)
    metrics = {name: column(values, jobs) for name, values in loop.measure(tuple(loop.parts), parameters).items()}
    return {
        "metrics": struct(metrics),
        **parameter_column(loop.plan, parameters, jobs),
        "excess_loss": nulls(jobs, pl.Float64) if excess is None else column(excess, jobs),
    }


def rows_of(prepared: Prepared, chosen: Array, loop: Loop) -> pl.DataFrame:
    """Return one row per job of a chunk, with the fields of result.json except ``job``."""
    group, data, summary, jobs = prepared.group.only(chosen), prepared.plan.data, loop.summary, len(chosen)
    stable_lrs = [np.nan if reference.stable_lr is None else reference.stable_lr for reference in prepared.references]
    stable_lr = np.array(stable_lrs, float)[prepared.reference_of.numpy()[chosen]]
    final, lr = measured(loop, loop.parameters, jobs), group.numbers("optimizer", ("lr",), {})["lr"].expand(jobs)
    verdict = verdicts(group, loop, final["metrics"], lr.numpy(), stable_lr)
    initial = {name: column(values, jobs) for name, values in summary.first.items() if name != "loss"}
    if prepared.references[0].optimum:
        initial["excess_loss"] = column(summary.first["loss"], jobs)
    best_step, small_at = column(summary.best_step, jobs), column(summary.small_at, jobs)
    seeds = group.columns.get(SEED)
    columns = {
        "name": group.rows["name"],
        "status": verdict["status"],
        "error": verdict["error"],
        "seed": np.full(jobs, group.config["seed"]) if seeds is None else np.array(seeds.values)[seeds.codes],
        "config_hash": group.rows["config_hash"],
        "steps": verdict["steps"],
        "seconds": loop.seconds / len(loop.models),
        **final,
        "initial": struct(initial, column(summary.diverged_at, jobs).to_numpy() != 0),
        "best": struct({"step": best_step, **measured(loop, summary.parameters, jobs)}, best_step.to_numpy() >= 0),
        "steps_above_1_percent": small_at.zip_with(small_at >= 0, verdict["steps"]),
        "stable_lr": stable_lr,
        "data": data.fingerprint,
        "rows": struct({part: pl.repeat(len(x), jobs, eager=True) for part, (x, _) in data.parts.items()}),
    }
    return finite(pl.DataFrame(columns))


def verdicts(group: Group, loop: Loop, metrics: pl.Series, lr: Array, stable_lr: Array) -> pl.DataFrame:
    """Return the status, error and steps of each job, by the rules of `linear_lab.fitting.divergence`."""
    summary, frame, jobs = loop.summary, metrics.struct.unnest(), len(group.rows)
    tensors = (summary.diverged_at, summary.diverged_by, summary.diverged_value, summary.first["train/loss"])
    at, by, value, first = (column(values, jobs).to_numpy() for values in tensors)
    steps, last = np.where(at < 0, loop.taken, at), frame["train/loss"].to_numpy()
    with np.errstate(invalid="ignore"):
        grown = (last > first) & (lr > stable_lr) & (not group.config["scheduler"])
    infinite = frame.select(pl.any_horizontal(pl.all().is_null())).to_series().to_numpy()
    errors: list[str | None] = [None] * jobs
    raw = group.config["data"].get("standardize") is False
    for job in np.flatnonzero((at >= 0) | infinite | grown):
        metric, number = "train/loss", last[job]
        if at[job] >= 0:
            metric, number = summary.metrics[by[job]], value[job]
        elif infinite[job]:
            metric, number = next(name for name in frame.columns if frame[name][int(job)] is None), np.nan
        bound = None if np.isnan(stable_lr[job]) else float(stable_lr[job])
        errors[job] = explain(metric, float(number), int(steps[job]), float(lr[job]), bound, raw=raw)
    verdict = pl.DataFrame({"error": pl.Series(errors, dtype=pl.String), "steps": steps.astype(np.int64)})
    completed = pl.col("error").is_null()
    return verdict.with_columns(status=pl.when(completed).then(pl.lit("completed")).otherwise(pl.lit("diverged")))


def history_of(prepared: Prepared, chosen: Array, loop: Loop) -> pl.DataFrame:
    """Return the losses and parameters at the watched steps, with one row per job and step."""
    names, jobs, frames = prepared.group.rows["name"][chosen], len(chosen), []
    parameters = {name: values for name, values in loop.history.items() if name != "train/loss"}
    for at, (step, losses) in enumerate(zip(loop.watched, loop.history["train/loss"], strict=False)):
        of_step = {name: values[at] for name, values in parameters.items()}
        columns = {"train/loss": column(losses, jobs), **parameter_column(prepared.plan, of_step, jobs)}
        frames.append(pl.DataFrame({"name": names, "step": np.full(jobs, step), **columns}))
    return finite(pl.concat(frames))
