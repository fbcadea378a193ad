"""Where x and y come from, and the batches that training takes from them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

Part = tuple[Tensor, Tensor]  # x (B, F) and y (B, T), floating
EVALUATION_ROWS = 65_536  # rows that are measured at once: bounds memory, not results


class Batches:
    """Batches of rows held in memory, cut as slices: a DataLoader would collate them row by row.

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
        epoch, order = self.epoch(), None
        if self.seed is not None:
            # SeedSequence mixes the two numbers, so that neighbouring seeds share no epoch's order
            epoch_seed = np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)
            order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(int(epoch_seed[0])))
        for k in range(self._start if epoch == self._start_epoch else 0, len(self)):
            self._taken, self._taken_epoch = k + 1, epoch
            rows = slice(k * self.batch_size + self.rank, (k + 1) * self.batch_size, self.world_size)
            if order is None:
                yield self.x[rows], self.y[rows]
            else:
                yield self.x[order[rows]], self.y[order[rows]]

    def state_dict(self) -> dict[str, int]:
        """How far the epoch has come; Lightning keeps it in the checkpoint."""
        return {"taken": self._taken, "epoch": self._taken_epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches that were taken before the checkpoint."""
        self._start, self._start_epoch = state["taken"], state["epoch"]


class LinearData(LightningDataModule, ABC):
    """Serves the parts of a data set that fits into memory.

    A subclass says in ``load`` where the rows come from. ``train`` is fitted, and measured beside ``val``
    whenever Lightning validates, so that both losses belong to the same weights; all parts are measured at the end.

    Args:
        batch_size: rows a step, drawn in a new order each epoch; None takes all rows in their own order.
        order_seed: the seed of that order.

    Attributes:
        in_features: F, the columns of x.
        out_features: T, the columns of y.
    """

    def __init__(self, batch_size: int | None = None, order_seed: int = 0) -> None:
        super().__init__()
        if batch_size is not None and not is_whole(batch_size, 1):
            raise ValueError(f"batch_size must be a whole number of at least 1, or null for all rows, got {batch_size}")
        if not is_whole(order_seed, 0):
            raise ValueError(f"order_seed must be a whole number of at least 0, got {order_seed}")
        self.batch_size = batch_size
        self.order_seed = order_seed
        self.parts: dict[str, Part] = {}

    @abstractmethod
    def load(self) -> dict[str, Part]:
        """Return the parts by name: ``train``, and ``val`` and ``test`` if there are such."""

    def setup(self, stage: str | None = None) -> None:
        """Load the parts once.

        Raises:
            ValueError: where a part's x and y do not fit together; names both shapes.
        """
        if self.parts:
            return
        parts = self.load()
        features, targets = parts["train"][0].shape[-1], parts["train"][1].shape[-1]
        for name, (x, y) in parts.items():
            if x.shape != (len(y), features) or y.shape != (len(x), targets) or not len(x):
                raise ValueError(
                    f"{name} wants x (B, {features}) and y (B, {targets}) with the same number of rows B of at "
                    f"least 1, got x {tuple(x.shape)} and y {tuple(y.shape)}"
                )
        self.parts, self.in_features, self.out_features = parts, features, targets

    def train_dataloader(self) -> Batches:
        """Batches of the training part, this process's share of each."""
        trainer = self.trainer
        assert trainer is not None
        x, y = self.parts["train"]
        seed = None if self.batch_size is None else self.order_seed
        return Batches(
            x,
            y,
            self.batch_size or len(x),
            seed=seed,
            epoch=lambda: trainer.current_epoch,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )

    def val_dataloader(self) -> dict[str, Batches]:
        """Return the parts to measure while training; whole in every process, so that the numbers stay the same."""
        return {name: Batches(x, y, EVALUATION_ROWS) for name, (x, y) in self.parts.items() if name != "test"}

    def test_dataloader(self) -> dict[str, Batches]:
        """Return the parts to measure afterwards: all."""
        return {name: Batches(x, y, EVALUATION_ROWS) for name, (x, y) in self.parts.items()}


class ToyData(LinearData):
    """Points written down one by one.

    Args:
        train: ``{"x": [...], "y": [...]}``; a plain list is one column, a list of lists one row each.
        val: likewise, or None.
        test: likewise, or None.
        **batching: see `LinearData`.
    """

    def __init__(
        self,
        train: dict[str, Any],
        val: dict[str, Any] | None = None,
        test: dict[str, Any] | None = None,
        **batching: Any,
    ) -> None:
        super().__init__(**batching)
        if not train:
            raise ValueError(f"train must be points {{x: [...], y: [...]}}, got {train}")
        self.points = {"train": train, "val": val, "test": test}

    def load(self) -> dict[str, Part]:
        """Return the points as float32 tensors."""
        return {
            name: (as_columns(points["x"], f"{name}.x"), as_columns(points["y"], f"{name}.y"))
            for name, points in self.points.items()
            if points
        }


class SyntheticData(LinearData):
    """Draws ``y = x W^T + b + noise * e`` with ``x`` and ``e`` from the standard normal distribution.

    Args:
        samples: rows in all parts together, N.
        features: columns of x, F.
        targets: columns of y, T.
        noise: standard deviation of the noise, in units of y.
        weight: W, ``(T, F)``, or a number for every coefficient; None draws it.
        bias: b, ``(T,)``, or a number; None draws it.
        fractions: share of the rows for train, val and test; they sum to 1, and a part with 0 is left out.
        seed: of the draw alone, so that the run's seed changes the start and the order but not the data.
        **batching: see `LinearData`.

    Raises:
        ValueError: naming the argument that is out of range.
    """

    def __init__(
        self,
        samples: int = 1000,
        features: int = 1,
        targets: int = 1,
        noise: float = 0.1,
        weight: Any = None,
        bias: Any = None,
        fractions: Sequence[float] = (0.7, 0.15, 0.15),
        seed: int = 0,
        **batching: Any,
    ) -> None:
        super().__init__(**batching)
        for name, value in {"samples": samples, "features": features, "targets": targets}.items():
            if not is_whole(value, 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value}")
        if not (isinstance(noise, (int, float)) and 0 <= noise < float("inf")):
            raise ValueError(f"noise must be a finite number of at least 0, got {noise}")
        self.samples, self.features, self.targets, self.noise = samples, features, targets, noise
        self.weight, self.bias, self.seed = weight, bias, seed
        self.fractions = fractions

    def load(self) -> dict[str, Part]:
        """Draw the rows and cut them into parts."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        # noise comes last, so that another noise leaves x, W and b as they are
        x = normal(self.samples, self.features)
        drawn_weight, drawn_bias = normal(self.targets, self.features), normal(self.targets)
        weight = drawn_weight if self.weight is None else filled(self.weight, drawn_weight.shape, "weight")
        bias = drawn_bias if self.bias is None else filled(self.bias, drawn_bias.shape, "bias")
        y = x @ weight.T + bias + self.noise * normal(self.samples, self.targets)
        return {name: (x[rows], y[rows]) for name, rows in split(self.samples, self.fractions).items()}


def is_whole(value: object, low: int) -> bool:
    """Tell whether a value is a whole number of at least ``low``; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def as_columns(values: Any, name: str) -> Tensor:
    """``[1, 2]`` or ``[[1], [2]]`` as a float32 tensor ``(2, 1)``.

    Raises:
        ValueError: if the values are no numbers, not finite, or rows of different lengths.
    """
    try:
        tensor = torch.tensor(values, dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a list of numbers, or of rows of equal length, got {values}") from error
    if tensor.ndim not in (1, 2) or not tensor.isfinite().all():
        raise ValueError(f"{name} must be a list of finite numbers, or of rows of equal length, got {values}")
    return tensor.unsqueeze(1) if tensor.ndim == 1 else tensor


def filled(values: Any, shape: torch.Size, name: str) -> Tensor:
    """Return the values as a float32 tensor of the shape; a single number fills it.

    Raises:
        ValueError: naming both shapes.
    """
    tensor = as_columns([values] if isinstance(values, (int, float)) else values, name)
    if tensor.numel() not in (1, shape.numel()):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but features and targets want {tuple(shape)}")
    return tensor.expand(shape) if tensor.numel() == 1 else tensor.reshape(shape)


def split(rows: int, fractions: Sequence[float]) -> dict[str, slice]:
    """Cut rows into train, val and test: disjoint, without gaps, each within a row of its fraction.

    Raises:
        ValueError: if the fractions are not three shares that sum to 1, or a wanted part would be empty.

    >>> split(10, [0.7, 0.3, 0])
    {'train': slice(0, 7, None), 'val': slice(7, 10, None)}
    """
    shares = [share for share in fractions if isinstance(share, (int, float)) and 0 <= share <= 1]
    if len(shares) != 3 or len(fractions) != 3 or abs(sum(shares) - 1) > 1e-6 or not shares[0]:
        raise ValueError(
            f"fractions must be the shares of train, val and test, sum to 1, and leave some for train, got {fractions}"
        )
    bounds = [round(rows * sum(shares[:k])) for k in range(4)]
    parts = {}
    for name, share, start, stop in zip(("train", "val", "test"), shares, bounds, bounds[1:], strict=False):
        if share and start == stop:
            raise ValueError(f"fractions {list(fractions)} of {rows} samples leave {name} without a row")
        if share:
            parts[name] = slice(start, stop)
    return parts
