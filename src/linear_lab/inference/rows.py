"""Predicts new rows with a trained run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from lightning.pytorch import LightningModule
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from linear_lab import UserError
from linear_lab.data.categories import one_hot_seen, presence
from linear_lab.data.files import TableFile, incomplete_rows
from linear_lab.data.schema import Schema, restore, standardize
from linear_lab.fitting.build import class_of, import_targets
from linear_lab.fitting.checks import user_errors
from linear_lab.fitting.trust import check_targets
from linear_lab.inference.remeasure import open_checkpoint
from linear_lab.models import SupervisedModule
from linear_lab.runs.atomic import writing
from linear_lab.runs.folder import PREDICTIONS, Run, Trust
from linear_lab.spreadsheets import as_csv
from linear_lab.terminal import layout

ROWS = 65_536  # rows of a file that are read at a time


class Predictor(nn.Module):
    """A trained network whose inputs and outputs have the units of the data file.

    Maps x ``(N, F)`` to y_hat ``(N, T)``, or for classification to the probabilities of the classes, ``(N, C)``; all
    float64.

    Args:
        network: the trained network, which maps ``(N, F)`` to ``(N, T)`` or to logits ``(N, C)``.
        schema: names and units of the columns.
    """

    def __init__(self, network: nn.Module, schema: Schema) -> None:
        super().__init__()
        # replace half precision by float32, since not every file format and machine supports it
        self.network = network if next(network.parameters()).dtype == torch.float64 else network.float()
        self.schema = schema
        self.dtype = next(network.parameters()).dtype
        # buffers, so that they are part of an exported program
        self.x_mean, self.x_scale = (nn.Buffer(units) for units in schema.x_units)
        self.y_mean, self.y_scale = (nn.Buffer(units) for units in schema.y_units)

    def forward(self, x: Tensor) -> Tensor:
        y_hat = self.network(standardize(x, self.x_mean, self.x_scale).to(self.dtype)).double()
        return y_hat.softmax(1) if self.schema.labels else restore(y_hat, self.y_mean, self.y_scale)

    @torch.no_grad()
    def columns(self, x: Tensor) -> pl.DataFrame:
        """Return predictions of x ``(N, F)``: ``c_hat`` for each column c of y, with ``c_probability`` for classes."""
        y_hat, schema = self(x), self.schema
        if schema.labels is None:
            return pl.DataFrame({f"{name}_hat": y_hat[:, k].numpy() for k, name in enumerate(schema.y)})
        probability, index = y_hat.max(1)
        labels = pl.Series(schema.labels).gather(index.numpy())
        return pl.DataFrame({f"{schema.y[0]}_hat": labels, f"{schema.y[0]}_probability": probability.numpy()})


def load(folder: str, which: str = "best", trust: Trust = None) -> tuple[Run, DictConfig, Predictor]:
    """Return a run, its config and its predictor, without loading its data."""
    run, cfg, path, checkpoint = open_checkpoint(folder, which, trust)
    hyper_parameters = checkpoint["hyper_parameters"]
    check_targets(hyper_parameters, path, trust)
    kind = class_of(cfg, "model", LightningModule)
    if not (issubclass(kind, SupervisedModule) and hyper_parameters.get("schema")):
        raise UserError(
            f"run={folder}: predict and export need a SupervisedModule on LinearData, but the run has "
            f"{cfg.model._target_} on {cfg.data._target_}; only evaluate works"
        )
    import_targets(hyper_parameters)
    with user_errors("model"):
        model = kind.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    return run, cfg, Predictor(model.network, Schema(**hyper_parameters["schema"])).eval()


def predict(
    folder: str,
    which: str = "best",
    x: Any = None,
    input: str | None = None,
    output: str | None = None,
    missing: str = "error",
    trust: Trust = None,
    **reading: Any,
) -> Path | None:
    """Predict typed rows and print them, or predict all rows of a file and write a CSV file with its predictions.

    Args:
        folder: the run folder.
        which: the checkpoint, ``best`` or ``last``.
        x: a row of numbers, followed by categories as text, or a list of such rows; for one column, a list of values.
        input: a CSV or Parquet file with the columns of x, in any order, and possibly other columns.
        output: the CSV file to write; by default predictions.csv in the run folder.
        missing: what to do with rows that lack a value: ``error`` raises, ``drop`` leaves them out, and ``empty``
            leaves their predictions empty.
        trust: names of other classes that the run's config may build; see `check_targets`.
        **reading: separator, encoding and decimal of the input; by default those of the run's data.

    Returns:
        The path of the file that was written, or None.

    Raises:
        UserError: if the run, the checkpoint, an argument, or the file cannot be used.
    """
    if (x is None) == (input is None):
        raise UserError("give the rows to predict, either as x=[...] or as input=<file>")
    if missing not in ("error", "drop", "empty"):
        raise UserError(f"missing={missing}: choose missing=error, drop or empty")
    if input is None and output is not None:
        raise UserError(f"output={output}: predictions of x=[...] are not written to a file; use input=<file>")
    run, cfg, predictor = load(folder, which, trust)
    if input is None:
        schema, rows = predictor.schema, as_lists(x, len(predictor.schema.columns))
        with user_errors("predict"):
            predicted = predictor.columns(as_rows(x, schema.columns, schema.categories))
            check_finite(predicted)
        values = [(*row, *y_hat) for row, y_hat in zip(rows, predicted.rows(), strict=True)]
        layout.show_table(layout.screen(), [*schema.columns, *predicted.columns], values)
        return None
    reading = {key: cfg.data.get(key) if value is None else value for key, value in reading.items()}
    with user_errors("predict"):
        table = TableFile(input, "input", **{key: value for key, value in reading.items() if value is not None})
        sources = [table.path, *([Path(cfg.data.path)] if cfg.data.get("path") else [])]
        target = target_file(run, output, PREDICTIONS, sources)
        count, incomplete = predict_file(predictor, table, target, missing)
    others = f", {incomplete} {'dropped' if missing == 'drop' else 'left empty'}" if incomplete else ""
    done = f"{count} row{'s' * (count != 1)} predicted{others}"
    layout.screen().print(f"{done}: {layout.short(target)}", soft_wrap=True)
    return target


def predict_file(predictor: Predictor, table: TableFile, target: Path, missing: str) -> tuple[int, int]:
    """Write the rows of a table and their predictions atomically; return how many are complete, and how many not."""
    schema = predictor.schema
    table.check_columns(schema.columns, "input")
    row, count = 1, 0
    with writing(target) as file, table.reading():
        for batch in table.batches(ROWS):
            columns = {name: table.numbers(batch, name, row) for name in schema.columns if name in schema.x}
            given = dict(columns)
            for name, categories in schema.categories.items():
                text = table.texts(batch, name, "categories")
                given[name] = presence(text)
                columns |= one_hot_seen(text, categories, row)
            incomplete, first = incomplete_rows(pl.DataFrame(given), row)
            if missing == "error" and first:
                remedy = "missing=empty leaves their predictions empty, missing=drop leaves such rows out"
                raise ValueError(f"{first}; {remedy}")
            numbers = torch.from_numpy(pl.DataFrame(columns).to_numpy(order="c", writable=True))
            predicted = predictor.columns(numbers).with_columns(pl.when(~incomplete).then(pl.all()))
            check_finite(predicted.select(pl.when(~incomplete).then(pl.selectors.numeric()).otherwise(0.0)), row)
            if twice := [name for name in predicted.columns if name in batch.columns]:
                raise ValueError(f"the file has a column {twice[0]}, which is the name of a prediction; rename it")
            written = pl.concat([batch, predicted], how="horizontal")
            count += int((~incomplete).sum())
            if missing == "drop":
                written = written.filter(~incomplete)
            file.write(as_csv(written, written.columns if row == 1 else ()).encode())
            row += len(batch)
        if row == 1:
            raise ValueError(f"{table.label}: the file has a header, but no rows")
        if missing == "drop" and not count:
            raise ValueError(f"{table.label}: missing=drop leaves no row; {first}")
    return count, row - 1 - count


def check_finite(predicted: pl.DataFrame, first_row: int = 1) -> None:
    """Raise ValueError if a prediction is not finite."""
    if first := incomplete_rows(predicted.select(pl.selectors.numeric()), first_row)[1]:
        raise ValueError(f"predicted {first}; its x is too far from the training data")


def target_file(run: Run, output: str | None, default: str, sources: Sequence[Path] = ()) -> Path:
    """Return the path of the file to write; raise ValueError if it cannot be written, or must not be overwritten."""
    target = run.path / default if output is None else Path(str(output)).expanduser()
    if target.is_dir():
        raise ValueError(f"output={output}: it is a folder; name a file in it")
    if not target.parent.is_dir():
        raise ValueError(f"output={output}: the folder {target.parent} does not exist; make it first")
    if target.exists() and not target.is_file():
        raise ValueError(f"output={output}: it is not a regular file; name another one")
    if any(source.exists() and target.exists() and target.samefile(source) for source in sources):
        raise ValueError(f"output={output}: it is the data file, which would be overwritten; name another file")
    inside = target.resolve().is_relative_to(run.path.resolve())
    if inside and target.exists() and target.name not in (default, PREDICTIONS):
        raise ValueError(f"output={output}: it is a file of the run, which would be overwritten; name another one")
    if target.suffix.lower() != (suffix := Path(default).suffix):
        raise ValueError(f"output={output}: the name of the file must end with {suffix}; change it")
    return target


def as_lists(x: Any, columns: int) -> list[Any]:
    """Return typed values as a list of rows; if there is one column, each value is a row."""
    values = OmegaConf.to_container(x) if OmegaConf.is_config(x) else x
    values = values if isinstance(values, list) else [values]
    if any(isinstance(value, list) for value in values):
        return values
    return [[value] for value in values] if columns == 1 else [values]


def as_rows(x: Any, names: list[str], categories: dict[str, list[str]] | None = None) -> Tensor:
    """Convert typed rows to numbers, ``(N, F)`` float64; columns of categories come last, and become 0 and 1.

    >>> as_rows([5, 6], ["x"]).tolist()
    [[5.0], [6.0]]
    >>> as_rows([5, "Oslo"], ["x", "city"], {"city": ["Oslo", "Rome"]}).tolist()
    [[5.0, 1.0, 0.0]]
    """
    categories, rows = categories or {}, as_lists(x, len(names))
    count = len(names) - len(categories)
    example = ",".join([*["0"] * count, *(labels[0] for labels in categories.values())][: layout.SHOWN])
    mistake = UserError(
        f"x={x}: x needs {len(names)} finite {'values' if categories else 'numbers'} per row ({layout.names(names)}); "
        f"type x=[{example}], or x=[[...],[...]] for several rows"
    )
    try:
        numbers = torch.tensor([row[:count] for row in rows], dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise mistake from error
    if numbers.ndim != 2 or {len(row) for row in rows} != {len(names)} or not numbers.isfinite().all():
        raise mistake
    for k, (name, labels) in enumerate(categories.items(), count):
        one_hot = pl.DataFrame(one_hot_seen(pl.Series(name, [str(row[k]) for row in rows]), labels))
        numbers = torch.cat([numbers, torch.from_numpy(one_hot.to_numpy(writable=True))], 1)
    return numbers
