"""Rows a second from memory to a step: ours against a DataLoader, and against loops that only slice.

Batches of 256 rows of 10 features, in a new order each epoch; views of the rows as they lie, without an order, are the
floor. Alone each is only iterated over. In the Trainer, the same for both, the time that it waits for batches is taken
apart from the whole. Each round times all of them one after the other; the table shows the median over rounds, and how
many times as many rows a second ours serves, with the smallest and largest ratio of a round. With ``trainer=gpu`` ours
and the loops have the rows in the GPU's memory; a DataLoader has not, and the Trainer brings each of its batches there.
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
    """A permutation an epoch, and the rows of a batch by a slice of it; without ``shuffle`` views of the rows."""

    def __init__(self, x: Tensor, y: Tensor, *, shuffle: bool) -> None:
        self.x, self.y, self.shuffle = x, y, shuffle

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch."""
        if not self.shuffle:
            yield from zip(self.x.split(BATCH), self.y.split(BATCH), strict=True)
            return
        order = torch.randperm(len(self.x), device=self.x.device)
        for rows in order.split(BATCH):
            yield self.x[rows], self.y[rows]


class Waited:
    """Batches of another iterable, and the seconds that were waited for them."""

    def __init__(self, batches: Any) -> None:
        self.batches, self.seconds = batches, 0.0

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        """Yield an epoch."""
        started = time.perf_counter()
        for batch in self.batches:
            self.seconds += time.perf_counter() - started
            yield batch
            started = time.perf_counter()


def iterate(batches: Iterable[Any]) -> None:
    """Only look at each batch."""
    for _ in batches:
        pass


def sources(rows: int) -> dict[str, Any]:
    """Who serves so many rows."""
    x, y = torch.randn(rows, FEATURES), torch.randn(rows, 1)
    near = x.to(DEVICE), y.to(DEVICE)
    return {
        OURS: Batches(*near, BATCH, seed=0),
        SLICES: Slices(*near, shuffle=True),
        VIEWS: Slices(*near, shuffle=False),
        LOADER: DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True),
    }


def alone(batches: Any) -> dict[str, float]:
    """Seconds of an epoch without a Trainer."""
    return {"alone": timed(iterate, batches)}


def in_trainer(batches: Any) -> dict[str, float]:
    """Seconds of an epoch in the Trainer: waiting for batches, and the whole."""
    waited = Waited(batches)
    whole = timed(bare_trainer, waited, FEATURES, 1)
    return {"in the Trainer, waiting": waited.seconds, "in the Trainer, whole": whole}


def table() -> Table:
    """Measure all."""
    quiet()
    shown = Table(title=f"rows a second, batches of {BATCH} rows by {FEATURES}, {ROUNDS} rounds, 1 thread")
    for heading in ("", "M rows a second", "ours is so many times as fast", "smallest to largest"):
        shown.add_column(heading, justify="right" if heading else "left")
    measures: list[tuple[int, Callable[[Any], dict[str, float]], tuple[str, ...]]] = [
        (100_000, alone, (OURS, SLICES, VIEWS, LOADER)),
        (1_000_000, alone, (OURS, SLICES, VIEWS)),
        (100_000, in_trainer, (OURS, LOADER)),
    ]
    for rows, measure, names in measures:
        those = {name: batches for name, batches in sources(rows).items() if name in names}
        seconds: list[dict[str, dict[str, float]]] = []  # by round, name, way
        for _ in range(ROUNDS + 1):
            seconds.append({name: measure(batches) for name, batches in those.items()})
        for way in seconds[0][OURS]:
            shown.add_row(f"{rows:,} rows, {way}", style="bold")
            for name in those:
                found = [one[name][way] for one in seconds[1:]]  # the first warms up
                ratios = [one[name][way] / one[OURS][way] for one in seconds[1:]]
                spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
                speed = f"{rows / statistics.median(found) / 1e6:.2f}"
                shown.add_row(f"  {name}", speed, f"{statistics.median(ratios):.2f}", spread)
    return shown


if __name__ == "__main__":
    Console().print(table())
