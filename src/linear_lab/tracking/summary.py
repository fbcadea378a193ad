"""First and best numbers of J models while they train; J is 1 for a run, and more for a stack."""

import math
from typing import Any

import torch
from torch import Tensor

GROWTH = 1e12  # a loss above this many times its first value, and above this number, has diverged
SMALL = 0.01  # a loss is small if it is at most this share of the first one


class Summary:
    """First and best numbers of J models, the steps at which their losses became small, and which models diverged.

    A model has diverged if a metric whose name ends with "loss" is not finite, or if the loss of a step exceeds
    `GROWTH` times its first value (`GROWTH` itself if that value is below 1): the weights are then about a million
    times too large, so that float32 has hardly a digit left.

    Args:
        jobs: J, the number of models.
        metric: the metric that decides which weights are best; None for no metric.
        mode: ``min`` or ``max``.

    Attributes:
        first: metrics of the initial models, and ``loss``, to which `SMALL` refers; ``(J,)`` float64 each.
        best: the best value of the metric, ``(J,)`` float64; the initial model does not count.
        best_step: the step of the best value, ``(J,)``; -1 if there is none yet.
        parameters: parameters of the best models, ``(J, ...)`` by name, if they were given.
        small_at: the first step whose loss is at most 1 % of the first, ``(J,)``; -1 if there is none yet.
        bound: the loss above which a model has diverged, ``(J,)`` float64; None before the first step.
        diverged_at: the step at which the model diverged, ``(J,)``; -1 if it has not diverged.
        diverged_by: the index in `metrics` of the metric that showed the divergence, ``(J,)``.
        diverged_value: the value of that metric, ``(J,)`` float64.
        metrics: names of the metrics that `diverged_by` refers to.
    """

    def __init__(self, jobs: int, metric: str | None, mode: str, device: torch.device | str = "cpu") -> None:
        def of_each(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((jobs,), value, dtype=dtype, device=device)

        self.metric, self.mode = metric, mode
        self.first: dict[str, Tensor] = {}
        self.best = of_each(math.inf if mode == "min" else -math.inf, torch.float64)
        self.best_step, self.small_at, self.diverged_at, self.diverged_by = (of_each(-1, torch.int64) for _ in range(4))
        self.diverged_value = of_each(math.nan, torch.float64)
        self.parameters: dict[str, Tensor] = {}
        self.bound: Tensor | None = None
        self.metrics: list[str] = []

    @property
    def alive(self) -> Tensor:
        """Whether each model has not diverged, ``(J,)`` bool."""
        return self.diverged_at < 0

    def after_step(self, step: int, losses: Tensor) -> bool:
        """Check the losses ``(J,)`` at the start of a step; return whether a model has now diverged."""
        losses = losses.detach().double()
        if self.bound is None:
            self.bound = GROWTH * losses.clamp(min=1.0)
        return self._diverge(step, "train/loss", losses, ~(losses.abs() <= self.bound))

    def after_validation(
        self, step: int, metrics: dict[str, Tensor], loss: Tensor, parameters: dict[str, Tensor] | None = None
    ) -> bool:
        """Update all numbers after a validation; return whether a model has now diverged.

        Args:
            step: the number of steps taken; 0 for the initial models.
            metrics: values by name, ``(J,)`` each.
            loss: the loss to which `SMALL` refers, ``(J,)``: the excess loss, or train/loss where that is unknown.
            parameters: parameters of the models, ``(J, ...)`` by name; those of the best models are kept.
        """
        metrics = {name: values.double() for name, values in metrics.items()}
        losses = {name: values for name, values in metrics.items() if name.endswith("loss")}
        diverged = [self._diverge(step, name, values, ~values.isfinite()) for name, values in losses.items()]
        if step == 0:
            self.first = metrics | {"loss": loss.double()}
            self.parameters = {name: values.clone() for name, values in (parameters or {}).items()}
            return any(diverged)
        self.note_small(step, loss)
        if (value := metrics.get(str(self.metric))) is not None:
            better = self.alive & ((value < self.best) if self.mode == "min" else (value > self.best))
            self.best = torch.where(better, value, self.best)
            self.best_step = torch.where(better, step, self.best_step)
            for name, values in (parameters or {}).items():
                wider = better.reshape(-1, *[1] * (values.ndim - 1))
                self.parameters[name] = torch.where(wider, values, self.parameters[name])
        return any(diverged)

    def note_small(self, step: int, loss: Tensor) -> None:
        """Note the step of the models whose losses ``(J,)`` have become small."""
        if self.first:
            small = self.alive & (self.small_at < 0) & (loss.double() <= SMALL * self.first["loss"])
            self.small_at = torch.where(small, step, self.small_at)

    def _diverge(self, step: int, metric: str, values: Tensor, which: Tensor) -> bool:
        if not which.any():
            return False
        which = which & self.alive
        if metric not in self.metrics:
            self.metrics.append(metric)
        self.diverged_by = torch.where(which, self.metrics.index(metric), self.diverged_by)
        self.diverged_value = torch.where(which, values, self.diverged_value)
        self.diverged_at = torch.where(which, step, self.diverged_at)
        return bool(which.any())

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
