"""Measures reading, standardizing and solving a million rows of ten columns, compared with polars and NumPy alone.

The file has a million rows of ten columns and a target. `data=table` reads it, splits it into parts and standardizes
them; polars only reads it. The optimum is computed from the 700,000 rows of the training data.
"""

import contextlib
import tempfile
from functools import cache
from typing import Any

import numpy as np
import polars as pl
from rounds import Benchmark, Measured
from step import timed

from linear_lab.data.table import TableData
from linear_lab.theory.least_squares import least_squares

ROWS, FEATURES = 1_000_000, 10
CSV, PARQUET = "rows.csv", "rows.parquet"


def write() -> None:
    """Write the files."""
    generator = np.random.default_rng(0)
    x = generator.normal(50, 10, (ROWS, FEATURES))
    frame = pl.DataFrame({f"x{k}": x[:, k] for k in range(FEATURES)})
    frame = frame.with_columns(y=pl.Series(x @ np.arange(1, FEATURES + 1) + generator.normal(0, 1, ROWS)))
    frame.write_csv(CSV)
    frame.write_parquet(PARQUET)


def table(path: str) -> TableData:
    """Read a file, as a run does."""
    data = TableData(path, y="y")
    data.setup()
    return data


@cache
def training_rows() -> tuple[Any, ...]:
    """Return x and y of the training data, their units, and the same columns for NumPy."""
    data = table(PARQUET)
    x, y = data.raw["train"]
    return (x, y), data.schema, np.hstack([x.numpy(), np.ones((len(x), 1))])


def optimum() -> None:
    """Compute the optimum, as a run does."""
    (x, y), schema, _ = training_rows()
    least_squares(x, y, x_units=schema.x_units, y_units=schema.y_units)


def numpy_optimum() -> None:
    """Compute the optimum with NumPy."""
    (_, y), _, columns = training_rows()
    np.linalg.lstsq(columns, y.numpy())


CASES = {
    "CSV": {
        "`polars.read_csv`": lambda: Measured(timed(pl.read_csv, CSV)),
        "`data=table`": lambda: Measured(timed(table, CSV)),
    },
    "Parquet": {
        "`polars.read_parquet`": lambda: Measured(timed(pl.read_parquet, PARQUET)),
        "`data=table`": lambda: Measured(timed(table, PARQUET)),
    },
    "optimum": {
        "`numpy.linalg.lstsq`": lambda: Measured(timed(numpy_optimum)),
        "the optimum of a run": lambda: Measured(timed(optimum)),
    },
}
BENCHMARK = Benchmark("A table of a million rows", __doc__, CASES, rounds=3)

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write()
        print(BENCHMARK.markdown(BENCHMARK.measure()))
