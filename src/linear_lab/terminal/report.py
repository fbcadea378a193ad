"""What the terminal shows of a run: its plan before training, and its outcome afterwards."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from rich.console import Console
from torch import Tensor

from linear_lab import CHECKOUT
from linear_lab.data import LinearData, Schema
from linear_lab.models import SupervisedModule
from linear_lab.runs.folder import LAST, LOG, RESULT
from linear_lab.terminal import layout
from linear_lab.terminal.layout import SHOWN, names, number, pairs, quoted, short, show_commands, show_numbers
from linear_lab.theory.reference import Reference

if TYPE_CHECKING:
    from linear_lab.runs.record import Best, Columns, Record

DTYPES = {"32-true": "float32", "64-true": "float64"}  # by the Trainer's precision
PATIENCE = "callbacks.early_stopping.patience"
POWERS = {"MSELoss": "^2", "HuberLoss": "^2", "L1Loss": "", "SmoothL1Loss": ""}  # of y's unit in the loss's unit


def numbers(values: Tensor) -> str:
    """Write a tensor as ``0.5``, ``[1, 2]`` or nested lists, each cut after `SHOWN` entries."""
    if values.numel() == 1:
        return number(values.item())
    shown = [number(v.item()) if v.ndim == 0 else numbers(v.reshape(-1)) for v in values[:SHOWN]]
    return "[" + ", ".join(shown) + (", ..." if len(values) > SHOWN else "") + "]"


def line(parameters: dict[str, Any], columns: "Schema | Columns | None" = None) -> str:
    """Write weight and bias as a formula, with the names of the columns, by default ``x1`` and so on.

    >>> line({"weight": [[2.0, -1.0]], "bias": [0.5]})
    'y = 2 x1 - 1 x2 + 0.5'
    >>> line({"weight": [[2.0]], "bias": None}, Schema.of(["a"], ["c"]))
    'c = 2 a'
    """
    if "weight" not in parameters:
        return f"{len(parameters)} tensors"
    weight, bias = parameters["weight"], parameters["bias"] or [None] * len(parameters["weight"])
    columns = columns or Schema.plain(len(weight[0]), len(weight))
    left_sides = [f"logit of {label}" for label in columns.labels] if columns.labels else columns.y
    formulas = []
    for left, coefficients, constant in zip(left_sides, weight[:SHOWN], bias[:SHOWN], strict=False):
        terms = [_signed(value, f" {name}") for value, name in zip(coefficients, columns.x, strict=True)]
        if len(terms) > SHOWN:
            terms[SHOWN:] = [" + ..."]
        if constant is not None:
            terms.append(_signed(constant))
        right = "".join(terms)
        formulas.append(f"{left} = {'-' if right.startswith(' -') else ''}{right[3:]}")
    return "\n".join(formulas + (["..."] if len(weight) > SHOWN else []))


def _signed(value: float | None, name: str = "") -> str:
    value = math.nan if value is None else value  # a record has null for a number that is not finite
    return f" {'-' if value < 0 else '+'} {number(abs(value))}{name}"


def loss_unit(loss: dict[str, Any], schema: Schema) -> str | None:
    """Return the unit of a loss: ``c^2``, ``(1.25 c)^2`` if c is standardized, or nats; None for a user's own loss.

    >>> loss_unit({"_target_": "torch.nn.MSELoss"}, Schema.plain(1, 1))
    'y^2'
    """
    kind = str(loss["_target_"]).rpartition(".")[2]
    if kind == "CrossEntropyLoss":
        return "nats"
    if kind not in POWERS:
        return None
    units, power = schema.y, POWERS[kind]
    if any(scale != 1 for scale in schema.y_scale):
        units = [f"{number(scale)} {name}" for name, scale in zip(schema.y, schema.y_scale, strict=True)]
    shown = [f"({unit}){power}" if power and " " in unit else f"{unit}{power}" for unit in units[:SHOWN]]
    shown += ["..."] if len(units) > SHOWN else []
    return shown[0] if len(units) == 1 else f"the mean of {', '.join(shown)}"


def show_plan(
    console: Console, plain: dict[str, Any], folder: Path, step: int,
    data: LightningDataModule, model: LightningModule, trainer: Trainer, reference: Reference,
) -> None:  # fmt: skip
    """Print the first part, the plan: what is trained, and how."""
    limit = f"{trainer.max_steps} step" if trainer.max_steps >= 0 else f"{trainer.max_epochs} epoch"
    limit += "" if limit.startswith("1 ") else "s"
    if limit == "-1 epochs":
        limit = f"max_time {plain['trainer']['max_time']}" if plain["trainer"].get("max_time") else "without a limit"
    device = type(trainer.accelerator).__name__.removesuffix("Accelerator")
    profiler = plain["trainer"].get("profiler")
    own_file = isinstance(profiler, dict) and profiler.get("filename")
    rows = {
        **of_data(data, plain["data"].get("batch_size")),
        "model": f"{formula(model)}, {DTYPES.get(str(trainer.precision), trainer.precision)}",
        **{group: describe(plain[group]) for group in ("loss", "optimizer", "scheduler") if plain[group]},
        "stable lr": f"below {reference.stable_lr:.4g}; a larger lr diverges" if reference.stable_lr else "",
        "trainer": f"{trainer.world_size} {device}, {limit}{f', from step {step}' if step else ''}",
        "folder": str(short(folder)),
        "profile": f"in {short(folder / LOG)} after training" if profiler and not own_file else "",
        "left out": "" if reference.optimum else left_out(data, model),
    }
    console.print(pairs({name: value for name, value in rows.items() if value}))
    if reference.optimum and reference.optimum.rank < reference.optimum.parameters:
        console.print(
            f"The columns of x depend on each other (rank {reference.optimum.rank} of {reference.optimum.parameters}), "
            "so that several parameters have the least loss; the optimum is the one with the smallest norm."
        )
    console.print()


def of_data(data: LightningDataModule, batch: int | None) -> dict[str, str]:
    """Return the rows of the plan that describe the data."""
    if not isinstance(data, LinearData):
        return {"data": type(data).__name__}
    counts, schema = ", ".join(f"{len(x)} {name}" for name, (x, _) in data.parts.items()), data.schema
    plain = schema == Schema.plain(len(schema.x), len(schema.y), schema.labels)
    columns = f"{names(schema.x)} -> {names(schema.y)}{', standardized' if schema.standardized else ''}"
    return {
        "data": f"{type(data).__name__}: {counts} rows; {f'{batch} rows per step' if batch else 'all rows per step'}",
        "": "\n".join(data.notes),
        "columns": "" if plain else columns,
        "classes": names(schema.labels or []),
    }


def left_out(data: LightningDataModule, model: LightningModule) -> str:
    """Say which features a run lacks because its module or its data derive from no class of this package."""
    missing = [] if isinstance(model, SupervisedModule) else [f"{type(model).__name__} is no SupervisedModule"]
    missing += [] if isinstance(data, LinearData) else [f"{type(data).__name__} is no LinearData"]
    what = "least squares, the seven steps, pictures, predict and export"
    return f"{what}: {' and '.join(missing)}" if missing else ""


def show_outcome(
    console: Console,
    record: "Record",
    folder: Path,
    has_events: bool,
    limits: Mapping[str, int],
    metric: str = "metric",
) -> None:
    """Print the third part: what was learned, compared with the start and the optimum, and the next commands."""
    models = outcomes(record)
    if record.initial and "weight" in record.initial:
        console.print(pairs({name: line(values, record.columns) for name, values in models.items()}))
        console.print()
    show_numbers(console, models, measures(record))
    if record.loss_unit:
        console.print(f"unit of the losses: {record.loss_unit}", style="dim")
    if record.optimum and record.weight_decay:
        console.print("optimum and excess loss are those of train/loss plus the penalty of weight decay", style="dim")
    if best := other_best(record):
        use = "evaluate and predict use best.ckpt"
        console.print(f"best.ckpt has step {best.step} with the best {metric}, last.ckpt step {record.steps}; {use}")
    if PATIENCE in limits:
        console.print(f"early stopping ended the run: {PATIENCE} is {limits[PATIENCE]} validations", style="dim")
    if not any(path.parent != folder for path in folder.parent.glob(f"*/{RESULT}")):  # the first run in this place
        words = ["stable lr"] * bool(record.stable_lr) + ["optimum", "excess loss"] * bool(record.optimum)
        words += ["best and last"] * bool(best)
        where = str(short(CHECKOUT / "docs/glossary.md")) if CHECKOUT else f"{layout.module('train')} --help"
        console.print(f"{where} explains {', '.join([*words, 'val/loss'])}", style="dim")
    console.print()
    commands = layout.looking(folder) if has_events else {}
    run = quoted(f"run={short(folder)}") + layout.trusting()
    if record.best or (folder / LAST).exists():
        commands["evaluate"] = f"{layout.module('evaluate')} {run}"
    if "evaluate" in commands and record.columns and record.parameters:
        names_of_x = record.columns.x
        typed = len(names_of_x) <= SHOWN and not any("=" in name for name in names_of_x)  # for city=Oslo, type Oslo
        example = f"x=[{','.join('0' for _ in names_of_x)}]" if typed else "input=<file>"
        commands["predict"] = f"{layout.module('predict')} {run} {quoted(example)}"
    commands["go on"] = " ".join([layout.resuming(folder), *(f"{limit}=<more>" for limit in limits)])
    show_commands(console, commands)


def outcome_text(record: "Record") -> str:
    """Write the outcome of a run as Markdown, for TensorBoard: its status, what it learned, and its losses."""
    models = outcomes(record)
    parts = [f"**{record.error or record.status}**"]
    if "weight" in record.parameters:
        formulas = [[name, f"`{line(values, record.columns)}`"] for name, values in models.items()]
        parts.append(layout.markdown_table(["", "learned"], formulas))
    rows = [[name.replace("_", " "), *(number(m.get(name)) for m in models.values())] for name in measures(record)]
    parts.append(layout.markdown_table(["", *models], rows))
    if record.loss_unit:
        parts.append(f"unit of the losses: `{record.loss_unit}`")
    return "\n\n".join(parts)


def outcomes(record: "Record") -> dict[str, dict[str, Any]]:
    """Return parameters and losses of the models to compare: the initial, the final and the best one, the optimum."""
    models: dict[str, dict[str, Any]] = {"start": record.initial} if record.initial else {}
    models[f"step {record.steps}{', last' if other_best(record) else ''}"] = numbers_of(record)
    if best := other_best(record):
        models[f"step {best.step}, best"] = numbers_of(best)
    return models | ({"optimum": record.optimum} if record.optimum else {})


def other_best(record: "Record") -> "Best | None":
    """Return the best model if it is another one than the final model, and the digits shown tell them apart."""
    best = record.best
    final = {name: number(record.metrics[name]) for name in best.metrics if name in record.metrics} if best else {}
    return best if best and best.step != record.steps and final != {k: number(best.metrics[k]) for k in final} else None


def numbers_of(model: "Record | Best") -> dict[str, Any]:
    return {**model.metrics, **model.parameters, "excess_loss": model.excess_loss}


def measures(record: "Record") -> list[str]:
    """Return the names of the losses to compare."""
    return [*record.metrics, *(["excess_loss"] if record.optimum else [])]


def show_export(console: Console, target: Path, kind: str, meaning: dict[str, Any], difference: float) -> None:
    """Print which file was written, and how to use it."""
    checked = f"{short(target)}: checked, differs from predict by {difference:.1g} of the largest value"
    returns = f"probabilities of {names(meaning['labels'])}" if meaning["labels"] else names(meaning["y"])
    signature = f"x (rows, {len(meaning['x'])}), float64: {names(meaning['x'])} -> (rows, ...): {returns}"
    for text in (checked, signature):
        console.print(text, soft_wrap=True)
    file = repr(str(short(target)))
    onnx = f'onnxruntime.InferenceSession({file}).run(None, {{"x": x}})[0]'
    show_commands(console, {"use": onnx if kind == "onnx" else f"torch.export.load({file}).module()(x)"})


def show_losses(console: Console, columns: dict[str, dict[str, Any]]) -> None:
    """Print the table of evaluate: the metrics of each part, measured now and as recorded by the run."""
    metrics, recorded = columns.values()
    show_numbers(console, columns, list(metrics))
    if recorded and any(value != recorded.get(name) for name, value in metrics.items() if math.isfinite(value)):
        console.print(
            "These differ from the recorded digits: another device, precision or version rounds differently; a metric "
            "that depends on earlier validations cannot be measured again."
        )


def formula(model: LightningModule) -> str:
    """Write the model and its shapes: ``y_hat = x W^T + b, W (1, 1), b (1,)``."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    weight, bias = shapes.get("network.weight"), shapes.get("network.bias")
    if weight is None:
        return f"{type(model).__name__}, {sum(p.numel() for p in model.parameters())} parameters"
    return f"y_hat = x W^T{' + b' if bias else ''}, W {weight}{f', b {bias}' if bias else ''}"


def describe(spec: dict[str, Any]) -> str:
    """Write a class and its arguments: ``SGD lr=0.1 momentum=0``."""
    arguments = [f"{key}={value}" for key, value in spec.items() if key not in ("_target_", "_partial_")]
    return " ".join([str(spec["_target_"]).rpartition(".")[2], *arguments])
