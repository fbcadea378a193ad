"""Columns of text as numbers: a column of 0 and 1 for each category."""

from collections.abc import Sequence

import polars as pl

MOST = 1000  # categories of a column, each of which takes as much memory as a column of x


def one_hot(text: pl.Series, categories: Sequence[str]) -> dict[str, pl.Series]:
    """Return a column for each category, 1.0 where the text is it; null where there is no text.

    >>> one_hot(pl.Series("city", ["Oslo", "Rome"]), ["Rome"])["city=Rome"].to_list()
    [0.0, 1.0]
    """
    if len(categories) > MOST:
        raise ValueError(f"column {text.name} has {len(categories)} categories in train, more than {MOST}")
    return {f"{text.name}={category}": (text == category).cast(pl.Float64) for category in categories}


def one_hot_seen(text: pl.Series, categories: Sequence[str], first_row: int = 1) -> dict[str, pl.Series]:
    """As `one_hot`; raise ValueError for a text that is none of the categories of training."""
    unseen = (~text.is_in(categories)).fill_null(value=False).arg_true()
    if len(unseen):
        where = f"column {text.name} holds {text[unseen[0]]!r} in row {unseen[0] + first_row}"
        known = ", ".join(categories[:30]) + ", ..." * (len(categories) > 30)
        raise ValueError(f"{where}, which no row of train has; it has {known}")
    return one_hot(text, categories)


def presence(text: pl.Series) -> pl.Series:
    """Return 0.0 where there is a text, and null where there is none."""
    return text.is_not_null().replace_strict({True: 0.0, False: None}, return_dtype=pl.Float64)
