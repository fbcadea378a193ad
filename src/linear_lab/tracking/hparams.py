"""A run's row on TensorBoard's HPARAMS page.

Lightning and PyTorch write a row at once: as a success before the first step, or in a folder of its own. Here its start
and its end are files of their own, and a resumed run removes the end. Without a record of the experiment, TensorBoard
collects the columns of all runs itself. It shows the first five of each kind, by name: those called hp/ come first.
"""

import io
import re
import time
from contextlib import suppress
from datetime import UTC, datetime
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
from linear_lab.text import joined, printable
from linear_lab.tracking.tensorboard import event_files

# Event files of their own: TensorBoard uses the first start and the first end that it reads, in the order of names
START = "events.out.tfevents.0000000000.start"
END = ".end"  # behind the name of the run's last event file
STATUSES = {"completed": STATUS_SUCCESS, "pruned": STATUS_SUCCESS, "diverged": STATUS_FAILURE, "failed": STATUS_FAILURE}
TRAINER_COLUMNS = (  # the other keys of trainer change no number, or only where a run is cut into parts
    "accelerator", "devices", "strategy", "precision", "max_epochs", "max_steps", "max_time", "limit_train_batches",
    "overfit_batches", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm",
)  # fmt: skip
LONGEST = 100  # characters of a value

Cell = bool | float | str
Number = float | None


def hyperparameters(
    plain: dict[str, Any], optimizer: Optimizer | None = None, train_rows: int | None = None
) -> dict[str, Cell]:
    """Return the columns of a run's row: those that every run has, then what else its config says.

    ``momentum`` is a text, ``-`` for an optimizer without: TensorBoard's plots leave out rows with an empty cell.
    ``batch_size`` is the number of rows per step, also where the gradients of several batches are accumulated.
    Interpolations in the config, as ``${seed}``, are left out.
    """
    defaults: dict[str, Any] = plain["optimizer"] if optimizer is None else optimizer.defaults
    momentum, batch = defaults.get("momentum"), plain["data"].get("batch_size") or train_rows
    if train_rows and batch:
        batch = min(batch * (plain["trainer"].get("accumulate_grad_batches") or 1), train_rows)
    columns: dict[str, Any] = {
        "optimizer": _class_name(plain["optimizer"]),
        "lr": defaults.get("lr"),
        "momentum": "-" if momentum is None else f"{momentum:g}",
        "batch_size": batch,
        "seed": plain["seed"],
        **{group: _class_name(plain[group]) for group in ("data", "model", "loss", "scheduler")},
        "tags": joined(plain.get("tags")) or "-",
    }
    for group in ("data", "model", "loss", "optimizer", "scheduler", "trainer"):
        for key, value in (plain[group] or {}).items():
            if key not in ("_target_", "_partial_", *columns) and (group != "trainer" or key in TRAINER_COLUMNS):
                columns[f"{group}.{key}"] = value
    cells: dict[str, Cell] = {}
    for name, value in columns.items():
        if isinstance(value, (bool, int, float)):
            cells[name] = value
        elif isinstance(value, (str, list)) and "${" not in str(value):
            cells[name] = str(value)[:LONGEST]
    return cells


def _class_name(spec: dict[str, Any]) -> str:
    return str(spec.get("_target_", "-")).rpartition(".")[2]


def metrics(
    metric: str, train_loss: Number, excess: Number, value: Number, best: Number, steps_above: Number
) -> dict[str, float]:
    """Return the row's numbers by tag, without those that are None; ``value`` and ``best`` are those of the metric."""
    name = metric.replace("/", "_")
    numbers = {"hp/train_loss": train_loss, "hp/excess_loss": excess, f"hp/{name}": value, f"hp/best_{name}": best}
    numbers["hp/steps_above_1_percent"] = steps_above
    return {tag: number for tag, number in numbers.items() if number is not None}


def write_start(folder: Path, columns: dict[str, Cell], *more: Summary, step: int = 0) -> None:
    """Write the start of a run's row, or replace it, and more of it; without an end, its status is UNKNOWN."""
    # Runs whose trials have one name share a row, so the time makes it unique. `hparams_pb` would take a hash of the
    # columns. Without a name TensorBoard shows the folder below LOGDIR, whose beginning most rows have in common.
    now = datetime.now(UTC)
    info = SessionStartInfo(start_time_secs=now.timestamp(), group_name=f"{trial(folder)} {now:%Y-%m-%d %H:%M:%S.%f}")
    for name, value in columns.items():
        kind = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
        setattr(info.hparams[name], kind, value)
    start = _record(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=info))
    _write(folder / START, start, *more, step=step)


def write_end(folder: Path, status: str | None) -> None:
    """Write how a run ended, if it has a row without an end; the row of an interrupted run stays UNKNOWN."""
    files = event_files(folder)
    if status in STATUSES and (folder / START).exists() and files and not _ends(folder):
        with suppress(UserError):  # the disk is full, which the run's own error says
            _write(files[-1].with_name(files[-1].name + END), _end_record(status))


def take_back_end(folder: Path) -> None:
    """Remove the end of a run that is resumed."""
    for path in _ends(folder):
        path.unlink()


def write_row(folder: Path, columns: dict[str, Cell], numbers: dict[str, float], step: int, status: str) -> None:
    """Write the whole row of a run that has ended."""
    values = Summary(value=[Summary.Value(tag=tag, simple_value=number) for tag, number in numbers.items()])
    write_start(folder, columns, values, _end_record(status), step=step)


def _ends(folder: Path) -> list[Path]:
    return list(folder.glob(f"events.out.tfevents.*{END}"))


def trial(folder: Path) -> str:
    """Name the row of a run: TensorBoard shows some 14 characters of it, so what differs comes first.

    A job's row begins with its values, and a run's with its time without the year.

    >>> trial(Path("sweeps/study1/sgd-lr=0.01-batch_size=2"))
    '0.01-2-sgd study1'
    >>> trial(Path("runs/20261123-011658-e61x-adam"))
    '1123-011658-e61x-adam runs'
    """
    name = re.sub(r"^\d{4}(?=\d{4}-\d{6}-)", "", folder.name)
    optimizer, *values = re.split(r"-[A-Za-z_][\w.]*=", name)
    sweep = next(parent.name for parent in folder.absolute().parents if not parent.name.startswith("_"))
    return printable("-".join([*values, optimizer]) + " " + re.sub(r"^\d{8}-\d{6}-", "", sweep))


def _end_record(status: str) -> Summary:
    info = SessionEndInfo(status=STATUSES[status], end_time_secs=time.time())
    return _record(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=info))


def _record(tag: str, content: HParamsPluginData) -> Summary:
    described = metadata.create_summary_metadata(content)
    return Summary(value=[Summary.Value(tag=tag, metadata=described, tensor=metadata.NULL_TENSOR)])


def _write(path: Path, *summaries: Summary, step: int = 0) -> None:
    """Write an event file atomically."""
    content, now = io.BytesIO(), time.time()
    writer = RecordWriter(content)
    events = [Event(summary=summary, wall_time=now, step=step) for summary in summaries]
    for event in (Event(file_version="brain.Event:2", wall_time=now), *events):
        writer.write(event.SerializeToString())
    atomic.replace(path, content.getvalue())
