"""Measures the time per step for growing numbers of rows and features, compared with a plain PyTorch loop."""

import statistics

from hardware import DEVICE
from rich.console import Console
from rich.table import Table
from step import ours, plain_loop, quiet, timed

from linear_lab.cli import register_resolvers
from linear_lab.data import SyntheticData

ROUNDS = 3
SIZES = [(10_000, 1), (100_000, 1), (1_000_000, 1), (10_000_000, 1), (10_000, 10), (10_000, 100), (10_000, 1000)]


def table() -> Table:
    """Measure all sizes, and return the table."""
    quiet()
    register_resolvers()
    shown = Table(title=f"steps on all rows, logger=none, medians of {ROUNDS} rounds, 1 thread")
    for heading in ("rows", "features", "ms per step", "time relative to the plain loop", "smallest to largest"):
        shown.add_column(heading, justify="right")
    for rows, features in SIZES:
        data = SyntheticData(samples=rows, features=features, fractions=[1, 0, 0])
        data.setup()
        batches = [[values.to(DEVICE) for values in data.parts["train"]]]
        many = max(60, min(2000, 600_000_000 // (rows * features)))
        few = many // 5
        fixed = ["data=synthetic", f"data.samples={rows}", f"data.features={features}", "data.fractions=[1,0,0]"]
        fixed += ["logger=none", "optimum=false", "optimizer.lr=0.0001", "trainer.check_val_every_n_epoch=1000"]
        slopes: list[tuple[float, float]] = []
        for _ in range(ROUNDS + 1):
            lab = timed(ours, fixed, many) - timed(ours, fixed, few)
            slopes.append((lab, timed(plain_loop, batches, features, many) - timed(plain_loop, batches, features, few)))
        ratios = [lab / plain for lab, plain in slopes[1:]]  # the first round is a warm-up
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        step = statistics.median(lab for lab, _ in slopes[1:]) / (many - few)
        shown.add_row(f"{rows:,}", f"{features:,}", f"{step * 1e3:.2f}", f"{statistics.median(ratios):.2f}", spread)
    return shown


if __name__ == "__main__":
    Console().print(table())
