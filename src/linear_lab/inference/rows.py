"""Predictions of a trained run for new rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from linear_lab import UserError
from linear_lab.data.files import TableFile
from linear_lab.data.schema import Schema, restore, standardize
from linear_lab.fitting.build import import_targets
from linear_lab.fitting.checks import user_errors
from linear_lab.fitting.targets import check_targets
from linear_lab.inference.remeasure import open_checkpoint
from linear_lab.runs.atomic import writing
from linear_lab.runs.folder import PREDICTIONS, Run, Trust
from linear_lab.terminal import layout

ROWS = 65_536  # of a file that are in memory at once


class Predictor(nn.Module):
    """A trained network, with inputs and outputs in the units of the file.

    Maps x ``(N, F)``, float64, to y_hat ``(N, T)``, float64; for classification to the probabilities ``(N, C)`` of the
    classes.

    Args:
        network: from ``(N, F)`` to ``(N, T)`` or ``(N, C)``, in the units and the precision of training.
        schema: names and units of the columns.
    """

    def __init__(self, network: nn.Module, schema: Schema) -> None:
        super().__init__()
        # float32 in place of half precision, which not every file format and machine can compute with
        self.network = network if next(network.parameters()).dtype == torch.float64 else network.float()
        self.schema = schema
        self.dtype = next(network.parameters()).dtype
        # buffers are part of an exported program
        self.x_mean, self.x_scale = (nn.Buffer(units) for units in schema.x_units)
        self.y_mean, self.y_scale = (nn.Buffer(units) for units in schema.y_units)

    def forward(self, x: Tensor) -> Tensor:
        y_hat = self.network(standardize(x, self.x_mean, self.x_scale).to(self.dtype)).double()
        return y_hat.softmax(1) if self.schema.labels else restore(y_hat, self.y_mean, self.y_scale)

    @torch.no_grad()
    def columns(self, x: Tensor) -> pl.DataFrame:
        """Return predictions by name: ``c_hat`` for each column c of y; of labels also ``c_probability``."""
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
    import_targets(hyper_parameters)
    with user_errors("model"):
        kind: Any = get_class(cfg.model._target_)
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
    """Predict some rows and show them, or all rows of a file and write them beside their predictions.

    Args:
        folder: the run folder.
        which: ``best`` or ``last`` checkpoint.
        x: a row of F numbers, or a list of such rows; with one feature, a list of its values.
        input: a CSV or Parquet file with the columns of x, in any order and among others.
        output: the CSV to write; None is predictions.csv in the run folder.
        missing: ``error``, or ``empty`` to leave the prediction of a row without all values empty.
        trust: classes of your own that the run's config may name; see `check_targets`.
        **reading: separator, encoding and decimal of the input; None takes those of the run's own data.

    Returns:
        The file that was written, if any.

    Raises:
        UserError: naming what is wrong with run, x, input or output.
    """
    if (x is None) == (input is None):
        raise UserError("give either x=[...] or input=<file>: the rows to predict")
    if missing not in ("error", "empty"):
        raise UserError(f"missing={missing}: choose missing=error or missing=empty")
    if input is None and output is not None:
        raise UserError(f"output={output}: x=[...] is shown, not written; give input=<file> to write a file")
    run, cfg, predictor = load(folder, which, trust)
    if input is None:
        rows = as_rows(x, predictor.schema.x)
        predicted = predictor.columns(rows)
        values = [(*row, *y_hat) for row, y_hat in zip(rows.tolist(), predicted.rows(), strict=True)]
        layout.show_table(layout.screen(), [*predictor.schema.x, *predicted.columns], values)
        return None
    reading = {key: cfg.data.get(key) if value is None else value for key, value in reading.items()}
    with user_errors("predict"):
        table = TableFile(input, "input", **{key: value for key, value in reading.items() if value is not None})
        sources = [table.path, *([Path(cfg.data.path)] if cfg.data.get("path") else [])]
        target = target_file(run, output, PREDICTIONS, sources)
        count = predict_file(predictor, table, target, missing)
    layout.screen().print(f"{count} row{'s' * (count != 1)} predicted: {layout.short(target)}", soft_wrap=True)
    return target


def predict_file(predictor: Predictor, table: TableFile, target: Path, missing: str) -> int:
    """Write the rows of a table with their predictions, atomically; returns the number of rows."""
    names = predictor.schema.x
    table.check_columns(names, "input")
    row = 1
    with writing(target) as part, part.open("wb") as file, table.reading():
        for batch in table.batches(ROWS):
            numbers = pl.DataFrame({name: table.numbers(batch, name, row) for name in names})
            incomplete, first = table.incomplete(numbers, row)
            if missing == "error" and first:
                raise ValueError(f"{first}; missing=empty leaves the prediction of such rows empty")
            predicted = predictor.columns(torch.from_numpy(numbers.to_numpy(order="c", writable=True)))
            sound = predicted.select(pl.when(~incomplete).then(pl.selectors.numeric()).otherwise(0.0))
            if first := table.incomplete(sound, row)[1]:
                raise ValueError(f"predicted {first}: its x is too far from the data that the run was trained on")
            twice = [name for name in predicted.columns if name in batch.columns]
            if twice:
                raise ValueError(f"there is a column {twice[0]} already, as the prediction is called; rename it")
            predicted = predicted.with_columns(pl.when(~incomplete).then(pl.all()))
            pl.concat([batch, predicted], how="horizontal").write_csv(file, include_header=row == 1)
            row += len(batch)
        if row == 1:
            raise ValueError(f"{table.label}: a header, but no rows")
    return row - 1


def target_file(run: Run, output: str | None, default: str, sources: Sequence[Path] = ()) -> Path:
    """Return the file to write, and refuse one that cannot be written or must not be overwritten."""
    target = run.path / default if output is None else Path(str(output)).expanduser()
    if target.is_dir():
        raise ValueError(f"output={output}: a folder; name a file in it")
    if not target.parent.is_dir():
        raise ValueError(f"output={output}: there is no folder {target.parent}; make it first")
    if target.exists() and not target.is_file():
        raise ValueError(f"output={output}: not a plain file; name another one")
    if any(source.exists() and target.exists() and target.samefile(source) for source in sources):
        raise ValueError(f"output={output}: the data themselves, which would be lost; name another file")
    inside = target.resolve().is_relative_to(run.path.resolve())
    if inside and target.exists() and target.name not in (default, PREDICTIONS):
        raise ValueError(f"output={output}: a file that the run left, which would be lost; name another one")
    if target.suffix.lower() != Path(default).suffix:
        raise ValueError(f"output={output}: what is written is {Path(default).suffix}; name such a file")
    return target


def as_rows(x: Any, names: list[str]) -> Tensor:
    """Convert typed numbers to rows ``(N, F)``, float64.

    >>> as_rows([5, 6], ["x"]).tolist()
    [[5.0], [6.0]]
    """
    values = OmegaConf.to_container(x) if OmegaConf.is_config(x) else x
    example = ",".join(["0"] * min(len(names), layout.SHOWN))
    mistake = UserError(
        f"x={values}: x wants {len(names)} numbers a row ({layout.names(names)}), as in x=[{example}], or "
        "x=[[...],[...]] for several rows; all finite"
    )
    try:
        rows = torch.tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise mistake from error
    if rows.ndim < 2:
        rows = rows.reshape(-1, 1) if len(names) == 1 else rows.reshape(1, -1)
    if rows.ndim != 2 or rows.shape[1] != len(names) or not len(rows) or not rows.isfinite().all():
        raise mistake
    return rows
