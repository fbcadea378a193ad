"""What a stack has found, as rows with the fields of result.json."""

from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from linear_lab.fitting.divergence import explain
from linear_lab.models import SupervisedModule
from linear_lab.stacked.columns import SEED, Group
from linear_lab.stacked.loop import Loop
from linear_lab.stacked.prepare import Prepared
from linear_lab.stacked.step import Plan

MOST_PARAMETERS = 64  # of a model whose parameters are kept in the results


def struct(fields: "dict[str, pl.Series]", where: np.ndarray[Any, Any] | None = None) -> pl.Series:
    """Make a column of records, null but ``where``; NaN and infinity are null, as in result.json."""
    frame = finite(pl.DataFrame(fields))
    column = pl.struct(frame.columns)
    chosen = column if where is None else pl.when(pl.Series(where)).then(column)
    return frame.select(_=chosen).to_series()


def finite(frame: pl.DataFrame) -> pl.DataFrame:
    """Replace NaN and infinity in columns of numbers by null."""
    numbers = pl.selectors.float()
    return frame.with_columns(pl.when(numbers.is_finite()).then(numbers))


def nested(values: np.ndarray[Any, Any]) -> pl.Series:
    """Make a column of lists, ``(J, ...)`` as nested lists of a row each."""
    kind: Any = pl.Float64
    for _ in values.shape[1:]:
        kind = pl.List(kind)
    return pl.Series(values).cast(kind)


def in_file_units(plan: Plan, parameters: dict[str, Tensor]) -> dict[str, np.ndarray[Any, Any] | None]:
    """Return the parameters of J models in the units of the file, ``(J, ...)`` float64; None for no bias."""
    found = {name.removeprefix("network."): values.detach().cpu().double() for name, values in parameters.items()}
    if type(plan.module).learned is SupervisedModule.learned or "weight" not in found:
        return {name: values.numpy() for name, values in found.items()}
    weight, bias = plan.data.schema.tensors_in_file_units(found["weight"], found.get("bias"))
    return {"weight": weight.numpy(), "bias": None if bias is None else bias.numpy()}


def parameter_struct(plan: Plan, parameters: dict[str, Tensor]) -> dict[str, pl.Series]:
    """Return parameters as columns, if there are few."""
    if sum(values[0].numel() for values in parameters.values()) > MOST_PARAMETERS:
        return {}
    jobs = len(next(iter(parameters.values())))
    return {
        name: pl.Series([None] * jobs, dtype=pl.List(pl.Float64)) if values is None else nested(values)
        for name, values in in_file_units(plan, parameters).items()
    }


def rows_of(prepared: Prepared, chosen: np.ndarray[Any, Any], loop: Loop) -> pl.DataFrame:
    """Return what a chunk has found: a row for each job, with the fields of result.json but what its sweep adds."""
    plan, jobs, summary = prepared.plan, len(chosen), loop.summary
    group = prepared.group.only(chosen)
    stable = torch.tensor(
        [float("nan") if one.stable_lr is None else one.stable_lr for one in prepared.references[0]],
        dtype=torch.float64,
    )
    stable = stable[prepared.references[1][torch.from_numpy(chosen)]]

    def column(values: Tensor) -> pl.Series:
        return pl.Series(values[:jobs].detach().cpu().numpy())

    def measured(parameters: dict[str, Tensor]) -> dict[str, Any]:
        excess = loop.excesses(parameters)
        cut = {name: values[:jobs] for name, values in parameters.items()}
        few = parameter_struct(plan, cut)
        metrics = {name: column(values) for name, values in loop.measure(tuple(loop.parts), parameters).items()}
        return {
            "metrics": struct(metrics),
            **({"parameters": struct(few)} if few else {}),
            "excess_loss": pl.Series([None] * jobs, dtype=pl.Float64) if excess is None else column(excess),
        }

    final, lr = measured(loop.parameters), group.numbers("optimizer", ("lr",), {})["lr"].expand(jobs)
    status, error, steps = verdicts(group, loop, final["metrics"], lr, stable)
    ever, started = column(summary.best_step).to_numpy() >= 0, column(summary.diverged_at).to_numpy() != 0
    initial = {name: column(values) for name, values in summary.first.items() if name != "loss"}
    if prepared.references[0][0].optimum:
        initial["excess_loss"] = column(summary.first["loss"])
    seeds = group.columns.get(SEED)
    seed = pl.repeat(group.config["seed"], jobs, dtype=pl.Int64, eager=True)
    return finite(pl.DataFrame({
        "name": group.rows["name"], "status": status, "error": error,
        "seed": seed if seeds is None else pl.Series(np.array(seeds.values)[seeds.codes]),
        "config_hash": group.rows["config_hash"], "steps": steps,
        "seconds": pl.repeat(loop.seconds / len(loop.models), jobs, eager=True), **final,
        "initial": struct(initial, started),
        "best": struct({"step": column(summary.best_step), **measured(summary.parameters)}, ever),
        "steps_above_1_percent": pl.Series(np.where((small := column(summary.small_at).to_numpy()) < 0, steps, small)),
        "stable_lr": column(stable),
            "data": pl.repeat(plan.data.fingerprint, jobs, eager=True),
            "rows": struct({part: pl.repeat(len(x), jobs, eager=True) for part, (x, _) in plan.data.parts.items()}),
    }))  # fmt: skip


def verdicts(
    group: Group, loop: Loop, metrics: pl.Series, lr: Tensor, stable: Tensor
) -> tuple[pl.Series, pl.Series, pl.Series]:
    """Return status, error and steps of each job, by the rules of one run."""
    jobs, summary = len(group.rows), loop.summary
    at, by, value = (
        values[:jobs].cpu().numpy() for values in (summary.diverged_at, summary.diverged_by, summary.diverged_value)
    )
    frame = metrics.struct.unnest()
    steps = np.where(at < 0, loop.taken, at)
    lr_of, stable_of = lr.numpy(), stable.numpy()
    first = summary.first["train/loss"][:jobs].cpu().numpy()
    last = frame["train/loss"].to_numpy()
    with np.errstate(invalid="ignore"):
        grown = (last > first) & (lr_of > stable_of) & (not group.config["scheduler"])
    unsound = frame.select(pl.any_horizontal(pl.all().is_null())).to_series().to_numpy()
    errors: list[str | None] = [None] * jobs
    raw = group.config["data"].get("standardize") is False
    for job in np.flatnonzero((at >= 0) | unsound | grown):
        metric, number = "train/loss", last[job]
        if at[job] >= 0:
            metric, number = summary.metrics[by[job]], value[job]
        elif unsound[job]:
            metric = next(name for name, found in frame.row(int(job), named=True).items() if found is None)
            number = np.nan
        bound = None if np.isnan(stable_of[job]) else float(stable_of[job])
        errors[job] = explain(metric, float(number), int(steps[job]), float(lr_of[job]), bound, raw=raw)
    error = pl.Series(errors, dtype=pl.String)
    status = pl.select(pl.when(error.is_null()).then(pl.lit("completed")).otherwise(pl.lit("diverged"))).to_series()
    return status, error, pl.Series(steps.astype(np.int64))


def history_of(prepared: Prepared, chosen: np.ndarray[Any, Any], loop: Loop) -> pl.DataFrame:
    """Return losses and parameters at the watched steps, a row for each job and step."""
    jobs, parts = len(chosen), []
    names = prepared.group.rows["name"][chosen]
    for at, step in enumerate(loop.watched[: len(loop.history["train/loss"])]):
        kept = {name: values[at][:jobs] for name, values in loop.history.items()}
        losses_of = pl.Series("train/loss", kept.pop("train/loss").cpu().numpy())
        few = parameter_struct(prepared.plan, kept)
        parts.append(pl.DataFrame({
            "name": names, "step": pl.repeat(step, jobs, dtype=pl.Int64, eager=True), "train/loss": losses_of,
            **({"parameters": struct(few)} if few else {}),
        }))  # fmt: skip
    return finite(pl.concat(parts))
