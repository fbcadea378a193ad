"""Measures rows per second from memory to a training step: linear_lab, a DataLoader, and loops that only slice.

Batches have 256 rows of 10 features, in a new order each epoch; views of the rows in their original order show the
upper limit. "alone" only iterates over the batches. "in the Trainer" trains with Lightning's Trainer, and shows both
the time that it waits for batches and the whole time. Each round times all of them one after the other. The table shows
the median over the rounds, and the time divided by that of linear_lab: the median, the smallest and the largest ratio.
With ``trainer=gpu``, linear_lab and the loops keep the rows in the GPU's memory, while the Trainer copies each batch of
a DataLoader there.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from hardware import DEVICE
from rich.console import Console
from rich.table import Table
from step import bare_trainer, quiet, timed
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from linear_lab.data import Batches

FEATURES, BATCH, ROUNDS = 10, 256, 5
OURS, SLICES, VIEWS, LOADER = "linear_lab", "slices of an order", "views, no order", "DataLoader(TensorDataset)"


class Slices:
    """Draws one permutation per epoch, and indexes by slices of it; without ``shuffle``, yields views of the rows."""

    def __init__(self, x: Tensor, y: Tensor, *, shuffle: bool) -> None:
        self.x, self.y, self.shuffle = x, y, shuffle

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch."""
        if not self.shuffle:
            yield from zip(self.x.split(BATCH), self.y.split(BATCH), strict=True)
            return
        order = torch.randperm(len(self.x), device=self.x.device)
        for rows in order.split(BATCH):
            yield self.x[rows], self.y[rows]


class WaitTimer:
    """Yields the batches of another iterable, and measures the seconds spent waiting for them."""

    def __init__(self, batches: Any) -> None:
        self.batches, self.seconds = batches, 0.0

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of an epoch."""
        started = time.perf_counter()
        for batch in self.batches:
            self.seconds += time.perf_counter() - started
            yield batch
            started = time.perf_counter()


def iterate(batches: Iterable[Any]) -> None:
    """Iterate over the batches, and do nothing with them."""
    for _ in batches:
        pass


def sources(rows: int) -> dict[str, Any]:
    """Return the sources of batches that are compared, by name."""
    x, y = torch.randn(rows, FEATURES), torch.randn(rows, 1)
    on_device = x.to(DEVICE), y.to(DEVICE)
    return {
        OURS: Batches(*on_device, BATCH, seed=0),
        SLICES: Slices(*on_device, shuffle=True),
        VIEWS: Slices(*on_device, shuffle=False),
        LOADER: DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True),
    }


def alone(batches: Any) -> dict[str, float]:
    """Return the seconds of an epoch without a Trainer."""
    return {"alone": timed(iterate, batches)}


def in_trainer(batches: Any) -> dict[str, float]:
    """Return the seconds of an epoch in the Trainer: waiting for batches, and the whole epoch."""
    timer = WaitTimer(batches)
    whole = timed(bare_trainer, timer, FEATURES, 1)
    return {"in the Trainer, waiting": timer.seconds, "in the Trainer, whole": whole}


def table() -> Table:
    """Measure all sources, and return the table."""
    quiet()
    shown = Table(title=f"rows per second, batches of {BATCH} rows by {FEATURES}, {ROUNDS} rounds, 1 thread")
    for heading in ("", "million rows per second", "time relative to linear_lab", "smallest to largest"):
        shown.add_column(heading, justify="right" if heading else "left")
    measures: list[tuple[int, Callable[[Any], dict[str, float]], tuple[str, ...]]] = [
        (100_000, alone, (OURS, SLICES, VIEWS, LOADER)),
        (1_000_000, alone, (OURS, SLICES, VIEWS)),
        (100_000, in_trainer, (OURS, LOADER)),
    ]
    for rows, measure, names in measures:
        compared = {name: batches for name, batches in sources(rows).items() if name in names}
        seconds: list[dict[str, dict[str, float]]] = []  # by round, source, setting
        for _ in range(ROUNDS + 1):
            seconds.append({name: measure(batches) for name, batches in compared.items()})
        for setting in seconds[0][OURS]:
            shown.add_row(f"{rows:,} rows, {setting}", style="bold")
            for name in compared:
                times = [one[name][setting] for one in seconds[1:]]  # the first round is a warm-up
                ratios = [one[name][setting] / one[OURS][setting] for one in seconds[1:]]
                spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
                speed = f"{rows / statistics.median(times) / 1e6:.2f}"
                shown.add_row(f"  {name}", speed, f"{statistics.median(ratios):.2f}", spread)
    return shown


if __name__ == "__main__":
    Console().print(table())
