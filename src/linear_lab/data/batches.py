"""Batches of rows held in memory."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

Part = tuple[Tensor, Tensor]  # x (B, F) floating and y (B, T) floating, or (B,) int64 class indices
BLOCK = 1 << 20  # numbers of x that are put in order at once: they fit into the processor's cache


def epoch_order(seed: int, epoch: int, rows: int) -> Tensor:
    """Return the order of the rows in an epoch, ``(rows,)`` int64, on the CPU: a function of its arguments alone."""
    # SeedSequence mixes the two numbers, so that neighbouring seeds share no epoch's order
    mixed = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    return torch.randperm(rows, generator=torch.Generator().manual_seed(int(mixed[0])))


class Batches:
    """Batches of rows held in memory, cut as slices: a DataLoader would collate them row by row.

    They lie in the memory that x and y lie in, a GPU's among them.

    With a ``seed``, the order of the rows is drawn anew each epoch from ``(seed, epoch)`` alone, so it does not
    depend on what was drawn before, and a resumed run sees the rows of the run that was interrupted. Each of
    ``world_size`` processes takes every ``world_size``-th row of the same global batch; of a small one, some take none.

    Args:
        x: inputs, ``(N, F)``.
        y: targets, ``(N, T)``.
        batch_size: rows of the global batch; the last batch of an epoch has what is left.
        seed: shuffles; None keeps the order of the rows.
        epoch: tells the epoch that an iteration begins.

    >>> x = torch.arange(3.0).reshape(3, 1)
    >>> [batch.flatten().tolist() for batch, _ in Batches(x, x, batch_size=2)]
    [[0.0, 1.0], [2.0]]
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int,
        *,
        seed: int | None = None,
        epoch: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.x, self.y = x, y
        self.batch_size = batch_size
        self.seed, self.epoch = seed, epoch
        self.rank, self.world_size = rank, world_size
        self._start, self._start_epoch = 0, -1
        self._taken, self._taken_epoch = 0, -1

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-len(self.x) // self.batch_size)

    def __iter__(self) -> Iterator[Part]:
        """Yield the batches that the epoch still has."""
        epoch, size, rank, processes = self.epoch(), self.batch_size, self.rank, self.world_size
        order, block, x, y = None, -1, self.x, self.y
        if self.seed is not None:
            order = epoch_order(self.seed, epoch, len(x)).to(x.device)
        width = max(1, BLOCK // (size * max(1, x[:1].numel())))  # batches that are put in order at once
        for k in range(self._start if epoch == self._start_epoch else 0, len(self)):
            self._taken, self._taken_epoch = k + 1, epoch
            start = k * size
            if order is not None:
                if k // width != block:  # of a grid that begins with the epoch, wherever this iteration does
                    block = k // width
                    these = order[block * width * size : (block + 1) * width * size]
                    x, y = self.x.index_select(0, these), self.y.index_select(0, these)
                start -= block * width * size
            rows = slice(start + rank, start + size, processes)
            yield x[rows].contiguous(), y[rows].contiguous()  # of several processes the rows lie apart

    def state_dict(self) -> dict[str, int]:
        """How far the epoch has come; Lightning keeps it in the checkpoint."""
        return {"taken": self._taken, "epoch": self._taken_epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches that were taken before the checkpoint."""
        self._start, self._start_epoch = state["taken"], state["epoch"]
