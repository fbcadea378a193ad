"""Divergence: how a run detects that its loss grows without bound, and how it explains this."""

import logging
import math
import sys
from collections import deque
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig

from linear_lab import compat
from linear_lab.data import LinearData
from linear_lab.models import SupervisedModule
from linear_lab.runs.record import Record
from linear_lab.theory.reference import Reference
from linear_lab.tracking.summary import Summary

log = logging.getLogger(__name__)

MAX_LOSSES = 50  # losses of the last batches, which a diverged run logs


class DivergenceError(Exception):
    """Ends a run whose loss ``metric`` is not finite, or above its bound."""

    def __init__(self, metric: str, value: float) -> None:
        super().__init__(f"{metric} {value:.2g}")
        self.metric, self.value = metric, value


class StopOnDivergence(Callback):
    """Keeps the `Summary` of a run, and raises `DivergenceError` after the step or validation that shows divergence.

    ``losses`` holds the losses of the last batches, each with the step of its batch.
    """

    def __init__(self, reference: Reference, metric: str | None, mode: str) -> None:
        self.reference, self.summary = reference, Summary(1, metric, mode)
        self.losses: deque[tuple[int, torch.Tensor]] = deque(maxlen=MAX_LOSSES)
        self.step = 0

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.step = trainer.global_step + 1

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        loss = loss_of(trainer, outputs)
        if loss is None:
            return
        self.losses.append((self.step, loss))
        if not isinstance(pl_module, SupervisedModule):  # its loss may have any scale
            self.summary.bound = torch.tensor([sys.float_info.max])
        diverged = self.summary.after_step(trainer.global_step, loss)
        if trainer.strategy.reduce_boolean_decision(diverged, all=False):  # each process has other rows
            raise DivergenceError("train/loss", loss.item())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {name: value for name, value in trainer.callback_metrics.items() if name != "step"}
        measured = {name: value.detach().cpu().reshape(1) for name, value in metrics.items() if value.numel() == 1}
        excess = self.reference.excess(pl_module.network) if self.reference.optimum else None  # type: ignore[arg-type]
        unknown = torch.tensor([math.nan], dtype=torch.float64)
        loss = measured.get("train/loss", unknown) if excess is None else torch.tensor([excess], dtype=torch.float64)
        if self.summary.after_validation(trainer.global_step, measured, loss):
            name, value = self.summary.metrics[int(self.summary.diverged_by)], float(self.summary.diverged_value)
            raise DivergenceError(name, value)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if compat.is_measured_without_validation(trainer):
            self.on_validation_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return self.summary.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.summary.load_state_dict(state_dict)


def loss_of(trainer: Trainer, outputs: Any) -> torch.Tensor | None:
    """Return the loss ``(1,)`` in the outputs of a training step; None if they hold none."""
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        return None
    # Lightning has divided it by the number of batches per step
    return loss.detach().cpu().reshape(1) * trainer.accumulate_grad_batches


def warn_if_lr_unstable(cfg: DictConfig, reference: Reference) -> None:
    """Before training, warn if the learning rate is above the largest stable one."""
    if lr_is_unstable(cfg, reference):
        stable: Any = reference.stable_lr
        log.warning(
            "optimizer.lr=%g is above %.4g, the largest stable rate for this data: the loss will grow; "
            "try optimizer.lr=%g", cfg.optimizer.lr, stable, rounded_down(stable)
        )  # fmt: skip


def warn_if_useless(cfg: DictConfig, data: Any, model: Any, record: Record) -> None:
    """Warn about a run that has not diverged, but whose loss has grown beyond that of a constant prediction."""
    if not (isinstance(data, LinearData) and isinstance(model, SupervisedModule)):
        return
    final, initial = record.metrics["train/loss"], (record.initial or {}).get("train/loss")
    x, y = data.parts["train"]
    constant = y.mean(0).expand_as(y) if y.is_floating_point() else torch.zeros(len(y), data.out_features).to(x)
    loss, lr = model.loss(constant, y).item(), cfg.optimizer.get("lr")
    if initial is not None and final > max(initial, loss):
        remedy = f"try a smaller rate, as in optimizer.lr={lr / 10:g}" if lr else "try another optimizer"
        message = "train/loss %.3g is above its initial value, and above the %.3g of a constant prediction; %s"
        log.warning(message, final, loss, remedy)


def lr_is_unstable(cfg: DictConfig, reference: Reference) -> bool:
    """Tell whether the run must diverge: its rate is above the largest stable one, and no scheduler lowers it."""
    return reference.stable_lr is not None and not cfg.scheduler and cfg.optimizer.get("lr", 0) > reference.stable_lr


def rounded_down(rate: float) -> float:
    """Return 0.99 times the rate, rounded down to one digit.

    >>> rounded_down(0.1198), rounded_down(0.1)
    (0.1, 0.09)
    """
    unit = 10 ** math.floor(math.log10(0.99 * rate))
    return float(f"{math.floor(0.99 * rate / unit) * unit:.1g}")


def divergence(
    cfg: DictConfig, reference: Reference, diverged: DivergenceError | None, result: dict[str, Any], initial: Any
) -> str | None:
    """Return a message that the run diverged, at which step and why; None if it did not.

    ``diverged`` is the error that stopped the run, if any. ``result`` has the final ``steps`` and ``metrics``, and
    ``initial`` has the metrics of the initial model.
    """
    metrics, steps = result["metrics"], result["steps"]
    grown = lr_is_unstable(cfg, reference) and metrics["train/loss"] > (initial.get("train/loss") or math.inf)
    wrong = (item for item in metrics.items() if item[0].endswith("loss") and not math.isfinite(item[1]))
    not_finite = next((DivergenceError(*item) for item in wrong), None)
    diverged = diverged or not_finite or (DivergenceError("train/loss", metrics["train/loss"]) if grown else None)
    if not diverged:
        return None
    if steps and cfg.trainer.gradient_clip_val is not None and str(cfg.optimizer.get("_target_")).endswith(".LBFGS"):
        why = "LBFGS does not work with clipped gradients; try trainer.gradient_clip_val=null"
        return f"diverged at step {steps} ({diverged}): {why}"
    raw = cfg.data.get("standardize") is False
    return explain(diverged.metric, diverged.value, steps, cfg.optimizer.get("lr"), reference.stable_lr, raw=raw)


def explain(metric: str, value: float, steps: int, lr: float | None, stable: float | None, *, raw: bool) -> str:
    """Return a message that a run diverged, at which step, why, and what to try.

    ``metric`` and its ``value`` showed the divergence after ``steps``. ``stable`` is the largest stable rate, or None
    if it is unknown. ``raw`` tells whether standardizing the data could help.
    """
    if not steps:
        return (
            f"diverged before the first step ({metric} {value:.2g}): the values are too large for this precision; "
            "standardize the data, or try trainer.precision=64-true"
        )
    if stable is None or lr is None:
        why = f"try a smaller rate than {lr}, as in optimizer.lr={lr / 10:g}" if lr else "try another optimizer"
    elif lr > stable:
        limit = f"above {stable:.4g}, the largest stable rate for this data"
        why = f"lr {lr:g} is {limit}; try optimizer.lr={rounded_down(stable):g}"
    else:
        limit = f"below {stable:.4g}, the largest stable rate for all rows together, but may be too large for a batch"
        why = f"lr {lr:g} is {limit}; try optimizer.lr={rounded_down(lr):g} or a larger data.batch_size"
    return f"diverged at step {steps} ({metric} {value:.2g}): {why}{', or data.standardize=true' if raw else ''}"
