"""The learning rates of many models in each epoch, computed from PyTorch's schedulers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler

from linear_lab.models.supervised import Spec, build_from_spec

PLATEAU = "torch.optim.lr_scheduler.ReduceLROnPlateau"
PLATEAU_NUMBERS = {"factor": 0.1, "patience": 10, "threshold": 1e-4, "cooldown": 0, "min_lr": 0.0, "eps": 1e-8}
NAMES = (  # classes whose learning rate in each epoch is a * base + b
    "StepLR MultiStepLR ConstantLR LinearLR ExponentialLR PolynomialLR CosineAnnealingLR CosineAnnealingWarmRestarts"
)
AFFINE = tuple(f"torch.optim.lr_scheduler.{name}" for name in NAMES.split())


class AffineSchedule:
    """Learning rates ``a * base + b``; a and b of each epoch follow from running PyTorch's class with base 1 and 2.

    ``base`` holds the initial rates, ``(J,)`` or ``()``, and ``which`` the index of each model's spec, ``(J,)``.
    """

    def __init__(self, base: Tensor, specs: Sequence[Spec], which: Tensor, epochs: int) -> None:
        runs = torch.tensor([[rates_of(spec, lr, epochs) for spec in specs] for lr in (1.0, 2.0)], dtype=torch.float64)
        self.slope, self.offset, self.base, self.which = runs[1] - runs[0], 2 * runs[0] - runs[1], base, which

    def rates(self, epoch: int) -> Tensor:
        slope, offset = self.slope[:, epoch], self.offset[:, epoch]
        if len(slope) > 1:
            slope, offset = slope[self.which], offset[self.which]
        return slope * self.base + offset

    def after_validation(self, metric: Tensor) -> None:
        """No-op: the learning rates do not depend on the metric."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        pass


class PlateauSchedule:
    """The rule of ReduceLROnPlateau, in which the `PLATEAU_NUMBERS` may differ between models."""

    def __init__(self, base: Tensor, numbers: dict[str, Tensor], modes: dict[str, Any], jobs: int) -> None:
        self.numbers, self.lower = numbers, modes.get("mode", "min") == "min"
        self.relative = modes.get("threshold_mode", "rel") == "rel"
        self.lr = base.expand(jobs).clone()
        self.best = torch.full((jobs,), torch.inf if self.lower else -torch.inf, dtype=torch.float64)
        self.bad, self.cooling = torch.zeros(jobs), torch.zeros(jobs)

    def rates(self, epoch: int) -> Tensor:
        return self.lr

    def after_validation(self, metric: Tensor) -> None:
        """Lower the learning rates of models whose metric has not improved for more than ``patience`` validations."""
        n, sign = self.numbers, -1 if self.lower else 1
        bound = self.best * (1 + sign * n["threshold"]) if self.relative else self.best + sign * n["threshold"]
        better = metric < bound if self.lower else metric > bound
        self.best = torch.where(better, metric, self.best)
        self.bad = torch.where(better | (self.cooling > 0), 0.0, self.bad + 1)
        self.cooling = (self.cooling - 1).clamp(min=0)
        due = self.bad > n["patience"]
        lower = torch.maximum(self.lr * n["factor"], n["min_lr"].expand_as(self.lr))
        self.lr = torch.where(due & (self.lr - lower > n["eps"]), lower, self.lr)
        self.cooling = torch.where(due, n["cooldown"], self.cooling)
        self.bad = torch.where(due, 0.0, self.bad)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("lr", "best", "bad", "cooling")}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        vars(self).update({name: values.cpu() for name, values in state.items()})  # it was loaded to the stack's device


Schedule = AffineSchedule | PlateauSchedule


def rates_of(spec: Spec, lr: float, epochs: int) -> list[float]:
    """Return the learning rate of each epoch, and of the one after the last."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = build_from_spec(spec, LRScheduler, optimizer)
    rates = []
    for _ in range(epochs + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates
