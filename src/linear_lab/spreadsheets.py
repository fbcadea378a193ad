"""Text in CSV files that a spreadsheet must not take for a formula."""

import re
from collections.abc import Sequence

import polars as pl

# Text that a spreadsheet would compute, or send somewhere; among it numbers, which it may
FORMULA, NUMBER = r"^[=+\-@\t\r\n]", r"(?i)^[+-]?(\d[\d.,]*|[.,]\d+)(e[+-]?\d+)?$|^[+-](inf|infinity|nan)$"


def as_csv(rows: pl.DataFrame, columns: Sequence[str] = ()) -> str:
    """Write a table as CSV, below the names of ``columns`` if there are any.

    An apostrophe before a formula has a spreadsheet take it for text; see `unguarded`.

    >>> as_csv(pl.DataFrame({"a": ["=1+1", "-1.5", "b"], "b": [-1.5, None, 2.0]}), ["@a", "b"]).split()
    ["'@a,b", "'=1+1,-1.5", '-1.5,', 'b,2.0']
    """
    text = pl.col(pl.String, pl.Categorical, pl.Enum).cast(pl.String)
    is_formula = text.str.contains(FORMULA) & ~text.str.contains(NUMBER)
    header = pl.DataFrame([[name or None for name in columns]], orient="row")  # of its own: two names may be equal
    tables = [header, rows] if columns else [rows]
    guarded = (
        table.with_columns(pl.when(is_formula).then(text.str.replace("^", "'")).otherwise(text)) for table in tables
    )
    return "".join(table.write_csv(include_header=False) for table in guarded)


def unguarded(text: str) -> str:
    """Remove the apostrophe that `as_csv` writes before a formula."""
    return text[1:] if re.match(f"'{FORMULA[1:]}", text) else text
