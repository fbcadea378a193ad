"""All combinations of what is typed, as a table of texts."""

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import polars as pl
from hydra.core.override_parser.types import Override, RangeSweep

from linear_lab import UserError

NOTHING = "_"  # the column of a sweep of one job for which no key was typed


def grid(overrides: Sequence[Override], limit: int, remedy: str) -> pl.DataFrame:
    """Return all combinations of what is typed, as a table of texts with one column per key.

    The keys are in the order typed, and the values of the last one vary first.

    Raises:
        UserError: for a sweep without end or without a job, and for more than ``limit`` jobs.
    """
    last = {str(override.get_key_element()): override for override in overrides}
    count = math.prod(map(count_of, last.values()))
    if not count:
        raise UserError("the sweep has no job: one of its ranges is empty")
    if count > limit:
        raise UserError(f"the sweep has {count:,} jobs, more than {limit:,}; {remedy}")
    columns, repeats = {}, count
    for key, override in last.items():
        texts = _texts_of(override)
        repeats //= len(texts)
        rows = pl.int_range(count, eager=True) // repeats % len(texts)
        columns[key] = pl.Series(key, texts, pl.String).gather(rows)
    return pl.DataFrame(columns or {NOTHING: [None]}, None if columns else {NOTHING: pl.String})


def _texts_of(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    swept = override.value()
    if not isinstance(swept, RangeSweep) or isinstance(swept.range(), range) or swept.shuffle:
        return [*override.sweep_string_iterator()]
    start, step = Decimal(str(swept.start)), Decimal(str(swept.step))  # 0.1, 0.2, 0.3 and not 0.30000000000000004
    return [str(float(start + k * step)) for k in range(count_of(override))]


def count_of(override: Override) -> int:
    """Return how many values an override has, without listing them; UserError for a sweep without end."""
    if not override.is_sweep_override():
        return 1
    swept = override.value()
    if override.is_discrete_sweep() and not isinstance(swept, RangeSweep):
        return sum(1 for _ in override.sweep_iterator())
    numbers: list[Any] = [swept.start, swept.stop, swept.step] if isinstance(swept, RangeSweep) else [0]
    if not numbers[-1] or not all(map(math.isfinite, numbers)):
        raise UserError(f"{override.input_line}: has no end of values to try; type some, or add sweep=search")
    start, stop, step = (Decimal(str(number)) for number in numbers)
    return max(0, math.ceil((stop - start) / step))
