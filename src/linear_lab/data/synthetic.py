"""Data drawn from a linear model with noise."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from linear_lab.data.batches import Part
from linear_lab.data.datamodule import LinearData, check_seed, check_whole, split
from linear_lab.data.toy import as_columns


class SyntheticData(LinearData):
    """Draws ``y = x W^T + b + noise * e`` with ``x`` and ``e`` from the standard normal distribution.

    Args:
        samples: rows in all parts together, N.
        features: columns of x, F.
        targets: columns of y, T.
        noise: standard deviation of the noise, in units of y.
        weight: W, ``(T, F)``, or one number for every coefficient; None draws it at random.
        bias: b, ``(T,)``, or one number for every target; None draws it at random.
        fractions: shares of the rows for train, val and test; they sum to 1, and 0 leaves a part out.
        seed: seed of the data. The run's seed changes the initial weights and the order of the rows, not the data.
        **batching: see `LinearData`.

    Raises:
        ValueError: if an argument is out of range; the message names it.
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
            check_whole(name, value, 1)
        check_seed(seed)
        if not (isinstance(noise, (int, float)) and 0 <= noise < float("inf")):
            raise ValueError(f"noise must be a finite number of at least 0, got {noise}")
        self.samples, self.features, self.targets, self.noise = samples, features, targets, noise
        self.weight, self.bias, self.fractions, self.seed = weight, bias, fractions, seed

    def load(self) -> dict[str, Part]:
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        # The noise is drawn last, so that x, W and b do not depend on it.
        x = normal(self.samples, self.features)
        drawn_weight, drawn_bias = normal(self.targets, self.features), normal(self.targets)
        weight = drawn_weight if self.weight is None else filled(self.weight, drawn_weight.shape, "weight")
        bias = drawn_bias if self.bias is None else filled(self.bias, drawn_bias.shape, "bias")
        y = x @ weight.T + bias + self.noise * normal(self.samples, self.targets)
        return {name: (x[rows], y[rows]) for name, rows in split(self.samples, self.fractions).items()}


def filled(values: Any, shape: torch.Size, name: str) -> Tensor:
    """Return the values as a float64 tensor of the shape; a single number fills it."""
    tensor = as_columns([values] if isinstance(values, (int, float)) else values, name)
    if tensor.numel() not in (1, shape.numel()):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but features and targets need {tuple(shape)}")
    return tensor.flatten().expand(shape) if tensor.numel() == 1 else tensor.reshape(shape)
