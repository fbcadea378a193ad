"""Measures reading, standardizing and solving a million rows of ten columns, compared with polars and NumPy alone.

Each round times all of them one after the other. The table shows the median time, that of the baseline, and the ratio
within a round: the median, the smallest and the largest.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from linear_lab.data.table import TableData
from linear_lab.theory.least_squares import least_squares

ROWS, FEATURES, ROUNDS = 1_000_000, 10, 5


def main() -> None:
    """Print the table."""
    generator = np.random.default_rng(0)
    x = generator.normal(50, 10, (ROWS, FEATURES))
    frame = pl.DataFrame({f"x{k}": x[:, k] for k in range(FEATURES)})
    frame = frame.with_columns(y=pl.Series(x @ np.arange(1, FEATURES + 1) + generator.normal(0, 1, ROWS)))
    with tempfile.TemporaryDirectory() as folder:
        paths = {"CSV": Path(folder, "rows.csv"), "Parquet": Path(folder, "rows.parquet")}
        frame.write_csv(paths["CSV"])
        frame.write_parquet(paths["Parquet"])

        def table(path: Path) -> TableData:
            data = TableData(str(path), y="y")
            data.setup()
            return data

        data = table(paths["CSV"])
        raw, schema = data.raw["train"], data.schema
        columns = np.hstack([raw[0].numpy(), np.ones((len(raw[0]), 1))])
        contestants: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "data=table, CSV": (lambda: table(paths["CSV"]), lambda: pl.read_csv(paths["CSV"])),
            "data=table, Parquet": (lambda: table(paths["Parquet"]), lambda: pl.read_parquet(paths["Parquet"])),
            "optimum": (
                lambda: least_squares(*raw, x_units=schema.x_units, y_units=schema.y_units),
                lambda: np.linalg.lstsq(columns, raw[1].numpy()),
            ),
        }
        shown = Table(title=f"{ROWS:,} rows by {FEATURES} columns, {ROUNDS} rounds")
        baselines = ("polars' read_csv", "polars' read_parquet", "NumPy's lstsq, 0.7 of the rows")
        for heading in ("", "seconds", "baseline", "its seconds", "ratio", "smallest to largest"):
            shown.add_column(heading, justify="left" if heading in ("", "baseline") else "right")
        for (name, pair), baseline in zip(contestants.items(), baselines, strict=True):
            times = [[timed(call) for call in pair] for _ in range(ROUNDS + 1)][1:]  # the first round is a warm-up
            ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
            ratios = [a / b for a, b in times]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            shown.add_row(name, f"{ours:.2f}", baseline, f"{theirs:.2f}", f"{statistics.median(ratios):.2f}", spread)
    Console().print(shown)


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
