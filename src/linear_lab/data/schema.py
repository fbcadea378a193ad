"""Names of the columns of x and y, and the units that training uses."""

from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schema:
    """Names and units of the columns of x and y.

    Training sees ``z = (value - mean) / scale`` of each column. Fields are plain values, so checkpoints can hold them.

    Attributes:
        x: names of the F columns of x.
        y: names of the T columns of y; one name for class labels.
        x_mean: F numbers, in the units of the file.
        x_scale: F numbers, in the units of the file; 0 for a constant column, whose z is 0.
        y_mean: T numbers, in the units of the file.
        y_scale: T numbers, in the units of the file.
        labels: the C classes in the order of their indices; None for regression.
        categories: the categories of each text column. Each has a column of 0 and 1, at the end of x.
    """

    x: list[str]
    y: list[str]
    x_mean: list[float]
    x_scale: list[float]
    y_mean: list[float]
    y_scale: list[float]
    labels: list[str] | None = None
    categories: dict[str, list[str]] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """Names of the columns of the file that x is made from: first the numeric ones, then those of text."""
        return self.x[: len(self.x) - sum(map(len, self.categories.values()))] + list(self.categories)

    @classmethod
    def plain(cls, features: int, targets: int, labels: list[str] | None = None) -> Self:
        """Name the columns ``x1, x2, ...`` (``x`` if there is only one), and those of y alike; none is standardized."""
        x = ["x"] if features == 1 else [f"x{k}" for k in range(1, features + 1)]
        y = ["y"] if targets == 1 or labels else [f"y{k}" for k in range(1, targets + 1)]
        return cls.of(x, y, labels)

    @classmethod
    def of(
        cls,
        x: list[str],
        y: list[str],
        labels: list[str] | None = None,
        x_units: tuple[Tensor, Tensor] | None = None,
        y_units: tuple[Tensor, Tensor] | None = None,
    ) -> Self:
        """Make a schema from names; units are mean and scale, or None for columns that are not standardized."""
        x_mean, x_scale = (u.tolist() for u in x_units) if x_units else ([0.0] * len(x), [1.0] * len(x))
        y_mean, y_scale = (u.tolist() for u in y_units) if y_units else ([0.0] * len(y), [1.0] * len(y))
        return cls(list(x), list(y), x_mean, x_scale, y_mean, y_scale, labels)

    @property
    def x_units(self) -> tuple[Tensor, Tensor]:
        """Mean and scale of x, ``(F,)`` each, float64."""
        return torch.tensor(self.x_mean, dtype=torch.float64), torch.tensor(self.x_scale, dtype=torch.float64)

    @property
    def y_units(self) -> tuple[Tensor, Tensor]:
        """Mean and scale of y, ``(T,)`` each, float64."""
        return torch.tensor(self.y_mean, dtype=torch.float64), torch.tensor(self.y_scale, dtype=torch.float64)

    @property
    def standardized(self) -> bool:
        """Whether the units of training differ from those of the file."""
        return any(self.x_mean + self.y_mean) or any(scale != 1 for scale in self.x_scale + self.y_scale)

    def in_file_units(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Convert weight and bias from the units of training to those of the file.

        With ``y_hat = mean_y + scale_y (W z + b)`` and ``z = (x - mean_x) / scale_x`` the weight is
        ``scale_y W / scale_x`` and the bias ``mean_y + scale_y b - weight mean_x``, in float64.

        Args:
            parameters: ``weight`` ``(T, F)`` and ``bias`` ``(T,)`` or None, as lists; other parameters are returned
                unchanged.
        """
        if not self.standardized or set(parameters) != {"weight", "bias"}:
            return parameters
        bias = parameters["bias"]
        weight, bias = self.tensors_in_file_units(
            torch.tensor(parameters["weight"], dtype=torch.float64),
            None if bias is None else torch.tensor(bias, dtype=torch.float64),
        )
        return {"weight": weight.tolist(), "bias": None if bias is None else bias.tolist()}

    def tensors_in_file_units(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Convert float64 tensors ``(..., T, F)`` and ``(..., T)`` of any number of models like `in_file_units`."""
        if not self.standardized:
            return weight, bias
        (x_mean, x_scale), (y_mean, y_scale) = self.x_units, self.y_units
        weight = torch.where(x_scale > 0, y_scale[:, None] * weight / x_scale, 0.0)
        constant = y_mean - weight @ x_mean
        if bias is not None:
            return weight, constant + y_scale * bias
        return weight, constant if any(self.x_mean + self.y_mean) else None


def units(values: Tensor, *, center: bool) -> tuple[Tensor, Tensor]:
    """Return mean and scale of columns, ``(F,)`` each: ``scale = sqrt(mean((value - mean)^2))``.

    The scale of a constant column is exactly 0.

    Args:
        values: ``(N, F)``, float64, finite.
        center: False takes 0 as the mean.

    >>> [u.tolist() for u in units(torch.tensor([[1.0, 5], [3, 5]], dtype=torch.float64), center=True)]
    [[2.0, 5.0], [1.0, 0.0]]
    """
    largest = values.abs().amax(0)
    largest[largest == 0] = 1.0
    values = values / largest  # avoids overflow and underflow of squares; a constant column equals its mean exactly
    mean = values.mean(0) if center else torch.zeros_like(largest)
    scale = (values - mean).square().mean(0).sqrt()
    return mean * largest, scale * largest


def standardize(values: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Return ``(values - mean) / scale``, or 0 where scale is 0."""
    return torch.where(scale > 0, (values - mean) / scale, 0.0)


def restore(values: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Undo `standardize`: ``mean + values * scale``."""
    return mean + values * scale
