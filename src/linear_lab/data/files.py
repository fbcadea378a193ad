"""CSV and Parquet files, read without guessing."""

import csv
import math
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from linear_lab.spreadsheets import unguarded

MISSING = ("", "na", "n/a", "null", "none")  # how a missing number is written, in upper or lower case, beside NaN
SEPARATORS = ",;\t|"
SHOWN = 30  # most names of columns in a message


class TableFile:
    """A CSV or Parquet file, with the options of `TableData`. The values of a CSV are text until `numbers` is called.

    Messages call the file ``key=path``, as on the command line.
    """

    def __init__(
        self, path: Any, key: str, separator: str | None = None, encoding: str | None = None, decimal: str = "."
    ) -> None:
        if path is None:
            raise ValueError(f"{key} is missing: name a CSV or Parquet file, as in data.path=my.csv")
        separator = {"\\t": "\t", "tab": "\t"}.get(str(separator), separator)
        if decimal not in (".", ",") or decimal == separator:
            raise ValueError(f"decimal must be . or a comma, and other than the separator, got {decimal!r}")
        if separator is not None and (not isinstance(separator, str) or len(separator) != 1 or separator in '"\n'):
            raise ValueError(f"separator must be one character, or tab, got {separator!r}; null finds it out")
        if encoding is not None and not isinstance(encoding, str):
            raise ValueError(f"encoding must be the name of one, as in latin-1, got {encoding!r}")
        self.label, self.decimal = f"{key}={path}", decimal
        self.group = "data." if key == "path" else ""  # the config group of the options that messages name
        self.path = Path(str(path)).expanduser()
        if not self.path.is_file():
            kind = "a folder; name one file" if self.path.is_dir() else "not there; check the path"
            raise ValueError(f"{self.label}: {kind} (looked for {self.path.absolute()})")
        with self.path.open("rb") as file:
            start = file.read(4)
        if not start:
            raise ValueError(f"{self.label}: the file is empty")
        if start.startswith(b"\x1f\x8b"):
            raise ValueError(f"{self.label}: compressed by gzip; unpack it first")
        encoding = encoding or ("utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8")
        with self.reading():
            self.frame = pl.scan_parquet(self.path) if start == b"PAR1" else self._scan_csv(separator, encoding)
            self.names = self.frame.collect_schema().names()

    def _scan_csv(self, separator: str | None, encoding: str) -> pl.LazyFrame:
        self.source = self.path
        if encoding.lower().replace("_", "-") not in ("utf-8", "utf8", "utf-8-sig"):
            self._transcode(encoding)
        try:
            with self.source.open(encoding="utf-8-sig", newline="") as file:
                header = next((line for line in file if line.strip()), "")
                unquoted = re.sub(r'"[^"]*"', "", header)
                self.separator = separator or max(SEPARATORS, key=unquoted.count)
                file.seek(0)
                # Read the names here, since polars would rename the second of two columns of one name.
                names = next(filter(None, csv.reader(file, delimiter=self.separator)), [])
        except UnicodeDecodeError as error:
            raise self._no_utf8() from error
        except csv.Error as error:
            raise ValueError(f"{self.label}: its first line cannot be read as names of columns ({error})") from error
        if "\0" in header or not header:
            raise ValueError(f"{self.label}: not a table, but binary data or blank lines")
        if header.endswith("\r"):
            raise ValueError(f"{self.label}: its lines end as those of old Macs do (CR alone); save it with LF")
        names = [unguarded(name.strip()) for name in names]
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated:
            raise ValueError(f"{self.label}: two columns are called {repeated[0]!r}; rename one")
        return pl.scan_csv(
            self.source, separator=self.separator, infer_schema=False, glob=False, with_column_names=lambda _: names
        )

    def _transcode(self, encoding: str) -> None:
        """Set the source to a copy of the file in UTF-8, which is deleted with this object."""
        self._copy = tempfile.NamedTemporaryFile("w", suffix=".csv", encoding="utf-8", newline="")  # noqa: SIM115
        try:
            with self.path.open(encoding=encoding, newline="") as file:
                shutil.copyfileobj(file, self._copy)
        except (LookupError, UnicodeError) as error:
            raise ValueError(f"{self.label}: cannot be read with encoding={encoding} ({error})") from None
        self._copy.flush()
        self.source = Path(self._copy.name)

    def read(self, columns: Sequence[str]) -> pl.DataFrame:
        """Return all rows of some columns, without blank lines at the end."""
        with self.reading():
            frame = self.frame.select(columns).collect()
            blank = trailing_blanks(frame)
            if blank:  # These columns are blank there; count the rows where all columns are.
                blank = trailing_blanks(self.frame.tail(blank).collect())
            return frame.head(len(frame) - blank)

    def batches(self, rows: int) -> Iterator[pl.DataFrame]:
        """Yield the rows in order, about ``rows`` at once, without blank lines at the end."""
        blanks = None  # blank lines, until other rows follow
        with self.reading():
            for batch in self.frame.collect_batches(chunk_size=rows, maintain_order=True):
                batch = batch if blanks is None else pl.concat([blanks, batch])
                blanks = batch.tail(trailing_blanks(batch))
                if len(blanks) < len(batch):
                    yield batch.head(len(batch) - len(blanks))

    @property
    def content(self) -> str:
        """The names of the columns, for messages."""
        shown = self.names[:SHOWN] + ([f"... ({len(self.names)})"] if len(self.names) > SHOWN else [])
        return f"{self.path.name} has the columns {', '.join(shown)}"

    def check_columns(self, names: Sequence[str], key: str) -> None:
        """Raise ValueError for names that the file does not have, or that are given twice."""
        missing = [name for name in names if name not in self.names]
        if missing:
            raise ValueError(f"{key}: there is no column {', '.join(map(repr, missing))}; {self.content}")
        if len(set(names)) < len(names):
            raise ValueError(f"{key}: {', '.join(names)} names a column twice")

    def numbers(self, frame: pl.DataFrame, column: str, first_row: int = 1, *, hint: str = "") -> pl.Series:
        """Return a column as float64, null where a value is missing; raise ValueError for text."""
        text = frame[column]
        if text.dtype != pl.String:
            if not (text.dtype.is_numeric() or text.dtype == pl.Boolean):
                raise ValueError(f"column {column} holds {text.dtype}, not numbers{hint}")
            return text.cast(pl.Float64)
        text = digits = text.str.strip_chars()
        if self.decimal == ",":  # Refuse 1.000, which may be a thousand.
            digits = text.str.replace_all(".", "?", literal=True).str.replace(",", ".", literal=True)
        numbers = digits.cast(pl.Float64, strict=False)
        if numbers.null_count() == text.null_count():
            return numbers
        wrong = (numbers.is_null() & text.is_not_null() & ~text.str.to_lowercase().is_in(MISSING)).arg_true()
        if len(wrong):
            value = text[wrong[0]]
            if re.fullmatch(r"[+-]?\d+,\d+", value):
                hint = f"; a decimal comma? try {self.group}decimal=','"
            raise ValueError(f"column {column} holds text: {value!r} in row {wrong[0] + first_row}{hint}")
        return numbers

    def incomplete(self, numbers: pl.DataFrame, first_row: int = 1) -> tuple[pl.Series, str]:
        """Tell which rows have a value that is missing or not finite, and describe the first such value."""
        bad = numbers.select((~pl.all().is_finite()).fill_null(value=True))
        rows = bad.select(pl.any_horizontal(pl.all())).to_series()
        if not rows.any():
            return rows, ""
        row = rows.arg_true()[0]
        name = next(name for name in bad.columns if bad[name][row])
        value = {None: "no value", math.inf: "infinity", -math.inf: "-infinity"}.get(numbers[name][row], "NaN")
        where = ", ".join(f"{count} in {name}" for name, count in bad.sum().row(0, named=True).items() if count)
        return rows, f"column {name} has {value} in row {row + first_row} (missing or not finite: {where})"

    def _no_utf8(self) -> ValueError:
        return ValueError(f"{self.label}: not text in UTF-8; name its encoding, as in {self.group}encoding=latin-1")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn an error of polars into a ValueError that names the file."""
        try:
            yield
        except pl.exceptions.PolarsError as error:
            if "utf-8" in str(error):
                raise self._no_utf8() from error
            message = str(error).strip().splitlines()[0]
            if "more fields" in message:
                message = self._longer_row() or message
            raise ValueError(f"{self.label}: cannot be read as a table: {message}") from error

    def _longer_row(self) -> str | None:
        with self.source.open(encoding="utf-8-sig", newline="") as file:
            for row, values in enumerate(csv.reader(file, delimiter=self.separator)):
                if len(values) > len(self.names):
                    return f"row {row} has {len(values)} values, the header {len(self.names)}"
        return None


def trailing_blanks(frame: pl.DataFrame) -> int:
    """Count the rows at the end that have no value.

    >>> trailing_blanks(pl.DataFrame({"a": [None, 1, None], "b": [None, 2, None]}))
    1
    """
    filled = frame.select(pl.any_horizontal(pl.all().is_not_null())).to_series().arg_true()
    return len(frame) - (filled[-1] + 1 if len(filled) else 0)
