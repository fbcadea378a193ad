"""Measures an epoch of batches from memory: linear_lab's, a DataLoader's, and slices of an order.

An epoch has 100,000 rows of 10 features in batches of 256 rows, in a new order. "without training" only iterates over
the batches; "in the Trainer" trains with Lightning's bare Trainer. With `trainer=gpu`, all but the DataLoader keep the
rows in the GPU's memory.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import Any

import torch
from hardware import DEVICE
from rounds import Benchmark, Measured
from step import bare_trainer, quiet, timed
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from linear_lab.data import Batches

ROWS, FEATURES, BATCH = 100_000, 10, 256


class Slices:
    """Draws one permutation per epoch, and indexes by slices of it."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch."""
        for rows in torch.randperm(len(self.x), device=self.x.device).split(BATCH):
            yield self.x[rows], self.y[rows]


@cache
def sources() -> dict[str, Any]:
    """Return the sources of batches that are compared, by name."""
    x, y = torch.randn(ROWS, FEATURES), torch.randn(ROWS, 1)
    on_device = x.to(DEVICE), y.to(DEVICE)
    return {
        "DataLoader": DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True),
        "slices": Slices(*on_device),
        "linear_lab": Batches(*on_device, BATCH, seed=0),
    }


def iterate(batches: Iterable[Any]) -> None:
    """Iterate over the batches, and do nothing with them."""
    for _ in batches:
        pass


def epoch(call: Callable[..., None], source: str, *arguments: int) -> Measured:
    """Return the seconds of one epoch."""
    return Measured(timed(call, sources()[source], *arguments))


CASES = {
    "without training": {
        "`DataLoader(TensorDataset(x, y))`": partial(epoch, iterate, "DataLoader"),
        "slices of a permutation": partial(epoch, iterate, "slices"),
        "linear_lab": partial(epoch, iterate, "linear_lab"),
    },
    "in the Trainer": {
        "`DataLoader(TensorDataset(x, y))`": partial(epoch, bare_trainer, "DataLoader", FEATURES, 1),
        "linear_lab": partial(epoch, bare_trainer, "linear_lab", FEATURES, 1),
    },
}
BENCHMARK = Benchmark("One epoch of batches", __doc__, CASES, rounds=5)

if __name__ == "__main__":
    quiet()
    print(BENCHMARK.markdown(BENCHMARK.measure()))
