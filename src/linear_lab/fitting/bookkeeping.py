"""What a run records besides its curves: its beginning, its last checkpoint and its outcome."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from linear_lab import UserError
from linear_lab.config import without_calls
from linear_lab.data import LinearData
from linear_lab.fitting.build import TRAINING
from linear_lab.fitting.divergence import DivergenceError
from linear_lab.fitting.measure import can_validate, measure, measured
from linear_lab.fitting.seeding import seed_all
from linear_lab.models import SupervisedModule
from linear_lab.runs.checkpoints import not_measured, readable_checkpoint
from linear_lab.runs.fingerprints import config_hash
from linear_lab.runs.folder import LAST, Run, git_revision
from linear_lab.runs.record import Record
from linear_lab.terminal import report
from linear_lab.theory.reference import Reference
from linear_lab.tracking import hparams
from linear_lab.tracking.curves import Curves
from linear_lab.tracking.tensorboard import RunLogger

log = logging.getLogger(__name__)


@dataclass
class Fit:
    """The objects of a run, while it trains and afterwards."""

    cfg: DictConfig
    data: LightningDataModule
    model: LightningModule
    trainer: Trainer
    reference: Reference
    tracker: Curves | None
    losses: Iterable[tuple[int, Tensor]]  # losses of the last batches, see `StopOnDivergence`
    diverged: DivergenceError | None = None


def begin(run: Run, fitted: Fit, composed: dict[str, Any], overrides: Sequence[str]) -> None:
    """Record that training begins, and its config; ``composed`` is the whole config without interpolations."""
    cfg, data = fitted.cfg, fitted.data
    saved: Any = OmegaConf.merge(cfg, {"resume": None, "trust": None})
    for group in TRAINING:  # without interpolations: on resume, T_max must not follow another max_epochs
        saved[group] = composed[group]
    data_fields: dict[str, Any] = {}
    if isinstance(data, LinearData):
        data_fields["columns"] = {"x": data.schema.x, "y": data.schema.y, "labels": data.schema.labels}
        data_fields["rows"] = {name: len(x) for name, (x, _) in data.parts.items()}
        data_fields["loss_unit"] = report.loss_unit(composed["loss"], data.schema) if cfg.loss else None
    hparams.remove_end(run.path)
    if cfg.resume:
        run.add_to_job(overrides)
        if len(overrides) > 1 and fitted.tracker and fitted.trainer.is_global_zero:
            fitted.tracker.describe(fitted.trainer.global_step)  # its config has changed
    run.begin(
        OmegaConf.to_yaml(without_calls(saved)),
        overrides if cfg.resume else (),  # a new run has saved its overrides before
        config_hash=config_hash(composed),
        seed=cfg.seed,
        git=git_revision(),
        **data_fields,
        stable_lr=fitted.reference.stable_lr,
        weight_decay=fitted.reference.weight_decay,
    )


def measure_start(run: Run, fitted: Fit) -> None:
    """Measure, log and record the initial model, with which curves start."""
    if fitted.tracker and fitted.trainer.is_global_zero:
        fitted.tracker.begin()
    initial = learned(fitted)
    if can_validate(fitted.data, fitted.model):
        seed_all(fitted.cfg.seed)
        fitted.trainer.validate(fitted.model, fitted.data, verbose=False)
    run.write(initial=initial.pop("parameters") | initial | measured(fitted.trainer))


def warn_of_nothing_trained(trainer: Trainer, callbacks: Sequence[Callback], max_time: Any) -> None:
    """Warn about a resumed run that took no step: say what has ended it, and what to change."""
    if any((timer.time_remaining() or 1) < 0 for timer in callbacks if isinstance(timer, Timer)):
        log.warning("the run has used up trainer.max_time=%s; to train on, try trainer.max_time=null", max_time)
    for key, limit in limits_reached(trainer).items():
        if key == report.PATIENCE:
            log.warning("early stopping has ended the run; to train on, set a larger %s", key)
        else:
            log.warning("the run has reached %s=%d; to train on, set a larger value", key, limit)


def limits_reached(trainer: Trainer) -> dict[str, int]:
    """Return what has ended the training, by key: the patience of early stopping, or limits of the trainer."""
    stopped = [c for c in trainer.early_stopping_callbacks if c.stopping_reason != EarlyStoppingReason.NOT_STOPPED]
    if stopped:
        return {report.PATIENCE: stopped[0].patience}
    counts = {"max_epochs": trainer.current_epoch, "max_steps": trainer.global_step}
    limits = {name: getattr(trainer, name) for name in counts}
    return {f"trainer.{key}": limit for key, limit in limits.items() if limit is not None and 0 <= limit <= counts[key]}


def save_last(run: Run, fitted: Fit) -> None:
    """Save last.ckpt if no validation has saved the last step; a diverged run keeps its last finite one."""
    trainer = fitted.trainer
    path, last = readable_checkpoint(run, "last")
    trainer.strategy.barrier()  # all processes read the checkpoint before the first one writes
    unsaved = path != run.path / LAST or last["global_step"] != trainer.global_step
    if fitted.diverged:
        finite = all(values.isfinite().all() for values in fitted.model.parameters())
        unsaved = path is None and trainer.global_step > 0 and finite
    if unsaved and not fitted.cfg.trainer.fast_dev_run:
        trainer.save_checkpoint(run.path / LAST, weights_only=False)


def outcome(run: Run, fitted: Fit) -> dict[str, Any]:
    """Measure the final and the best model on all parts, and return the fields of result.json.

    Raises:
        UserError: if the metric that decides which weights are best is not measured.
    """
    model, steps, optimum = fitted.model, fitted.trainer.global_step, fitted.reference.optimum
    # a user's module may have logged metrics in training; without further steps they are in the record
    recorded = run.record.metrics if run.record.steps == steps else {}
    metric, logged = fitted.cfg.metric, recorded | measured(fitted.trainer)
    final = {"metrics": logged | measure(fitted.cfg, fitted.data, model), **learned(fitted)}
    if metric is not None and metric not in final["metrics"]:
        raise UserError(not_measured(metric, final["metrics"]))
    result = {"steps": steps, "optimum": optimum and optimum.learned() | {"train/loss": optimum.loss}, **final}
    if fitted.tracker and run.record.steps != steps:
        fitted.tracker.finish(steps, final["metrics"])
    if run.checkpoint("best") is None:
        return result | {"best": None}
    _, best = readable_checkpoint(run, "best")
    if best["global_step"] != steps:
        model.load_state_dict(best["state_dict"])
        monitored = best["callbacks"].get("SaveCheckpoints", {}).get("measured", {})
        final = {"metrics": monitored | measure(fitted.cfg, fitted.data, model), **learned(fitted)}
    return result | {"best": {"step": best["global_step"], **final}}


def learned(fitted: Fit) -> dict[str, Any]:
    """Return the parameters in the units of the file, and their excess loss."""
    if not isinstance(fitted.model, SupervisedModule):
        return {"parameters": {}, "excess_loss": None}
    parameters = fitted.model.learned()
    if isinstance(fitted.data, LinearData):
        parameters = fitted.data.schema.in_file_units(parameters)
    return {"parameters": parameters, "excess_loss": fitted.reference.excess(fitted.model.network)}


def log_outcome(fitted: Fit, record: Record) -> None:
    """Log what is measured only at the end."""
    everything = fitted.diverged or (fitted.tracker and fitted.tracker.caught_up)  # no validation logged them
    new = record.metrics if everything else {"test/loss", "test/accuracy"}
    metrics = {name: value for name, value in record.metrics.items() if name in new and value is not None}
    curve = fitted.losses if record.status == "diverged" else ()
    for logger in fitted.trainer.loggers:
        for step, loss in curve:
            logger.log_metrics({"train/loss_of_step": loss.item()}, step)
        logger.log_metrics(metrics, record.steps)
        if isinstance(logger, RunLogger):
            logger.log_text("outcome", report.outcome_text(record), fitted.trainer.global_step)
        logger.save()
