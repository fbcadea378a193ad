"""How the folders of a sweep's jobs are called."""

import hashlib
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING

from linear_lab.runs import atomic

if TYPE_CHECKING:
    import polars as pl

LONGEST = 100  # characters of a name that had to be changed
NAME = r"^[A-Za-z0-9=+](?:[A-Za-z0-9._=+-]{0,118}[A-Za-z0-9_=+])?$"  # what any file system takes as it is


def names(typed: "pl.DataFrame", optimizer: str, named: Collection[str] = ()) -> "pl.Series":
    """Name the jobs' folders by the optimizer and by what differs, in the order typed.

    Keys in ``named`` count as different. A name that had to be changed to suit a file system, or cut, ends with a
    fingerprint of what it was.

    >>> from linear_lab.sweep.plan import listed
    >>> names(listed([["optimizer.lr=0.1", "seed=0"], ["optimizer.lr=0.2", "seed=0"]]), "sgd").to_list()
    ['sgd-lr=0.1', 'sgd-lr=0.2']
    """
    import polars as pl

    keys = {key: key.lstrip("+") for key in typed.columns}
    brief = Counter(key.rpartition(".")[2] for key in keys.values())
    parts = []
    for column, key in keys.items():
        if typed[column].n_unique() > 1 or key in named:
            last = key.rpartition(".")[2]
            shown = last if brief[last] == 1 else key
            parts.append(pl.col(column) if key == "optimizer" else pl.lit(f"{shown}=") + pl.col(column))
    chosen = next((column for column, key in keys.items() if key == "optimizer"), None)
    if chosen is None:
        parts.insert(0, pl.lit(optimizer))
    elif typed[chosen].n_unique() == 1 and "optimizer" not in named:
        parts.insert(0, pl.col(chosen))
    joined = typed.select(name=pl.concat_str(parts, separator="-", ignore_nulls=True)).to_series()
    odd = ~joined.str.contains(NAME)
    return joined.scatter(odd.arg_true(), [safe(name) for name in joined.filter(odd)]) if odd.any() else joined


def safe(name: str) -> str:
    """Make a name that any file system takes, and that differs where the given ones do.

    >>> safe("sgd-lr=0.1"), safe("sgd-path=../../x")
    ('sgd-lr=0.1', 'sgd-path=.._.._x-8451fa56')
    """
    plain = atomic.plain(name)
    if plain == name and plain[0] not in "._-":
        return plain
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{atomic.plain(f'job{name}' if plain[:1] in '._-' else name)[:LONGEST]}-{digest}"
