"""A run's row on TensorBoard's HPARAMS page.

Lightning and PyTorch write a row in one piece: as a success before the first step, or in a folder of its own. Here
the start is one record and the end another, in a file of its own, which a run that goes on takes back. There is no
record of the experiment: TensorBoard then finds out itself which columns there are and which of them differ, so that
runs with different hyperparameters keep all of theirs. It ticks the first five of each kind, by name: those called
hp/ come first.
"""

import io
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.optim import Optimizer

from linear_lab import UserError
from linear_lab.runs import atomic
from linear_lab.tracking.tensorboard import event_files

# Event files of their own: TensorBoard keeps to the first start and the first end that it reads, by the order of names
START = "events.out.tfevents.0000000000.start"
END = ".end"  # behind the name of the run's last event file
STATUSES = {"completed": STATUS_SUCCESS, "pruned": STATUS_SUCCESS, "diverged": STATUS_FAILURE, "failed": STATUS_FAILURE}
OF_THE_TRAINER = (  # the others change no number, or only where a run is cut into parts
    "accelerator", "devices", "strategy", "precision", "max_epochs", "max_steps", "max_time", "limit_train_batches",
    "overfit_batches", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm",
)  # fmt: skip
LONGEST = 100  # characters of a value


def hyperparameters(plain: dict[str, Any], optimizer: Optimizer, train_rows: int) -> dict[str, bool | float | str]:
    """Return the columns of a run's row: the five that every run has, then what else its config says.

    ``lr`` and ``momentum`` are those of the optimizer, typed or not. ``momentum`` is a text, ``-`` for an optimizer
    without: TensorBoard's plots leave out rows with an empty cell. ``batch_size`` is the number of rows a step, also
    where gradients of several batches add up.

    Args:
        plain: the config as plain containers; what refers to another value, as in ``${seed}``, is that value's.
        optimizer: as it starts.
        train_rows: rows of the train part.
    """
    momentum = optimizer.defaults.get("momentum")
    batch = (plain["data"].get("batch_size") or train_rows) * (plain["trainer"].get("accumulate_grad_batches") or 1)
    columns: dict[str, Any] = {
        "optimizer": class_name(plain["optimizer"]),
        "lr": optimizer.defaults.get("lr"),
        "momentum": "-" if momentum is None else f"{momentum:g}",
        "batch_size": min(batch, train_rows),
        "seed": plain["seed"],
        "data": class_name(plain["data"]),
        "loss": class_name(plain["loss"]),
        "scheduler": class_name(plain["scheduler"]) if plain["scheduler"] else "-",
    }
    for group in ("data", "model", "loss", "optimizer", "scheduler", "trainer"):
        for key, value in (plain[group] or {}).items():
            if group == "trainer" and key not in OF_THE_TRAINER:
                continue
            if key != "_target_" and key not in columns:
                columns[f"{group}.{key}"] = value
    return dict(cells(columns))


def cells(columns: dict[str, Any]) -> Iterator[tuple[str, bool | float | str]]:
    """Yield what a cell can hold: no None, no nested value, no reference to another value."""
    for name, value in columns.items():
        if isinstance(value, (bool, int, float)):
            yield name, value
        elif isinstance(value, (str, list)) and "${" not in str(value):
            yield name, str(value)[:LONGEST]


def class_name(spec: dict[str, Any]) -> str:
    """Name the class of a config group without its module."""
    return str(spec["_target_"]).rpartition(".")[2]


def metrics(
    metric: str, train_loss: float | None, excess: float | None, value: float | None, best: float | None,
    steps_above: int | None,
) -> dict[str, float]:  # fmt: skip
    """Return the row's numbers by tag; those that are None are left out.

    Args:
        metric: what decides which weights are best.
        train_loss: of the model as it is.
        excess: over the least loss, likewise.
        value: of the metric, likewise.
        best: value of the metric.
        steps_above: steps until the loss was at most 1 % of its start.
    """
    name = metric.replace("/", "_")
    found = {
        "hp/train_loss": train_loss, "hp/excess_loss": excess, f"hp/{name}": value, f"hp/best_{name}": best,
        "hp/steps_above_1_percent": steps_above,
    }  # fmt: skip
    return {tag: number for tag, number in found.items() if number is not None}


def start(folder: Path, columns: dict[str, bool | float | str]) -> None:
    """Open a run's row, in place of one that was there; until it has an end its status is UNKNOWN."""
    write(folder / START, started(columns))


def write_row(
    folder: Path, columns: dict[str, bool | float | str], numbers: dict[str, float], step: int, status: str
) -> None:
    """Write a whole row, of a run that has ended."""
    values = Summary(value=[Summary.Value(tag=tag, simple_value=number) for tag, number in numbers.items()])
    write(folder / START, started(columns), values, ended(status), step=step)


def started(columns: dict[str, bool | float | str]) -> Summary:
    """Return the record that opens a row.

    It names no trial: TensorBoard then calls the row as the run, by its folder, so that neither equal columns nor the
    copy of a folder make one row of two. Its own ``hparams_pb`` always names one, by default by the columns.
    """
    info = SessionStartInfo(start_time_secs=time.time())
    for name, value in columns.items():
        kind = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
        setattr(info.hparams[name], kind, value)
    return record(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=info))


def end(folder: Path, status: str | None) -> None:
    """Write how a run ended, if it has a row: SUCCESS or FAILURE. An interrupted one goes on later, and has no end."""
    found = event_files(folder)
    if status in STATUSES and (folder / START).exists() and found and not ends(folder):
        with suppress(UserError):  # a full disk has been told already
            write(found[-1].with_name(found[-1].name + END), ended(status))


def ended(status: str) -> Summary:
    """Return the record that ends a row."""
    info = SessionEndInfo(status=STATUSES[status], end_time_secs=time.time())
    return record(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=info))


def record(tag: str, content: HParamsPluginData) -> Summary:
    """Return a record as the HPARAMS plugin wants it."""
    summary, described = Summary(), metadata.create_summary_metadata(content)
    summary.value.add(tag=tag, metadata=described, tensor=metadata.NULL_TENSOR)
    return summary


def take_back_end(folder: Path) -> None:
    """Forget the end of a run that goes on."""
    for path in ends(folder):
        path.unlink()


def ends(folder: Path) -> list[Path]:
    """Find the record of a run's end."""
    return list(folder.glob(f"events.out.tfevents.*{END}"))


def write(path: Path, *summaries: Summary, step: int = 0) -> None:
    """Write an event file of its own, as a whole."""
    content, now = io.BytesIO(), time.time()
    writer = RecordWriter(content)
    for event in (
        Event(file_version="brain.Event:2", wall_time=now),
        *(Event(summary=summary, wall_time=now, step=step) for summary in summaries),
    ):
        writer.write(event.SerializeToString())
    atomic.replace(path, content.getvalue())
