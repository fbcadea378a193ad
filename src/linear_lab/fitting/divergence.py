"""Runs whose loss grows without bound: stopped at once, and told why."""

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

KEPT = 50  # losses, of the last batches, that a run shows if it diverges


class DivergenceError(Exception):
    """Ends a run whose loss ``metric`` is not finite, or has grown beyond all bounds."""

    def __init__(self, metric: str, value: float) -> None:
        super().__init__(f"{metric} {value:.2g}")
        self.metric, self.value = metric, value


class StopOnDivergence(Callback):
    """Keeps the `Summary` of a run, and raises `DivergenceError` after the step or validation that shows divergence.

    ``losses`` are those of the last batches, each with the step that the batch belongs to.
    """

    def __init__(self, reference: Reference, metric: str | None, mode: str) -> None:
        self.reference, self.summary = reference, Summary(1, metric, mode)
        self.losses: deque[tuple[int, torch.Tensor]] = deque(maxlen=KEPT)
        self.step = 0

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.step = trainer.global_step + 1

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        loss = loss_of(trainer, outputs)
        if loss is None:
            return
        self.losses.append((self.step, loss))
        if not isinstance(pl_module, SupervisedModule):  # whose loss may have any scale
            self.summary.bound = torch.tensor([sys.float_info.max])
        diverged = self.summary.after_step(trainer.global_step, loss)
        if trainer.strategy.reduce_boolean_decision(diverged, all=False):  # each process has seen its own rows
            raise DivergenceError("train/loss", loss.item())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {name: value for name, value in trainer.callback_metrics.items() if name != "step"}
        measured = {name: value.detach().cpu().reshape(1) for name, value in metrics.items() if value.numel() == 1}
        excess = self.reference.excess(pl_module.network) if self.reference.optimum else None  # type: ignore[arg-type]
        unknown = torch.tensor([math.nan], dtype=torch.float64)  # how small the loss is
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
    """Return the loss ``(1,)`` of what a training step gave; None where a module gives none."""
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        return None
    # Lightning has divided it by the number of batches whose gradients add up
    return loss.detach().cpu().reshape(1) * trainer.accumulate_grad_batches


def warn_if_lr_unstable(cfg: DictConfig, reference: Reference) -> None:
    """Before training, warn that the learning rate is above the largest stable one."""
    if lr_is_unstable(cfg, reference):
        stable: Any = reference.stable_lr
        log.warning(
            "optimizer.lr=%g is above %.4g, the largest stable rate for this data: the loss will grow; "
            "try optimizer.lr=%g", cfg.optimizer.lr, stable, rounded_down(stable)
        )  # fmt: skip


def warn_if_useless(cfg: DictConfig, data: Any, model: Any, record: Record) -> None:
    """Warn of a run that has not diverged, but ends above its start, and above what a constant prediction has."""
    if not (isinstance(data, LinearData) and isinstance(model, SupervisedModule)):
        return
    final, initial = record.metrics["train/loss"], (record.initial or {}).get("train/loss")
    x, y = data.parts["train"]
    constant = y.mean(0).expand_as(y) if y.is_floating_point() else torch.zeros(len(y), data.out_features).to(x)
    loss, lr = model.loss(constant, y).item(), cfg.optimizer.get("lr")
    if initial is not None and final > max(initial, loss):
        remedy = f"try a smaller rate, as in optimizer.lr={lr / 10:g}" if lr else "try another optimizer"
        log.warning("train/loss %.3g is above its start, and above %.3g of a constant: %s", final, loss, remedy)


def lr_is_unstable(cfg: DictConfig, reference: Reference) -> bool:
    """Tell whether the run must diverge: plain SGD above the largest stable rate, at a rate that nothing lowers."""
    return reference.stable_lr is not None and not cfg.scheduler and cfg.optimizer.get("lr", 0) > reference.stable_lr


def rounded_down(rate: float) -> float:
    """Return the next smaller number of one digit.

    >>> rounded_down(0.1198), rounded_down(0.1)
    (0.1, 0.09)
    """
    unit = 10 ** math.floor(math.log10(0.99 * rate))
    return float(f"{math.floor(0.99 * rate / unit) * unit:.1g}")


def divergence(
    cfg: DictConfig, reference: Reference, diverged: DivergenceError | None, result: dict[str, Any], initial: Any
) -> str | None:
    """Say that the run diverged, where, and why; None if it did not.

    ``diverged`` is what stopped it, if anything; ``result`` has the ``steps`` and ``metrics`` at the end, ``initial``
    the metrics of the untouched model.
    """
    metrics, steps = result["metrics"], result["steps"]
    grown = lr_is_unstable(cfg, reference) and metrics["train/loss"] > (initial.get("train/loss") or math.inf)
    wrong = (item for item in metrics.items() if item[0].endswith("loss") and not math.isfinite(item[1]))
    not_finite = next((DivergenceError(*item) for item in wrong), None)
    diverged = diverged or not_finite or (DivergenceError("train/loss", metrics["train/loss"]) if grown else None)
    if not diverged:
        return None
    if steps and cfg.trainer.gradient_clip_val is not None and str(cfg.optimizer.get("_target_")).endswith(".LBFGS"):
        why = "LBFGS cannot follow gradients that are clipped; try trainer.gradient_clip_val=null"
        return f"diverged at step {steps} ({diverged}): {why}"
    raw = cfg.data.get("standardize") is False
    return explain(diverged.metric, diverged.value, steps, cfg.optimizer.get("lr"), reference.stable_lr, raw=raw)


def explain(metric: str, value: float, steps: int, lr: float | None, stable: float | None, *, raw: bool) -> str:
    """Say that a run diverged, where, why, and what to try.

    ``metric`` and its ``value`` showed it after ``steps``; ``stable`` is the largest stable rate, if it is known, and
    ``raw`` says that the data could be standardized and are not.
    """
    if not steps:
        return (
            f"diverged before the first step ({metric} {value:.2g}): the values are too large for this precision; "
            "standardize the data, or try trainer.precision=64-true"
        )
    if stable is None or lr is None:
        why = f"try a smaller rate than {lr}, as in optimizer.lr={lr / 10:g}" if lr else "try another optimizer"
    elif lr > stable:
        known = f"above {stable:.4g}, the largest stable rate for this data"
        why = f"lr {lr:g} is {known}; try optimizer.lr={rounded_down(stable):g}"
    else:
        known = (
            f"below {stable:.4g}, the largest stable rate for all rows together, but a batch of few may have a smaller"
        )
        why = f"lr {lr:g} is {known} one; try optimizer.lr={rounded_down(lr):g} or a larger data.batch_size"
    return f"diverged at step {steps} ({metric} {value:.2g}): {why}{', or data.standardize=true' if raw else ''}"
