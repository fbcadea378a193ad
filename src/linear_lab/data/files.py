"""Strict reading of CSV and Parquet files."""

import csv
import itertools
import math
import re
import sys
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import polars as pl

from linear_lab.spreadsheets import FORMULA, unguarded

MISSING = ("", "na", "n/a", "null", "none")  # spellings of a missing number, in lower case; NaN is one too
SEPARATORS = ",;\t|"
SEPARATOR_LINE = re.compile(r"sep=([^\r\n\"])[\r\n]*")  # a first line that tells Excel the separator
BOM = "\ufeff".encode()
HEADER_LINES = 50  # lines that are searched for a header
MAX_NAMES = 30  # column names in a message


class TableFile:
    """A CSV or Parquet file, with the options of `TableData`. The values of a CSV are text until `numbers` is called.

    Raises ValueError if the file cannot be read; messages name it ``key=path``, as on the command line.
    """

    def __init__(
        self, path: Any, key: str, separator: str | None = None, encoding: str | None = None, decimal: str = "."
    ) -> None:
        if path is None:
            raise ValueError(f"{key} is missing: name a CSV or Parquet file, as in data.path=my.csv")
        separator = {"\\t": "\t", "tab": "\t"}.get(str(separator), separator)
        if decimal not in (".", ",") or decimal == separator:
            raise ValueError(f"decimal must be . or a comma, and differ from the separator, got {decimal!r}")
        if separator is not None and (not isinstance(separator, str) or len(separator) != 1 or separator in '"\n'):
            raise ValueError(f"separator must be one character, or tab, got {separator!r}; null detects it")
        if encoding is not None and not isinstance(encoding, str):
            raise ValueError(f"encoding must be the name of an encoding, such as latin-1, got {encoding!r}")
        self.label, self.decimal = f"{key}={path}", decimal
        self.group = "data." if key == "path" else ""  # the config group of the options that messages name
        self.path = Path(str(path)).expanduser()
        if not self.path.is_file():
            kind = "this is a folder; name a file" if self.path.is_dir() else "the file is not there; check the path"
            raise ValueError(f"{self.label}: {kind} (looked for {self.path.absolute()})")
        with self.path.open("rb") as file:
            start = file.read(4)
        if not start:
            raise ValueError(f"{self.label}: the file is empty")
        if start.startswith(b"\x1f\x8b"):
            raise ValueError(f"{self.label}: the file is compressed by gzip; unpack it first")
        self.encoding = encoding or ("utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8")
        self.is_csv = start != b"PAR1"
        with self.reading():
            self.frame = self._scan_csv(separator) if self.is_csv else pl.scan_parquet(self.path)
            self.names = self.frame.collect_schema().names()

    def _scan_csv(self, separator: str | None) -> pl.LazyFrame:
        if self.encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
            self.encoding = "utf-8-sig"
        header = ""
        with self._text() as file:
            for self.start, header in enumerate(file):  # start counts the lines before the header
                if declared := SEPARATOR_LINE.fullmatch(header):
                    separator = separator or declared[1]
                elif header.strip():
                    break
        if "\0" in header or not header.strip():
            raise ValueError(f"{self.label}: the file is not a table: it holds binary data or blank lines")
        self.separator = separator or max(SEPARATORS, key=re.sub(r'"[^"]*"', "", header).count)
        blanks = itertools.count()
        # The names are read here, since polars renames the second of two columns that have the same name. Names must be
        # unique, so columns without a name are called by 0, 1, 2, ... spaces.
        self.names = [unguarded(name.strip()) or " " * next(blanks) for name in next(self._rows())]
        if repeated := [name for name, count in Counter(self.names).items() if count > 1]:
            raise ValueError(f"{self.label}: two columns are called {repeated[0]!r}; rename one")
        names, plain = self.names, self.encoding == "utf-8-sig" and not self.start and self._is_plain()
        source = self.path if plain else self._copy()
        return pl.scan_csv(
            source, separator=self.separator, infer_schema=False, glob=False, with_column_names=lambda _: names
        )

    def _is_plain(self) -> bool:
        """Tell whether quotes enclose whole cells and LF follows each CR; polars misreads other files."""
        with self.path.open("rb") as file:  # most files have neither; this check takes a tenth of the time
            if not any(b'"' in block or b"\r" in block for block in iter(lambda: file.read(2**20), b"")):
                return True
        content = np.memmap(self.path, np.uint8, mode="r")
        data = content[len(BOM) if content[: len(BOM)].tobytes() == BOM else 0 :].data
        edge = re.escape(f'{self.separator}\r\n"').encode()  # a quote within a cell is written twice
        cell = rb'(?<![^%b])"[^"\r]*+(?:\r\n[^"\r]*+)*+"(?![^%b])' % (edge, edge)
        return bool(re.fullmatch(rb'(?:[^"\r]++|\r\n|%b)*+\r?' % cell, data))

    def _copy(self) -> Path:
        """Write a temporary copy in UTF-8 with regular quotes; it is deleted together with this object."""
        with tempfile.NamedTemporaryFile("w", suffix=".csv", encoding="utf-8", newline="", delete=False) as copy:
            weakref.finalize(self, Path(copy.name).unlink)
            csv.writer(copy, delimiter=self.separator).writerows(self._rows())
        return Path(copy.name)

    def _rows(self) -> Iterator[list[str]]:
        """Yield the header and the rows as Python's csv module reads them: a quote within a cell is text.

        Raises:
            ValueError: if a row has too many values or an ambiguous end; the message names the row.
        """
        csv.field_size_limit(sys.maxsize)  # cells with shapes of maps exceed the default of 131,072
        lines: list[str] = []  # of the current row

        def recorded(file: TextIO) -> Iterator[str]:
            for line in itertools.islice(file, self.start, None):
                lines.append(line)
                yield line

        with self._text() as file:
            for row, values in enumerate(csv.reader(recorded(file), delimiter=self.separator)):
                name = f"{self.label}: {f'row {row}' if row else 'the header'}"
                if len(lines) > 1:
                    try:  # strict: a quote must close at the end of its cell
                        next(csv.reader(lines, delimiter=self.separator, strict=True))
                    except csv.Error:
                        wrong = "opens a quote that is not closed at the end of its cell; correct the quotes"
                        raise ValueError(f"{name} {wrong}") from None
                if lines[-1].endswith("\r"):
                    raise ValueError(f"{name} ends in CR alone, as on old Macs; save the file with LF line ends")
                if row and len(values) > len(self.names):
                    raise ValueError(f"{name} has {len(values)} values, but the header {len(self.names)}; correct it")
                lines.clear()
                yield values

    @contextmanager
    def _text(self) -> Iterator[TextIO]:
        """Open the CSV as text; raise ValueError if it has another encoding."""
        try:
            with self.path.open(encoding=self.encoding, newline="") as file:
                yield file
        except (LookupError, UnicodeError) as error:  # the encoding is unknown, or the file has another one
            if self.encoding != "utf-8-sig":
                raise ValueError(f"{self.label}: cannot be read with encoding={self.encoding} ({error})") from None
            hint = f"{self.group}encoding=latin-1"
            raise ValueError(f"{self.label}: the file is not text in UTF-8; name its encoding, as in {hint}") from error

    def read(self, columns: Sequence[str]) -> pl.DataFrame:
        """Return all rows of some columns, without blank lines at the end."""
        with self.reading():
            # Parse all columns of a CSV: otherwise a stray quote in another one silently loses rows (polars#21519).
            options = pl.QueryOptFlags(projection_pushdown=not self.is_csv)
            frame = self.frame.select(columns).collect(engine="streaming", optimizations=options)
            if blank := trailing_blanks(frame):  # Keep the rows in which another column has a value.
                blank = trailing_blanks(self.frame.tail(blank).collect())
            return frame.head(len(frame) - blank)

    def batches(self, rows: int) -> Iterator[pl.DataFrame]:
        """Yield the rows in order, about ``rows`` at once, without blank lines at the end."""
        blanks = None  # blank lines at the end of the batches so far
        with self.reading():
            for batch in self.frame.collect_batches(chunk_size=rows, maintain_order=True):
                batch = batch if blanks is None else pl.concat([blanks, batch])
                blanks = batch.tail(trailing_blanks(batch))
                if len(blanks) < len(batch):
                    yield batch.head(len(batch) - len(blanks))

    @property
    def content(self) -> str:
        """A sentence on the names of the columns, for messages."""
        named = [name for name in self.names if name.strip()]
        shown = named[:MAX_NAMES] + ([f"... ({len(named)})"] if len(named) > MAX_NAMES else [])
        return f"{self.path.name} has the columns {', '.join(shown)}"

    def check_columns(self, names: Sequence[str], key: str) -> None:
        """Raise ValueError if the file lacks one of the names, or if a name is given twice."""
        if missing := [name for name in names if name not in self.names]:
            hint = self._header_below(missing) if self.is_csv else ""
            raise ValueError(f"{key}: there is no column {', '.join(map(repr, missing))}; {self.content}{hint}")
        if len(set(names)) < len(names):
            raise ValueError(f"{key}: {', '.join(names)} names a column twice; name each once")

    def numbers(self, frame: pl.DataFrame, column: str, first_row: int = 1, *, hint: str = "") -> pl.Series:
        """Return a column as float64, null where a value is missing; raise ValueError for other text."""
        text = frame[column]
        if text.dtype != pl.String:
            if not (text.dtype.is_numeric() or text.dtype == pl.Boolean):
                raise ValueError(f"column {column} holds {text.dtype}, not numbers{hint}")
            return text.cast(pl.Float64)
        text = digits = text.str.strip_chars()
        if self.decimal == ",":  # 1.000 is refused, since it may mean one thousand
            digits = text.str.replace_all(".", "?", literal=True).str.replace(",", ".", literal=True)
        numbers = digits.cast(pl.Float64, strict=False)
        if numbers.null_count() == text.null_count():
            return numbers
        wrong = (numbers.is_null() & text.is_not_null() & ~text.str.to_lowercase().is_in(MISSING)).arg_true()
        if len(wrong):
            hint = self._hint_on_marks(text.filter(~text.str.to_lowercase().is_in([*MISSING, "nan"]))) or hint
            raise ValueError(f"column {column} holds text: {text[wrong[0]]!r} in row {wrong[0] + first_row}{hint}")
        return numbers

    def texts(self, frame: pl.DataFrame, column: str, wanted: str) -> pl.Series:
        """Return a column as text, null for an empty field."""
        try:
            text = frame[column].cast(pl.String).str.strip_chars().str.replace(f"^'({FORMULA})", "$1")
        except pl.exceptions.PolarsError as error:
            raise ValueError(f"column {column} holds {frame[column].dtype}, not {wanted}") from error
        return text.set(text == "", None)

    def _hint_on_marks(self, text: pl.Series) -> str:
        """Return a hint if commas (dots with decimal=',') separate thousands or are the decimal mark in all values."""
        comma = self.decimal == "."
        mark, point, kind, option = (",", r"\.", "comma", "','") if comma else (r"\.", ",", "point", ".")
        if not text.str.contains(mark).any():
            return ""
        whole = rf"([0-9]{{1,3}}|[1-9][0-9]{{0,2}}({mark}[0-9]{{3}})+)"
        grouped = text.str.contains(rf"^[+-]?{whole}({point}[0-9]*)?$").all()
        divided = text.str.contains(rf"^[+-]?[0-9]*({mark}[0-9]*)?([eE][+-]?[0-9]+)?$").all()
        advice = [f"if {kind}s separate thousands, write the numbers without them"] * grouped
        if divided and not (grouped and not text.str.contains(mark).all()):  # 1,009 beside 990 separates thousands
            advice.append(f"if the {kind} is the decimal mark, try {self.group}decimal={option}")
        return f"; {'; or '.join(advice)}" if advice else ""

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn an error of polars into a ValueError that names the file and, for a CSV, the row."""
        try:
            yield
        except pl.exceptions.PolarsError as error:
            if self.is_csv:
                for _ in self._rows():  # raises at the first row that cannot be read
                    pass
            message = str(error).strip().splitlines()[0]
            raise ValueError(f"{self.label}: cannot be read as a table: {message}") from error

    def _header_below(self, names: Sequence[str]) -> str:
        """Return a hint to delete the lines of a title if a line below them names the columns."""
        named = sum(map(bool, map(str.strip, self.names)))
        with self._text() as file:
            for number, line in enumerate(itertools.islice(file, HEADER_LINES), 1):
                words = {word.strip('"# \r\n') for word in re.split(f"[{SEPARATORS}]", line)} - {""}
                if number > self.start + 1 and len(words) > named and words.issuperset(names):
                    return f"; line {number} names {', '.join(names)}: delete the lines before it"
        return ""


def incomplete_rows(numbers: pl.DataFrame, first_row: int = 1) -> tuple[pl.Series, str]:
    """Return a mask of the rows with a value that is missing or not finite, and a text on the first such value."""
    bad = numbers.select((~pl.all().is_finite()).fill_null(value=True))
    rows = bad.select(pl.any_horizontal(pl.all())).to_series()
    if not rows.any():
        return rows, ""
    row = rows.arg_true()[0]
    name = next(name for name in bad.columns if bad[name][row])
    value = {None: "no value", math.inf: "infinity", -math.inf: "-infinity"}.get(numbers[name][row], "NaN")
    where = ", ".join(f"{count} in {name}" for name, count in bad.sum().row(0, named=True).items() if count)
    return rows, f"column {name} has {value} in row {row + first_row} (missing or not finite: {where})"


def trailing_blanks(frame: pl.DataFrame) -> int:
    """Count the rows without any value at the end of a frame.

    >>> trailing_blanks(pl.DataFrame({"a": [None, 1, None], "b": [None, 2, None]}))
    1
    """
    filled = frame.select(pl.any_horizontal(pl.all().is_not_null())).to_series().arg_true()
    return len(frame) - (filled[-1] + 1 if len(filled) else 0)
