"""Batches of rows held in memory."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

Part = tuple[Tensor, Tensor]  # x (B, F) floating and y (B, T) floating, or (B,) int64 class indices


def epoch_order(seed: int, epoch: int, rows: int) -> Tensor:
    """Return the order of the rows in an epoch, ``(rows,)`` int64 on the CPU; it depends on the arguments alone."""
    # Unlike a sum of seed and epoch, SeedSequence gives neighbouring seeds unrelated orders.
    mixed = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    return torch.randperm(rows, generator=torch.Generator().manual_seed(int(mixed[0])))


class Batches:
    """Iterates over batches of rows that are held in memory. A DataLoader is slower, since it collates row by row.

    The batches are on the same device as x and y.

    With a ``seed``, each epoch has a new random order of the rows, which depends on ``(seed, epoch)`` alone. A resumed
    run therefore sees the rows that the interrupted run would have seen. Each of ``world_size`` processes takes every
    ``world_size``-th row of the same global batch. A process gets no row if the batch has too few.

    Args:
        x: inputs, ``(N, F)``.
        y: targets, ``(N, T)``.
        batch_size: rows per global batch; the last batch of an epoch has the remaining rows.
        seed: seed of the order of the rows; None keeps the order of x.
        epoch: returns the index of the epoch; it is called when an iteration begins.
        rank: index of this process, from 0.
        world_size: number of processes.

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
        return -(-len(self.x) // self.batch_size)

    def __iter__(self) -> Iterator[Part]:
        epoch = self.epoch()
        order = None if self.seed is None else epoch_order(self.seed, epoch, len(self.x)).to(self.x.device)
        for k in range(self._start if epoch == self._start_epoch else 0, len(self)):
            self._taken, self._taken_epoch = k + 1, epoch
            share = slice(k * self.batch_size + self.rank, (k + 1) * self.batch_size, self.world_size)
            if order is None:
                yield self.x[share].contiguous(), self.y[share].contiguous()
            else:
                yield self.x.index_select(0, order[share]), self.y.index_select(0, order[share])

    def state_dict(self) -> dict[str, int]:
        """Return the position in the epoch, which Lightning saves in the checkpoint."""
        return {"taken": self._taken, "epoch": self._taken_epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration of that epoch skip the batches that were taken before the checkpoint."""
        self._start, self._start_epoch = state["taken"], state["epoch"]
