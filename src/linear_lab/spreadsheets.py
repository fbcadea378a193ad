"""Writing CSV files in which a spreadsheet takes no text for a formula."""

import re
from collections.abc import Sequence

import polars as pl

FORMULA = r"[=+\-@\t\r\n]"  # the first character of a formula
# not a formula: empty text, another first character, or a number
PLAIN = r"^($|[^=+\-@\t\r\n]|[+-]([0-9][0-9.,]*|[.,][0-9]+)([eE][+-]?[0-9]+)?$|[+-](?i:inf|infinity|nan)$)"


def as_csv(rows: pl.DataFrame, columns: Sequence[str] = ()) -> str:
    """Write a table as CSV, with a header if there are ``columns``, and an apostrophe before each formula.

    >>> as_csv(pl.DataFrame({"a": ["=1+1", "-1.5", "b"], "b": [-1.5, None, 2.0]}), ["@a", "b"]).split()
    ["'@a,b", "'=1+1,-1.5", '-1.5,', 'b,2.0']
    """
    text = pl.col(pl.String, pl.Categorical, pl.Enum).cast(pl.String)
    guarded = pl.when(text.str.contains(PLAIN)).then(text).otherwise(text.str.replace("^", "'"))
    header = pl.DataFrame([[name or None for name in columns]], orient="row")  # a table, as names may be equal
    tables = [header, rows] if columns else [rows]
    return "".join(table.with_columns(guarded).write_csv(include_header=False) for table in tables)


def unguarded(text: str) -> str:
    """Remove the apostrophe that `as_csv` writes before a formula."""
    return text[1:] if re.match(f"'{FORMULA}", text) else text
