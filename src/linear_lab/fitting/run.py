"""One run: config -> fit -> result; and its measure afterwards."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.profilers import PassThroughProfiler
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from linear_lab import UserError
from linear_lab.data import LinearData
from linear_lab.fitting.build import as_dict, build, build_trainer, restored_process
from linear_lab.fitting.callbacks import Interrupted, StopIfHopeless, StopOnSignal, Unprofiled
from linear_lab.fitting.checks import check
from linear_lab.fitting.divergence import DivergenceError, StopOnDivergence, divergence, rounded_down, too_fast
from linear_lab.fitting.first_steps import FirstSteps
from linear_lab.inference.remeasure import check_same_data, evaluate, measure, measured, readable_checkpoint
from linear_lab.models import SupervisedModule
from linear_lab.runs.fingerprints import config_hash
from linear_lab.runs.folder import LAST, Run, git_revision
from linear_lab.terminal import layout, report
from linear_lab.terminal.progress import ProgressBar
from linear_lab.theory.least_squares import Reference, reference
from linear_lab.tracking import hparams
from linear_lab.tracking.outcome_text import outcome_text
from linear_lab.tracking.tensorboard import RunLogger
from linear_lab.tracking.tracker import Dashboard

__all__ = ["evaluate", "fit", "outcome", "train"]

log = logging.getLogger(__name__)


@dataclass
class Fit:
    """What training leaves in memory."""

    data: LinearData
    model: SupervisedModule
    trainer: Trainer
    reference: Reference
    dashboard: Dashboard | None = None
    diverged: DivergenceError | None = None


def train(cfg: DictConfig, folder: str | Path, overrides: Sequence[str] = ()) -> float:
    """Train one composed config in its run folder, or go on there if ``cfg.resume`` is set.

    Args:
        cfg: what conf/train.yaml composes to.
        folder: the run folder; it exists.
        overrides: what the user typed, for the record of a resumed run.

    Returns:
        The final model's ``cfg.metric``.

    Raises:
        UserError: for all that the user can mend, a run that diverged among it; the record says the same.
        Interrupted: at SIGINT and SIGTERM, after last.ckpt was saved.
    """
    if cfg.data.get("path"):  # so that the saved config finds the file from any folder
        cfg.data.path = str(Path(str(cfg.data.path)).expanduser().absolute())
    if getattr(rank_zero_only, "rank", 0):  # a process that DDP added: it computes; the first one records and shows
        with restored_process(folder, cfg.get("threads")), StopOnSignal() as stop:
            fit(cfg, Run(Path(folder)), stop, Console(quiet=True))
        return 0.0
    run = Run.open(folder, "resume") if cfg.resume else Run(Path(folder))
    if run.record.get("status") == "diverged":
        raise UserError(f"resume={cfg.resume}: the run {run.record['error']}; start a new one")
    if job := run.record.get("job"):  # of a sweep: the command that trains it again is another one from now on
        run.record["job"] = job | {"overrides": job["overrides"] + [o for o in overrides if o[:7] != "resume="]}
    return train_in(run, cfg, overrides, layout.screen())


def train_in(
    run: Run, cfg: DictConfig, overrides: Sequence[str], screen: Console, callbacks: Sequence[Callback] = ()
) -> float:
    """Train as `train` does, in an open run folder, with callbacks that no config names."""
    with ExitStack() as at_the_end:
        at_the_end.callback(lambda: hparams.end(run.path, run.record.get("status")))
        at_the_end.enter_context(run.recording())
        stop = at_the_end.enter_context(StopOnSignal())
        check(cfg, overrides)
        try:
            with restored_process(run.path, cfg.get("threads")):
                fitted = fit(cfg, run, stop, screen, overrides, at_the_end, callbacks)
                result = outcome(cfg, run, fitted)
        except Interrupted:
            layout.show_interrupted(screen, stop.step, run.path)
            raise
        error = divergence(cfg, fitted.reference, fitted.diverged, result, run.record.get("initial", {}))
        pruned = any(isinstance(callback, StopIfHopeless) and callback.hopeless for callback in callbacks)
        result |= {"status": "diverged" if error else "pruned" if pruned else "completed", "error": error}
        if run.record.get("steps") != result["steps"]:  # else it stands there already
            log_outcome(fitted, run.record | result)
        hparams.end(run.path, result["status"])  # before the record says that all is done
        run.write(**result)
    if error:
        raise UserError(error)
    report.show_outcome(screen, run.record, run.path, dashboard=fitted.dashboard is not None)
    metric: float = result["metrics"][cfg.metric]
    return metric


def fit(
    cfg: DictConfig,
    run: Run,
    stop: StopOnSignal,
    screen: Console,
    overrides: Sequence[str] = (),
    at_the_end: ExitStack | None = None,
    callbacks: Sequence[Callback] = (),
) -> Fit:
    """Build all from the config, and train; the initial model and the first step go into the run's record.

    Loggers stay open for what the caller has to say, until ``at_the_end``.
    """
    deciding = config_hash(as_dict(cfg))  # as composed: building may change the metric
    data, model = build(cfg)
    plain = as_dict(cfg)
    path, checkpoint = readable_checkpoint(run, "last") if cfg.resume else (None, {})
    limit = cfg.trainer.max_epochs
    if limit not in (None, -1) and checkpoint.get("epoch", 0) > limit:
        raise UserError(
            f"trainer.max_epochs={limit}: {path} is from epoch {checkpoint['epoch'] + 1} already; give a larger one"
        )
    check_same_data(cfg, data, checkpoint)
    known = find_reference(cfg, data, model)
    first_steps = FirstSteps(screen, cfg.console.steps, plain)
    stop_on_divergence = StopOnDivergence(known, cfg.metric, cfg.get("mode", "min"))
    ours = [stop_on_divergence, first_steps, *callbacks, ProgressBar(screen), stop]
    step = checkpoint.get("global_step", 0)
    purge_step = step + (path is not None) if cfg.resume else None  # what comes after the checkpoint is logged again
    trainer = build_trainer(cfg, run.path, ours, purge_step)
    if type(trainer.profiler) is PassThroughProfiler:  # type: ignore[attr-defined]
        trainer.profiler = Unprofiled()  # type: ignore[attr-defined]
    dashboard = None
    for logger in trainer.loggers:
        if isinstance(logger, RunLogger):
            config: Any = OmegaConf.to_container(cfg)
            yaml = OmegaConf.to_yaml(cfg, resolve=True)
            dashboard = Dashboard(logger, data, known, config, yaml, cfg.metric, stop_on_divergence.summary)
            # what has diverged is not logged, and what is logged is on disk before a checkpoint
            trainer.callbacks.insert(trainer.callbacks.index(stop_on_divergence) + 1, dashboard)  # type: ignore[attr-defined]
            if at_the_end:
                at_the_end.callback(logger.close)
    # cosine: its T_max does not follow max_epochs later
    kept = OmegaConf.merge(cfg, {"scheduler": plain["scheduler"], "resume": None})
    hparams.take_back_end(run.path)
    run.begin(
        OmegaConf.to_yaml(kept),
        overrides if cfg.resume or run.record.get("job") else (),  # of others Hydra has written them
        config_hash=deciding,
        seed=cfg.seed,
        git=git_revision(),
        columns={"x": data.schema.x, "y": data.schema.y, "labels": data.schema.labels},
        rows={name: len(x) for name, (x, _) in data.parts.items()},
        loss_unit=report.loss_unit(plain["loss"], data.schema),
        stable_lr=known.stable_lr,
        weight_decay=known.weight_decay,
    )
    report.show_plan(screen, plain, data, model, trainer, known, run.path, step)
    if known.stable_lr and too_fast(cfg, known):
        log.warning(
            "optimizer.lr=%g is above %.4g, the largest stable rate for this data: the loss will grow; "
            "try optimizer.lr=%g", cfg.optimizer.lr, known.stable_lr, rounded_down(known.stable_lr)
        )  # fmt: skip
    fitted = Fit(data, model, trainer, known, dashboard)
    try:
        if path is None:
            if dashboard and trainer.is_global_zero:
                dashboard.begin(model)
            initial = learned(data, model, known)
            trainer.validate(model, data, verbose=False)  # so that curves start with the untouched model
            run.write(initial=initial.pop("parameters") | initial | measured(trainer))
        elif dashboard and trainer.is_global_zero and (len(overrides) > 1 or not (run.path / hparams.START).exists()):
            dashboard.describe(model, step)  # it goes on otherwise, or began with an older version
        trainer.fit(model, data, ckpt_path=path, weights_only=True)
    except DivergenceError as diverged:
        fitted.diverged = diverged
    except (MisconfigurationException, ValueError) as error:  # all else may be a defect, and keeps its traceback
        raise UserError(f"trainer: {error}") from error
    if first_steps.recorded:
        run.write(first_step=first_steps.recorded)
    path, last = readable_checkpoint(run, "last")
    trainer.strategy.barrier()  # all processes have looked before the first one writes
    if fitted.diverged:  # the last finite checkpoint stays
        unsaved = (
            path is None and trainer.global_step > 0 and all(values.isfinite().all() for values in model.parameters())
        )
    else:  # there was no validation to save it after, or it was cut
        unsaved = path != run.path / LAST or last["global_step"] != trainer.global_step
    if unsaved and not cfg.trainer.fast_dev_run:
        trainer.save_checkpoint(run.path / LAST)
    return fitted


def outcome(cfg: DictConfig, run: Run, fitted: Fit) -> dict[str, Any]:
    """Measure the final and the best model on all parts; the fields of result.json."""
    data, model, known, steps = fitted.data, fitted.model, fitted.reference, fitted.trainer.global_step
    optimum = known.optimum and {
        "weight": known.optimum.weight.tolist(),
        "bias": None if known.optimum.bias is None else known.optimum.bias.tolist(),
        "train/loss": known.optimum.loss,
    }
    final = {"metrics": measure(cfg, data, model), **learned(data, model, known)}
    result = {"steps": steps, "optimum": optimum, **final}
    if fitted.dashboard and run.record.get("steps") != steps:  # else it stands there already
        fitted.dashboard.finish(steps, model, final["metrics"])
    if run.checkpoint("best") is None:
        return result | {"best": None}
    _, best = readable_checkpoint(run, "best")
    if best["global_step"] == steps:
        return result | {"best": {"step": steps, **final}}
    model.load_state_dict(best["state_dict"])
    return result | {
        "best": {
            "step": best["global_step"],
            "metrics": measure(cfg, data, model),
            **learned(data, model, known),
        }
    }


def log_outcome(fitted: Fit, record: dict[str, Any]) -> None:
    """Log what is measured once, at the end."""
    whole = fitted.diverged or (fitted.dashboard and fitted.dashboard.caught_up)  # nothing else has measured it
    new = record["metrics"] if whole else {"test/loss", "test/accuracy"}
    for logger in fitted.trainer.loggers:
        logger.log_metrics({name: v for name, v in record["metrics"].items() if name in new}, record["steps"])
        if isinstance(logger, RunLogger):
            logger.log_text("outcome", outcome_text(record), record["steps"])
        logger.save()


def learned(data: LinearData, model: SupervisedModule, known: Reference) -> dict[str, Any]:
    """Return the parameters in the units of the file, and how far their loss is from the least one."""
    parameters = data.schema.in_file_units(model.learned())
    return {"parameters": parameters, "excess_loss": known.excess(model.network)}


def find_reference(cfg: DictConfig, data: LinearData, model: SupervisedModule) -> Reference:
    """Compute what the run is held against, in the first process; what a scheduler or clipping changes has no bound."""
    if not cfg.get("optimum", True) or getattr(rank_zero_only, "rank", None):
        return Reference()
    optimizers: Any = model.configure_optimizers()
    optimizer = optimizers["optimizer"] if isinstance(optimizers, dict) else optimizers
    found = reference(
        model.network, model.loss, optimizer, *data.raw["train"], data.schema.x_units, data.schema.y_units
    )
    return found if cfg.trainer.gradient_clip_val is None else found._replace(stable_lr=None)
