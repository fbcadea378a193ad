"""A run's row on TensorBoard's HPARAMS page.

Lightning writes a row that says success before the first step, and PyTorch writes it into a folder of its own. This
module writes its start and its end into two files; a resumed run removes the end. It writes no experiment record, so
that TensorBoard collects the columns of all runs. TensorBoard ticks the first five metrics by name: hp/ comes first.
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

# Separate event files. TensorBoard reads files in the order of names, and uses the first start and the first end.
START = "events.out.tfevents.0000000000.start"
END = ".end"  # suffix to the name of the last event file
STATUSES = {"completed": STATUS_SUCCESS, "pruned": STATUS_SUCCESS, "diverged": STATUS_FAILURE, "failed": STATUS_FAILURE}
TRAINER_COLUMNS = (  # the keys of trainer that change the trained weights
    "accelerator", "devices", "strategy", "precision", "max_epochs", "max_steps", "max_time", "limit_train_batches",
    "overfit_batches", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm",
)  # fmt: skip
MAX_LENGTH = 100  # characters per value

Cell = bool | float | str
Number = float | None


def hyperparameters(
    plain: dict[str, Any], optimizer: Optimizer | None = None, train_rows: int | None = None
) -> dict[str, Cell]:
    """Return the columns of a run's row: those that every run has, then the other values of its config.

    ``momentum`` is a string, ``-`` for an optimizer without momentum: TensorBoard's plots omit rows with empty cells.
    ``batch_size`` is the number of rows per step, which counts all batches whose gradients are accumulated.
    Values with an interpolation, such as ``${seed}``, are left out.
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
            cells[name] = str(value)[:MAX_LENGTH]
    return cells


def _class_name(spec: dict[str, Any]) -> str:
    return str(spec.get("_target_", "-")).rpartition(".")[2]


def metrics(
    metric: str, train_loss: Number, excess: Number, value: Number, best: Number, steps_above: Number
) -> dict[str, float]:
    """Return the numbers of a row by tag, without None; ``value`` and ``best`` are values of the metric."""
    name = metric.replace("/", "_")
    numbers = {"hp/train_loss": train_loss, "hp/excess_loss": excess, f"hp/{name}": value, f"hp/best_{name}": best}
    numbers["hp/steps_above_1_percent"] = steps_above
    return {tag: number for tag, number in numbers.items() if number is not None}


def write_start(folder: Path, columns: dict[str, Cell], *summaries: Summary, step: int = 0) -> None:
    """Write or replace the start of a row, followed by the summaries; its status is UNKNOWN until it has an end."""
    # TensorBoard merges rows of one name, so the time makes the name unique. `hparams_pb` would take a hash of the
    # columns. Without a name TensorBoard shows the folder below LOGDIR, whose first characters most rows share.
    now = datetime.now(UTC)
    info = SessionStartInfo(start_time_secs=now.timestamp(), group_name=f"{trial(folder)} {now:%Y-%m-%d %H:%M:%S.%f}")
    for name, value in columns.items():
        kind = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
        setattr(info.hparams[name], kind, value)
    start = _record(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=info))
    _write(folder / START, start, *summaries, step=step)


def write_end(folder: Path, status: str | None) -> None:
    """Write the end of a row that has none; the row of an interrupted run stays UNKNOWN."""
    files = event_files(folder)
    if status in STATUSES and (folder / START).exists() and files and not _ends(folder):
        with suppress(UserError):  # the run's own error reports a full disk
            _write(files[-1].with_name(files[-1].name + END), _end_record(status))


def remove_end(folder: Path) -> None:
    """Remove the end from the row of a run that is resumed."""
    for path in _ends(folder):
        path.unlink()


def write_row(folder: Path, columns: dict[str, Cell], numbers: dict[str, float], step: int, status: str) -> None:
    """Write the whole row of a run that has ended."""
    values = Summary(value=[Summary.Value(tag=tag, simple_value=number) for tag, number in numbers.items()])
    write_start(folder, columns, values, _end_record(status), step=step)


def _ends(folder: Path) -> list[Path]:
    return list(folder.glob(f"events.out.tfevents.*{END}"))


def trial(folder: Path) -> str:
    """Return the name of a run's row. TensorBoard shows about 14 characters of it, so what differs comes first.

    The name of a job begins with its values, that of a single run with its time without the year.

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
