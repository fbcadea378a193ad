"""What the terminal shows: what runs, and its outcome."""

import math
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from torch import Tensor

from linear_lab.data import LinearData, Schema
from linear_lab.optimum import Reference

SHOWN = 8  # numbers of a row or column that the terminal shows
ADDRESS = "http://127.0.0.1:6006"  # TensorBoard's port
NARROW = 60  # columns below which what stands side by side elsewhere stands one below the other


def terminal() -> Console:
    """Make the console: plain in a pipe and under NO_COLOR."""
    return Console(highlight=False, markup=False)  # a column may be called [red]


def number(value: float | None) -> str:
    """Six digits, as one writes them: ``2``, ``0.563695``, ``1.2e-13``."""
    return "-" if value is None else f"{value:.6g}"


def numbers(values: Tensor) -> str:
    """Write a tensor as ``0.5``, ``[1, 2]`` or rows of such, cut after `SHOWN` entries."""
    if values.numel() == 1:
        return number(values.item())
    cut = [number(v.item()) if v.ndim == 0 else numbers(v.reshape(-1)) for v in values[:SHOWN]]
    return "[" + ", ".join(cut) + (", ..." if len(values) > SHOWN else "") + "]"


def line(parameters: dict[str, Any], columns: dict[str, list[str]] | None = None) -> str:
    """Write weight and bias as a formula, with the names of the columns; without them ``x1`` and so on.

    >>> line({"weight": [[2.0, -1.0]], "bias": [0.5]})
    'y = 2 x1 - 1 x2 + 0.5'
    >>> line({"weight": [[2.0]], "bias": None}, {"x": ["a"], "y": ["c"]})
    'c = 2 a'
    """
    if "weight" not in parameters:
        return f"{len(parameters)} tensors"
    weight, bias = parameters["weight"], parameters["bias"] or [None] * len(parameters["weight"])
    plain = Schema.plain(len(weight[0]), len(weight))
    columns = columns or {"x": plain.x, "y": plain.y}
    labels = columns.get("labels")
    left_sides = [f"logit of {label}" for label in labels] if labels else columns["y"]
    formulas = []
    for left, coefficients, constant in zip(left_sides, weight[:SHOWN], bias[:SHOWN], strict=False):
        terms = [(value, f" {name}") for value, name in zip(coefficients, columns["x"], strict=True)]
        signed = [f" {'-' if value < 0 else '+'} {number(abs(value))}{name}" for value, name in terms]
        if len(signed) > SHOWN:
            signed[SHOWN:] = [" + ..."]
        if constant is not None:
            signed.append(f" {'-' if constant < 0 else '+'} {number(abs(constant))}")
        right = "".join(signed)
        right = "-" + right[3:] if coefficients[0] < 0 else right[3:]
        formulas.append(f"{left} = {right}")
    return "\n".join(formulas + (["..."] if len(weight) > SHOWN else []))


def loss_unit(loss: dict[str, Any], schema: Schema) -> str | None:
    """Say what a loss of 1 means: ``c^2``, ``(1.25 c)^2`` where c is standardized, nats; None for a loss of one's own.

    >>> loss_unit({"_target_": "torch.nn.MSELoss"}, Schema.plain(1, 1))
    'y^2'
    """
    kind = str(loss["_target_"]).rpartition(".")[2]
    power = {"MSELoss": "^2", "HuberLoss": "^2", "L1Loss": "", "SmoothL1Loss": ""}.get(kind)
    if kind == "CrossEntropyLoss":
        return "nats"
    if power is None:
        return None
    if any(scale != 1 for scale in schema.y_scale):
        units = [f"{number(scale)} {name}" for name, scale in zip(schema.y, schema.y_scale, strict=True)]
    else:
        units = schema.y
    shown = [f"({unit}){power}" if power and " " in unit else f"{unit}{power}" for unit in units[:SHOWN]] + (
        ["..."] if len(units) > SHOWN else []
    )
    return shown[0] if len(units) == 1 else f"the mean of {', '.join(shown)}"


def pairs(rows: dict[str, str]) -> Table:
    """Lay out what is what; long values wrap beside their name."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def show_plan(
    console: Console,
    plain: dict[str, Any],
    data: LinearData,
    model: LightningModule,
    trainer: Trainer,
    known: Reference,
    folder: Path,
    step: int,
) -> None:
    """First part: what runs."""
    schema, batch = data.schema, plain["data"].get("batch_size")
    counts = ", ".join(f"{len(x)} {name}" for name, (x, _) in data.parts.items())
    limit = f"{trainer.max_steps} step" if trainer.max_steps >= 0 else f"{trainer.max_epochs} epoch"
    limit += "" if limit.startswith("1 ") else "s"
    device = type(trainer.accelerator).__name__.removesuffix("Accelerator")
    rows = {
        "data": f"{type(data).__name__}: {counts} rows; {f'batches of {batch}' if batch else 'all rows a step'}",
        "": "\n".join(data.notes),
        "columns": f"{names(schema.x)} -> {names(schema.y)}{', standardized' if schema.standardized else ''}",
        "classes": names(schema.labels or []),
        "model": f"{formula(model)}, {trainer.precision}",
        "loss": describe(plain["loss"]),
        "optimizer": describe(plain["optimizer"]),
        "scheduler": describe(plain["scheduler"]) if plain["scheduler"] else "",
        "stable lr": f"below {known.stable_lr:.4g}" if known.stable_lr else "",
        "trainer": f"{trainer.world_size} {device}, {limit}{f', from step {step}' if step else ''}",
        "folder": str(short(folder)),
    }
    if schema == Schema.plain(len(schema.x), len(schema.y), schema.labels):
        del rows["columns"]
    console.print(pairs({name: value for name, value in rows.items() if value}))
    if known.optimum and known.optimum.rank < known.optimum.parameters:
        console.print(
            f"The columns depend on each other (rank {known.optimum.rank} of {known.optimum.parameters}): many "
            "parameters reach the least loss; the optimum shown is the one of minimum norm."
        )
    console.print()


def names(columns: list[str]) -> str:
    """List names, cut after `SHOWN`."""
    return ", ".join(columns[:SHOWN]) + (f", ... ({len(columns)})" if len(columns) > SHOWN else "")


def short(folder: Path) -> Path:
    """Write a folder as one types it here: relative to where the command runs, if it lies there."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def python() -> str:
    """Name the interpreter as one types it here: ``python`` only where that is the one with this package."""
    return "python" if shutil.which("python") == sys.executable else str(short(Path(sys.executable)))


def show_outcome(console: Console, record: dict[str, Any], folder: Path, *, dashboard: bool) -> None:
    """Third part: what was learned, against the start and the optimum, and the commands to go on with."""
    optimum, columns, shown = record["optimum"], record["columns"], outcomes(record)
    if "weight" in record["initial"]:
        console.print(pairs({name: line(values, columns) for name, values in shown.items()}))
        console.print()
    show_numbers(console, shown, measures(record))
    if record["loss_unit"]:
        console.print(f"unit of the losses: {record['loss_unit']}", style="dim")
    if optimum and record["weight_decay"]:
        console.print("optimum and excess loss are those of the loss and the penalty of weight decay", style="dim")
    console.print()
    commands = looking(folder) if dashboard else {}
    if record["best"]:
        run = shlex.quote(f"run={short(folder)}")
        commands["evaluate"] = f"{python()} -m linear_lab.evaluate {run}"
        example = f"x=[{','.join('0' for _ in columns['x'])}]" if len(columns["x"]) <= SHOWN else "input=<file>"
        commands["predict"] = f"{python()} -m linear_lab.predict {run} {shlex.quote(example)}"
    commands["go on"] = f"{resuming(folder)} trainer.max_epochs=<more>"
    show_commands(console, commands)


def looking(folder: Path) -> dict[str, str]:
    """Write the command that shows a run, and its address, also on a dashboard of all, unless the port is taken."""
    pattern = re.sub(r"[.+]", r"\\\g<0>", folder.name)  # the filter is a regular expression
    return {
        "look": f"make dashboard LOGDIR={shlex.quote(str(short(folder)))}",
        "address": f"{ADDRESS}/?runFilter={quote(pattern, safe='=')}",
    }


def outcomes(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what there is to compare at the end, by name: the start, the final model, the best one, the optimum."""
    final = {**record["metrics"], **record["parameters"], "excess_loss": record["excess_loss"]}
    found = {"start": record["initial"]} if "initial" in record else {}  # it may have diverged before that
    found[f"step {record['steps']}"] = final
    best = record["best"]
    if best and best["step"] != record["steps"] and best["metrics"] != record["metrics"]:
        found[f"step {best['step']}, best"] = {
            **best["metrics"], **best["parameters"], "excess_loss": best["excess_loss"]
        }  # fmt: skip
    return found | ({"optimum": record["optimum"]} if record["optimum"] else {})


def measures(record: dict[str, Any]) -> list[str]:
    """Name the numbers to compare."""
    return [*record["metrics"], *(["excess_loss"] if record["optimum"] else [])]


def resuming(folder: Path) -> str:
    """Write the command that goes on with a run."""
    return f"{python()} -m linear_lab.train {shlex.quote(f'resume={short(folder)}')}"


def show_numbers(console: Console, columns: dict[str, dict[str, Any]], rows: list[str]) -> None:
    """Print a table with a column each and a row each name; on a narrow terminal a table for each column."""
    if console.width < NARROW and len(columns) > 1:
        for heading, column in columns.items():
            show_numbers(console, {heading: column}, rows)
        return
    values = [[name.replace("_", " "), *(column.get(name) for column in columns.values())] for name in rows]
    show_table(console, ["", *columns], values)


def show_table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table of text and numbers: as wide as it has to be, since a terminal wraps what rich would cut."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else number(value) for value in row))
    table.width = Measurement.get(console, console.options.update(max_width=sys.maxsize), table).maximum
    console.print(table, crop=False)


def show_export(console: Console, target: Path, kind: str, meaning: dict[str, Any], difference: float) -> None:
    """Say what was written, and how to use it."""
    console.print(
        f"{short(target)}: checked, differs from predict by {difference:.1g} of the largest value", soft_wrap=True
    )
    returns = f"probabilities of {names(meaning['labels'])}" if meaning["labels"] else names(meaning["y"])
    console.print(
        f"x (rows, {len(meaning['x'])}), float64: {names(meaning['x'])} -> (rows, ...): {returns}", soft_wrap=True
    )
    file = repr(str(short(target)))
    uses = {
        "pt2": f"torch.export.load({file}).module()(x)",
        "onnx": f'onnxruntime.InferenceSession({file}).run(None, {{"x": x}})[0]',
    }
    show_commands(console, {"use": uses[kind]})


def show_commands(console: Console, commands: dict[str, str]) -> None:
    """Print commands to copy: never wrapped by us, so that they paste as they are."""
    width = max(map(len, commands))
    for name, command in commands.items():
        console.print(Text.assemble((f"{name:<{width}}", "dim"), f"  {command}"), soft_wrap=True)


def show_losses(console: Console, checkpoint: str, metrics: dict[str, float], recorded: dict[str, float]) -> None:
    """Print the table of evaluate: each part's metrics beside those that the run recorded."""
    show_numbers(console, {checkpoint: metrics, "recorded": recorded}, list(metrics))
    if recorded and any(value != recorded.get(name) for name, value in metrics.items() if math.isfinite(value)):
        console.print("These are not the recorded digits: another device, precision or version rounds otherwise.")


def show_interrupted(console: Console, step: int | None, folder: Path) -> None:
    """Say what a signal left, and how to go on."""
    saved = "the run is saved as it was then" if step else "what was not saved yet is trained again"
    console.print(f"interrupted{f' after step {step}' if step else ''}; {saved}")
    show_commands(console, {"go on": resuming(folder)})


def formula(model: LightningModule) -> str:
    """Write the model with its shapes: ``y_hat = x W^T + b, W (1, 1), b (1,)``."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    weight, bias = shapes.get("linear.weight"), shapes.get("linear.bias")
    if weight is None:
        return f"{type(model).__name__}, {sum(p.numel() for p in model.parameters())} parameters"
    return f"y_hat = x W^T{' + b' if bias else ''}, W {weight}{f', b {bias}' if bias else ''}"


def describe(spec: dict[str, Any]) -> str:
    """Write a class and its arguments: ``SGD lr=0.1 momentum=0``."""
    arguments = [f"{key}={value}" for key, value in spec.items() if key != "_target_"]
    return " ".join([str(spec["_target_"]).rpartition(".")[2], *arguments])


def parameters(module: torch.nn.Module) -> dict[str, Any]:
    """Weight and bias as plain lists, bias None without one; of another network than nn.Linear all by their names."""
    linear = module.linear
    if isinstance(linear, torch.nn.Linear):
        return {"weight": linear.weight.tolist(), "bias": None if linear.bias is None else linear.bias.tolist()}
    return {name: values.tolist() for name, values in module.named_parameters()}
