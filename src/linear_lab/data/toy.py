"""Data that need no file: points written down, and drawn ones."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from linear_lab.data.batches import Part
from linear_lab.data.datamodule import LinearData, check_seed, is_whole, split
from linear_lab.data.schema import Schema


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
        """Return the points as tensors."""
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
        check_seed(seed)
        if not (isinstance(noise, (int, float)) and 0 <= noise < float("inf")):
            raise ValueError(f"noise must be a finite number of at least 0, got {noise}")
        self.samples, self.features, self.targets, self.noise = samples, features, targets, noise
        self.weight, self.bias, self.seed = weight, bias, seed
        self.fractions = fractions

    def load(self) -> dict[str, Part]:
        """Draw the rows and cut them into parts."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        # noise comes last, so that another noise leaves x, W and b as they are
        x = normal(self.samples, self.features)
        drawn_weight, drawn_bias = normal(self.targets, self.features), normal(self.targets)
        weight = drawn_weight if self.weight is None else filled(self.weight, drawn_weight.shape, "weight")
        bias = drawn_bias if self.bias is None else filled(self.bias, drawn_bias.shape, "bias")
        y = x @ weight.T + bias + self.noise * normal(self.samples, self.targets)
        return {name: (x[rows], y[rows]) for name, rows in split(self.samples, self.fractions).items()}


class ToyClasses(LinearData):
    """Draws points of several classes in the plane, so far apart that a linear model can tell all of them.

    The centres lie evenly on the unit circle; each point lies within 0.8 of half the distance between two
    neighbouring centres, evenly over that disc. Whoever is nearest to a centre is of its class, and that is linear.

    Args:
        samples: rows in all parts together, N; class k has every C-th of them.
        classes: C, at least 2.
        fractions: see `SyntheticData`.
        seed: of the draw alone.
        **batching: see `LinearData`.

    Raises:
        ValueError: naming the argument that is out of range.
    """

    def __init__(
        self,
        samples: int = 120,
        classes: int = 3,
        fractions: Sequence[float] = (0.7, 0.15, 0.15),
        seed: int = 0,
        **batching: Any,
    ) -> None:
        super().__init__(**batching)
        for name, value, low in (("samples", samples, 1), ("classes", classes, 2)):
            if not is_whole(value, low):
                raise ValueError(f"{name} must be a whole number of at least {low}, got {value}")
        check_seed(seed)
        self.samples, self.classes, self.fractions, self.seed = samples, classes, fractions, seed

    def load(self) -> dict[str, Part]:
        """Draw the points and cut them into parts."""
        generator = torch.Generator().manual_seed(self.seed)
        y = torch.arange(self.samples) % self.classes
        around = 2 * math.pi * y / self.classes
        radius, angle = torch.rand(2, self.samples, generator=generator, dtype=torch.float64)
        reach = 0.8 * math.sin(math.pi / self.classes) * radius.sqrt()
        angle = 2 * math.pi * angle
        x = torch.stack([around.cos() + reach * angle.cos(), around.sin() + reach * angle.sin()], 1)
        labels = [chr(ord("A") + k) if self.classes <= 26 else f"C{k}" for k in range(self.classes)]
        self.schema = Schema.plain(2, 1, labels)
        return {name: (x[rows], y[rows]) for name, rows in split(self.samples, self.fractions).items()}


def as_columns(values: Any, name: str) -> Tensor:
    """``[1, 2]`` or ``[[1], [2]]`` as a float64 tensor ``(2, 1)``.

    Raises:
        ValueError: if the values are no numbers, not finite, or rows of different lengths.
    """
    try:
        tensor = torch.tensor(values, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a list of numbers, or of rows of equal length, got {values}") from error
    if tensor.ndim not in (1, 2) or not tensor.isfinite().all():
        raise ValueError(f"{name} must be a list of finite numbers, or of rows of equal length, got {values}")
    return tensor.unsqueeze(1) if tensor.ndim == 1 else tensor


def filled(values: Any, shape: torch.Size, name: str) -> Tensor:
    """Return the values as a float64 tensor of the shape; a single number fills it.

    Raises:
        ValueError: naming both shapes.
    """
    tensor = as_columns([values] if isinstance(values, (int, float)) else values, name)
    if tensor.numel() not in (1, shape.numel()):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but features and targets want {tuple(shape)}")
    return tensor.flatten().expand(shape) if tensor.numel() == 1 else tensor.reshape(shape)
