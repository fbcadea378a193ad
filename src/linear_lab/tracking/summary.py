"""First and best numbers of J models while they train: J = 1 for a run, more for a stack."""

import math
from typing import Any

import torch
from torch import Tensor

GROWTH = 1e12  # a model has diverged once its loss is this many times its first value, or this large
SMALL = 0.01  # a loss counts as small below this share of the first one


class Summary:
    """First and best numbers of J models, when their losses became small, and which of them diverged.

    A model has diverged when a loss (a metric whose name ends so) is not finite, or has grown beyond `GROWTH` times its
    first value, or `GROWTH` if that was below 1: the weights are then a million times too large, so that float32 has
    hardly a digit left.

    Args:
        jobs: J.
        metric: what decides which weights are best; None for nothing.
        mode: ``min`` or ``max``.

    Attributes:
        first: metrics of the initial models, and ``loss``, by which "small" is measured; ``(J,)`` float64 each.
        best: the best value of the metric, ``(J,)`` float64; the initial model does not count.
        best_step: when, ``(J,)``; -1 where there is none yet.
        parameters: of the best models, ``(J, ...)`` by name, if they were given.
        small_at: the first step whose loss is at most 1 % of the first, ``(J,)``; -1 where there is none yet.
        bound: the loss beyond which a model has diverged, ``(J,)`` float64; None before the first step.
        diverged_at: the step that showed it, ``(J,)``; -1 for models that have not diverged.
        diverged_by: which of `metrics` showed it, ``(J,)``.
        diverged_value: its value, ``(J,)`` float64.
        metrics: names that `diverged_by` counts.
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
        """Which models have not diverged, ``(J,)``."""
        return self.diverged_at < 0

    def after_step(self, step: int, losses: Tensor) -> bool:
        """Take the losses ``(J,)`` with which a step began; returns whether they show that a model has diverged."""
        losses = losses.detach().double()
        if self.bound is None:
            self.bound = GROWTH * losses.clamp(min=1.0)
        return self._diverge(step, "train/loss", losses, ~(losses.abs() <= self.bound))

    def after_validation(
        self, step: int, metrics: dict[str, Tensor], loss: Tensor, parameters: dict[str, Tensor] | None = None
    ) -> bool:
        """Look at what was measured of the models as they are; returns whether a model has diverged by it.

        Args:
            step: how many steps have been taken; 0 for the initial models.
            metrics: by name, ``(J,)`` each.
            loss: by which "small" is measured: the excess loss, or train/loss where that is not known; ``(J,)``.
            parameters: of the models, ``(J, ...)`` by name, to keep those of the best.
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
        """Note of which models the loss has become small."""
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
