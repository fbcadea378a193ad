"""Data from a CSV or Parquet file."""

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import polars as pl
import torch
from torch import Tensor

from linear_lab.data.batches import Part
from linear_lab.data.categories import one_hot, presence
from linear_lab.data.datamodule import PARTS, LinearData, check_seed, split
from linear_lab.data.files import TableFile, incomplete_rows
from linear_lab.data.schema import Schema, units

EXACT = 2**53  # float64 represents every whole number up to this one


class TableData(LinearData):
    """Rows of a CSV or Parquet file.

    Args:
        path: the file.
        x: columns to predict from; None takes all numeric columns except y.
        y: columns to predict; one column of class labels, strings or integers, for classification.
        categorical: columns to predict from that hold text, or numbers that stand for categories. Each category of the
            train part becomes a column, which is 1 in the rows of the category and 0 elsewhere.
        fractions: shares of the rows for train, val and test, drawn at random; 0 leaves a part out.
        split: a column that holds train, val or test in each row; it replaces fractions.
        seed: seed of that random split. Each part keeps the order of the file.
        standardize: train on ``(value - mean) / scale``, with mean and standard deviation of the train part alone.
        center: False subtracts no mean and divides by the root mean square.
        missing: ``error``, or ``drop`` to leave out rows where a value is empty, NaN or infinite.
        separator: the character between the columns of a CSV; None takes the most frequent of comma, semicolon, tab
            and bar in the header.
        decimal: the decimal mark, ``.`` or ``,``.
        encoding: encoding of a CSV; None means UTF-8, or UTF-16 if the file has its byte order mark.
        **batching: see `LinearData`.

    Raises:
        ValueError: if the file cannot be used; the message names column, row and value, and says what to do.
    """

    def __init__(
        self,
        path: str | None,
        x: Sequence[str] | str | None = None,
        y: Sequence[str] | str | None = None,
        categorical: Sequence[str] | str | None = None,
        fractions: Sequence[float] = (0.7, 0.15, 0.15),
        split: str | None = None,
        seed: int = 0,
        standardize: bool = True,
        center: Any = True,
        missing: str = "error",
        separator: str | None = None,
        decimal: str = ".",
        encoding: str | None = None,
        **batching: Any,
    ) -> None:
        super().__init__(**batching)
        if missing not in ("error", "drop"):
            raise ValueError(f"missing must be error or drop, got {missing}")
        if not isinstance(standardize, bool):
            raise ValueError(f"standardize must be true or false, got {standardize}")
        if not isinstance(center, (bool, int, float, list)):
            raise ValueError(f"center must be true or false, got {center}")
        check_seed(seed)
        self.path, self.missing, self.seed, self.fractions = path, missing, seed, fractions
        given = (c if c is None or isinstance(c, (list, tuple)) else [c] for c in (x, y, categorical))
        self.x_columns, self.y_columns, self.categorical = ([*map(str, names or [])] for names in given)
        self.split_column, self.takes_all = None if split is None else str(split), x is None
        self.standardize, self.center = standardize, center is not False
        self.reading = {"separator": separator, "encoding": encoding, "decimal": decimal}

    def load(self) -> dict[str, Part]:
        table = TableFile(self.path, "path", **self.reading)  # type: ignore[arg-type]
        (x_names, frame), y_names = self._choose(table), self.y_columns
        texts = [table.texts(frame, name, "categories") for name in self.categorical]
        hint = "; if it holds categories, try data.categorical=[{}]"
        columns = {name: table.numbers(frame, name, hint=hint.format(name)) for name in x_names}
        if self.classification:
            labels = class_labels(table, frame, y_names[0])
            columns[y_names[0]] = presence(labels)
        else:
            hint = "; class labels need loss=cross_entropy"
            columns |= {name: table.numbers(frame, name, hint=hint) for name in y_names}
        self._add_notes(frame, columns, x_names)
        numbers = pl.DataFrame(columns)
        complete = self._complete(numbers.with_columns(**{text.name: presence(text) for text in texts}))
        rows = self._split(frame, complete)
        values = torch.from_numpy(numbers.filter(complete).to_numpy(order="c", writable=True))
        x, y, classes = values[:, : len(x_names)], values[:, len(x_names) :], None
        if self.classification:
            indices, classes = class_indices(labels.filter(complete), y_names[0])
            y = torch.from_numpy(indices.to_numpy(writable=True))
        seen = set(y[rows["train"]].tolist()) if classes else set()
        unseen = [label for k, label in enumerate(classes or []) if k not in seen]
        categories: dict[str, list[str]] = {}
        for text in (text.filter(complete) for text in texts):
            in_train = categories[text.name] = sorted(text.gather(rows["train"].numpy()).unique())
            unseen += [f"{text.name}={value}" for value in sorted({*text} - {*in_train})]
            encoded = pl.DataFrame(one_hot(text, in_train))
            if twice := {*encoded.columns} & {*x_names}:
                raise ValueError(f"column {min(twice)} has the name of a category of {text.name}; rename it")
            x_names += encoded.columns
            x = torch.cat([x, torch.from_numpy(encoded.to_numpy(writable=True))], 1)
        if unseen:
            self.notes.append(f"not in the train part, so the model cannot learn them: {', '.join(unseen)}")
        parts = {name: (x[part], y[part]) for name, part in rows.items()}
        self.schema = replace(self._schema(x_names, y_names, classes, *parts["train"]), categories=categories)
        return parts

    def _choose(self, table: TableFile) -> tuple[list[str], pl.DataFrame]:
        """Return the names of the numeric columns in x, and the rows of all columns that are used."""
        y, texts, split = self.y_columns, self.categorical, [] if self.split_column is None else [self.split_column]
        if not y:
            raise ValueError(f"y is missing: name the column to predict, as in data.y=[c]; {table.content}")
        if self.classification and len(y) > 1:
            raise ValueError(f"y={y}: cross-entropy needs one column of class labels")
        for key, names in {"y": y, "categorical": texts, "split": split, "x": self.x_columns}.items():
            table.check_columns(names, key)
        others = [*texts, *y, *split]
        if self.takes_all:
            frame = table.read(table.names)
            x = [name for name in table.names if name not in others and self._is_numeric(table, frame, name)]
        else:
            x = [name for name in self.x_columns if name not in texts]
            frame = table.read([*dict.fromkeys([*x, *others])])
        if not len(frame):
            raise ValueError(f"{table.label}: the file has a header, but no rows")
        if repeated := [name for name, count in Counter([*x, *others]).items() if count > 1]:
            raise ValueError(f"{', '.join(repeated)}: used twice in x, y, categorical and split")
        if not x and not texts:
            raise ValueError(f"x: there is no numeric column to use; {'; '.join([table.content, *self.notes])}")
        return x, frame

    def _is_numeric(self, table: TableFile, frame: pl.DataFrame, name: str) -> bool:
        """Tell whether a column holds at least one number and nothing else; if not, add a note that says why."""
        reason = "" if name.strip() else "a column that has no name"
        try:
            if table.numbers(frame, name).null_count() == len(frame) or frame[name].dtype == pl.Boolean:
                reason = reason or f"column {name} holds {frame[name].dtype}, not numbers"
        except ValueError as error:
            reason = reason or str(error)
        if reason:
            self.notes.append(f"left out of x: {reason}")
        return not reason

    def _add_notes(self, frame: pl.DataFrame, columns: dict[str, pl.Series], x: list[str]) -> None:
        """Add notes on numbers that float64 rounds, and on columns that look like an index and were not named."""
        for name, numbers in columns.items():
            if value := first_rounded(frame[name], numbers):
                what = f"whole numbers beyond 2^53, such as {value}, which are rounded to 16 digits"
                self.notes.append(f"column {name} holds {what}")
        counts = [name for name in x if self.takes_all and counts_rows(columns[name])]
        others = ",".join(name for name in x if name not in counts)
        if counts and others:
            advice = f"if it is an index, leave it out with data.x=[{others}]"
            self.notes.append(f"{', '.join(counts)} in x counts the rows: {advice}")

    def _complete(self, numbers: pl.DataFrame) -> pl.Series:
        """Tell which rows are complete; raise ValueError for the others, or add a note that they are dropped."""
        incomplete, first = incomplete_rows(numbers)
        if first and self.missing == "error":
            raise ValueError(f"{first}; data.missing=drop leaves such rows out")
        if first:
            dropped = f"{incomplete.sum()} of {len(numbers)} rows were dropped, {first.partition(' (')[2][:-1]}"
            if incomplete.all():
                raise ValueError(f"missing=drop leaves no row: {dropped}")
            self.notes.append(dropped)
        return ~incomplete

    def _split(self, frame: pl.DataFrame, complete: pl.Series) -> dict[str, Tensor]:
        """Return the positions of each part's rows among the complete ones, in the order of the file."""
        if (column := self.split_column) is not None:
            part_of_row = frame[column].cast(pl.String).str.strip_chars()
            wrong = (complete & ~part_of_row.is_in(PARTS).fill_null(value=False)).arg_true()
            if len(wrong):
                where = f"column {column} holds {part_of_row[wrong[0]]!r} in row {wrong[0] + 1}"
                raise ValueError(f"split: {where}; each row must hold train, val or test")
            part_of_row = part_of_row.filter(complete)
            positions = {name: torch.tensor((part_of_row == name).arg_true().to_list()) for name in PARTS}
            if not len(positions["train"]):
                raise ValueError(f"split: column {column} has no row with train; name some rows so")
            return {name: rows for name, rows in positions.items() if len(rows)}
        count = int(complete.sum())
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
        try:
            slices = split(count, self.fractions)
        except ValueError as error:
            raise ValueError("; ".join([str(error), *self.notes])) from error
        return {name: order[rows].sort().values for name, rows in slices.items()}

    def _schema(self, x: list[str], y: list[str], labels: list[str] | None, *train: Tensor) -> Schema:
        if not self.standardize:
            return Schema.of(x, y, labels)
        if self.center and len(train[0]) == 1:
            raise ValueError("train has one row, which has no standard deviation; try data.standardize=false")
        x_units = units(train[0], center=self.center)
        if constant := [name for name, scale in zip(x, x_units[1].tolist(), strict=True) if not scale]:
            self.notes.append(f"constant in the train part, so without effect: {', '.join(constant)}")
        if labels:
            return Schema.of(x, y, labels, x_units)
        y_mean, y_scale = units(train[1], center=self.center)
        y_scale[y_scale == 0] = 1.0
        return Schema.of(x, y, None, x_units, (y_mean, y_scale))


def class_labels(table: TableFile, frame: pl.DataFrame, name: str) -> pl.Series:
    """Return the label of each row as a string; null for an empty field and, if labels are numbers, NaN and NA."""
    labels = table.texts(frame, name, "class labels")
    if not (frame[name].dtype == pl.String or frame[name].dtype.is_numeric()):
        return labels
    try:
        numbers = table.numbers(frame, name)
    except ValueError:  # the labels are not numbers
        return labels
    finite = numbers.is_finite().fill_null(value=False)
    fractions = (finite & (numbers != numbers.floor())).arg_true()
    if len(fractions):
        wanted = "cross-entropy needs class labels, strings or integers; for numbers choose loss=mse"
        raise ValueError(f"y: column {name} holds numbers such as {numbers[fractions[0]]}; {wanted}")
    if labels.str.contains("[.,]").any():  # 1.0 is the class 1
        short = numbers.cast(pl.Int64, strict=False).cast(pl.String)
        labels = short.zip_with(numbers.abs() < EXACT, labels.str.replace("[.,]0*$", ""))
    return labels.set(~finite, None)


def first_rounded(values: pl.Series, numbers: pl.Series) -> str | None:
    """Return the first whole number in a column that float64 rounds to another one, if any."""
    large = numbers.is_finite() & (numbers.abs() >= EXACT)
    for value, number in zip(values.filter(large), numbers.filter(large), strict=True):
        whole = re.fullmatch(r"([+-]?\d+)([.,]0*)?", text := str(value).strip())
        if whole and int(whole[1]) != int(number):
            return text
    return None


def counts_rows(numbers: pl.Series) -> bool:
    """Tell whether a column holds at least three consecutive whole numbers, each once, like an index."""
    whole = len(numbers) > 2 and not numbers.null_count() and (numbers == numbers.floor()).all()
    return whole and (numbers.sort().diff()[1:] == 1).all()


def class_indices(labels: pl.Series, name: str) -> tuple[pl.Series, list[str]]:
    """Return the index of each row's class, int64, and the sorted classes; sorted as numbers if all of them are."""
    classes = sorted(labels.unique())
    with suppress(ValueError):  # if the labels are not numbers
        classes.sort(key=float)  # '001' stays before '1'
    if len(classes) < 2:
        raise ValueError(f"y: column {name} has one class only ({classes[0]}); classification needs two or more")
    return labels.replace_strict(classes, range(len(classes)), return_dtype=pl.Int64), classes
