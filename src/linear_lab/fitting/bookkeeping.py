"""What a run notes beside training: how it begins, its last checkpoint, and its outcome."""

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
    """What training leaves in memory."""

    cfg: DictConfig
    data: LightningDataModule
    model: LightningModule
    trainer: Trainer
    reference: Reference
    tracker: Curves | None
    losses: Iterable[tuple[int, Tensor]]  # of the last batches, see `StopOnDivergence`
    diverged: DivergenceError | None = None


def begin(run: Run, fitted: Fit, composed: dict[str, Any], overrides: Sequence[str]) -> None:
    """Record that training begins, and with which config; ``composed`` is all of it, without interpolations."""
    cfg, data = fitted.cfg, fitted.data
    saved: Any = OmegaConf.merge(cfg, {"resume": None, "trust": None})
    for group in TRAINING:  # a model may have its own; T_max of cosine does not follow max_epochs on resume
        saved[group] = composed[group]
    of_data: dict[str, Any] = {}
    if isinstance(data, LinearData):
        of_data["columns"] = {"x": data.schema.x, "y": data.schema.y, "labels": data.schema.labels}
        of_data["rows"] = {name: len(x) for name, (x, _) in data.parts.items()}
        of_data["loss_unit"] = report.loss_unit(composed["loss"], data.schema) if composed["loss"] else None
    hparams.remove_end(run.path)
    if cfg.resume:
        run.add_to_job(overrides)
        if len(overrides) > 1 and fitted.tracker and fitted.trainer.is_global_zero:
            fitted.tracker.describe(fitted.trainer.global_step)  # it goes on with another config
    run.begin(
        OmegaConf.to_yaml(without_calls(saved)),
        overrides if cfg.resume else (),  # those of a new run are there
        config_hash=config_hash(composed),
        seed=cfg.seed,
        git=git_revision(),
        **of_data,
        stable_lr=fitted.reference.stable_lr,
        weight_decay=fitted.reference.weight_decay,
    )


def measure_start(run: Run, fitted: Fit) -> None:
    """Log and record the untouched model, with which curves start."""
    if fitted.tracker and fitted.trainer.is_global_zero:
        fitted.tracker.begin()
    initial = learned(fitted)
    if can_validate(fitted.data, fitted.model):
        seed_all(fitted.cfg.seed)
        fitted.trainer.validate(fitted.model, fitted.data, verbose=False)
    run.write(initial=initial.pop("parameters") | initial | measured(fitted.trainer))


def warn_of_nothing_trained(trainer: Trainer, callbacks: Sequence[Callback], max_time: Any) -> None:
    """Say of a resumed run that took no step what has ended it, and what to change to go on."""
    if any((timer.time_remaining() or 1) < 0 for timer in callbacks if isinstance(timer, Timer)):
        log.warning("trainer.max_time=%s is used up, over all sittings; to go on, try trainer.max_time=null", max_time)
    if any(c.stopping_reason != EarlyStoppingReason.NOT_STOPPED for c in trainer.early_stopping_callbacks):
        log.warning("callbacks.early_stopping has ended the run; to go on, give it a larger patience")
    for name, limit in limits_reached(trainer).items():
        log.warning("trainer.%s=%d is reached; to go on, give a larger one", name, limit)


def limits_reached(trainer: Trainer) -> dict[str, int]:
    """Return which of the trainer's limits are reached."""
    counts = {"max_epochs": trainer.current_epoch, "max_steps": trainer.global_step}
    limits = {name: getattr(trainer, name) for name in counts}
    return {name: limit for name, limit in limits.items() if limit is not None and 0 <= limit <= counts[name]}


def save_last(run: Run, fitted: Fit) -> None:
    """Save last.ckpt where no validation came to the last step; of a run that diverged the last finite one stays."""
    trainer = fitted.trainer
    path, last = readable_checkpoint(run, "last")
    trainer.strategy.barrier()  # all processes have looked before the first one writes
    unsaved = path != run.path / LAST or last["global_step"] != trainer.global_step
    if fitted.diverged:
        finite = all(values.isfinite().all() for values in fitted.model.parameters())
        unsaved = path is None and trainer.global_step > 0 and finite
    if unsaved and not fitted.cfg.trainer.fast_dev_run:
        trainer.save_checkpoint(run.path / LAST, weights_only=False)


def outcome(run: Run, fitted: Fit) -> dict[str, Any]:
    """Measure the final and the best model on all parts; the fields of result.json.

    Raises:
        UserError: if the metric that decides which weights are best is not measured.
    """
    model, steps, optimum = fitted.model, fitted.trainer.global_step, fitted.reference.optimum
    # what a module of one's own logged in training, now or, if there was nothing to train, before
    before = run.record.metrics if run.record.steps == steps else {}
    metric, logged = fitted.cfg.metric, before | measured(fitted.trainer)
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
    """Return the parameters in the units of the file, and how far their loss is from the least one."""
    if not isinstance(fitted.model, SupervisedModule):
        return {"parameters": {}, "excess_loss": None}
    parameters = fitted.model.learned()
    if isinstance(fitted.data, LinearData):
        parameters = fitted.data.schema.in_file_units(parameters)
    return {"parameters": parameters, "excess_loss": fitted.reference.excess(fitted.model.network)}


def log_outcome(fitted: Fit, record: Record) -> None:
    """Log what is measured once, at the end."""
    everything = fitted.diverged or (fitted.tracker and fitted.tracker.caught_up)  # no validation has measured it
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
