"""Toy data: points listed in the config, and separable classes in the plane."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from linear_lab.data.batches import Part
from linear_lab.data.datamodule import LinearData, check_seed, check_whole, split
from linear_lab.data.schema import Schema

Points = dict[str, Any]  # x and y, each a list of numbers or of rows


class ToyData(LinearData):
    """Serves points that are listed one by one.

    Args:
        train: ``{"x": [...], "y": [...]}``; a list of numbers is one column, a list of lists has one row per list.
        val: points as for train, or None.
        test: points as for train, or None.
        **batching: see `LinearData`.
    """

    def __init__(self, train: Points, val: Points | None = None, test: Points | None = None, **batching: Any) -> None:
        super().__init__(**batching)
        if not train:
            raise ValueError(f"train must be points {{x: [...], y: [...]}}, got {train}")
        self.points = {"train": train, "val": val, "test": test}

    def load(self) -> dict[str, Part]:
        return {
            name: (as_columns(points["x"], f"{name}.x"), as_columns(points["y"], f"{name}.y"))
            for name, points in self.points.items()
            if points
        }


class ToyClasses(LinearData):
    """Draws points of several classes in the plane, which a linear model can separate without error.

    The centres of the classes are spaced evenly on the unit circle. The points of a class are uniform on a disc around
    its centre, whose radius is 0.8 of half the distance between neighbouring centres. Each point is therefore nearest
    to the centre of its class, and straight lines separate the classes.

    Args:
        samples: N, rows in all parts together; row n belongs to class n modulo C.
        classes: C, the number of classes, at least 2.
        fractions: see `SyntheticData`.
        seed: seed of the data.
        **batching: see `LinearData`.

    Raises:
        ValueError: if an argument is out of range; the message names it.
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
        check_whole("samples", samples, 1)
        check_whole("classes", classes, 2)
        check_seed(seed)
        self.samples, self.classes, self.fractions, self.seed = samples, classes, fractions, seed

    def load(self) -> dict[str, Part]:
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
    """Convert ``[1, 2]`` or ``[[1], [2]]`` to a float64 tensor ``(2, 1)``; raise ValueError for other values."""
    try:
        tensor = torch.tensor(values, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a list of numbers, or of rows of equal length, got {values}") from error
    if tensor.ndim not in (1, 2) or not tensor.isfinite().all():
        raise ValueError(f"{name} must be a list of finite numbers, or of rows of equal length, got {values}")
    return tensor.unsqueeze(1) if tensor.ndim == 1 else tensor
