"""One-hot encoding of text columns: one column of 0 and 1 per category."""

from collections.abc import Sequence

import polars as pl

MAX_CATEGORIES = 1000  # per text column; each category becomes a column of x


def one_hot(text: pl.Series, categories: Sequence[str]) -> dict[str, pl.Series]:
    """Return one column per category: 1.0 where the text equals it, 0.0 elsewhere, null where the text is missing.

    >>> one_hot(pl.Series("city", ["Oslo", "Rome"]), ["Rome"])["city=Rome"].to_list()
    [0.0, 1.0]
    """
    if (count := len(categories)) > MAX_CATEGORIES:
        raise ValueError(f"column {text.name} has {count} categories, more than {MAX_CATEGORIES}; leave it out")
    return {f"{text.name}={category}": (text == category).cast(pl.Float64) for category in categories}


def one_hot_seen(text: pl.Series, categories: Sequence[str], first_row: int = 1) -> dict[str, pl.Series]:
    """Encode like `one_hot`, and raise ValueError for a text that is not a category of the train part."""
    unseen = (~text.is_in(categories)).fill_null(value=False).arg_true()
    if len(unseen):
        where = f"column {text.name} holds {text[unseen[0]]!r} in row {unseen[0] + first_row}"
        shown = ", ".join(categories[:30]) + ", ..." * (len(categories) > 30)
        raise ValueError(f"{where}, which is not a category of the training data; choose one of {shown}")
    return one_hot(text, categories)


def presence(text: pl.Series) -> pl.Series:
    """Return 0.0 where the text is present, and null where it is missing."""
    return text.is_not_null().replace_strict({True: 0.0, False: None}, return_dtype=pl.Float64)
